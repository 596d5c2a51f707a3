"""Claims: paired differences over seeds, their intervals, and verdicts."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from papers import CE, KD, PICK, TABLES, make_paper, write_cell, write_teacher

from kdflow.core.errors import UserError
from kdflow.paper import CellStatuses
from kdflow.report import paper_item
from kdflow.report.claims import claim_results, holm, paired_t

CLAIMS = """
claims:
  kind: claim_table
  caption: Claims
  dataset: digits
  pair: resnet20_to_resnet8
  claims:
  - claim: KD is better than CE
    source: Table 1
    comment: A remark.
    comparisons:
    - {label: KD minus CE, plus: [{method: kd}], minus: [{method: ce}]}
  - claim: Pick gains more over KD than KD over CE
    source: Table 2
    comparisons:
    - {label: pick minus KD, plus: [{method: kd_tlcutmix_pick}], minus: [{method: kd}]}
    - label: difference of the gains
      plus: [{method: kd_tlcutmix_pick}, {method: ce}]
      minus: [{method: kd}, {method: kd}]
"""


@pytest.fixture
def paper(tmp_path):
    paper = make_paper(tmp_path, TABLES + CLAIMS)
    write_teacher(paper)
    return paper


def results(paper):
    return claim_results(paper, CellStatuses(paper), paper.items["claims"])


def test_a_difference_of_known_numbers(paper):
    write_cell(paper, KD, [91.0, 92.0, 93.0])
    write_cell(paper, CE, [90.0, 90.0, 90.0])
    first, second = results(paper)
    (result,) = first.results
    assert (result.difference.mean, result.difference.std, result.difference.n) == (2.0, 1.0, 3)
    # t at 0.975 with 2 degrees of freedom is 4.302653; the standard error is 1 / sqrt(3).
    assert result.low == pytest.approx(2 - 4.302653 / math.sqrt(3), abs=1e-5)
    assert result.high == pytest.approx(2 + 4.302653 / math.sqrt(3), abs=1e-5)
    assert result.p == pytest.approx(0.0741799, abs=1e-6)  # the tail of t = 2 sqrt(3)
    assert result.p_holm == result.p  # the other comparisons have no records
    assert first.verdict == "undecided"
    assert [one.status for one in second.results] == ["missing", "missing"]
    assert second.verdict == "undecided"


@pytest.mark.parametrize(
    ("kd", "pick", "verdict"),
    [
        ([91.0, 91.1, 91.2], [94.0, 94.1, 94.3], "holds"),
        ([91.0, 91.1, 91.2], [90.0, 90.2, 90.1], "does not hold"),
        ([91.0, 91.1, 91.2], [92.0, 92.6, 91.5], "undecided"),
    ],
)
def test_a_claim_needs_all_its_comparisons(paper, kd, pick, verdict):
    write_cell(paper, CE, [90.0, 90.0, 90.1])
    write_cell(paper, KD, kd)
    write_cell(paper, PICK, pick)
    assert results(paper)[1].verdict == verdict


def test_only_seeds_that_all_students_have_are_compared(paper):
    write_cell(paper, KD, [91.0, 92.0, 93.0])
    write_cell(paper, CE, [90.0])
    (result,) = results(paper)[0].results
    assert (result.status, result.difference.n, result.low, result.p) == ("partial", 1, None, None)
    assert result.verdict == "undecided"


def test_the_table_has_the_claims_the_comparisons_and_the_notes(paper):
    write_cell(paper, KD, [91.0, 92.0, 93.0])
    write_cell(paper, CE, [90.0, 90.0, 90.0])
    view = paper_item.view(paper, CellStatuses(paper), "claims")
    assert [cell.text for cell in view.rows["KD minus CE"]] == [
        "+2.00 (1.00)", "-0.48 to +4.48", "3", "0.074", "0.074", "undecided",
    ]  # fmt: skip
    assert view.rows["1. KD is better than CE (Table 1)"][-1].text == "undecided"
    assert "3 comparisons." in view.notes and "Claim 1: A remark." in view.notes
    assert "| KD minus CE | +2.00 (1.00) | -0.48 to +4.48 | 3 |" in view.formats["md"]
    first = json.loads(view.formats["json"])["claims"][0]["comparisons"][0]
    assert first["difference"] == {"mean": 2.0, "std": 1.0, "n": 3} and first["cells"] == [KD, CE]


def test_the_figure_has_the_comparisons_that_have_an_interval(paper, tmp_path):
    write_cell(paper, CE, [90.0, 90.0, 90.1])
    assert paper_item.view(paper, CellStatuses(paper), "claims").svg == b""
    write_cell(paper, KD, [91.0, 92.0, 93.0])
    paper_item.write(paper, "claims", tmp_path / "claims")
    svg = (tmp_path / "claims/figure.svg").read_text()
    assert "KD minus CE  (1)" in svg and "undecided, n = 3" in svg
    assert "pick minus KD" not in svg
    assert svg.encode() == paper_item.view(paper, CellStatuses(paper), "claims").svg


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=8))
def test_the_interval_and_p_agree(differences):
    low, high, p = paired_t(differences)
    assert low <= math.fsum(differences) / len(differences) <= high
    if abs(p - 0.05) > 1e-6 and len(set(differences)) > 1:
        assert (low <= 0 <= high) == (p > 0.05)


def test_holms_correction_of_a_textbook_example():
    # 0.01, 0.02, 0.03, 0.04: times 4, 3, 2, 1, and never below a smaller one's.
    assert holm([0.04, 0.01, None, 0.03, 0.02]) == pytest.approx([0.06, 0.04, None, 0.06, 0.06], nan_ok=False)
    assert holm([0.7, 0.6]) == [1.0, 1.0]


def test_a_comparison_needs_as_many_students_on_both_sides(tmp_path):
    tables = TABLES + CLAIMS.replace("minus: [{method: kd}, {method: kd}]", "minus: [{method: kd}]")
    with pytest.raises(UserError, match="plus has 2 students, minus 1; both need the same number"):
        make_paper(tmp_path, tables)
