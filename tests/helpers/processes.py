"""The descendants of a process, from Linux's /proc."""

from pathlib import Path


def children(pid: int) -> list[int]:
    """Return the processes that any thread of a process has started; none if it has ended."""
    try:
        texts = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(child) for text in texts for child in text.split()]


def descendants(pid: int) -> list[int]:
    """Return the children of a process, their children, and so on."""
    return [process for child in children(pid) for process in (child, *descendants(child))]
