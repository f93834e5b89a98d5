"""Weights of a trunk: where they come from, how they are fitted in, and what became of each.

Nothing that a file contains is executed: safetensors, or pickles of plain tensors. The model hub
is asked only when the local cache does not have the file, and only after a short look whether it
answers, because its client retries for the better part of a minute.
"""

from __future__ import annotations

import pickle
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from timm.models import adapt_input_conv
from torch import Tensor, nn

# How long the model hub may take to answer at all, in seconds.
HUB_TIMEOUT_S = 8.0
# Where training checkpoints keep weights, best first: averaged ones are what papers evaluate.
_CONTAINERS = (
    *("teacher", "teacher_model", "state_dict_ema", "model_ema", "ema"),
    *("state_dict", "model", "student", "net"),
)
_FILES_ON_HUB = ("model.safetensors", "pytorch_model.bin")


class WeightsError(ValueError):
    """Weights that cannot be found, read or fitted; one line that says what to do."""


@dataclass(frozen=True)
class WeightsReport:
    """What became of the weights in a file.

    Attributes:
        source: the file, with the entry inside it that was used.
        loaded: tensors of the trunk that were set.
        missing: tensors of the trunk that the file lacks: still random.
        mismatched: "name (file's shape, trunk's shape)": still random.
        unused: tensors in the file that the trunk does not have.
        adapted: what was converted, in words.
    """

    source: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    mismatched: tuple[str, ...]
    unused: tuple[str, ...]
    adapted: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether every tensor of the trunk was set."""
        return not self.missing and not self.mismatched

    def __str__(self) -> str:
        total = len(self.loaded) + len(self.missing) + len(self.mismatched)
        parts = [f"trunk weights: {len(self.loaded)} of {total} tensors from {self.source}"]
        for what, names in (
            ("still random, absent in the file", self.missing),
            ("still random, of another shape", self.mismatched),
            ("not used", self.unused),
            ("converted", self.adapted),
        ):
            if names:
                shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
                parts.append(f"{len(names)} {what}: {shown}")
        return "; ".join(parts)


def load_trunk_weights(net: nn.Module, pretrained: str, *, in_channels: int) -> WeightsReport:
    """Load weights into a timm network, in place.

    Args:
        net: the whole network, with ``pretrained_cfg``, before any layer is taken away.
        pretrained: "timm" for the network's published weights, else a file.
        in_channels: of the network; a first convolution for another number is converted.

    Returns:
        The report.

    Raises:
        WeightsError: when there is no such file, it is not what it should be, or nothing fits.
    """
    path = find_published_file(net.pretrained_cfg) if pretrained == "timm" else Path(pretrained)
    state, source = read_state(path)
    wanted = net.state_dict()
    state = _without_prefix(state, wanted)
    classifier = net.pretrained_cfg.get("classifier") or ()
    classifier = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    heads = tuple(f"{name}." for name in classifier)
    convert = getattr(sys.modules[type(net).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        try:
            state = convert(state, net)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as exc:
            raise WeightsError(
                f"{source} does not fit {type(net).__name__} as MODEL.FX.TRUNK configures it: "
                f"{_one_line(exc)}"
            ) from exc
    adapted = _fit_first_conv(net, state, in_channels)
    fits = {k: v for k, v in state.items() if k in wanted and v.shape == wanted[k].shape}
    if 2 * len(fits) < len(wanted):
        raise WeightsError(
            f"only {len(fits)} of {len(wanted)} tensors of {type(net).__name__} are in {source} "
            f"with the right shape (file: {_few(state)}; trunk: {_few(wanted)}); is "
            "MODEL.FX.TRUNK.NAME the network it was trained with?"
        )
    net.load_state_dict(fits, strict=False)
    return WeightsReport(
        source=source,
        loaded=tuple(fits),
        missing=tuple(k for k in wanted if k not in state),
        mismatched=tuple(
            f"{k} ({tuple(v.shape)}, {tuple(wanted[k].shape)})"
            for k, v in state.items()
            if k in wanted and k not in fits
        ),
        unused=tuple(k for k in state if k not in wanted and not k.startswith(heads)),
        adapted=adapted,
    )


def read_state(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors in a file, and its name with the entry that was taken. Executes nothing."""
    if not path.is_file():
        raise WeightsError(
            f'MODEL.FX.TRUNK.PRETRAINED: no file {path}; it is "", "timm" or a .safetensors or '
            ".pth file."
        )
    try:
        if path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.torch import load_file

            try:
                return load_file(path), str(path)
            except SafetensorError as exc:
                raise WeightsError(f"{path} is no safetensors file: {_one_line(exc)}") from exc
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        raise WeightsError(
            f"{path} is not a file of plain tensors: it is damaged or needs code to be loaded, "
            "which is refused. Load it where you trust it and save its state dict as .safetensors."
        ) from exc
    except (OSError, EOFError, RuntimeError, KeyError, ValueError) as exc:
        if isinstance(exc, WeightsError):
            raise
        raise WeightsError(f"{path} cannot be read: {_one_line(exc)}") from exc
    entry = ""
    while isinstance(content, Mapping):
        found = next((c for c in _CONTAINERS if isinstance(content.get(c), Mapping)), None)
        if found is None:
            break
        content, entry = content[found], f"{entry}[{found!r}]"
    if not isinstance(content, Mapping) or not any(isinstance(v, Tensor) for v in content.values()):
        has = ", ".join(map(str, list(content)[:5])) if isinstance(content, Mapping) else "no names"
        raise WeightsError(
            f"{path} holds no weights: expected tensors by name, or one of "
            f"{', '.join(_CONTAINERS)}; it has {has}"
        )
    return {k: v for k, v in content.items() if isinstance(v, Tensor)}, f"{path}{entry}"


def find_published_file(pretrained_cfg: Mapping[str, Any]) -> Path:
    """The file of a network's published weights, from the local cache or the model hub.

    Raises:
        WeightsError: at once when there are none, or after HUB_TIMEOUT_S when the hub is silent.
    """
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    network = pretrained_cfg.get("architecture")
    repo = pretrained_cfg.get("hf_hub_id")
    custom = pretrained_cfg.get("custom_load")
    if not repo or custom:
        where = pretrained_cfg.get("url") or ("a format of its own" if custom else "nowhere")
        raise WeightsError(
            f'MODEL.FX.TRUNK.PRETRAINED "timm": no weights of {network} on the model hub that can '
            f"be read here ({where}); name a local file, or use another network."
        )
    named = pretrained_cfg.get("hf_hub_filename")
    revision = pretrained_cfg.get("hf_hub_revision")  # None is the newest
    files = (named,) if named else _FILES_ON_HUB
    for file in files:
        cached = try_to_load_from_cache(repo, file, revision=revision)
        if isinstance(cached, str):
            return Path(cached)
    way_out = (
        f"{repo} is not in {constants.HF_HUB_CACHE}. Download {files[0]} of {repo} elsewhere and "
        'set MODEL.FX.TRUNK.PRETRAINED to that file, or to "" for random weights.'
    )
    if constants.HF_HUB_OFFLINE:
        raise WeightsError(f"the model hub is switched off by HF_HUB_OFFLINE, and {way_out}")
    silent = _no_answer_from(constants.ENDPOINT)
    if silent:
        raise WeightsError(f"{constants.ENDPOINT} cannot be reached ({silent}), and {way_out}")
    problem: Exception | None = None
    for file in files:
        try:
            return Path(hf_hub_download(repo, file, revision=revision))
        except (OSError, RuntimeError, ValueError) as exc:
            problem = exc
            absent = isinstance(exc, EntryNotFoundError)
            if not absent or isinstance(exc, LocalEntryNotFoundError):
                break  # only when the hub says there is no such file, the other name may be there
    raise WeightsError(f"the model hub gave no file ({_one_line(problem)}), and {way_out}")


def _no_answer_from(url: str) -> str:
    """Why the host cannot be reached; "" when it answers anything at all."""
    outcome = [f"no answer in {HUB_TIMEOUT_S:g} s"]

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_S):
                outcome[0] = ""
        except urllib.error.HTTPError:
            outcome[0] = ""  # it answered
        except (OSError, ValueError) as exc:
            outcome[0] = _one_line(getattr(exc, "reason", None) or exc)

    # In a thread: looking up a name has no time limit of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(HUB_TIMEOUT_S + 1)
    return outcome[0]


def _without_prefix(state: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a larger model's weights that is the trunk, under the trunk's own names.

    A checkpoint says ``module.``, ``backbone.0.`` or ``trunk.net.`` before the names; the prefix
    under which most names are found is taken away, and what does not have it is kept as it is.
    """
    votes: dict[str, int] = {}
    names = set(wanted)
    for key in state:
        parts = key.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in names:
                prefix = "".join(f"{part}." for part in parts[:cut])
                votes[prefix] = votes.get(prefix, 0) + 1
    prefix = max(votes, key=lambda p: votes[p], default="")
    return {k.removeprefix(prefix): v for k, v in state.items()}


def _fit_first_conv(net: nn.Module, state: dict[str, Tensor], in_channels: int) -> tuple[str, ...]:
    """Convert the first convolution to the trunk's number of input channels, in place."""
    first = net.pretrained_cfg.get("first_conv") or ()
    adapted = []
    for name in (first,) if isinstance(first, str) else first:
        key = f"{name}.weight"
        if key not in state or state[key].shape == net.get_parameter(key).shape:
            continue
        weight, target = state[key], net.get_parameter(key)
        if weight.shape[0] != target.shape[0] or weight.shape[2:] != target.shape[2:]:
            continue
        if weight.shape[1] * in_channels == target.shape[1]:
            # Trained on grey: the same answer to the grey image in every channel.
            state[key] = weight.repeat(1, in_channels, 1, 1) / in_channels
        else:
            try:
                state[key] = adapt_input_conv(in_channels, weight)
            except NotImplementedError:
                continue
        adapted.append(f"{key} from {weight.shape[1]} to {target.shape[1]} input channels")
    return tuple(adapted)


def _few(names: Iterable[str]) -> str:
    return ", ".join(islice(names, 3)) + ", ..."


def _one_line(exc: object) -> str:
    return " ".join(str(exc).split())[:200]
