"""Parts of a user's code, which a recipe names by import path: `package.module:name`.

The modules are found in the project's folder, or in the environment. Settings are checked without running the code:
its source is parsed. `load_part` imports it, where it is used.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import pkgutil
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kdflow.core import files
from kdflow.core.errors import UserError, one_line

CONTRACTS: dict[str, dict[str, tuple[str, ...]]] = {
    "data": {"read": ("spec", "folder", "downloads")},
    "models": {"build": ("num_classes", "image_size")},
    "losses": {"build": ("student", "teacher", "labels")},
    "views": {"draw": ("sizes", "image_size", "generator"), "apply": ("x", "draw")},
}
"""For each kind of part that a user may add, its functions with their parameters.

A part with one function is that function, or a class; a part with two is an object that has both, such as a class with
static methods.
"""

Parts = dict[str, tuple[str, str]]
"""For each key of a recipe's entry that names a part: the kind of the part and its name."""

WITH_OPTIONS = ("models", "losses")
IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


def is_import_path(name: str) -> bool:
    """Return whether a name in a recipe is an import path, not the name of a built-in part."""
    return ":" in name


def check_import_path(name: str) -> None:
    """Check the form of an import path.

    Raises:
        ValueError: it is not `package.module:name`.
    """
    if not IMPORT_PATH.fullmatch(name):
        raise ValueError("expected the name of a built-in part, or package.module:name")


def search_in(project: Path) -> None:
    """Let modules in the project's folder be imported, after all others: none of them replaces a library's."""
    folder = str(project.resolve())
    if folder not in sys.path:
        sys.path.append(folder)  # multiprocessing passes sys.path on to the processes of runs and to their workers


def check_part(kind: str, name: str) -> None:
    """Check a part by its source, which is not run.

    Raises:
        ValueError: it is no import path, or there is no such module or no such name in it, or a loss or view does not
            state its flag.
    """
    check_import_path(name)
    file, tree = _source(name)
    attribute = name.partition(":")[2]
    if attribute not in (names := set(_names(tree))) and not names & {"*", "__getattr__"}:
        raise ValueError(f"{name}: {file.name} has no {attribute}")
    if kind == "losses":
        read_flag(name, "NEEDS_FEATURES")


def mistakes_in(parts: Parts, project: Path) -> list[str]:
    """Return a line for each part of a user's code, among those of a recipe's entry, that `check_part` refuses.

    Only where there are such parts, modules of the project can be imported from then on.
    """
    mistakes = []
    for key, (kind, name) in parts.items():
        if is_import_path(name):
            search_in(project)
            try:
                check_part(kind, name)
            except ValueError as error:
                mistakes.append(f"{key}: {error}")
    return mistakes


def read_flag(name: str, flag: str, default: bool | None = None) -> bool:
    """Read a constant such as `NEEDS_FEATURES = True` from the class of this import path, or from its module.

    Raises:
        ValueError: it is not set to True or False, and there is no default; or the module does not exist.
    """
    file, tree = _source(name)
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name.partition(":")[2]]
    found = find_flag((*(inner for one in classes for inner in one.body), *tree.body), flag, default)
    if found is None:
        raise ValueError(f"{name}: {file.name} must set {flag} to True or False")
    return found


def find_flag(nodes: Iterable[ast.stmt], flag: str, default: bool | None) -> bool | None:
    """Return the first value, True or False, that one of the statements assigns to `flag`; else the default."""
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant):
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if flag in names and isinstance(node.value.value, bool):
                return node.value.value
    return default


def load_part(kind: str, name: str, key: str) -> Any:
    """Import a user's part; None if the name is that of a built-in one.

    Args:
        kind: a key of `CONTRACTS`.
        name: the value in the recipe.
        key: file and key of the recipe, for messages.

    Returns:
        An object with the functions of `CONTRACTS`.

    Raises:
        UserError: one line that names the key: the code cannot be imported, or does not have what the contract asks.
    """
    if not is_import_path(name):
        return None
    module_name, _, attribute = name.partition(":")
    try:
        module = pkgutil.resolve_name(f"{module_name}:")
    except Exception as error:  # a user's code raises exceptions of any type
        reason = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{key}: {name}: cannot be imported: {reason}") from None
    if not hasattr(module, attribute):
        raise UserError(f"{key}: {name}: {module_name} has no {attribute}")
    part, contract = getattr(module, attribute), CONTRACTS[kind]
    if len(contract) == 1:
        part = SimpleNamespace(**dict.fromkeys(contract, part))
    for function, parameters in contract.items():
        called = name if len(contract) == 1 else f"{name}.{function}"
        _check_signature(getattr(part, function, None), parameters, f"{key}: {called}", options=kind in WITH_OPTIONS)
    if kind == "views" and not isinstance(getattr(part, "MIXES_IMAGES", None), bool):
        raise UserError(f"{key}: {name}: must set MIXES_IMAGES to True or False")
    return part


def load_all(parts: Parts) -> None:
    """Import all parts that are a user's code, before anything is computed.

    Raises:
        UserError: as in `load_part`.
    """
    for key, (kind, name) in parts.items():
        load_part(kind, name, key)


def check_trusted(file: Path, families: Iterable[str], trusted: Iterable[str]) -> None:
    """Check that the model which a file describes is no code, or code that the user's recipes name.

    Raises:
        UserError: one of its families is an import path that is not among those of recipes/models.yaml.
    """
    for family in sorted(filter(is_import_path, set(families) - set(trusted))):
        raise UserError(
            f"{file}: its model is code, {family}, which is run only if recipes/models.yaml has this family"
        )


def _check_signature(function: Any, parameters: tuple[str, ...], where: str, *, options: bool) -> None:
    expected = ", ".join([*parameters, *(["**options"] if options else [])])
    expected = f"expected a function or class that is called with ({expected})"
    if not callable(function):
        found = "is missing" if function is None else f"is no function but a value of type {type(function).__name__}"
        raise UserError(f"{where}: {found}; {expected}")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some functions in C have none
        return
    given = signature.parameters.values()
    positional = [one for one in given if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    too_few = len(positional) < len(parameters) and not any(one.kind is one.VAR_POSITIONAL for one in given)
    more = any(one.default is one.empty for one in positional[len(parameters) :])
    if too_few or (more and not options):  # a required option is in the recipe, or its absence is reported later
        raise UserError(f"{where}: has the parameters {signature}; {expected}")


# --- identity -------------------------------------------------------------------------------------------------


def hashes(names: Iterable[str]) -> dict[str, str]:
    """Return the hash of the source of each import path among the names of parts.

    Raises:
        UserError: there is no such module.
    """
    try:
        return {name: code_sha256(name) for name in names if is_import_path(name)}
    except ValueError as error:
        raise UserError(str(error)) from None


def code_sha256(name: str) -> str:
    """Return the SHA-256 of the source of a part: its file, and all modules beside it that they import.

    Those are the modules in the same project; of a part in an installed package, the modules of this package.

    Raises:
        ValueError: the module does not exist or is not in Python.
    """
    start = name.partition(":")[0]
    home, digest = _home(start, _file(start)), hashlib.sha256()
    installed = str(home) in sysconfig.get_paths().values()
    found, waiting = dict[str, Path](), [start]
    while waiting:
        module = waiting.pop()
        top = module.partition(".")[0]
        if module in found or top == "kdflow" or (installed and top != start.partition(".")[0]):
            continue
        try:
            file, tree = _source(module)
        except ValueError:  # the name of a function, or an optional module that is not installed
            continue
        if _home(module, file) == home:
            found[module] = file
            waiting += _imported(module, file, tree)
    for module, file in sorted(found.items()):
        digest.update(f"{module}\0{files.sha256(file)}\n".encode())
    return digest.hexdigest()


def _imported(module: str, file: Path, tree: ast.Module) -> Iterator[str]:
    """Yield the modules, and names that may be modules, that a module imports, and the packages that they are in."""
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    names = [module]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join(filter(None, [*above, node.module]))
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    for name in names:
        parts = name.split(".")
        yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _home(module: str, file: Path) -> Path:
    """Return the folder that a module's file was found from."""
    parts = len(module.split(".")) + (file.name == "__init__.py")
    return file.absolute().parents[parts - 1]


# --- source ---------------------------------------------------------------------------------------------------


def _source(name: str) -> tuple[Path, ast.Module]:
    """Return file and syntax tree of the module in an import path."""
    file = _file(name.partition(":")[0])
    try:
        return file, ast.parse(file.read_bytes())
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{name}: {file} is not valid Python: {one_line(error)}") from None


def _file(module: str) -> Path:
    """Find the file of a module without importing it or its packages.

    Raises:
        ValueError: there is no such module, or it is not in Python.
    """
    parts, folders = module.split("."), list[str]()
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        try:
            spec = importlib.util.find_spec(name) if end == 1 else PathFinder.find_spec(name, folders)
        except (ImportError, ValueError):
            spec = None
        if spec is None or (end < len(parts) and spec.submodule_search_locations is None):
            raise ValueError(f"{module}: no module {name} in the project's folder or in the environment")
        folders = list(spec.submodule_search_locations or ())
    assert spec is not None
    if spec.origin is None or not spec.origin.endswith(".py"):
        raise ValueError(f"{module}: is not a module in Python but {spec.origin or 'a folder without __init__.py'}")
    return Path(spec.origin)


def _names(tree: ast.Module) -> Iterator[str]:
    """Yield all names that a module defines, wherever it does, and those in its functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((alias.asname or alias.name).partition(".")[0] for alias in node.names)
