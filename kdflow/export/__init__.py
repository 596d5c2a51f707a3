"""Export of a student to one file, and prediction with such a file."""
