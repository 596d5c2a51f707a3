"""Export of a student to one file, and prediction from such a file."""
