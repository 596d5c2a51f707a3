"""One module per stage of dvc.yaml: it names its paths and calls one function. Run as `python -m stages.NAME`."""
