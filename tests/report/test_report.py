"""The experiment's table and figure, from records."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest
from factories import DEMO, EXPERIMENT, FULL, SMALL, make_record, make_teacher
from hypothesis import given
from hypothesis import strategies as st

from kdflow import report
from kdflow.core.errors import UserError
from kdflow.report.experiment_table import COLUMNS, ExperimentResults, markdown, notes, rows
from kdflow.training import record

CE, KD, PICK = [70.0, 71.5, 69.25], [80.0, 82.0, 81.0], [83.5, 82.0, 84.75]


def results(budget=FULL, **methods):
    runs = {
        name: [make_record(seed, top1, method=name, budget=budget) for seed, top1 in enumerate(values)]
        for name, values in methods.items()
    }
    return ExperimentResults("digits", "resnet8", make_teacher(), runs)


def row_of(table, method):
    return dict(zip(COLUMNS, next(row for row in rows(table) if row[0] == method), strict=True))


def test_a_row_has_mean_and_sample_standard_deviation():
    table = results(ce=CE, kd=KD)
    row = row_of(table, "ce")
    assert row["Test top-1 %"] == f"{np.mean(CE):.2f} ({np.std(CE, ddof=1):.2f})" == "70.25 (1.15)"
    assert row["n"] == "3"
    assert [r[0] for r in rows(table)] == ["ce", "kd"]


def test_the_gain_is_paired_seed_by_seed():
    table = results(ce=CE, kd=KD, kd_tlcutmix_pick=PICK)
    for method, values in (("ce", CE), ("kd_tlcutmix_pick", PICK)):
        difference = np.array(values) - np.array(KD)
        assert row_of(table, method)["Against kd"] == f"{difference.mean():+.2f} ({difference.std(ddof=1):.2f})"
    assert row_of(table, "kd")["Against kd"] == ""


@given(st.lists(st.tuples(st.integers(0, 10000), st.integers(0, 10000)), min_size=2, max_size=4))
def test_the_gain_of_any_two_methods(pairs):
    ce, kd = np.array(pairs).T / 100
    mean, std = (float(x) for x in row_of(results(kd=list(kd), ce=list(ce)), "ce")["Against kd"].strip(")").split(" ("))
    assert mean == pytest.approx((ce - kd).mean(), abs=0.0051)
    assert std == pytest.approx((ce - kd).std(ddof=1), abs=0.0051)


def test_without_kd_there_is_no_gain():
    assert [row[COLUMNS.index("Against kd")] for row in rows(results(ce=CE, kd_tlcutmix=PICK))] == ["", ""]


def test_one_seed_has_no_deviation():
    table = results(kd=[80.0], ce=[79.0])
    assert row_of(table, "ce") == dict(zip(COLUMNS, ("ce", "79.00", "-1.00", "1", "79.00"), strict=True))


def test_the_result_is_the_last_epoch_s_and_the_best_has_a_column():
    runs = {"kd": [make_record(0, 80.0, curve=(90.0, None, 80.0))]}
    row = row_of(ExperimentResults("digits", "resnet8", make_teacher(), runs), "kd")
    assert (row["Test top-1 %"], row["Best epoch %"]) == ("80.00", "90.00")
    assert "not a result" in " ".join(notes(results(kd=KD)))


@pytest.mark.parametrize(("budget", "word"), [(DEMO, "demo dataset"), (SMALL, "2 of 240 epochs")])
def test_a_reduced_run_is_noted(budget, word):
    table = results(budget, ce=CE, kd=KD)
    assert word in table.budget_note
    assert f"Not a full run: {table.budget_note}." in markdown(table)


def test_one_reduced_run_among_full_ones_is_noted():
    table = results(kd=KD, ce=CE)
    table.runs["ce"][2] = make_record(2, 69.25, method="ce", budget=SMALL)
    assert "2 of 240 epochs" in markdown(table)


def test_a_full_run_has_no_note():
    table = results(ce=CE, kd=KD)
    assert table.budget_note == ""
    assert "full run" not in markdown(table)


def test_the_markdown_table_is_well_formed():
    text = markdown(results(ce=CE, kd=KD))
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert {line.count("|") for line in table} == {len(COLUMNS) + 1}
    assert text.startswith("# digits: resnet20 (95.50 %) -> resnet8\n")
    assert "ddof 1" in text
    assert text.endswith("\n")


# --- files -------------------------------------------------------------------------------------------------

METHODS = ("ce", "kd", "kd_tlcutmix")
CHOSEN = EXPERIMENT.model_copy(
    update={"params": EXPERIMENT.params.model_copy(update={"methods": METHODS, "seeds": (0, 1, 2)})}
)


def write_report(folder, budget=FULL, shift=0.0):
    """Write records and the report made from them, and return the report's files."""
    record.write_record(folder / "teacher.json", make_teacher())
    for method, values in zip(METHODS, (CE, KD, PICK), strict=True):
        for seed, top1 in enumerate(values):
            run = make_record(seed, top1 + shift, method=method, budget=budget)
            record.write_record(folder / "records" / method / f"seed{seed}.json", run)
    report.write(CHOSEN, folder / "teacher.json", folder / "records", folder / "out")
    files = (file for file in (folder / "out").rglob("*") if file.is_file())
    return {file.relative_to(folder / "out").as_posix(): file.read_bytes() for file in files}


def test_the_report_is_a_table_and_a_figure_in_two_formats(tmp_path):
    content = write_report(tmp_path)
    plots = [f"plots/{name}.json" for name in ("accuracy", "last_epoch", "loss")]
    assert sorted(content) == ["accuracy.png", "accuracy.svg", *plots, "table.md"]
    assert content["accuracy.png"].startswith(b"\x89PNG\r\n\x1a\n")
    assert ET.fromstring(content["accuracy.svg"]).tag.endswith("svg")
    for text in (content["table.md"].decode(), content["accuracy.svg"].decode()):
        assert all(method in text for method in METHODS)
        assert "not a full run" not in text.lower()


def test_the_same_records_give_the_same_bytes_and_others_do_not(tmp_path):
    first, again = write_report(tmp_path / "a"), write_report(tmp_path / "b")
    assert first == again
    other = write_report(tmp_path / "c", shift=0.5)
    assert [name for name in first if other[name] == first[name]] == ["plots/loss.json"]  # only accuracies differ


def test_table_and_figure_of_a_demo_have_a_note(tmp_path):
    content = write_report(tmp_path, DEMO)
    assert "Not a full run: demo dataset." in content["table.md"].decode()
    assert "not a full run: demo dataset" in content["accuracy.svg"].decode()


@pytest.mark.parametrize("missing", ["teacher.json", "records/kd/seed1.json"])
def test_a_missing_record_is_named(tmp_path, missing):
    write_report(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / missing}: no such record")):
        report.collect(CHOSEN, tmp_path / "teacher.json", tmp_path / "records")


def test_records_are_read_in_the_order_of_params(tmp_path):
    write_report(tmp_path)
    found = report.collect(CHOSEN, tmp_path / "teacher.json", tmp_path / "records")
    assert tuple(found.runs) == METHODS
    assert [run.settings.seed for run in found.runs["kd"]] == [0, 1, 2]
    assert [run.final.top1 for run in found.runs["kd"]] == KD


def test_records_of_another_student_are_refused(tmp_path):
    """After an edit of params.yaml the records are those of the experiment before."""
    write_report(tmp_path)
    params = CHOSEN.params.model_copy(update={"student": "resnet14"})
    edited = CHOSEN.model_copy(update={"params": params})
    with pytest.raises(UserError, match=r"made with other settings than those of params\.yaml"):
        report.collect(edited, tmp_path / "teacher.json", tmp_path / "records")
