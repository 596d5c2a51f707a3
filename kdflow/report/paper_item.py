"""The tables and figures of a paper. Each kind has a module of its name with the functions of `ReportModule`."""

from __future__ import annotations

import importlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

from kdflow.paper.cells import CellStatuses, Status
from kdflow.paper.item import Item
from kdflow.paper.paper import Paper


@dataclass(frozen=True)
class TableCell:
    """A cell of a shown table.

    `details` are lines below `text`, `rank` is 1 for the best value of a column and 2 for the second best, and
    `source` is the cell or teacher that the value is measured on.
    """

    text: str
    status: Status
    details: tuple[str, ...] = ()
    rank: int | None = None
    source: str | None = None


@dataclass(frozen=True)
class ItemView:
    """The content of a table (`columns`, `rows`) or figure (`svg`) or both, as the page and the terminal show it.

    `formats` has a table as md, tex, csv and json, by file suffix; it is empty for a figure.
    """

    notes: list[str]
    columns: list[str] = field(default_factory=list)
    rows: dict[str, list[TableCell]] = field(default_factory=dict)
    svg: bytes = b""
    formats: dict[str, str] = field(default_factory=dict)


@runtime_checkable
class ReportModule(Protocol):
    """The functions of a kind's module; `item` is of the kind's class."""

    def write(self, paper: Paper, statuses: CellStatuses, name: str, item: Any, out: Path) -> None:
        """Write the table or figure to `out`, and DVC's metrics or plots to metrics/ or plots/ beside it."""

    def view(self, paper: Paper, statuses: CellStatuses, name: str, item: Any) -> ItemView:
        """Return the table or figure as far as its cells exist."""


def report_module(item: Item) -> ReportModule:
    """Import the module of an item's kind."""
    return cast("ReportModule", importlib.import_module(f"kdflow.report.{item.kind}"))


def write(paper: Paper, name: str, out: Path) -> None:
    """Write a table (Markdown, LaTeX, CSV, JSON) or figure (SVG, PNG) to `out`.

    DVC's metrics or plots go to metrics/ or plots/ beside `out`.

    Raises:
        UserError: there is no such table or figure.
    """
    item = paper.get_item(name)
    report_module(item).write(paper, CellStatuses(paper), name, item, out)


def view(paper: Paper, statuses: CellStatuses, name: str) -> ItemView:
    """Return the content of a table or figure, as far as its cells exist.

    Raises:
        UserError: there is no such table or figure.
    """
    item = paper.get_item(name)
    return report_module(item).view(paper, statuses, name, item)
