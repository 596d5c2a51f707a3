"""A cell in words: what it is, what it is made from, what became of it."""

from __future__ import annotations

import json

from kdflow.config import RunSettings
from kdflow.paper.cells import CellStatuses, cell_folder
from kdflow.paper.paper import Paper
from kdflow.paper.tables import GOLDEN, AccuracyTable, paper_accuracy
from kdflow.report.methods_page import formula
from kdflow.report.paper_grid import command, grid, place


def describe_cell(paper: Paper, name: str) -> str:
    """Settings, command, inputs, state, the paper's figure and the record of a cell or teacher, a line each.

    Raises:
        UserError: there is no such cell.
    """
    if name in paper.teachers:
        return _teacher(paper, name)
    cell, states = paper.cell_named(name), CellStatuses(paper)
    state, experiment = states(name), paper.experiment(cell)
    params, run = experiment.params, experiment.student_run(cell.method, experiment.params.seeds[0])
    inputs = [f"{paper.data}/{cell.dataset}.h5", f"{GOLDEN}/{cell.method}.json"]
    if cell.teacher:
        inputs.insert(1, f"{paper.data}/teachers/{cell.dataset}-{cell.teacher}/")
    lines = [
        name,
        f"  dataset   {cell.dataset}, {run.train_images:,} training images",
        f"  teacher   {cell.teacher or 'none'}",
        f"  student   {cell.student}",
        f"  method    {cell.method}: {formula(run.method)}",
        f"  epochs    {run.training.epochs} of {cell.epochs}",
        f"  seeds     {', '.join(map(str, params.seeds))} ({cell.seeds} in full)",
        f"  inputs    {', '.join(inputs)}",
        f"  command   {command(paper, name)}",
        f"  printed   in {', '.join(paper.users[name])}",
    ]
    for key in paper.users[name]:
        part = paper.parts[key]
        if isinstance(part, AccuracyTable):
            for entry in grid(paper, states, key, part).entries:
                if entry.name == name and entry.paper is not None:
                    std = f" ({entry.paper_std:.2f})" if entry.paper_std is not None else ""
                    source = f", quoted from {entry.quoted}" if entry.quoted else ""
                    lines.append(f"  paper     {key}, {entry.row}: {entry.metric} {entry.paper:.2f}{std}{source}")
    lines.append(f"  state     {state.status}, {state.n} of {state.of} seeds{state.why and ', ' + state.why}")
    if state.record is not None:
        made = state.record
        lines.append(f"  ours      top1 {made.top1}, top5 {made.top5}, n = {made.top1.n}")
        lines += [f"  budget    not a full run: {made.budget_note}"] if made.budget_note else []
        lines.append(f"  record    {cell_folder(paper, name)}/")
    return "\n".join([*lines, "settings of the first seed:", _settings(run)])


def _teacher(paper: Paper, name: str) -> str:
    experiment, found = paper.teacher_experiment(name), CellStatuses(paper).teacher(name)
    run, given = experiment.teacher_run(), experiment.params.teacher_weights.file
    pairs = [pair for pair in paper.recipes.pairs.values() if pair.teacher == run.architecture]
    printed = {paper_accuracy(pair, run.dataset, "teacher", "top1") for pair in pairs if run.dataset in pair.datasets}
    source = f"weights from {given}" if given else f"{run.training.epochs} of {paper.full(run.dataset)} epochs"
    lines = [
        name,
        f"  teacher   {run.architecture} on {run.dataset}, {source}, {run.train_images:,} training images",
        f"  inputs    {paper.data}/{run.dataset}.h5, {GOLDEN}/ce.json",
        f"  command   {command(paper, name)}",
        *(f"  paper     top1 {value:.2f}" for value in sorted(value for value in printed if value is not None)),
        f"  state     {'missing or stale' if found is None else f'done, top1 {found[0].accuracy.top1:.2f}'}",
        f"  record    {place(paper, name)}/",
    ]
    return "\n".join([*lines, "settings:", _settings(run)])


def _settings(run: RunSettings) -> str:
    return json.dumps(run.model_dump(mode="json"), indent=1)
