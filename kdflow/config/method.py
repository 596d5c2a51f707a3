"""Settings of models, methods and pairs: recipes/models.yaml, methods.yaml and pairs.yaml."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from kdflow.config.base import OpenFraction, Percent, Settings, _one_of, module_flag, no_duplicates


class Model(Settings):
    """One entry of recipes/models.yaml: a family, its options, its named layers, a learning rate of its own.

    The outputs of the layers `features` are the model's feature maps, first to last; what enters the layer
    `head` is its pooled feature. Losses on features need them.
    """

    family: Annotated[str, _one_of("models")]
    options: dict[str, Any] = Field(default_factory=dict)
    features: Annotated[tuple[str, ...], Field(strict=False), AfterValidator(no_duplicates)] = ()
    head: str | None = None
    lr: Annotated[float, Field(gt=0)] | None = None


class Pick(Settings):
    """Which of the strong views are learned from: of `pool` draws per image, the hardest share `keep` of all."""

    criterion: Annotated[str, _one_of("picks")]
    pool: Annotated[int, Field(ge=2)] = 2
    keep: OpenFraction = 0.5
    student_mode: Literal["train", "eval"] = "train"


class StrongView(Settings):
    """x': a stronger view of the batch, who labels it, its weight (null: that of kl), and whether x is left out."""

    view: Annotated[str, _one_of("views")]
    label: Annotated[str, _one_of("labels")] = "teacher"
    weight: Annotated[float, Field(gt=0)] | None = None
    replaces_x: bool = False
    pick: Pick | None = None

    @model_validator(mode="after")
    def _can_be_picked_from(self) -> StrongView:
        if self.pick is not None and self.view == "identity":
            raise ValueError("pick: every draw of identity is the same; pick from a view that is drawn, such as cutmix")
        return self


class ExtraLoss(Settings):
    """L(x): a loss of its own beside CE and KL, with its weight and what else it may be told."""

    name: Annotated[str, _one_of("losses")]
    weight: Annotated[float, Field(gt=0)]
    options: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_flag(self) -> ExtraLoss:
        module_flag("losses", self.name, "NEEDS_FEATURES")  # ValueError if the module does not set it
        return self

    @property
    def needs_features(self) -> bool:
        """Whether the loss compares features, not logits alone; its module sets NEEDS_FEATURES."""
        return module_flag("losses", self.name, "NEEDS_FEATURES")


class Method(Settings):
    """One entry of recipes/methods.yaml: ce CE(x, y) + kl KL(x) + loss.weight L(x) + strong.weight (x' and its label).

    With `strong.replaces_x` x' takes x's place: ce CE(x', mixed label) + strong.weight (x' and its label).
    """

    ce: Annotated[float, Field(ge=0)]
    kl: Annotated[float, Field(ge=0)]
    tau: Annotated[float, Field(gt=0)] = 4.0
    loss: ExtraLoss | None = None
    strong: StrongView | None = None

    @model_validator(mode="after")
    def _has_a_loss(self) -> Method:
        strong = self.strong
        if self.ce == 0 and self.kl == 0 and self.loss is None and strong is None:
            raise ValueError("ce and kl are both 0, and there is no loss: nothing would be learned")
        if strong is not None and strong.weight is None and self.kl == 0 and not strong.replaces_x:
            raise ValueError("strong: x' has the weight of kl, which is 0; give strong.weight")
        if strong is not None and strong.replaces_x and self.loss is not None:
            raise ValueError("strong.replaces_x: the loss sees x, which would be left out; drop one of the two")
        return self

    @property
    def needs_teacher(self) -> bool:
        """Whether a teacher is asked."""
        strong = self.strong
        asked = strong is not None and (strong.weight is not None or strong.pick is not None)
        return self.kl > 0 or self.loss is not None or asked

    @property
    def needs_features(self) -> bool:
        """Whether features of student and teacher are needed; otherwise logits are enough."""
        return self.loss is not None and self.loss.needs_features


class PaperAccuracy(Settings):
    """What the paper quotes for a pair on a dataset, in percent: the teacher, the student without one."""

    teacher_top1: Percent
    student_top1: Percent
    teacher_top5: Percent | None = None
    student_top5: Percent | None = None


class Pair(Settings):
    """One entry of recipes/pairs.yaml: a teacher, a student, their datasets; null: the paper quotes nothing there."""

    teacher: str
    student: str
    datasets: Annotated[dict[str, PaperAccuracy | None], Field(min_length=1)]
