"""Open a file of weights of another project, and tell which one it is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fx_d2.engine.weights import CheckpointError, Weights, read_torch, read_weights

# Where training checkpoints keep the averaged weights and the trained ones.
_TEACHER = ("teacher_model", "teacher", "model_ema", "state_dict_ema", "ema")
_STUDENT = ("model", "state_dict", "student", "net")
WHICH = ("teacher", "student")
_STEM = "patch_embed.proj.weight"
_FOUNDATION_X = re.compile(r"backbone\.0\.(classification_heads|segmentation_)")
_DECODER_OF_X = re.compile(r"transformer\.decoder\.\d+\.layers\.")

KINDS = {
    "swin_microsoft": "Swin, reduction at the end of a stage (Microsoft, timm before 0.8)",
    "swin_timm": "Swin, reduction at the start of a stage (timm from 0.8)",
    "ark6": "Ark-6",
    "foundation_x": "Foundation X",
    "foundation_x_plus": "Foundation X+",
    "fx_d2_lora": "fx_d2 with LoRA branches",
}


@dataclass(frozen=True)
class Foreign:
    """Weights of another project under their own names, without the prefix of a wrapper.

    Args:
        path: of the file.
        kind: a key of ``KINDS``.
        entry: of the file, such as ``"teacher_model"``; empty where the file is a state dict.
        weights: of that entry.
        student: of the student beside it; empty without one.
    """

    path: Path
    kind: str
    entry: str
    weights: Weights
    student: Weights

    @property
    def prefix(self) -> str:
        """What stands before the names of the Swin."""
        return stem_prefix(self.weights)


def read_foreign(
    path: str | os.PathLike[str], *, which: str = "teacher", trust_pickle: bool = False
) -> Foreign:
    """Read the tensors of a ``.pth``, ``.safetensors`` or other file of ``torch.save``.

    Args:
        path: of the file.
        which: ``teacher`` takes the averaged weights where there are any, ``student`` never.
        trust_pickle: run code that the file contains. Only for files whose origin you trust.
    """
    path = Path(path).expanduser()
    if which not in WHICH:
        raise ValueError(f"weights {which!r}; allowed: {WHICH}")
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob("*.pth"))[:5]
        fix = f"in that folder are {', '.join(near)}" if near else "check the path"
        raise CheckpointError("there is no such file", file=path, fix=fix)
    content = _content(path, trust_pickle)
    entries = [e for e in (*_TEACHER, *_STUDENT) if isinstance(content.get(e), Mapping)]
    wanted = [e for e in entries if e in _STUDENT or which == "teacher"]
    entry = wanted[0] if wanted else ""
    if entries and not entry:
        raise CheckpointError(
            f"there is no student, but {entries}", file=path, fix="take --weights teacher"
        )
    weights = _tensors(content[entry] if entry else content)
    if not weights:
        raise CheckpointError(
            f"holds no weights, but {sorted(map(str, content))[:5]}",
            file=path,
            expected=f"a state dict, or one under one of {', '.join((*_TEACHER, *_STUDENT))}",
        )
    student = next((e for e in entries if e in _STUDENT and e != entry), "")
    return Foreign(
        path=path,
        kind=_kind(weights, path),
        entry=entry,
        weights=weights,
        student=_tensors(content[student]) if student else {},
    )


def stem_prefix(weights: Mapping[str, Any]) -> str:
    """What stands before ``patch_embed`` in the names; it is there once."""
    return next(name for name in weights if name.endswith(_STEM)).removesuffix(_STEM)


def _content(path: Path, trust_pickle: bool) -> dict[str, Any]:
    if path.suffix == ".safetensors":
        return dict(read_weights(path))
    if trust_pickle:
        found = torch.load(path, map_location="cpu", weights_only=False)
    else:
        try:
            found = read_torch(path)
        except CheckpointError as exc:
            if "needs code" not in exc.problem:
                raise
            raise CheckpointError(
                exc.problem, file=path, fix="if you trust its origin, add --trust-pickle"
            ) from exc
    if not isinstance(found, Mapping):
        raise CheckpointError(
            f"holds a {type(found).__name__}", file=path, expected="tensors by name"
        )
    return {str(key): value for key, value in found.items()}


def _tensors(content: Mapping[str, Any]) -> Weights:
    return {
        str(name).removeprefix("module."): value
        for name, value in content.items()
        if isinstance(value, torch.Tensor)
    }


def _kind(weights: Weights, path: Path) -> str:
    names = list(weights)
    if any(name.endswith(".lora.down.weight") for name in names):
        return "fx_d2_lora"
    stems = [name for name in names if name.endswith(_STEM)]
    if len(stems) != 1:
        raise CheckpointError(
            f"holds {len(stems) or 'no'} tensors {_STEM!r}; it begins with {names[0]!r}",
            file=path,
            expected="exactly one Swin: of Microsoft, timm, Ark-6 or Foundation X",
        )
    if any(_FOUNDATION_X.match(name) for name in names):
        separate = any(_DECODER_OF_X.match(name) for name in names)
        return "foundation_x" if separate else "foundation_x_plus"
    prefix = stems[0].removesuffix(_STEM)
    if any(name.startswith((f"{prefix}omni_heads.", f"{prefix}projector.")) for name in names):
        return "ark6"
    return f"swin_{'microsoft' if reduces_at_end(weights, prefix) else 'timm'}"


def reduces_at_end(weights: Mapping[str, Any], prefix: str) -> bool:
    """Whether a stage ends with its reduction: only then the first of all stages has one."""
    return f"{prefix}layers.0.downsample.reduction.weight" in weights
