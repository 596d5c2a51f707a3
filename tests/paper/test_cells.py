"""The status of cells, and the tables, figures and page made from them."""

import csv
import json
import re
import statistics
import xml.etree.ElementTree as ET
from io import StringIO
from pathlib import Path

import pytest
from papers import CE, KD, PARAMS, PICK, edit, make_paper, write_cell, write_paper, write_teacher

from kdflow.core.errors import UserError
from kdflow.paper import CellStatuses, cells, load_paper
from kdflow.paper.figures import EpochsFigure, PickRatioFigure
from kdflow.paper.tables import AccuracyTable
from kdflow.report import (
    accuracy_table,
    cost_table,
    epochs_figure,
    paper_figure,
    paper_item,
    paper_page,
    pick_ratio_figure,
)
from kdflow.report.accuracy_grid import make_grid
from kdflow.report.cell_text import describe_cell

LONG = f"{KD}-e80"


@pytest.fixture
def paper(tmp_path):
    paper = make_paper(tmp_path)
    write_teacher(paper)
    write_cell(paper, CE, [80.0, 81.0, 82.5])
    write_cell(paper, KD, [90.0, 91.0, 92.0])
    write_cell(paper, LONG, [91.0, 93.0])
    write_cell(paper, PICK, [95.0, 94.0, 96.0])
    return paper


def grid_of(paper):
    item = paper.items["table1"]
    assert isinstance(item, AccuracyTable)
    return make_grid(paper, CellStatuses(paper), "table1", item)


def entry(paper, row, i=0):
    return grid_of(paper).rows[row][i]


def statuses_of(paper):
    statuses = CellStatuses(paper)
    names = (CE, KD, LONG, PICK, "digits-resnet14-ce")
    return {name: (statuses(name).status, statuses(name).seeds_done) for name in names}


def test_statuses(paper):
    assert statuses_of(paper) == {
        CE: ("done", 3), KD: ("done", 3), LONG: ("partial", 2), PICK: ("done", 3), "digits-resnet14-ce": ("missing", 0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "stale", "reason"),
    [
        (lambda p: edit_text(p, "tests/golden/kd.json", "{", "{ "), {KD, LONG}, "golden numbers changed"),
        (lambda p: write_teacher(p, sha256="9" * 64), {KD, LONG, PICK}, "teacher changed"),
        (lambda p: edit_text(p, "recipes/methods.yaml", "kd: {ce: 0.1", "kd: {ce: 0.2"), {KD, LONG},
         "settings changed"),
        (lambda p: edit_text(p, "paper/params.yaml", "epoch_scale: 1.0", "epoch_scale: 0.5"), {CE, KD, LONG, PICK},
         "settings changed"),
        (lambda p: edit_text(p, "paper/params.yaml", "[0, 1, 2]", "[7]"), {CE, KD, LONG, PICK}, "seeds changed"),
        (lambda p: edit_text(p, "paper/params.yaml", "device: cpu", "device: auto"), set(), ""),
    ],
)  # fmt: skip
def test_a_changed_input_makes_its_cells_stale(paper, change, stale, reason):
    change(paper)
    statuses = CellStatuses(load_paper(paper.folder, paper.root))
    assert {name for name in (CE, KD, LONG, PICK) if statuses(name).status == "stale"} == stale
    assert all(statuses(name).reason == reason and statuses.runs(name) == [] for name in stale)


def edit_text(paper, file, old, new):
    text = (paper.root / file).read_text()
    assert old in text
    (paper.root / file).write_text(text.replace(old, new, 1))


def test_with_fewer_seeds_a_cell_is_done_and_a_table_uses_at_most_its_number_of_seeds(paper):
    for seeds, status in (("[0, 1]", ("done", 2)), ("[0, 1, 2, 3]", ("done", 3))):
        edit_text(paper, "paper/params.yaml", "[0, 1, 2]", seeds)
        assert statuses_of(load_paper(paper.folder, paper.root))[KD] == status, "the table has three seeds"
        edit_text(paper, "paper/params.yaml", seeds, "[0, 1, 2]")


def test_an_edited_record_is_refused(paper):
    file = cells.cell_folder(paper, KD) / "seed1.json"
    content = json.loads(file.read_text())
    edit(file, final=content["final"] | {"top1": 99.0})
    with pytest.raises(UserError, match=rf"{re.escape(str(file))}: changed after it was written; `dvc checkout`"):
        CellStatuses(paper).runs(KD)


def test_values_of_a_row(paper):
    kd, pick, long = (entry(paper, row) for row in ("KD", "Pick", "KD twice as long"))
    assert (kd.measured.mean, kd.measured.n, kd.gain, kd.difference) == (91.0, 3, None, 1.0)
    gains = [95.0 - 90.0, 94.0 - 91.0, 96.0 - 92.0]
    assert (pick.gain.mean, pick.gain.std) == (statistics.fmean(gains), pytest.approx(statistics.stdev(gains)))
    assert (long.measured.mean, long.measured.n, long.gain.mean, long.status) == (92.0, 2, 1.5, "partial")
    assert entry(paper, "Teacher").measured.mean == 95.5
    assert entry(paper, "Student").gain.mean == pytest.approx(-9.8333, abs=1e-3)
    assert [entry(paper, row, 1).status for row in ("KD", "Pick")] == ["missing", "missing"]


def test_best_and_second_best_are_marked_but_never_the_teacher(paper):
    grid = grid_of(paper)
    assert {label: grid.rank(row[0]) for label, row in grid.rows.items()} == {
        "Teacher": None, "Student": None, "KD": None, "KD twice as long": 2, "Pick": 1,
    }  # fmt: skip
    assert all(grid.rank(row[1]) is None for row in grid.rows.values())


def test_formats_of_an_accuracy_table(paper):
    grid = grid_of(paper)
    formats = accuracy_table.all_formats(grid)
    assert "| Pick | **95.00 (1.00)** | missing |" in formats["md"]
    assert "| KD twice as long | <u>92.00 (1.41) n=2</u> | missing |" in formats["md"]
    assert "| KD | resnet20 -> resnet8 | top1 | 91.00 (1.00) | 3 of 3 |  | 90.00 (0.50), +1.00 |" in formats["md"]
    assert "4 of 10 values are missing or stale." in formats["md"]
    assert "quoted by the paper from: another paper" in formats["md"]
    assert r"Pick & \textbf{95.00 (1.00)} & -- \\" in formats["tex"]
    assert r"\underline{92.00 (1.41) n=2}" in formats["tex"] and r"resnet20 $\to$ resnet8" in formats["tex"]
    assert formats["tex"].count("{") == formats["tex"].count("}")
    rows = list(csv.DictReader(StringIO(formats["csv"])))
    assert len(rows) == 10 and rows[4]["mean"] == "91.0" and rows[4]["difference"] == "1.0" and rows[5]["mean"] == ""
    assert json.loads(formats["json"])["values"][4]["cell"] == KD
    assert json.loads(accuracy_table.dvc_metrics(grid))[KD] == {"mean": 91.0, "std": 1.0, "n": 3}


def test_a_reduced_budget_is_noted_everywhere(tmp_path):
    paper = make_paper(tmp_path, params=PARAMS.replace("\nepoch_scale: 1.0", "\nepoch_scale: 0.1"))
    write_teacher(paper)
    write_cell(paper, KD, [90.0, 91.0, 92.0])
    budget_note = "demo dataset, 4 of 40 epochs"
    assert f"Not a full run: {budget_note}" in accuracy_table.markdown(grid_of(paper))
    assert f"Not a full run: {budget_note}" in accuracy_table.latex(grid_of(paper))
    assert f",{budget_note!r},".replace("'", '"') in accuracy_table.as_csv(grid_of(paper))
    assert budget_note in paper_page.render(paper) and budget_note in describe_cell(paper, KD)
    write_cell(paper, f"{KD}-none", [90.0])
    paper_item.write(paper, "figure1", tmp_path / "out")
    assert budget_note in (tmp_path / "out/figure.svg").read_text()


def test_points_of_an_epochs_figure(paper):
    write_cell(paper, f"{KD}-none", [80.0, 82.0])
    item = paper.items["figure1"]
    assert isinstance(item, EpochsFigure)
    (point,) = epochs_figure.points(paper, CellStatuses(paper), item)
    assert (point.panel, point.line, point.x, point.mean, point.n) == ("no augmentation", "kd", 40, 19.0, 2)
    assert paper_figure.dvc_plot(item, [point])[0]["epochs"] == 40


def test_points_of_a_pick_ratio_figure(paper):
    item = paper.items["figure4"]
    assert isinstance(item, PickRatioFigure)
    points = pick_ratio_figure.points(paper, CellStatuses(paper), item)
    assert [(round(point.x, 3), round(point.mean, 9), point.n) for point in points] == [
        (0.333, 1.4, 3),
        (0.667, 1.3, 3),
        (1.0, 1.2, 3),
    ]


def test_figures_of_the_same_records_are_the_same_bytes(paper, tmp_path):
    for name in ("figure1", "figure4"):
        for folder in ("a", "b"):
            paper_item.write(paper, name, tmp_path / folder / name)
        for suffix in ("svg", "png"):
            a, b = ((tmp_path / folder / name / f"figure.{suffix}").read_bytes() for folder in ("a", "b"))
            assert a == b
        text = "".join(ET.parse(tmp_path / "a" / name / "figure.svg").getroot().itertext())
        assert ("missing" in text) == (name == "figure1"), "none of its cells exists"


def test_the_page_shows_the_figure_that_the_stage_writes(paper, tmp_path):
    for name in ("figure1", "figure4"):
        paper_item.write(paper, name, tmp_path / name)
        shown = paper_item.view(paper, CellStatuses(paper), name).svg
        assert shown == (tmp_path / name / "figure.svg").read_bytes()


def test_costs_are_printed_beside_the_paper_s(paper):
    item = paper.items["table6"]
    rows = {row.quantity: row for row in cost_table.rows(paper, item)}
    assert rows["compression"].paper == 3.5 and rows["teacher_params"].paper is None
    ratio = rows["teacher_params"].value / rows["student_params"].value
    assert rows["compression"].value == pytest.approx(ratio)
    assert "paper 3.5000" in cost_table.all_formats("table6", item, list(rows.values()))["md"]


def test_the_page_has_every_cell_with_record_and_command(paper):
    text = paper_page.render(paper)
    for name in (*paper.cells, *paper.teachers):
        assert f'id="cell-{name}"' in text
        kind = "cell" if name in paper.cells else "teacher"
        assert f"dvc --cd paper repro {kind}@{name}</code>" in text
    assert f'href="cells/{KD}/seed2.json"' in text and f'href="cells/{LONG}/seed2.json"' not in text
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', text), "no network"
    assert text.count("<table") == text.count("</table>") == 3
    targets = set(re.findall(r'href="#([^"]+)"', text))
    assert targets <= set(re.findall(r'id="([^"]+)"', text))


def test_a_caption_is_escaped_on_the_page(tmp_path):
    write_paper(tmp_path)
    tables = tmp_path / "paper/tables.yaml"
    tables.write_text(tables.read_text().replace("caption: Some methods", "caption: <script>x</script> & co"))
    text = paper_page.render(load_paper(Path("paper"), tmp_path))
    assert "<script>" not in text and "&lt;script&gt;x&lt;/script&gt; &amp; co" in text


def test_the_description_of_a_cell(paper):
    text = describe_cell(paper, KD)
    for line in ("command   dvc --cd paper repro cell@" + KD, "paper     table1, KD: top1 90.00 (0.50)",
                 "status    done, 3 of 3 seeds", "measured  top1 91.00 (1.00)", "epochs    40 of 40"):  # fmt: skip
        assert line in text
    with pytest.raises(UserError, match="cell: unknown name 'digits-resnet20-resnet8-kdd'; did you mean"):
        describe_cell(paper, f"{KD}d")
