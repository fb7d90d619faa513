"""The layers of the network as plain NumPy loops and products, for comparison."""

import numpy as np


def paddings(size, kernel, *, stride, padding, dilation=1):
    """Returns (before, after) of one axis."""
    reach = dilation * (kernel - 1)
    if padding == "symmetric":
        return reach // 2, reach // 2
    total = max((-(-size // stride) - 1) * stride + reach + 1 - size, 0)
    return total // 2, total - total // 2


def conv2d(x, kernel, *, stride=1, padding="same", dilation=1, groups=1, bias=0.0):
    """Convolves [b, h, w, c] with [kh, kw, c / groups, d]."""
    height, width = kernel.shape[:2]
    pads = [
        paddings(size, cells, stride=stride, padding=padding, dilation=dilation)
        for size, cells in zip(x.shape[1:3], (height, width))
    ]
    x = np.pad(x, [(0, 0), *pads, (0, 0)])
    rows = (x.shape[1] - dilation * (height - 1) - 1) // stride + 1
    columns = (x.shape[2] - dilation * (width - 1) - 1) // stride + 1
    inputs, outputs = kernel.shape[2], kernel.shape[3] // groups
    result = np.zeros((x.shape[0], rows, columns, kernel.shape[3]))
    for i in range(height):
        for j in range(width):
            top, left = i * dilation, j * dilation
            part = x[:, top : top + rows * stride : stride, left : left + columns * stride : stride]
            for group in range(groups):
                own = slice(group * outputs, (group + 1) * outputs)
                values = part[..., group * inputs : (group + 1) * inputs]
                result[..., own] += values @ kernel[i, j, :, own]
    return result + bias


def max_pool(x, *, padding):
    """Pools 3x3 with stride 2."""
    pads = [paddings(x.shape[axis], 3, stride=2, padding=padding) for axis in (1, 2)]
    x = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=-np.inf)
    rows, columns = (x.shape[1] - 3) // 2 + 1, (x.shape[2] - 3) // 2 + 1
    return np.stack(
        [
            [x[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max(axis=(1, 2)) for j in range(columns)]
            for i in range(rows)
        ]
    ).transpose(2, 0, 1, 3)


def relu(x):
    return np.maximum(x, 0.0)


def norm(x, weights, name, *, num_groups=None, epsilon=1e-5):
    """Applies frozen batch norm, or group norm if there is no moving mean under `name`."""
    gamma, beta = weights[f"{name}/gamma"], weights[f"{name}/beta"]
    if f"{name}/moving_mean" in weights:
        mean, variance = weights[f"{name}/moving_mean"], weights[f"{name}/moving_variance"]
        return (x - mean) / np.sqrt(variance + epsilon) * gamma + beta
    grouped = x.reshape(x.shape[0], -1, num_groups, x.shape[-1] // num_groups)
    mean, variance = grouped.mean((1, 3), keepdims=True), grouped.var((1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * gamma + beta


def upsample(x):
    return x.repeat(2, axis=1).repeat(2, axis=2)


def pyramid(features, inner, outer):
    """Joins {level: map} top-down by two convolutions `(map, level)`."""
    above, maps = None, {}
    for level in sorted(features, reverse=True):
        lateral = inner(features[level], level)
        above = lateral if above is None else lateral + upsample(above)
        maps[level] = outer(above, level)
    return maps


def transposed_conv(x, kernel, bias):
    """Doubles [b, h, w, c] by a 2x2 kernel [2, 2, d, c] with stride 2."""
    blocks = np.einsum("bhwc,ijdc->bhiwjd", x, kernel)
    return blocks.reshape(len(x), 2 * x.shape[1], 2 * x.shape[2], -1) + bias


def randomise(model):
    """Gives every variable a random value, variances positive; returns them by name."""
    rng = np.random.default_rng(0)
    weights = {}
    for variable in model.variables:
        name = variable.name.removesuffix(":0")
        if name.endswith(("gamma", "moving_variance")):
            value = rng.uniform(0.5, 1.5, variable.shape)
        elif name.endswith("kernel"):
            value = rng.normal(0.0, 1.0 / np.sqrt(np.prod(variable.shape[:-1])), variable.shape)
        else:
            value = rng.normal(0.0, 0.3, variable.shape)
        variable.assign(value)
        weights[name] = value
    return weights
