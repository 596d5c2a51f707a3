"""What became of cells, and the tables, figures and page made of them."""

import csv
import json
import re
import statistics
import xml.etree.ElementTree as ET
from io import StringIO
from pathlib import Path

import pytest
from papers import CE, KD, PARAMS, PICK, edit, fill, fill_teacher, folder_of, paper_of

from kdflow.core.errors import UserError
from kdflow.paper import cells
from kdflow.paper.cells import CellStatuses
from kdflow.paper.paper import load_paper
from kdflow.paper.tables import AccuracyTable, EpochsFigure, PickRatioFigure
from kdflow.report import cost_table, paper_figure, paper_page, paper_part, paper_table
from kdflow.report.cell_text import describe_cell
from kdflow.report.paper_grid import grid

LONG = f"{KD}-e80"


@pytest.fixture
def paper(tmp_path):
    found = paper_of(tmp_path)
    fill_teacher(found)
    fill(found, CE, [80.0, 81.0, 82.5])
    fill(found, KD, [90.0, 91.0, 92.0])
    fill(found, LONG, [91.0, 93.0])
    fill(found, PICK, [95.0, 94.0, 96.0])
    return found


def table_of(paper):
    part = paper.parts["table1"]
    assert isinstance(part, AccuracyTable)
    return grid(paper, CellStatuses(paper), "table1", part)


def entry(paper, row, i=0):
    return table_of(paper).rows[row][i]


def states_of(paper):
    states = CellStatuses(paper)
    return {name: (states(name).status, states(name).n) for name in (CE, KD, LONG, PICK, "digits-resnet14-ce")}


def test_states(paper):
    assert states_of(paper) == {
        CE: ("done", 3), KD: ("done", 3), LONG: ("partial", 2), PICK: ("done", 3), "digits-resnet14-ce": ("missing", 0),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "stale", "why"),
    [
        (lambda p: edit_text(p, "tests/golden/kd.json", "{", "{ "), {KD, LONG}, "of other golden numbers"),
        (lambda p: fill_teacher(p, sha256="9" * 64), {KD, LONG, PICK}, "of other teacher"),
        (lambda p: edit_text(p, "recipes/methods.yaml", "kd: {ce: 0.1", "kd: {ce: 0.2"), {KD, LONG},
         "of other settings"),
        (lambda p: edit_text(p, "paper/params.yaml", "epoch_scale: 1.0", "epoch_scale: 0.5"), {CE, KD, LONG, PICK},
         "of other settings"),
        (lambda p: edit_text(p, "paper/params.yaml", "[0, 1, 2]", "[7]"), {CE, KD, LONG, PICK}, "of other seeds"),
        (lambda p: edit_text(p, "paper/params.yaml", "device: cpu", "device: auto"), set(), ""),
    ],
)  # fmt: skip
def test_what_makes_a_cell_stale(paper, change, stale, why):
    change(paper)
    found = CellStatuses(load_paper(paper.folder, paper.root))
    assert {name for name in (CE, KD, LONG, PICK) if found(name).status == "stale"} == stale
    assert all(found(name).why == why and found.runs(name) == [] for name in stale)


def edit_text(paper, file, old, new):
    text = (paper.root / file).read_text()
    assert old in text
    (paper.root / file).write_text(text.replace(old, new, 1))


def test_fewer_seeds_are_done_and_more_are_partial(paper):
    for seeds, status in (("[0, 1]", ("done", 2)), ("[0, 1, 2, 3]", ("done", 3))):
        edit_text(paper, "paper/params.yaml", "[0, 1, 2]", seeds)
        assert states_of(load_paper(paper.folder, paper.root))[KD] == status, "a table has three"
        edit_text(paper, "paper/params.yaml", seeds, "[0, 1, 2]")


def test_an_edited_record_is_not_printed(paper):
    file = cells.cell_folder(paper, KD) / "seed1.json"
    content = json.loads(file.read_text())
    edit(file, final=content["final"] | {"top1": 99.0})
    with pytest.raises(UserError, match=rf"{re.escape(str(file))}: not the record that was made; `dvc checkout`"):
        CellStatuses(paper).runs(KD)


def test_a_row_s_figures(paper):
    kd, pick, long = (entry(paper, row) for row in ("KD", "Pick", "KD twice as long"))
    assert (kd.ours.mean, kd.ours.n, kd.gain, kd.difference) == (91.0, 3, None, 1.0)
    gains = [95.0 - 90.0, 94.0 - 91.0, 96.0 - 92.0]
    assert (pick.gain.mean, pick.gain.std) == (statistics.fmean(gains), pytest.approx(statistics.stdev(gains)))
    assert (long.ours.mean, long.ours.n, long.gain.mean, long.status) == (92.0, 2, 1.5, "partial")
    assert entry(paper, "Teacher").ours.mean == 95.5 and entry(paper, "Student").gain.mean == pytest.approx(
        -9.8333, abs=1e-3
    )
    assert [entry(paper, row, 1).status for row in ("KD", "Pick")] == ["missing", "missing"]


def test_best_and_second_are_marked_and_the_teacher_is_not(paper):
    found = table_of(paper)
    assert {label: found.rank(row[0]) for label, row in found.rows.items()} == {
        "Teacher": None, "Student": None, "KD": None, "KD twice as long": 2, "Pick": 1,
    }  # fmt: skip
    assert all(found.rank(row[1]) is None for row in found.rows.values())


def test_forms(paper):
    found = table_of(paper)
    forms = paper_table.all_formats(found)
    assert "| Pick | **95.00 (1.00)** | missing |" in forms["md"]
    assert "| KD twice as long | <u>92.00 (1.41) n=2</u> | missing |" in forms["md"]
    assert "| KD | resnet20 -> resnet8 | top1 | 91.00 (1.00) | 3 of 3 |  | 90.00 (0.50), +1.00 |" in forms["md"]
    assert (
        "4 of 10 figures are missing or stale." in forms["md"]
        and "quoted by the paper from: another paper" in forms["md"]
    )
    assert r"Pick & \textbf{95.00 (1.00)} & -- \\" in forms["tex"]
    assert r"\underline{92.00 (1.41) n=2}" in forms["tex"] and r"resnet20 $\to$ resnet8" in forms["tex"]
    assert forms["tex"].count("{") == forms["tex"].count("}")
    rows = list(csv.DictReader(StringIO(forms["csv"])))
    assert len(rows) == 10 and rows[4]["mean"] == "91.0" and rows[4]["difference"] == "1.0" and rows[5]["mean"] == ""
    assert json.loads(forms["json"])["figures"][4]["name"] == KD
    assert json.loads(paper_table.metrics(found))[KD] == {"mean": 91.0, "std": 1.0, "n": 3}


def test_a_reduced_budget_is_stamped_everywhere(tmp_path):
    found = paper_of(tmp_path, params=PARAMS.replace("epoch_scale: 1.0", "epoch_scale: 0.1"))
    fill_teacher(found)
    fill(found, KD, [90.0, 91.0, 92.0])
    budget_note = "demo dataset, 4 of 40 epochs"
    assert f"Not a full run: {budget_note}" in paper_table.markdown(table_of(found))
    assert f"Not a full run: {budget_note}" in paper_table.latex(table_of(found))
    assert f",{budget_note!r},".replace("'", '"') in paper_table.as_csv(table_of(found))
    assert budget_note in paper_page.render(found) and budget_note in describe_cell(found, KD)
    fill(found, f"{KD}-none", [90.0])
    paper_part.write(found, "figure1", tmp_path / "out")
    assert budget_note in (tmp_path / "out/figure.svg").read_text()


def test_points_of_the_errors(paper):
    fill(paper, f"{KD}-none", [80.0, 82.0])
    part = paper.parts["figure1"]
    assert isinstance(part, EpochsFigure)
    (point,) = paper_figure.points(paper, CellStatuses(paper), part)
    assert (point.panel, point.line, point.x, point.mean, point.n) == ("no augmentation", "kd", 40, 19.0, 2)
    assert paper_figure.as_json([point])[0]["epochs"] == 40


def test_points_of_r(paper):
    part = paper.parts["figure4"]
    assert isinstance(part, PickRatioFigure)
    points = paper_figure.points(paper, CellStatuses(paper), part)
    assert [(round(point.x, 3), round(point.mean, 9), point.n) for point in points] == [
        (0.333, 1.4, 3),
        (0.667, 1.3, 3),
        (1.0, 1.2, 3),
    ]


def test_figures_of_the_same_records_are_the_same_bytes(paper, tmp_path):
    for name in ("figure1", "figure4"):
        for folder in ("a", "b"):
            paper_part.write(paper, name, tmp_path / folder / name)
        for suffix in ("svg", "png"):
            a, b = ((tmp_path / folder / name / f"figure.{suffix}").read_bytes() for folder in ("a", "b"))
            assert a == b
        text = "".join(ET.parse(tmp_path / "a" / name / "figure.svg").getroot().itertext())
        assert ("missing" in text) == (name == "figure1"), "no cell of it is there"


def test_costs_stand_beside_the_paper_s(paper):
    part = paper.parts["table6"]
    rows = {row[1]: row for row in cost_table.rows(paper, part)}
    assert rows["compression"][3] == 3.5 and rows["teacher_params"][3] is None
    assert rows["compression"][2] == pytest.approx(rows["teacher_params"][2] / rows["student_params"][2])
    assert "paper 3.5000" in cost_table.all_formats("table6", part, list(rows.values()))["md"]


def test_the_page_holds_every_cell_with_record_and_command(paper):
    text = paper_page.render(paper)
    for name in (*paper.cells, *paper.teachers):
        assert f'id="cell-{name}"' in text
        kind = "cell" if name in paper.cells else "teacher"
        assert f"dvc repro paper/dvc.yaml:{kind}@{name}</code>" in text
    assert f'href="cells/{KD}/seed2.json"' in text and f'href="cells/{LONG}/seed2.json"' not in text
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', text), "no network"
    assert text.count("<table") == text.count("</table>") == 3
    targets = set(re.findall(r'href="#([^"]+)"', text))
    assert targets <= set(re.findall(r'id="([^"]+)"', text))


def test_a_caption_cannot_break_the_page(tmp_path):
    folder_of(tmp_path)
    edit_root = tmp_path / "paper/tables.yaml"
    edit_root.write_text(edit_root.read_text().replace("caption: Some methods", "caption: <script>x</script> & co"))
    text = paper_page.render(load_paper(Path("paper"), tmp_path))
    assert "<script>" not in text and "&lt;script&gt;x&lt;/script&gt; &amp; co" in text


def test_a_cell_in_words(paper):
    text = describe_cell(paper, KD)
    for line in ("command   dvc repro paper/dvc.yaml:cell@" + KD, "paper     table1, KD: top1 90.00 (0.50)",
                 "state     done, 3 of 3 seeds", "ours      top1 91.00 (1.00)", "epochs    40 of 40"):  # fmt: skip
        assert line in text
    with pytest.raises(UserError, match="cell: unknown name 'digits-resnet20-resnet8-kdd'; did you mean"):
        describe_cell(paper, f"{KD}d")
