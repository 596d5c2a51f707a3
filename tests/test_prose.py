"""The checker of wording finds what it should, and accepts plain English."""

import runpy
from types import SimpleNamespace

import pytest
from paths import ROOT

check_prose = SimpleNamespace(**runpy.run_path(str(ROOT / "tests/check_prose.py")))


PLAIN = '''"""Cache of teacher logits."""

import argparse as parser


class Cache:
    """One file per epoch."""

    @property
    def size(self) -> int:
        """The size in bytes."""
        return 1


def load(path: str) -> str:
    """Return the content of `own.yaml`.

    See docs/own-images.md.
    """
    # The teacher computes the logits again.
    return f"{path}: no such file" + "own"
'''


def findings(source):
    return [f"{line}: {text}" for line, text in check_prose.in_python(source)]


def test_plain_code_has_no_finding():
    assert findings(PLAIN) == []


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("path: str", "told: str", "15: name told"),
        ("class Cache", "class OwnCache", "6: name OwnCache"),
        ("as parser", "as ours", "3: name ours"),
        ("def size", "def said_size", "10: name said_size"),
        ("logits again", "logits here", "20: 'here'"),
        ("no such file", "the teacher is asked", "21: 'asked'"),
        ("computes the logits again", "logits are computed anew", "20: 'anew'"),
        ("computes the logits", "asks the teacher", "20: 'asks the teacher'"),
        ("See docs", "What one has of one's own: docs", "18: 'own'"),
        ("Return the content", "Of the content", "16: docstring starts with a fragment"),
        ("Return the content", "The content", "16: docstring of a function starts without a verb"),
        ("per epoch.", "per epoch", "7: first line of a docstring is no sentence"),
    ],
)
def test_each_kind_of_finding(old, new, expected):
    assert old in PLAIN
    assert any(finding.startswith(expected) for finding in findings(PLAIN.replace(old, new)))


@pytest.mark.parametrize("text", ["here", "Our own logits.", "It is told, then asked.", "The run goes on from there."])
def test_prose_with_a_finding(text):
    assert list(check_prose.in_text(text))


@pytest.mark.parametrize("text", ["`own`", "docs/own-images.md", "own.yaml", "where", "adhere", "retold", "Go on."])
def test_prose_without_a_finding(text):
    assert list(check_prose.in_text(text)) == []


def test_names_of_files_are_checked(tmp_path):
    file = tmp_path / "own_images.md"
    file.write_text("Plain.\n\nIt is here.\n")
    assert list(check_prose.in_file(file)) == [
        (0, "name own_images: its, custom, local"),
        (3, "'here': local, in this process"),
    ]


def test_license_and_golden_files_are_skipped(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    assert check_prose.main(["LICENSE", "tests/golden"]) == 0
    assert capsys.readouterr().out == ""


def test_the_repository_has_no_finding(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    number = check_prose.main([])
    assert number == 0, capsys.readouterr().out
