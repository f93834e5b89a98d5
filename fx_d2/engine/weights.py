"""Files of weights and training state: what is read from them is data, never code.

A checkpoint ``NAME`` is three files: ``NAME.safetensors`` (weights), ``NAME.json`` (what they are)
and ``NAME.state.pt`` (optimizer and counters, read with ``weights_only=True``). The digest of the
weights stands in the other two, so that files of different moments are never mixed.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import zipfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from fx_d2.data.atomic import replacing
from fx_d2.data.errors import DataError

FORMAT = "fx_d2 checkpoint 1"
LAST = "last_checkpoint"  # Detectron2's name for the file that names the newest checkpoint
_SUFFIX = ".safetensors"
_CONTAINERS = ("model", "state_dict", "model_state")  # where other projects put their weights
_NEEDS_CODE = ("Unsupported global", "Unsupported class", "Unsupported operand", "TorchScript")

Weights = dict[str, torch.Tensor]


class CheckpointError(DataError):
    """A checkpoint that cannot be read or written; the message is one line with what to do."""


@dataclass(frozen=True)
class CheckpointFiles:
    """The three files of a checkpoint."""

    weights: Path

    @classmethod
    def named(cls, folder: str | os.PathLike[str], name: str) -> CheckpointFiles:
        """Those of checkpoint ``name`` in ``folder``."""
        if Path(name).name != name:
            raise ValueError(f"checkpoint name {name!r} must not contain a folder")
        return cls(Path(folder) / f"{name}{_SUFFIX}")

    @property
    def description(self) -> Path:
        """The JSON file."""
        return self.weights.with_name(self.weights.name.removesuffix(_SUFFIX) + ".json")

    @property
    def state(self) -> Path:
        """The training state."""
        return self.weights.with_name(self.weights.name.removesuffix(_SUFFIX) + ".state.pt")

    def remove(self) -> None:
        """Delete all three, weights first: without them the others are not taken for one."""
        for path in (self.weights, self.description, self.state):
            path.unlink(missing_ok=True)


def digest(path: Path) -> str:
    """SHA-256 of a file, read piece by piece."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            state.update(piece)
    return state.hexdigest()


def write_checkpoint(
    files: CheckpointFiles,
    weights: Mapping[str, torch.Tensor],
    description: Mapping[str, Any],
    state: Mapping[str, Any] | None,
) -> None:
    """Write all files beside their places, then move them; on any failure the old ones stay whole.

    Args:
        files: where to.
        weights: of the model.
        description: values that JSON knows; the digest of the weights is added.
        state: tensors, numbers, texts and containers of them; None for a checkpoint of weights.
    """
    try:
        with ExitStack() as stack:
            # Moved in reverse: once the weights are there, the rest is there.
            to_weights = stack.enter_context(replacing(files.weights))
            save_file(_separate(weights), to_weights, metadata={"format": FORMAT})
            mark = {"weights_sha256": digest(to_weights)}
            to_text = stack.enter_context(replacing(files.description))
            to_text.write_text(json.dumps({**description, **mark}, indent=1) + "\n", "utf-8")
            written = [to_weights, to_text]
            if state is not None:
                written.append(stack.enter_context(replacing(files.state)))
                torch.save(plain({**state, **mark}), written[-1])
            for path in written:
                _flush(path)
        if state is None:
            files.state.unlink(missing_ok=True)
    except (OSError, SafetensorError, RuntimeError) as exc:
        raise CheckpointError(
            f"cannot write the checkpoint ({_one_line(exc)}); earlier ones are untouched",
            file=files.weights,
            fix="free space, or name another OUTPUT_DIR",
        ) from exc


def _separate(weights: Mapping[str, torch.Tensor]) -> Weights:
    """Contiguous tensors on the CPU, none of which share memory: safetensors asks for both."""
    result, seen = Weights(), set[int]()
    for name, tensor in weights.items():
        tensor = tensor.detach().cpu().contiguous()
        place = tensor.untyped_storage().data_ptr()
        whole = tensor.untyped_storage().nbytes() == tensor.nbytes
        result[name] = tensor.clone() if place in seen or not whole else tensor
        seen.add(place)
    return result


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def plain(value: Any, where: str = "") -> Any:
    """``value`` in types that ``weights_only=True`` reads back; anything else is named and refused.

    Refused when it is saved: at the time somebody wants to resume it would be too late.
    """
    if isinstance(value, Mapping):
        return {key: plain(item, f"{where}.{key}".lstrip(".")) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, (bool, int, float, str, bytes, torch.Tensor)):
        return value
    raise CheckpointError(
        f"training state {where!r} is a {type(value).__name__}, which only a pickle could hold",
        fix="let state_dict() give tensors, numbers, texts and containers of them",
    )


def resolve(path: str | os.PathLike[str]) -> Path:
    """The weights file meant by a path: itself, or the newest one of an output folder."""
    path = Path(path).expanduser()
    if path.is_dir():
        path = newest_in(path)
    if not path.is_file():
        near = sorted(p.name for p in path.parent.glob(f"*{_SUFFIX}"))[:5]
        raise CheckpointError(
            "there is no such checkpoint",
            file=path,
            fix=f"in that folder are {', '.join(near)}" if near else "check MODEL.WEIGHTS",
        )
    return path


def newest_in(folder: Path) -> Path:
    """The checkpoint that ``last_checkpoint`` of an output folder names."""
    tag = folder / LAST
    try:
        name = tag.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as exc:
        raise CheckpointError(
            f"the folder has no readable {LAST!r}", file=folder, fix="name a .safetensors file"
        ) from exc
    return folder / Path(name).name


def read_weights(path: str | os.PathLike[str]) -> Weights:
    """The tensors of a safetensors file, or of a pickle that needs no code."""
    path = resolve(path)
    if path.suffix == ".pkl":
        raise _needs_code(path, "a .pkl is code that Python runs")
    if path.suffix == _SUFFIX:
        try:
            return load_file(path)
        except (SafetensorError, OSError) as exc:
            raise _damaged(path, exc) from exc
    return _tensors_of(read_torch(path), path)


def read_state(path: Path) -> dict[str, Any]:
    """The training state beside a weights file."""
    state = read_torch(path)
    if not isinstance(state, dict) or "weights_sha256" not in state:
        raise CheckpointError(
            "this is no training state of fx_d2", file=path, fix="start without --resume"
        )
    return state


def read_description(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a checkpoint says about itself: config, sources, input path, revision, metrics."""
    files = CheckpointFiles(resolve(path))
    try:
        found = json.loads(files.description.read_text("utf-8"))
    except (OSError, ValueError) as exc:
        raise CheckpointError(
            f"the description of {files.weights.name} cannot be read ({_one_line(exc)})",
            file=files.description,
            fix="copy the .json together with the .safetensors",
        ) from exc
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise CheckpointError(
            "the description has another format", file=files.description, expected=FORMAT
        )
    return found


def convert_trusted_pickle(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> None:
    """Run the pickle ``path`` and write its tensors as safetensors to ``out``.

    Running it runs whatever its author put into it: only for files whose origin you trust.
    """
    path = Path(path)
    if path.suffix == ".pkl":
        with path.open("rb") as file:
            found = pickle.load(file, encoding="latin1")  # noqa: S301 - the caller trusts it
    else:
        found = torch.load(path, map_location="cpu", weights_only=False)
    with replacing(out) as temporary:
        save_file(_separate(_tensors_of(found, path)), temporary)


def read_torch(path: Path) -> Any:
    """What a file of ``torch.save`` holds; one that needs code is refused."""
    with path.open("rb") as file:
        start = file.read(2)
    if start[:1] != b"\x80" and start != b"PK":  # a pickle, or torch's archive of one
        raise CheckpointError(
            f"is no checkpoint: it begins with {start!r}",
            file=path,
            expected=f"a {_SUFFIX} file, or a .pth that torch.save wrote",
        )
    if start == b"PK" and not zipfile.is_zipfile(path):
        raise _damaged(path, EOFError("the archive ends too early"))
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as exc:
        if any(sign in str(exc) for sign in _NEEDS_CODE):
            raise _needs_code(path, _one_line(exc)) from exc
        raise _damaged(path, exc) from exc


def _tensors_of(found: Any, path: Path) -> Weights:
    if isinstance(found, Mapping):
        for key in _CONTAINERS:
            if isinstance(found.get(key), Mapping):
                found = found[key]
                break
        arrays = {
            str(k).removeprefix("module."): torch.as_tensor(v)
            for k, v in found.items()
            if isinstance(v, (torch.Tensor, np.ndarray))
        }
        if arrays:
            return arrays
        found = f"entries {sorted(map(str, found))[:5]}"
    raise CheckpointError(
        f"holds no weights, but {found if isinstance(found, str) else type(found).__name__}",
        file=path,
        expected="a state dict of tensors, or one under " + " or ".join(map(repr, _CONTAINERS)),
    )


def _needs_code(path: Path, why: str) -> CheckpointError:
    return CheckpointError(
        f"needs code to be run for loading and is refused ({why[:90]})",
        file=path,
        fix='if you trust its origin: python -c "from fx_d2.engine.weights import '
        f"convert_trusted_pickle as c; c('{path.name}', '{path.stem}{_SUFFIX}')\"",
    )


def _damaged(path: Path, exc: BaseException) -> CheckpointError:
    return CheckpointError(
        f"is damaged or not a checkpoint ({_one_line(exc)})",
        file=path,
        fix="copy it again, or take an earlier one",
    )


def _one_line(exc: BaseException) -> str:
    """What a library's error says, without its line breaks and advice."""
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    useful = [line for line in lines if any(sign in line for sign in _NEEDS_CODE)]
    return ((useful or lines or [type(exc).__name__])[0])[:120]
