"""The runs of a study: what each trains, for how long, and by which settings it is known again."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from fx_d2.data.build import source_of
from fx_d2.data.catalog import ROOT_VARIABLE
from fx_d2.data.task_loader import Key

from .checks import check_config
from .cycle import choose
from .few_shot import check_shares, read_pool
from .metric_patterns import metrics_of
from .setup import ConfigError, load_config
from .study import (
    ENSEMBLE,
    FULL,
    JOINT,
    OUT,
    UNTRAINED,
    WEIGHTS,
    Arm,
    Study,
    Then,
    Tree,
    overlaid,
)
from .study_budget import Budget, heads_of, joint, one_head

FINAL = "model_final.safetensors"
CONFIG_FILE = "run.yaml"


@dataclass(frozen=True, eq=False)
class Job:
    """One call of a tool.

    Args:
        arm: name.
        seed: of the run, or of the run whose weights it starts from.
        head: ``source/task`` where that alone is trained, else ``""``.
        folder: of the run: OUTPUT_DIR of a training, ``--out`` of few-shot runs.
        body: content of its config file; seed and folder are words of the command.
        cfg: what that makes with Detectron2's defaults.
        key: settings that decide about the outcome: runs with equal ones are the same run.
        steps: iterations; None where the data they depend on were not read.
        then: few-shot runs, None for a training.
        images: numbers of images of these; ``full`` is looked up where the data were read.
        after: jobs that have to be finished before.
        ensemble: whether they are scored as one and nothing is trained.
    """

    arm: str
    seed: int
    head: str
    folder: Path
    body: Tree = field(repr=False)
    cfg: CfgNode = field(repr=False)
    key: Tree = field(repr=False)
    steps: int | None
    then: Then | None = None
    images: tuple[int, ...] = ()
    after: tuple[Job, ...] = ()
    ensemble: bool = False

    @property
    def name(self) -> str:
        """For people: ``lock_release seed 2``."""
        parts = [self.arm, self.head, f"seed {self.seed}", self.then.name if self.then else ""]
        return " ".join(part for part in parts if part)

    @property
    def fingerprint(self) -> str:
        """Of :attr:`key`."""
        return hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()


def plan(study: Study, out: Path, *, count: bool = True) -> list[Job]:
    """Every run of a study, those of the first seed first.

    Args:
        study: its arms and seeds.
        out: folder of all runs.
        count: whether the records may be read. Without them, arms whose length depends on their
            number keep the config's MAX_ITER, and no steps are told.

    Raises:
        ConfigError: a run that cannot be, named by its arm.
    """
    planner = _Planner(study, out.expanduser().absolute(), count)
    trainings = [t for arm in study.arms for t in planner.trainings(arm)]
    later = [t for arm in study.arms for t in planner.later(arm)]
    _check_metrics(study, trainings)
    jobs: list[Job] = []
    for seed in study.seeds:
        by_arm: dict[str, Job] = {}
        for template in trainings:  # those that others start from come first
            job = planner.training(template, seed, by_arm)
            by_arm[job.arm] = job
            jobs.append(job)
        jobs += [
            planner.few_shot(template, seed, by_arm.get(template.arm))
            for template in later
            if template.then is None or not template.then.seeds or seed in template.then.seeds
        ]
    return jobs


@dataclass(frozen=True)
class _Template:
    """A :class:`Job` of any seed."""

    arm: str
    head: str
    body: Tree
    cfg: CfgNode
    key: Tree
    steps: int | None
    then: Then | None = None
    images: tuple[int, ...] = ()
    starts: tuple[str, ...] = ()
    ensemble: bool = False


def _check_metrics(study: Study, trainings: Sequence[_Template]) -> None:
    """A misspelt metric would be an empty column after all runs."""
    if not study.metrics:
        return
    try:
        known = dict.fromkeys(name for made in trainings for name in metrics_of(made.cfg))
        for name in study.metrics:
            choose(name, known, "metrics:")
    except ValueError as exc:
        raise ConfigError(f"{study.file}: {exc}") from exc


class _Planner:
    def __init__(self, study: Study, out: Path, count: bool) -> None:
        self._study, self._out = study, out
        self._own: Tree = {"TEST": {"EXPECTED_RESULTS": []}}
        if study.world is not None and study.world.cache:
            self._own["INPUT"] = {"FX": {"CACHE": str(cache_of(out))}}
        common = overlaid(self._own, _placed(study.common, self._out))
        self._common = overlaid({"_BASE_": str(study.config)}, common)
        own = loaded(self._common, f"{study.file}: common")
        self._budget = Budget(own) if count else None

    def trainings(self, arm: Arm) -> list[_Template]:
        """One, one per head, or none."""
        if arm.kind == UNTRAINED:
            return []
        where = f"{self._study.file}: arms.{arm.name}"
        body = overlaid(_laid_over(self._common, arm.layers, where), arm.overrides)
        body = _placed(body, self._out)
        if arm.kind in ("", ENSEMBLE):
            return [self._template(arm, "", body, where)]
        cfg = loaded(body, where)
        heads: list[Key | None] = [None] if arm.kind == JOINT else list(heads_of(cfg))
        found = []
        for head in heads:
            if head is None:
                special = joint(cfg, self._budget)
            else:
                special = one_head(cfg, head, self._budget)
            name = "/".join(head or ())
            found.append(self._template(arm, name, overlaid(body, special), f"{where} {name}"))
        return found

    def _template(self, arm: Arm, head: str, body: Tree, where: str) -> _Template:
        cfg = loaded(body, where)
        if not cfg.DATASETS.TEST:
            raise ConfigError(f"{where}: DATASETS.TEST is empty; a study compares scores")
        steps = 0 if arm.kind == ENSEMBLE else None
        if self._budget is not None and steps is None:
            try:
                steps = self._budget.max_iter(cfg)
            except ConfigError as exc:
                raise ConfigError(f"{where}: {exc}") from exc
        times = self._study.scorings
        if (
            times
            and not head
            and arm.kind != ENSEMBLE
            and "AFTER" not in arm.overrides.get("FORGETTING", {})
        ):
            period = 1 if steps is None else -(-steps // times)
            after = {"FORGETTING": {"AFTER": "iterations", "PERIOD": period}}
            body = overlaid(body, after)
            cfg = loaded(body, where)
        key, ensemble = self._key(cfg), arm.kind == ENSEMBLE
        return _Template(
            arm.name, head, body, cfg, key, steps, starts=arm.starts, ensemble=ensemble
        )

    def later(self, arm: Arm) -> list[_Template]:
        """The few-shot runs of an arm."""
        found = []
        for then in arm.then:
            where = f"{self._study.file}: arms.{arm.name}.then.{then.name}"
            base = overlaid({"_BASE_": str(then.config)}, self._own)
            body = overlaid(_laid_over(base, then.layers, where), then.overrides)
            body = _placed(body, self._out)
            cfg = loaded(body, where)
            keys = sorted({source_of(name).key for name in cfg.DATASETS.TRAIN})
            if len(keys) != 1:
                raise ConfigError(
                    f"{where}: DATASETS.TRAIN is of {', '.join(keys)}; it has to be of one source"
                )
            key = overlaid(self._key(cfg), {"MODEL": {"WEIGHTS": then.weights}})
            key |= {"images": list(then.images), "draws": then.draws}
            if then.score_at:
                key |= {"score_at": list(then.score_at)}
                try:
                    check_shares(cfg, then.score_at)
                except ConfigError as exc:
                    raise ConfigError(f"{where}.score_at: {exc}") from exc
            images = self._images(then, cfg, where)
            steps = len(then.images) * then.draws * int(cfg.SOLVER.MAX_ITER)
            found.append(_Template(arm.name, "", body, cfg, key, steps, then, images))
        return found

    def _images(self, then: Then, cfg: CfgNode, where: str) -> tuple[int, ...]:
        """The numbers of images, largest first; too many show here, not after the pretraining."""
        numbers = [n for n in then.images if isinstance(n, int)]
        if self._budget is not None:
            try:
                there = len(read_pool(cfg).patients)
            except ConfigError as exc:
                raise ConfigError(f"{where}: {exc}") from exc
            numbers += [there] if FULL in then.images else []
            if max(numbers) > there:
                raise ConfigError(
                    f"{where}.images has {max(numbers)}, but there are {there} annotated images"
                )
        return tuple(sorted(set(numbers), reverse=True))

    def training(self, made: _Template, seed: int, above: Mapping[str, Job]) -> Job:
        """A training of this seed, or an ensemble of such; ``above`` has those by their arms."""
        folder = self._out / made.arm / made.head.replace("/", "_") / f"seed{seed}"
        key = {**made.key, "SEED": seed}
        body, after = made.body, tuple(above[name] for name in made.starts)
        if after:
            files = [str(job.folder / FINAL) for job in after]
            own: Tree = {"FX": {"ENSEMBLE": files}} if made.ensemble else {"WEIGHTS": files[0]}
            body = overlaid(body, {"MODEL": own})
            key["weights of"] = [job.fingerprint for job in after]
        return Job(
            made.arm, seed, made.head, folder, body, made.cfg, key, made.steps,
            after=after, ensemble=made.ensemble,
        )  # fmt: skip

    def few_shot(self, made: _Template, seed: int, before: Job | None) -> Job:
        """Few-shot runs after the training of this seed, or after none."""
        then = made.then
        assert then is not None
        key = {**made.key, "SEED": seed}
        body, weights = made.body, then.weights
        after: tuple[Job, ...] = ()
        if WEIGHTS in weights and before is not None:
            after, weights = (before,), weights.replace(WEIGHTS, str(before.folder / FINAL))
            key["weights of"] = before.fingerprint
        body = overlaid(body, {"MODEL": {"WEIGHTS": weights}})
        folder = self._out / made.arm / f"seed{seed}" / "then" / then.name
        return Job(
            made.arm, seed, "", folder, body, made.cfg, key, made.steps, then, made.images, after
        )

    def _key(self, cfg: CfgNode) -> Tree:
        """Wherever the study lies, and whatever it is called."""
        tree = yaml.safe_load(cfg.dump())
        del tree["OUTPUT_DIR"], tree["SEED"]
        if tree["INPUT"]["FX"]["CACHE"] == str(cache_of(self._out)):
            tree["INPUT"]["FX"]["CACHE"] = "that of the study"
        world = self._study.world
        if world is not None:
            facts = asdict(world)
            del facts["sources"]  # the bytes of a source do not depend on the others
            tree["world"] = facts
        if self._study.prepare:
            text, place = json.dumps(tree), json.dumps(f"{self._out}/")[1:-1]
            if place in text:  # what does not use prepared data does not depend on them
                tree = json.loads(text.replace(place, f"{OUT}/"))
                tree["prepare"] = [list(words) for words in self._study.prepare]
        return tree


def _placed(settings: Tree, out: Path) -> Tree:
    """Settings with the folder of the study in place of ``{out}``."""

    def placed(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace(OUT, str(out))
        if isinstance(value, list):
            return [placed(item) for item in value]
        return _placed(value, out) if isinstance(value, dict) else value

    return {key: placed(value) for key, value in settings.items()}


def _laid_over(body: Tree, layers: Sequence[Path], where: str) -> Tree:
    for layer in layers:
        try:
            body = overlaid(body, CfgNode.load_yaml_with_base(str(layer)))
        except (OSError, ValueError, AssertionError, AttributeError, yaml.YAMLError) as exc:
            text = " ".join(str(exc).split())[:200]
            raise ConfigError(f"{where}: {layer} is no config ({text})") from exc
    return body


def loaded(body: Tree, where: str) -> CfgNode:
    """The config of a run, checked; errors begin with ``where``."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / CONFIG_FILE
        file.write_text(as_file(body), encoding="utf-8")
        try:
            cfg = load_config(str(file))
            check_config(cfg, train=True)
        except ConfigError as exc:
            raise ConfigError(f"{where}: {str(exc).replace(f'{file}: ', '')}") from exc
    return cfg


def as_file(body: Tree) -> str:
    """A config file of Detectron2 that says this."""
    return yaml.safe_dump(body, sort_keys=False, allow_unicode=True, width=100)


def cache_of(out: Path) -> Path:
    """Where a study keeps the images of its world."""
    return out.expanduser().absolute() / "cache"


def world_of(out: Path) -> Path:
    """Where a study keeps its world."""
    return out.expanduser().absolute() / "world"


def sources_of(study: Study, jobs: Sequence[Job]) -> list[str]:
    """The sources that a study's world has to hold."""
    if study.world is not None and study.world.sources:
        return list(study.world.sources)
    names: list[str] = []
    for job in jobs:
        names += [*job.cfg.DATASETS.TRAIN, *job.cfg.DATASETS.TEST, *job.cfg.FORGETTING.DATASETS]
    return list(dict.fromkeys(source_of(name).key for name in names))


@contextmanager
def datasets_below(root: Path | None) -> Iterator[None]:
    """Within, datasets are looked for in ``root``; None leaves that as it is."""
    before = os.environ.get(ROOT_VARIABLE)
    try:
        if root is not None:
            os.environ[ROOT_VARIABLE] = str(root)
        yield
    finally:
        if root is not None:
            os.environ.pop(ROOT_VARIABLE)
            if before is not None:
                os.environ[ROOT_VARIABLE] = before
