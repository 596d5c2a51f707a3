"""A page on every method and its parts, made from recipes and docstrings. Never imports torch."""

from __future__ import annotations

import ast
from pathlib import Path

from kdflow.config import FOLDERS, PACKAGE, Method, Model, Pick, StrongView, choices

PARTS = (
    ("Strong views", "views", "strong.view", "x', made of the base view x."),
    ("Labellers", "labels", "strong.label", "What the student is taught about x'."),
    ("Picks", "picks", "strong.pick.criterion", "Which views of a pool the student learns from."),
    ("Losses", "losses", "loss.name", "L(x), a loss of its own beside CE and KL, on the base view only."),
)


def page(methods: dict[str, Method]) -> str:
    """All methods with their formulas, and all parts with their docstrings, as Markdown."""
    lines = [
        "# Methods",
        "",
        "Made by `kdflow methods` from recipes/methods.yaml and the code's own docstrings; not edited by hand.",
        "",
        _docstring(PACKAGE / "methods/losses/__init__.py", "kl_per_sample")
        + " Times tau^2 and averaged over the batch: KL(x).",
        _docstring(PACKAGE / "methods/losses/__init__.py", "distillation_loss"),
        "CE(x, y) is the cross-entropy of the student's logits of x with the labels y. Where the recipes' numbers come",
        "from is said in recipes/methods.yaml.",
        "",
        "| Method | Loss |",
        "| --- | --- |",
    ]
    lines += [f"| `{name}` | {formula(method)} |" for name, method in methods.items()]
    for title, package, setting, what in PARTS:
        lines += ["", f"## {title}", "", f"`{setting}`: {what}"]
        for name in choices(package):
            used = [f"`{method}`" for method, recipe in methods.items() if name in _parts(recipe, package)]
            lines += ["", f"### {name}", "", _docstring(PACKAGE / FOLDERS[package] / f"{name}.py")]
            lines += ["", f"Used by {', '.join(used)}."] if used else []
    lines += ["", "## Settings", "", *_settings(Method), *_settings(StrongView), *_settings(Pick), *_settings(Model)]
    return "\n".join(lines) + "\n"


def formula(method: Method) -> str:
    """The loss of a method with its numbers in place."""
    strong = method.strong
    x = "x" if strong is None or not strong.replaces_x else "x'"
    y = "y" if x == "x" else "mixed y"
    terms = [f"{method.ce:g} CE({x}, {y})"] if method.ce else []
    if method.kl and x == "x":
        terms.append(f"{method.kl:g} KL(x)")
    if method.loss is not None:
        terms.append(f"{method.loss.weight:g} {method.loss.name}(x)")
    weight = strong.weight or method.kl if strong is not None else method.kl
    notes = [f"tau = {method.tau:g}"] if weight else []
    if strong is not None:
        said = {"teacher": "KL(x')", "mixed": "CE(x', mixed y)"}.get(strong.label, f"{strong.label}(x')")
        terms += [f"{weight:g} {said}"] if weight else []
        notes.append(f"x' = {strong.view}(x)")
        if strong.pick is not None:
            pick = strong.pick
            notes.append(f"of {pick.pool} draws the share {pick.keep:g} with the largest {pick.criterion} is kept")
            notes += ["scored in eval mode"] if pick.student_mode == "eval" else []
    return " + ".join(terms) + (f"; {', '.join(notes)}" if notes else "")


def _parts(method: Method, package: str) -> set[str]:
    strong = method.strong
    if package == "losses":
        return {method.loss.name} if method.loss else set()
    if strong is None:
        return set()
    return {
        "views": {strong.view},
        "labels": {strong.label},
        "picks": {strong.pick.criterion} if strong.pick else set(),
    }[package]


def _docstring(file: Path, function: str | None = None) -> str:
    tree: ast.Module | ast.FunctionDef = ast.parse(file.read_text())
    if function is not None:
        tree = next(n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == function)
    text = ast.get_docstring(tree)
    assert text is not None, f"{file} has no docstring"
    return text


def _settings(kind: type[Method | StrongView | Pick | Model]) -> list[str]:
    """The keys of a recipe with their defaults."""
    keys = []
    for name, field in kind.model_fields.items():
        default = "" if field.is_required() else f" (default {field.default!r})"
        keys.append(f"`{name}`{default}")
    assert kind.__doc__ is not None
    first = kind.__doc__.strip().splitlines()[0]
    return [f"**{kind.__name__}**: {first}", "", f"Keys: {', '.join(keys)}.", ""]
