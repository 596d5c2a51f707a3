"""ImageNet's official archives and the unpacked folder, with few images."""

import dataclasses
import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
from scipy.io import savemat

from kdflow.config import DatasetSource
from kdflow.data.readers import imagenet
from kdflow.data.readers.imagenet import DEVKIT, TRAIN, VAL


def tar_of(members):
    """Return a tar with members (name or TarInfo, content)."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


def devkit(ids, truth):
    """Return the two files of the devkit, with a hypernym beside the classes."""
    kinds = [("ILSVRC2012_ID", "i4"), ("WNID", "O"), ("words", "O"), ("num_children", "i4")]
    rows = [(number, name, f"word of {name}", 0) for number, name in enumerate(ids, 1)] + [(9, "n99", "a hypernym", 3)]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kinds)})
    return {"data/meta.mat": meta.getvalue(), imagenet.TRUTH: "".join(f"{number}\n" for number in truth).encode()}


@dataclasses.dataclass
class Archives:
    """The content of the three archives."""

    train: dict[str, list]
    val: list
    devkit: dict

    def write(self, folder: Path, spec: DatasetSource) -> DatasetSource:
        """Write the archives to `folder` and return `spec` with the devkit's md5."""
        folder.mkdir()
        (folder / TRAIN).write_bytes(tar_of([(name, tar_of(members)) for name, members in self.train.items()]))
        (folder / VAL).write_bytes(tar_of(self.val))
        inside = [(f"ILSVRC2012_devkit_t12/{name}", content) for name, content in self.devkit.items()]
        (folder / DEVKIT).write_bytes(gzip.compress(tar_of([("ILSVRC2012_devkit_t12/readme.txt", b"x"), *inside])))
        return spec.model_copy(update={"md5": hashlib.md5((folder / DEVKIT).read_bytes()).hexdigest()})


def both_forms(photos, folder, truth, ids):
    """Write `photos` of each class as a folder and return them as archives; `truth` lists the validation images."""
    val = {}
    for number, (label, place) in enumerate(truth, 1):
        val[f"ILSVRC2012_val_{number:08}.JPEG"] = (ids[label - 1], photos[ids[label - 1]][place])
    per_class = {name: [(f"{name}_{i}.JPEG", photo) for i, photo in enumerate(of)] for name, of in photos.items()}
    for_training = {
        name: [member for i, member in enumerate(members) if (name, i) not in {(ids[k - 1], p) for k, p in truth}]
        for name, members in per_class.items()
    }
    for name, members in for_training.items():
        for image, content in members:
            _put(folder / "train" / name / image, content)
    for image, (name, content) in val.items():
        _put(folder / "val" / name / image, content)
    return Archives(
        {f"{name}.tar": members for name, members in for_training.items()},
        [(image, content) for image, (_, content) in reversed(val.items())],
        devkit(ids, [label for label, _ in truth]),
    )


def _put(file, content):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
