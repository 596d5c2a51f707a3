"""Errors, files, progress and downloads, which every other package uses."""
