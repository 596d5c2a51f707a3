"""One distillation in one command, from a folder of photos to a student, without params.yaml and DVC.

It builds an experiment in memory and calls the stages' functions, with output folders as in the experiment of
params.yaml. Called again with the same folder, it makes only what is missing or out of date.
"""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from kdflow import config
from kdflow.config import (
    Architecture,
    Compute,
    Experiment,
    Model,
    Params,
    Precision,
    Recipes,
    Settings,
    TeacherClasses,
    TeacherWeights,
    UserFolder,
)
from kdflow.core import files
from kdflow.core.errors import UserError, one_line
from kdflow.launch import parallel_runs
from kdflow.pipeline import TEACHER_CLASSES
from kdflow.pipeline.distill import student_jobs
from kdflow.pipeline.evaluate import evaluate_students, measure_final_test
from kdflow.pipeline.prepare import prepare_dataset
from kdflow.pipeline.teacher import make_teacher
from kdflow.pipeline.train import train
from kdflow.report import gain
from kdflow.report.gain import BASELINE
from kdflow.training import record
from kdflow.training.job import Job
from kdflow.training.record import RunLog, RunRecord, TeacherRecord

if TYPE_CHECKING:
    from kdflow.models.cost import Cost

R = TypeVar("R", bound=Settings)
STUDENTS, TEACHER, WEIGHTS = "students", "teacher", "model.safetensors"  # in `out`: folders, and the teacher's file
LIBRARY_FAMILIES = ("torchvision", "timm")


class DistillOptions(Settings):
    """Options of one distillation; `teacher` and `student` are models, `teacher` may be a file of weights.

    `teacher_options` and `student_options` change options of the models, each as NAME=VALUE.
    """

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
    teacher_classes: str | None = None
    teacher_options: tuple[str, ...] = ()
    student_options: tuple[str, ...] = ()


def distill(options: DistillOptions, root: Path) -> gain.Summary:
    """Prepare the data, take or train the teacher, distil and evaluate; write all outputs and a summary to `out`.

    Raises:
        UserError: an option names something that does not exist or does not fit the others; nothing is trained then.
    """
    from kdflow.models import cost

    out, experiment = options.out, _experiment(options, config.load_recipes(root))
    if out.resolve().is_relative_to(files.expand_home(options.data.folder).resolve()):
        raise UserError(f"--out: {out}: is within --data, where it would be taken for a class; name another folder")
    dataset, teacher, work_dir = out / "dataset.h5", out / TEACHER, out / ".kdflow"
    final_test = work_dir / "final_test.h5"
    with files.exclusive_folder(work_dir, f"{out}", print):
        downloads, description = work_dir / "downloads", out / "dataset.json"
        prepared = prepare_dataset(experiment, dataset, downloads, description, final_test=final_test)
        sha256, datasets = prepared.sha256, {prepared.name: prepared.dataset}
        experiment = experiment.model_copy(update={"prepared": prepared, "datasets": datasets})
        pair = (experiment.params.teacher, experiment.params.student)
        costs = [row.cost for row in cost.compare(experiment, prepared.name, pair)]
        if costs[1].params > costs[0].params:
            print(f"warning: the student {pair[1]} has more parameters than the teacher {pair[0]}")
        _make_teacher(experiment, dataset, sha256, teacher, work_dir)
        methods = experiment.params.methods
        students = {method: out / STUDENTS / method for method in methods}
        jobs = _jobs(experiment, dataset, teacher, students, work_dir)
        teacher_sha256 = files.sha256(teacher / WEIGHTS)
        missing = [job for job in jobs if not _is_finished(job, sha256, teacher_sha256)]
        if missing:
            train(f"{experiment.params.student}", missing, options.compute)
        records = {
            method: parallel_runs.in_fresh_process(
                evaluate_students,
                *(experiment, method, dataset, teacher, students[method]),
                *(out / "records" / method, out / "metrics" / f"{method}.json"),
            )
            for method in methods
        }
        summary = _summary(experiment, dataset, teacher, students, records, costs)
        if final_test.is_file():
            models = [(experiment.teacher_run(), teacher / WEIGHTS), *((job.run, job.weights) for job in jobs)]
            measured = parallel_runs.in_fresh_process(measure_final_test, experiment, final_test, models)
            summary = summary.with_final_test(*measured)
    record.write_record(out / "summary.json", summary)
    return summary


# --- the options as an experiment --------------------------------------------------------------------------


def _experiment(options: DistillOptions, recipes: Recipes) -> Experiment:
    teacher, weights = _teacher(options, recipes)
    student = _with_options("--student-option", _model("--student", options.student, recipes), options.student_options)
    if teacher.name == student.name and teacher.model != student.model:
        raise UserError(f"--student: {student.name} is the name of another model, the teacher's")
    if options.method not in recipes.methods:
        raise config.unknown_name("--method", options.method, recipes.methods)
    method = recipes.methods[options.method]
    if not method.needs_teacher:
        raise UserError(f"--method: {options.method} needs no teacher; --compare adds {BASELINE} to another method")
    for role, one in (("teacher", teacher), ("student", student)):
        if method.needs_features and not (one.model.features and one.model.head):
            raise UserError(
                f"--method: {options.method} compares features, and {one.name} ({role}) has no named layers; "
                "give it features and head in recipes/models.yaml"
            )
    params = Params(
        dataset=options.data,
        data_folder=None,
        train_images=None,
        base_view=None,
        teacher=teacher.name,
        teacher_epochs=options.teacher_epochs or options.epochs,
        teacher_weights=TeacherWeights(
            file=None if weights is None else str(weights),
            sha256=None if weights is None else files.sha256(weights),
            top1=None if weights is None else 0.0,  # no expectation: the summary prints the measured accuracy
            classes=_teacher_classes(options, weights),
        ),
        teacher_logits="online",
        student=student.name,
        methods=(BASELINE, options.method) if options.compare else (options.method,),
        seeds=tuple(range(options.seeds)),
        epochs=options.epochs,
        batch_size=None,
        lr=None,
        precision=Precision(),
        compute=options.compute,
    )
    models = {**recipes.models, teacher.name: teacher.model, student.name: student.model}
    return Experiment(params=params, **{**dict(recipes), "models": models})


def _model(option: str, name: str, recipes: Recipes) -> Architecture:
    """Find a model by name: a key of recipes/models.yaml, a torchvision model, torchvision:NAME or timm:NAME."""
    if name in recipes.models:
        return Architecture(name=name, model=recipes.models[name])
    family, _, library_name = name.rpartition(":")
    family = family or "torchvision"
    if family not in LIBRARY_FAMILIES:
        raise config.unknown_name(f"{option}: {name}: family", family, LIBRARY_FAMILIES)
    if family == "torchvision":
        import torchvision

        known = torchvision.models.list_models(module=torchvision.models)
        if library_name not in known:
            raise config.unknown_name(f"{option} (recipes/models.yaml or torchvision)", name, [*recipes.models, *known])
    return Architecture(
        name=library_name if library_name not in recipes.models else name,
        model=Model(family=family, options={"name": library_name}),
    )


def _with_options(flag: str, architecture: Architecture, changes: tuple[str, ...]) -> Architecture:
    """Return the model with other options, each given as NAME=VALUE with a value in YAML."""
    options = dict(architecture.model.options)
    for change in changes:
        name, equals, value = change.partition("=")
        if not (name and equals):
            raise UserError(f"{flag}: {change}: must be NAME=VALUE, such as width_mult=0.5")
        if name == "name":
            raise UserError(f"{flag}: name: is set by the model's name")
        options[name] = config.parse_value(flag, value)
    fields = {**architecture.model.model_dump(), "options": options}
    model = config.settings_from_options(flag, Model, fields) if changes else architecture.model
    return Architecture(name=architecture.name, model=model)


def _teacher(options: DistillOptions, recipes: Recipes) -> tuple[Architecture, Path | None]:
    """Return the teacher with its options, and the file of its weights if it is not to be trained."""
    teacher, file = _find_teacher(options, recipes)
    if options.teacher_options and file is not None and options.teacher_model is None:
        raise UserError("--teacher-option: needs a model, by --teacher or --teacher-model")
    return _with_options("--teacher-option", teacher, options.teacher_options), file


def _find_teacher(options: DistillOptions, recipes: Recipes) -> tuple[Architecture, Path | None]:
    from kdflow.models import safe_weights

    file = files.expand_home(options.teacher)
    is_model = options.teacher in recipes.models or options.teacher.partition(":")[0] in LIBRARY_FAMILIES
    if is_model or not (file.suffix or file.is_file()):
        if options.teacher_model is not None:
            raise UserError(f"--teacher-model: {options.teacher} is a model; --teacher-model is for a file of weights")
        try:
            return _model("--teacher", options.teacher, recipes), None
        except UserError:
            if not file.is_dir():
                raise
            message = f"--teacher: {file}: is a folder; give a file in it, such as model.safetensors"
            raise UserError(message) from None
    if not file.is_file():
        raise UserError(f"--teacher: {file}: no such file, and no model of that name")
    safe_weights.check_kind(file)
    if file.resolve().is_relative_to((options.out / STUDENTS).resolve()):
        raise UserError(f"--teacher: {file}: is a student of --out, which may be replaced; choose another --out")
    if options.teacher_model is not None:
        return _model("--teacher-model", options.teacher_model, recipes), file
    for log in (file.with_suffix(".json"), file.with_name("training.json")):  # beside a student, a teacher
        if log.is_file():
            run = record.read_record(log, RunLog).settings
            return Architecture(name=run.architecture, model=run.model), file
    if (teacher := file.with_name("record.json")).is_file():  # of a teacher whose weights were taken from a file
        return _model("--teacher", record.read_record(teacher, TeacherRecord).architecture, recipes), file
    raise UserError(f"--teacher: {file}: its architecture is not known; give --teacher-model MODEL")


def _teacher_classes(options: DistillOptions, weights: Path | None) -> TeacherClasses | None:
    """Return the order of the outputs of a teacher from a file: natural, auto, or the lines of a file of names."""
    order = options.teacher_classes
    if order is None:
        return None
    if weights is None:
        raise UserError(f"--teacher-classes: {options.teacher} is a model; --teacher-classes is for a file of weights")
    if weights.resolve() == (options.out / TEACHER / WEIGHTS).resolve():
        raise UserError(f"--teacher-classes: {weights} has the order of the classes, as every teacher in --out")
    if order in ("natural", "auto"):
        return order  # type: ignore[return-value]
    try:
        lines = files.expand_home(order).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"--teacher-classes: {order}: {one_line(error)}; expected natural, auto, or a text file with the name of "
            "one class per line"
        ) from None
    return tuple(unicodedata.normalize("NFC", line.strip()) for line in lines if line.strip())


# --- finished parts ----------------------------------------------------------------------------------------


def _make_teacher(experiment: Experiment, dataset: Path, sha256: str, out: Path, work_dir: Path) -> None:
    """Make the teacher, unless a finished one with these settings exists."""
    run, weights, given = experiment.teacher_run(), out / WEIGHTS, experiment.params.teacher_weights.file
    trained = given is None
    complete = (out / TEACHER_CLASSES).is_file() and _read_or_none(out / "record.json", TeacherRecord) is not None
    if trained and complete and _matches(out / "training.json", weights, run.sha256, sha256, None):
        print(f"teacher {run.architecture}: exists")
        return
    if given is not None and Path(given).resolve() != weights.resolve():
        (out / "training.json").unlink(missing_ok=True)  # of an earlier teacher that was trained
    make_teacher(experiment, dataset, out, work_dir)


def _jobs(experiment: Experiment, dataset: Path, teacher: Path, students: dict[str, Path], work_dir: Path) -> list[Job]:
    """Return the jobs of all methods, with names and run indices that are unique among them."""
    jobs = [
        (method, job)
        for method, out in students.items()
        for job in student_jobs(experiment, method, dataset, teacher, None, out, work_dir)
    ]
    return [
        job.model_copy(update={"name": f"{method} {job.name}", "run_index": index})
        for index, (method, job) in enumerate(jobs)
    ]


def _is_finished(job: Job, dataset: str, teacher: str) -> bool:
    return _matches(job.log, job.weights, job.run.sha256, dataset, None if job.teacher is None else teacher)


def _matches(log: Path, weights: Path, settings: str, dataset: str, teacher: str | None) -> bool:
    """Return whether the log is of a run with these hashes and this code, and the weights are that run's."""
    run = _read_or_none(log, RunLog)
    if run is None or not weights.is_file():
        return False
    expected = (settings, dataset, teacher, record.code_sha256(), files.sha256(weights))
    actual = (run.settings_sha256, run.dataset_sha256, run.teacher_sha256, run.code.sha256, run.weights_sha256)
    return actual == expected


def _read_or_none(file: Path, kind: type[R]) -> R | None:
    """Read a record; None if it is missing, was changed, or was written by another version."""
    try:
        return record.read_record(file, kind)
    except UserError:
        return None


# --- summary -----------------------------------------------------------------------------------------------


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
    teacher_record = record.read_record(teacher / "record.json", TeacherRecord)
    (teacher_cost, student_cost), method = [(cost.params, cost.flops) for cost in costs], params.methods[-1]
    weights = str(teacher / WEIGHTS)
    rows = [gain.teacher_row(params.teacher, teacher_record, teacher_cost, weights)]
    for name in (method, *params.methods[:-1]):
        paths = [str(students[name] / f"seed{seed}.safetensors") for seed in params.seeds]
        rows.append(gain.student_row(name, records[name], student_cost, paths))
    notes = [run.budget.budget_note for runs in records.values() for run in runs]
    results, majority_accuracy = records[method], largest_class(dataset)
    measured = None
    if BASELINE in records:
        measured = gain.compute_gain(results, records[BASELINE], data.test_images, majority_accuracy)
    return gain.Summary(
        dataset=params.dataset_name,
        classes=data.classes,
        image_size=data.image_size,
        train_images=data.train_images,
        test_images=data.test_images,
        epochs=results[0].settings.training.epochs,
        budget_note="; ".join(record.distinct_notes([teacher_record.budget_note, *notes])),
        teacher_source=teacher_record.source,
        teacher_trained=params.teacher_weights.file is None,
        majority_accuracy=majority_accuracy,
        models=tuple(rows),
        gain=measured,
    )
