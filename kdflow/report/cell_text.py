"""The description of a cell or teacher as text: its settings, inputs, status and record."""

from __future__ import annotations

import json

from kdflow.config import RunSettings
from kdflow.paper.cells import CellStatuses, cell_folder, teacher_folder
from kdflow.paper.item import GOLDEN
from kdflow.paper.paper import Paper
from kdflow.paper.project_stages import is_clone
from kdflow.paper.tables import paper_accuracy
from kdflow.report.methods_page import formula


def describe_cell(paper: Paper, name: str) -> str:
    """Describe a cell or teacher, one property a line: settings, command, inputs, status, the paper's value, record.

    Raises:
        UserError: there is no such cell.
    """
    if name in paper.teachers:
        return _describe_teacher(paper, name)
    cell, statuses = paper.get_cell(name), CellStatuses(paper)
    status = statuses(name)
    statuses.runs(name)  # refuses edited records
    params = paper.experiment(cell).params
    run = paper.experiment(cell).student_run(cell.method, params.seeds[0])
    inputs = [f"{paper.data}/{cell.dataset}.h5", *_golden(paper, cell.method)]
    if cell.teacher:
        inputs.insert(1, f"{paper.data}/teachers/{cell.dataset}-{cell.teacher}/")
    lines = [
        name,
        f"  dataset   {cell.dataset}, {run.train_images:,} training images",
        f"  teacher   {cell.teacher or 'none'}",
        f"  student   {cell.student}",
        f"  method    {cell.method}: {formula(run.method)}",
        f"  epochs    {run.training.epochs} of {cell.epochs}",
        f"  seeds     {', '.join(map(str, params.seeds))} (a full run has {cell.seeds})",
        f"  inputs    {', '.join(inputs)}",
        f"  command   {paper.repro_command(name)}",
        f"  printed   in {', '.join(paper.printed_in[name])}",
        *_paper_lines(paper, name),
    ]
    reason = f", {status.reason}" if status.reason else ""
    lines.append(f"  status    {status.status}, {status.seeds_done} of {status.seeds_total} seeds{reason}")
    if status.record is not None:
        record = status.record
        lines.append(f"  measured  top1 {record.top1}, top5 {record.top5}, n = {record.top1.n}")
        lines += _budget_lines(record.budget_note)
        lines.append(f"  record    {cell_folder(paper, name)}/")
    return "\n".join([*lines, "settings of the first seed:", _settings(run)])


def _golden(paper: Paper, method: str) -> list[str]:
    return [f"{GOLDEN}/{method}.json"] if is_clone(paper.root) else []


def _budget_lines(note: str) -> list[str]:
    return [f"  budget    not a full run: {note}"] if note else []


def _paper_lines(paper: Paper, name: str) -> list[str]:
    """Return a line for each value that the paper prints for a cell."""
    lines = []
    for key in paper.printed_in[name]:
        for printed in paper.items[key].paper_values(paper.recipes):
            if paper.cell_name(printed.cell) == name:
                std = f" ({printed.std:.2f})" if printed.std is not None else ""
                source = f", quoted from {printed.quoted_from}" if printed.quoted_from else ""
                value = f"{printed.metric} {printed.value:.2f}{std}{source}"
                lines.append(f"  paper     {key}, {printed.row}: {value}")
    return lines


def _describe_teacher(paper: Paper, name: str) -> str:
    experiment, teacher = paper.teacher_experiment(name), CellStatuses(paper).teacher(name)
    run, file = experiment.teacher_run(), experiment.params.teacher_weights.file
    pairs = [pair for pair in paper.recipes.pairs.values() if pair.teacher == run.architecture]
    printed = {paper_accuracy(pair, run.dataset, "teacher", "top1") for pair in pairs if run.dataset in pair.datasets}
    full = paper.full_epochs(run.dataset)
    source = f"weights from {file}" if file else f"{run.training.epochs} of {full} epochs"
    status = "missing or stale" if teacher is None else f"done, top1 {teacher.accuracy.top1:.2f}"
    lines = [
        name,
        f"  teacher   {run.architecture} on {run.dataset}, {source}, {run.train_images:,} training images",
        f"  inputs    {paper.data}/{', '.join((f'{run.dataset}.h5', *_golden(paper, 'ce')))}",
        f"  command   {paper.repro_command(name)}",
        *(f"  paper     top1 {value:.2f}" for value in sorted(value for value in printed if value is not None)),
        f"  status    {status}",
        *_budget_lines("" if teacher is None else teacher.budget_note),
        f"  record    {teacher_folder(paper, name)}/",
    ]
    return "\n".join([*lines, "settings:", _settings(run)])


def _settings(run: RunSettings) -> str:
    return json.dumps(run.model_dump(mode="json"), indent=1)
