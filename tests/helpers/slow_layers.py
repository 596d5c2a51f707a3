"""Layers as loops over numbers in float64, on arrays [image, channel, row, column]."""

import itertools
import math

import numpy as np


def convolution(x, layer):
    """Return the output of a `Conv2d` with stride 1, or of a `Linear` for maps of 1x1."""
    weight = layer.weight.detach().double().numpy()
    weight = weight.reshape(*weight.shape[:2], *weight.shape[2:] or (1, 1))
    bias = None if layer.bias is None else layer.bias.tolist()
    (b, channels_in, h, w), (channels, _, kernel, _) = x.shape, weight.shape
    result = np.zeros((b, channels, h, w))
    for i, k, row, column in np.ndindex(result.shape):
        value = 0.0 if bias is None else bias[k]
        for j, dy, dx in itertools.product(range(channels_in), range(kernel), range(kernel)):
            y, z = row + dy - kernel // 2, column + dx - kernel // 2
            if 0 <= y < h and 0 <= z < w:
                value += weight[k, j, dy, dx] * x[i, j, y, z]
        result[i, k, row, column] = value
    return result


def batch_norm(x, layer):
    """Normalise with the mean and variance of the batch, as in train mode."""
    weight, bias, result = layer.weight.tolist(), layer.bias.tolist(), np.zeros_like(x)
    for k in range(x.shape[1]):
        values = x[:, k].flatten().tolist()
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        for i, row, column in np.ndindex(x[:, k].shape):
            normal = (x[i, k, row, column] - mean) / math.sqrt(variance + layer.eps)
            result[i, k, row, column] = normal * weight[k] + bias[k]
    return result


def relu(x):
    return np.where(x > 0, x, 0.0)


def nearest(x, size):
    """Return `x` at another size; each pixel is the one whose place is nearest to the top left."""
    (h, w), (rows, columns) = x.shape[2:], size
    return np.array(
        [
            [[[c[i * h // rows][j * w // columns] for j in range(columns)] for i in range(rows)] for c in image]
            for image in x.tolist()
        ]
    )


def average_pool(x, size):
    """Return the means of `size` x `size` blocks that divide the map evenly."""
    h, w = x.shape[2] // size, x.shape[3] // size
    result = np.zeros((*x.shape[:2], size, size))
    for i, k, row, column in np.ndindex(result.shape):
        block = x[i, k, row * h : (row + 1) * h, column * w : (column + 1) * w].flatten().tolist()
        result[i, k, row, column] = sum(block) / len(block)
    return result


def mean_squared_error(x, y):
    squares = [(a - b) ** 2 for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)]
    return sum(squares) / len(squares)
