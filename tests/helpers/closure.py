"""The modules that a stage's code reaches, computed from the sources with `ast`.

The unit is a top-level function, class or constant, not a module: a stage that imports one function of a module does
not reach what only the module's other functions use.
"""

import ast
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

Name = tuple[str, str]  # a module and a name at its top level


class Module:
    """A module's source: its top-level definitions and its imports."""

    def __init__(self, name: str, file: Path) -> None:
        self.name, self.file, self.tree = name, file, ast.parse(file.read_text())

    @cached_property
    def definitions(self) -> dict[str, list[ast.AST]]:
        """The statements that define each top-level name."""
        found: dict[str, list[ast.AST]] = {}
        for node in self.tree.body:
            for name in defined_names(node):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def statements(self) -> list[ast.AST]:
        """Top-level statements that run on import and define nothing, such as calls."""
        return [node for node in self.tree.body if not defined_names(node) and not is_import(node)]

    @cached_property
    def imports(self) -> dict[str, str]:
        """The imports at the top level, also those below `if TYPE_CHECKING`."""
        blocks = [node.body for node in self.tree.body if isinstance(node, ast.If)]
        return bindings(node for body in (self.tree.body, *blocks) for node in body)


def defined_names(node: ast.AST) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    targets = {ast.Assign: lambda n: n.targets, ast.AnnAssign: lambda n: [n.target]}.get(type(node), lambda n: [])(node)
    return [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]


def is_import(node: ast.AST) -> bool:
    return isinstance(node, ast.Import | ast.ImportFrom)


def bindings(nodes: Iterator[ast.AST]) -> dict[str, str]:
    """Return the targets of imported names: `a.b` for module a.b, or for the name b of module a."""
    found = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return found


class Sources:
    """All modules below some folders of the project."""

    def __init__(self, root: Path, *folders: str) -> None:
        files = [file for folder in folders for file in sorted((root / folder).rglob("*.py"))]
        self.root, self.modules = root, {}
        self.references: dict[ast.AST, list[Name]] = {}  # what each statement uses; many names have some in common
        for file in files:
            parts = file.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            self.modules[name] = Module(name, file)

    def path(self, module: str) -> str:
        """Return the file of a module, relative to the project."""
        return self.modules[module].file.relative_to(self.root).as_posix()

    def reached(self, module: str) -> set[str]:
        """Return all modules that the whole of `module` reaches, itself included."""
        queue: list[Name] = [(module, name) for name in self.modules[module].definitions]
        seen: set[Name] = set()
        modules = {module}
        while queue:
            name = queue.pop()
            if name in seen:
                continue
            seen.add(name)
            modules.add(name[0])
            queue += self._used(name)
        return modules

    def _used(self, name: Name) -> list[Name]:
        """Return what a definition uses, together with what its module runs on import."""
        module = self.modules[name[0]]
        nodes = [*module.definitions.get(name[1], []), *module.statements]
        for node in nodes:
            if node not in self.references:
                self.references[node] = list(self._references(module, node))
        return [target for node in nodes for target in self.references[node]]

    def _references(self, module: Module, node: ast.AST) -> Iterator[Name]:
        known = module.imports | bindings(ast.walk(node))
        for inner in ast.walk(node):
            if isinstance(inner, ast.Call) and ast.unparse(inner.func) == "importlib.import_module":
                yield from self._imported_by_name(inner.args[0])
            elif isinstance(inner, ast.Attribute | ast.Name):
                dotted = ast.unparse(inner)
                first, _, rest = dotted.partition(".")
                if not dotted.replace(".", "").replace("_", "").isalnum():
                    continue
                if first in known:
                    yield from self._resolve(f"{known[first]}.{rest}".rstrip("."))
                elif first in module.definitions:
                    yield module.name, first

    def _imported_by_name(self, argument: ast.AST) -> Iterator[Name]:
        """Yield all names of every module that an f-string such as f"kdflow.methods.losses.{name}" may stand for."""
        assert isinstance(argument, ast.JoinedStr) and isinstance(argument.values[0], ast.Constant), "not an f-string"
        package = argument.values[0].value.rstrip(".")
        choices = [name for name in self.modules if name.rpartition(".")[0] == package]
        assert choices, package
        for name in choices:
            yield from ((name, definition) for definition in self.modules[name].definitions)

    def _resolve(self, dotted: str) -> Iterator[Name]:
        """Yield the definition behind a dotted name; a package may import it from another module."""
        parts = dotted.split(".")
        while parts and ".".join(parts) not in self.modules:
            parts.pop()
        if not parts:
            return
        module, rest = self.modules[".".join(parts)], dotted.split(".")[len(parts) :]
        if not rest:
            return  # a module without an attribute: its uses are looked at, not the import
        if rest[0] in module.definitions:
            yield module.name, rest[0]
        elif rest[0] in module.imports:
            yield from self._resolve(".".join([module.imports[rest[0]], *rest[1:]]))
