"""Prefect flows that run stale DVC stages."""
