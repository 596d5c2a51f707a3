"""The stages' work: one module per stage, each with a function that reads earlier outputs and writes its output."""

from __future__ import annotations

import os
from pathlib import Path

TEACHER_CLASSES = "teacher_classes.json"  # in the teacher's output: its class for each test image
TEACHER_TOLERANCE = 0.5  # percentage points that a teacher's weights may measure below their expected accuracy
RECIPES = "recipes/methods.yaml"
VIEWS_STORE = "views.h5"  # in the output of logits: teacher logits of all views


def project_folder() -> Path:
    """Return the folder of the project, also where DVC runs an experiment in a copy of it.

    DVC names the folder of its project, which for a stage of a paper may be below the one with the recipes.
    """
    folder = Path(os.environ.get("DVC_ROOT", ""))
    return next((root for root in (folder, *folder.parents) if (root / RECIPES).exists()), folder)


def work_dir() -> Path:
    """Return the folder of unfinished work, in the project's folder."""
    return project_folder() / ".kdflow"
