"""From a config file and overrides to a config, with errors that a user can act on."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils import comm
from yacs.config import CfgNode as PlainNode

import fx_d2
from fx_d2.data.atomic import write_atomically
from fx_d2.data.errors import DataError
from fx_d2.data.lesion_mix.settings import MixSettings
from fx_d2.data.lesion_mix.written import register_written
from fx_d2.data.pseudo_masks import register_pseudo_masks

_MISMATCH = re.compile(r"Type mismatch \(<class '(?P<want>[\w.]+)'> vs\. <class '(?P<got>[\w.]+)'>")


class ConfigError(ValueError):
    """The config asks for what does not exist; the message is one line."""


def load_config(file: str, overrides: Sequence[str] = ()) -> CfgNode:
    """Detectron2's defaults with those of fx_d2, a config file and overrides, frozen.

    A config file is untrusted: tags that construct Python objects are refused.

    Args:
        file: path; ``""`` for the defaults alone.
        overrides: ``KEY VALUE KEY VALUE ...``. A value ``{name: value}`` is merged into the
            settings below its key, as in a file.
    """
    cfg = get_cfg()
    fx_d2.add_fx_config(cfg)
    if file and not Path(file).is_file():
        near = sorted(str(p) for p in Path(file).parent.glob("*.yaml"))
        raise ConfigError(hint(f"there is no config file {file}", file, near))
    if len(overrides) % 2:
        raise ConfigError(f"overrides are KEY VALUE pairs; {overrides[-1]!r} has no value")
    with _merge_errors(file, cfg):
        if file:
            cfg.merge_from_file(file, allow_unsafe=False)
    with _merge_errors("the command line", cfg):
        for key, value in zip(overrides[::2], overrides[1::2], strict=True):
            _override(cfg, key, value)
    # Detectron2 reads -1 as "any seed"; here a config and its seed give the same run twice.
    cfg.SEED = max(cfg.SEED, 0)
    if str(cfg.MODEL.DEVICE).startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    try:
        MixSettings.from_config(cfg)
        register_written(cfg.DATASETS.LESION_MIX)  # before anything asks for their names
        register_pseudo_masks(cfg.DATASETS.PSEUDO_MASKS)
    except ValueError as exc:
        raise ConfigError(str(exc)) from exc
    cfg.freeze()
    return cfg


def _override(cfg: CfgNode, key: str, text: str) -> None:
    """Set one key, also where yacs does not: a whole group, or a new name where any is allowed."""
    value = CfgNode._decode_cfg_value(text)
    node, name = _parent(cfg, key)
    present = None if node is None else node.get(name)
    opens = node is not None and name not in node and node.is_new_allowed()
    if opens or (isinstance(present, PlainNode) and isinstance(value, dict)):
        for part in reversed(key.split(".")):
            value = {part: value}
        cfg.merge_from_other_cfg(CfgNode(value))
        return
    if isinstance(present, float) and type(value) is int:
        value = float(value)  # 1 for 1.0
    cfg.merge_from_list([key, value])


def _parent(cfg: CfgNode, key: str) -> tuple[CfgNode | None, str]:
    """The group that ``key`` lies in, if there is one, and its name in there."""
    *groups, name = key.split(".")
    node: Any = cfg
    for group in groups:
        node = node.get(group) if isinstance(node, PlainNode) else None
    return (node if isinstance(node, PlainNode) else None), name


@contextmanager
def _merge_errors(what: str, cfg: CfgNode) -> Iterator[None]:
    """What a failed merge raises, as a :class:`ConfigError` that begins with ``what``."""
    try:
        yield
    except RecursionError as exc:
        raise ConfigError(f"{what}: its _BASE_ leads back to itself") from exc
    except (TypeError, AttributeError) as exc:
        # yacs expects a mapping at every level.
        raise ConfigError(
            f"{what}: is no config ({_text(exc)}); expected groups of keys with values, such as "
            "'SOLVER:' with 'BASE_LR: 0.0001' below it"
        ) from exc
    except (KeyError, AssertionError, ValueError, OSError, yaml.YAMLError) as exc:
        raise ConfigError(f"{what}: {_explained(exc, cfg)}") from exc


@contextmanager
def config_errors() -> Iterator[None]:
    """Turn what a wrong setting raises within into a :class:`ConfigError`.

    Only around code that reads settings: elsewhere these exceptions are bugs and keep their
    traceback.
    """
    try:
        yield
    except (DataError, ConfigError):
        raise
    except (KeyError, ValueError, AssertionError, OSError) as exc:
        raise ConfigError(_text(exc)) from exc


@contextmanager
def config_of_the_run_kept(folder: str) -> Iterator[None]:
    """Put ``config.yaml`` of an earlier run back when this one is refused within.

    Detectron2 writes the file before anything is compared with that run.
    """
    file = Path(folder) / "config.yaml"
    before = file.read_bytes() if file.is_file() else None
    try:
        yield
    except BaseException:
        if before is not None and comm.is_main_process():
            write_atomically(file, before)
        raise


def hint(problem: str, given: str, known: Sequence[str]) -> str:
    """``problem`` with the names near ``given`` behind it, where there are some."""
    near = difflib.get_close_matches(given, known, n=3)
    return f"{problem}; did you mean {' or '.join(near)}?" if near else f"{problem}."


def _explained(exc: BaseException, cfg: CfgNode) -> str:
    """The message of a failed merge: near names of an unknown key, types in plain words."""
    text = _text(exc)
    mismatch = _MISMATCH.match(text)
    if mismatch:
        key = text.rpartition("config key: ")[2]
        given = text.rpartition(" vs. ")[2].partition(") for config key")[0]
        if mismatch["want"].endswith("CfgNode"):
            return f"{key} is a group of keys, not {given[:60]!r}; set those below it"
        node, name = _parent(cfg, key)
        return (
            f"{key} is {given[:60]!r}, of type {mismatch['got'].rpartition('.')[2]}; expected "
            f"{mismatch['want']}, such as {node[name] if node else '?'!r}"
        )
    # yacs words it in one way for files and in another for overrides.
    unknown = re.search(r"Non-existent (?:config )?key: (\S+)", text)
    if unknown is None:
        return text
    key = unknown.group(1)
    return hint(f"there is no config key {key}", key, list(_leaves(cfg)))


def _text(exc: BaseException) -> str:
    """One line; ``str`` of a KeyError would be quoted."""
    given = exc.args[0] if isinstance(exc, KeyError) and exc.args else exc
    return " ".join(str(given).split()) or type(exc).__name__


def _leaves(node: PlainNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, PlainNode):
            yield from _leaves(value, f"{prefix}{key}.")
