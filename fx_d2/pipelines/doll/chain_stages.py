"""The stages of a chain: what each calls, and when it is done.

``<out>/`` is laid out as that of a study: ``world/``, ``cache/`` and a folder per training, so that
its planner and its processes serve here too. Pre-training is planned when the masks are there,
adapting when the epochs are chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from fx_d2.data.atomic import write_atomically
from fx_d2.data.build import source_of
from fx_d2.data.catalog import load_records
from fx_d2.data.errors import DataError
from fx_d2.data.pseudo_masks import MADE_NAME
from fx_d2.engine.setup import ConfigError
from fx_d2.engine.study import Arm, Study, Tree, overlaid
from fx_d2.engine.study_folder import DONE, state_of
from fx_d2.engine.study_plan import (
    FINAL,
    Job,
    as_file,
    cache_of,
    datasets_below,
    loaded,
    plan,
    sources_of,
    world_of,
)
from fx_d2.engine.study_runs import make_data
from fx_d2.engine.weights import digest
from fx_d2.phantom.world import read_mark
from fx_d2.report.stages import Stage

from .chain import Chain, ChainMember, Training
from .chain_calls import Calls
from .chain_targets import NAME, Pretrained, Targets, common_of
from .settings import DollSettings, SettingsError, load_settings

STAGES = ("world", "classify", "explain", "pretrain", "choose", "adapt")
_EPOCHS = {"SOLVER": {"FX": {"KEEP_EPOCHS": True}}}


class ChainRun:
    """A chain in a folder.

    Args:
        chain: what is done.
        out: folder of everything.
        tools: folder of the tools.
        jobs: trainings, or processes that explain, at once.
        finished: called after every training that succeeds.

    Raises:
        ConfigError: something of it cannot be; nothing was made then.
    """

    def __init__(
        self,
        chain: Chain,
        out: Path,
        tools: Path,
        jobs: int = 1,
        finished: Callable[[], None] = lambda: None,
    ) -> None:
        if chain.masks is None or chain.pretrain is None:
            raise ConfigError(f"{chain.file} is of targets alone; see AdaptRun")
        self.chain, self.out, self._jobs = chain, out.expanduser().absolute(), jobs
        self._masks, self._network = chain.masks, chain.pretrain
        self.masks = self.out / "masks"
        self.world = world_of(self.out) if chain.world is not None else None
        self._world = chain.world
        self._calls = Calls(self.out, tools, self.world, jobs, finished)
        self.pretrained = Pretrained(self.out, chain.seeds, chain.choose is not None)
        self.settings = self._mask_settings()
        self.source = self._explained()
        # Every training as far as it is known: what is wrong shows here, not after days.
        self.members = self.member_jobs(count=False)
        self._before_masks = plan(
            self._study(self._pretraining(), chain.seeds), self.out, count=False
        )
        self.targets = Targets(chain, self.out)
        self._probe = None
        if chain.choose is not None:
            self._probe = loaded(self._body(chain.choose.training), f"{chain.file}: choose")
        if self._world is not None:
            used = [*self.members, *self.targets.planned]
            if self._probe is not None:
                used.append(replace(self._before_masks[0], cfg=self._probe))
            keys = [self.source, *self._world.sources]
            keys += sources_of(self._study(chain.pretrain, ()), used)
            self._world = replace(self._world, sources=tuple(dict.fromkeys(keys)))

    # What is to be done

    def stages(self) -> list[Stage]:
        """In their order; those that this chain has none of are left out."""
        trained = [member for member in self.chain.members if member.training]
        chain = self.chain
        found = [
            ("world", "a synthetic world", self._make_world, self._world_there, chain.world),
            ("classify", f"training {_n(len(trained), 'classifier')}", self._classify,
             self._classified, trained),
            ("explain", f"explaining {self.settings.dataset} by a committee of "
             f"{len(chain.members)}", self._explain, (self.masks / MADE_NAME).is_file, True),
            ("pretrain", f"pre-training on the masks, {_n(len(chain.seeds), 'seed')}",
             self._pretrain, self._pretrained, True),
            ("choose", "trying every epoch on a small target", self._choose, self._chosen,
             chain.choose),
            (*self.targets.data_stage(self._calls), self.targets.data_settings()),
            ("adapt", f"adapting to {', '.join(t.runs.name for t in chain.targets)}", self._adapt,
             self.targets.adapted, chain.targets),
        ]  # fmt: skip
        before = ""
        stages: list[Stage] = []
        for name, words, work, there, wanted in found:
            if not wanted:
                continue
            settings = {"own": self._settings_of(name), "before": before}
            after = (stages[-1].name,) if stages else ()
            # Probes are known by the name of the epoch's file, which other weights have too.
            holds = self.out / "choose" if name == "choose" else None
            stages.append(Stage(name, words, None, settings, work, there, after, holds))
            before = stages[-1].mark()
        return stages

    def _settings_of(self, name: str) -> Any:
        """All that decides about a stage but the stages before it; plain values."""
        chain = self.chain
        if name == "world":
            assert self._world is not None
            return {**vars(self._world), "sources": sorted(self._world.sources)}
        if name == "classify":
            return [job.fingerprint for job in self.members]
        if name == "explain":
            facts = self.settings
            members = [[m.name, m.path, dict(m.spec)] for m in chain.members]
            chosen = [facts.dataset, list(facts.exclude), vars(facts.quality), facts.val_share]
            return [facts.deciding(), chosen, members, self._masks.limit]
        if name == "pretrain":
            return [job.fingerprint for job in self._before_masks]
        if name == "choose":
            assert chain.choose is not None and self._probe is not None
            cfg = self._probe.dump().replace(str(self.out), "")
            return [cfg, chain.choose.images, chain.choose.draws, list(chain.seeds)]
        if name == "data":
            return self.targets.data_settings()
        return [job.fingerprint for job in self.targets.planned]

    # Planning

    def member_jobs(self, *, count: bool = True) -> list[Job]:
        """The trainings of the committee."""
        jobs: list[Job] = []
        for member in self.chain.members:
            if member.training is None:
                continue
            name = f"members/{member.name}"
            study = self._study(member.training, (member.seed,), name)
            jobs += plan(study, self.out, count=count)
        return jobs

    def pretrain_jobs(self, *, count: bool = True) -> list[Job]:
        """The pre-trainings; the masks have to be there."""
        own = chain_datasets(self.masks, self.source)
        plain = self._pretraining()
        study = self._study(
            replace(plain, overrides=overlaid(plain.overrides, own)), self.chain.seeds
        )
        # Other masks in the same place are another training.
        made = (("make_pseudo_masks.py", digest(self.masks / MADE_NAME)),)
        return plan(replace(study, prepare=made), self.out, count=count)

    def _pretraining(self) -> Training:
        """The pre-training, not yet of the masks."""
        given = self._network
        if self.chain.choose is None:
            return given
        return replace(given, overrides=overlaid(given.overrides, _EPOCHS))

    def _study(self, what: Training, seeds: Sequence[int], name: str = "pretrain") -> Study:
        """One training as a study of one arm."""
        arm = Arm(name, "", "", what.layers, what.overrides, (), ())
        common = common_of(self.chain)
        return Study(
            self.chain.file, self.chain.title, self._world, (), what.config, common, 0, (),
            tuple(seeds), (arm,),
        )  # fmt: skip

    def _body(self, what: Training) -> Tree:
        """The config file of what no study plans."""
        body = overlaid({"_BASE_": str(what.config)}, common_of(self.chain))
        if self._world is not None and self._world.cache:
            body = overlaid(body, {"INPUT": {"FX": {"CACHE": str(cache_of(self.out))}}})
        if what.layers:
            raise ConfigError(f"{self.chain.file}: 'layers' has no use in choose")
        return overlaid(body, what.overrides)

    def _mask_settings(self) -> DollSettings:
        """Checked as the tool will do it; the members are those of the chain."""
        chain = self.chain
        file = str(self._masks.config or "")
        try:
            load_settings(file)
            tree = yaml.safe_load(Path(file).read_text("utf-8")) if file else {}
            self._mask_tree = overlaid(tree, self._masks.overrides)
            self._mask_tree["members"] = [self._as_spec(member) for member in chain.members]
            words = [w for k, v in self._mask_tree.items() for w in (k, yaml.safe_dump(v))]
            found = load_settings("", words)
        except SettingsError as exc:
            raise ConfigError(f"{chain.file}: masks: {exc}") from exc
        if not found.val_share:
            raise ConfigError(
                f"{chain.file}: masks: val_share is 0; pre-training is scored on held-out masks"
            )
        return found

    def _as_spec(self, member: ChainMember) -> dict[str, Any]:
        path = member.path or str(self.out / "members" / member.name / f"seed{member.seed}" / FINAL)
        return {"path": path, "name": member.name, **member.spec}

    def _explained(self) -> str:
        """The source whose images are explained."""
        if not self.settings.dataset:
            raise ConfigError(f"{self.chain.file}: masks has no dataset, such as chexpert_train")
        try:
            return source_of(self.settings.dataset).key
        except KeyError as exc:
            raise ConfigError(f"{self.chain.file}: masks: {exc.args[0]}") from exc

    # Working

    def _make_world(self) -> None:
        study = self._study(self._network, ())
        make_data(study, [*self.members, *self.targets.planned], self.out, self._jobs)

    def _world_there(self) -> bool:
        assert self._world is not None and self.world is not None
        return set(self._world.sources) <= set((read_mark(self.world) or {}).get("sources", ()))

    def _classify(self) -> None:
        self._calls.train(self.member_jobs())

    def _classified(self) -> bool:
        return all(state_of(job) == DONE for job in self.members)

    def _explain(self) -> None:
        file, reading = self.out / "masks.yaml", self.out / "reading.yaml"
        write_atomically(file, as_file(self._mask_tree))
        write_atomically(reading, as_file(self._body(replace(self._network, layers=()))))
        words = ["make_pseudo_masks.py", "--out", self.masks, "--config-file", file]
        words += ["--reading", reading, "--workers", self._jobs]
        words += ["--limit", self._masks.limit] if self._masks.limit else []
        self._calls.tool(words, "explain")
        with datasets_below(self.world):
            pretrain = self.pretrain_jobs(count=False)[0]
            for name in (*pretrain.cfg.DATASETS.TRAIN, *pretrain.cfg.DATASETS.TEST):
                if not len(load_records(*name.rsplit("_", 1))):
                    raise DataError(
                        f"{name} has no image: all patients are on the other side",
                        file=self.masks, fix="change masks.overrides.val_share, or explain more",
                    )  # fmt: skip

    def _pretrain(self) -> None:
        self._calls.train(self.pretrain_jobs())

    def _pretrained(self) -> bool:
        return all(map(self.pretrained.trained, self.chain.seeds))

    def _choose(self) -> None:
        probe = self.chain.choose
        assert probe is not None
        file = self.out / "choose" / "probe.yaml"
        write_atomically(file, as_file(self._body(probe.training)))
        for seed in self.chain.seeds:
            words = ["best_epoch.py", "--run", self.pretrained.folder(seed)]
            words += ["--config-file", file, "--images", probe.images, "--draws", probe.draws]
            words += ["--out", self.pretrained.choice(seed).parent, "SEED", seed]
            self._calls.tool(words, f"choose, seed {seed}")

    def _chosen(self) -> bool:
        return all(self.pretrained.choice(seed).is_file() for seed in self.chain.seeds)

    def _adapt(self) -> None:
        self._calls.train(self.targets.jobs(self.pretrained.starts()))


def chain_datasets(masks: Path, source: str) -> Tree:
    """The settings that train on a folder of masks."""
    return {
        "DATASETS": {
            "PSEUDO_MASKS": [f"{NAME}={masks}"],
            "TRAIN": [f"{source}_{NAME}_train"],
            "TEST": [f"{source}_{NAME}_val"],
            "TASKS": ["seg"],
        },
    }


def _n(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
