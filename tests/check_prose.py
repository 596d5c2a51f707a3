"""Check the wording of the repository: python tests/check_prose.py [PATH...].

It reports three things: words and phrases that readers of earlier versions did not understand, in prose, identifiers
and file names; docstrings whose first line is not a sentence; and docstrings of functions that do not start with a
verb. Each finding names a replacement. `make check` runs it and expects no finding.
"""

import ast
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

# Not allowed in identifiers, nor in prose outside of code, paths and compounds such as `own`, own.yaml or own-images.
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
# Regular expressions, not allowed in prose.
PHRASES = {
    r"(ask|asks|asking) (the|a|its|no) teachers?": "the teacher runs, teacher logits are computed",
    r"the (teacher|student) says": "the teacher's logits, the student's logits",
    r"of one's": "custom",
    r"whoever": "a user who",
    r"(go|goes|going|gone|went) on (from|after|with|there|where)": "resume, continue",
    r"anew": "again",
    r"in hand": "current, of params.yaml",
    r"so many(?! that)": "that many, a number of",
    r"(hold|holds|held) (its |their )?(records |numbers )?against": "compare with",
    r"(stand|stands) (here|there|twice|once)": "is listed",
    r"as ever": "as before",
    r"(as|what) (it|they) (is|are) to be": "as required",
    r"for good or ill": "with or without an error",
    r"in any way it likes": "with any exception",
}
# First words of docstrings.
FRAGMENT = r"(About|As|At|By|For|From|How|In|Of|On|Than|To|What|Where|Which|Who|With)\b"
NOUN = r"(A|All|An|Any|Each|Every|It|Its|Some|That|The|Their|These|This|Those|Whether)\b"
SUFFIXES = {".md", ".yaml", ".yml", ".j2", ".toml"}
SKIPPED = ("LICENSE", "tests/golden/", "tests/check_prose.py", "tests/test_prose.py")


def in_text(text: str) -> Iterator[str]:
    """Yield the findings in a piece of prose."""
    for word, better in WORDS.items():
        for found in re.finditer(rf"(?<![\w/.`-]){word}(?![\w/`-]|\.\w)", text, re.IGNORECASE):
            yield f"{found[0]!r}: {better}"
    for phrase, better in PHRASES.items():
        for found in re.finditer(rf"\b{phrase}\b", text, re.IGNORECASE):
            yield f"{found[0]!r}: {better}"


def in_name(name: str) -> Iterator[str]:
    """Yield the findings in an identifier, such as what_it_said or WhatItSaid."""
    for part in re.findall("[A-Z]?[a-z]+|[A-Z]+", name):
        if part.lower() in WORDS:
            yield f"name {name}: {WORDS[part.lower()]}"


def names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each identifier that the code defines."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.Name(id=name, ctx=ast.Store())
                | ast.Attribute(attr=name, ctx=ast.Store())
                | ast.arg(arg=name)
                | ast.FunctionDef(name=name)
                | ast.AsyncFunctionDef(name=name)
                | ast.ClassDef(name=name)
                | ast.alias(asname=str(name))
                | ast.ExceptHandler(name=str(name))
            ):
                yield node.lineno, name


def prose(source: str, tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each line of comments and strings; a string without a blank is no prose."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.start[0], token.string
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield from enumerate(node.value.splitlines(), node.lineno)


def docstrings(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the finding of each docstring that does not start as it should."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        text = ast.get_docstring(node)
        if not text:
            continue
        line, first = node.body[0].lineno, text.splitlines()[0].strip()
        if not first.endswith((".", ":", "?", "!")):
            yield line, f"first line of a docstring is no sentence: {first}"
        if re.match(FRAGMENT, first):
            yield line, f"docstring starts with a fragment: {first}"
        if re.match(NOUN, first) and is_plain_function(node):
            yield line, f"docstring of a function starts without a verb: {first}"


def is_plain_function(node: ast.AST) -> bool:
    """Return whether it is a function, and neither a property, a fixture, a test nor one that has another decorator."""
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not (
        node.decorator_list or node.name.startswith("test_")
    )


def in_python(source: str) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each finding in Python code."""
    tree = ast.parse(source)
    for line, name in names(tree):
        yield from ((line, finding) for finding in in_name(name))
    for line, text in prose(source, tree):
        yield from ((line, finding) for finding in in_text(text))
    yield from docstrings(tree)


def in_file(file: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each finding in a file and its name."""
    yield from ((0, finding) for finding in in_name(file.stem))
    if file.suffix == ".py":
        yield from in_python(file.read_text())
    elif file.suffix in SUFFIXES or file.name in ("Makefile", "run"):
        for line, text in enumerate(file.read_text().splitlines(), 1):
            yield from ((line, finding) for finding in in_text(text))


def main(paths: list[str]) -> int:
    """Print all findings below `paths` (default: all files that git does not ignore) and return their number."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *paths]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    files = [Path(name) for name in listed if not name.startswith(SKIPPED)]
    findings = [(file, *finding) for file in files if file.is_file() for finding in sorted(set(in_file(file)))]
    for file, line, text in findings:
        print(f"{file}:{line}: {text}")
    return len(findings)


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
