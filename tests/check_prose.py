"""Check the words of the repository: python tests/check_prose.py [PATH...].

It reports words that readers had to look up in older versions of this project, in identifiers and in prose, and
docstrings whose first line is a fragment. `make check` runs it, and expects no finding.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

WORDS = {
    "said": "printed, given, returned",
    "told": "printed, given",
    "asked": "requested, computed",
    "taught": "labelled by the teacher",
    "own": "its, custom, local",
    "ours": "student, this project's",
    "theirs": "teacher, upstream",
    "here": "local, in this process",
    "elsewhere": "remote, on another machine",
}
# A phrase is matched in prose only.
PHRASES = {
    r"the teacher (is|was) (asked|told)": "the teacher runs, teacher logits are computed",
    r"what the (teacher|student) says": "teacher logits, student logits",
    r"(teacher|student) says": "the teacher's logits",
    r"of one's": "custom",
    r"whoever": "a user who",
    r"goes? on from where": "resumes",
    r"as ever\b": "as before",
    r"in any way it likes": "with any exception",
}
OPENERS = (
    "Of",
    "About",
    "From",
    "By",
    "With",
    "In",
    "At",
    "On",
    "To",
    "For",
    "What",
    "Where",
    "Who",
    "How",
    "Than",
    "As",
)
TEXT = {".md", ".yaml", ".yml", ".j2", ".toml"}
SKIPPED = ("tests/golden/", "paper/dvc.yaml", "paper/miniature/dvc.yaml", "tests/check_prose.py", "docs/methods.md")


def in_text(text: str) -> Iterator[tuple[str, str]]:
    """Yield each finding in a piece of prose and its replacement."""
    for word, better in WORDS.items():
        for found in re.finditer(rf"(?<![\w/.`-]){word}(?![\w/`-])", text, re.IGNORECASE):
            yield found[0], better
    for phrase, better in PHRASES.items():
        for found in re.finditer(rf"\b{phrase}", text, re.IGNORECASE):
            yield found[0], better


def in_names(tree: ast.AST) -> Iterator[tuple[int, str, str]]:
    """Yield the line of each identifier that is made of a listed word, the identifier and the replacement."""
    for node in ast.walk(tree):
        names = {
            ast.Name: lambda n: n.id if isinstance(n.ctx, ast.Store) else "",
            ast.arg: lambda n: n.arg,
            ast.FunctionDef: lambda n: n.name,
            ast.AsyncFunctionDef: lambda n: n.name,
            ast.ClassDef: lambda n: n.name,
        }
        name = names.get(type(node), lambda _: "")(node)
        for part in name.lower().split("_"):
            if part in WORDS:
                yield node.lineno, name, WORDS[part]


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the first line of each docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text.splitlines()[0]


def in_python(source: str) -> Iterator[tuple[int, str]]:
    """Yield the findings in a Python file."""
    tree = ast.parse(source)
    for line, name, better in in_names(tree):
        yield line, f"name {name}: {better}"
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING) or token.type == getattr(tokenize, "FSTRING_MIDDLE", -1):
            # A string without a blank is a key or a file name.
            lines = token.string.splitlines() if token.type == tokenize.COMMENT or " " in token.string else []
            for i, part in enumerate(lines):
                yield from ((token.start[0] + i, f"{word!r}: {better}") for word, better in in_text(part))
    for line, first in docstrings(tree):
        if first.split()[0] in OPENERS:
            yield line, f"docstring opens with a fragment: {first}"
        elif not first.rstrip().endswith((".", ":", "?", "!")):
            yield line, f"docstring's first line is no sentence: {first}"


def findings(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each finding in a file."""
    if file.suffix == ".py":
        yield from in_python(file.read_text())
    elif file.suffix in TEXT or file.name in ("Makefile", "run"):
        for i, line in enumerate(file.read_text().splitlines(), 1):
            yield from ((i, f"{word!r}: {better}") for word, better in in_text(line))


def main(paths: list[str]) -> int:
    """Print all findings below `paths` (default: all files that git knows) and return how many there are."""
    listed = subprocess.run(["git", "ls-files", *paths], capture_output=True, text=True, check=True).stdout.split()
    count = 0
    for name in listed:
        file = Path(name)
        if name.startswith(SKIPPED) or not file.is_file() or name == "LICENSE":
            continue
        for line, text in sorted(findings(file)):
            print(f"{name}:{line}: {text}")
            count += 1
    return count


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
