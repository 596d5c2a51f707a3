"""A small folder of image files with two classes, dark and bright noise."""

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
    """Write JPEGs of three modes and a palette PNG per class, of 20 to 70 px, with blanks and umlauts in names."""
    random = np.random.RandomState(0)
    for part, per_class in (("train", 6), ("val", 3)):
        for label, name in enumerate(("n01 dark", "n02 hell ä")):
            class_folder = folder / part / name
            class_folder.mkdir(parents=True)
            for i in range(per_class):
                shape = (*random.randint(20, 70, 2), 3)
                noise = random.randint(0, 128, shape) + 128 * label
                mode = MODES[i % len(MODES)]
                image = Image.fromarray(noise.astype(np.uint8)).convert(mode)
                image.save(class_folder / (f"bild {i}.png" if mode == "P" else f"bild_{i}.JPEG"))
    (folder / "train/n01 dark/notes.txt").write_text("not an image")
    return folder
