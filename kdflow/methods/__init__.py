"""The parts of a distillation method: views, labels, picks and losses."""
