"""Starts the processes of runs: several runs in parallel, or one run on several processes."""
