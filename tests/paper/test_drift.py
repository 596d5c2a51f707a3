"""Drift: changes beyond the tolerance are found, smaller ones are not."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from papers import CE, KD, PICK, edit, make_paper, write_cell, write_teacher
from paths import ROOT
from ruamel.yaml import YAML

from kdflow.core.errors import UserError
from kdflow.paper import cells, drift, load_paper
from kdflow.paper.drift import TOLERANCES, Tolerance, tolerance
from kdflow.training.record import MeanStd

NAMES = (CE, KD, PICK)


@pytest.fixture
def paper(tmp_path):
    paper = make_paper(tmp_path)
    write_teacher(paper)
    for name, top1 in ((CE, [80.0, 81.0, 82.0]), (KD, [90.0, 90.1, 90.2]), (PICK, [95.0, 95.1, 94.9])):
        write_cell(paper, name, top1)
    return paper


@pytest.fixture
def baseline(paper):
    return drift.make_baseline(paper, NAMES, TOLERANCES)


def drifted(paper, baseline, only=()):
    """Return (cell, field, status) of all findings that are not ok; settings are read again."""
    findings = drift.compare(load_paper(paper.folder, paper.root), baseline, only)
    return [(finding.cell, finding.field, finding.status) for finding in findings if finding.status != "ok"]


def change_curve(paper, name, **change):
    """Change the records of a cell as other code would have written them, with matching hashes."""
    folder, runs = cells.cell_folder(paper, name), []
    for file in sorted(folder.glob("seed*.json")):
        run = cells.record.read_record(file, cells.RunRecord)
        curve = (run.curve[0].model_copy(update=change), *run.curve[1:])
        runs.append(run.model_copy(update={"curve": curve}))
        cells.record.write_record(file, runs[-1])
    cells.record.write_record(folder / cells.CELL_RECORD, cells.make_cell_record(paper, name, runs))


def test_the_same_records_have_not_drifted(paper, baseline):
    assert drifted(paper, baseline) == []
    write_cell(paper, KD, [90.0, 90.1, 90.2])
    assert drifted(paper, baseline) == []


def test_a_baseline_is_read_as_it_was_written(paper, baseline, tmp_path):
    drift.write_baseline(tmp_path / "baseline.json", baseline)
    assert drift.read_baseline(tmp_path / "baseline.json") == baseline


def test_the_nightly_flow_makes_every_cell_of_the_baseline():
    """A missing cell has drifted, and on a fresh clone all cells are missing."""
    deployments = YAML(typ="safe").load(ROOT / "prefect.yaml")["deployments"]
    (nightly,) = (one["parameters"] for one in deployments if one["name"] == "nightly")
    baseline = drift.read_baseline(ROOT / nightly["paper"] / "baseline.json")
    assert sorted(nightly["force"]) == sorted(f"cell@{name}" for name in baseline.cells)


def test_a_mean_drifts_beyond_its_tolerance(paper, baseline):
    write_cell(paper, KD, [90.4, 90.5, 90.6])
    assert drifted(paper, baseline) == [], "within the floor of half a point"
    write_cell(paper, KD, [90.7, 90.8, 90.9])
    assert drifted(paper, baseline) == [(KD, "top1", "drift")]
    write_cell(paper, CE, [82.0, 83.0, 84.0])
    assert drifted(paper, baseline, [CE]) == [], "within three pooled errors, 3 sqrt(2/3)"
    write_cell(paper, CE, [83.0, 84.0, 85.0])
    assert drifted(paper, baseline, [CE]) == [(CE, "top1", "drift")]


def test_the_loss_of_the_first_step_has_a_tight_tolerance(paper, baseline):
    change_curve(paper, KD, first_step_loss=2.0 * (1 + 5e-5))
    assert drifted(paper, baseline) == []
    change_curve(paper, KD, first_step_loss=2.0 * (1 + 2e-4))
    assert drifted(paper, baseline) == [(KD, "first_step_loss", "drift")]


def test_another_teacher_has_drifted_and_the_loss_of_the_first_step_keeps_its_tolerance(paper, baseline):
    other = baseline.cells[KD].model_copy(update={"teacher_sha256": "8" * 64})
    other_teacher = baseline.model_copy(update={"cells": {KD: other}})
    assert drifted(paper, other_teacher) == [(KD, "teacher", "drift")]
    change_curve(paper, KD, first_step_loss=2.0 * (1 + 2e-4))
    assert drifted(paper, other_teacher) == [(KD, "teacher", "drift"), (KD, "first_step_loss", "drift")]


def test_a_dropped_seed(paper, baseline):
    write_cell(paper, KD, [90.0, 90.1])
    assert (KD, "seeds", "missing") in drifted(paper, baseline)


def test_a_missing_cell(paper, baseline):
    (cells.cell_folder(paper, PICK) / cells.CELL_RECORD).unlink()
    assert drifted(paper, baseline) == [(PICK, "record", "missing")]


def test_a_cell_that_no_table_prints(paper, baseline):
    file = paper.root / "paper/tables.yaml"
    file.write_text(file.read_text().replace("{label: Student, method: ce}", "{label: Student, method: kd_cutmix}")
                    .replace("methods: [ce, kd]", "methods: [kd]"))  # fmt: skip
    assert (CE, "cell", "missing") in drifted(paper, baseline)


def test_an_edited_record(paper, baseline):
    file = cells.cell_folder(paper, KD) / "seed0.json"
    content = json.loads(file.read_text())
    edit(file, final=content["final"] | {"top1": content["final"]["top1"] + 0.01})
    assert drifted(paper, baseline) == [(KD, "record", "drift")]


def test_other_settings(paper, baseline):
    file = paper.root / "recipes/datasets.yaml"
    file.write_text(file.read_text().replace("mean: [0.3044,", "mean: [0.4,", 1))
    findings = drifted(paper, baseline)
    assert {cell for cell, *_ in findings} == set(NAMES) and {field for _, field, _ in findings} == {"status"}
    again = load_paper(paper.folder, paper.root)
    for name, top1 in ((CE, [80.0, 81.0, 82.0]), (KD, [90.0, 90.1, 90.2]), (PICK, [95.0, 95.1, 94.9])):
        write_cell(again, name, top1)
    write_teacher(again)
    assert drifted(again, baseline) == [(name, "settings", "drift") for name in NAMES], "trained again"


def test_costs_are_exact(paper, baseline):
    assert set(baseline.costs) == {"digits-resnet20", "digits-resnet8"}
    file = paper.root / "recipes/models.yaml"
    recipe = "resnet8: {family: resnet, options: {depth: 8, widths: [16, 16, 32, 64"
    assert recipe in file.read_text()
    file.write_text(file.read_text().replace(recipe, recipe.replace("32, 64", "32, 65")))
    assert ("digits-resnet8", "parameters, FLOPs", "drift") in drifted(paper, baseline)


def test_a_baseline_is_made_from_cells_that_are_done(paper):
    write_cell(paper, KD, [90.0, 90.1])
    with pytest.raises(UserError, match=f"{KD}: partial; only cells that are done can be a baseline"):
        drift.make_baseline(paper, NAMES, TOLERANCES)


def test_no_baseline(tmp_path):
    with pytest.raises(UserError, match=r"baseline.json: no such baseline; `kdflow drift --update"):
        drift.read_baseline(tmp_path / "baseline.json")
    (tmp_path / "baseline.json").write_text("{}")
    with pytest.raises(UserError, match=r"baseline.json: not a Baseline of this version: tolerances: Field required"):
        drift.read_baseline(tmp_path / "baseline.json")


def test_reports(paper, baseline):
    good = drift.compare(paper, baseline)
    assert drift.markdown(good).endswith(f"None: {len(good)} values of 5 cells are within tolerance.\n")
    assert drift.terminal(good).endswith(f"0 of {len(good)} values have drifted or are missing\n")
    assert json.loads(drift.as_json(good))["drift"] is False
    write_cell(paper, KD, [80.0, 80.1, 80.2])
    bad = drift.compare(paper, baseline)
    assert f"| {KD} | top1 | 90.1 (0.1), n=3 | 80.1 (0.1), n=3 | 0.5 | drift |" in drift.markdown(bad)
    assert json.loads(drift.as_json(bad))["drift"] is True


def mean_std_of(std, n):
    return MeanStd(mean=10.0, std=std, n=n)


@given(st.floats(0, 5), st.floats(0, 5), st.integers(2, 9), st.integers(2, 9), st.floats(0, 3), st.floats(0, 5))
def test_the_tolerance_is_the_larger_of_floor_and_pooled_errors(s, t, n, m, floor, k):
    errors = k * math.sqrt(s * s / n + t * t / m)
    for relative, least in ((False, floor), (True, 10 * floor)):
        found = tolerance(Tolerance(floor=floor, relative=relative, k=k), mean_std_of(s, n), mean_std_of(t, m))
        assert found == pytest.approx(max(least, errors))
