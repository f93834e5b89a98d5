"""Where a chain ends: the chosen networks, and what they are adapted to.

The networks are its own, or those of another chain (:class:`AdaptRun`): one pre-training serves
targets that nobody thought of, such as real films after a synthetic world.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fx_d2.data.build import source_of
from fx_d2.data.sources import get_source
from fx_d2.engine.setup import ConfigError
from fx_d2.engine.study import OUT, UNTRAINED, Arm, Study, Then, Tree, overlaid
from fx_d2.engine.study_folder import result_of
from fx_d2.engine.study_plan import FINAL, Job, cache_of, plan
from fx_d2.engine.weights import digest
from fx_d2.report.stages import Stage

from .chain import Chain, Target
from .chain_calls import Calls

NAME = "doll"  # of the arm, and of the masks: the source chestx_det_doll
RANDOM = "random"
# Every score of segmentation is mIoU, as in the paper.
_METRICS = {"FORGETTING": {"METRICS": ["cls=AUC", "loc=AP40", "seg=mIoU"]}}


def common_of(chain: Chain) -> Tree:
    """The settings of every training of a chain."""
    return overlaid(_METRICS, chain.common)


@dataclass(frozen=True)
class Pretrained:
    """The pre-trained networks of a chain.

    Args:
        out: folder of the chain.
        seeds: of them.
        chosen: whether an epoch of each is recommended; else it is the last one.
    """

    out: Path
    seeds: tuple[int, ...]
    chosen: bool

    def folder(self, seed: int) -> Path:
        """Of the pre-training."""
        return self.out / "pretrain" / f"seed{seed}"

    def choice(self, seed: int) -> Path:
        """What was recommended of the epochs of a seed."""
        return self.out / "choose" / f"seed{seed}" / "best_epoch.json"

    def trained(self, seed: int) -> bool:
        """Whether all its epochs are there."""
        names = (FINAL, "results.json")
        return all((self.folder(seed) / name).is_file() for name in names)

    def known(self, seed: int) -> bool:
        """Whether the start of a seed can be told."""
        return self.trained(seed) and (not self.chosen or self.choice(seed).is_file())

    def all_known(self) -> bool:
        """Whether :meth:`starts` can be asked."""
        return all(map(self.known, self.seeds))

    def starts(self) -> dict[int, Path]:
        """The weights that are adapted, of every seed."""
        found = {}
        for seed in self.seeds:
            name = FINAL
            if self.chosen:
                name = Path(json.loads(self.choice(seed).read_text("utf-8"))["weights"]).name
            found[seed] = self.folder(seed) / name
        return found


class Targets:
    """The few-shot runs of a chain.

    Args:
        chain: whose.
        out: its folder.

    Raises:
        ConfigError: one of them cannot be.
    """

    def __init__(self, chain: Chain, out: Path) -> None:
        self._chain, self._out = chain, out
        # As far as they are known: what is wrong shows here, not after days.
        self._sources: dict[str, str] = {}
        plain = plan(self.study(), out, count=False) if chain.targets else []
        for job in plain:
            assert job.then is not None
            self._sources[job.then.name] = source_of(job.cfg.DATASETS.TRAIN[0]).key
        self.planned = self.jobs(None, count=False) if self._splits() else plain

    def jobs(self, starts: Mapping[int, Path] | None, *, count: bool = True) -> list[Job]:
        """Adapting, and the same from random weights.

        Args:
            starts: the weights of every seed; None where they are not known yet.
            count: whether the records may be read.
        """
        if not self._chain.targets:
            return []
        seeds = self._chain.seeds if self._splits() else (None,)
        found = [j for s in seeds for j in plan(self.study(s), self._out, count=count)]
        return found if starts is None else [_started(job, starts[job.seed]) for job in found]

    def study(self, seed: int | None = None) -> Study:
        """An arm from the masks, one from random weights.

        Args:
            seed: with the fold of this one; None is all seeds, and no folds.
        """
        chain = self._chain
        arms = [
            Arm(NAME, "pre-trained on the masks", UNTRAINED, (), {}, (),
                tuple(self._then(t, mode, seed) for t in chain.targets for mode in t.modes)),
        ]  # fmt: skip
        if chain.random:
            plain = tuple(self._then(t, "full", seed) for t in chain.targets if "full" in t.modes)
            arms += [Arm(RANDOM, "from random weights", UNTRAINED, (), {}, (), plain)]
        first = chain.targets[0].runs
        splits = () if seed is None else tuple(words for words, _ in self._splits())
        return Study(
            chain.file, chain.title, chain.world, splits, first.config, common_of(chain), 0, (),
            chain.seeds if seed is None else (seed,), tuple(arm for arm in arms if arm.then),
        )  # fmt: skip

    def _then(self, target: Target, mode: str, seed: int | None) -> Then:
        runs = target.runs
        own = overlaid(common_of(self._chain), runs.overrides)
        own = overlaid(own, {"MODEL": {"FX": {"TUNE": {"MODE": mode}}}})
        name = f"{runs.name}_{mode}"
        if target.cache:
            own = overlaid(own, {"INPUT": {"FX": {"CACHE": str(cache_of(self._out))}}})
        if target.folds and seed is not None:
            fold = self._chain.seeds.index(seed) + 1
            key = self._sources[name]
            split = f"{OUT}/splits/{key}_fold{fold}.json"
            own = overlaid(own, {"DATASETS": {"SPLIT_FILES": {key: split}}})
        return replace(runs, name=name, overrides=own, weights="")

    # The data of targets with folds or a cache

    def _splits(self) -> list[tuple[tuple[str, ...], str]]:
        """Words of ``make_split.py`` but the place, and the source, for every one in folds."""
        count = str(len(self._chain.seeds))
        keys = [self._source(target) for target in self._chain.targets if target.folds]
        return [
            (("make_split.py", "--source", key, "--folds", count), key)
            for key in dict.fromkeys(keys)
        ]

    def _caches(self) -> list[tuple[tuple[str, ...], str]]:
        sizes: dict[str, int] = {}
        for target in self._chain.targets:
            if target.cache:  # two targets of one source share it
                key = self._source(target)
                sizes[key] = max(target.cache, sizes.get(key, 0))
        return [
            (("cache_images.py", "--source", key, "--size", str(px)), key)
            for key, px in sizes.items()
        ]

    def _source(self, target: Target) -> str:
        return self._sources[f"{target.runs.name}_{target.modes[0]}"]

    def data_stage(self, calls: Calls) -> tuple[str, str, Callable[[], None], Callable[[], bool]]:
        """Name, words, work and whether it is there."""

        def work() -> None:
            for words, key in self._splits():
                calls.tool([*words, "--out", self._out / f"splits/{key}.json"], f"folds of {key}")
            for words, key in self._caches():
                own = ["--out", cache_of(self._out), "--workers", calls.at_once]
                calls.tool([*words, *own], f"caching {key}")

        def there() -> bool:
            splits = (
                self._out / f"splits/{key}_fold{fold}.json"
                for _, key in self._splits()
                for fold in range(1, len(self._chain.seeds) + 1)
            )
            caches = (cache_of(self._out) / get_source(key).folder for _, key in self._caches())
            return all(f.is_file() for f in splits) and all(f.is_dir() for f in caches)

        keys = dict.fromkeys(key for _, key in (*self._splits(), *self._caches()))
        return "data", f"folds and cache of {', '.join(keys)}", work, there

    def data_settings(self) -> list[Any]:
        """All that decides about the data; empty where there is nothing to be made."""
        return [list(words) for words, _ in (*self._splits(), *self._caches())]

    def adapted(self) -> bool:
        """Whether every run has its result."""
        return all(result_of(job).is_file() for job in self.planned)


def _started(job: Job, weights: Path) -> Job:
    """From these weights, where it is not from random ones."""
    if job.arm != NAME:
        return job
    body = overlaid(job.body, {"MODEL": {"WEIGHTS": str(weights)}})
    return replace(job, body=body, key={**job.key, "weights of": digest(weights)})


class AdaptRun:
    """Targets in a folder, from the networks of another chain.

    Args:
        chain: of targets alone.
        start: folder of the other chain.
        out: folder of everything.
        tools: folder of the tools.
        jobs: trainings at once.
        finished: called after every training that succeeds.

    Raises:
        ConfigError: something of it cannot be; nothing was made then.
    """

    world = None
    members: Sequence[Job] = ()

    def __init__(
        self,
        chain: Chain,
        start: Path,
        out: Path,
        tools: Path,
        jobs: int = 1,
        finished: Callable[[], None] = lambda: None,
    ) -> None:
        self.chain, self.out = chain, out.expanduser().absolute()
        self.masks = self.out / "masks"  # which the other chain has
        start = start.expanduser().absolute()
        if start.resolve() == self.out.resolve():
            raise ConfigError(f"{start} is the folder of the other chain; name another --out")
        self.pretrained = Pretrained(start, chain.seeds, (start / "choose").is_dir())
        for seed in chain.seeds:
            self._check(seed)
        self.targets = Targets(chain, self.out)
        self._calls = Calls(self.out, tools, None, jobs, finished)

    def _check(self, seed: int) -> None:
        had = self.pretrained
        if not had.trained(seed):
            there = sorted(path.name for path in had.folder(seed).parent.glob("seed*"))
            raise ConfigError(
                f"{had.folder(seed)} has no finished pre-training; there are: "
                f"{', '.join(there) or 'none'}. Call that chain to its end first, or change seeds"
            )
        if not had.known(seed):
            raise ConfigError(
                f"{had.choice(seed)} is not there, so no epoch is chosen; call that chain to the "
                "end of its stage 'choose' first"
            )

    def stages(self) -> list[Stage]:
        """In their order."""
        stages: list[Stage] = []
        made = self.targets.data_settings()
        if made:
            name, words, work, there = self.targets.data_stage(self._calls)
            stages.append(Stage(name, words, None, {"own": made}, work, there))
        jobs = self.targets.jobs(self.pretrained.starts(), count=False)
        settings = {"own": [job.fingerprint for job in jobs]}
        names = ", ".join(target.runs.name for target in self.chain.targets)
        after = tuple(stage.name for stage in stages)
        stages.append(
            Stage("adapt", f"adapting to {names}", None, settings, self._adapt,
                  self.targets.adapted, after)
        )  # fmt: skip
        return stages

    def _adapt(self) -> None:
        self._calls.train(self.targets.jobs(self.pretrained.starts()))
