"""Reading and checking of params.yaml and recipes/."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from kdflow.config.base import PREPARED, T, _allowed
from kdflow.config.dataset import Dataset, PreparedDataset, UserFolder, UserFolderRecipe
from kdflow.config.experiment import Experiment, Params, Recipes
from kdflow.config.method import Method, Model, Pair
from kdflow.core.errors import UserError, one_line


def load(root: Path = Path()) -> Experiment:
    """Read and check params.yaml and recipes/ under `root`.

    Raises:
        UserError: one line per mistake, each naming file and field.
    """
    file = root / "params.yaml"
    if not file.exists():
        raise UserError(f"{file}: no such file; run from the project's folder")
    mistakes: list[str] = []
    recipes = _recipes(root / "recipes", mistakes)
    params = read_settings(file, Params, mistakes)
    if mistakes or params is None:
        raise UserError("\n".join(mistakes))
    named: NameChecks = []
    if isinstance(params.dataset, str):
        named += [(file, "dataset", params.dataset, recipes.datasets)]
    named += [(file, "teacher", params.teacher, recipes.models), (file, "student", params.student, recipes.models)]
    named += [(file, f"methods.{i}", name, recipes.methods) for i, name in enumerate(params.methods)]
    check_names(named + _names_in_pairs(root / "recipes", recipes))
    experiment = Experiment(params=params, prepared=_prepared(root / PREPARED, params.dataset), **dict(recipes))
    if isinstance(params.dataset, UserFolder):
        if params.data_folder is not None:
            raise UserError(f"{file}: data_folder: must be empty where dataset.folder says where the images are")
        if experiment.prepared is None:
            return experiment  # how many images there are is found by `prepare`
    else:
        check_has_reader(file, params.dataset, recipes)
    available = experiment.dataset.data.train_images
    if params.train_images is not None and params.train_images > available:
        raise UserError(f"{file}: train_images: {params.train_images} asked for, {params.dataset_name} has {available}")
    return experiment


def _prepared(file: Path, source: str | UserFolder) -> PreparedDataset | None:
    """What `prepare` found of images of one's own, if it was made from this very setting."""
    if isinstance(source, str):
        return None
    try:
        found = PreparedDataset.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return found if found.source == source else None


def load_recipes(root: Path = Path()) -> Recipes:
    """Read and check recipes/ under `root`.

    Raises:
        UserError: one line per mistake, each naming file and field.
    """
    mistakes: list[str] = []
    recipes = _recipes(root / "recipes", mistakes)
    if mistakes:
        raise UserError("\n".join(mistakes))
    check_names(_names_in_pairs(root / "recipes", recipes))
    return recipes


def check_has_reader(where: Path, dataset: str, recipes: Recipes) -> None:
    """Refuse a dataset that models can only be counted on.

    Raises:
        UserError: it has no reader.
    """
    if recipes.datasets[dataset].data.reader is None:
        raise UserError(
            f"{where}: dataset: {dataset} cannot be prepared yet, recipes/datasets.yaml has no data.reader for it; "
            f"`kdflow cost --dataset {dataset}` counts models on it"
        )


NameChecks = list[tuple[Path, str, str, Collection[str]]]


def check_names(named: NameChecks) -> None:
    """Refuse every name that is not among those known: file, field, name, known names.

    Raises:
        UserError: one line per name, with a close match or all that are known.
    """
    wrong = [
        f"{file}: {field}: unknown name {name!r}{_allowed(name, sorted(known))}"
        for file, field, name, known in named
        if name not in known
    ]
    if wrong:
        raise UserError("\n".join(wrong))


def _recipes(folder: Path, mistakes: list[str]) -> Recipes:
    found: dict[str, Any] = {
        "models": read_entries(folder / "models.yaml", Model, mistakes),
        "datasets": read_entries(folder / "datasets.yaml", Dataset, mistakes),
        "methods": read_entries(folder / "methods.yaml", Method, mistakes),
        "pairs": read_entries(folder / "pairs.yaml", Pair, mistakes),
        "user_folder": read_settings(folder / "user_folder.yaml", UserFolderRecipe, mistakes),
    }
    if found["user_folder"] is None:  # what is wrong with the others was said as well
        raise UserError("\n".join(mistakes))
    return Recipes(**found)


def _names_in_pairs(folder: Path, recipes: Recipes) -> NameChecks:
    file, named = folder / "pairs.yaml", NameChecks()
    for key, pair in recipes.pairs.items():
        named += [(file, f"{key}.teacher", pair.teacher, recipes.models)]
        named += [(file, f"{key}.student", pair.student, recipes.models)]
        named += [(file, f"{key}.datasets", name, recipes.datasets) for name in pair.datasets]
    return named


def read_entries(file: Path, kind: type[T] | Mapping[str, type[T]], mistakes: list[str]) -> dict[str, T]:
    """Read a file of named entries, of one kind or each of what its key `kind` says.

    What is wrong is added to `mistakes`, a line each.
    """
    found = {}
    for name, value in (_read_yaml(file, mistakes) or {}).items():
        # DVC builds targets and file names from these: no dot, no slash, no blank.
        if not isinstance(name, str) or not re.fullmatch("[a-z0-9_]+", name):
            mistakes.append(f"{file}: {name!r} is no name: lower-case letters, digits and _ only")
            continue
        said = value.get("kind") if isinstance(value, dict) else None
        if isinstance(kind, Mapping) and said not in kind:
            mistakes.append(f"{file}: {name}.kind: unknown name {said!r}{_allowed(str(said), sorted(kind))}")
            continue
        one = kind[said] if isinstance(kind, Mapping) and said is not None else kind
        entry = _validate(file, cast("type[T]", one), value, f"{name}.", mistakes)
        if entry is not None:
            found[name] = entry
    return found


def read_settings(file: Path, kind: type[T], mistakes: list[str]) -> T | None:
    """Read a file that is one entry as a whole; what is wrong is added to `mistakes`, a line each."""
    return _validate(file, kind, _read_yaml(file, mistakes), "", mistakes)


def settings_from_options(where: str, kind: type[T], values: dict[str, Any]) -> T:
    """Settings that a command was given.

    Raises:
        UserError: one line per mistake, each naming the field.
    """
    mistakes: list[str] = []
    found = _validate(Path(where), kind, values, "", mistakes)
    if found is None:
        raise UserError("\n".join(mistakes))
    return found


@lru_cache(maxsize=32)
def _parse(content: bytes) -> Any:
    # YAML 1.2 only in pure Python, at 0.1 s for the recipes: who looks at many experiments parses them once.
    return YAML(typ="safe", pure=True).load(content)


def _read_yaml(file: Path, mistakes: list[str]) -> dict[Any, Any] | None:
    try:
        content = _parse(file.read_bytes())
    except FileNotFoundError:
        mistakes.append(f"{file}: no such file")
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        mistakes.append(f"{file}: not YAML: {line}{error.problem}")
    except YAMLError as error:
        mistakes.append(f"{file}: not YAML: {one_line(error)}")
    else:
        if isinstance(content, dict):
            return content
        mistakes.append(f"{file}: expected keys and values, found {type(content).__name__}")
    return None


def _validate(file: Path, kind: type[T], value: object, prefix: str, mistakes: list[str]) -> T | None:
    if value is None and not prefix:
        return None  # the file could not be read, and that was said
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        for problem in problems:
            location = tuple(part for part in problem["loc"] if not str(part).startswith("<"))  # a union's tag
            # Of a list with a bad item pydantic says as well that it is too short.
            if problem["type"] == "too_short" and any(other["loc"][:-1] == location for other in problems):
                continue
            where = prefix + ".".join(str(part) for part in location)
            text = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                text = "unknown key" + _allowed(str(location[-1]), _keys(kind, location[:-1]))
            elif problem["type"] != "missing" and not isinstance(problem["input"], dict):
                text = f"{text[0].lower()}{text[1:]}, got {problem['input']!r}"
            mistakes.append(": ".join(filter(None, (str(file), where.strip("."), text))))
        return None


def _keys(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys of the model found by following `path` from `kind` through nested models, lists and dicts."""
    for part in path:
        if part in kind.model_fields:  # else an index of a list or a key of a dict: of the model that it holds
            kind = next(_models(kind.model_fields[str(part)].annotation))
    return sorted(kind.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
