"""Entry point of `python -m kdflow.cli`."""

from kdflow.cli import main

main()
