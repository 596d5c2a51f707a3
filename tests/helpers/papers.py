"""A small paper in a temporary folder, and records like those that its stages write, without training."""

import json
import shutil
from pathlib import Path

from factories import make_record, make_teacher
from paths import ROOT

from kdflow.paper import Paper, cells, load_paper
from kdflow.training import record

TABLES = """
table1:
  kind: accuracy_table
  caption: Some methods
  dataset: digits
  pairs: [resnet20_to_resnet8, resnet20_to_resnet14]
  rows:
  - {label: Teacher}
  - {label: Student, method: ce}
  - {label: KD, method: kd, paper: {top1: [90.0, null], std: [0.5, null]}}
  - {label: KD twice as long, method: kd, epochs: 80, quoted_from: another paper}
  - {label: Pick, method: kd_tlcutmix_pick}
figure1:
  kind: epochs_figure
  caption: Error against epochs
  dataset: digits
  pairs: [resnet20_to_resnet8]
  methods: [ce, kd]
  base_views: [none, flip]
  epochs: [40, 80]
  paper:
  - {base_view: none, method: kd, epochs: 80, error: 10.0}
figure4:
  kind: pick_ratio_figure
  caption: r
  method: kd_tlcutmix_pick
  curves: [{dataset: digits, pair: resnet20_to_resnet8}]
table6: {kind: cost_table, caption: Costs, dataset: digits, pairs: [resnet20_to_resnet8], paper: {compression: [3.5]}}
"""
PARAMS = """
seeds: [0, 1, 2]
epoch_scale: 1.0
teacher_epoch_scale: 1.0
train_share: 1.0
eval_every:
data_folders: {}
teacher_weights: {}
teacher_logits: online
precision: {}
compute: {device: cpu, threads: 1, max_parallel_runs: null, replay_gb: 1.0, loader_workers: 0, processes_per_run: 1}
"""
KD, PICK, CE = "digits-resnet20-resnet8-kd", "digits-resnet20-resnet8-kd_tlcutmix_pick", "digits-resnet8-ce"


def write_paper(root: Path, tables: str = TABLES, params: str = PARAMS) -> Path:
    """Write recipes, golden files and a paper below `root`."""
    shutil.copytree(ROOT / "recipes", root / "recipes", dirs_exist_ok=True)
    shutil.copytree(ROOT / "tests/golden", root / "tests/golden", dirs_exist_ok=True)
    (root / "paper").mkdir(exist_ok=True)
    (root / "paper/tables.yaml").write_text(tables)
    (root / "paper/params.yaml").write_text(params)
    return root


def make_paper(root: Path, tables: str = TABLES, params: str = PARAMS) -> Paper:
    """Write a paper below `root` and load it."""
    return load_paper(Path("paper"), write_paper(root, tables, params))


def write_cell(paper: Paper, name: str, top1: list[float], ratios: tuple[float, ...] = (1.4, 1.3, 1.2)) -> None:
    """Write a cell's records, one for each accuracy."""
    cell, experiment, records = paper.cells[name], paper.experiment(paper.cells[name]), []
    folder = cells.cell_folder(paper, name)
    for seed, value in zip(experiment.params.seeds, top1, strict=False):
        run = experiment.student_run(cell.method, seed)
        result = make_record(seed, value)
        curve = tuple(
            point.model_copy(update={"pick_ratio": r if "pick" in name else None})
            for point, r in zip(result.curve, ratios, strict=True)
        )
        teacher = teacher_budget(paper, f"{cell.dataset}-{cell.teacher}") if cell.teacher else None
        budget = record.make_budget(run, experiment.dataset, teacher)
        result = result.model_copy(
            update={"settings": run, "settings_sha256": run.sha256, "curve": curve, "budget": budget}
            | ({} if cell.teacher else {"teacher_sha256": None, "agreement": None})
        )
        record.write_record(folder / f"seed{seed}.json", result)
        records.append(result)
    record.write_record(folder / cells.CELL_RECORD, cells.make_cell_record(paper, name, records))


def write_teacher(paper: Paper, name: str = "digits-resnet20", sha256: str = "1" * 64) -> None:
    """Write a teacher's log and record."""
    folder = cells.teacher_folder(paper, name)
    run = paper.teacher_experiment(name).teacher_run()
    log = record.RunLog(**{k: v for k, v in dict(make_record()).items() if k in record.RunLog.model_fields})
    record.write_record(
        folder / "training.json", log.model_copy(update={"settings": run, "settings_sha256": run.sha256})
    )
    result = make_teacher().model_copy(update={"sha256": sha256, "budget": teacher_budget(paper, name)})
    record.write_record(folder / "record.json", result)


def teacher_budget(paper: Paper, name: str) -> record.Budget:
    """Return the budget of a teacher that its stage trains."""
    experiment = paper.teacher_experiment(name)
    return record.make_budget(experiment.teacher_run(), experiment.dataset)


def edit(file: Path, **change: object) -> None:
    """Change keys of a JSON file."""
    content = json.loads(file.read_text())
    content.update(change)
    file.write_text(json.dumps(content))
