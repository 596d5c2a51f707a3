"""Published teachers: the registry of recipes/teachers.yaml, download, import and evaluation.

Weights are identified by their sha256. Imported teachers are described in .kdflow/teachers/teachers.yaml.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, model_validator
from ruamel.yaml import YAML

from kdflow import config
from kdflow.config import Percent, Recipes, Settings, Sha256
from kdflow.core import files
from kdflow.core.download import DownloadSpec, download
from kdflow.core.errors import UserError
from kdflow.core.progress import Display

if TYPE_CHECKING:
    from torch import nn

    from kdflow.models.convert_weights import Conversion

SCRATCH = Path(".kdflow")
Url = Annotated[str, Field(pattern="^https?://[^ ]+$")]


class TeacherEntry(Settings):
    """An entry of recipes/teachers.yaml.

    `top1` is the test accuracy in percent, `size` the bytes of the file or an upper bound. If the publisher gives no
    `sha256`, the download is accepted without this check. Where `torchvision` names weights, torchvision gives `urls`,
    `sha256`, `size` and `top1`.
    """

    dataset: str
    architecture: str
    torchvision: Annotated[str, Field(pattern=r"^\w+\.\w+$")] | None = None
    urls: Annotated[tuple[Url, ...], Field(strict=False)] = ()
    sha256: Sha256 | None = None
    size: Annotated[int, Field(gt=0, le=10**12)] | None = None
    top1: Percent | None = None
    licence: str
    source: str

    @model_validator(mode="after")
    def _is_complete(self) -> TeacherEntry:
        given = [key for key in ("sha256", "size", "top1", "urls") if getattr(self, key) not in (None, ())]
        complete = {"size", "top1"} <= set(given) and ("sha256" in given or "urls" in given)
        if self.torchvision is None and not complete:
            raise ValueError("needs either torchvision, or size, top1 and at least one of sha256 and urls")
        if self.torchvision is not None and given:
            raise ValueError(f"{', '.join(given)}: not allowed beside torchvision, which gives them")
        return self

    @cached_property
    def download_spec(self) -> DownloadSpec:
        """Addresses, hash and size of the file; for torchvision, the first digits of the hash, from the file's name.

        Raises:
            UserError: torchvision does not have the weights, or their file's name has no hash.
        """
        if self.torchvision is None:
            assert self.size is not None
            return DownloadSpec(self.urls, self.sha256 or "", self.size)
        weights = self.torchvision_weights
        prefix = re.search(r"-([0-9a-f]{8,})\.pth$", weights.url)
        if prefix is None:
            raise UserError(f"{weights.url}: the name has no hash to check the file with")
        megabytes = weights.meta["_file_size"] + 0.001  # torchvision rounds to three digits
        return DownloadSpec((weights.url,), prefix[1], int(megabytes * 2**20) + 1)

    @cached_property
    def expected_top1(self) -> float:
        """The published test accuracy in percent.

        Raises:
            UserError: torchvision does not have the weights.
        """
        if self.top1 is not None:
            return self.top1
        top1: float = self.torchvision_weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
        return top1

    @property
    def torchvision_weights(self) -> Any:
        """The weights in torchvision.

        Raises:
            UserError: torchvision does not have them.
        """
        import torchvision

        try:
            return torchvision.models.get_weight(self.torchvision)
        except (AttributeError, ValueError, KeyError):
            raise UserError(f"torchvision has no weights {self.torchvision!r}") from None


@dataclass(frozen=True)
class Registry:
    """The teachers of a project, published and imported, and the folder of their weights."""

    root: Path
    recipes: Recipes
    entries: Mapping[str, TeacherEntry]

    @property
    def folder(self) -> Path:
        """The folder of the weights. Neither git nor DVC tracks it; an experiment's settings have the hash."""
        return self.root / SCRATCH / "teachers"

    def get(self, name: str) -> TeacherEntry:
        """Return the entry of a teacher.

        Raises:
            UserError: the name is unknown.
        """
        if name not in self.entries:
            raise config.unknown_name("teacher", name, self.entries)
        return self.entries[name]

    def weights_file(self, name: str) -> Path:
        """Return the path of a teacher's weights, which may not be downloaded yet."""
        return self.folder / f"{name}.weights"

    def lacks_hash(self, name: str) -> bool:
        """Return whether the publisher gives no hash, so that a file cannot be identified as this teacher."""
        return name in self.entries and not self.entries[name].download_spec.sha256

    def create_model(self, entry: TeacherEntry) -> nn.Module:
        """Create a teacher's model with random weights."""
        from kdflow.models import create_model

        data, recipe = self.recipes.datasets[entry.dataset].data, self.recipes.models[entry.architecture]
        return create_model(entry.architecture, recipe, data.classes, data.image_size)

    def usage_line(self, name: str) -> str:
        """Return the command that runs the experiment with this teacher."""
        entry, file = self.get(name), self.weights_file(name).resolve()
        settings = {
            "dataset": entry.dataset,
            "teacher": entry.architecture,
            "teacher_weights.file": str(file) if re.fullmatch(r"[A-Za-z0-9_./-]+", str(file)) else f'"{file}"',
            "teacher_weights.sha256": files.sha256(file),
            "teacher_weights.top1": f"{entry.expected_top1:g}",
        }
        return "dvc exp run " + " ".join(f"-S {shlex.quote(f'{key}={value}')}" for key, value in settings.items())


def load(root: Path = Path()) -> Registry:
    """Read recipes/teachers.yaml and .kdflow/teachers/teachers.yaml below `root`.

    Raises:
        UserError: entries are wrong; one line for each mistake, with file and field.
    """
    mistakes: list[str] = []
    recipes = config.load_recipes(root)
    all_entries: dict[str, TeacherEntry] = {}
    recipe_files, imported = config.recipe_files(root, "teachers"), _imported_file(root)
    for file in (*recipe_files, imported):
        if file != imported or file.exists():
            entries = config.read_entries(file, TeacherEntry, mistakes)
            checks: config.NameChecks = []
            for name, entry in entries.items():
                checks += [(file, f"{name}.dataset", entry.dataset, recipes.datasets)]
                checks += [(file, f"{name}.architecture", entry.architecture, recipes.models)]
                if file == imported and name in all_entries:
                    mistakes.append(f"{file}: {name}: is in recipes/teachers.yaml too")
            config.check_names(checks)
            all_entries |= entries
    if mistakes:
        raise UserError("\n".join(mistakes))
    return Registry(root, recipes, all_entries)


def _imported_file(root: Path) -> Path:
    return root / SCRATCH / "teachers" / "teachers.yaml"


def fetch_and_check(registry: Registry, name: str) -> Conversion:
    """Download a teacher, unless its file is there already, and check that the weights fit its architecture.

    Raises:
        UserError: the download failed, or the weights do not fit.
    """
    from kdflow.models import convert_weights

    entry, file = registry.get(name), registry.weights_file(name)
    spec = entry.download_spec
    with files.exclusive_folder(registry.folder, "these teachers", print):
        if not (file.exists() and files.sha256(file).startswith(spec.sha256)):
            if not spec.urls:
                raise UserError(f"{name}: has no address; import its file with `kdflow teachers import FILE`")
            with Display("fetch") as display:
                download(spec, file, display)
    try:
        return convert_weights.load_any_format(registry.create_model(entry), file, spec.sha256)
    except UserError:
        if registry.lacks_hash(name):  # no hash would show the next attempt that this is a wrong file
            file.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class NewTeacher:
    """A description of imported weights: what the file does not contain. `top1` is in percent."""

    name: str
    dataset: str
    architecture: str
    top1: float
    licence: str
    source: str

    def entry(self, registry: Registry, sha256: str, size: int) -> TeacherEntry:
        """Return the entry of a file with this hash and size.

        Raises:
            UserError: the name is not allowed or taken, or dataset or architecture are unknown.
        """
        if not re.fullmatch("[a-z0-9_]+", self.name):
            raise UserError(f"--name: {self.name!r} is not allowed: use lower-case letters, digits and _ only")
        if self.name in registry.entries:
            raise UserError(f"--name: there is a teacher {self.name} with other weights; choose another name")
        for option, name in (("dataset", self.dataset), ("architecture", self.architecture)):
            known = registry.recipes.datasets if option == "dataset" else registry.recipes.models
            if name not in known:
                raise config.unknown_name(f"--{option}", name, known)
        fields = {key: value for key, value in vars(self).items() if key != "name"}
        return TeacherEntry(**fields, sha256=sha256, size=size)


def import_weights(registry: Registry, source: Path, teacher: NewTeacher | str | None) -> tuple[str, Conversion]:
    """Copy a file of weights into the registry's folder; return the teacher's name and the conversion of its weights.

    Args:
        registry: the registry. A file with the hash of one of its teachers is imported as that teacher.
        source: the file.
        teacher: the name of a teacher without a published hash, or the description of a new teacher.

    Raises:
        UserError: the weights do not fit the architecture, or the file has no known hash and `teacher` is None; then
            nothing is kept.
    """
    from kdflow.models import convert_weights, safe_weights

    size = safe_weights.check_is_file(source)
    sha256 = files.sha256(source)
    hashes = {key: entry.download_spec.sha256 for key, entry in registry.entries.items()}
    name = next((key for key, known in hashes.items() if known and sha256.startswith(known)), None)
    new_entry, given_name = None, teacher.name if isinstance(teacher, NewTeacher) else teacher
    if name is not None:
        if given_name not in (None, name):
            raise UserError(f"{source}: has the sha256 of teacher {name}; import it without --name")
    elif isinstance(teacher, NewTeacher):
        name, new_entry = teacher.name, teacher.entry(registry, sha256, size)
    elif teacher is not None:
        name, current = teacher, registry.weights_file(teacher)
        if current.exists() and files.sha256(current) != sha256:
            raise UserError(f"--name: {name} has other weights already; delete {current} to replace them")
    else:
        raise UserError(
            f"{source}: its sha256 is not that of a known teacher: {sha256}; "
            "give --name, --dataset, --architecture and --top1"
        )
    model = registry.create_model(new_entry or registry.entries[name])
    conversion = convert_weights.load_any_format(model, source, sha256)
    with files.exclusive_folder(registry.folder, "these teachers", print):
        with files.atomic_write(registry.weights_file(name)) as part:
            shutil.copyfile(source, part)
        if new_entry is not None:
            _add_entry(registry.root, name, new_entry)
    return name, conversion


def _add_entry(root: Path, name: str, entry: TeacherEntry) -> None:
    """Add an entry to .kdflow/teachers/teachers.yaml."""
    yaml, text = YAML(typ="safe", pure=True), StringIO()
    yaml.default_flow_style = False
    file = _imported_file(root)
    entries = yaml.load(file.read_bytes()) if file.exists() else {}
    yaml.dump({**entries, name: entry.model_dump(exclude_none=True, mode="json")}, text)
    files.write_text(file, text.getvalue())


def evaluate_teacher(registry: Registry, name: str, dataset: Path, device: str = "auto", workers: int = 0) -> float:
    """Return a teacher's test accuracy in percent.

    Args:
        registry: the registry.
        name: the teacher's name.
        dataset: the prepared dataset, an .h5 file.
        device: a device of torch, or "auto".
        workers: processes that load images; 0 loads them in this process.

    Raises:
        UserError: the weights are not downloaded, or the dataset has other classes or another number of images.
    """
    from kdflow.data import load as load_data
    from kdflow.models import convert_weights
    from kdflow.training.device import pick_device
    from kdflow.training.evaluate import accuracy

    entry, file = registry.get(name), registry.weights_file(name)
    if not file.exists():
        raise UserError(f"{name}: not downloaded yet; run `kdflow teachers fetch {name}`")
    recipe = registry.recipes.datasets[entry.dataset]
    model = registry.create_model(entry)
    convert_weights.load_any_format(model, file, entry.download_spec.sha256)
    torch_device = pick_device(device)
    data = load_data(dataset, recipe.data.train_images, torch_device, workers)
    if len(data.class_names) != recipe.data.classes or len(data.test) != recipe.data.test_images:
        raise UserError(
            f"{dataset}: has {len(data.test):,} test images of {len(data.class_names)} classes; {entry.dataset} has "
            f"{recipe.data.test_images:,} of {recipe.data.classes}"
        )
    assert recipe.base_view is not None
    return accuracy(model.to(torch_device), data.test, recipe.base_view).top1
