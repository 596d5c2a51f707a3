"""Disagreement of the teacher with the mixed labels of strong views: Appendix D of the paper."""

from __future__ import annotations

from pathlib import Path

from kdflow.config import Experiment, choices, unknown_name
from kdflow.training import record


def write_disagreement(experiment: Experiment, view: str, dataset: Path, teacher: Path, out: Path) -> None:
    """Count the strong views for which teacher and mixed label disagree; write counts and samples to `out`.

    Raises:
        UserError: there is no such view.
    """
    from kdflow.data import load
    from kdflow.report import disagreement
    from kdflow.training.device import pick_device
    from kdflow.training.run import load_teacher

    if view not in choices("views"):
        raise unknown_name("view", view, choices("views"))
    params = experiment.params
    device = pick_device(params.compute.device)
    run = experiment.student_run("kd", params.seeds[0])
    loaded = load(dataset, run.train_images, device, params.compute.resolved_workers)
    model, _ = load_teacher(teacher / "model.safetensors", run, device)
    teacher_run = experiment.teacher_run()
    if params.teacher_weights.file is not None:  # trained elsewhere, with a budget that is not known
        teacher_run = teacher_run.model_copy(update={"training": experiment.dataset.training})
    budget_note = record.make_budget(teacher_run, experiment.dataset).budget_note
    result, pictures = disagreement.measure(model, loaded, run, view, budget_note)
    disagreement.write(result, pictures, out)
    print(f"{params.teacher} and {view}'s label disagree on {result.percent:.1f} % of {result.views:,} views: {out}/")
