"""Options of one distillation, and the experiment that they describe."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import JsonValue

from kdflow import config
from kdflow.config import (
    Architecture,
    Compute,
    Experiment,
    Initial,
    InitialFile,
    MemberWeights,
    Model,
    Params,
    Precision,
    Recipes,
    Settings,
    TeacherClasses,
    TeacherTrainingChanges,
    TeacherWeights,
    Temperature,
    TrainingChanges,
    UserFolder,
)
from kdflow.config.method import ENSEMBLE, resolve_ensembles
from kdflow.config.user_code import check_trusted
from kdflow.core import files
from kdflow.core.errors import UserError, one_line
from kdflow.report.gain import BASELINE
from kdflow.training import record
from kdflow.training.record import RunLog, TeacherRecord

STUDENTS, TEACHER, WEIGHTS = "students", "teacher", "model.safetensors"  # in `out`: folders, and the teacher's file
Changes = TypeVar("Changes", bound=TrainingChanges)
IMAGE_SIZE = 64  # without initial weights
COMPUTE = {"max_parallel_runs": None, "processes_per_run": 1, "replay_gb": 50.0}  # the rest are options
LIBRARY_FAMILIES = ("torchvision", "timm")


class DistillOptions(Settings):
    """Options of one distillation; `teacher` and `student` are models, `teacher` may be a file of weights.

    `teacher_options` and `student_options` change options of the models, each as NAME=VALUE. `training` changes the
    training of the students, and of a teacher that is trained. `teacher_init` and `student_init` are names or files.
    With `more_teachers`, the teacher is an ensemble of all, whose logits are combined as `ensemble` names.
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
    training: TeacherTrainingChanges = TeacherTrainingChanges()
    temperature: Temperature | None = None
    precision: Precision = Precision()
    more_teachers: tuple[str, ...] = ()
    ensemble: Literal["probabilities", "logits"] = "probabilities"
    teacher_init: str | None = None
    student_init: str | None = None


def make_experiment(options: DistillOptions, recipes: Recipes) -> Experiment:
    """Return the experiment that the options describe; its dataset is not prepared yet.

    Raises:
        UserError: an option names something that does not exist or does not fit the others.
    """
    teacher, weights, members = _teachers(options, recipes)
    student = _with_options("--student-option", _model("--student", options.student, recipes), options.student_options)
    if members.get(student.name, student.model) != student.model:
        raise UserError(f"--student: {student.name} is the name of another model, the teacher's")
    if options.method not in recipes.methods:
        raise config.unknown_name("--method", options.method, recipes.methods)
    method = recipes.methods[options.method]
    if not method.needs_teacher:
        raise UserError(f"--method: {options.method} needs no teacher; --compare adds {BASELINE} to another method")
    for role, one in (("teacher", teacher), ("student", student)):
        if method.needs_features and not (one.model.features and one.model.head) and not one.model.members:
            raise UserError(
                f"--method: {options.method} compares features, and {one.name} ({role}) has no named layers; "
                "give it features and head in recipes/models.yaml"
            )
    training, student_init = options.training, _initial(options.student_init)
    teacher_init = _initial(options.teacher_init)
    params = Params(
        dataset=options.data,
        data_folder=None,
        train_images=None,
        base_view=None,
        teacher=teacher.name,
        teacher_epochs=options.teacher_epochs or options.epochs,
        teacher_training=_changes(TeacherTrainingChanges, training, teacher_init, student_init),
        teacher_init=teacher_init,
        teacher_weights=weights,
        teacher_logits="online",
        student=student.name,
        student_init=student_init,
        methods=(BASELINE, options.method) if options.compare else (options.method,),
        seeds=tuple(range(options.seeds)),
        epochs=options.epochs,
        batch_size=training.batch_size,
        lr=training.lr,
        training=_changes(TrainingChanges, training, student_init, teacher_init),
        temperature=options.temperature,
        precision=options.precision,
        compute=options.compute,
    )
    models = {**recipes.models, **members, teacher.name: teacher.model, student.name: student.model}
    experiment = Experiment(params=params, **{**dict(recipes), "models": models})
    try:
        experiment.check_training()
    except UserError as error:
        raise UserError(f"kdflow distill: {str(error).removeprefix('training.')}") from None
    return experiment


def default_image_size(options: Iterable[str | None], root: Path) -> int:
    """Return the image size that the first of these initial weights was trained with, or `IMAGE_SIZE`."""
    from kdflow.teachers.initial_weights import find

    initial = [one for option in options if (one := _initial(option)) is not None]
    sizes = (find("initial weights", one, root).image_size for one in initial)
    return next((size for size in sizes if size is not None), IMAGE_SIZE)


def _initial(option: str | None) -> Initial | None:
    """Return initial weights by name, or from a file."""
    if option is None or not (file := files.expand_home(option)).is_file():
        return option
    return InitialFile(file=str(file.absolute()), sha256=files.sha256(file))


def _changes(
    kind: type[Changes], training: TeacherTrainingChanges, initial: Initial | None, others: Initial | None
) -> Changes:
    """Return the training of a model, whose backbone is not frozen if only the other model has initial weights."""
    values = training.model_dump(include=set(kind.model_fields))
    return kind(**values | ({"freeze_backbone": None} if initial is None and others is not None else {}))


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


def _teachers(options: DistillOptions, recipes: Recipes) -> tuple[Architecture, TeacherWeights, dict[str, Model]]:
    """Return the teacher, its weights if they are from files, and the models that are trained or have these weights."""
    teacher, file = _teacher(options, recipes)
    if not options.more_teachers:
        weights = TeacherWeights(**dict(_weights(file)) | {"classes": _teacher_classes(options, file)})
        return teacher, weights, {teacher.name: teacher.model}
    for option in ("teacher_model", "teacher_classes", "teacher_options", "teacher_init"):
        if getattr(options, option):
            flag = (
                option.replace("_", "-").removesuffix("s") if option == "teacher_options" else option.replace("_", "-")
            )
            raise UserError(f"--{flag}: is for one --teacher, and {1 + len(options.more_teachers)} are given")
    others = [options.model_copy(update={"teacher": name}) for name in options.more_teachers]
    found = [(teacher, file), *(_teacher(other, recipes) for other in others)]
    models: dict[str, Model] = {}
    for one, _ in found:
        if models.setdefault(one.name, one.model) != one.model:
            raise UserError(f"--teacher: two models have the name {one.name}")
    temperature = options.temperature or (
        recipes.methods[options.method].tau if options.method in recipes.methods else 4.0
    )
    names: list[JsonValue] = [one.name for one, _ in found]
    entry = Model(family=ENSEMBLE, options={"members": names, "combine": options.ensemble, "temperature": temperature})
    name, mistakes = "+".join(one.name for one, _ in found), list[str]()
    resolved = resolve_ensembles({**models, name: entry}, Path("--teacher"), mistakes)
    if mistakes:
        raise UserError(mistakes[0])
    members = tuple(_weights(file) for _, file in found)
    return (
        Architecture(name=name, model=resolved[name]),
        TeacherWeights(**dict(_weights(None)), members=members),
        models,
    )


def _weights(file: Path | None) -> MemberWeights:
    """Return the settings of weights from a file, without an expected accuracy: the summary prints the measured one."""
    if file is None:
        return MemberWeights(file=None, sha256=None, top1=None)
    return MemberWeights(file=str(file), sha256=files.sha256(file), top1=0.0)


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
            check_trusted(log, run.model.families, {model.family for model in recipes.models.values()})
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
