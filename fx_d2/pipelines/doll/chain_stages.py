"""The stages of a chain: what each calls, and when it is done.

``<out>/`` is laid out as that of a study: ``world/``, ``cache/`` and a folder per training, so that
its planner and its processes serve here too. Pre-training is planned when the masks are there,
adapting when the epochs are chosen.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from fx_d2.data.atomic import write_atomically
from fx_d2.data.build import source_of
from fx_d2.data.catalog import load_records
from fx_d2.data.errors import DataError
from fx_d2.data.pseudo_masks import MADE_NAME
from fx_d2.engine.setup import ConfigError
from fx_d2.engine.study import UNTRAINED, Arm, Study, Then, Tree, overlaid
from fx_d2.engine.study_folder import DONE, check_folders, last_line, locked, result_of, state_of
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
from fx_d2.engine.study_runs import Runner, make_data
from fx_d2.engine.tool_calls import call_tool
from fx_d2.engine.weights import digest
from fx_d2.phantom.world import read_mark
from fx_d2.report.stages import Stage

from .chain import Chain, ChainMember, Training
from .settings import DollSettings, SettingsError, load_settings

STAGES = ("world", "classify", "explain", "pretrain", "choose", "adapt")
NAME = "doll"  # of the masks: the source chestx_det_doll
RANDOM = "random"
# Every score of segmentation is mIoU, as in the paper.
_METRICS = {"FORGETTING": {"METRICS": ["cls=AUC", "loc=AP40", "seg=mIoU"]}}
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
        self.chain, self.out, self._tools = chain, out.expanduser().absolute(), tools
        self._jobs, self._finished = jobs, finished
        self.masks = self.out / "masks"
        self.world = world_of(self.out) if chain.world is not None else None
        self._world = chain.world
        self.settings = self._mask_settings()
        self.source = self._explained()
        # Every training as far as it is known: what is wrong shows here, not after days.
        self.members = self.member_jobs(count=False)
        self._before_masks = plan(
            self._study(self._pretraining(), chain.seeds), self.out, count=False
        )
        self._targets = self.target_jobs(None, count=False)
        self._probe = None
        if chain.choose is not None:
            self._probe = loaded(self._body(chain.choose.training), f"{chain.file}: choose")
        if self._world is not None:
            used = [*self.members, *self._targets]
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
            ("adapt", f"adapting to {', '.join(t.runs.name for t in chain.targets)}", self._adapt,
             self._adapted, chain.targets),
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
            return [facts.deciding(), chosen, members, chain.masks.limit]
        if name == "pretrain":
            return [job.fingerprint for job in self._before_masks]
        if name == "choose":
            assert chain.choose is not None and self._probe is not None
            cfg = self._probe.dump().replace(str(self.out), "")
            return [cfg, chain.choose.images, chain.choose.draws, list(chain.seeds)]
        return [job.fingerprint for job in self._targets]

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
        given = self.chain.pretrain
        if self.chain.choose is None:
            return given
        return replace(given, overrides=overlaid(given.overrides, _EPOCHS))

    def target_jobs(self, starts: Mapping[int, Path] | None, *, count: bool = True) -> list[Job]:
        """Adapting, and the same from random weights.

        Args:
            starts: the weights of every seed; None where they are not known yet.
            count: whether the records may be read.
        """
        jobs: list[Job] = []
        if not self.chain.targets:
            return jobs
        for job in plan(self.target_study(), self.out, count=count):
            if job.arm == NAME and starts is not None:
                file = starts[job.seed]
                body = overlaid(job.body, {"MODEL": {"WEIGHTS": str(file)}})
                job = replace(job, body=body, key={**job.key, "weights of": digest(file)})
            jobs.append(job)
        return jobs

    def target_study(self) -> Study:
        """Adapting as a study: an arm from the masks, one from random weights."""
        chain = self.chain
        arms = [
            Arm(NAME, "pre-trained on the masks", UNTRAINED, (), {}, (),
                tuple(self._then(t.runs, mode) for t in chain.targets for mode in t.modes)),
        ]  # fmt: skip
        if chain.random:
            plain = tuple(self._then(t.runs, "full") for t in chain.targets if "full" in t.modes)
            arms += [Arm(RANDOM, "from random weights", UNTRAINED, (), {}, (), plain)]
        first = chain.targets[0].runs
        return Study(
            chain.file, chain.title, self._world, (), first.config, self._common(), 0, (),
            chain.seeds, tuple(arm for arm in arms if arm.then),
        )  # fmt: skip

    def _then(self, runs: Then, mode: str) -> Then:
        own = overlaid(self._common(), runs.overrides)
        tune = {"MODEL": {"FX": {"TUNE": {"MODE": mode}}}}
        return replace(runs, name=f"{runs.name}_{mode}", overrides=overlaid(own, tune), weights="")

    def _study(self, what: Training, seeds: Sequence[int], name: str = "pretrain") -> Study:
        """One training as a study of one arm."""
        arm = Arm(name, "", "", what.layers, what.overrides, (), ())
        return Study(
            self.chain.file, self.chain.title, self._world, (), what.config, self._common(), 0, (),
            tuple(seeds), (arm,),
        )  # fmt: skip

    def _common(self) -> Tree:
        return overlaid(_METRICS, self.chain.common)

    def _body(self, what: Training) -> Tree:
        """The config file of what no study plans."""
        body = overlaid({"_BASE_": str(what.config)}, self._common())
        if self._world is not None and self._world.cache:
            body = overlaid(body, {"INPUT": {"FX": {"CACHE": str(cache_of(self.out))}}})
        if what.layers:
            raise ConfigError(f"{self.chain.file}: 'layers' has no use in choose")
        return overlaid(body, what.overrides)

    def _mask_settings(self) -> DollSettings:
        """Checked as the tool will do it; the members are those of the chain."""
        chain = self.chain
        file = str(chain.masks.config or "")
        try:
            load_settings(file)
            tree = yaml.safe_load(Path(file).read_text("utf-8")) if file else {}
            self._mask_tree = overlaid(tree, chain.masks.overrides)
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
        study = self._study(self.chain.pretrain, ())
        make_data(study, [*self.members, *self._targets], self.out, self._jobs)

    def _world_there(self) -> bool:
        assert self._world is not None and self.world is not None
        return set(self._world.sources) <= set((read_mark(self.world) or {}).get("sources", ()))

    def _classify(self) -> None:
        self._run(self.member_jobs())

    def _classified(self) -> bool:
        return all(state_of(job) == DONE for job in self.members)

    def _explain(self) -> None:
        file, reading = self.out / "masks.yaml", self.out / "reading.yaml"
        write_atomically(file, as_file(self._mask_tree))
        write_atomically(reading, as_file(self._body(replace(self.chain.pretrain, layers=()))))
        words = ["make_pseudo_masks.py", "--out", self.masks, "--config-file", file]
        words += ["--reading", reading, "--workers", self._jobs]
        words += ["--limit", self.chain.masks.limit] if self.chain.masks.limit else []
        self._call(words, "explain")
        with datasets_below(self.world):
            pretrain = self.pretrain_jobs(count=False)[0]
            for name in (*pretrain.cfg.DATASETS.TRAIN, *pretrain.cfg.DATASETS.TEST):
                if not len(load_records(*name.rsplit("_", 1))):
                    raise DataError(
                        f"{name} has no image: all patients are on the other side",
                        file=self.masks, fix="change masks.overrides.val_share, or explain more",
                    )  # fmt: skip

    def _pretrain(self) -> None:
        self._run(self.pretrain_jobs())

    def _pretrained(self) -> bool:
        folders = [self.out / "pretrain" / f"seed{seed}" for seed in self.chain.seeds]
        return all((f / FINAL).is_file() and (f / "results.json").is_file() for f in folders)

    def _choose(self) -> None:
        probe = self.chain.choose
        assert probe is not None
        file = self.out / "choose" / "probe.yaml"
        write_atomically(file, as_file(self._body(probe.training)))
        for seed in self.chain.seeds:
            words = ["best_epoch.py", "--run", self.out / "pretrain" / f"seed{seed}"]
            words += ["--config-file", file, "--images", probe.images, "--draws", probe.draws]
            words += ["--out", self.choice(seed).parent, "SEED", seed]
            self._call(words, f"choose, seed {seed}")

    def choice(self, seed: int) -> Path:
        """What was recommended of the epochs of a seed."""
        return self.out / "choose" / f"seed{seed}" / "best_epoch.json"

    def _chosen(self) -> bool:
        return all(self.choice(seed).is_file() for seed in self.chain.seeds)

    def start_is_known(self) -> bool:
        """Whether :meth:`starts` can be asked."""
        return self._pretrained() and (self.chain.choose is None or self._chosen())

    def starts(self) -> dict[int, Path]:
        """The weights that are adapted, of every seed."""
        found = {}
        for seed in self.chain.seeds:
            folder = self.out / "pretrain" / f"seed{seed}"
            found[seed] = folder / FINAL
            if self.chain.choose is not None:
                name = Path(json.loads(self.choice(seed).read_text("utf-8"))["weights"]).name
                found[seed] = folder / name
        return found

    def _adapt(self) -> None:
        self._run(self.target_jobs(self.starts()))

    def _adapted(self) -> bool:
        return all(result_of(job).is_file() for job in self._targets)

    def _run(self, jobs: Sequence[Job]) -> None:
        check_folders(jobs)
        found = Runner(self.out, self._tools, self.world, self._jobs, self._finished).run(jobs)
        for name, line in found.failed.items():
            raise DataError(
                f"{name} failed: {line}", fix=f"see its log in {self.out}, then call again"
            )

    def _call(self, words: Sequence[object], what: str) -> None:
        """A tool that is no training; it goes on by itself where it was interrupted."""
        tool, *rest = (str(word) for word in words)
        log = self.out / "logs" / f"{tool.removesuffix('.py')}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {"OMP_WAIT_POLICY": "PASSIVE", **os.environ}
        command = [sys.executable, str(self._tools / tool), *rest]
        bar = tqdm(desc=what, bar_format="{desc} [{elapsed}]", disable=not sys.stderr.isatty())

        def show() -> None:
            bar.set_description_str(f"{what}: {last_line(log)[:100]}")

        with bar, locked(self.out) as lock:
            code = call_tool(command, log, environment, lock, show)
        if code:
            raise DataError(f"{tool} ended with {code}: {last_line(log)}", file=log)


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
