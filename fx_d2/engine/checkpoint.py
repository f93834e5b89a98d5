"""Checkpoints: saving a run, resuming it, and loading what two models share.

:class:`FxCheckpointer` stands in for Detectron2's checkpointer (``PeriodicCheckpointer`` and
``resume_or_load`` use it as they use theirs), but reads and writes the files of
:mod:`fx_d2.engine.weights`.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from fvcore.common.checkpoint import Checkpointer
from torch import nn

from fx_d2.data.atomic import write_atomically
from fx_d2.modeling.meta_arch.student_teacher import PREFIX as TEACHER

from .description import class_lists, config_of, describe, input_settings
from .weights import (
    LAST,
    CheckpointError,
    CheckpointFiles,
    digest,
    newest_in,
    read_description,
    read_state,
    read_weights,
    resolve,
    write_checkpoint,
)

__all__ = [
    "CheckpointError",
    "FxCheckpointer",
    "LoadReport",
    "config_of",
    "describe",
    "input_settings",
    "load_weights",
    "read_description",
]


@dataclass(frozen=True)
class LoadReport:
    """What :func:`load_weights` did with every parameter; each stands in exactly one list.

    Args:
        path: of the file.
        loaded: names whose values now are those of the file.
        new: in the model, not in the file; they keep their initial values.
        left_out: in the file, not in the model.
        mismatched: (name, shape in the file, shape in the model); not loaded.
        other_classes: (name, why) of heads that were trained for other classes; not loaded, since
            their outputs would mean something else.
    """

    path: Path
    loaded: tuple[str, ...]
    new: tuple[str, ...]
    left_out: tuple[str, ...]
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...]
    other_classes: tuple[tuple[str, str], ...]

    @property
    def complete(self) -> bool:
        """Whether model and file hold exactly the same parameters."""
        return not (self.new or self.left_out or self.mismatched or self.other_classes)

    def summary(self) -> str:
        """For the log: counts per part of the model, and every parameter that does not fit."""
        lines = [f"{self.path}: loaded {len(self.loaded)} tensors"]
        if self.new:
            lines.append(f"  new, not in the file: {_by_part(self.new)}")
        if self.left_out:
            lines.append(f"  left out, not in the model: {_by_part(self.left_out)}")
        lines += [
            f"  not loaded: {name} is {list(a)} in the file and {list(b)} in the model"
            for name, a, b in self.mismatched
        ]
        for why, count in Counter(why for _, why in self.other_classes).items():
            lines.append(f"  not loaded: {count} tensors of {why}")
        return "\n".join(lines)


def _by_part(names: Iterable[str]) -> str:
    """``heads.cls.rsna (2), seg_decoder (31)``."""
    parts = Counter(
        ".".join(name.split(".")[: 3 if name.startswith("heads.") else 1]) for name in names
    )
    return ", ".join(f"{part} ({count})" for part, count in parts.items())


def load_weights(
    model: nn.Module, path: str | os.PathLike[str], *, whole: bool = False
) -> LoadReport:
    """Load what ``model`` and a checkpoint share, bit for bit, and tell the rest.

    The model is changed only when the whole file was read and something in it fits.

    Args:
        model: any module; a ``DistributedDataParallel`` is unwrapped by the caller.
        path: a safetensors file, an output folder, or a ``.pth`` of tensors.
        whole: whether it is an error when model and file do not hold the same parameters.
    """
    path = resolve(path)
    weights = read_weights(path)
    if not whole:  # a student and its teacher both start from the weights of a plain model
        weights = getattr(model, "for_both", dict)(weights)
    target = model.state_dict()
    changed = _changed_heads(_checked_classes(path), class_lists(model))
    renamed = {
        name: why
        for name in target
        for head, why in changed.items()
        if name.removeprefix(TEACHER).startswith(f"{head}.") and name in weights
    }
    shared = [n for n in target if n in weights and n not in renamed]
    report = LoadReport(
        path=path,
        loaded=tuple(n for n in shared if weights[n].shape == target[n].shape),
        new=tuple(n for n in target if n not in weights),
        left_out=tuple(n for n in weights if n not in target),
        mismatched=tuple(
            (n, tuple(weights[n].shape), tuple(target[n].shape))
            for n in shared
            if weights[n].shape != target[n].shape
        ),
        other_classes=tuple(renamed.items()),
    )
    if not report.loaded:
        raise CheckpointError(
            f"none of its {len(weights)} tensors fits the model; it begins with "
            f"{next(iter(weights), 'nothing')!r}, the model with {next(iter(target), 'nothing')!r}",
            file=path,
            fix="check MODEL.WEIGHTS and the trunk of the config",
        )
    if whole and not report.complete:
        first, *others = report.summary().splitlines()[1:]
        raise CheckpointError(
            f"the model is not the one of this run: {first.strip()}"
            + (f", and {len(others)} more differences" if others else ""),
            file=path,
            fix=f"resume with its own config, or start anew with MODEL.WEIGHTS {path}",
        )
    model.load_state_dict({n: weights[n] for n in report.loaded}, strict=False)
    return report


def _checked_classes(path: Path) -> dict[str, dict[str, list[str]]]:
    """The class lists beside a file, which must belong to it; none when there are no lists."""
    if not CheckpointFiles(path).description.is_file() or path.suffix != ".safetensors":
        return {}
    description = read_description(path)
    if description.get("weights_sha256") != digest(path):
        raise CheckpointError(
            "weights and their .json do not belong together, or the weights are damaged",
            file=path,
            fix="copy both again from one run",
        )
    return description.get("sources") or {}


def _changed_heads(
    then: Mapping[str, Mapping[str, list[str]]], now: Mapping[str, Mapping[str, list[str]]]
) -> dict[str, str]:
    """{name of a head: why its outputs do not mean what they meant}."""
    return {
        f"heads.{task}.{source}": f"heads.{task}.{source}: trained for {then[source][task]}, "
        f"now {classes}"
        for source, tasks in now.items()
        for task, classes in tasks.items()
        if then.get(source, {}).get(task, classes) != classes
    }


class FxCheckpointer(Checkpointer):
    """Saves and loads runs; a drop-in for Detectron2's checkpointer.

    Args:
        model: may be wrapped for distributed training.
        save_dir: the output folder.
        save_to_disk: default only in the main process.
        cfg: of the run, stored with the weights.
        keep_last: how many numbered checkpoints of this run stay; 0 keeps all. Others, such as
            ``model_best`` and ``model_final``, and those of earlier runs are never deleted.
        checkpointables: objects with ``state_dict`` and ``load_state_dict``.
    """

    def __init__(
        self,
        model: nn.Module,
        save_dir: str = "",
        *,
        save_to_disk: bool | None = None,
        cfg: CfgNode | None = None,
        keep_last: int = 0,
        **checkpointables: Any,
    ) -> None:
        to_disk = comm.is_main_process() if save_to_disk is None else save_to_disk
        super().__init__(model, save_dir, save_to_disk=to_disk, **checkpointables)
        self._cfg, self._keep_last = cfg, keep_last
        self._numbered: list[CheckpointFiles] = []
        self.metrics: dict[str, Any] = {}
        self.report: LoadReport | None = None  # of the last load

    def save(self, name: str, **kwargs: Any) -> None:
        """Write checkpoint ``name`` with the state of all checkpointables and name it the last.

        Args:
            name: without a suffix.
            kwargs: kept in the training state; ``iteration`` also stands in the description.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        state = {key: thing.state_dict() for key, thing in self.checkpointables.items()}
        files = self._write(name, {**state, **kwargs}, kwargs)
        self.tag_last_checkpoint(files.weights.name)
        self._prune(name, files)

    def save_weights(self, name: str, **facts: Any) -> None:
        """Write checkpoint ``name`` without training state; the last checkpoint stays the last.

        Args:
            name: without a suffix.
            facts: for the description, such as ``iteration``.
        """
        if self.save_dir and self.save_to_disk:
            self._write(name, None, facts)

    def _write(
        self, name: str, state: dict[str, Any] | None, facts: Mapping[str, Any]
    ) -> CheckpointFiles:
        files = CheckpointFiles.named(self.save_dir, name)
        weights = self.model.state_dict()
        about = describe(self._cfg, self.model)
        about |= {"iteration": facts.get("iteration"), "metrics": self.metrics}
        write_checkpoint(files, weights, about, state)
        self.logger.info("saved checkpoint %s", files.weights)
        return files

    def _prune(self, name: str, files: CheckpointFiles) -> None:
        if not name.rpartition("_")[2].isdigit():
            return
        self._numbered = [f for f in self._numbered if f != files] + [files]
        while self._keep_last and len(self._numbered) > self._keep_last:
            self._numbered.pop(0).remove()

    def add_metrics(self, metrics: Mapping[str, Any], iteration: int) -> None:
        """Remember an evaluation, and write it beside the last checkpoint if it is of that one."""
        self.metrics = dict(metrics)
        if not self.save_to_disk or not self.has_checkpoint():
            return
        path = resolve(self.get_checkpoint_file())
        about = read_description(path)
        if about.get("iteration") == iteration:
            about["metrics"] = self.metrics
            write_atomically(CheckpointFiles(path).description, json.dumps(about, indent=1) + "\n")

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load weights, and training state where it is wanted.

        Args:
            path: see :func:`load_weights`; empty loads nothing.
            checkpointables: names to load, which must be there and belong to exactly this model;
                None loads those that are there, an empty list none.

        Returns:
            What else was saved with the training state.
        """
        if not path:
            self.logger.info("no checkpoint given: the model starts from its initial weights")
            return {}
        if "://" in str(path):
            try:
                path = self.path_manager.get_local_path(path)
            except OSError as exc:
                raise CheckpointError(
                    f"cannot be fetched ({exc})",
                    file=path,
                    fix="download it yourself and name the file",
                ) from exc
        file = resolve(path)
        state = self._state_for(file, checkpointables)
        self.report = report = load_weights(self.model, file, whole=bool(state))
        (self.logger.info if report.complete else self.logger.warning)("%s", report.summary())
        self._compare_input(file)
        if not state:
            return {}
        self._restore(file, state, checkpointables)
        return state

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """The last checkpoint of the output folder with everything, or only weights from ``path``.

        Args:
            path: weights to start from when nothing is resumed.
            resume: whether to continue where the output folder has a checkpoint.
        """
        if not resume:
            return self.load(path, checkpointables=[])
        if not self.has_checkpoint():
            self.logger.warning("nothing to resume in %s: this run starts anew", self.save_dir)
            return self.load(path, checkpointables=[])
        return self.load(self.get_checkpoint_file(), checkpointables=list(self.checkpointables))

    def get_checkpoint_file(self) -> str:
        """The newest checkpoint of the output folder, ``""`` when there is none."""
        return str(newest_in(Path(self.save_dir))) if self.has_checkpoint() else ""

    def get_all_checkpoint_files(self) -> list[str]:
        """The weights files of the output folder."""
        return sorted(str(p) for p in Path(self.save_dir).glob("*.safetensors"))

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Name the newest checkpoint, in one move."""
        write_atomically(Path(self.save_dir) / LAST, last_filename_basename)

    def _state_for(self, file: Path, wanted: list[str] | None) -> dict[str, Any]:
        source = CheckpointFiles(file).state
        if wanted == [] or not self.checkpointables:
            return {}
        if not source.is_file():
            if wanted is None:
                return {}
            raise CheckpointError(
                "this checkpoint has no training state to resume from",
                file=source,
                fix=f"start anew with MODEL.WEIGHTS {file}",
            )
        state = read_state(source)
        if state.pop("weights_sha256") != digest(file):
            raise CheckpointError(
                "training state and weights are of different moments",
                file=source,
                fix=f"start anew with MODEL.WEIGHTS {file}",
            )
        return state

    def _restore(self, file: Path, state: dict[str, Any], wanted: list[str] | None) -> None:
        for key in self.checkpointables if wanted is None else wanted:
            if key not in state:
                if wanted is None:
                    continue
                raise CheckpointError(f"the training state has no {key!r}", file=file)
            try:
                self.checkpointables[key].load_state_dict(state.pop(key))
            except CheckpointError:
                raise
            except (KeyError, ValueError, TypeError) as exc:
                raise CheckpointError(
                    f"the state of {key!r} does not fit this run ({exc})",
                    file=file,
                    fix=f"resume with its own config, or start anew with MODEL.WEIGHTS {file}",
                ) from exc
        files = CheckpointFiles(file)
        if file.stem.rpartition("_")[2].isdigit() and files not in self._numbered:
            self._numbered.append(files)

    def _compare_input(self, file: Path) -> None:
        if self._cfg is None or not CheckpointFiles(file).description.is_file():
            return
        then, now = read_description(file).get("input") or {}, input_settings(self._cfg)
        for key in now:
            if key in then and then[key] != now[key]:
                self.logger.warning(
                    "input path differs from the checkpoint's: %s is %s, was %s",
                    *(key, now[key], then[key]),
                )
