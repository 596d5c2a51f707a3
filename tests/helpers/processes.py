"""The family of a process, from Linux's /proc."""

from pathlib import Path


def children(pid: int) -> list[int]:
    """Processes that any thread of this one has started; none if it is gone."""
    try:
        listed = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for text in listed for child in text.split()]


def descendants(pid: int) -> list[int]:
    """Its children, theirs, and so on."""
    return [found for child in children(pid) for found in (child, *descendants(child))]
