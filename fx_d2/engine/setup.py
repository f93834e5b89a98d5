"""From a config file and overrides to a config, with errors that a user can act on."""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
import yaml
from detectron2.config import CfgNode, get_cfg
from detectron2.utils import comm
from yacs.config import CfgNode as PlainNode

import fx_d2
from fx_d2.data.atomic import write_atomically
from fx_d2.data.build import source_of, tasks_of
from fx_d2.data.errors import DataError


class ConfigError(ValueError):
    """The config asks for what does not exist; the message is one line."""


def load_config(file: str, overrides: Sequence[str] = ()) -> CfgNode:
    """Detectron2's defaults with those of fx_d2, a config file and overrides, frozen.

    A config file is untrusted: tags that construct Python objects are refused.

    Args:
        file: path; ``""`` for the defaults alone.
        overrides: ``KEY VALUE KEY VALUE ...``.
    """
    cfg = get_cfg()
    fx_d2.add_fx_config(cfg)
    if file and not Path(file).is_file():
        near = sorted(str(p) for p in Path(file).parent.glob("*.yaml"))
        raise ConfigError(_hint(f"there is no config file {file}", file, near))
    if len(overrides) % 2:
        raise ConfigError(f"overrides are KEY VALUE pairs; {overrides[-1]!r} has no value")
    for what, merge in (
        (file, lambda: file and cfg.merge_from_file(file, allow_unsafe=False)),
        ("the command line", lambda: cfg.merge_from_list(list(overrides))),
    ):
        try:
            merge()
        except (KeyError, AssertionError, ValueError, OSError, yaml.YAMLError) as exc:
            raise ConfigError(f"{what}: {_explained(exc, cfg)}") from exc
    # Detectron2 reads -1 as "any seed"; here a config and its seed give the same run twice.
    cfg.SEED = max(cfg.SEED, 0)
    if str(cfg.MODEL.DEVICE).startswith("cuda") and not torch.cuda.is_available():
        cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def check_datasets(cfg: CfgNode, *, train: bool) -> None:
    """Raise for a dataset name or task that does not exist, before anything is built."""
    with config_errors():
        for key in ("TRAIN", "TEST") if train else ("TEST",):
            for name in cfg.DATASETS[key]:
                tasks_of(cfg, source_of(name))
    empty = "TRAIN" if train else "TEST"
    if not cfg.DATASETS[empty]:
        raise ConfigError(f"DATASETS.{empty} is empty: name one or more datasets")


def checked_config(args: argparse.Namespace) -> CfgNode:
    """The config of the command line of ``tools/train_net.py``, if what it asks for can be done."""
    cfg = load_config(args.config_file, args.opts)
    check_datasets(cfg, train=not args.eval_only)
    if args.num_gpus * args.num_machines > 1 and cfg.MODEL.DEVICE == "cpu":
        raise ConfigError(f"--num-gpus {args.num_gpus}, but MODEL.DEVICE is the CPU here")
    if args.eval_only and not args.resume and not cfg.MODEL.WEIGHTS:
        raise ConfigError(
            "--eval-only needs weights: name MODEL.WEIGHTS, or --resume for those in OUTPUT_DIR"
        )
    return cfg


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


def _explained(exc: BaseException, cfg: CfgNode) -> str:
    """The message of a failed merge, with near names when a key is unknown."""
    text = _text(exc)
    # yacs words it in one way for files and in another for overrides.
    unknown = re.search(r"Non-existent (?:config )?key: (\S+)", text)
    if unknown is None:
        return text
    key = unknown.group(1)
    return _hint(f"there is no config key {key}", key, list(_leaves(cfg)))


def _text(exc: BaseException) -> str:
    """One line; ``str`` of a KeyError would be quoted."""
    given = exc.args[0] if isinstance(exc, KeyError) and exc.args else exc
    return " ".join(str(given).split()) or type(exc).__name__


def _leaves(node: PlainNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, PlainNode):
            yield from _leaves(value, f"{prefix}{key}.")


def _hint(problem: str, given: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(given, known, n=3)
    return f"{problem}; did you mean {' or '.join(near)}?" if near else problem
