"""The paper's cells, their names and settings, and the DVC stages that are generated from them."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest
from papers import CE, KD, PARAMS, PICK, TABLES, make_paper, write_paper
from paths import ROOT
from ruamel.yaml import YAML

from kdflow.core.errors import UserError
from kdflow.paper import load_paper
from kdflow.paper.dvc_yaml import cells_json, check_generated, dvc_yaml, write_generated
from kdflow.paper.figures import DisagreementFigure, EpochsFigure, PickRatioFigure
from kdflow.paper.item import CellSpec
from kdflow.paper.tables import AccuracyTable, CostTable, paper_accuracy
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
    tables = {name for name, item in PAPER.items.items() if isinstance(item, AccuracyTable)}
    assert tables == {"table1", "table2", "table3", "table4", "table5", "table9", "table10"}
    printed = [name for name, keys in PAPER.printed_in.items() if tables & set(keys)]
    baselines = [name for name in printed if PAPER.cells[name].method == "ce" and "imagenet-" not in name[:9]]
    assert len(printed) - len(baselines) == 212, "trained students that its tables print"
    assert len(baselines) == 12, "students without a teacher on CIFAR-100 and Tiny ImageNet"
    assert len(PAPER.cells) == 395 and len(PAPER.teachers) == 12
    assert Counter(type(item) for item in PAPER.items.values()) == {
        AccuracyTable: 7, CostTable: 3, EpochsFigure: 2, PickRatioFigure: 1, DisagreementFigure: 1,
    }  # fmt: skip


@pytest.mark.skipif(not REFERENCE.exists(), reason=f"no {REFERENCE}; KDFLOW_PAPER_TABLES may name another file")
def test_every_value_of_the_paper_s_tables_is_in_tables_yaml():
    reference = json.loads(REFERENCE.read_text())
    count, seen = 0, set()
    for name, table in reference.items():
        if "cells" not in table or name in ("table6", "table7", "table8"):
            continue
        item = PAPER.items[name]
        assert isinstance(item, AccuracyTable) and item.seeds == table["seeds"]
        rows = {row.label: row for row in item.rows}
        for cell in table["cells"]:
            if cell["method"] is None:
                continue  # Table 5's teacher
            pair = f"{cell['teacher']}_to_{cell['student']}"
            method = "crd_kd_replacement" if (name, cell["method"]) == ("table5", "crd") else METHODS[cell["method"]]
            spec = CellSpec(item.dataset, pair, method, cell["epochs"])
            seen.add(PAPER.cell_name(spec))
            if cell["method"] == "ce":
                continue
            row, i = rows[cell["row"]], item.pairs.index(pair)
            assert row.method == method and row.paper is not None
            assert (row.epochs or PAPER.full_epochs(item.dataset)) == cell["epochs"]
            assert row.paper.top1[i] == cell["top1"] and cell.get("cited_from") in (None, row.quoted_from)
            assert (row.paper.std[i] if row.paper.std else None) == cell.get("std")
            assert (row.paper.top5[i] if row.paper.top5 else None) == cell.get("top5")
            count += 1
        for base in table.get("baselines", []):
            pair = PAPER.recipes.pairs[f"{base['teacher']}_to_{base['student']}"]
            for role in ("teacher", "student"):
                assert paper_accuracy(pair, item.dataset, role, "top1") == base[f"{role}_top1"]
    assert len(seen) == 212 and count == 12 + 12 + 56 + 56 + 84 + 14 + 8
    for name in ("table6", "table7", "table8"):
        item = PAPER.items[name]
        assert isinstance(item, CostTable)
        for i, cell in enumerate(reference[name]["cells"]):
            assert item.pairs[i] == f"{cell['teacher']}_to_{cell['student']}"
            assert item.paper["compression"][i] == cell["compression"]
            assert item.paper["student_flops"][i] == cell["student_flops_1e9"]


def test_rows_of_values_that_another_paper_prints_are_quoted():
    tables = {name: item for name, item in PAPER.items.items() if isinstance(item, AccuracyTable)}
    quoted = {name: {row.label for row in item.rows if row.quoted_from} for name, item in tables.items()}
    baselines = {"Teacher", "Student"}
    assert quoted == {
        "table1": baselines | {"KD (default DA)"},
        "table2": baselines,
        "table3": baselines | {"KD", "CRD"},
        "table4": set(),
        "table5": baselines | {"KD", "SP", "AT", "CRD"},
        "table9": baselines | {"KD", "AT", "CC", "SP", "PKT", "VID"},
        "table10": baselines | {"KD"},
    }


def test_the_generated_files_are_up_to_date():
    for folder in ("paper", "paper/miniature", "paper/micro", "evidence", "zoo"):
        check_generated(load_paper(Path(folder), ROOT))


def test_the_miniature_has_every_row_and_every_figure():
    small = load_paper(Path("paper/miniature"), ROOT)
    assert small.items.keys() == PAPER.items.keys()
    for name, item in PAPER.items.items():
        other = small.items[name]
        assert other.kind == item.kind
        if isinstance(item, AccuracyTable):
            assert [row.label for row in other.rows] == [row.label for row in item.rows]
        if isinstance(item, EpochsFigure):
            assert len(other.epochs) == 3 and other.methods == item.methods and other.base_views == item.base_views
    assert 55 <= len(small.cells) <= 65


def test_a_name_has_epochs_and_base_view_that_are_not_the_dataset_s(tmp_path):
    paper = make_paper(tmp_path)
    assert list(paper.cells)[:4] == [CE, "digits-resnet14-ce", KD, "digits-resnet20-resnet14-kd"]
    assert f"{KD}-e80" in paper.cells and f"{KD}-e80-flip" in paper.cells
    assert paper.printed_in[f"{KD}-e80"] == ["table1"], "the demo's base view has no flip: the figure has other cells"
    assert paper.printed_in[PICK] == ["table1", "figure4"]
    assert paper.cells[CE].teacher is None and list(paper.teachers) == ["digits-resnet20"]


def test_cells_of_the_same_settings_are_one(tmp_path):
    recipe = "kd: {ce: 0.1, kl: 0.9, tau: 4.0}"
    write_paper(tmp_path, TABLES.replace("label: Pick, method: kd_tlcutmix_pick", "label: Pick, method: kd_again"))
    recipes = tmp_path / "recipes/methods.yaml"
    recipes.write_text(recipes.read_text() + f"\n{recipe.replace('kd:', 'kd_again:')}\n")
    paper = load_paper(Path("paper"), tmp_path)
    assert "digits-resnet20-resnet8-kd_again" not in paper.cells
    assert paper.cell_name(CellSpec("digits", "resnet20_to_resnet8", "kd_again")) == KD


def test_the_dataset_s_default_epochs_given_explicitly_are_the_same_cell(tmp_path):
    paper = make_paper(tmp_path, TABLES.replace("epochs: 80, quoted_from", "epochs: 40, quoted_from"))
    assert paper.cell_name(CellSpec("digits", "resnet20_to_resnet8", "kd", 40)) == KD
    assert f"{KD}-e80" not in paper.cells


def test_a_new_row_adds_its_cells_and_changes_no_other(tmp_path):
    before = json.loads(cells_json(make_paper(tmp_path)))
    row = "  - {label: CutMix, method: kd_cutmix}\nfigure1:"
    after = json.loads(cells_json(make_paper(tmp_path, TABLES.replace("figure1:", row))))
    added = {f"digits-resnet20-{student}-kd_cutmix" for student in ("resnet8", "resnet14")}
    assert after["cells"].keys() - before["cells"].keys() == added
    assert {name: after["cells"][name] for name in before["cells"]} == before["cells"]


def test_a_budget_scales_epochs_images_and_seeds(tmp_path):
    params = PARAMS.replace("epoch_scale: 1.0", "epoch_scale: 0.1").replace("train_share: 1.0", "train_share: 0.5")
    params = params.replace("eval_every:", "eval_every: 6")
    paper = make_paper(tmp_path, params=params.replace("[0, 1, 2]", "[5, 7]"))
    experiment = paper.experiment(paper.cells[f"{KD}-e80"])
    run = experiment.student_run("kd", 5)
    assert (run.training.epochs, run.train_images, experiment.params.seeds) == (8, 150, (5, 7))
    assert run.training.eval_every == 6
    assert experiment.dataset.training is not None and experiment.dataset.training.epochs == 80
    assert paper.teacher_experiment("digits-resnet20").teacher_run().training.epochs == 4


def test_a_full_budget_is_the_recipe():
    run = PAPER.experiment(PAPER.cells["cifar100-resnet56-resnet20-kd-e960"]).student_run("kd", 0)
    assert run.training.epochs == 960 and run.train_images == 50_000
    rates = [learning_rate(run.training, epoch, 1) for epoch in (599, 600, 720, 840)]
    assert [round(rate, 6) for rate in rates] == [0.05, 0.005, 0.0005, 5e-5]


def test_a_table_with_one_seed_takes_the_first():
    assert PAPER.experiment(PAPER.cells["imagenet-resnet34-resnet18-kd"]).params.seeds == (0,)
    assert PAPER.experiment(PAPER.cells["cifar100-resnet56-resnet20-kd"]).params.seeds == (0, 1, 2)


def test_stages_list_all_their_inputs(tmp_path):
    stages = YAML(typ="safe").load(dvc_yaml(make_paper(tmp_path)))["stages"]
    assert list(stages) == ["prepare", "teacher", "cell", "table1", "figure1", "figure4", "table6", "report"]
    deps = stages["table1"]["deps"]
    assert f"data/cells/{KD}-e80" in deps and f"data/cells/{KD}-flip" not in deps
    assert "data/teachers/digits-resnet20" in deps
    assert stages["cell"]["do"]["cmd"] == "cd .. && exec python -m stages.paper_cell paper ${key}"
    assert not [dep for dep in stages["cell"]["do"]["deps"] if "kdflow" in dep], "stale by meaning alone"
    assert stages["report"]["deps"] == [
        "data/table1",
        "data/figure1",
        "data/figure4",
        "data/table6",
    ]


def test_a_generated_file_that_is_out_of_date_is_refused(tmp_path):
    paper = make_paper(tmp_path)
    with pytest.raises(
        UserError, match=r"cells.json: out of date with .*; run `kdflow plan` .*\n.*dvc.yaml: out of date"
    ):
        check_generated(paper)
    write_generated(paper)
    check_generated(paper)
    (tmp_path / "tests/golden/kd.json").unlink()
    with pytest.raises(UserError, match=r"golden/kd.json: no such golden file"):
        check_generated(paper)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: cost_table", "kind: costs", "table6.kind: costs was renamed to cost_table"),
        (
            "kind: cost_table",
            "kind: cost_tables",
            "table6.kind: unknown name 'cost_tables'; did you mean 'cost_table'?",
        ),
        ("method: kd, paper", "method: kdd, paper", "table1: method: unknown name 'kdd'; did you mean 'kd'?"),
        ("pairs: [resnet20_to_resnet8]\n", "pairs: [resnet20_to_resnet9]\n", "figure1: pair: unknown name"),
        ("  dataset: digits\n", "  dataset: digit\n", "table1: dataset: unknown name 'digit'"),
        ("label: KD, method", "label: KD, methd", "table1.rows.2.methd: unknown key; did you mean 'method'?"),
        ("top1: [90.0, null]", "top1: [90.0]", "table1: rows: KD: paper.top1: 1 of 2 pairs"),
        ("dataset: digits", "dataset: cifar100", "pair: resnet20_to_resnet8 is not for cifar100"),
        ("epochs: [40, 80]", "epochs: [40, 40]", "figure1.epochs: duplicate entries: 40"),
        ("label: Pick", "label: KD", "table1: duplicate entries: KD"),
        ("epochs: 80, error", "epochs: -80, error", "figure1.paper.0.epochs: input should be greater than 0, got -80"),
    ],
)
def test_bad_tables_are_refused_in_one_line(tmp_path, old, new, message):
    with pytest.raises(UserError) as caught:
        make_paper(tmp_path, TABLES.replace(old, new))
    lines = str(caught.value).splitlines()
    assert any(line.startswith(f"{tmp_path}/paper/tables.yaml: ") and message in line for line in lines)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epoch_scale: 1.0", "epoch_scale: 0", "epoch_scale: input should be greater than 0, got 0"),
        ("seeds: [0, 1, 2]", "seeds: []", "seeds: "),
        (
            "teacher_logits: online",
            "teacher_logits: cached",
            "teacher_logits: input should be 'online', 'views', ",
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
def test_bad_budgets_are_refused_in_one_line(tmp_path, old, new, message):
    with pytest.raises(UserError) as caught:
        make_paper(tmp_path, params=PARAMS.replace(old, new, 1))
    assert str(caught.value).startswith(f"{tmp_path}/paper/params.yaml: {message}")
