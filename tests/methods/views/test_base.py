"""The base view: zero-pad, cut, flip, normalise."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kdflow.config import BaseView
from kdflow.methods.views import channel_mean_std, crop_and_flip, normalise

VIEWS = BaseView(crop=4, flip=True, mean=(0.5071, 0.4867, 0.4408), std=(0.2675, 0.2565, 0.2761))


def _images(n: int, size: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.RandomState(seed).randint(0, 256, (n, 3, size, size), dtype=np.uint8))


def _slow(images: np.ndarray, shift: list[list[int]], flip: list[bool], crop: int) -> np.ndarray:
    n, _, size, _ = images.shape
    out = np.zeros_like(images)
    for i in range(n):
        for y in range(size):
            for x in range(size):
                column = size - 1 - x if flip[i] else x
                from_y, from_x = y + shift[i][0] - crop, column + shift[i][1] - crop
                if 0 <= from_y < size and 0 <= from_x < size:
                    out[i, :, y, x] = images[i, :, from_y, from_x]
    return out


@settings(deadline=None)
@given(st.data())
def test_crop_and_flip_equals_a_slow_loop(data):
    n, size, crop = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 7)), data.draw(st.integers(0, 4))
    place = st.integers(0, 2 * crop)
    shift = data.draw(st.lists(st.tuples(place, place).map(list), min_size=n, max_size=n))
    flip = data.draw(st.lists(st.booleans(), min_size=n, max_size=n))
    images = _images(n, size, data.draw(st.integers(0, 1000)))
    if data.draw(st.booleans()):
        images = images.contiguous(memory_format=torch.channels_last)  # as the dataset is laid out
    before = images.clone()
    found = crop_and_flip(images, torch.tensor(shift), torch.tensor(flip), crop)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), _slow(images.numpy(), shift, flip, crop))
    assert torch.equal(images, before)


@pytest.mark.parametrize("crop", [0, 3])
def test_the_centre_crop_without_flip_is_the_identity(crop):
    images = _images(5, 8)
    shift, flip = torch.full((5, 2), crop), torch.zeros(5, dtype=torch.bool)
    assert torch.equal(crop_and_flip(images, shift, flip, crop), images)


def test_padding_is_black_and_on_the_right_sides():
    images = torch.full((1, 3, 4, 4), 255, dtype=torch.uint8)
    found = crop_and_flip(images, torch.tensor([[0, 3]]), torch.tensor([False]), 2)  # 2 up from the middle, 1 right
    expected = torch.zeros(4, 4, dtype=torch.uint8)
    expected[2:, :3] = 255
    assert torch.equal(found[0, 0], expected)


def test_normalise_equals_float64_and_is_channels_last():
    images = _images(6, 9)
    mean, std = channel_mean_std(VIEWS, torch.device("cpu"))
    for given_images in (images, images.contiguous(memory_format=torch.channels_last)):
        found = normalise(given_images, mean, std)
        assert found.dtype == torch.float32
        assert found.is_contiguous(memory_format=torch.channels_last)
        for i in range(6):
            for channel in range(3):
                values = images[i, channel].numpy().astype(np.float64)
                expected = (values / 255 - VIEWS.mean[channel]) / VIEWS.std[channel]
                np.testing.assert_allclose(found[i, channel].numpy(), expected, rtol=0, atol=2e-6)


def test_channel_statistics_have_one_figure_a_channel():
    mean, std = channel_mean_std(VIEWS, torch.device("cpu"))
    assert mean.shape == std.shape == (1, 3, 1, 1)
    assert mean.flatten().tolist() == pytest.approx(VIEWS.mean)
    assert std.flatten().tolist() == pytest.approx(VIEWS.std)
