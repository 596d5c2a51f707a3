"""Typed settings: params.yaml and recipes/, checked whole before anything runs. Never imports torch.

`load()` reads every file that a user edits and refuses what is wrong with one line per mistake.
`Experiment` then answers what each stage asks: the settings of one run, with every default resolved.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from kdflow.errors import UserError, one_line

PACKAGE = Path(__file__).parent
PREPARED = "data/dataset.json"


def choices(package: str) -> list[str]:
    """Names that a setting may take: the modules of `kdflow.<package>`, found without importing them."""
    return sorted(file.stem for file in (PACKAGE / package).glob("*.py") if file.stem != "__init__")


def _one_of(package: str) -> AfterValidator:
    def check(name: str) -> str:
        if name not in choices(package):
            raise ValueError(f"unknown name {name!r}{_allowed(name, choices(package))}")
        return name

    return AfterValidator(check)


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """What a user is told of a name that is not there: a close match, or all that are."""
    return UserError(f"{what}: unknown name {name!r}{_allowed(name, sorted(set(known)))}")


def _allowed(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; allowed: {', '.join(names)}"


def distinct(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Refuse what stands twice."""
    if len(set(values)) != len(values):
        raise ValueError(f"each entry may stand there once, got {list(values)}")
    return values


Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Part = Annotated[float, Field(gt=0, le=1)]
Seeds = Annotated[
    tuple[Annotated[int, Field(ge=0, lt=2**32)], ...], Field(strict=False, min_length=1), AfterValidator(distinct)
]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
# Not strict as a container only: YAML's lists become tuples, their items are still checked strictly.
Triple = Annotated[tuple[float, float, float], Field(strict=False)]


BaseViewName = Literal["none", "flip", "flip+crop"]


class Frozen(BaseModel):
    """Settings that cannot change, with no key that is not known and no silent conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


T = TypeVar("T", bound=Frozen)


# --- recipes/datasets.yaml ---------------------------------------------------------------------------------


class Data(Frozen):
    """What the `prepare` stage reads and must find there. Without a reader, models can be counted on it, no more."""

    reader: Annotated[str, _one_of("data")] | None = None
    classes: Annotated[int, Field(ge=2)]
    image_size: Positive
    train_images: Positive
    test_images: Positive
    url: str | None = None
    md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None


class Resize(Frozen):
    """How images of any size come to `image_size`.

    In training a window at random, of a share of the image within `area`, is resized (torchvision's RandomResizedCrop);
    without `area`, and in testing, the image is resized until its shorter side is `side`, and its centre is taken.
    """

    side: Positive
    area: Annotated[tuple[Part, Part], Field(strict=False)] | None

    @model_validator(mode="after")
    def _is_a_span(self) -> Resize:
        if self.area is not None and self.area[0] > self.area[1]:
            raise ValueError(f"area: the smaller share comes first, got {list(self.area)}")
        return self


class Views(Frozen):
    """The base view of an image: zero-pad by `crop` pixels, crop at random, flip at random, normalise.

    Images that stay in their files, of any size, have `resize` instead of a padded crop.
    """

    crop: Annotated[int, Field(ge=0)]
    flip: bool
    resize: Resize | None = Field(None, exclude_if=lambda value: value is None)  # settings without it keep their hash
    mean: Triple
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=3, max_length=3)]

    @model_validator(mode="after")
    def _is_cropped_once(self) -> Views:
        if self.resize is not None and self.crop:
            raise ValueError(f"crop: must be 0 beside resize, got {self.crop}: one of the two crops")
        return self

    def reduced_to(self, base_view: BaseViewName | None) -> Views:
        """With no more random crop and flip than `base_view` says; None leaves all as it is."""
        if base_view is None:
            return self
        own: dict[str, Any] = {"flip": base_view != "none"}
        if base_view != "flip+crop":
            own |= {"crop": 0, "resize": self.resize and self.resize.model_copy(update={"area": None})}
        return self.model_copy(update=own)


class Training(Frozen):
    """The optimiser and its schedule; `epochs` is what counts as a full run.

    The curve's accuracy is measured after every `test_every` epochs, and after the last.
    """

    epochs: Positive
    batch_size: Positive
    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    decay_at: Annotated[tuple[Share, ...], Field(strict=False), AfterValidator(distinct)]
    decay_by: Share
    test_every: Positive = 1


class Dataset(Frozen):
    """One entry of recipes/datasets.yaml."""

    data: Data
    views: Views | None = None
    training: Training | None = None
    demo: bool = False

    @model_validator(mode="after")
    def _can_be_trained_on(self) -> Dataset:
        missing = [key for key in ("views", "training") if getattr(self, key) is None]
        if self.data.reader is not None and missing:
            raise ValueError(f"data.reader is given, {' and '.join(missing)} not")
        resize, size = self.views.resize if self.views else None, self.data.image_size
        if resize is not None and resize.side < size:
            raise ValueError(f"views.resize.side: {resize.side} is less than data.image_size, {size}")
        return self


class Folder(Frozen):
    """Images of one's own: a folder with `train/<class>/` and `val/<class>/`, or with `<class>/` alone.

    valid/, validation/ or test/ may take val/'s place. Where there are classes alone, a share `val_share` of each is
    kept for testing: which, `split_seed` says and the files' names. Files that cannot be read are refused, or left out
    if `skip_broken`. Mirror images are of another class, or none, where `flip` is false. `side`: pixels of the shorter
    side in testing, of which the centre is taken; none: recipes/own.yaml's share.
    """

    folder: Annotated[str, Field(min_length=1)]
    image_size: Positive
    side: Positive | None = None
    val_share: Share = 0.2
    split_seed: Annotated[int, Field(ge=0)] = 0
    skip_broken: bool = False
    flip: bool = True

    @model_validator(mode="after")
    def _is_not_enlarged(self) -> Folder:
        if self.side is not None and self.side < self.image_size:
            raise ValueError(f"side: {self.side} is less than image_size, {self.image_size}")
        return self

    @property
    def name(self) -> str:
        """What it is called in records and tables: as its folder."""
        return Path(os.path.abspath(Path(self.folder).expanduser())).name  # noqa: PTH100 (not where a link leads)


class Own(Frozen):
    """recipes/own.yaml: the views and the training of images of one's own, whatever their number and size.

    In testing the shorter side becomes `side` times the image size; in training a window of a share within `area`.
    """

    side: Annotated[float, Field(ge=1)]
    area: Annotated[tuple[Part, Part], Field(strict=False)] | None
    training: Training


class Prepared(Frozen):
    """data/dataset.json: the dataset in hand as `prepare` found it. `source`: the setting that it was made from."""

    name: str
    source: str | Folder
    data: Data
    views: Views
    training: Training
    demo: bool
    sha256: str
    class_names: Annotated[tuple[str, ...], Field(strict=False)]
    left_out: Annotated[tuple[str, ...], Field(strict=False)] = ()

    @property
    def dataset(self) -> Dataset:
        """As an entry of recipes/datasets.yaml would be."""
        return Dataset(data=self.data, views=self.views, training=self.training, demo=self.demo)


# --- recipes/models.yaml, methods.yaml, pairs.yaml ---------------------------------------------------------


class Model(Frozen):
    """One entry of recipes/models.yaml: a family, its options, its named layers, a learning rate of its own.

    The outputs of the layers `features` are the model's feature maps, first to last; what enters the layer
    `head` is its pooled feature. Losses on features need them.
    """

    family: Annotated[str, _one_of("models")]
    options: dict[str, Any] = {}
    features: Annotated[tuple[str, ...], Field(strict=False), AfterValidator(distinct)] = ()
    head: str | None = None
    lr: Annotated[float, Field(gt=0)] | None = None


class Pick(Frozen):
    """Which of the strong views are learned from: of `pool` draws per image, the hardest share `keep` of all."""

    by: Annotated[str, _one_of("picks")]
    pool: Annotated[int, Field(ge=2)] = 2
    keep: Share = 0.5
    scoring: Literal["train", "eval"] = "train"


class StrongView(Frozen):
    """x': a stronger view of the batch, who labels it, its weight (null: that of kl), and whether x is left out."""

    mix: Annotated[str, _one_of("views")]
    label: Annotated[str, _one_of("labels")] = "teacher"
    weight: Annotated[float, Field(gt=0)] | None = None
    instead: bool = False
    pick: Pick | None = None

    @model_validator(mode="after")
    def _can_be_picked_from(self) -> StrongView:
        if self.pick is not None and self.mix == "identity":
            raise ValueError("pick: every draw of identity is the same; pick from a view that is drawn, such as cutmix")
        return self


class FeatureLoss(Frozen):
    """L(x): a loss of its own beside CE and KL, with its weight and what else it may be told."""

    name: Annotated[str, _one_of("losses")]
    weight: Annotated[float, Field(gt=0)]
    options: dict[str, Any] = {}


class Method(Frozen):
    """One entry of recipes/methods.yaml: ce CE(x, y) + kl KL(x) + loss.weight L(x) + strong.weight (x' and its label).

    With `strong.instead` x' takes x's place: ce CE(x', mixed label) + strong.weight (x' and its label).
    """

    ce: Annotated[float, Field(ge=0)]
    kl: Annotated[float, Field(ge=0)]
    tau: Annotated[float, Field(gt=0)] = 4.0
    loss: FeatureLoss | None = None
    strong: StrongView | None = None

    @model_validator(mode="after")
    def _has_a_loss(self) -> Method:
        strong = self.strong
        if self.ce == 0 and self.kl == 0 and self.loss is None and strong is None:
            raise ValueError("ce and kl are both 0, and there is no loss: nothing would be learned")
        if strong is not None and strong.weight is None and self.kl == 0 and not strong.instead:
            raise ValueError("strong: x' has the weight of kl, which is 0; give strong.weight")
        if strong is not None and strong.instead and self.loss is not None:
            raise ValueError("strong.instead: the loss sees x, which would be left out; drop one of the two")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is asked."""
        strong = self.strong
        asked = strong is not None and (strong.weight is not None or strong.pick is not None)
        return self.kl > 0 or self.loss is not None or asked


Percent = Annotated[float, Field(ge=0, le=100)]


class Quoted(Frozen):
    """What the paper quotes for a pair on a dataset, in percent: the teacher, the student without one."""

    teacher_top1: Percent
    student_top1: Percent
    teacher_top5: Percent | None = None
    student_top5: Percent | None = None


class Pair(Frozen):
    """One entry of recipes/pairs.yaml: a teacher, a student, their datasets; null: the paper quotes nothing there."""

    teacher: str
    student: str
    datasets: Annotated[dict[str, Quoted | None], Field(min_length=1)]


# --- params.yaml -------------------------------------------------------------------------------------------


class TeacherWeights(Frozen):
    """Weights from a file instead of a teacher trained here: all three or none."""

    file: str | None
    sha256: Sha256 | None
    top1: Percent | None

    @model_validator(mode="after")
    def _all_or_none(self) -> TeacherWeights:
        missing = [key for key in ("file", "sha256", "top1") if getattr(self, key) is None]
        if 0 < len(missing) < 3:
            raise ValueError(f"file, sha256 and top1 go together, {' and '.join(missing)} not given")
        return self


class Precision(Frozen):
    """What is faster and costs last digits, or more: part of a run's settings, so of its record."""

    fold_teacher: bool = False
    teacher: Literal["float32", "bfloat16"] = "float32"
    student: Literal["float32", "bfloat16"] = "float32"
    tf32: bool = False
    compile: Literal["none", "default", "reduce-overhead"] = "none"


Logits = Literal["online", "views", "views-float32", "replay", "replay-float32"]


class Compute(Frozen):
    """Where a run is computed: recorded, and no reason to compute it again. `replay_gb` is at most on disk."""

    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]
    threads: Positive
    side_by_side: Positive | None
    processes: Positive
    replay_gb: Annotated[float, Field(gt=0)]
    workers: Annotated[int, Field(ge=0)] | None

    @property
    def readers(self) -> int:
        """How many processes read the image files of one run; 0: the run itself does."""
        return min(8, os.cpu_count() or 1) if self.workers is None else self.workers


class Params(Frozen):
    """params.yaml: the experiment in hand. Every key must be there, null means the dataset's or model's own."""

    dataset: Annotated[
        Annotated[str, Tag("<name>")] | Annotated[Folder, Tag("<folder>")],
        Discriminator(lambda value: "<folder>" if isinstance(value, dict | Folder) else "<name>"),
    ]
    data_folder: str | None
    train_images: Positive | None
    base_view: BaseViewName | None
    teacher: str
    teacher_epochs: Positive | None
    teacher_weights: TeacherWeights
    logits: Logits
    student: str
    methods: Annotated[tuple[str, ...], Field(strict=False, min_length=1), AfterValidator(distinct)]
    seeds: Seeds
    epochs: Positive | None
    batch_size: Positive | None
    lr: Annotated[float, Field(gt=0)] | None
    precision: Precision
    compute: Compute

    @property
    def dataset_name(self) -> str:
        """What the dataset is called in records and tables."""
        return self.dataset if isinstance(self.dataset, str) else self.dataset.name


# --- what a run is -----------------------------------------------------------------------------------------


class Architecture(Frozen):
    """A model by the name of its recipe."""

    name: str
    model: Model


class RunSettings(Frozen):
    """Everything that decides a run's numbers apart from data, teacher weights and code; nothing else."""

    dataset: str
    train_images: int
    classes: int
    image_size: int
    views: Views
    role: Literal["teacher", "student"]
    architecture: str
    model: Model
    teacher: Architecture | None
    method: Method
    training: Training
    seed: int
    logits: Logits
    precision: Precision = Precision()

    @property
    def store(self) -> tuple[str, str]:
        """Where the teacher's logits come from, online, views or replay, and the dtype that a store keeps them in."""
        kind, _, dtype = self.logits.partition("-")
        return kind, dtype or "float16"

    @property
    def sha256(self) -> str:
        """SHA-256 of the settings as canonical JSON, in hex."""
        text = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def learning_rate(self, step: int, steps_per_epoch: int) -> float:
        """The learning rate of 0-based step `step`: divided where a share `decay_at` of all steps is done.

        Decay points are shares of the run, not epochs, so that they scale with any number of epochs: 240
        epochs decay after 150, 180 and 210; 960 after 600, 720 and 840; 2 after 1.25, 1.5 and 1.75.
        """
        done = step / (steps_per_epoch * self.training.epochs)
        return self.training.lr * self.training.decay_by ** sum(done >= at for at in self.training.decay_at)


class Recipes(Frozen):
    """All of recipes/."""

    datasets: dict[str, Dataset]
    models: dict[str, Model]
    methods: dict[str, Method]
    pairs: dict[str, Pair]
    own: Own


class Experiment(Recipes):
    """The experiment in hand together with the recipes that it names."""

    params: Params
    prepared: Prepared | None = None

    @property
    def dataset(self) -> Dataset:
        """The dataset in hand.

        Raises:
            UserError: it is a folder that was not prepared as params.yaml now says.
        """
        source = self.params.dataset
        if isinstance(source, str):
            return self.datasets[source]
        if self.prepared is None:
            raise UserError(f"dataset: {source.folder} is not prepared yet; `dvc repro prepare` does it")
        return self.prepared.dataset

    @property
    def train_images(self) -> int:
        """How many training images are used."""
        return self.params.train_images or self.dataset.data.train_images

    def student_run(self, method: str, seed: int) -> RunSettings:
        """The run that distils the student by `method` (a key of recipes/methods.yaml) from `seed`."""
        if method not in self.methods:
            raise unknown("method", method, self.methods)
        params = self.params
        own = self.dataset.training
        assert own is not None
        return self._run(
            "student",
            params.student,
            self.methods[method],
            seed,
            own.model_copy(
                update={
                    "epochs": params.epochs or own.epochs,
                    "batch_size": params.batch_size or own.batch_size,
                    "lr": params.lr or self.models[params.student].lr or own.lr,
                }
            ),
        )

    def teacher_run(self) -> RunSettings:
        """The run that trains the teacher: cross-entropy on the labels, seed 0."""
        params = self.params
        own = self.dataset.training
        assert own is not None
        lr = self.models[params.teacher].lr or own.lr
        training = own.model_copy(update={"epochs": params.teacher_epochs or own.epochs, "lr": lr})
        return self._run("teacher", params.teacher, Method(ce=1.0, kl=0.0), 0, training)

    def _run(
        self,
        role: Literal["teacher", "student"],
        architecture: str,
        method: Method,
        seed: int,
        training: Training,
    ) -> RunSettings:
        data, views = self.dataset.data, self.dataset.views
        assert views is not None
        if role == "student":
            views = views.reduced_to(self.params.base_view)
        teacher, precision = None, self.params.precision
        if method.needs_teacher:
            teacher = Architecture(name=self.params.teacher, model=self.models[self.params.teacher])
        else:
            precision = precision.model_copy(update={"fold_teacher": False, "teacher": "float32"})
        return RunSettings(
            dataset=self.params.dataset_name,
            train_images=self.train_images,
            classes=data.classes,
            image_size=data.image_size,
            views=views,
            role=role,
            architecture=architecture,
            model=self.models[architecture],
            teacher=teacher,
            method=method,
            training=training,
            seed=seed,
            logits=self.params.logits if teacher else "online",
            precision=precision,
        )


# --- reading -----------------------------------------------------------------------------------------------


def load(root: Path = Path()) -> Experiment:
    """Read and check params.yaml and recipes/ under `root`.

    Raises:
        UserError: one line per mistake, each naming file and field.
    """
    file = root / "params.yaml"
    if not file.exists():
        raise UserError(f"{file}: no such file; run from the project's folder")
    mistakes: list[str] = []
    recipes = _recipes(root / "recipes", mistakes)
    params = validated(file, Params, mistakes)
    if mistakes or params is None:
        raise UserError("\n".join(mistakes))
    named: Names = []
    if isinstance(params.dataset, str):
        named += [(file, "dataset", params.dataset, recipes.datasets)]
    named += [(file, "teacher", params.teacher, recipes.models), (file, "student", params.student, recipes.models)]
    named += [(file, f"methods.{i}", name, recipes.methods) for i, name in enumerate(params.methods)]
    check_names(named + _named_by_pairs(root / "recipes", recipes))
    experiment = Experiment(params=params, prepared=_prepared(root / PREPARED, params.dataset), **dict(recipes))
    if isinstance(params.dataset, Folder):
        if params.data_folder is not None:
            raise UserError(f"{file}: data_folder: must be empty where dataset.folder says where the images are")
        if experiment.prepared is None:
            return experiment  # how many images there are is found by `prepare`
    else:
        check_readable(file, params.dataset, recipes)
    available = experiment.dataset.data.train_images
    if params.train_images is not None and params.train_images > available:
        raise UserError(f"{file}: train_images: {params.train_images} asked for, {params.dataset_name} has {available}")
    return experiment


def _prepared(file: Path, source: str | Folder) -> Prepared | None:
    """What `prepare` found of images of one's own, if it was made from this very setting."""
    if isinstance(source, str):
        return None
    try:
        found = Prepared.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return found if found.source == source else None


def load_recipes(root: Path = Path()) -> Recipes:
    """Read and check recipes/ under `root`.

    Raises:
        UserError: one line per mistake, each naming file and field.
    """
    mistakes: list[str] = []
    recipes = _recipes(root / "recipes", mistakes)
    if mistakes:
        raise UserError("\n".join(mistakes))
    check_names(_named_by_pairs(root / "recipes", recipes))
    return recipes


def check_readable(where: Path, dataset: str, recipes: Recipes) -> None:
    """Refuse a dataset that models can only be counted on.

    Raises:
        UserError: it has no reader.
    """
    if recipes.datasets[dataset].data.reader is None:
        raise UserError(
            f"{where}: dataset: {dataset} cannot be prepared yet, recipes/datasets.yaml has no data.reader for it; "
            f"`kdflow cost --dataset {dataset}` counts models on it"
        )


Names = list[tuple[Path, str, str, Collection[str]]]


def check_names(named: Names) -> None:
    """Refuse every name that is not among those known: file, field, name, known names.

    Raises:
        UserError: one line per name, with a close match or all that are known.
    """
    wrong = [
        f"{file}: {field}: unknown name {name!r}{_allowed(name, sorted(known))}"
        for file, field, name, known in named
        if name not in known
    ]
    if wrong:
        raise UserError("\n".join(wrong))


def _recipes(folder: Path, mistakes: list[str]) -> Recipes:
    found: dict[str, Any] = {
        "models": entries(folder / "models.yaml", Model, mistakes),
        "datasets": entries(folder / "datasets.yaml", Dataset, mistakes),
        "methods": entries(folder / "methods.yaml", Method, mistakes),
        "pairs": entries(folder / "pairs.yaml", Pair, mistakes),
        "own": validated(folder / "own.yaml", Own, mistakes),
    }
    if found["own"] is None:  # what is wrong with the others was said as well
        raise UserError("\n".join(mistakes))
    return Recipes(**found)


def _named_by_pairs(folder: Path, recipes: Recipes) -> Names:
    file, named = folder / "pairs.yaml", Names()
    for key, pair in recipes.pairs.items():
        named += [(file, f"{key}.teacher", pair.teacher, recipes.models)]
        named += [(file, f"{key}.student", pair.student, recipes.models)]
        named += [(file, f"{key}.datasets", name, recipes.datasets) for name in pair.datasets]
    return named


def entries(file: Path, kind: type[T] | Mapping[str, type[T]], mistakes: list[str]) -> dict[str, T]:
    """Read a file of named entries, of one kind or each of what its key `kind` says.

    What is wrong is added to `mistakes`, a line each.
    """
    found = {}
    for name, value in (_read_yaml(file, mistakes) or {}).items():
        # DVC builds targets and file names from these: no dot, no slash, no blank.
        if not isinstance(name, str) or not re.fullmatch("[a-z0-9_]+", name):
            mistakes.append(f"{file}: {name!r} is no name: lower-case letters, digits and _ only")
            continue
        said = value.get("kind") if isinstance(value, dict) else None
        if isinstance(kind, Mapping) and said not in kind:
            mistakes.append(f"{file}: {name}.kind: unknown name {said!r}{_allowed(str(said), sorted(kind))}")
            continue
        one = kind[said] if isinstance(kind, Mapping) and said is not None else kind
        entry = _validate(file, cast("type[T]", one), value, f"{name}.", mistakes)
        if entry is not None:
            found[name] = entry
    return found


def validated(file: Path, kind: type[T], mistakes: list[str]) -> T | None:
    """Read a file that is one entry as a whole; what is wrong is added to `mistakes`, a line each."""
    return _validate(file, kind, _read_yaml(file, mistakes), "", mistakes)


def given(where: str, kind: type[T], values: dict[str, Any]) -> T:
    """Settings that a command was given.

    Raises:
        UserError: one line per mistake, each naming the field.
    """
    mistakes: list[str] = []
    found = _validate(Path(where), kind, values, "", mistakes)
    if found is None:
        raise UserError("\n".join(mistakes))
    return found


@lru_cache(maxsize=32)
def _parse(content: bytes) -> Any:
    # YAML 1.2 only in pure Python, at 0.1 s for the recipes: who looks at many experiments parses them once.
    return YAML(typ="safe", pure=True).load(content)


def _read_yaml(file: Path, mistakes: list[str]) -> dict[Any, Any] | None:
    try:
        content = _parse(file.read_bytes())
    except FileNotFoundError:
        mistakes.append(f"{file}: no such file")
    except MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        mistakes.append(f"{file}: not YAML: {line}{error.problem}")
    except YAMLError as error:
        mistakes.append(f"{file}: not YAML: {one_line(error)}")
    else:
        if isinstance(content, dict):
            return content
        mistakes.append(f"{file}: expected keys and values, found {type(content).__name__}")
    return None


def _validate(file: Path, kind: type[T], value: object, prefix: str, mistakes: list[str]) -> T | None:
    if value is None and not prefix:
        return None  # the file could not be read, and that was said
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False)
        for problem in problems:
            location = tuple(part for part in problem["loc"] if not str(part).startswith("<"))  # a union's tag
            # Of a list with a bad item pydantic says as well that it is too short.
            if problem["type"] == "too_short" and any(other["loc"][:-1] == location for other in problems):
                continue
            where = prefix + ".".join(str(part) for part in location)
            text = problem["msg"].removeprefix("Value error, ")
            if problem["type"] == "extra_forbidden":
                text = "unknown key" + _allowed(str(location[-1]), _keys(kind, location[:-1]))
            elif problem["type"] != "missing" and not isinstance(problem["input"], dict):
                text = f"{text[0].lower()}{text[1:]}, got {problem['input']!r}"
            mistakes.append(": ".join(filter(None, (str(file), where.strip("."), text))))
        return None


def _keys(kind: type[BaseModel], path: tuple[int | str, ...]) -> list[str]:
    """The keys of the model found by following `path` from `kind` through nested models, lists and dicts."""
    for part in path:
        if part in kind.model_fields:  # else an index of a list or a key of a dict: of the model that it holds
            kind = next(_models(kind.model_fields[str(part)].annotation))
    return sorted(kind.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
