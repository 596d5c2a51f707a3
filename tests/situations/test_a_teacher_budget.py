"""A student of a teacher that was trained for a few epochs: its record and all tables and figures say so."""

import pytest
from factories import DEMO, EXPERIMENT, FULL, SMALL, make_log, make_record, make_teacher
from papers import CE, KD, PARAMS, edit, make_paper, write_cell, write_teacher
from typer.testing import CliRunner

from kdflow.cli import app
from kdflow.paper import CellStatuses
from kdflow.pipeline.distill import student_jobs
from kdflow.pipeline.teacher import _recorded_budget
from kdflow.report import experiment_figure, experiment_table, paper_item, paper_page
from kdflow.report.cell_text import describe_cell
from kdflow.report.experiment_table import ExperimentResults
from kdflow.training import record

WEAK = DEMO.model_copy(update={"epochs": 2})
NOTE = "teacher with 2 of 40 epochs"


def test_the_note_of_a_student_names_the_epochs_and_images_of_its_teacher():
    assert FULL.model_copy(update={"teacher": FULL}).budget_note == ""
    note = FULL.model_copy(update={"teacher": SMALL}).budget_note
    assert note == "teacher with 2 of 240 epochs, 500 of 50,000 training images"
    assert DEMO.model_copy(update={"teacher": WEAK}).budget_note == f"demo dataset; {NOTE}"
    assert DEMO.model_copy(update={"teacher": DEMO}).budget_note == "demo dataset"


def test_notes_of_several_runs_have_each_part_once_and_teachers_first():
    runs = [make_record(seed, budget=DEMO.model_copy(update={"teacher": WEAK})) for seed in (0, 1)]
    runs.append(make_record(method="ce", budget=DEMO))
    assert record.budget_note(runs) == f"{NOTE}; demo dataset"


def test_jobs_of_students_get_the_budget_of_their_teacher_from_its_record(tmp_path):
    record.write_record(tmp_path / "record.json", make_teacher().model_copy(update={"budget": WEAK}))
    budgets = {
        method: student_jobs(EXPERIMENT, method, tmp_path / "d.h5", tmp_path, None, tmp_path, tmp_path)[0].budget
        for method in ("ce", "kd")
    }
    assert budgets["ce"].teacher is None
    assert budgets["kd"].teacher == WEAK
    assert NOTE in budgets["kd"].budget_note


@pytest.mark.parametrize("name", ["record.json", "model.json"])
def test_weights_from_a_file_keep_the_budget_in_the_record_beside_them(tmp_path, name):
    weights = tmp_path / "model.safetensors"
    assert _recorded_budget(weights, "2" * 64) is None
    made = make_teacher().model_copy(update={"sha256": "2" * 64, "budget": WEAK})
    record.write_record(tmp_path / name, made if name == "record.json" else make_log(budget=WEAK))
    assert _recorded_budget(weights, "2" * 64) == WEAK
    assert _recorded_budget(weights, "5" * 64) is None
    edit(tmp_path / name, unknown=1)
    assert _recorded_budget(weights, "2" * 64) is None


def test_table_and_figure_of_the_experiment(tmp_path):
    teacher = make_teacher().model_copy(update={"budget": WEAK})
    results = ExperimentResults("digits", "resnet8", teacher, {"ce": [make_record(method="ce")]})
    assert f"Not a full run: {NOTE}." in experiment_table.markdown(results)
    experiment_figure.draw(results, tmp_path / "a.svg", "svg")
    assert f"not a full run: {NOTE}" in (tmp_path / "a.svg").read_text()


def test_tables_figures_page_and_cells_of_a_paper(tmp_path, monkeypatch):
    paper = make_paper(tmp_path, params=PARAMS.replace("teacher_epoch_scale: 1.0", "teacher_epoch_scale: 0.05"))
    write_teacher(paper)
    for name in (KD, f"{KD}-none", CE):
        write_cell(paper, name, [90.0])
    assert CellStatuses(paper)(KD).record.budget_note == f"demo dataset; {NOTE}"
    assert CellStatuses(paper)(CE).record.budget_note == "demo dataset"
    for name in (KD, "digits-resnet20"):
        assert NOTE in next(line for line in describe_cell(paper, name).splitlines() if "budget" in line)
    assert paper_page.render(paper).count(NOTE) == 5  # at the top, below table1, and for three cells and teachers
    paper_item.write(paper, "table1", tmp_path / "table1")
    assert f"Not a full run: {NOTE}; demo dataset." in (tmp_path / "table1/table.md").read_text()
    paper_item.write(paper, "figure1", tmp_path / "figure1")
    assert f"not a full run: {NOTE}; demo dataset" in (tmp_path / "figure1/figure.svg").read_text()
    monkeypatch.chdir(tmp_path)
    output = CliRunner().invoke(app, ["cells", "--status"]).stdout
    assert output.splitlines()[-2] == f"Not a full run: {NOTE}; demo dataset."
