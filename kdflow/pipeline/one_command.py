"""The short way: one distillation from a folder of photos to a student, without params.yaml and DVC.

It builds an experiment in memory and has the pipeline's own functions make it, into the folders that the root
experiment has. Called again with the same folder, it makes only what is not there as it is to be.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from kdflow import config, pipeline
from kdflow.config import (
    Architecture,
    Compute,
    Experiment,
    Model,
    Params,
    Precision,
    Recipes,
    Settings,
    TeacherWeights,
    UserFolder,
)
from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.launch import parallel_runs
from kdflow.report import gain
from kdflow.training import record
from kdflow.training.job import Job
from kdflow.training.record import RunLog, RunRecord, TeacherRecord

if TYPE_CHECKING:
    from kdflow.models.cost import Cost

BASELINE = "ce"  # the method that the others are compared with
LIBRARY_FAMILIES = ("torchvision", "timm")


class DistillOptions(Settings):
    """What one distillation is asked for; `teacher` and `student` are models, `teacher` may be a file of weights."""

    data: UserFolder
    teacher: str
    student: str
    method: str
    out: Path
    epochs: int | None
    teacher_epochs: int | None
    teacher_model: str | None
    seeds: int
    compare: bool
    compute: Compute


def distill(asked: DistillOptions, root: Path) -> gain.Summary:
    """Prepare the data, take or train the teacher, distil, measure; write all of it and a summary to `asked.out`.

    Raises:
        UserError: something in what was asked for is not there or does not go together; nothing is trained then.
    """
    from kdflow.models import cost

    out, experiment = asked.out, _experiment(asked, config.load_recipes(root))
    if out.resolve().is_relative_to(Path(asked.data.folder).expanduser().resolve()):
        raise UserError(f"--out: {out}: is within --data, where it would be taken for a class; name another folder")
    dataset, teacher, scratch = out / "dataset.h5", out / "teacher", out / ".kdflow"
    with files.exclusive_folder(scratch, f"{out}", print):
        prepared = pipeline.prepare(experiment, dataset, scratch / "downloads", out / "dataset.json")
        sha256, named = prepared.sha256, {prepared.name: prepared.dataset}
        experiment = experiment.model_copy(update={"prepared": prepared, "datasets": named})
        pair = (experiment.params.teacher, experiment.params.student)
        costs = [row.cost for row in cost.compare(experiment, prepared.name, pair)]
        _teach(experiment, dataset, sha256, teacher, scratch)
        methods = experiment.params.methods
        students = {method: out / "students" / method for method in methods}
        jobs = [job for method in methods for job in _jobs(experiment, method, dataset, teacher, students, scratch)]
        taught = files.sha256(teacher / "model.safetensors")
        missing = [job for job in jobs if not _is_made(job, sha256, taught)]
        if missing:
            pipeline.train(f"{experiment.params.student}", missing, asked.compute)
        records = {
            method: parallel_runs.in_fresh_process(
                pipeline.evaluate,
                *(experiment, method, dataset, teacher, students[method]),
                *(out / "records" / method, out / "metrics" / f"{method}.json"),
            )
            for method in methods
        }
    summary = _summary(experiment, dataset, teacher, students, records, costs)
    record.write_record(out / "summary.json", summary)
    return summary


# --- what is asked for as an experiment --------------------------------------------------------------------


def _experiment(asked: DistillOptions, recipes: Recipes) -> Experiment:
    teacher, weights = _teacher(asked, recipes)
    student = _model("--student", asked.student, recipes)
    if teacher.name == student.name and teacher.model != student.model:
        raise UserError(f"--student: {student.name} is the name of another model, the teacher's")
    if asked.method not in recipes.methods:
        raise config.unknown_name("--method", asked.method, recipes.methods)
    method = recipes.methods[asked.method]
    if not method.needs_teacher:
        raise UserError(f"--method: {asked.method} asks no teacher; --compare adds {BASELINE} to another method")
    for role, one in (("teacher", teacher), ("student", student)):
        if method.loss is not None and not (one.model.features and one.model.head):
            raise UserError(
                f"--method: {asked.method} compares features, and {one.name} ({role}) has no named layers; "
                "give it features and head in recipes/models.yaml"
            )
    params = Params(
        dataset=asked.data,
        data_folder=None,
        train_images=None,
        base_view=None,
        teacher=teacher.name,
        teacher_epochs=asked.teacher_epochs or asked.epochs,
        teacher_weights=TeacherWeights(
            file=None if weights is None else str(weights),
            sha256=None if weights is None else files.sha256(weights),
            top1=None if weights is None else 0.0,  # none is promised: the summary says what it measures
        ),
        teacher_logits="online",
        student=student.name,
        methods=(BASELINE, asked.method) if asked.compare else (asked.method,),
        seeds=tuple(range(asked.seeds)),
        epochs=asked.epochs,
        batch_size=None,
        lr=None,
        precision=Precision(),
        compute=asked.compute,
    )
    models = {**recipes.models, teacher.name: teacher.model, student.name: student.model}
    return Experiment(params=params, **{**dict(recipes), "models": models})


def _model(option: str, name: str, recipes: Recipes) -> Architecture:
    """A key of recipes/models.yaml, a model of torchvision, or torchvision:NAME and timm:NAME."""
    if name in recipes.models:
        return Architecture(name=name, model=recipes.models[name])
    family, _, own = name.rpartition(":")
    family = family or "torchvision"
    if family not in LIBRARY_FAMILIES:
        raise config.unknown_name(f"{option}: {name}: family", family, LIBRARY_FAMILIES)
    if family == "torchvision":
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
        if own not in known:
            raise config.unknown_name(f"{option} (recipes/models.yaml or torchvision)", name, [*recipes.models, *known])
    return Architecture(
        name=own if own not in recipes.models else name, model=Model(family=family, options={"name": own})
    )


def _teacher(asked: DistillOptions, recipes: Recipes) -> tuple[Architecture, Path | None]:
    """The teacher, and the file of its weights if it is not to be trained."""
    file = Path(asked.teacher).expanduser()
    named = asked.teacher in recipes.models or asked.teacher.partition(":")[0] in LIBRARY_FAMILIES
    if named or not (file.suffix or file.is_file()):
        if asked.teacher_model is not None:
            raise UserError(f"--teacher-model: {asked.teacher} is a model; this is for a file of weights")
        try:
            return _model("--teacher", asked.teacher, recipes), None
        except UserError:
            if not file.is_dir():
                raise
            raise UserError(
                f"--teacher: {file}: is a folder; name the file in it, model.safetensors or another"
            ) from None
    if not file.is_file():
        raise UserError(f"--teacher: {file}: no such file, and no model of that name")
    if asked.teacher_model is not None:
        return _model("--teacher-model", asked.teacher_model, recipes), file
    for log in (file.with_suffix(".json"), file.with_name("training.json")):  # of a student, of a teacher of ours
        if log.is_file():
            run = record.read_record(log, RunLog).settings
            return Architecture(name=run.architecture, model=run.model), file
    raise UserError(f"--teacher: {file}: does not say what model it is; --teacher-model MODEL says it")


# --- what is made already ----------------------------------------------------------------------------------


def _teach(experiment: Experiment, dataset: Path, sha256: str, teacher: Path, scratch: Path) -> None:
    """Make the teacher, if it is not there as it is to be."""
    run, weights = experiment.teacher_run(), teacher / "model.safetensors"
    ours = experiment.params.teacher_weights.file is None
    there = all((teacher / part).is_file() for part in ("record.json", pipeline.TEACHER_CLASSES))
    if ours and there and _is_log_of(teacher / "training.json", weights, run.sha256, sha256, None):
        print(f"teacher {run.architecture}: is there")
        return
    if not ours:
        (teacher / "training.json").unlink(missing_ok=True)  # of one that was trained here
    pipeline.teacher(experiment, dataset, teacher, scratch)


def _jobs(
    experiment: Experiment, method: str, dataset: Path, teacher: Path, students: dict[str, Path], scratch: Path
) -> list[Job]:
    """The runs of a method, under names that those of other methods do not have."""
    found = pipeline.jobs(experiment, method, dataset, teacher, None, students[method], scratch)
    return [job.model_copy(update={"name": f"{method} {job.name}"}) for job in found]


def _is_made(job: Job, dataset: str, teacher: str) -> bool:
    return _is_log_of(job.log, job.weights, job.run.sha256, dataset, None if job.teacher is None else teacher)


def _is_log_of(log: Path, weights: Path, settings: str, dataset: str, teacher: str | None) -> bool:
    """Whether the log is of such a run of this code, and the weights are those that it speaks of."""
    if not (log.is_file() and weights.is_file()):
        return False
    try:
        found = record.read_record(log, RunLog)
    except UserError:  # of another version: made anew
        return False
    expected = (settings, dataset, teacher, record.code_sha256(), files.sha256(weights))
    had = (found.settings_sha256, found.dataset_sha256, found.teacher_sha256, found.code.sha256, found.weights_sha256)
    return had == expected


# --- what came of it ---------------------------------------------------------------------------------------


def _summary(
    experiment: Experiment,
    dataset: Path,
    teacher: Path,
    students: dict[str, Path],
    records: dict[str, list[RunRecord]],
    costs: list[Cost],
) -> gain.Summary:
    from kdflow.data import largest_class

    params, data = experiment.params, experiment.dataset.data
    taught = record.read_record(teacher / "record.json", TeacherRecord)
    (of_teacher, of_student), method = [(cost.params, cost.flops) for cost in costs], params.methods[-1]
    weights = str(teacher / "model.safetensors")
    rows = [gain.teacher_row(params.teacher, taught, of_teacher, weights)]
    for name in (method, *params.methods[:-1]):
        places = [str(students[name] / f"seed{seed}.safetensors") for seed in params.seeds]
        rows.append(gain.student_row(name, records[name], of_student, places))
    alone, from_file = records.get(BASELINE), params.teacher_weights.file is not None
    return gain.Summary(
        dataset=params.dataset_name,
        classes=data.classes,
        image_size=data.image_size,
        train_images=data.train_images,
        test_images=data.test_images,
        epochs=records[method][0].settings.training.epochs,
        budget_note=record.budget_note(run for runs in records.values() for run in runs),
        teacher_source=taught.source,
        largest_class=largest_class(dataset) if from_file else None,
        models=tuple(rows),
        gain=None if alone is None else gain.gain(records[method], alone, data.test_images),
    )
