"""Times of variants that take turns, so that a busy machine hurts all of them alike."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from tqdm import tqdm


@dataclass(frozen=True)
class Timing:
    """The seconds that one variant took, in the order of the rounds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        """In seconds."""
        return statistics.median(self.seconds)

    def ratio(self, base: Timing) -> float:
        """Of the medians: how many times as long as ``base``."""
        return self.median / base.median

    def spread(self, base: Timing) -> tuple[float, float]:
        """Quartiles of the ratios of single rounds: how sure the ratio is."""
        ratios = [a / b for a, b in zip(self.seconds, base.seconds, strict=True)]
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        low, _, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return low, high


def wait_for(device: torch.device) -> None:
    """Until what was queued on a GPU is done; nothing elsewhere."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def alternate(
    variants: Mapping[str, Callable[[], object]],
    repeats: int,
    *,
    warmup: int = 1,
    device: torch.device | None = None,
    title: str = "",
    quiet: bool = True,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Timing]:
    """Time variants in the order A B C A B C ...

    Args:
        variants: {name: what to time}.
        repeats: timed rounds.
        warmup: rounds before them that do not count.
        device: waited for before and after each run.
        title: of the progress bar.
        quiet: no progress bar.
        clock: seconds.
    """
    device = device or torch.device("cpu")
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for number in tqdm(range(warmup + repeats), desc=title, disable=quiet, leave=False):
        for name, run in variants.items():
            gc.collect()  # garbage of one variant must not be collected in the time of another
            wait_for(device)
            start = clock()
            run()
            wait_for(device)
            if number >= warmup:
                seconds[name].append(clock() - start)
    return {name: Timing(tuple(values)) for name, values in seconds.items()}
