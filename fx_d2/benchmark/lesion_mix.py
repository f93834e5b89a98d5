"""What pasting lesions costs: within the mapper, and images per second of the written form."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from fx_d2.data.build import configure_reading, source_of
from fx_d2.data.cache_build import build_cache
from fx_d2.data.catalog import source_root
from fx_d2.data.errors import DataError
from fx_d2.data.lesion_mix.build import Job, write_mix
from fx_d2.data.lesion_mix.prepare import Ready, prepare
from fx_d2.data.mapper import FxMapper
from fx_d2.data.record import Record
from fx_d2.engine.setup import load_config

from .report import Table, machine, typed_path
from .timing import Timing, alternate

_ALWAYS = 1.0


@dataclass(frozen=True)
class MixPlan:
    """What is mixed.

    Args:
        config_file: names base, bank and how they are mixed.
        root: of the datasets; None is where ``$DETECTRON2_DATASETS`` says.
        size_px: of the network, of the cache and of the written images.
        num: base images in a round of the mapper, and images that are written.
        rounds: timed rounds of the mapper.
        workers: processes that write.
        overrides: KEY VALUE KEY VALUE ...
    """

    config_file: str
    root: Path | None = None
    size_px: int = 512
    num: int = 100
    rounds: int = 7
    workers: int = 1
    overrides: tuple[str, ...] = ()

    def cfg(self, *more: str) -> CfgNode:
        """The config of one way to read."""
        fixed = ("INPUT.FX.SIZE", str(self.size_px), *self.overrides)
        cfg = load_config(self.config_file, fixed)
        names = (*cfg.INPUT.FX.LESION_MIX.BASE, *cfg.INPUT.FX.LESION_MIX.BANK)
        roots = []
        for row in {source_of(name).key: source_of(name) for name in names}.values():
            if self.root is not None:
                roots += [f"DATASETS.ROOTS.{row.key}", str(self.root / row.folder)]
        return load_config(self.config_file, (*fixed, *roots, *more))


def about_mix(plan: MixPlan, clock: str) -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "config": typed_path(plan.config_file),
        "overrides": list(plan.overrides),
        "clock": clock,
    }


def measure_mix(
    plan: MixPlan,
    *,
    clock: Callable[[], float] = time.perf_counter,
    quiet: bool = True,
) -> dict[str, Table]:
    """The mapper without and with lesions, in turns; then the written form.

    Raises:
        DataError: there are too few base images, or no patches.
    """
    with tempfile.TemporaryDirectory(prefix="fx_d2_mix_") as name:
        folder = Path(name)
        cfg = plan.cfg()
        configure_reading(cfg)
        ready = prepare(cfg, folder / "mix", workers=plan.workers, progress=not quiet)
        records = _bases(ready, plan.num)
        _cache(ready, records, folder / "cache", plan.size_px, quiet)
        online = _online(plan, folder, records, cfg.INPUT.FX.LESION_MIX.PROB, clock, quiet)
        written = _written(plan, folder, ready, cfg, quiet)
    return {"online": online, "written": written}


def _bases(ready: Ready, num: int) -> list[Record]:
    """The first images that can get a lesion."""
    kitchen = ready.prepared.kitchen(ready.settings)
    found = [r for r in ready.records if kitchen.arm_of(r["labels"], r["view"]) is not None]
    if len(found) < num:
        raise DataError(
            f"{len(found)} base images in {', '.join(ready.prepared.datasets)}",
            expected=f"{num} or more",
            fix="ask for fewer with --num",
        )
    return found[:num]


def _cache(
    ready: Ready, records: Sequence[Record], folder: Path, size_px: int, quiet: bool
) -> None:
    base = ready.prepared.base
    files = [record["file_name"] for record in records]
    root = source_root(base.key)
    report = build_cache(files, folder / base.folder, size_px, root=root, progress=not quiet)
    if report.failed:
        raise report.failed[0]


def _online(
    plan: MixPlan,
    folder: Path,
    records: Sequence[Record],
    share: float,
    clock: Callable[[], float],
    quiet: bool,
) -> Table:
    key = "INPUT.FX.LESION_MIX"
    shares = [0.0, *dict.fromkeys([share or _ALWAYS, _ALWAYS])]

    def mapper(share: float, cache: str) -> FxMapper:
        words = ("INPUT.FX.CACHE", cache, f"{key}.PROB", str(share))
        return FxMapper(plan.cfg(*words, f"{key}.FOLDER", str(folder / "mix")), True)

    def reading(mapper: FxMapper) -> Callable[[], None]:
        def run() -> None:
            for number, record in enumerate(records):
                mapper(record, "cls", (number,))

        return run

    rows = []
    for where, cache in (("cached", str(folder / "cache")), ("files", "")):
        ways = {str(share): mapper(share, cache) for share in shares}
        times = alternate(
            {name: reading(way) for name, way in ways.items()},
            plan.rounds,
            title=f"mapper, {where}",
            quiet=quiet,
            clock=clock,
        )
        for share in shares:
            timing, plain = times[str(share)], times["0.0"]
            mixed = _count_mixed(ways[str(share)], records)
            rows.append({"images": where, "mixed": mixed / len(records)} | _cost(timing, plain))
            rows[-1]["ms"] = timing.median / len(records) * 1e3
    return Table(
        "The mapper with pasted lesions",
        {
            "images": ("images from", ""),
            "mixed": ("share mixed", ".2f"),
            "ms": ("ms an image", ".2f"),
            "more": ("more time", ".1%"),
            "low": ("quartiles", ".1%"),
            "high": ("", ".1%"),
        },
        rows,
        (
            f"{len(records)} images, {plan.size_px} px, labels only, {plan.rounds} rounds in "
            "turns: medians, and the quartiles of the ratios of single rounds.",
        ),
    )


def _cost(timing: Timing, plain: Timing) -> dict[str, float]:
    low, high = timing.spread(plain)
    return {"more": timing.ratio(plain) - 1, "low": low - 1, "high": high - 1}


def _count_mixed(mapper: FxMapper, records: Sequence[Record]) -> int:
    made = (mapper(record, "cls", (number,)) for number, record in enumerate(records))
    return sum(item["synthetic"] for item in made)


def _written(plan: MixPlan, folder: Path, ready: Ready, cfg: CfgNode, quiet: bool) -> Table:
    job = Job(
        folder / "mix",
        ready.prepared.base.key,
        ready.settings,
        plan.size_px,
        cfg.INPUT.FX.INTENSITY.VOI,
        cfg.DATASETS.ON_ERROR,
    )
    with _seconds() as took:
        written = write_mix(
            job, ready.prepared, ready.records, seed=max(cfg.SEED, 0), limit=plan.num,
            workers=plan.workers, progress=not quiet,
        )  # fmt: skip
    images = len(written.rows)
    if not images:
        raise DataError("no image was written: no class is short of INPUT.FX.LESION_MIX.TARGET")
    return Table(
        "The written form",
        {
            "images": ("images", "d"),
            "workers": ("processes", "d"),
            "seconds": ("seconds", ".2f"),
            "rate": ("images/s", ".1f"),
        },
        [
            {
                "images": images,
                "workers": plan.workers,
                "seconds": took[0],
                "rate": images / took[0],
            }
        ],
        (
            f"Wall time from plan to file, {plan.size_px} px, with the start of the processes and "
            "without making the bank.",
        ),
    )


@contextmanager
def _seconds() -> Iterator[list[float]]:
    """A list that has the seconds of wall time once the block is left."""
    took: list[float] = []
    start = time.perf_counter()
    yield took
    took.append(time.perf_counter() - start)
