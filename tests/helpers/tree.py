"""A small tree of image files, of all the kinds that such trees hold: two classes, dark and bright noise."""

from pathlib import Path

import numpy as np
from PIL import Image

from kdflow.config import BaseView, DatasetSource, Resize

SPEC = DatasetSource(reader="image_folder", classes=2, image_size=32, train_images=12, test_images=6)
VIEWS = BaseView(
    crop=0, flip=True, resize=Resize(side=36, area=(0.08, 1.0)), mean=(0.5, 0.4, 0.3), std=(0.25, 0.3, 0.2)
)
MODES = ("RGB", "L", "CMYK", "P")


def make_tree(folder: Path) -> Path:
    """JPEGs of three modes and a palette PNG in every class, sizes of 20 to 70 px, names with blanks and umlauts."""
    random = np.random.RandomState(0)
    for part, per_class in (("train", 6), ("val", 3)):
        for place, name in enumerate(("n01 dark", "n02 hell ä")):
            within = folder / part / name
            within.mkdir(parents=True)
            for i in range(per_class):
                shape = (*random.randint(20, 70, 2), 3)
                noise = random.randint(0, 128, shape) + 128 * place
                mode = MODES[i % len(MODES)]
                image = Image.fromarray(noise.astype(np.uint8)).convert(mode)
                image.save(within / (f"bild {i}.png" if mode == "P" else f"bild_{i}.JPEG"))
    (folder / "train/n01 dark/notes.txt").write_text("no image")
    return folder
