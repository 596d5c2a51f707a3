"""`dvc plots` in the root experiment."""

import json
import re

import pytest
from factories import EXPERIMENT, make_record, make_teacher
from project import Project

from kdflow import report
from kdflow.training import record

METHODS = EXPERIMENT.params.methods


@pytest.fixture
def write_report():
    """A function that writes records and the report made from them to `data/` of a folder."""

    def write(folder, shift=0.0):
        data = folder / "data"
        record.write_record(data / "teacher/record.json", make_teacher())
        for i, method in enumerate(METHODS):
            for seed in EXPERIMENT.params.seeds:
                made = make_record(seed, 80.0 + i + seed + shift, method=method)
                record.write_record(data / f"records/{method}/seed{seed}.json", made)
        report.write(EXPERIMENT, data / "teacher/record.json", data / "records", data / "report")
        return data / "report/plots"

    return write


def test_the_report_has_the_means_of_every_method(tmp_path, write_report):
    rows = {file.stem: json.loads(file.read_text()) for file in write_report(tmp_path).iterdir()}
    assert rows["accuracy"][0] == {"epoch": 1, "ce": 71.0, "kd": 72.0, "kd_tlcutmix": 73.0, "kd_tlcutmix_pick": 74.0}
    assert [row["epoch"] for row in rows["accuracy"]] == [1, 3]  # not measured after the second epoch
    assert [row["epoch"] for row in rows["loss"]] == [1, 2, 3]
    assert all(set(row) == {"epoch", *METHODS} for row in rows["loss"])
    assert rows["last_epoch"][1] == {"method": "kd", "top1": 82.0}


@pytest.mark.slow
def test_dvc_plots_show_and_diff_draw_every_method(tmp_path, write_report):
    project = Project(tmp_path)
    write_report(tmp_path)
    project.run("git", "add", "-f", "data/report/plots")
    project.run("git", "commit", "-qm", "plots")
    write_report(tmp_path, shift=1.0)
    for command, revisions in (("show", {"workspace"}), ("diff", {"workspace", "HEAD"})):
        project.run("dvc", "plots", command, "-o", "html")
        page = (tmp_path / "html/index.html").read_text()
        for title in ("test accuracy", "training loss", "accuracy after the last epoch"):
            assert f'"{title}"' in page
        assert set(re.findall(r'"field": "(\w+)"', page)) >= set(METHODS)
        assert set(re.findall(r'"rev": "(\w+)"', page)) == revisions
