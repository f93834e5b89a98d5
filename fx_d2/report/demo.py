"""The demonstration: a world, a short lock-release pretraining on it, and a page of the outcome."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from detectron2.config import CfgNode
from tqdm import tqdm

from fx_d2.command_line import WrongUse
from fx_d2.data.atomic import write_atomically
from fx_d2.data.build import configure_reading, load_datasets, source_of
from fx_d2.data.cache import HEADER_NAME
from fx_d2.data.cache_build import build_cache
from fx_d2.data.catalog import ROOT_VARIABLE, source_root
from fx_d2.data.doctor import examine
from fx_d2.data.doctor.report_html import render_html
from fx_d2.data.doctor.run import Options
from fx_d2.data.source import Source
from fx_d2.engine.checks import check_config
from fx_d2.engine.optimizer import parse_numbers
from fx_d2.engine.setup import config_errors, load_config
from fx_d2.phantom.world import Progress as WorldProgress
from fx_d2.phantom.world import WorldError, make_world, read_mark

from .of_run import report_of, write_page, write_pictures
from .page import Report
from .run_files import RESULTS
from .stages import Stage, duration, run_stages, seconds_of
from .training import Progress, train

# What the teacher has to reach on unseen patients.
FLOORS = {"cls": 0.75, "loc": 0.20, "seg": 0.55}
STANDARD_MINUTES = 12  # what the config is made for, on two idle cores
PAGE, STATE = "index.html", "stages.json"
_DOCTOR_IMAGES = 8  # decoded per source
# Seconds on two idle cores, measured: a start, and per patient of eleven sources.
_WORLD_S, _CACHE_S, _DOCTOR_S, _PAGE_S = (6.0, 0.40), (2.0, 0.09), (8.0, 0.05), (15.0, 0.0)
_ELEVEN = 11
_TITLE = "fx_d2 demo: lock-release pretraining on a synthetic world"
_INTRO = (
    "Chest radiographs of {sources}, all synthetic, each annotated for some tasks only, were "
    "learned by one small model, source by source, with a teacher that averages it. No patient was "
    "imaged. Scores are of patients that were not trained on."
)


@dataclass(frozen=True)
class Choices:
    """What a demonstration is of.

    Args:
        out: folder of everything.
        config_file: of the training; its DATASETS decide which sources the world has.
        overrides: KEY VALUE KEY VALUE ... of the config.
        patients: of each source.
        size_px: detail of the films, and shorter side of the cached ones.
        seed: of the world.
        minutes: how long all of it may take on two idle cores; scales the steps of a phase.
        workers: processes that make and examine films; 0 and 1 work in this one.
        films: in the gallery.
    """

    out: Path
    config_file: str
    overrides: tuple[str, ...] = ()
    patients: int = 150
    size_px: int = 192
    seed: int = 1
    minutes: int = STANDARD_MINUTES
    workers: int = 2
    films: int = 10

    @property
    def world(self) -> Path:
        """Folder of the films."""
        return self.out / "world"

    @property
    def cache(self) -> Path:
        """Folder of the decoded films."""
        return self.out / "cache"

    @property
    def run(self) -> Path:
        """``OUTPUT_DIR`` of the training."""
        return self.out / "run"

    def fixed(self) -> tuple[str, ...]:
        """Settings that the folder decides; they win."""
        return ("INPUT.FX.CACHE", str(self.cache), "OUTPUT_DIR", str(self.run))


class Demo:
    """The stages of a demonstration.

    Args:
        choices: what it is of.
        trainer: path of ``tools/train_net.py``.
        world_bar: makes the progress bar of the world, given the number of patients in all.
        tell: hears what is done.

    Raises:
        ConfigError: the config cannot be trained.
    """

    def __init__(
        self,
        choices: Choices,
        trainer: Path,
        world_bar: Callable[[int], WorldProgress] | None = None,
        tell: Callable[[str], None] = print,
    ) -> None:
        self.choices, self._trainer, self._world_bar, self._tell = choices, trainer, world_bar, tell
        given = load_config(choices.config_file, (*choices.overrides, *choices.fixed()))
        names = (*given.DATASETS.TRAIN, *given.DATASETS.TEST)
        self.sources: list[Source] = list({source_of(n).key: source_of(n) for n in names}.values())
        self.seconds = self._expected()
        self._words = (*choices.overrides, *self._scaled(given), *choices.fixed())
        self.cfg: CfgNode = load_config(choices.config_file, self._words)
        check_config(self.cfg, train=True)
        self.report: Report | None = None

    def _expected(self) -> dict[str, float]:
        patients = self.choices.patients * len(self.sources) / _ELEVEN
        fixed = {"world": _WORLD_S, "cache": _CACHE_S, "doctor": _DOCTOR_S, "page": _PAGE_S}
        found = {name: start + each * patients for name, (start, each) in fixed.items()}
        return {**found, "train": max(self.choices.minutes * 60 - sum(found.values()), 30.0)}

    def _scaled(self, cfg: CfgNode) -> tuple[str, ...]:
        """Steps of a phase for another time than the config is made for."""
        node, others = cfg.CYCLE, sum(self.seconds.values()) - self.seconds["train"]
        if self.choices.minutes == STANDARD_MINUTES:
            return ()
        share = self.seconds["train"] / max(STANDARD_MINUTES * 60 - others, 30.0)

        def scaled(steps: float) -> int:
            return max(1, round(steps * share)) if steps else 0  # 0 is a whole pass

        key = "CYCLE.MAX_STEPS_PER_PHASE"
        with config_errors():
            by_task = parse_numbers(f"{key}_BY", node.MAX_STEPS_PER_PHASE_BY)
        exceptions = tuple(f"{task}={scaled(steps)}" for task, steps in by_task.items())
        words = (key, str(scaled(node.MAX_STEPS_PER_PHASE)))
        return (*words, f"{key}_BY", repr(exceptions))

    def go(self, pictures: Path | None = None) -> Report:
        """Everything that is not done yet.

        Args:
            pictures: folder that gets the pictures of the page too.

        Returns:
            What the page shows; without films where it stood already.
        """
        choices = self.choices
        with _datasets_below(choices.world):
            self._tell(f"{_plural(len(self.sources), 'source')}, all of it in {choices.out}")
            try:
                spent = run_stages(self.stages(), choices.out / STATE, self._tell)
            except WorldError as exc:
                raise WrongUse(str(exc)) from exc
            if self.report is None:
                self.report = self._report(spent, choices.films if pictures else 0)
        if pictures:
            for path in write_pictures(self.report, pictures, "demo_"):
                self._tell(str(path))
        return self.report

    def stages(self) -> list[Stage]:
        """In their order."""
        choices, keys = self.choices, [source.key for source in self.sources]
        world = {
            "patients": choices.patients,
            "size": choices.size_px,
            "seed": choices.seed,
            "sources": sorted(keys),
        }
        training = {"world": world, "config": self._portable()}
        films = choices.patients * len(keys)
        return [
            Stage(
                name="world",
                words=f"drawing the films of {films:,} synthetic patients",
                expected_s=self.seconds["world"],
                settings=world,
                work=self._make_world,
                there=lambda: set(keys) <= set((read_mark(choices.world) or {}).get("sources", ())),
                holds=choices.world,
            ),
            Stage(
                name="cache",
                words="decoding the films once",
                expected_s=self.seconds["cache"],
                settings=world,
                work=self._make_cache,
                there=lambda: all(
                    (choices.cache / s.folder / HEADER_NAME).is_file() for s in self.sources
                ),
            ),
            Stage(
                name="doctor",
                words="checking the data as one would check real data",
                expected_s=self.seconds["doctor"],
                settings=world,
                work=self._examine,
                there=(choices.out / "doctor.html").is_file,
            ),
            Stage(
                name="train",
                words=f"pretraining ({_schedule(self.cfg)}), then scoring every head",
                expected_s=self.seconds["train"],
                settings=training,
                work=self._train,
                there=(choices.run / RESULTS).is_file,
                holds=choices.run,
            ),
            Stage(
                name="page",
                words="predicting films and writing the page",
                expected_s=self.seconds["page"],
                settings={**training, "films": choices.films},
                work=self._write_page,
                there=(choices.out / PAGE).is_file,
                after=("doctor", "train"),
            ),
        ]

    def _portable(self) -> str:
        """The config without the folders it is used in."""
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.INPUT.FX.CACHE = cfg.OUTPUT_DIR = ""
        return cfg.dump()

    def _make_world(self) -> None:
        choices = self.choices
        total = choices.patients * len(self.sources)
        bar = self._world_bar(total) if self._world_bar else None
        try:
            make_world(
                choices.world,
                patients=choices.patients,
                seed=choices.seed,
                sources=[source.key for source in self.sources],
                size_px=choices.size_px,
                workers=choices.workers,
                progress=bar,
            )
        finally:
            close = getattr(bar, "close", None)
            if close:
                close()

    def _make_cache(self) -> None:
        configure_reading(self.cfg)
        names = dict.fromkeys([*self.cfg.DATASETS.TRAIN, *self.cfg.DATASETS.TEST, *self._scored()])
        by_source: dict[str, list[str]] = {source.key: [] for source in self.sources}
        for name in names:
            by_source[source_of(name).key] += [r["file_name"] for r in load_datasets([name])]
        for source in tqdm(self.sources, desc="decoding", unit="source", leave=False, disable=None):
            report = build_cache(
                by_source[source.key],
                self.choices.cache / source.folder,
                self.choices.size_px,
                voi=self.cfg.INPUT.FX.INTENSITY.VOI,
                root=source_root(source.key),
                progress=False,
            )
            if report.failed:
                raise report.failed[0]

    def _scored(self) -> list[str]:
        """Datasets that are scored in training."""
        if not self.cfg.FORGETTING.AFTER:
            return []
        trained = (source_of(name).key for name in self.cfg.DATASETS.TRAIN)
        return list(self.cfg.FORGETTING.DATASETS) or [f"{key}_val" for key in trained]

    def _examine(self) -> None:
        choices = self.choices
        workers = choices.workers if choices.workers > 1 else 0
        options = Options(max_images=_DOCTOR_IMAGES, workers=workers)
        report, exam = examine(choices.world, self.sources, options)
        body = json.dumps(report.to_json(), indent=1) + "\n"
        write_atomically(choices.out / "doctor.json", body)
        page = render_html(report, exam)
        write_atomically(choices.out / "doctor.html", page.encode("utf-8", "backslashreplace"))
        # An unusual film may alarm it; that is worth a look and no reason to stop.
        look = f"; look at {choices.out / 'doctor.html'}" if report.exit_code else ""
        self._tell(f"      {len(report.checks)} checks: {_counted(report.counts)}{look}")

    def _train(self) -> None:
        models = 2 if self.cfg.TEACHER.EVALUATE == "both" else 1
        progress = Progress(self.cfg.CYCLE.CYCLES, models * len(self.cfg.DATASETS.TEST))
        command = [sys.executable, str(self._trainer), "--config-file", self.choices.config_file]
        environment = {
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
            ROOT_VARIABLE: str(self.choices.world),
        }
        train(
            [*command, "--resume", *self._words],
            self.choices.out / "train.log",
            progress,
            expected_s=self.seconds["train"],
            environment=environment,
        )

    def _write_page(self) -> None:
        self.report = self._report(seconds_of(self.choices.out / STATE), self.choices.films)
        write_page(self.report, self.choices.out / PAGE)

    def _report(self, spent: Mapping[str, float], films: int) -> Report:
        choices = self.choices
        took = {name: s for name, s in spent.items() if name != "page"}
        each = ", ".join(f"{name} {duration(s)}" for name, s in took.items())
        config = " ".join([_shown(choices.config_file), *choices.overrides])
        facts = [
            ("made by", f"tools/make_demo.py, config {config}"),
            (
                "world",
                f"{choices.patients} patients of each source, {choices.size_px} px, "
                f"seed {choices.seed}",
            ),
            ("took", f"{duration(sum(took.values()))}: {each}"),
        ]
        return report_of(
            choices.run,
            title=_TITLE,
            intro=_INTRO.format(sources=_plural(len(self.sources), "source")),
            floors=FLOORS,
            films=films,
            facts=facts,
            links=[("doctor.html", "what the doctor says of the data")],
        )


def verdict(report: Report) -> list[str]:
    """A line per task: the mean, and whether it reaches its floor."""
    lines = []
    for task, floor in report.floors.items():
        mean = report.mean(report.judged(), task)
        if mean is not None:
            word = "reached" if mean >= floor else "NOT reached"
            metric = report.metrics[task]
            lines.append(
                f"{report.judged()}, {task}: mean {metric} {mean:.3f} of "
                f"{_plural(len(report.heads(task)), 'head')}; floor {floor:.2f} {word}"
            )
    return lines


@contextmanager
def _datasets_below(root: Path) -> Iterator[None]:
    before = os.environ.get(ROOT_VARIABLE)
    os.environ[ROOT_VARIABLE] = str(root)
    try:
        yield
    finally:
        if before is None:
            del os.environ[ROOT_VARIABLE]
        else:
            os.environ[ROOT_VARIABLE] = before


def _schedule(cfg: CfgNode) -> str:
    if not cfg.CYCLE.CYCLES:
        return f"{cfg.SOLVER.MAX_ITER} iterations"
    return f"{_plural(cfg.CYCLE.CYCLES, 'cycle')} of {cfg.CYCLE.NAME}"


def _plural(number: int, word: str) -> str:
    return f"{number} {word}{'s' * (number != 1)}"


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(
        f"{n} {'note' if name == 'info' else name}{'s' * (n != 1)}" for name, n in counts.items()
    )


def _shown(file: str) -> str:
    """A path as it stands in the repository, not as it lies on this machine."""
    path = Path(file)
    return path.as_posix() if not path.is_absolute() else path.name
