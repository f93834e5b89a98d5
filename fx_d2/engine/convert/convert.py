"""Put foreign weights under our names, check every shape, and tell what became of each.

A tensor is converted only where the result computes the same numbers. What has no such place is
listed with the reason; nothing is resized, averaged or guessed.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from fx_d2.data.atomic import write_atomically
from fx_d2.engine.description import describe
from fx_d2.engine.setup import config_errors
from fx_d2.engine.weights import (
    CheckpointError,
    CheckpointFiles,
    Weights,
    digest,
    write_checkpoint,
)

from .read import KINDS, Foreign, reduces_at_end
from .rules import NO_NAME, Place, place_of, rules_for

# Parts that compute nothing sensible when only half of them is converted.
_WHOLE = ("seg_decoder.",)
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@dataclass
class Conversion:
    """What became of every tensor of a file; each of its names stands in one of the first three.

    Args:
        foreign: the file.
        converted: {name in the file: name here}.
        left_out: {name in the file: why}.
        mismatched: {name in the file: why}, where it has a place that it does not fit.
        weights: the converted tensors under our names.
        missing: names of the model that got nothing.
        notes: what a user should know, in sentences.
    """

    foreign: Foreign
    converted: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    mismatched: dict[str, str] = field(default_factory=dict)
    weights: Weights = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """For people: counts per part and reason, and every tensor that does not fit."""
        about = f"{KINDS[self.foreign.kind]}, {swin_facts(self.foreign)}"
        entry = f" [{self.foreign.entry}]" if self.foreign.entry else ""
        lines = [f"{self.foreign.path}{entry}: {about}"]
        lines.append(f"  converted {len(self.converted)} of {len(self.foreign.weights)} tensors: ")
        lines[-1] += _counts(_part(name) for name in self.converted.values())
        for reason in dict.fromkeys(self.left_out.values()):
            names = [name for name, why in self.left_out.items() if why == reason]
            lines.append(f"  no place for {len(names)}, {reason}: {_few(names)}")
        for reason, count in Counter(self.mismatched.values()).items():
            names = [name for name, why in self.mismatched.items() if why == reason]
            lines.append(f"  not converted, {count} tensors, {reason}: {_few(names)}")
        if self.missing:
            lines.append(
                f"  not in the file, random in the model: {_counts(map(_part, self.missing))}"
            )
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])

    def report(self) -> dict[str, Any]:
        """Everything, as JSON knows it."""
        return {
            "file": self.foreign.path.name,
            "sha256": digest(self.foreign.path),
            "kind": self.foreign.kind,
            "entry": self.foreign.entry,
            "converted": self.converted,
            "left_out": self.left_out,
            "mismatched": self.mismatched,
            "missing": list(self.missing),
            "notes": self.notes,
        }


def meta_model(cfg: CfgNode) -> nn.Module:
    """The model of a config without values: only names, shapes and class lists."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE, cfg.MODEL.FX.TRUNK.PRETRAINED = "meta", ""
    with config_errors(), torch.device("meta"):
        return build_model(cfg)


def convert(foreign: Foreign, model: nn.Module) -> Conversion:
    """Convert what has an exact place in ``model``.

    Args:
        foreign: from :func:`fx_d2.engine.convert.read.read_foreign`.
        model: tells names and shapes; its values are not read.
    """
    result = Conversion(foreign)
    target = model.state_dict()
    at_end = reduces_at_end(foreign.weights, foreign.prefix)
    rules = rules_for(foreign.kind, foreign.prefix, at_end=at_end)
    places: dict[str, Place] = {}
    for name in foreign.weights:
        place = place_of(name, rules)
        if isinstance(place, str):
            result.left_out[name] = place
        else:
            places[name] = place
    _check_copies(foreign)
    _check_positions(foreign)
    values = _with_student_statistics(foreign, result)
    for name, place in places.items():
        _put(result, name, place, values[name], target)
    _only_whole(result, places, target)
    result.missing = tuple(name for name in target if name not in result.weights)
    # Small tables fit by chance.
    if "trunk.net.patch_embed.proj.bias" not in result.weights:
        raise CheckpointError(
            f"its trunk does not fit the model: the file has a {swin_facts(foreign)}; "
            + _few(result.mismatched.values()),
            file=foreign.path,
            fix="give the trunk of that size: MODEL.FX.TRUNK.NAME swin_t, swin_b or swin_l, and "
            "MODEL.FX.TRUNK.KWARGS for others",
        )
    _add_notes(result)
    return result


def write_conversion(result: Conversion, cfg: CfgNode, out: str | os.PathLike[str]) -> Path:
    """Write the converted tensors with a description that names config, classes and origin.

    Args:
        result: of :func:`convert`.
        cfg: of the model it was converted for.
        out: a ``.safetensors`` file; its ``.json`` is written beside it.
    """
    out = Path(out)
    model = meta_model(cfg)
    about = describe(cfg, model)
    # Only heads that came: the others are not trained for anything.
    about["sources"] = {
        source: there
        for source, tasks in about["sources"].items()
        if (there := {t: c for t, c in tasks.items() if _has_head(result.weights, t, source)})
    }
    origin = {k: v for k, v in result.report().items() if k in ("file", "sha256", "kind", "entry")}
    about |= {"iteration": None, "metrics": {}, "converted_from": origin}
    write_checkpoint(CheckpointFiles(out), result.weights, about, None)
    return out


def write_report(result: Conversion, path: str | os.PathLike[str]) -> None:
    """Write :meth:`Conversion.report` as JSON."""
    write_atomically(path, json.dumps(result.report(), indent=1) + "\n")


def swin_facts(foreign: Foreign) -> str:
    """What a file says about its network: width, depths and window."""
    weights, prefix = foreign.weights, foreign.prefix
    width = weights[f"{prefix}patch_embed.proj.weight"].shape[0]
    depths: Counter[str] = Counter()
    windows = set()
    for name, value in weights.items():
        inner = name.removeprefix(prefix)
        if inner.startswith("layers.") and inner.endswith(".attn.relative_position_bias_table"):
            depths[inner.split(".")[1]] += 1
            windows.add((round(value.shape[0] ** 0.5) + 1) // 2)
    shown = "-".join(str(depths[stage]) for stage in sorted(depths))
    return f"Swin of {width} channels, {shown} blocks, window {'/'.join(map(str, sorted(windows)))}"


def _put(
    result: Conversion, name: str, place: Place, value: torch.Tensor, target: Mapping[str, Any]
) -> None:
    if place.target not in target:
        result.mismatched[name] = f"the config has no {_part(place.target)} that takes it"
    elif value.shape != target[place.target].shape:
        theirs, ours = list(value.shape), list(target[place.target].shape)
        result.mismatched[name] = f"{theirs} in the file, {ours} in {_part(place.target)}"
    elif place.target in result.weights:
        raise CheckpointError(
            f"{name!r} and another tensor are both {place.target!r}", file=result.foreign.path
        )
    else:
        rows = None if place.rows is None else torch.tensor(place.rows)
        result.weights[place.target] = value if rows is None else value[rows]
        result.converted[name] = place.target


def _only_whole(result: Conversion, places: Mapping[str, Place], target: Mapping[str, Any]) -> None:
    """Take back parts that came only in part, and the heads that read them."""
    for part in _WHOLE:
        coming = {n for n, place in places.items() if place.target.startswith(part)}
        wanted = {name for name in target if name.startswith(part)}
        if not coming or wanted <= result.weights.keys() and coming <= result.converted.keys():
            continue
        why = (
            "the decoder of the config has another layout "
            '(MODEL.FX.SEG.DECODER "upernet", NORM "BN", CHANNELS of the finest stage has this one)'
        )
        for name in list(places):
            if places[name].target.startswith((part, "heads.seg.")):
                result.weights.pop(result.converted.pop(name, ""), None)
                result.mismatched[name] = why


def _check_copies(foreign: Foreign) -> None:
    """The three smoothing convolutions are one; a file where they differ is of something else."""
    for name, value in foreign.weights.items():
        first, digit, rest = name.partition(".smooth_conv.")
        if digit and not torch.equal(value, foreign.weights[f"{first}.smooth_conv.0.{rest[2:]}"]):
            raise CheckpointError(
                f"{name!r} differs from the first smoothing convolution, of which it is a copy in "
                "Foundation X",
                file=foreign.path,
            )


def _check_positions(foreign: Foreign) -> None:
    """Where a file says which pair of places reads which row of a table, it must be as here."""
    for name, value in foreign.weights.items():
        if not name.endswith(".relative_position_index"):
            continue
        side = round(value.shape[0] ** 0.5)
        if not torch.equal(value, position_index(side)):
            raise CheckpointError(
                f"{name!r} orders the rows of its table in a way of its own", file=foreign.path
            )


def position_index(side: int) -> torch.Tensor:
    """Row of the table that a pair of places of a window reads: ``(side^2, side^2)`` int64.

    Row ``(dy + side - 1) (2 side - 1) + dx + side - 1`` is for a key ``dy`` above and ``dx`` left
    of the query.
    """
    y, x = torch.arange(side * side) // side, torch.arange(side * side) % side
    dy, dx = y[:, None] - y[None], x[:, None] - x[None]
    return (dy + side - 1) * (2 * side - 1) + dx + side - 1


def _with_student_statistics(foreign: Foreign, result: Conversion) -> Weights:
    """A teacher's batch statistics are those of its start: the released code averages weights."""
    if not foreign.entry.startswith("teacher") or not foreign.kind.startswith("foundation_x"):
        return foreign.weights
    names = [n for n in foreign.weights if n.endswith(_STATISTICS)]
    if not names:
        return foreign.weights
    if not set(names) <= foreign.student.keys():
        result.notes.append(
            "the teacher's batch statistics are those of its start, and there is no student to "
            "take them from: its segmentation is not usable"
        )
        return foreign.weights
    result.notes.append(
        f"{len(names)} batch statistics are the student's: the released code leaves the teacher's "
        "at their start"
    )
    return {**foreign.weights, **{n: foreign.student[n] for n in names}}


def _add_notes(result: Conversion) -> None:
    targets = set(result.converted.values())
    if "heads.cls.mimic_cxr.linear.weight" in targets:
        result.notes.append("the outputs for MIMIC are in alphabetical order there, reordered here")
    if "heads.seg.chestx_det.weight" in targets:
        result.notes.append(
            "the mask channels of ChestX-Det follow a folder listing that the released code does "
            "not sort: check them against truth before you trust their names"
        )
    unknown = sum(why == NO_NAME for why in result.left_out.values())
    if unknown:
        result.notes.append(f"{unknown} names are not documented; please report them")


def _has_head(weights: Weights, task: str, source: str) -> bool:
    return any(name.startswith(f"heads.{task}.{source}.") for name in weights)


def _part(name: str) -> str:
    return ".".join(name.split(".")[: 3 if name.startswith("heads.") else 1])


def _counts(parts: Iterable[str]) -> str:
    return ", ".join(f"{part} ({n})" for part, n in Counter(parts).items()) or "none"


def _few(names: Iterable[str]) -> str:
    shown = list(dict.fromkeys(names))
    return ", ".join(shown[:3]) + (", ..." if len(shown) > 3 else "")
