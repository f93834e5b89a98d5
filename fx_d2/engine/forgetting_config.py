"""``FORGETTING`` in a config, as far as it can be told to be wrong before anything is built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fx_d2.data.source import TASKS

from .cycle import choose
from .cycle_config import JOINT, cycle_choice
from .setup import ConfigError

MOMENTS = ("slot", "cycle", "iterations")


def check_forgetting(cfg: Any) -> None:
    """Raise for a value that no run could use.

    Args:
        cfg: with ``FORGETTING`` and ``CYCLE``.
    """
    node = cfg.FORGETTING
    main_metrics(node.METRICS)
    if not node.AFTER:
        return
    choose(node.AFTER, MOMENTS, "FORGETTING.AFTER")
    if node.AFTER == "iterations":
        if node.PERIOD < 1:
            raise ValueError(f"FORGETTING.PERIOD is {node.PERIOD}; it is at least 1")
    elif cycle_choice(cfg, "ORDER") == JOINT:
        raise ConfigError(
            f"FORGETTING.AFTER is {node.AFTER!r}, but there is no CYCLE; name one or set "
            "FORGETTING.AFTER iterations and FORGETTING.PERIOD"
        )


def main_metrics(given: Sequence[str]) -> dict[str, str]:
    """``{task: metric}``, the one figure of a head, from ``FORGETTING.METRICS``."""
    found = {}
    for text in given:
        task, separator, metric = (part.strip() for part in text.partition("="))
        if task not in TASKS or not (separator and metric):
            raise ValueError(f"FORGETTING.METRICS has {text!r}; write 'task=metric', e.g. cls=AUC")
        found[task] = metric
    missing = [task for task in TASKS if task not in found]
    if missing:
        raise ValueError(f"FORGETTING.METRICS says nothing about {', '.join(missing)}")
    return found
