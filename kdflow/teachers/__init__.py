"""Teachers that others trained: recipes/teachers.yaml and what was imported here; fetched, known by hash, measured."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, model_validator
from ruamel.yaml import YAML

from kdflow import config
from kdflow.config import Percent, Positive, Recipes, Settings, Sha256
from kdflow.core import files
from kdflow.core.download import DownloadSpec, download
from kdflow.core.errors import UserError
from kdflow.core.progress import Display

if TYPE_CHECKING:
    from torch import nn

    from kdflow.models.convert_weights import Conversion

RECIPES, SCRATCH = Path("recipes/teachers.yaml"), Path(".kdflow")
Url = Annotated[str, Field(pattern="^https?://[^ ]+$")]


class Entry(Settings):
    """One teacher. Where `torchvision` names weights, they say where they are, how large, and what they measure.

    `size` is in bytes, exactly or at most. Without `sha256`, where nobody states it, what the addresses give is taken.
    """

    dataset: str
    architecture: str
    torchvision: Annotated[str, Field(pattern=r"^\w+\.\w+$")] | None = None
    urls: Annotated[tuple[Url, ...], Field(strict=False)] = ()
    sha256: Sha256 | None = None
    size: Positive | None = None
    top1: Percent | None = None
    licence: str
    source: str

    @model_validator(mode="after")
    def _is_known(self) -> Entry:
        own = [key for key in ("sha256", "size", "top1") if getattr(self, key) is not None]
        known = {"size", "top1"} <= set(own) and (self.sha256 is not None or self.urls)
        if self.torchvision is None and not known:
            raise ValueError("size, top1 and sha256 are needed, or torchvision; urls where nobody states the hash")
        if self.torchvision is not None and (own or self.urls):
            raise ValueError(f"torchvision says {', '.join([*own, *(['urls'] if self.urls else [])])} itself")
        return self

    @cached_property
    def wanted(self) -> DownloadSpec:
        """What is to be downloaded; of torchvision's, the hash as far as the file's name has it."""
        if self.torchvision is None:
            assert self.size is not None
            return DownloadSpec(self.urls, self.sha256 or "", self.size)
        import torchvision

        try:
            weights = torchvision.models.get_weight(self.torchvision)
        except (AttributeError, ValueError, KeyError):
            raise UserError(f"torchvision has no weights {self.torchvision!r}") from None
        prefix = re.search(r"-([0-9a-f]{8,})\.pth$", weights.url)
        if prefix is None:
            raise UserError(f"{weights.url}: no hash in the name, nothing to check the file by")
        megabytes = weights.meta["_file_size"] + 0.001  # rounded to three digits
        return DownloadSpec((weights.url,), prefix[1], int(megabytes * 2**20) + 1)

    @cached_property
    def expected(self) -> float:
        """Its accuracy in percent."""
        if self.top1 is not None:
            return self.top1
        import torchvision

        found: float = torchvision.models.get_weight(self.torchvision).meta["_metrics"]["ImageNet-1K"]["acc@1"]
        return found


@dataclass(frozen=True)
class Registry:
    """All teachers that are known in a project, and where their weights are kept."""

    root: Path
    recipes: Recipes
    entries: Mapping[str, Entry]

    @property
    def folder(self) -> Path:
        """Where the weights are: not in git, and no output of DVC, which knows them by the hash in its settings."""
        return self.root / SCRATCH / "teachers"

    def named(self, name: str) -> Entry:
        """The teacher of this name.

        Raises:
            UserError: there is none.
        """
        if name not in self.entries:
            raise config.unknown_name("teacher", name, self.entries)
        return self.entries[name]

    def file(self, name: str) -> Path:
        """Where its weights are, or would be."""
        return self.folder / f"{name}.weights"

    def has_no_hash(self, name: str) -> bool:
        """Whether it is a teacher whose publisher states no hash, so that any file may be it."""
        return name in self.entries and not self.entries[name].wanted.sha256

    def model(self, entry: Entry) -> nn.Module:
        """Its architecture, with fresh weights."""
        from kdflow.models import create_model

        data, recipe = self.recipes.datasets[entry.dataset].data, self.recipes.models[entry.architecture]
        return create_model(entry.architecture, recipe, data.classes, data.image_size)

    def use(self, name: str) -> str:
        """The command that distils from it."""
        entry, file = self.named(name), self.file(name).resolve()
        settings = {
            "dataset": entry.dataset,
            "teacher": entry.architecture,
            "teacher_weights.file": str(file) if re.fullmatch(r"[A-Za-z0-9_./-]+", str(file)) else f'"{file}"',
            "teacher_weights.sha256": files.sha256(file),
            "teacher_weights.top1": f"{entry.expected:g}",
        }
        return "dvc exp run " + " ".join(f"-S {shlex.quote(f'{key}={value}')}" for key, value in settings.items())


def load(root: Path = Path()) -> Registry:
    """Read recipes/teachers.yaml and .kdflow/teachers/teachers.yaml under `root`.

    Raises:
        UserError: one line per mistake, each naming file and field.
    """
    mistakes: list[str] = []
    recipes = config.load_recipes(root)
    found: dict[str, Entry] = {}
    for file in (root / RECIPES, _local(root)):
        if file == root / RECIPES or file.exists():
            entries = config.read_entries(file, Entry, mistakes)
            named: config.NameChecks = []
            for name, entry in entries.items():
                named += [(file, f"{name}.dataset", entry.dataset, recipes.datasets)]
                named += [(file, f"{name}.architecture", entry.architecture, recipes.models)]
                mistakes += [f"{file}: {name}: is in {root / RECIPES} too"] if name in found else []
            config.check_names(named)
            found |= entries
    if mistakes:
        raise UserError("\n".join(mistakes))
    return Registry(root, recipes, found)


def _local(root: Path) -> Path:
    return root / SCRATCH / "teachers" / "teachers.yaml"


def fetch_and_check(registry: Registry, name: str) -> Conversion:
    """Download a teacher where it is not there yet, and see that it fits its architecture."""
    from kdflow.models import convert_weights

    entry, file = registry.named(name), registry.file(name)
    with files.exclusive_folder(registry.folder, "these teachers", print):
        if not (file.exists() and files.sha256(file).startswith(entry.wanted.sha256)):
            if not entry.wanted.urls:
                raise UserError(f"{name}: has no address; `kdflow teachers import FILE` takes a file with its hash")
            with Display("fetch") as display:
                download(entry.wanted, file, display)
    try:
        return convert_weights.load_any_format(registry.model(entry), file, entry.wanted.sha256)
    except UserError:
        if registry.has_no_hash(name):  # nothing else would tell the next attempt that it is not the file
            file.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class NewTeacher:
    """What the file cannot say of a new teacher."""

    name: str
    dataset: str
    architecture: str
    top1: float
    licence: str
    source: str

    def entry(self, registry: Registry, sha256: str, size: int) -> Entry:
        """An entry for the registry.

        Raises:
            UserError: a name is not known, not allowed, or taken.
        """
        if not re.fullmatch("[a-z0-9_]+", self.name):
            raise UserError(f"--name: {self.name!r} is no name: lower-case letters, digits and _ only")
        if self.name in registry.entries:
            raise UserError(f"--name: {self.name} is there with other weights; choose another")
        for what, name in (("dataset", self.dataset), ("architecture", self.architecture)):
            known = registry.recipes.datasets if what == "dataset" else registry.recipes.models
            if name not in known:
                raise config.unknown_name(f"--{what}", name, known)
        own = {key: value for key, value in vars(self).items() if key != "name"}
        return Entry(**own, sha256=sha256, size=size)


def import_weights(registry: Registry, source: Path, about: NewTeacher | str | None) -> tuple[str, Conversion]:
    """Take a file that is there: as the teacher whose hash it has, or that is named and has none, else as a new one.

    Returns its name and what was mapped.

    Raises:
        UserError: it does not fit its architecture, or nobody says what it is; then nothing is kept of it.
    """
    from kdflow.models import convert_weights, safe_weights

    size = safe_weights.check_is_file(source)
    sha256 = files.sha256(source)
    hashes = {key: entry.wanted.sha256 for key, entry in registry.entries.items()}
    name = next((key for key, known in hashes.items() if known and sha256.startswith(known)), None)
    new, given = None, about.name if isinstance(about, NewTeacher) else about
    if name is not None:
        if given not in (None, name):
            raise UserError(f"{source}: is {name}, by its sha256; import it without --name")
    elif isinstance(about, NewTeacher):
        name, new = about.name, about.entry(registry, sha256, size)
    elif about is not None:
        name, there = about, registry.file(about)
        if there.exists() and files.sha256(there) != sha256:
            raise UserError(f"--name: {name} is there with other weights; remove {there} if these are the right ones")
    else:
        raise UserError(
            f"{source}: no teacher that is known has its sha256, {sha256}; "
            "give --name, --dataset, --architecture and --top1"
        )
    mapped = convert_weights.load_any_format(registry.model(new or registry.entries[name]), source, sha256)
    with files.exclusive_folder(registry.folder, "these teachers", print):
        with files.atomic_write(registry.file(name)) as beside:
            shutil.copyfile(source, beside)
        if new is not None:
            _add(registry.root, name, new)
    return name, mapped


def _add(root: Path, name: str, entry: Entry) -> None:
    yaml, text = YAML(typ="safe", pure=True), StringIO()
    yaml.default_flow_style = False
    file = _local(root)
    there = yaml.load(file.read_bytes()) if file.exists() else {}
    yaml.dump({**there, name: entry.model_dump(exclude_none=True, mode="json")}, text)
    files.write_text(file, text.getvalue())


def evaluate_teacher(registry: Registry, name: str, dataset: Path, device: str = "auto", workers: int = 0) -> float:
    """Its accuracy on the test set of a dataset file, in percent.

    Raises:
        UserError: its weights are not there, or the dataset is another.
    """
    from kdflow.data import load as load_data
    from kdflow.models import convert_weights
    from kdflow.training.device import pick_device
    from kdflow.training.evaluate import accuracy

    entry, file = registry.named(name), registry.file(name)
    if not file.exists():
        raise UserError(f"{name}: its weights are not here; `kdflow teachers fetch {name}` takes them")
    recipe = registry.recipes.datasets[entry.dataset]
    model = registry.model(entry)
    convert_weights.load_any_format(model, file, entry.wanted.sha256)
    on = pick_device(device)
    test = load_data(dataset, recipe.data.train_images, on, workers)
    if len(test.class_names) != recipe.data.classes or len(test.test) != recipe.data.test_images:
        raise UserError(
            f"{dataset}: {len(test.test):,} test images of {len(test.class_names)} classes; {entry.dataset} has "
            f"{recipe.data.test_images:,} of {recipe.data.classes}"
        )
    assert recipe.base_view is not None
    return accuracy(model.to(on), test.test, recipe.base_view).top1
