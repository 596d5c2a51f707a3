"""Training of one run, from its seed to its record."""
