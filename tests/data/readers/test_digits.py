"""The digits: complete, balanced, and the same bytes on every machine."""

from collections import Counter

import h5py
import numpy as np
import pytest
from paths import ROOT
from sklearn.datasets import load_digits

from kdflow import config
from kdflow.core.errors import UserError
from kdflow.data import Split, prepare
from kdflow.data.readers import digits

DIGITS = config.load(ROOT).datasets["digits"]
GOLDEN = "3e27af41a7b4c0d32b4effa1fb454451f5fe20e75b9cec373ea9adcf2f592165"


def _bag(split: Split) -> Counter[tuple[bytes, int]]:
    return Counter((image.tobytes(), int(label)) for image, label in zip(split.images, split.labels, strict=True))


def test_counts_shapes_dtypes(tmp_path):
    splits = digits.read(DIGITS.data, None, tmp_path)
    for split, n in ((splits.train, 300), (splits.test, 1497)):
        assert split.images.shape == (n, 16, 16, 3)
        assert split.images.dtype == np.uint8
        assert split.labels.shape == (n,)
        assert split.labels.dtype == np.int64
    assert splits.class_names == list("0123456789")


@pytest.mark.parametrize("count", [300, 295, 11])
def test_train_is_class_balanced_to_within_one(tmp_path, count):
    spec = DIGITS.data.model_copy(update={"train_images": count, "test_images": 1797 - count})
    per_class = Counter(digits.read(spec, None, tmp_path).train.labels.tolist())
    assert sum(per_class.values()) == count
    assert max(per_class.values()) - min(per_class[label] for label in range(10)) <= 1


def test_train_and_test_are_disjoint_and_together_all_scans(tmp_path):
    small = DIGITS.data.model_copy(update={"image_size": 8})  # no resizing: the scans themselves
    splits = digits.read(small, None, tmp_path)
    scans, labels = load_digits(return_X_y=True)
    expected: Counter[tuple[bytes, int]] = Counter()
    for scan, label in zip(scans, labels, strict=True):
        image = np.empty((8, 8, 3), np.uint8)
        for i, value in enumerate(scan):
            image[i // 8, i % 8] = int(value * 255 / 16 + 0.5)
        expected[image.tobytes(), int(label)] += 1
    assert sum(expected.values()) == 1797
    assert _bag(splits.train) + _bag(splits.test) == expected
    resized = digits.read(DIGITS.data, None, tmp_path)  # the same scans in the same order
    assert np.array_equal(resized.train.labels, splits.train.labels)
    assert np.array_equal(resized.test.labels, splits.test.labels)


def test_channels_are_equal_and_recipe_statistics_are_those_of_train(tmp_path):
    images = digits.read(DIGITS.data, None, tmp_path).train.images
    assert np.array_equal(images[..., 0], images[..., 1])
    assert np.array_equal(images[..., 0], images[..., 2])
    values = images[..., 0].astype(np.float64) / 255
    assert [round(float(values.mean()), 4)] * 3 == list(DIGITS.base_view.mean)
    assert [round(float(values.std()), 4)] * 3 == list(DIGITS.base_view.std)


def test_prepared_content_has_the_golden_hash(tmp_path):
    out = tmp_path / "digits.h5"
    assert prepare("digits", DIGITS.data, None, tmp_path / "downloads", out) == GOLDEN
    with h5py.File(out) as file:
        assert file.attrs["sha256"] == GOLDEN


def test_folder_is_refused(tmp_path):
    with pytest.raises(UserError) as caught:
        digits.read(DIGITS.data, tmp_path, tmp_path)
    assert "data_folder" in str(caught.value)
    assert "\n" not in str(caught.value)
