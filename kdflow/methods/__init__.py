"""Parts of a distillation method: views, labels, picks and losses."""
