"""The result of comparing a teacher with the mixed labels of strong views. Never imports torch."""

from __future__ import annotations

from kdflow.config import Settings


class Label(Settings):
    """A class and its probability."""

    name: str
    probability: float


class Sample(Settings):
    """A strong view on which they disagree: its mixed label, and the teacher's five most probable classes."""

    mixed: list[Label]
    teacher: list[Label]


class DisagreementResult(Settings):
    """The percentage of one epoch's strong views for which teacher and mixed label have another most probable class.

    `budget_note` states a reduced budget of data or teacher; it is empty for a full one.
    """

    view: str
    seed: int
    views: int
    percent: float
    budget_note: str
    samples: list[Sample]
