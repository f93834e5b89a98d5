"""A plain FoundationX out of a checkpoint that holds a student and a teacher."""

from __future__ import annotations

import os
from pathlib import Path

from fx_d2.modeling.meta_arch.student_teacher import ANSWERS, PREFIX, teacher_weights

from .description import config_of
from .weights import (
    CheckpointError,
    CheckpointFiles,
    digest,
    read_description,
    read_weights,
    resolve,
    write_checkpoint,
)


def export_plain(
    path: str | os.PathLike[str], out: str | os.PathLike[str], who: str = "teacher"
) -> Path:
    """Write the student or the teacher of a run as a checkpoint of a plain FoundationX.

    Config, classes and input path go along, so that it predicts, is evaluated and fine-tuned like
    any other; of the metrics those of ``who`` are kept.

    Args:
        path: a ``.safetensors`` file with its ``.json``, or the output folder of a run.
        out: the new ``.safetensors`` file; its ``.json`` is written beside it.
        who: ``student`` or ``teacher``.

    Returns:
        The new file.
    """
    if who not in ANSWERS:
        raise ValueError(f"no {who!r} in a checkpoint; allowed: {ANSWERS}")
    source, target = resolve(path), Path(out)
    if target.suffix != ".safetensors":
        raise CheckpointError("is no name for weights", file=target, expected="NAME.safetensors")
    files = CheckpointFiles(target)
    if target.exists() or files.description.exists():
        raise CheckpointError("is there already", file=target, fix="name another file")
    description = read_description(source)
    if description.get("weights_sha256") != digest(source):
        raise CheckpointError(
            "weights and their .json do not belong together, or the weights are damaged",
            file=source,
            fix="copy both again from one run",
        )
    weights = read_weights(source)
    its = teacher_weights(weights)
    if not its:
        raise CheckpointError(
            "holds no teacher", file=source, fix="it is a plain model: use it as it is"
        )
    cfg = config_of(description)
    cfg.MODEL.META_ARCHITECTURE = "FoundationX"
    cfg.TEACHER.VIEWS = 1  # nobody would look at a second one
    if who == "student":
        its = {name: value for name, value in weights.items() if not name.startswith(PREFIX)}
    metrics = {
        name.removeprefix("teacher/"): value
        for name, value in (description.get("metrics") or {}).items()
        if name.startswith("teacher/") == (who == "teacher")
    }
    origin = {"part": who, "weights_sha256": description["weights_sha256"]}
    about = {**description, "config": cfg.dump(), "metrics": metrics, "exported_from": origin}
    write_checkpoint(files, its, about, None)
    return target
