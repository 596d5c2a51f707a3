"""The stages' work: one module per stage, each with a function that reads earlier outputs and writes its output."""

from __future__ import annotations

import os
from pathlib import Path

TEACHER_CLASSES = "teacher_classes.json"  # in the teacher's output: its class for each test image
TEACHER_TOLERANCE = 0.5  # percentage points that a teacher's weights may measure below their expected accuracy
VIEWS_STORE = "views.h5"  # in the output of logits: teacher logits of all views


def work_dir() -> Path:
    """Return the folder of unfinished work: in the project, also where DVC runs an experiment in a copy of it."""
    return Path(os.environ.get("DVC_ROOT", "")) / ".kdflow"
