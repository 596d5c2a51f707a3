"""docs/methods.md is up to date and has every method with its formula and every part with its docstring."""

import ast

import pytest
from paths import ROOT

from kdflow import config
from kdflow.config import Method
from kdflow.core.errors import UserError
from kdflow.report.methods_page import NOT_INCLUDED, PARTS, find, formula, page

METHODS = config.load(ROOT).methods
PAGE = page(METHODS)


def test_docs_methods_md_is_up_to_date():
    assert (ROOT / "docs/methods.md").read_text() == PAGE, "kdflow methods > docs/methods.md"


REPDISTILLER = ["hint", "at", "sp", "cc", "vid", "crd", "kdsvd", "fsp", "rkd", "pkt", "ab", "ft", "nst"]
MDISTILLER = ["at", "crd", "dkd", "hint", "kdsvd", "nst", "ofd", "pkt", "rkd", "reviewkd", "sp", "vid"]


def test_every_loss_of_other_collections_is_included_or_named_with_the_reason():
    losses = config.choices("losses")
    for name in REPDISTILLER + MDISTILLER:
        assert name in losses or f"- {NOT_INCLUDED[name]}." in PAGE.splitlines()


def test_the_table_has_the_methods_of_each_loss():
    rows = PAGE[PAGE.index("## Losses and views") :].splitlines()
    assert "| at | `at` | `at_kd` | `at_kd_tlcutmix` |  |" in rows
    assert "| dkd | `dkd` |  | `dkd_tlcutmix` | `dkd_tlcutmix_pick` |" in rows
    assert all(any(row.startswith(f"| {name} |") for row in rows) for name in config.choices("losses"))


def test_one_method_or_part_is_found():
    assert find(METHODS, "kd") == f"kd: {formula(METHODS['kd'])}\n"
    assert find(METHODS, "dkd").startswith(f"dkd: {formula(METHODS['dkd'])}\n\nloss.name: dkd\n\nDecoupled")
    assert "Used by: kd_tlmixup\n" in find(METHODS, "mixup")
    with pytest.raises(UserError, match="--find: unknown name 'dkdd'; did you mean 'dkd'"):
        find(METHODS, "dkdd")


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_its_row(name):
    assert f"| `{name}` | {formula(METHODS[name])} |" in PAGE.splitlines()


@pytest.mark.parametrize(("package", "name"), [(part[1], name) for part in PARTS for name in config.choices(part[1])])
def test_every_part_has_a_docstring_with_a_source_or_a_purpose(package, name):
    text = ast.get_docstring(ast.parse((config.PACKAGE / config.FOLDERS[package] / f"{name}.py").read_text()))
    assert f"### {name}\n\n{text}\n" in PAGE
    assert any(word in text for word in ("20", "paper", "control")), text  # a year, the paper, or its purpose


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"ce": 1.0, "kl": 0.0}, "1 CE(x, y)"),
        ({"ce": 0.1, "kl": 0.9}, "0.1 CE(x, y) + 0.9 KL(x); tau = 4"),
        ({"ce": 0.0, "kl": 1.0, "tau": 2.0}, "1 KL(x); tau = 2"),
        (
            {"ce": 1.0, "kl": 0.0, "loss": {"name": "sp", "weight": 3.0}, "strong": {"view": "mixup", "weight": 0.5}},
            "1 CE(x, y) + 3 sp(x) + 0.5 KL(x'); tau = 4, x' = mixup(x)",
        ),
        (
            {
                "ce": 0.1,
                "kl": 0.9,
                "strong": {"view": "cutmix", "replaces_x": True, "pick": {"criterion": "kl", "pool": 4}},
            },
            "0.1 CE(x', mixed y) + 0.9 KL(x'); tau = 4, x' = cutmix(x), "
            "of 4 draws the fraction 0.5 with the largest kl is kept",
        ),
    ],
)
def test_formulas(settings, expected):
    assert formula(Method.model_validate(settings)) == expected
