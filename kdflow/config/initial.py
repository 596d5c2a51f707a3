"""Settings of initial weights: what a model starts from instead of random weights."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, Tag, model_validator

from kdflow.config.base import ImageSize, PathName, Settings, Sha256, Std, Triple


class Normalisation(Settings):
    """Mean and standard deviation of the channels in a model's training."""

    mean: Triple
    std: Std


class InitialFile(Settings):
    """A file of initial weights, with mean and standard deviation of the channels in its training.

    Without those, they are taken from the record beside the file or from the registry of teachers, or else they are
    those of the dataset.
    """

    file: PathName
    sha256: Sha256
    mean: Triple | None = None
    std: Std | None = None

    @model_validator(mode="after")
    def _both_or_none(self) -> InitialFile:
        if (self.mean is None) != (self.std is None):
            raise ValueError("mean and std must be given together")
        return self


Initial = Annotated[
    Annotated[str, Field(min_length=1), Tag("<name>")] | Annotated[InitialFile, Tag("<file>")],
    Discriminator(lambda value: "<file>" if isinstance(value, dict | InitialFile) else "<name>"),
]
"""Initial weights: torchvision's by name, timm:NAME, a key of recipes/teachers.yaml, or a file."""


class InitialWeights(Settings):
    """Initial weights in the settings of a run; `sha256` may be the beginning of the hash, or empty if unknown."""

    source: str
    sha256: str


class FoundWeights(Settings):
    """Initial weights as they were found: their file, which may not be downloaded yet, and how they were trained.

    `size` is the size of the download in bytes, or an upper bound.
    """

    weights: InitialWeights
    file: str
    urls: tuple[str, ...] = ()
    size: int = 0
    mean: Triple | None = None
    std: Std | None = None
    image_size: ImageSize | None = None
