"""The base class of all settings, and types and checks that they share."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue

from kdflow.config import user_code
from kdflow.core.errors import UserError, escape_control, shorten
from kdflow.core.files import expand_home

PACKAGE = Path(__file__).parents[1]

PROJECT_FILES = PACKAGE / "project" if (PACKAGE / "project").is_dir() else PACKAGE.parent
"""The built-in recipes and the files that `kdflow init` copies: in an installed package, or at the top of a clone."""

MAX_OPTION = 100_000  # the largest number in the options of a model or loss

PREPARED = "data/dataset.json"
"""The file in which `prepare` describes the dataset."""

FOLDERS = {
    "data": "data/readers",
    "models": "models/families",
    "views": "methods/views",
    "labels": "methods/labels",
    "picks": "methods/picks",
    "losses": "methods/losses",
    "formats": "export/formats",
}
"""For each kind of choice, the folder in the package whose modules are the choices."""


def code_files(pattern: str = "**/*.py") -> list[Path]:
    """Return the modules of kdflow that match a pattern, without the stages that `kdflow init` copies."""
    copies = PACKAGE / "project"
    return sorted(file for file in PACKAGE.glob(pattern) if copies not in file.parents)


def choices(kind: str) -> list[str]:
    """Return the names that a setting of this kind may have: the modules in its folder, which are not imported."""
    return sorted(file.stem for file in (PACKAGE / FOLDERS[kind]).glob("*.py") if file.stem != "__init__")


@lru_cache
def module_flag(kind: str, name: str, flag: str, default: bool | None = None) -> bool:
    """Read a constant such as `NEEDS_FEATURES = True` from the module of a choice, without importing it.

    Raises:
        ValueError: the module does not set it to True or False, and there is no default.
    """
    file = PACKAGE / FOLDERS[kind] / f"{name}.py"
    found = user_code.find_flag(ast.parse(file.read_text(), str(file)).body, flag, default)
    if found is None:
        raise ValueError(f"kdflow/{FOLDERS[kind]}/{name}.py: must set {flag} to True or False")
    return found


def _one_of(kind: str) -> AfterValidator:
    def check(name: str) -> str:
        if kind in user_code.CONTRACTS and user_code.is_import_path(name):
            user_code.check_import_path(name)
            return name  # the module is checked with the recipes: a record may name code that is gone
        if name not in choices(kind):
            raise ValueError(f"unknown name {shorten(name)}{suggestion(name, choices(kind))}")
        return name

    return AfterValidator(check)


def unknown_name(what: str, name: str, known: Iterable[str]) -> UserError:
    """Return the error for a name that does not exist, with a similar name or all known names."""
    return UserError(f"{what}: unknown name {shorten(name)}{suggestion(name, sorted(set(known)))}")


def suggestion(name: str, names: list[str]) -> str:
    """Return the end of a message about an unknown name: the most similar of `names`, or all of them."""
    similar = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {similar[0]!r}?" if similar else f"; allowed: {', '.join(names)}"


def no_duplicates(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse a list that has an entry twice."""
    duplicates = dict.fromkeys(escape_control(str(value)) for value in values if values.count(value) > 1)
    if duplicates:
        raise ValueError(f"duplicate entries: {', '.join(duplicates)}")
    return values


# Every number has bounds: beyond them, it would fail in the middle of a run or never end.
Positive = Annotated[int, Field(gt=0, le=10**9)]

Epochs = Annotated[int, Field(gt=0, le=10**6)]

BatchSize = Annotated[int, Field(gt=0, le=10**6)]

ImageSize = Annotated[int, Field(gt=0, le=4096)]

LearningRate = Annotated[float, Field(gt=0, le=1e4)]

Weight = Annotated[float, Field(gt=0, le=1e6)]

Seed = Annotated[int, Field(ge=0, lt=2**32)]

OpenFraction = Annotated[float, Field(gt=0, lt=1)]

Fraction = Annotated[float, Field(gt=0, le=1)]

Seeds = Annotated[tuple[Seed, ...], Field(strict=False, min_length=1, max_length=1000), AfterValidator(no_duplicates)]

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

# strict=False lets a list of YAML become a tuple; its items are still checked strictly.
_three = Field(strict=False, min_length=3, max_length=3)

Triple = Annotated[tuple[Annotated[float, Field(ge=-1e3, le=1e3)], ...], _three]

Std = Annotated[tuple[Annotated[float, Field(ge=1e-6, le=1e3)], ...], _three]

Percent = Annotated[float, Field(ge=0, le=100)]


def _check_path(path: str) -> str:
    expand_home(path)
    return path


PathName = Annotated[str, Field(min_length=1), AfterValidator(_check_path)]
"""A path of the user; `expand_home` replaces a leading `~`."""


def _check_options(options: dict[str, Any]) -> dict[str, Any]:
    """Refuse numbers that no option of a model or loss has; the code of the option knows its bounds."""
    values = list(options.values())
    for value in values:  # which grows
        if isinstance(value, list):
            values += value
        elif isinstance(value, dict):
            values += value.values()
        elif isinstance(value, int | float) and not abs(value) <= MAX_OPTION:
            raise ValueError(f"numbers must be from -{MAX_OPTION:,} to {MAX_OPTION:,}, got {shorten(value)}")
    return options


Options = Annotated[dict[str, JsonValue], AfterValidator(_check_options)]
"""The options of a model or loss."""


class Settings(BaseModel):
    """Immutable settings: unknown keys are refused, and values are not converted to another type.

    `renamed_keys` maps keys of earlier versions to their present names, and `renamed_kind` is the earlier name of an
    entry's `kind`: the messages that refuse them give the present name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    renamed_keys: ClassVar[Mapping[str, str]] = {}
    renamed_kind: ClassVar[str | None] = None


T = TypeVar("T", bound=Settings)
