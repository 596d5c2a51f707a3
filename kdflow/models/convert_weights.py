"""Loading of checkpoints from other projects: unwraps them and maps their names to the model's.

A file is loaded only if then every name and shape is the model's. Weights are never matched by order and shape alone: a
VGG13 with five max-pools has the same weights in the same order as one with three, and is another function.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from kdflow.core import files
from kdflow.core.errors import UserError
from kdflow.models import safe_weights

# Parts that wrappers add to names: DataParallel (also of a submodule: features.module.0), torch.compile.
WRAPPERS = re.compile(r"(?<![^.])(module|_orig_mod)\.")
# Tensors that are not weights: the counters of thop and of torch's AveragedModel.
COUNTERS = re.compile(r"(^|\.)(total_ops|total_params|n_averaged)$")
# The index of a layer in a sequence, such as that of a linear layer after dropout.
INDEX = re.compile(r"\.\d+(?=\.(weight|bias)$)")
OPTIONAL = ".num_batches_tracked"  # of batch norm, which reads it only if its momentum is None

# Names of the same layer in other projects: a pattern and its replacement. Names are compared after all replacements.
Replacement = str | Callable[[re.Match[str]], str]
ALIASES: tuple[tuple[str, Replacement], ...] = (
    # OpenMMLab: backbone.layer1..., head.fc
    (r"^backbone\.", ""),
    (r"^head\.fc\.", "head."),
    # pytorchcv: features.init_block.conv, features.stage1.unit1.body.conv1.bn, .identity_conv.conv, output
    (r"^features\.init_block\.(conv|bn)\.", r"\g<1>1."),
    (r"^features\.stage(\d+)\.unit(\d+)\.", lambda m: f"layer{m[1]}.{int(m[2]) - 1}."),
    (r"^(layer\d+\.\d+)\.body\.conv(\d)\.(conv|bn)\.", r"\1.\3\2."),
    (r"\.identity_conv\.conv\.", ".shortcut.0."),
    (r"\.identity_conv\.bn\.", ".shortcut.1."),
    # weiaicunzai/pytorch-cifar100: conv1.0, conv1.1, conv2_x.0.residual_function.3
    (r"^conv1\.0\.", "conv1."),
    (r"^conv1\.1\.", "bn1."),
    (r"^conv([2-5])_x\.", lambda m: f"layer{int(m[1]) - 1}."),
    (r"\.residual_function\.([036])\.", lambda m: f".conv{int(m[1]) // 3 + 1}."),
    (r"\.residual_function\.([147])\.", lambda m: f".bn{int(m[1]) // 3 + 1}."),
    # D-X-Y/ResNeXt-DenseNet: conv_1_3x3, bn_1, stage_1.0.conv_a
    (r"^conv_1_3x3\.", "conv1."),
    (r"^bn_1\.", "bn1."),
    (r"^stage_(\d)\.", r"layer\1."),
    (r"\.(conv|bn)_([ab])\.", lambda m: f".{m[1]}{'ab'.index(m[2]) + 1}."),
    # kuangliu/pytorch-cifar and akamaster/pytorch_resnet_cifar10: linear, shortcut
    (r"\.(downsample|skip)\.", ".shortcut."),
    (r"^(fc|linear|classifier|output|last_linear|logits)\.(weight|bias)$", r"head.\2"),
)


@dataclass(frozen=True)
class Conversion:
    """The result of loading a file: its hash, each step with its number of tensors, and (file's, model's) names."""

    sha256: str
    steps: tuple[tuple[str, int], ...]
    names: tuple[tuple[str, str], ...]

    @property
    def summary(self) -> str:
        """All steps in one line; empty if nothing was converted."""
        return "; ".join(f"{step} ({count})" for step, count in self.steps)


def load_any_format(model: nn.Module, path: Path, sha256: str | None = None) -> Conversion:
    """Load a checkpoint of any known format into `model`; no code of the file is run.

    Use `models.load_exact` for weights that this project wrote.

    Args:
        sha256: the expected SHA-256 of the file in hex, or its beginning; None does not check.

    Raises:
        UserError: the file cannot be read, has another hash, or its weights do not fit this architecture.
    """
    safe_weights.check_is_file(path)
    actual = files.sha256(path)
    if sha256 is not None and not actual.startswith(sha256):
        raise UserError(f"{path}: sha256 is {actual}, expected {sha256}{'...' if len(sha256) < 64 else ''}")
    expected = model.state_dict()
    state, steps, names = _select(path, find_states(path, safe_weights.read(path)), expected)
    converted, dtypes = {}, Counter[str]()
    for key, value in state.items():
        converted[key] = _cast(path, key, value, expected[key])
        if value.dtype != expected[key].dtype:
            dtypes[f"{_dtype(value)} -> {_dtype(expected[key])}"] += 1
    missing = {key: value for key, value in expected.items() if key not in converted}
    if missing:
        steps[f"{OPTIONAL[1:]} set to 0"] = len(missing)
    model.load_state_dict({**missing, **converted})
    return Conversion(actual, tuple((steps + dtypes).items()), names)


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _cast(path: Path, key: str, value: Tensor, expected: Tensor) -> Tensor:
    if key.endswith(OPTIONAL):
        return value.to(expected.dtype) if value.dtype in safe_weights.FLOATS else value
    if expected.dtype in safe_weights.FLOATS and value.dtype not in safe_weights.FLOATS:
        raise UserError(f"{path}: {key} is {_dtype(value)}; weights are floating-point numbers")
    value = value.to(expected.dtype)
    safe_weights.check_finite(path, key, value)
    return value


# --- the state dicts in a file -----------------------------------------------------------------------------

States = dict[str, dict[str, Tensor]]  # by the keys that lead to each, joined by dots; "" for the whole file


def find_states(path: Path, content: Any) -> States:
    """Return every dict of tensors in the file, at most three dicts deep.

    Raises:
        UserError: there is none.
    """
    states: States = {}
    visited: set[int] = set()  # a pickle may contain one dict in many places

    def visit(location: str, value: Any, depth: int) -> None:
        if not isinstance(value, dict) or id(value) in visited or depth > 3:
            return
        visited.add(id(value))
        items = {key: item for key, item in dict.items(value) if isinstance(key, str)}
        tensors = {key: item for key, item in items.items() if isinstance(item, Tensor)}
        # A dict with only scalars has no weights: it may hold the best accuracy beside the state dict.
        if any(tensor.ndim for tensor in tensors.values()):
            states[location] = {
                key: safe_weights.dense_tensor(path, f"{location}{'.' if location else ''}{key}", tensors[key])
                for key in tensors
            }
        for key, item in items.items():
            visit(f"{location}.{key}" if location else key, item, depth + 1)

    visit("", content, 0)
    if not states:
        kind = type(content).__name__
        if isinstance(content, dict):
            keys = [repr(key[:30]) for key in list(dict.keys(content))[:5] if isinstance(key, str)]
            kind = f"a dict of {', '.join(keys)}" if keys else "an empty dict"
        raise UserError(f"{path}: expected a state dict of tensors, found {kind}")
    return states


Renamed = tuple[dict[str, Tensor], Counter[str], tuple[tuple[str, str], ...]]
"""A state dict with the model's names, the steps with their number of tensors, and pairs of old and new name."""


def _select(path: Path, states: States, expected: dict[str, Tensor]) -> Renamed:
    """Return the only state dict, or part of one with a common prefix, that fits the model, with the model's names.

    Raises:
        UserError: none fits, or several do.
    """
    fitting: dict[tuple[str, str], Renamed] = {}  # by the location of the state dict and the prefix
    misfits: dict[tuple[str, str], _MisfitError] = {}
    for location, state in states.items():
        for prefix in _prefixes(state, expected):
            if any(prefix.startswith(shorter) for place, shorter in fitting if place == location):
                continue  # the same weights
            try:
                fitting[location, prefix] = _rename(state, expected, prefix)
            except _MisfitError as misfit:
                misfits[location, prefix] = misfit
    if not fitting:
        closest = min(misfits, key=lambda place: misfits[place].count)
        where = f" (of {_label(*closest)!r} in it)" if any(closest) else ""
        raise UserError(f"{path}: weights of another architecture{where}: {misfits[closest]}")
    # Averages of the weights along training are ignored: published accuracies are usually without them.
    usual = [place for place in fitting if not re.search("(^|[._])ema|averag|shadow", _label(*place))] or list(fitting)
    if len(usual) > 1:
        several = ", ".join(repr(_label(*place)) for place in usual)
        raise UserError(f"{path}: several sets of weights fit: {several}; save the right one alone")
    (location, prefix), others = usual[0], [place for place in fitting if place != usual[0]]
    renamed, steps, names = fitting[usual[0]]
    selection = Counter({f"{location!r} used": len(renamed)} if location else {})
    selection.update({f"{_label(*place)!r} also fits, ignored": len(fitting[place][0]) for place in others})
    rest = [
        key.split(".")[0]
        for key in states[location]
        if not key.startswith((prefix, *(other for place, other in others if place == location)))
    ]
    return renamed, selection + steps + Counter(f"{name!r} ignored" for name in rest), names


def _prefixes(state: dict[str, Tensor], expected: dict[str, Tensor]) -> list[str]:
    """Return the prefixes that may lead to the model's weights, shortest first: many names of `state` have them."""
    counts = Counter(key[: dot.end()] for key in state for dot in re.finditer(r"\.", key))
    needed = sum(not key.endswith(OPTIONAL) for key in expected)
    return ["", *sorted((prefix for prefix, count in counts.items() if 2 * count >= needed), key=len)]


def _label(location: str, prefix: str) -> str:
    """Return the name of a part of a file: the keys that lead to its state dict, and the prefix in that."""
    return f"{location}.{prefix}" if location and prefix else location or prefix


# --- names -------------------------------------------------------------------------------------------------


class _MisfitError(Exception):
    """A state dict does not fit the model: the reason, and the number of names and shapes that differ."""

    def __init__(self, reason: str, count: int) -> None:
        super().__init__(reason)
        self.count = count


def _rename(state: dict[str, Tensor], expected: dict[str, Tensor], prefix: str) -> Renamed:
    """Give the tensors whose names start with `prefix` the model's names.

    Raises:
        _MisfitError: the names or shapes are not the model's.
    """
    steps = Counter[str]()
    original: dict[str, str] = {}
    for key in state:
        if not key.startswith(prefix):
            continue
        if COUNTERS.search(key):
            steps[f"{key.rpartition('.')[2]} ignored"] += 1
            continue
        name, wrapped = WRAPPERS.subn("", key.removeprefix(prefix))
        if wrapped:
            steps["'module.' or '_orig_mod.' removed"] += 1
        if name in original:
            raise _MisfitError(f"{original[name]} and {key} are both {name}", len(expected))
        original[name] = key
    if prefix:
        steps[f"{prefix!r} removed"] = len(original)
    by_alias = _by_alias(expected) if set(original) - set(expected) else {}
    renamed, keys = {}, dict[str, str]()
    for name, key in original.items():
        target = name if name in expected else by_alias.get(_alias(name)) or _head(name, by_alias) or name
        if target in renamed:
            raise _MisfitError(f"two of its weights are {target}: {keys[target]} and {key}", len(expected))
        if target != name:
            steps[_name_change(name, target)] += 1
        renamed[target], keys[target] = state[key], key
    _check_fit(renamed, expected)
    return renamed, steps, tuple((key, target) for target, key in keys.items())


def _head(name: str, by_alias: dict[str, str]) -> str | None:
    """Return the model's name of a classifier that is a layer in a sequence, such as `fc.1.weight` after dropout."""
    alias = _alias(INDEX.sub("", name))
    return by_alias.get(alias) if alias.startswith("head.") else None


def _alias(name: str) -> str:
    """Return the name after all replacements of `ALIASES`, which is the same for all names of a layer."""
    for pattern, replacement in ALIASES:
        name = re.sub(pattern, replacement, name)
    return name


def _by_alias(expected: dict[str, Tensor]) -> dict[str, str]:
    """Map aliases to the model's names; empty if two of the model's names have the same alias."""
    aliases = {_alias(key): key for key in expected}
    return aliases if len(aliases) == len(expected) else {}


def _name_change(name: str, target: str) -> str:
    """Describe a change of a name without its equal parts and numbers: `shortcut -> downsample`."""
    a, b = name.split("."), target.split(".")
    while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    while len(a) > 1 and len(b) > 1 and a[0] == b[0]:
        a, b = a[1:], b[1:]
    return " -> ".join(re.sub(r"\d+", "N", ".".join(part)) for part in (a, b))


def _check_fit(state: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Compare names and shapes with the model's, and explain a difference.

    Raises:
        _MisfitError: they differ; the most useful reason comes first.
    """
    difference = safe_weights.compare_states(state, expected, optional=OPTIONAL)
    if not difference:
        return
    reasons = []
    head = list(expected)[-1]  # the bias of the classifier, [classes]
    renamed = difference.missing or difference.unknown
    if not renamed and set(difference.shapes) <= {head, head.replace("bias", "weight")} and state[head].ndim == 1:
        raise _MisfitError(f"{len(state[head])} classes instead of {len(expected[head])}", len(difference))
    convolutions = [sum(value.ndim == 4 for value in one.values()) for one in (state, expected)]
    shortcuts = all(".downsample." in key or ".shortcut." in key for key in difference.missing)
    if shortcuts and not (difference.unknown or difference.shapes):
        reasons.append("shortcuts without weights (option A)")
    elif convolutions[0] != convolutions[1]:
        reasons.append(f"{convolutions[0]} convolutions instead of {convolutions[1]}")
    elif not renamed:
        reasons.append("another width or kernel")
    raise _MisfitError(", ".join([*reasons, str(difference)]), len(difference))
