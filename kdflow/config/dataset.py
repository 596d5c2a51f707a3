"""Settings of datasets: recipes/datasets.yaml, recipes/user_folder.yaml and data/dataset.json."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from kdflow.config.base import (
    Fraction,
    ImageSize,
    OpenFraction,
    PathName,
    Positive,
    Seed,
    Settings,
    Std,
    Triple,
    _one_of,
)
from kdflow.config.training import Training
from kdflow.config.user_code import Parts
from kdflow.core.files import expand_home

DATA_FILES = (".csv", ".json", ".zip")
"""The endings of files that list a user's images, or have them."""

BaseViewName = Literal["none", "flip", "flip+crop"]


class DatasetSource(Settings):
    """The images that `prepare` reads, and their expected number, size and classes.

    Without a reader, the dataset cannot be prepared, but the cost of models can be computed for it.
    """

    reader: Annotated[str, _one_of("data")] | None = None
    classes: Annotated[int, Field(ge=2, le=10**5)]
    image_size: ImageSize
    train_images: Positive
    test_images: Positive
    url: str | None = None
    md5: Annotated[str, Field(pattern="^[0-9a-f]{32}$")] | None = None


class Resize(Settings):
    """Resizing of images of any size to `image_size`.

    In training, a random crop with a fraction of the image's area within `area` is resized (torchvision's
    RandomResizedCrop). In testing, and without `area`, the shorter side is resized to `side` px, and the centre is
    cropped.
    """

    side: Annotated[int, Field(gt=0, le=2**15)]
    area: Annotated[tuple[Fraction, Fraction], Field(strict=False)] | None

    @model_validator(mode="after")
    def _check_order(self) -> Resize:
        if self.area is not None and self.area[0] > self.area[1]:
            raise ValueError(f"area: the smaller fraction comes first, got {list(self.area)}")
        return self


class BaseView(Settings):
    """The base view of an image: zero-pad by `crop` px and crop at random, flip at random, normalise.

    Images that are read from their files, which may have any size, have `resize` instead of `crop`. `grey16_max` is the
    value of grey images of 16 bits that becomes 255.
    """

    crop: Annotated[int, Field(ge=0, le=4096)]
    flip: bool
    resize: Resize | None = Field(
        default=None, exclude_if=lambda value: value is None
    )  # so that settings without it keep their hash
    grey16_max: Annotated[int, Field(ge=1, lt=2**16)] | None = Field(
        default=None, exclude_if=lambda value: value is None
    )
    mean: Triple
    std: Std

    @model_validator(mode="after")
    def _check_crops(self) -> BaseView:
        if self.resize is not None and self.crop:
            raise ValueError(f"crop: must be 0 beside resize, got {self.crop}: resize crops too")
        return self

    def reduced_to(self, base_view: BaseViewName | None) -> BaseView:
        """Return these settings without the random crop and flip that `base_view` excludes; None excludes nothing."""
        if base_view is None:
            return self
        changes: dict[str, Any] = {"flip": base_view != "none"}
        if base_view != "flip+crop":
            changes |= {"crop": 0, "resize": self.resize and self.resize.model_copy(update={"area": None})}
        return self.model_copy(update=changes)


class Dataset(Settings):
    """One entry of recipes/datasets.yaml."""

    renamed_keys: ClassVar[Mapping[str, str]] = {"views": "base_view"}

    data: DatasetSource
    base_view: BaseView | None = None
    training: Training | None = None
    demo: bool = False

    @property
    def parts(self) -> Parts:
        """The part that this entry names, which may be a user's code."""
        return {} if self.data.reader is None else {"data.reader": ("data", self.data.reader)}

    @model_validator(mode="after")
    def _check_training(self) -> Dataset:
        missing = [key for key in ("base_view", "training") if getattr(self, key) is None]
        if self.data.reader is not None and missing:
            raise ValueError(f"data.reader is given, so {' and '.join(missing)} must be given too")
        resize, size = self.base_view.resize if self.base_view else None, self.data.image_size
        if resize is not None and resize.side < size:
            raise ValueError(f"base_view.resize.side: {resize.side} is less than data.image_size, {size}")
        if self.base_view is not None and self.base_view.crop > size:
            raise ValueError(f"base_view.crop: {self.base_view.crop} is more than data.image_size, {size}")
        return self


class UserFolder(Settings):
    """A dataset of the user: a folder, a ZIP archive of one, or a CSV or JSON file with path and label of each image.

    A folder has `train/<class>/`, `val/<class>/` and `test/<class>/`, or `<class>/` alone.

    `val/` may also be named valid or validation. The test set is `val/`, or `test/` if there is no `val/`; `test_part`
    chooses one of the two. With `train/` or `<class>/` alone, the fraction `val_share` of each class is the test set,
    chosen by the files' names and `split_seed`. Files that cannot be read are refused, or left out with `skip_broken`.
    With `cache`, images are resized once to the size that training needs and stored (docs/user-images.md).
    `flip` must be false if a mirrored image has another class or none. `side` is the shorter side in
    testing, in px, before the centre is cropped; null: `image_size` times `side` of recipes/user_folder.yaml.
    """

    folder: PathName
    image_size: ImageSize
    side: Annotated[int, Field(gt=0, le=2**15)] | None = None
    test_part: Literal["val", "test"] | None = Field(default=None, exclude_if=lambda value: value is None)
    val_share: OpenFraction = 0.2
    split_seed: Seed = 0
    skip_broken: bool = False
    flip: bool = True
    cache: bool = Field(default=False, exclude_if=lambda value: not value)

    @model_validator(mode="after")
    def _check_side(self) -> UserFolder:
        if self.side is not None and self.side < self.image_size:
            raise ValueError(f"side: {self.side} is less than image_size, {self.image_size}")
        return self

    @property
    def name(self) -> str:
        """The dataset's name in records and tables: that of its folder, or of its file without the ending."""
        path = Path(os.path.abspath(expand_home(self.folder)))  # noqa: PTH100 (symlinks are not resolved)
        return path.stem if path.suffix.lower() in DATA_FILES else path.name


class UserFolderRecipe(Settings):
    """recipes/user_folder.yaml: base view and training of users' datasets.

    In testing, the shorter side is resized to `side` times the image size; in training, a random crop with a fraction
    of the image's area within `area` is resized.
    """

    side: Annotated[float, Field(ge=1, le=8)]
    area: Annotated[tuple[Fraction, Fraction], Field(strict=False)] | None
    training: Training


class PreparedDataset(Settings):
    """data/dataset.json: the dataset as `prepare` has read it; `source` is the value of `dataset` in params.yaml.

    `left_out` lists the files that cannot be read, `notes` is what `prepare` has found out about the images of a user.
    """

    name: str
    source: str | UserFolder
    data: DatasetSource
    base_view: BaseView
    training: Training
    demo: bool
    sha256: str
    class_names: Annotated[tuple[str, ...], Field(strict=False)]
    left_out: Annotated[tuple[str, ...], Field(strict=False)] = ()
    notes: Annotated[tuple[str, ...], Field(strict=False, exclude_if=lambda value: not value)] = ()

    @property
    def dataset(self) -> Dataset:
        """The dataset as an entry of recipes/datasets.yaml."""
        return Dataset(data=self.data, base_view=self.base_view, training=self.training, demo=self.demo)
