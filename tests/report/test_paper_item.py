"""Every kind of table and figure has a settings class and a report module of its name."""

import inspect
from typing import get_args

import pytest
from papers import make_paper

from kdflow.paper import CellStatuses
from kdflow.paper.item import Item
from kdflow.paper.paper import KINDS
from kdflow.report import paper_item
from kdflow.report.paper_item import ReportModule, report_module


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_class_and_a_report_module(kind):
    assert get_args(KINDS[kind].model_fields["kind"].annotation) == (kind,)
    module = report_module(KINDS[kind].model_construct(kind=kind))
    assert isinstance(module, ReportModule)
    for function, expected in (("write", ["paper", "statuses", "name", "item", "out"]),
                               ("view", ["paper", "statuses", "name", "item"])):  # fmt: skip
        signature = inspect.signature(getattr(module, function))
        assert list(signature.parameters) == expected
        assert signature.parameters["item"].annotation == KINDS[kind].__name__


def test_every_item_class_is_listed():
    assert set(Item.__subclasses__()) == set(KINDS.values())


def test_a_missing_table_has_its_columns_and_a_missing_figure_is_drawn_empty(tmp_path):
    paper = make_paper(tmp_path)
    views = {name: paper_item.view(paper, CellStatuses(paper), name) for name in paper.items}
    assert {cell.text for row in views["table1"].rows.values() for cell in row} == {"missing"}
    assert views["table1"].columns == ["resnet20 -> resnet8", "resnet20 -> resnet14"]
    assert all(views[name].svg and not views[name].formats for name in ("figure1", "figure4"))
    assert "0 of 8 cells are done or partial." in views["figure1"].notes
