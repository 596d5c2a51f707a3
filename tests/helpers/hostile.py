"""Hostile content for pickles."""

import os
from pathlib import Path


class Touch:
    """Creates a file when a plain unpickler reads it."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (os.system, (f"touch {self.file}",))


class Call:
    """Calls a function when a plain unpickler reads it."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call
