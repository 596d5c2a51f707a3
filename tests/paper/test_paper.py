"""The paper as targets: which cells there are, what makes two of them one, what DVC is told."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from papers import CE, KD, PARAMS, PICK, TABLES, folder_of, paper_of
from paths import ROOT
from ruamel.yaml import YAML

from kdflow.core.errors import UserError
from kdflow.paper.dvc_yaml import cells_json, check_generated, dvc_yaml, write_generated
from kdflow.paper.paper import load_paper
from kdflow.paper.tables import (
    AccuracyTable,
    CostTable,
    DisagreementFigure,
    EpochsFigure,
    PickRatioFigure,
    paper_accuracy,
)
from kdflow.training.schedule import learning_rate

PAPER = load_paper(root=ROOT)
REFERENCE = Path(os.environ.get("KDFLOW_PAPER_TABLES", ROOT.parent / "shared/paper/tables.json"))
METHODS = {
    "kd": "kd", "kd+tlmixup": "kd_tlmixup", "kd+tlcutmix": "kd_tlcutmix", "kd+cutmix": "kd_cutmix",
    "kd+cutout": "kd_cutout",
    "kd+tlcutmix+pick_kl": "kd_tlcutmix_pick", "kd+tlcutmix+pick_teacher_entropy": "kd_tlcutmix_pick_teacher_entropy",
    "kd+tlcutmix+pick_student_entropy": "kd_tlcutmix_pick_student_entropy", "crd": "crd_kd",
    "crd+tlcutmix+pick_kl": "crd_kd_tlcutmix_pick", "ce": "ce",
} | {n: f"{n}_kd" for n in ("at", "cc", "sp", "pkt", "vid")} | {
    f"{n}+tlcutmix": f"{n}_kd_tlcutmix" for n in ("at", "cc", "sp", "pkt", "vid")
}  # fmt: skip


def test_the_paper_has_all_its_cells():
    tables = {name for name, part in PAPER.parts.items() if isinstance(part, AccuracyTable)}
    assert tables == {"table1", "table2", "table3", "table4", "table5", "table9", "table10"}
    printed = [name for name, users in PAPER.users.items() if tables & set(users)]
    baselines = [name for name in printed if PAPER.cells[name].method == "ce" and "imagenet-" not in name[:9]]
    assert len(printed) - len(baselines) == 212, "trained students that its tables print"
    assert len(baselines) == 12, "students without a teacher on CIFAR-100 and Tiny ImageNet"
    assert len(PAPER.cells) == 395 and len(PAPER.teachers) == 12
    assert Counter(type(part) for part in PAPER.parts.values()) == {
        AccuracyTable: 7, CostTable: 3, EpochsFigure: 2, PickRatioFigure: 1, DisagreementFigure: 1,
    }  # fmt: skip


@pytest.mark.skipif(not REFERENCE.exists(), reason=f"{REFERENCE} is not here: KDFLOW_PAPER_TABLES says where it is")
def test_every_figure_of_the_paper_s_tables_is_there():
    reference = json.loads(REFERENCE.read_text())
    count, seen = 0, set()
    for name, table in reference.items():
        if "cells" not in table or name in ("table6", "table7", "table8"):
            continue
        part = PAPER.parts[name]
        assert isinstance(part, AccuracyTable) and part.seeds == table["seeds"]
        rows = {row.label: row for row in part.rows}
        for cell in table["cells"]:
            if cell["method"] is None:
                continue  # Table 5's teacher
            pair = f"{cell['teacher']}_to_{cell['student']}"
            found = PAPER.cell(part.dataset, pair, METHODS[cell["method"]], cell["epochs"])
            seen.add(found)
            if cell["method"] == "ce":
                continue
            row, i = rows[cell["row"]], part.pairs.index(pair)
            assert row.method == METHODS[cell["method"]] and row.paper is not None
            assert (row.epochs or PAPER.full(part.dataset)) == cell["epochs"]
            assert row.paper.top1[i] == cell["top1"] and row.quoted == cell.get("cited_from")
            assert (row.paper.std[i] if row.paper.std else None) == cell.get("std")
            assert (row.paper.top5[i] if row.paper.top5 else None) == cell.get("top5")
            count += 1
        for base in table.get("baselines", []):
            pair = PAPER.recipes.pairs[f"{base['teacher']}_to_{base['student']}"]
            for role in ("teacher", "student"):
                assert paper_accuracy(pair, part.dataset, role, "top1") == base[f"{role}_top1"]
    assert len(seen) == 212 and count == 12 + 12 + 56 + 56 + 84 + 14 + 8
    for name in ("table6", "table7", "table8"):
        part = PAPER.parts[name]
        assert isinstance(part, CostTable)
        for i, cell in enumerate(reference[name]["cells"]):
            assert part.pairs[i] == f"{cell['teacher']}_to_{cell['student']}"
            assert part.paper["compression"][i] == cell["compression"]
            assert part.paper["student_flops"][i] == cell["student_flops_1e9"]


def test_what_is_checked_in_is_what_the_tables_say():
    for folder in ("paper", "paper/miniature"):
        check_generated(load_paper(Path(folder), ROOT))


def test_the_miniature_has_every_row_and_every_figure():
    small = load_paper(Path("paper/miniature"), ROOT)
    assert small.parts.keys() == PAPER.parts.keys()
    for name, part in PAPER.parts.items():
        other = small.parts[name]
        assert other.kind == part.kind
        if isinstance(part, AccuracyTable):
            assert [row.label for row in other.rows] == [row.label for row in part.rows]
        if isinstance(part, EpochsFigure):
            assert len(other.epochs) == 3 and other.methods == part.methods and other.base_views == part.base_views
    assert 55 <= len(small.cells) <= 65


def test_names_say_what_is_not_the_dataset_s_own(tmp_path):
    paper = paper_of(tmp_path)
    assert list(paper.cells)[:4] == [CE, "digits-resnet14-ce", KD, "digits-resnet20-resnet14-kd"]
    assert f"{KD}-e80" in paper.cells and f"{KD}-e80-flip" in paper.cells
    assert paper.users[f"{KD}-e80"] == ["table1"], "the demo's own base view is no flip: its figure has other cells"
    assert paper.users[PICK] == ["table1", "figure4"]
    assert paper.cells[CE].teacher is None and list(paper.teachers) == ["digits-resnet20"]


def test_cells_of_the_same_settings_are_one(tmp_path):
    recipe = "kd: {ce: 0.1, kl: 0.9, tau: 4.0}"
    folder_of(tmp_path, TABLES.replace("label: Pick, method: kd_tlcutmix_pick", "label: Pick, method: kd_again"))
    recipes = tmp_path / "recipes/methods.yaml"
    recipes.write_text(recipes.read_text() + f"\n{recipe.replace('kd:', 'kd_again:')}\n")
    paper = load_paper(Path("paper"), tmp_path)
    assert "digits-resnet20-resnet8-kd_again" not in paper.cells
    assert paper.cell("digits", "resnet20_to_resnet8", "kd_again") == KD


def test_epochs_that_are_the_dataset_s_own_are_no_other_cell(tmp_path):
    paper = paper_of(tmp_path, TABLES.replace("epochs: 80, quoted", "epochs: 40, quoted"))
    assert paper.cell("digits", "resnet20_to_resnet8", "kd", 40) == KD
    assert f"{KD}-e80" not in paper.cells


def test_a_new_row_adds_its_cells_and_changes_no_other(tmp_path):
    before = json.loads(cells_json(paper_of(tmp_path)))
    row = "  - {label: CutMix, method: kd_cutmix}\nfigure1:"
    after = json.loads(cells_json(paper_of(tmp_path, TABLES.replace("figure1:", row))))
    added = {f"digits-resnet20-{student}-kd_cutmix" for student in ("resnet8", "resnet14")}
    assert after["cells"].keys() - before["cells"].keys() == added
    assert {name: after["cells"][name] for name in before["cells"]} == before["cells"]


def test_a_budget_scales_epochs_and_says_so(tmp_path):
    params = PARAMS.replace("epoch_scale: 1.0", "epoch_scale: 0.1").replace("train_share: 1.0", "train_share: 0.5")
    paper = paper_of(tmp_path, params=params.replace("[0, 1, 2]", "[5, 7]"))
    experiment = paper.experiment(paper.cells[f"{KD}-e80"])
    run = experiment.student_run("kd", 5)
    assert (run.training.epochs, run.train_images, experiment.params.seeds) == (8, 150, (5, 7))
    assert experiment.dataset.training is not None and experiment.dataset.training.epochs == 80
    assert paper.teacher_experiment("digits-resnet20").teacher_run().training.epochs == 4


def test_a_full_budget_is_the_recipe(tmp_path):
    run = PAPER.experiment(PAPER.cells["cifar100-resnet56-resnet20-kd-e960"]).student_run("kd", 0)
    assert run.training.epochs == 960 and run.train_images == 50_000
    rates = [learning_rate(run.training, epoch, 1) for epoch in (599, 600, 720, 840)]
    assert [round(rate, 6) for rate in rates] == [0.05, 0.005, 0.0005, 5e-5]


def test_a_table_of_one_run_takes_the_first_seed():
    assert PAPER.experiment(PAPER.cells["imagenet-resnet34-resnet18-kd"]).params.seeds == (0,)
    assert PAPER.experiment(PAPER.cells["cifar100-resnet56-resnet20-kd"]).params.seeds == (0, 1, 2)


def test_stages_name_all_that_they_need(tmp_path):
    stages = YAML(typ="safe").load(dvc_yaml(paper_of(tmp_path)))["stages"]
    assert list(stages) == ["prepare", "teacher", "cell", "table1", "figure1", "figure4", "table6", "report"]
    deps = stages["table1"]["deps"]
    assert f"data/paper/cells/{KD}-e80" in deps and f"data/paper/cells/{KD}-flip" not in deps
    assert "data/paper/teachers/digits-resnet20" in deps
    assert stages["cell"]["do"]["wdir"] == ".."
    assert not [dep for dep in stages["cell"]["do"]["deps"] if dep.startswith("kdflow")], "stale by meaning alone"
    assert stages["report"]["deps"][1:] == [
        "data/paper/table1",
        "data/paper/figure1",
        "data/paper/figure4",
        "data/paper/table6",
    ]


def test_a_file_that_is_out_of_date_is_named(tmp_path):
    paper = paper_of(tmp_path)
    with pytest.raises(UserError, match=r"cells.json: not what `kdflow plan` makes .*\n.*dvc.yaml: not what"):
        check_generated(paper)
    write_generated(paper)
    check_generated(paper)
    (tmp_path / "tests/golden/kd.json").unlink()
    with pytest.raises(UserError, match=r"golden/kd.json: no such golden file"):
        check_generated(paper)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("kind: costs", "kind: cost", "table6.kind: unknown name 'cost'; did you mean 'costs'?"),
        ("method: kd, paper", "method: kdd, paper", "table1: method: unknown name 'kdd'; did you mean 'kd'?"),
        ("pairs: [resnet20_to_resnet8]\n", "pairs: [resnet20_to_resnet9]\n", "figure1: pair: unknown name"),
        ("  dataset: digits\n", "  dataset: digit\n", "table1: dataset: unknown name 'digit'"),
        ("label: KD, method", "label: KD, methd", "table1.rows.2.methd: unknown key; did you mean 'method'?"),
        ("top1: [90.0, null]", "top1: [90.0]", "table1: rows: KD: paper.top1: 1 of 2 pairs"),
        ("dataset: digits", "dataset: cifar100", "pair: resnet20_to_resnet8 is not for cifar100"),
        ("epochs: [40, 80]", "epochs: [40, 40]", "figure1.epochs: each entry may stand there once, got [40, 40]"),
        ("label: Pick", "label: KD", "table1: each entry may stand there once"),
        ("epochs: 80, error", "epochs: -80, error", "figure1.paper.0.epochs: input should be greater than 0, got -80"),
    ],
)
def test_bad_tables_are_refused_in_a_line(tmp_path, old, new, says):
    with pytest.raises(UserError) as caught:
        paper_of(tmp_path, TABLES.replace(old, new))
    assert any(
        line.startswith(f"{tmp_path}/paper/tables.yaml: ") and says in line for line in str(caught.value).splitlines()
    )


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("epoch_scale: 1.0", "epoch_scale: 0", "epoch_scale: input should be greater than 0, got 0"),
        ("seeds: [0, 1, 2]", "seeds: []", "seeds: "),
        (
            "teacher_logits: online",
            "teacher_logits: views",
            "teacher_logits: input should be 'online', 'replay' or 'replay-float32', got 'views'",
        ),
        (
            "teacher_weights: {}",
            "teacher_weights: {digits-resnet56: null}",
            "teacher_weights: unknown name 'digits-resnet56'",
        ),
        (
            "data_folders: {}",
            "data_folders: {digit: null}",
            "data_folders: unknown name 'digit'; did you mean 'digits'?",
        ),
        ("train_share: 1.0", "train_share: 1.5", "train_share: input should be less than or equal to 1, got 1.5"),
    ],
)
def test_bad_budgets_are_refused_in_a_line(tmp_path, old, new, says):
    with pytest.raises(UserError) as caught:
        paper_of(tmp_path, params=PARAMS.replace(old, new, 1))
    assert str(caught.value).startswith(f"{tmp_path}/paper/params.yaml: {says}")
