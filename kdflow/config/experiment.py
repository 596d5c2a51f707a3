"""Settings of an experiment: params.yaml and the recipes that it names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from kdflow.config.base import (
    BatchSize,
    Epochs,
    LearningRate,
    PathName,
    Percent,
    Positive,
    Seeds,
    Settings,
    Sha256,
    no_duplicates,
    unknown_name,
)
from kdflow.config.dataset import BaseView, BaseViewName, Dataset, PreparedDataset, UserFolder, UserFolderRecipe
from kdflow.config.initial import FoundWeights, Initial, Normalisation
from kdflow.config.method import Method, Model, Pair, Temperature
from kdflow.config.run import Architecture, LogitSource, Precision, RunSettings
from kdflow.config.training import TeacherTrainingChanges, Training, TrainingChanges
from kdflow.config.user_code import Parts
from kdflow.core.errors import UserError
from kdflow.core.machine import default_loader_workers
from kdflow.core.trackers import TrackerName

TeacherClasses = Annotated[
    Annotated[Literal["natural", "auto"], Tag("<order>")]
    | Annotated[tuple[str, ...], Field(strict=False), AfterValidator(no_duplicates), Tag("<names>")],
    Discriminator(lambda value: "<names>" if isinstance(value, list | tuple) else "<order>"),
]
"""The order of a teacher's outputs: with digits as numbers, as training images show, or the names in this order."""


class MemberWeights(Settings):
    """Teacher weights from a file, instead of a trained teacher: file, sha256 and top1 are given, or none of them.

    `classes` is the order of the teacher's outputs; None is that of the dataset.
    """

    file: PathName | None
    sha256: Sha256 | None
    top1: Percent | None
    classes: TeacherClasses | None = None

    @model_validator(mode="after")
    def _all_or_none(self) -> MemberWeights:
        missing = [key for key in ("file", "sha256", "top1") if getattr(self, key) is None]
        if 0 < len(missing) < 3:
            raise ValueError(f"file, sha256 and top1 must be given together; {' and '.join(missing)} not given")
        if missing and self.classes is not None:
            raise ValueError("classes is the order of the classes of weights from a file; file not given")
        return self


class TeacherWeights(MemberWeights):
    """Teacher weights from a file, or from one file for each member of an ensemble.

    `members` has an entry for each member, in their order; one without a file is a member that is trained.
    """

    members: Annotated[tuple[MemberWeights, ...], Field(strict=False)] | None = None

    @property
    def are_given(self) -> bool:
        """True if all weights are from files: nothing is trained."""
        return self.file is not None or bool(self.members and all(one.file is not None for one in self.members))


ProcessCount = Annotated[int, Field(gt=0, le=256)]


class Compute(Settings):
    """Settings of the computation. They are part of a record, but a change of them makes no stage stale.

    `replay_gb` is the limit of the replay cache on disk, in GB; `log` are trackers that show the runs.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {
        "side_by_side": "max_parallel_runs",
        "processes": "processes_per_run",
        "workers": "loader_workers",
    }

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:[0-9]{1,2})?|mps)$")]
    threads: Annotated[int, Field(gt=0, le=1024)]
    max_parallel_runs: ProcessCount | None
    processes_per_run: ProcessCount
    replay_gb: Annotated[float, Field(gt=0, le=1e6)]
    loader_workers: Annotated[int, Field(ge=0, le=256)] | None
    log: Annotated[tuple[TrackerName, ...], Field(strict=False), AfterValidator(no_duplicates)] = ()

    @property
    def resolved_workers(self) -> int:
        """The number of processes that read the image files of one run; 0: the run's process reads them."""
        return default_loader_workers() if self.loader_workers is None else self.loader_workers


class Params(Settings):
    """params.yaml. All keys are required; null is the default of the dataset's or the model's recipe."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"logits": "teacher_logits"}

    dataset: Annotated[
        Annotated[str, Tag("<name>")] | Annotated[UserFolder, Tag("<folder>")],
        Discriminator(lambda value: "<folder>" if isinstance(value, dict | UserFolder) else "<name>"),
    ]
    data_folder: PathName | None
    train_images: Positive | None
    base_view: BaseViewName | None
    teacher: str
    teacher_epochs: Epochs | None
    teacher_training: TeacherTrainingChanges | None
    teacher_init: Initial | None
    teacher_weights: TeacherWeights
    teacher_logits: LogitSource
    student: str
    student_init: Initial | None
    methods: Annotated[tuple[str, ...], Field(strict=False, min_length=1), AfterValidator(no_duplicates)]
    seeds: Seeds
    epochs: Epochs | None
    batch_size: BatchSize | None
    lr: LearningRate | None
    training: TrainingChanges | None
    temperature: Temperature | None
    precision: Precision
    compute: Compute

    @property
    def dataset_name(self) -> str:
        """The dataset's name in records and tables."""
        return self.dataset if isinstance(self.dataset, str) else self.dataset.name


class Recipes(Settings):
    """The content of recipes/, without teachers.yaml."""

    datasets: dict[str, Dataset]
    models: dict[str, Model]
    methods: dict[str, Method]
    pairs: dict[str, Pair]
    user_folder: UserFolderRecipe


class Experiment(Recipes):
    """params.yaml and the recipes that it names.

    `initial` has the initial weights of "teacher" and "student" that params.yaml names, as they were found;
    `teacher_normalisation` is that of teacher weights from a file, if it is not the dataset's. The class resolves the
    settings of each run. Those depend on code, not on values in files alone, so that this module is a dependency of the
    stages that train (dvc.yaml).
    """

    params: Params
    prepared: PreparedDataset | None = None
    initial: dict[str, FoundWeights] = Field(default_factory=dict)
    teacher_normalisation: Normalisation | None = None

    @property
    def dataset(self) -> Dataset:
        """The experiment's dataset.

        Raises:
            UserError: it is a folder that was not prepared with the present settings.
        """
        source = self.params.dataset
        if isinstance(source, str):
            return self.datasets[source]
        if self.prepared is None:
            raise UserError(f"dataset: {source.folder} is not prepared yet; run `dvc repro prepare`")
        return self.prepared.dataset

    @property
    def parts(self) -> Parts:
        """The parts that this experiment uses and that may be a user's code, by file and key."""
        params = self.params
        entries: dict[str, Model | Method | Dataset] = {
            f"recipes/models.yaml: {name}": self.models[name] for name in (params.teacher, params.student)
        }
        entries |= {f"recipes/methods.yaml: {name}": self.methods[name] for name in params.methods}
        if isinstance(params.dataset, str):
            entries[f"recipes/datasets.yaml: {params.dataset}"] = self.datasets[params.dataset]
        return {f"{where}.{key}": part for where, entry in entries.items() for key, part in entry.parts.items()}

    @property
    def train_images(self) -> int:
        """The number of training images that are used."""
        return self.params.train_images or self.dataset.data.train_images

    def student_run(self, method: str, seed: int) -> RunSettings:
        """Return the run that distils the student by `method`, a key of recipes/methods.yaml, from `seed`.

        The learning rate is that of params.yaml, or else the model's, or else the dataset's. The model's is for SGD.

        Raises:
            UserError: settings of params.yaml do not go together, or a user's code is not there.
        """
        if method not in self.methods:
            raise unknown_name("method", method, self.methods)
        training = self._training("student")
        return self._run("student", self.params.student, self._method(method, training), seed, training)

    def teacher_run(self, seed: int = 0) -> RunSettings:
        """Return the run that trains the teacher: cross-entropy on the labels."""
        return self._run("teacher", self.params.teacher, Method(ce=1.0, kl=0.0), seed, self._training("teacher"))

    def members(self) -> list[tuple[Experiment, int]]:
        """Return the experiment and the seed of each member of a teacher that is an ensemble; none for other teachers.

        The first member of a name has seed 0, as if it were the only teacher; the next one of that name has seed 1.
        """
        names = self.models[self.params.teacher].members
        weights = self.params.teacher_weights.members or (MemberWeights(file=None, sha256=None, top1=None),) * len(
            names
        )
        members = []
        for i, (name, given) in enumerate(zip(names, weights, strict=True)):
            update = {"teacher": name, "teacher_weights": TeacherWeights(**dict(given))}
            experiment = self.model_copy(update={"params": self.params.model_copy(update=update)})
            members.append((experiment, names[:i].count(name)))
        return members

    def check_training(self) -> None:
        """Check that the settings of training in params.yaml go together.

        Raises:
            UserError: they do not.
        """
        step, training = self.params.precision.step, self._training("student")
        if step != "eager" and self.params.teacher_logits != "online":
            raise UserError(f"precision.step: {step} needs teacher_logits: online; or set step: eager")
        if step == "cuda_graph" and self.params.compute.device in ("cpu", "mps"):
            raise UserError("precision.step: cuda_graph needs a CUDA device; or set step: eager")
        for method in self.params.methods:
            self._method(method, training)
        self._training("teacher")
        self._check_ensemble()
        if self.params.teacher_init is not None and self.params.teacher_weights.file is not None:
            raise UserError("teacher_init: is for a teacher that is trained; teacher_weights.file is a trained one")
        used = [method for method in self.params.methods if self.methods[method].uses_tau]
        if self.params.temperature is not None and not used:
            raise UserError(f"temperature: no loss of {', '.join(self.params.methods)} has a temperature; leave it out")

    def _check_ensemble(self) -> None:
        params, members = self.params, self.models[self.params.teacher].members
        given = params.teacher_weights
        if not members:
            if given.members is not None:
                raise UserError(f"teacher_weights.members: {params.teacher} is no ensemble; give file, sha256 and top1")
            return
        if given.members is not None and len(given.members) != len(members):
            raise UserError(
                f"teacher_weights.members: {len(given.members)} listed, {params.teacher} has {len(members)} members"
            )
        if given.file is not None:
            raise UserError(f"teacher_weights.file: {params.teacher} is an ensemble; list a file for each in members")
        if params.teacher_init is not None:
            raise UserError(f"teacher_init: is for one model, and {params.teacher} is an ensemble; leave it out")

    def _training(self, role: Literal["teacher", "student"]) -> Training:
        params, source = self.params, self.params.dataset
        recipe = self.datasets[source].training if isinstance(source, str) else self.user_folder.training
        if self.prepared is not None:
            recipe = self.prepared.training
        assert recipe is not None, "a dataset that can be prepared has training settings"
        changes: TrainingChanges | None = params.training if role == "student" else params.teacher_training
        model_lr = self.models[params.student if role == "student" else params.teacher].lr
        training = (changes or TrainingChanges()).apply(recipe, model_lr)
        more: dict[str, float | None] = {"epochs": params.teacher_epochs}
        if role == "student":
            more = {"epochs": params.epochs, "batch_size": params.batch_size, "lr": params.lr}
        training = training.model_copy(update={key: value for key, value in more.items() if value is not None})
        problem, initial = training.conflict(), params.student_init if role == "student" else params.teacher_init
        if training.freeze_backbone is not None and initial is None:
            problem = f"freeze_backbone: needs {role}_init, the weights that are kept"
        if problem:
            raise UserError(f"{'training' if role == 'student' else 'teacher_training'}.{problem}")
        return training

    def _method(self, name: str, training: Training) -> Method:
        method, temperature = self.methods[name], self.params.temperature
        if training.changes_labels and not method.has_hard_labels:
            raise UserError(
                f"training.{training.changes_labels}: method {name} has no cross-entropy with the labels of x"
            )
        if method.needs_features and self.models[self.params.teacher].members:
            raise UserError(
                f"methods: {name} needs features of the teacher, and {self.params.teacher} is an ensemble, which has "
                "only logits"
            )
        return method.model_copy(update={"tau": temperature}) if temperature and method.uses_tau else method

    def _run(
        self,
        role: Literal["teacher", "student"],
        architecture: str,
        method: Method,
        seed: int,
        training: Training,
    ) -> RunSettings:
        data, base_view = self.dataset.data, self.dataset.base_view
        assert base_view is not None
        teacher_view = self._normalised(base_view, "teacher")
        base_view = self._normalised(base_view, role)
        if role == "student":
            base_view = base_view.reduced_to(self.params.base_view)
        teacher, precision, found = None, self.params.precision, self.initial.get(role)
        if method.needs_teacher:
            teacher = Architecture(name=self.params.teacher, model=self.models[self.params.teacher])
            if (teacher_view.mean, teacher_view.std) != (base_view.mean, base_view.std):
                teacher = teacher.model_copy(update={"mean": teacher_view.mean, "std": teacher_view.std})
        else:
            precision = precision.model_copy(
                update={"fold_teacher": False, "teacher": "float32", "teacher_runtime": "torch"}
            )
        return RunSettings(
            dataset=self.params.dataset_name,
            train_images=self.train_images,
            classes=data.classes,
            image_size=data.image_size,
            base_view=base_view,
            role=role,
            architecture=architecture,
            model=self.models[architecture],
            teacher=teacher,
            method=method,
            training=training,
            seed=seed,
            teacher_logits=self.params.teacher_logits if teacher else "online",
            precision=precision,
            initial=None if found is None else found.weights,
        ).with_user_code()

    def _normalised(self, base_view: BaseView, role: Literal["teacher", "student"]) -> BaseView:
        """Return the base view with the mean and standard deviation of the role's initial weights, if they have them.

        A teacher keeps those that it was trained with.
        """
        found = self.initial.get(role)
        if role == "teacher" and self.teacher_normalisation is not None:
            return base_view.model_copy(update=dict(self.teacher_normalisation))
        if found is None or found.mean is None:
            return base_view
        return base_view.model_copy(update={"mean": found.mean, "std": found.std})
