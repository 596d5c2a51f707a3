"""A paper's tables and figures as DVC stages: tables.yaml -> cells -> dvc.yaml."""

from kdflow.paper.budget import PaperBudget
from kdflow.paper.cells import CellStatuses
from kdflow.paper.item import CellSpec, Item
from kdflow.paper.paper import Cell, Paper, Teacher, load_paper, total_epochs

__all__ = [
    "Cell",
    "CellSpec",
    "CellStatuses",
    "Item",
    "Paper",
    "PaperBudget",
    "Teacher",
    "load_paper",
    "total_epochs",
]
