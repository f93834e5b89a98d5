"""Which epoch of a pre-training to go on with: the one that transfers best to a small probe.

The last epoch is not the best start for another task (PSSL, the lineage of DoLL, takes the fifth of
ten). Every kept epoch is fine-tuned for a short time on a few images of a target, all alike, and
scored on its *validation* split: the test split decides nothing.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from detectron2.config import CfgNode
from tabulate import tabulate

from fx_d2.data.atomic import write_atomically

from .few_shot import Run, run_all
from .hooks import EPOCH
from .setup import ConfigError

FORMAT = "fx_d2 best epoch 1"
SCRATCH = 0  # stands for random weights, the probe's own start
Figures = Mapping[Run, Mapping[str, float]]


@dataclass(frozen=True)
class Epoch:
    """What an epoch came to: its number (0 is random weights) and the probe's scores, one a run."""

    number: int
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Over the runs."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Of the sample; None of a single run."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


def epochs_in(folder: Path) -> dict[int, Path]:
    """The weights that ``SOLVER.FX.KEEP_EPOCHS`` left, by number of the epoch."""
    found = {}
    for file in sorted(folder.glob(f"{EPOCH}*.safetensors")):
        number = file.stem.removeprefix(EPOCH)
        if number.isdigit() and int(number) > SCRATCH:
            found[int(number)] = file
    if not found:
        raise ConfigError(
            f"{folder} has no {EPOCH}*.safetensors; train with SOLVER.FX.KEEP_EPOCHS True and "
            "CYCLE.CYCLES above 0"
        )
    return found


def probe(
    cfg: CfgNode,
    epochs: Mapping[int, Path],
    runs: Sequence[Run],
    out: Path,
    tell: Callable[[str], None],
) -> dict[int, Figures]:
    """Fine-tune every epoch's weights alike.

    Args:
        cfg: of the probe, without weights.
        epochs: from :func:`epochs_in`.
        runs: few-shot runs of each.
        out: folder; each epoch has its own within.
        tell: hears of each run.

    Returns:
        ``{epoch: {run: figures}}``, in order.
    """
    if cfg.MODEL.WEIGHTS:
        raise ConfigError(
            f"MODEL.WEIGHTS is {cfg.MODEL.WEIGHTS!r}; the probe starts from each epoch in turn, "
            "leave it empty"
        )
    found: dict[int, Mapping[Run, Mapping[str, float]]] = {}
    for number, file in epochs.items():
        own = cfg.clone()
        own.defrost()
        own.MODEL.WEIGHTS = str(file.absolute()) if number != SCRATCH else ""
        own.freeze()
        name = f"epoch {number}" if number != SCRATCH else "random weights"
        tell(f"{name} of {len(epochs)}")
        found[number] = run_all(own, runs, out / f"epoch{number:03d}", tell, scored="val")
    return found


def scored(found: Mapping[int, Figures], metric: str) -> list[Epoch]:
    """The mean of the figures that ``metric`` names, per epoch and run.

    Args:
        found: from :func:`probe`.
        metric: pattern over ``source/task/metric``.
    """
    result = []
    for number, runs in found.items():
        values = []
        for figures in runs.values():
            chosen = [v for name, v in figures.items() if fnmatchcase(name, metric)]
            if not chosen:
                known = [name for name in figures if "-" not in name]
                raise ConfigError(f"--metric {metric!r} is none of {', '.join(known)}")
            values.append(statistics.fmean(chosen))
        result.append(Epoch(number, tuple(values)))
    return result


def recommended(epochs: Sequence[Epoch]) -> Epoch:
    """The epoch with the best mean; of equal ones the earlier. Random weights are no epoch."""
    return max((e for e in epochs if e.number != SCRATCH), key=lambda e: (e.mean, -e.number))


def write_tables(epochs: Sequence[Epoch], files: Mapping[int, Path], metric: str, out: Path) -> str:
    """Write ``best_epoch.md`` and ``best_epoch.json``; the Markdown is returned.

    Args:
        epochs: from :func:`scored`.
        files: weights of each.
        metric: what was compared.
        out: folder.
    """
    best = recommended(epochs)
    body = [
        [
            "random weights" if e.number == SCRATCH else e.number,
            f"{e.mean:.4f}" + ("" if e.std is None else f" ± {e.std:.4f}"),
            "recommended" if e is best else "",
        ]
        for e in epochs
    ]
    table = tabulate(body, ["epoch", f"{metric} of the probe", ""], "github", disable_numparse=True)
    about = {
        "format": FORMAT,
        "metric": metric,
        "recommended": best.number,
        "weights": str(files[best.number]),
        "epochs": [{**vars(e), "mean": e.mean, "std": e.std} for e in epochs],
    }
    write_atomically(out / "best_epoch.json", json.dumps(about, indent=1, allow_nan=False) + "\n")
    write_atomically(out / "best_epoch.md", table + "\n")
    return table
