"""Drift: what has moved is found, what has not is let be."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from papers import CE, KD, PICK, edit, fill, fill_teacher, paper_of
from paths import ROOT
from ruamel.yaml import YAML

from kdflow.core.errors import UserError
from kdflow.paper import cells, drift, load_paper
from kdflow.paper.drift import TOLERANCES, Tolerance, tolerance
from kdflow.training.record import MeanStd

NAMES = (CE, KD, PICK)


@pytest.fixture
def paper(tmp_path):
    found = paper_of(tmp_path)
    fill_teacher(found)
    for name, top1 in ((CE, [80.0, 81.0, 82.0]), (KD, [90.0, 90.1, 90.2]), (PICK, [95.0, 95.1, 94.9])):
        fill(found, name, top1)
    return found


@pytest.fixture
def baseline(paper):
    return drift.make_baseline(paper, NAMES, TOLERANCES)


def wrong(paper, baseline, only=()):
    """(cell, what, status) of all that is not as it was; settings are read anew."""
    found = drift.compare(load_paper(paper.folder, paper.root), baseline, only)
    return [(finding.cell, finding.what, finding.status) for finding in found if finding.status != "ok"]


def change_curve(paper, name, **change):
    """As another code would have computed it: the record says so, and the cell knows the record."""
    place = cells.cell_folder(paper, name)
    for file in place.glob("seed*.json"):
        content = json.loads(file.read_text())
        content["curve"][0].update(change)
        file.write_text(json.dumps(content))
    runs = [cells.record.read_record(file, cells.RunRecord) for file in sorted(place.glob("seed*.json"))]
    cells.record.write_record(place / cells.CELL_RECORD, cells.make_cell_record(paper, name, runs))


def test_the_same_records_have_not_drifted(paper, baseline):
    assert wrong(paper, baseline) == []
    fill(paper, KD, [90.0, 90.1, 90.2])
    assert wrong(paper, baseline) == []


def test_a_baseline_is_read_as_it_was_written(paper, baseline, tmp_path):
    drift.write_baseline(tmp_path / "baseline.json", baseline)
    assert drift.read_baseline(tmp_path / "baseline.json") == baseline


def test_every_night_all_of_the_baseline_is_made_anew():
    """What is not there has drifted: on a fresh clone nothing is."""
    deployments = YAML(typ="safe").load(ROOT / "prefect.yaml")["deployments"]
    (nightly,) = (one["parameters"] for one in deployments if one["name"] == "nightly")
    made = drift.read_baseline(ROOT / nightly["paper"] / "baseline.json")
    assert sorted(nightly["remake"]) == sorted(f"cell@{name}" for name in made.cells)


def test_a_mean_that_moved(paper, baseline):
    fill(paper, KD, [90.4, 90.5, 90.6])
    assert wrong(paper, baseline) == [], "within the floor of half a point"
    fill(paper, KD, [90.7, 90.8, 90.9])
    assert wrong(paper, baseline) == [(KD, "top1", "drift")]
    fill(paper, CE, [82.0, 83.0, 84.0])
    assert wrong(paper, baseline, [CE]) == [], "within three pooled errors, 3 sqrt(2/3)"
    fill(paper, CE, [83.0, 84.0, 85.0])
    assert wrong(paper, baseline, [CE]) == [(CE, "top1", "drift")]


def test_the_first_loss_tells_of_a_changed_factor_or_normalisation(paper, baseline):
    change_curve(paper, KD, first_step_loss=2.0 * (1 + 5e-5))
    assert wrong(paper, baseline) == []
    change_curve(paper, KD, first_step_loss=2.0 * (1 + 2e-4))
    assert wrong(paper, baseline) == [(KD, "first_step_loss", "drift")]


def test_another_teacher_of_the_same_settings_moves_the_first_loss_by_what_losses_move(paper, baseline):
    other = baseline.cells[KD].model_copy(update={"teacher_sha256": "8" * 64})
    elsewhere = baseline.model_copy(update={"cells": {KD: other}})
    change_curve(paper, KD, first_step_loss=2.0 * 1.019)
    assert wrong(paper, elsewhere) == []
    change_curve(paper, KD, first_step_loss=2.0 * 1.021)
    assert wrong(paper, elsewhere) == [(KD, "first_step_loss", "drift")]


def test_a_dropped_seed(paper, baseline):
    fill(paper, KD, [90.0, 90.1])
    assert (KD, "seeds", "missing") in wrong(paper, baseline)


def test_a_missing_cell(paper, baseline):
    (cells.cell_folder(paper, PICK) / cells.CELL_RECORD).unlink()
    assert wrong(paper, baseline) == [(PICK, "record", "missing")]


def test_a_cell_that_no_table_prints_any_more(paper, baseline):
    file = paper.root / "paper/tables.yaml"
    file.write_text(file.read_text().replace("{label: Student, method: ce}", "{label: Student, method: kd_cutmix}")
                    .replace("methods: [ce, kd]", "methods: [kd]"))  # fmt: skip
    assert (CE, "cell", "missing") in wrong(paper, baseline)


def test_an_edited_record(paper, baseline):
    file = cells.cell_folder(paper, KD) / "seed0.json"
    content = json.loads(file.read_text())
    edit(file, final=content["final"] | {"top1": content["final"]["top1"] + 0.01})
    assert wrong(paper, baseline) == [(KD, "record", "drift")]


def test_other_settings(paper, baseline):
    file = paper.root / "recipes/datasets.yaml"
    file.write_text(file.read_text().replace("mean: [0.3044,", "mean: [0.4,", 1))
    found = wrong(paper, baseline)
    assert {cell for cell, *_ in found} == set(NAMES) and {what for _, what, _ in found} == {"state"}
    again = load_paper(paper.folder, paper.root)
    for name, top1 in ((CE, [80.0, 81.0, 82.0]), (KD, [90.0, 90.1, 90.2]), (PICK, [95.0, 95.1, 94.9])):
        fill(again, name, top1)
    fill_teacher(again)
    assert wrong(again, baseline) == [(name, "settings", "drift") for name in NAMES], "trained anew, other settings"


def test_costs_are_exact(paper, baseline):
    assert set(baseline.costs) == {"digits-resnet20", "digits-resnet8"}
    file = paper.root / "recipes/models.yaml"
    recipe = "resnet8: {family: resnet, options: {depth: 8, widths: [16, 16, 32, 64"
    assert recipe in file.read_text()
    file.write_text(file.read_text().replace(recipe, recipe.replace("32, 64", "32, 65")))
    assert ("digits-resnet8", "parameters, FLOPs", "drift") in wrong(paper, baseline)


def test_a_baseline_is_made_of_what_is_done(paper):
    fill(paper, KD, [90.0, 90.1])
    with pytest.raises(UserError, match=f"{KD}: partial; a baseline is made of what is done"):
        drift.make_baseline(paper, NAMES, TOLERANCES)


def test_no_baseline(tmp_path):
    with pytest.raises(UserError, match=r"baseline.json: no such baseline; `kdflow drift --update"):
        drift.read_baseline(tmp_path / "baseline.json")
    (tmp_path / "baseline.json").write_text("{}")
    with pytest.raises(UserError, match=r"baseline.json: not a Baseline of this version: tolerances: Field required"):
        drift.read_baseline(tmp_path / "baseline.json")


def test_what_is_said(paper, baseline):
    good = drift.compare(paper, baseline)
    assert drift.markdown(good).endswith(f"None: {len(good)} figures of 5 cells are where they were.\n")
    assert drift.terminal(good).endswith(f"0 of {len(good)} figures have moved or are missing\n")
    assert json.loads(drift.as_json(good))["drift"] is False
    fill(paper, KD, [80.0, 80.1, 80.2])
    bad = drift.compare(paper, baseline)
    assert f"| {KD} | top1 | 90.1 (0.1), n=3 | 80.1 (0.1), n=3 | 0.5 | drift |" in drift.markdown(bad)
    assert json.loads(drift.as_json(bad))["drift"] is True


def spread_of(std, n):
    return MeanStd(mean=10.0, std=std, n=n)


@given(st.floats(0, 5), st.floats(0, 5), st.integers(2, 9), st.integers(2, 9), st.floats(0, 3), st.floats(0, 5))
def test_the_tolerance_is_the_larger_of_floor_and_pooled_errors(s, t, n, m, floor, k):
    errors = k * math.sqrt(s * s / n + t * t / m)
    for relative, least in ((False, floor), (True, 10 * floor)):
        found = tolerance(Tolerance(floor=floor, relative=relative, k=k), spread_of(s, n), spread_of(t, m))
        assert found == pytest.approx(max(least, errors))
