"""The base class of all settings, and the types and checks that they share."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from kdflow.core.errors import UserError

PACKAGE = Path(__file__).parents[1]

PREPARED = "data/dataset.json"

FOLDERS = {
    "data": "data/readers",
    "models": "models/families",
    "views": "methods/views",
    "labels": "methods/labels",
    "picks": "methods/picks",
    "losses": "methods/losses",
    "formats": "export/formats",
}
"""The folder of the package whose modules are the choices of each kind."""


def choices(kind: str) -> list[str]:
    """Names that a setting may take: the modules in the folder of that kind, found without importing them."""
    return sorted(file.stem for file in (PACKAGE / FOLDERS[kind]).glob("*.py") if file.stem != "__init__")


@lru_cache
def module_flag(kind: str, name: str, flag: str) -> bool:
    """Read a constant such as `NEEDS_FEATURES = True` from the module of a choice, without importing it.

    Raises:
        ValueError: the module does not set it to True or False.
    """
    file = PACKAGE / FOLDERS[kind] / f"{name}.py"
    for node in ast.parse(file.read_text(), str(file)).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if flag in names and isinstance(node.value.value, bool):
                return node.value.value
    raise ValueError(f"kdflow/{FOLDERS[kind]}/{name}.py: must set {flag} to True or False")


def _one_of(kind: str) -> AfterValidator:
    def check(name: str) -> str:
        if name not in choices(kind):
            raise ValueError(f"unknown name {name!r}{_allowed(name, choices(kind))}")
        return name

    return AfterValidator(check)


def unknown_name(what: str, name: str, known: Iterable[str]) -> UserError:
    """What a user is told of a name that is not there: a close match, or all that are."""
    return UserError(f"{what}: unknown name {name!r}{_allowed(name, sorted(set(known)))}")


def _allowed(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; allowed: {', '.join(names)}"


def no_duplicates(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse what stands twice."""
    if len(set(values)) != len(values):
        raise ValueError(f"each entry may stand there once, got {list(values)}")
    return values


Positive = Annotated[int, Field(gt=0)]

OpenFraction = Annotated[float, Field(gt=0, lt=1)]

Fraction = Annotated[float, Field(gt=0, le=1)]

Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(strict=False, min_length=1), AfterValidator(no_duplicates)
]

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

# Not strict as a container only: YAML's lists become tuples, their items are still checked strictly.
Triple = Annotated[tuple[float, float, float], Field(strict=False)]


class Settings(BaseModel):
    """Settings that cannot change, with no key that is not known and no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


T = TypeVar("T", bound=Settings)

Percent = Annotated[float, Field(ge=0, le=100)]
