"""A record that was edited after it was written is refused wherever its numbers would be used."""

import json

import pytest
from factories import DEMO, EXPERIMENT, make_log, make_record, make_teacher
from papers import KD, edit, make_paper, write_cell, write_teacher
from typer.testing import CliRunner

from kdflow import report
from kdflow.cli import app
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.export.locate import locate_inputs
from kdflow.paper import CellStatuses, load_paper
from kdflow.paper.cells import CELL_RECORD, cell_folder, teacher_folder
from kdflow.pipeline.one_command import _matches
from kdflow.report.cell_text import describe_cell
from kdflow.training import record

EDITED = "changed after it was written; `dvc checkout` or `dvc repro` restores it"
RECORDS = [make_record(top1=90.0), make_log(top1=90.0), make_teacher(90.0)]


def replace(file, old, new):
    before = file.read_text()
    assert old in before
    file.write_text(before.replace(old, new))


@pytest.mark.parametrize("made", RECORDS, ids=type)
def test_an_edited_number_is_refused_whether_the_hash_is_kept_or_deleted(tmp_path, made):
    file = tmp_path / "a.json"
    record.write_record(file, made)
    assert record.read_record(file, type(made)) == made
    replace(file, "90.0", "99.0")
    with pytest.raises(UserError, match=EDITED):
        record.read_record(file, type(made))
    files.write_text(file, made.model_dump_json(indent=2))
    with pytest.raises(UserError, match=EDITED):
        record.read_record(file, type(made))


def test_a_program_that_reads_and_writes_a_record_again_is_noticed_too(tmp_path):
    file = tmp_path / "a.json"
    record.write_record(file, make_teacher())
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match=EDITED):
        record.read_record(file, record.TeacherRecord)


@pytest.mark.parametrize("name", ["records/ce/seed0.json", "teacher.json"])
def test_the_table_and_the_figure_of_the_experiment(tmp_path, name):
    record.write_record(tmp_path / "teacher.json", make_teacher())
    params = EXPERIMENT.params.model_copy(update={"methods": ("ce",), "seeds": (0,)})
    experiment = EXPERIMENT.model_copy(update={"params": params})
    record.write_record(tmp_path / "records/ce/seed0.json", make_record(top1=95.5, method="ce", budget=DEMO))
    paths = (experiment, tmp_path / "teacher.json", tmp_path / "records", tmp_path / "report")
    report.write(*paths)
    before = (tmp_path / "report/table.md").read_text()
    replace(tmp_path / name, "95.5", "99.0")
    with pytest.raises(UserError, match=EDITED):
        report.write(*paths)
    assert (tmp_path / "report/table.md").read_text() == before


def test_the_cells_and_teachers_of_a_paper(tmp_path, monkeypatch):
    paper = make_paper(tmp_path)
    write_teacher(paper)
    write_cell(paper, KD, [90.0, 91.0, 92.0])
    monkeypatch.chdir(tmp_path)
    commands = (["cells", "--status"], ["show", KD], ["table", "table1"], ["report"])
    for file, shown in (
        (teacher_folder(paper, "digits-resnet20") / "record.json", '"top1": 95.5'),
        (cell_folder(paper, KD) / CELL_RECORD, '"mean": 91.0'),
        (cell_folder(paper, KD) / "seed1.json", '"top1": 91.0'),
    ):
        before = file.read_text()
        replace(file, shown, shown.rpartition(" ")[0] + " 99.0")
        for command in commands:
            assert EDITED in str(CliRunner().invoke(app, command).exception)
        file.write_text(before)
    assert all(CliRunner().invoke(app, command).exit_code == 0 for command in commands)


def test_the_means_of_a_stale_cell_are_not_shown_either(tmp_path):
    paper = make_paper(tmp_path)
    write_cell(paper, KD, [90.0, 91.0, 92.0])
    replace(tmp_path / "recipes/datasets.yaml", "mean: [0.3044,", "mean: [0.4,")
    paper = load_paper(paper.folder, paper.root)
    assert CellStatuses(paper)(KD).status == "stale"
    edit(cell_folder(paper, KD) / CELL_RECORD, top1={"mean": 99.0, "std": 1.0, "n": 3})
    with pytest.raises(UserError, match=EDITED):
        describe_cell(paper, KD)


def test_the_log_of_an_exported_student(tmp_path):
    weights = tmp_path / "seed0.safetensors"
    weights.write_bytes(b"")
    record.write_record(tmp_path / "seed0.json", make_log(top1=90.0))
    replace(tmp_path / "seed0.json", "90.0", "99.0")
    with pytest.raises(UserError, match=EDITED):
        locate_inputs(weights, None, None)


def test_a_student_of_distill_with_an_edited_log_is_trained_again(tmp_path):
    log, weights = make_log(top1=90.0), tmp_path / "seed0.safetensors"
    weights.write_bytes(b"")
    log = log.model_copy(
        update={
            "code": log.code.model_copy(update={"sha256": record.code_sha256()}),
            "weights_sha256": files.sha256(weights),
        }
    )
    record.write_record(tmp_path / "seed0.json", log)
    inputs = (log.settings_sha256, log.dataset_sha256, log.teacher_sha256)
    assert _matches(tmp_path / "seed0.json", weights, *inputs)
    replace(tmp_path / "seed0.json", "90.0", "99.0")
    assert not _matches(tmp_path / "seed0.json", weights, *inputs)
