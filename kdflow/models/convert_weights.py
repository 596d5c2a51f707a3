"""Weights as other people publish them: what wraps them is taken off, and names of the same layer are mapped to ours.

A file is loaded only if, after that, every name and shape is the model's. Nothing is matched by order and shape: a
VGG13 with five max-pools has the weights of one with three, in the same order, and says something else.
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

# What wrapping leaves in names: DataParallel (also of a part: features.module.0), torch.compile.
WRAPPERS = re.compile(r"(?<![^.])(module|_orig_mod)\.")
# What a larger module puts before the names of all weights.
PREFIXES = ("model.", "net.", "network.", "backbone.", "encoder.", "student.", "teacher.", "resnet.", "base_model.")
# What is no weight: counts of thop and of torch's AveragedModel.
COUNTS = re.compile(r"(^|\.)(total_ops|total_params|n_averaged)$")
UNUSED = ".num_batches_tracked"  # of batch norm, which reads it only where it has no momentum

# One layer by its names in the wild: a pattern, and what all of them become before they are compared.
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
    """What was made of a file: its hash, each step with the number of tensors it concerned, and name by name."""

    sha256: str
    steps: tuple[tuple[str, int], ...]
    names: tuple[tuple[str, str], ...]

    @property
    def summary(self) -> str:
        """All steps in one line; empty where the file is as ours are."""
        return "; ".join(f"{step} ({count})" for step, count in self.steps)


def load_any_format(model: nn.Module, path: Path, sha256: str | None = None) -> Conversion:
    """Load a file of weights, in whatever form it is, into `model`; no code is ever run.

    Args:
        sha256: what the file's hash must be or begin with, in hex; None does not check.

    Raises:
        UserError: the file cannot be read, has another hash, or its weights are not those of this architecture.
    """
    safe_weights.check_is_file(path)
    found = files.sha256(path)
    if sha256 is not None and not found.startswith(sha256):
        raise UserError(f"{path}: sha256 is {found}, expected {sha256}{'...' if len(sha256) < 64 else ''}")
    wanted = model.state_dict()
    state, steps, names = _chosen(path, _dicts(path, safe_weights.read(path)), wanted)
    converted, dtypes = {}, Counter[str]()
    for key, value in state.items():
        converted[key] = _converted(path, key, value, wanted[key])
        if value.dtype != wanted[key].dtype:
            dtypes[f"{_dtype(value)} -> {_dtype(wanted[key])}"] += 1
    missing = {key: value for key, value in wanted.items() if key not in converted}
    if missing:
        steps[f"{UNUSED[1:]} set to 0"] = len(missing)
    model.load_state_dict({**missing, **converted})
    return Conversion(found, tuple((steps + dtypes).items()), names)


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _converted(path: Path, key: str, value: Tensor, wanted: Tensor) -> Tensor:
    if key.endswith(UNUSED):
        return value.to(wanted.dtype) if value.dtype in safe_weights.FLOATS else value
    if wanted.dtype in safe_weights.FLOATS and value.dtype not in safe_weights.FLOATS:
        raise UserError(f"{path}: {key} is {_dtype(value)}; weights are floating-point numbers")
    value = value.to(wanted.dtype)
    safe_weights.check_finite(path, key, value)
    return value


# --- where in the file the weights are ---------------------------------------------------------------------

Found = dict[str, dict[str, Tensor]]  # by the keys that lead there, "" for the whole file


def _dicts(path: Path, content: Any) -> Found:
    """Every dict of tensors in the file, at most three dicts deep.

    Raises:
        UserError: there is none.
    """
    found: Found = {}
    seen: set[int] = set()  # a pickle may hold one dict in many places

    def look(place: str, value: Any, depth: int) -> None:
        if not isinstance(value, dict) or id(value) in seen or depth > 3:
            return
        seen.add(id(value))
        named = {key: one for key, one in dict.items(value) if isinstance(key, str)}
        tensors = {key: one for key, one in named.items() if isinstance(one, Tensor)}
        # Beside a dict of weights stand the odd tensor or two, such as the best accuracy.
        if any(one.ndim for one in tensors.values()):
            found[place] = {
                key: safe_weights.dense_tensor(path, f"{place}{'.' if place else ''}{key}", tensors[key])
                for key in tensors
            }
        for key, one in named.items():
            look(f"{place}.{key}" if place else key, one, depth + 1)

    look("", content, 0)
    if not found:
        kind = type(content).__name__
        if isinstance(content, dict):
            keys = [repr(key[:30]) for key in list(dict.keys(content))[:5] if isinstance(key, str)]
            kind = f"a dict of {', '.join(keys)}" if keys else "an empty dict"
        raise UserError(f"{path}: expected a state dict of tensors, found {kind}")
    return found


Chosen = tuple[dict[str, Tensor], Counter[str], tuple[tuple[str, str], ...]]


def _chosen(path: Path, found: Found, wanted: dict[str, Tensor]) -> Chosen:
    """The one dict that fits the model, with the model's names.

    Raises:
        UserError: none fits, or several do.
    """
    fitting, reasons = {}, {}
    for place, state in found.items():
        try:
            fitting[place] = _fitted(state, wanted)
        except _MisfitError as misfit:
            reasons[place] = misfit
    if not fitting:
        place = min(reasons, key=lambda key: reasons[key].mistakes)
        where = f" (of {place!r} in it)" if place else ""
        raise UserError(f"{path}: weights of another architecture{where}: {reasons[place]}")
    # An average of the weights along training is told of, and left: the usual figures are without it.
    usual = [place for place in fitting if not re.search("(^|[._])ema|averag|shadow", place)] or list(fitting)
    if len(usual) > 1:
        raise UserError(
            f"{path}: several sets of weights fit: {', '.join(map(repr, usual))}; save the one that is meant"
        )
    state, steps, names = fitting[usual[0]]
    told = Counter({f"{usual[0]!r} taken": len(state)} if usual[0] else {})
    told.update({f"{place!r} also fits, left": len(found[place]) for place in fitting if place != usual[0]})
    return state, told + steps, names


# --- from its names to ours --------------------------------------------------------------------------------


class _MisfitError(Exception):
    def __init__(self, reason: str, mistakes: int) -> None:
        super().__init__(reason)
        self.mistakes = mistakes


def _fitted(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> Chosen:
    """The tensors by the model's names, if all of them fit exactly."""
    steps = Counter[str]()
    original: dict[str, str] = {}
    for key in found:
        if COUNTS.search(key):
            steps[f"{key.rpartition('.')[2]} left out"] += 1
            continue
        name, wrapped = WRAPPERS.subn("", key)
        if wrapped:
            steps["'module.' or '_orig_mod.' taken off"] += 1
        if name in original:
            raise _MisfitError(f"{original[name]} and {key} are both {name}", len(wanted))
        original[name] = key
    names = list(original)
    while names and (prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in names)), None)):
        if all(key.startswith(prefix) for key in wanted):
            break  # the model's own names have it
        steps[f"{prefix!r} taken off"] += len(names)
        names = [name.removeprefix(prefix) for name in names]
    stripped = dict(zip(names, original.values(), strict=True))
    ours = _by_alias(wanted) if set(stripped) - set(wanted) else {}
    state, pairs = {}, []
    for name, key in stripped.items():
        own = name if name in wanted else ours.get(_alias(name), name)
        if own in state:
            raise _MisfitError(f"two of its weights are {own}", len(wanted))
        if own != name:
            steps[_difference(name, own)] += 1
        state[own] = found[key]
        pairs.append((key, own))
    _check_fit(state, wanted)
    return state, steps, tuple(pairs)


def _alias(name: str) -> str:
    for pattern, replacement in ALIASES:
        name = re.sub(pattern, replacement, name)
    return name


def _by_alias(wanted: dict[str, Tensor]) -> dict[str, str]:
    aliases = {_alias(key): key for key in wanted}
    return aliases if len(aliases) == len(wanted) else {}  # two of the model's names would become one


def _difference(name: str, own: str) -> str:
    """What of a name became what, numbers apart: `shortcut -> downsample`."""
    a, b = name.split("."), own.split(".")
    while len(a) > 1 and len(b) > 1 and a[-1] == b[-1]:
        a, b = a[:-1], b[:-1]
    while len(a) > 1 and len(b) > 1 and a[0] == b[0]:
        a, b = a[1:], b[1:]
    return " -> ".join(re.sub(r"\d+", "N", ".".join(part)) for part in (a, b))


def _check_fit(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """Every name and shape must be the model's; the reasons why not, the telling ones first."""
    missing = [key for key in wanted if key not in state and not key.endswith(UNUSED)]
    unknown = [key for key in state if key not in wanted]
    shapes = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    mistakes = len(missing) + len(unknown) + len(shapes)
    if not mistakes:
        return
    head = list(wanted)[-1]  # the bias of the last layer, a number per class
    reasons = []
    if not missing and not unknown and set(shapes) <= {head, head.replace("bias", "weight")} and state[head].ndim == 1:
        raise _MisfitError(f"{len(state[head])} classes instead of {len(wanted[head])}", mistakes)
    convolutions = [sum(value.ndim == 4 for value in one.values()) for one in (state, wanted)]
    if not (unknown or shapes) and all(".downsample." in key or ".shortcut." in key for key in missing):
        reasons.append("shortcuts without weights (option A)")
    elif convolutions[0] != convolutions[1]:
        reasons.append(f"{convolutions[0]} convolutions instead of {convolutions[1]}")
    elif shapes and not missing and not unknown:
        reasons.append("another width or kernel")
    details = [f"{key} is missing" for key in missing] + [f"{key} is unknown" for key in unknown]
    details += [f"{key} is {list(state[key].shape)} instead of {list(wanted[key].shape)}" for key in shapes]
    more = f" and {len(details) - 3} more" if len(details) > 3 else ""
    raise _MisfitError(f"{', '.join(reasons + details[:3])}{more}", mistakes)
