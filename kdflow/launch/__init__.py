"""Several runs at once, or one run by several processes."""
