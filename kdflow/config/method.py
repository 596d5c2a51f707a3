"""Settings of models, methods and pairs: recipes/models.yaml, methods.yaml and pairs.yaml."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, JsonValue, model_validator

from kdflow.config.base import (
    LearningRate,
    OpenFraction,
    Options,
    Percent,
    Settings,
    Weight,
    _one_of,
    module_flag,
    no_duplicates,
    suggestion,
)
from kdflow.config.user_code import Parts, is_import_path, read_flag
from kdflow.core.errors import shorten

ENSEMBLE, MAX_MEMBERS = "ensemble", 64


class Model(Settings):
    """One entry of recipes/models.yaml: a family with its options, named layers, and a learning rate if it needs one.

    The outputs of the layers `features` are the model's feature maps, from first to last; the input of the layer `head`
    is its pooled feature. Losses on features need both. `lr` has precedence over the dataset's. An `ensemble`
    has no layers; its option `members` has names of other models.
    """

    family: Annotated[str, _one_of("models")]
    options: Options = Field(default_factory=dict)
    features: Annotated[tuple[str, ...], Field(strict=False), AfterValidator(no_duplicates)] = ()
    head: str | None = None
    lr: LearningRate | None = None

    @property
    def parts(self) -> Parts:
        """The parts that this entry names, which may be a user's code; those of an ensemble are in its members too."""
        families = list(_families(self.family, self.options))
        members = {f"options.members: family {name}": ("models", name) for name in families[1:]}
        return {"family": ("models", self.family), **members}

    @property
    def families(self) -> set[str]:
        """The families of this model and of all its members."""
        return set(_families(self.family, self.options))

    @property
    def members(self) -> tuple[str, ...]:
        """The names of the members, if the model is an ensemble."""
        members = self.options.get("members") if self.family == ENSEMBLE else None
        if not isinstance(members, list):
            return ()
        return tuple(str(member["name"]) for member in members if isinstance(member, dict))


def resolve_ensembles(models: Mapping[str, Model], file: Path, mistakes: list[str]) -> dict[str, Model]:
    """Return the models, with the recipes of the members in the options of each ensemble, in place of their names.

    A mistake in `file`, such as a name that no other model has, is appended to `mistakes`.
    """
    resolved = dict(models)
    for name, model in models.items():
        try:
            resolved[name] = _resolved(name, model, models)
        except ValueError as error:
            mistakes.append(f"{file}: {error}")
    return resolved


def _resolved(name: str, model: Model, models: Mapping[str, Model]) -> Model:
    if model.family != ENSEMBLE:
        return model
    names, field = model.options.get("members"), f"{name}.options.members"
    if not isinstance(names, list) or not 2 <= len(names) <= MAX_MEMBERS:
        raise ValueError(f"{field}: must be a list of 2 to {MAX_MEMBERS} models, got {shorten(names)}")
    for key, is_set in (("features", model.features), ("head", model.head), ("lr", model.lr)):
        if is_set:
            raise ValueError(f"{name}.{key}: an ensemble has only logits, and its members are trained; remove it")
    members: list[JsonValue] = []
    for one in names:
        if not isinstance(one, str) or one not in models:
            raise ValueError(f"{field}: unknown name {shorten(one)}{suggestion(str(one), sorted(models))}")
        recipe = models[one]
        if recipe.family == ENSEMBLE:
            raise ValueError(f"{field}: {one} is an ensemble too; list its members")
        if is_import_path(recipe.family):
            raise ValueError(f"{field}: {one} has a family of a user, whose source an ensemble does not record")
        members.append({"name": one, "model": {"family": recipe.family, "options": recipe.options}})
    return model.model_copy(update={"options": {**model.options, "members": members}})


def _families(family: object, options: object) -> Iterator[str]:
    """Yield the family of a model and those of its members, as deep as they are nested, in a file of anybody."""
    yield str(family)
    members = options.get("members") if family == ENSEMBLE and isinstance(options, dict) else None
    for member in members if isinstance(members, list) else []:
        model = member.get("model") if isinstance(member, dict) else None
        if isinstance(model, dict):
            yield from _families(model.get("family"), model.get("options"))


class Pick(Settings):
    """Data pick: of `pool` draws per image, the fraction `keep` with the highest score is used (paper, Section 3.2).

    `student_mode` is the mode of the student's batch norm and dropout while it computes the score.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"by": "criterion", "scoring": "student_mode"}

    criterion: Annotated[str, _one_of("picks")]
    pool: Annotated[int, Field(ge=2, le=64)] = 2
    keep: OpenFraction = 0.5
    student_mode: Literal["train", "eval"] = "train"


class StrongView(Settings):
    """The strong view x': how it is made and labelled, and the weight of its loss (null: that of kl).

    With `replaces_x`, the base view x has no loss.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"mix": "view", "instead": "replaces_x"}

    view: Annotated[str, _one_of("views")]
    label: Annotated[str, _one_of("labels")] = "teacher"
    weight: Weight | None = None
    replaces_x: bool = False
    pick: Pick | None = None

    @model_validator(mode="after")
    def _can_be_picked_from(self) -> StrongView:
        if self.pick is not None and self.view == "identity":
            raise ValueError("pick: all draws of identity are the same; use a random view, such as cutmix")
        return self


class ExtraLoss(Settings):
    """L(x): a loss beside CE and KL, with its weight and options."""

    name: Annotated[str, _one_of("losses")]
    weight: Weight
    options: Options = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_flag(self) -> ExtraLoss:
        if not is_import_path(self.name):  # that is checked with the recipes: a record may name code that is gone
            self._flag("NEEDS_FEATURES")  # ValueError if the module does not set it
        return self

    @property
    def needs_features(self) -> bool:
        """True if the loss compares features, not logits alone; its module sets NEEDS_FEATURES."""
        return self._flag("NEEDS_FEATURES")

    @property
    def needs_batch(self) -> bool:
        """True if the loss compares the images of a batch with each other; its module sets NEEDS_BATCH."""
        return self._flag("NEEDS_BATCH", default=False)

    def _flag(self, flag: str, default: bool | None = None) -> bool:
        if is_import_path(self.name):
            return read_flag(self.name, flag, default)
        return module_flag("losses", self.name, flag, default)


Temperature = Annotated[float, Field(ge=0.01, le=1000)]


class Method(Settings):
    """One entry of recipes/methods.yaml: ce CE(x, y) + kl KL(x) + loss.weight L(x) + strong.weight (loss of x').

    With `strong.replaces_x`, x' is used in place of x: ce CE(x', mixed label) + strong.weight (loss of x'). With
    `label_smoothing` e, the targets of CE(x, y) are soft: 1 - e for the class y, and e divided by the number of classes
    for each class besides (Szegedy et al., 2016); it has precedence over that of the training.
    """

    ce: Annotated[float, Field(ge=0, le=1e6)]
    kl: Annotated[float, Field(ge=0, le=1e6)]
    tau: Temperature = 4.0
    # It is left out of a run's settings where it is 0, so that methods without it keep their hash.
    label_smoothing: Annotated[float, Field(ge=0, lt=1, exclude_if=lambda value: value == 0)] = 0.0
    loss: ExtraLoss | None = None
    strong: StrongView | None = None

    @model_validator(mode="after")
    def _has_a_loss(self) -> Method:
        strong = self.strong
        if self.ce == 0 and self.kl == 0 and self.loss is None and strong is None:
            raise ValueError("ce and kl are both 0, and there is no other loss: nothing would be learned")
        if strong is not None and strong.weight is None and self.kl == 0 and not strong.replaces_x:
            raise ValueError("strong: the weight of x' is that of kl, which is 0; set strong.weight")
        if strong is not None and strong.replaces_x and self.loss is not None:
            raise ValueError("strong.replaces_x: the loss needs x, which would be left out; remove one of the two")
        if self.label_smoothing and not self.has_hard_labels:
            raise ValueError("label_smoothing: smooths the labels of CE(x, y), which has weight 0 or no x; remove it")
        return self

    @property
    def parts(self) -> Parts:
        """The parts that this entry names and that may be a user's code."""
        parts = {} if self.loss is None else {"loss.name": ("losses", self.loss.name)}
        return parts if self.strong is None else {**parts, "strong.view": ("views", self.strong.view)}

    @property
    def needs_teacher(self) -> bool:
        """True if the loss needs a teacher."""
        strong = self.strong
        strong_needs_teacher = strong is not None and (strong.weight is not None or strong.pick is not None)
        return self.kl > 0 or self.loss is not None or strong_needs_teacher

    @property
    def uses_tau(self) -> bool:
        """True if the loss has the temperature `tau`: that of KL(x), or of the teacher's part in x'."""
        return self.kl > 0 or (self.strong is not None and self.needs_teacher)

    @property
    def has_hard_labels(self) -> bool:
        """True if the loss has cross-entropy with the labels of x."""
        return self.ce > 0 and not (self.strong is not None and self.strong.replaces_x)

    @property
    def needs_features(self) -> bool:
        """True if the loss needs features of student and teacher; otherwise logits are enough."""
        return self.loss is not None and self.loss.needs_features


class PaperAccuracy(Settings):
    """Accuracy, in percent, that the paper quotes for a teacher, and for a student without a teacher."""

    teacher_top1: Percent
    student_top1: Percent
    teacher_top5: Percent | None = None
    student_top5: Percent | None = None


class Pair(Settings):
    """One entry of recipes/pairs.yaml: a teacher, a student and their datasets; null where the paper quotes nothing."""

    teacher: str
    student: str
    datasets: Annotated[dict[str, PaperAccuracy | None], Field(min_length=1)]
