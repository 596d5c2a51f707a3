"""Reading and validation of params.yaml and recipes/.

The built-in recipes are part of kdflow. A project may have files of the same names in its recipes/: each of their keys
is added to the built-in ones or replaces the built-in value as a whole.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from kdflow.config import user_code
from kdflow.config.base import PREPARED, PROJECT_FILES, Settings, T, suggestion
from kdflow.config.dataset import Dataset, PreparedDataset, UserFolder, UserFolderRecipe
from kdflow.config.experiment import Experiment, Params, Recipes
from kdflow.config.method import Method, Model, Pair, resolve_ensembles
from kdflow.core.errors import UserError, dotted, one_line, shorten

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


def load(root: Path = Path()) -> Experiment:
    """Read and check params.yaml and recipes/ under `root`.

    Raises:
        UserError: one line per mistake, each naming file and field.
    """
    file = root / "params.yaml"
    if not file.exists():
        raise UserError(f"{file}: no such file; run from the project's folder")
    mistakes: list[str] = []
    recipes = _recipes(root, mistakes)
    params = read_settings(file, Params, mistakes)
    if mistakes or params is None:
        raise UserError("\n".join(mistakes))
    named: NameChecks = []
    if isinstance(params.dataset, str):
        named += [(file, "dataset", params.dataset, recipes.datasets)]
    named += [(file, "teacher", params.teacher, recipes.models), (file, "student", params.student, recipes.models)]
    named += [(file, f"methods.{i}", name, recipes.methods) for i, name in enumerate(params.methods)]
    check_names(named + _names_in_pairs(root / "recipes", recipes))
    if isinstance(params.dataset, str):
        check_has_reader(file, params.dataset, recipes)
    experiment = Experiment(params=params, prepared=_prepared(root / PREPARED, params.dataset), **dict(recipes))
    try:
        experiment.check_training()
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    if isinstance(params.dataset, UserFolder):
        if params.data_folder is not None:
            raise UserError(f"{file}: data_folder: must be empty where dataset.folder says where the images are")
        if experiment.prepared is None:
            return experiment  # `prepare` counts the images
    available, classes = experiment.dataset.data.train_images, experiment.dataset.data.classes
    if params.train_images is not None and params.train_images > available:
        raise UserError(
            f"{file}: train_images: {params.train_images} is more than {params.dataset_name} has, {available}"
        )
    if params.train_images is not None and params.train_images < classes:
        raise UserError(f"{file}: train_images: {params.train_images} is less than the number of classes, {classes}")
    return experiment


def _prepared(file: Path, source: str | UserFolder) -> PreparedDataset | None:
    """Read the description of a prepared folder; None if it was not prepared, or with other settings."""
    if isinstance(source, str):
        return None
    try:
        prepared = PreparedDataset.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return prepared if prepared.source == source else None


def load_recipes(root: Path = Path()) -> Recipes:
    """Read and check the built-in recipes and those in recipes/ under `root`.

    Raises:
        UserError: one line per mistake, each naming file and field.
    """
    mistakes: list[str] = []
    recipes = _recipes(root, mistakes)
    if mistakes:
        raise UserError("\n".join(mistakes))
    check_names(_names_in_pairs(root / "recipes", recipes))
    return recipes


def check_has_reader(where: Path, dataset: str, recipes: Recipes) -> None:
    """Refuse a dataset that cannot be prepared.

    Raises:
        UserError: its recipe has no reader.
    """
    if recipes.datasets[dataset].data.reader is None:
        raise UserError(
            f"{where}: dataset: {dataset} cannot be prepared yet, recipes/datasets.yaml has no data.reader for it; "
            f"`kdflow cost --dataset {dataset}` computes the cost of models for it"
        )


NameChecks = list[tuple[Path, str, str, Collection[str]]]
"""Names to check: file, field, name, and the names that exist."""


def check_names(named: NameChecks) -> None:
    """Refuse names that do not exist.

    Raises:
        UserError: one line per name, with a similar name or all names.
    """
    wrong = [
        f"{file}: {field}: unknown name {shorten(name)}{suggestion(name, sorted(known))}"
        for file, field, name, known in named
        if name not in known
    ]
    if wrong:
        raise UserError("\n".join(wrong))


def recipe_files(root: Path, name: str) -> list[Path]:
    """Return the files with recipes of a kind, such as models: the built-in one and that of the project, if any."""
    built_in, custom = (folder / "recipes" / f"{name}.yaml" for folder in (PROJECT_FILES, root))
    if not custom.exists():
        return [built_in]
    return [custom] if custom.samefile(built_in) else [built_in, custom]


def merged_recipes(root: Path) -> dict[str, dict[Any, Any]]:
    """Return the valid content of all files of recipes by their names, as it is written.

    An entry that names a user's code also has the hashes of its source, `user_code`.

    Raises:
        UserError: one line per mistake, each naming file and field.
    """
    recipes = load_recipes(root)
    names = sorted(file.stem for file in (PROJECT_FILES / "recipes").glob("*.yaml"))
    content = {name: _merged(recipe_files(root, name), []) for name in names}
    for kind, entries in (("models", recipes.models), ("methods", recipes.methods), ("datasets", recipes.datasets)):
        for name, entry in entries.items():
            hashes = user_code.hashes(part for _, part in entry.parts.values())
            if hashes:
                content[kind][name] = {**content[kind][name], "user_code": hashes}
    return content


def _merged(recipes: list[Path], mistakes: list[str]) -> dict[Any, Any]:
    contents = [_read_yaml(file, mistakes, may_be_empty=True) or {} for file in recipes]
    return {key: value for content in contents for key, value in content.items()}


def _recipes(root: Path, mistakes: list[str]) -> Recipes:
    _check_file_names(root / "recipes", mistakes)
    kinds: dict[str, type[Settings]] = {"models": Model, "datasets": Dataset, "methods": Method, "pairs": Pair}
    content: dict[str, Any] = {name: {} for name in kinds}
    for name, kind in kinds.items():
        for file in recipe_files(root, name):
            entries = read_entries(file, kind, mistakes)
            content[name] |= entries
            for key, entry in entries.items():
                found = user_code.mistakes_in(getattr(entry, "parts", {}), root)
                mistakes += [f"{file}: {key}.{mistake}" for mistake in found]
    content["models"] = resolve_ensembles(content["models"], recipe_files(root, "models")[-1], mistakes)
    before, parts = len(mistakes), recipe_files(root, "user_folder")
    merged = _merged(parts, mistakes)
    content["user_folder"] = None
    if len(mistakes) == before:
        content["user_folder"] = _validate(parts[-1], UserFolderRecipe, merged, "", mistakes)
    if content["user_folder"] is None:  # the mistakes have those of the other files too
        raise UserError("\n".join(mistakes))
    return Recipes(**content)


def _check_file_names(folder: Path, mistakes: list[str]) -> None:
    """Refuse files in recipes/ that are not read, such as method.yaml."""
    known = sorted(file.name for file in (PROJECT_FILES / "recipes").glob("*.yaml"))
    for file in sorted(folder.glob("*.y*ml")):
        if file.name == "own.yaml":
            mistakes.append(f"{file}: was renamed to user_folder.yaml")
        elif file.name not in known:
            mistakes.append(f"{file}: unknown file{suggestion(file.name, known)}")


def _names_in_pairs(folder: Path, recipes: Recipes) -> NameChecks:
    file, named = folder / "pairs.yaml", NameChecks()
    for key, pair in recipes.pairs.items():
        named += [(file, f"{key}.teacher", pair.teacher, recipes.models)]
        named += [(file, f"{key}.student", pair.student, recipes.models)]
        named += [(file, f"{key}.datasets", name, recipes.datasets) for name in pair.datasets]
    return named


def read_entries(file: Path, kind: type[T] | Mapping[str, type[T]], mistakes: list[str]) -> dict[str, T]:
    """Read a file of named entries, of one class or of the class that `kind` has for an entry's key `kind`.

    Mistakes are appended to `mistakes`, one line each.
    """
    entries = {}
    for name, value in (_read_yaml(file, mistakes, may_be_empty=True) or {}).items():
        # DVC builds targets and file names from these names, so that they must not have dots, slashes and blanks.
        if not isinstance(name, str) or not re.fullmatch("[a-z0-9_]+", name):
            mistakes.append(f"{file}: {shorten(name)} is not a valid name: lower-case letters, digits and _ only")
            continue
        if isinstance(kind, Mapping):
            entry_kind = value.get("kind") if isinstance(value, dict) else None
            if not isinstance(entry_kind, str) or entry_kind not in kind:
                mistakes.append(f"{file}: {name}.kind: {_unknown_kind(entry_kind, kind)}")
                continue
            entry = _validate(file, kind[entry_kind], value, f"{name}.", mistakes)
        else:
            entry = _validate(file, kind, value, f"{name}.", mistakes)
        if entry is not None:
            entries[name] = entry
    return entries


def _unknown_kind(name: object, kinds: Mapping[str, type[T]]) -> str:
    present = {kind.renamed_kind: present for present, kind in kinds.items() if kind.renamed_kind is not None}
    if isinstance(name, str) and name in present:
        return f"{name} was renamed to {present[name]}"
    return f"unknown name {shorten(name)}{suggestion(str(name), sorted(kinds))}"


def read_settings(file: Path, kind: type[T], mistakes: list[str]) -> T | None:
    """Read a file that is one entry as a whole; mistakes are appended to `mistakes`, one line each."""
    return _validate(file, kind, _read_yaml(file, mistakes), "", mistakes)


def settings_from_options(where: str, kind: type[T], values: dict[str, Any]) -> T:
    """Return settings from the options of a command.

    Raises:
        UserError: one line per mistake, each naming the field.
    """
    mistakes: list[str] = []
    options = _validate(Path(where), kind, values, "", mistakes)
    if options is None:
        raise UserError("\n".join(mistakes))
    return options


def parse_value(where: str, text: str) -> Any:
    """Return a value that is given as YAML, such as 0.5, true or [1, 2].

    Raises:
        UserError: the text is no YAML.
    """
    try:
        return _parse(text.encode(errors="surrogateescape"))
    except Exception:  # as in _read_yaml
        raise UserError(f"{where}: {text}: is not a value in YAML, such as 0.5, true or [1, 2]") from None


@lru_cache(maxsize=32)
def _parse(content: bytes) -> Any:
    # Only the pure Python parser has YAML 1.2. It takes 0.1 s for the recipes, which some commands read many times.
    return YAML(typ="safe", pure=True).load(content)


def _read_yaml(file: Path, mistakes: list[str], *, may_be_empty: bool = False) -> dict[Any, Any] | None:
    try:
        content = _parse(file.read_bytes())
    except FileNotFoundError:
        mistakes.append(f"{file}: no such file")
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        mistakes.append(f"{file}: not YAML: {line}{error.problem}")
    except YAMLError as error:
        mistakes.append(f"{file}: not YAML: {one_line(error)}")
    except RecursionError:
        mistakes.append(f"{file}: not YAML: lists or keys are nested too deeply")
    except Exception as error:  # such as a date that does not exist; a wrong !!type raises exceptions of many types
        mistakes.append(f"{file}: a value cannot be read: {one_line(error)}; quote it if it is text")
    else:
        if isinstance(content, dict):
            return content
        if content is None and may_be_empty:
            return {}
        mistakes.append(f"{file}: expected keys and values, found {type(content).__name__}")
    return None


def _validate(file: Path, kind: type[T], value: object, prefix: str, mistakes: list[str]) -> T | None:
    if value is None and not prefix:
        return None  # the file could not be read; its mistake is in the list
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        renamed = {_location(problem): _new_name(kind, problem) for problem in problems}
        for problem in problems:
            location = _location(problem)
            # A list with an invalid item is also reported as too short.
            if problem["type"] == "too_short" and any(other["loc"][:-1] == location for other in problems):
                continue
            # A key that is given under its old name is also reported as missing.
            if problem["type"] == "missing" and any(
                new == location[-1] and old[:-1] == location[:-1] for old, new in renamed.items()
            ):
                continue
            where = prefix + dotted(location)
            text = problem["msg"].removeprefix("Value error, ")
            if renamed[location] is not None:
                text = f"was renamed to {renamed[location]}"
            elif problem["type"] == "extra_forbidden":
                text = "unknown key" + suggestion(
                    str(location[-1]), sorted(_class_at(kind, location[:-1]).model_fields)
                )
            elif problem["type"] != "missing" and not isinstance(problem["input"], dict):
                text = f"{text[0].lower()}{text[1:]}, got {shorten(problem['input'])}"
            mistakes.append(": ".join(filter(None, (str(file), where.strip("."), text))))
        return None


def _location(problem: ErrorDetails) -> tuple[int | str, ...]:
    """Return the path of keys to a problem, without the tags of unions."""
    return tuple(part for part in problem["loc"] if not str(part).startswith("<"))


def _new_name(kind: type[Settings], problem: ErrorDetails) -> str | None:
    """Return the present name of an unknown key, if it is the name of an earlier version."""
    location = _location(problem)
    if problem["type"] != "extra_forbidden":
        return None
    return _class_at(kind, location[:-1]).renamed_keys.get(str(location[-1]))


def _class_at(kind: type[Settings], path: tuple[int | str, ...]) -> type[Settings]:
    """Follow `path` from `kind` through nested settings, lists and dicts; return the class of the settings there."""
    for part in path:
        if part in kind.model_fields:  # otherwise an index of a list or a key of a dict, whose items have class `kind`
            kind = next(_classes(kind.model_fields[str(part)].annotation))
    return kind


def _classes(annotation: Any) -> Iterator[type[Settings]]:
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        yield annotation
    for inner in get_args(annotation):
        yield from _classes(inner)
