"""Settings of datasets: recipes/datasets.yaml, recipes/user_folder.yaml and data/dataset.json."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from kdflow.config.base import Fraction, OpenFraction, Positive, Settings, Triple, _one_of, no_duplicates

BaseViewName = Literal["none", "flip", "flip+crop"]


class DatasetSource(Settings):
    """What the `prepare` stage reads and must find there. Without a reader, models can be counted on it, no more."""

    reader: Annotated[str, _one_of("data")] | None = None
    classes: Annotated[int, Field(ge=2)]
    image_size: Positive
    train_images: Positive
    test_images: Positive
    url: str | None = None
    md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None


class Resize(Settings):
    """How images of any size come to `image_size`.

    In training a window at random, of a share of the image within `area`, is resized (torchvision's RandomResizedCrop);
    without `area`, and in testing, the image is resized until its shorter side is `side`, and its centre is taken.
    """

    side: Positive
    area: Annotated[tuple[Fraction, Fraction], Field(strict=False)] | None

    @model_validator(mode="after")
    def _is_a_span(self) -> Resize:
        if self.area is not None and self.area[0] > self.area[1]:
            raise ValueError(f"area: the smaller share comes first, got {list(self.area)}")
        return self


class BaseView(Settings):
    """The base view of an image: zero-pad by `crop` pixels, crop at random, flip at random, normalise.

    Images that stay in their files, of any size, have `resize` instead of a padded crop.
    """

    crop: Annotated[int, Field(ge=0)]
    flip: bool
    resize: Resize | None = Field(None, exclude_if=lambda value: value is None)  # settings without it keep their hash
    mean: Triple
    std: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(strict=False, min_length=3, max_length=3)]

    @model_validator(mode="after")
    def _is_cropped_once(self) -> BaseView:
        if self.resize is not None and self.crop:
            raise ValueError(f"crop: must be 0 beside resize, got {self.crop}: one of the two crops")
        return self

    def reduced_to(self, base_view: BaseViewName | None) -> BaseView:
        """With no more random crop and flip than `base_view` says; None leaves all as it is."""
        if base_view is None:
            return self
        own: dict[str, Any] = {"flip": base_view != "none"}
        if base_view != "flip+crop":
            own |= {"crop": 0, "resize": self.resize and self.resize.model_copy(update={"area": None})}
        return self.model_copy(update=own)


class Training(Settings):
    """The optimiser and its schedule; `epochs` is what counts as a full run.

    The curve's accuracy is measured after every `eval_every` epochs, and after the last.
    """

    epochs: Positive
    batch_size: Positive
    lr: Annotated[float, Field(gt=0)]
    momentum: Annotated[float, Field(ge=0, lt=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    lr_milestones: Annotated[tuple[OpenFraction, ...], Field(strict=False), AfterValidator(no_duplicates)]
    lr_gamma: OpenFraction
    eval_every: Positive = 1


class Dataset(Settings):
    """One entry of recipes/datasets.yaml."""

    data: DatasetSource
    base_view: BaseView | None = None
    training: Training | None = None
    demo: bool = False

    @model_validator(mode="after")
    def _can_be_trained_on(self) -> Dataset:
        missing = [key for key in ("base_view", "training") if getattr(self, key) is None]
        if self.data.reader is not None and missing:
            raise ValueError(f"data.reader is given, {' and '.join(missing)} not")
        resize, size = self.base_view.resize if self.base_view else None, self.data.image_size
        if resize is not None and resize.side < size:
            raise ValueError(f"views.resize.side: {resize.side} is less than data.image_size, {size}")
        return self


class UserFolder(Settings):
    """Images of one's own: a folder with `train/<class>/` and `val/<class>/`, or with `<class>/` alone.

    valid/, validation/ or test/ may take val/'s place. Where there are classes alone, a share `val_share` of each is
    kept for testing: which, `split_seed` says and the files' names. Files that cannot be read are refused, or left out
    if `skip_broken`. Mirror images are of another class, or none, where `flip` is false. `side`: pixels of the shorter
    side in testing, of which the centre is taken; none: recipes/user_folder.yaml's share.
    """

    folder: Annotated[str, Field(min_length=1)]
    image_size: Positive
    side: Positive | None = None
    val_share: OpenFraction = 0.2
    split_seed: Annotated[int, Field(ge=0)] = 0
    skip_broken: bool = False
    flip: bool = True

    @model_validator(mode="after")
    def _is_not_enlarged(self) -> UserFolder:
        if self.side is not None and self.side < self.image_size:
            raise ValueError(f"side: {self.side} is less than image_size, {self.image_size}")
        return self

    @property
    def name(self) -> str:
        """What it is called in records and tables: as its folder."""
        return Path(os.path.abspath(Path(self.folder).expanduser())).name  # noqa: PTH100 (not where a link leads)


class UserFolderRecipe(Settings):
    """recipes/user_folder.yaml: the views and the training of images of one's own, whatever their number and size.

    In testing the shorter side becomes `side` times the image size; in training a window of a share within `area`.
    """

    side: Annotated[float, Field(ge=1)]
    area: Annotated[tuple[Fraction, Fraction], Field(strict=False)] | None
    training: Training


class PreparedDataset(Settings):
    """data/dataset.json: the dataset in hand as `prepare` found it. `source`: the setting that it was made from."""

    name: str
    source: str | UserFolder
    data: DatasetSource
    base_view: BaseView
    training: Training
    demo: bool
    sha256: str
    class_names: Annotated[tuple[str, ...], Field(strict=False)]
    left_out: Annotated[tuple[str, ...], Field(strict=False)] = ()

    @property
    def dataset(self) -> Dataset:
        """As an entry of recipes/datasets.yaml would be."""
        return Dataset(data=self.data, base_view=self.base_view, training=self.training, demo=self.demo)
