"""Files as an attacker would write them."""

import os
from pathlib import Path


class Touch:
    """Unpickled by a plain unpickler, this makes a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self):
        return (os.system, (f"touch {self.file}",))


class Call:
    """Unpickled by a plain unpickler, this is what a function gives."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call
