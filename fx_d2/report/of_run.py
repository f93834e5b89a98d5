"""From the folder of a training run to its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from tqdm import tqdm

import fx_d2
from fx_d2.benchmark.report import accelerator, machine
from fx_d2.data.atomic import write_atomically
from fx_d2.data.build import configure_reading, load_datasets, source_of
from fx_d2.data.errors import DataError
from fx_d2.data.picture_files import save_png
from fx_d2.data.record import Record
from fx_d2.data.source import Source
from fx_d2.engine.checkpoint import read_description
from fx_d2.engine.description import git_revision
from fx_d2.engine.setup import config_errors, load_config
from fx_d2.predictor import Predictor

from .curves import draw_curves
from .gallery import Example, chosen_films, draw_example, gallery_sheet, spread
from .page import Report, render
from .run_files import Curves, read_curves, read_forgetting, read_results

CONFIG = "config.yaml"
DEFAULT_FILMS = 8


def run_config(folder: Path) -> CfgNode:
    """The config that ``tools/train_net.py`` left in the folder of a run.

    Raises:
        ConfigError: it is missing, or of another version.
    """
    return load_config(str(folder / CONFIG))


def report_of(
    folder: Path,
    *,
    title: str = "",
    intro: str = "",
    floors: Mapping[str, float] | None = None,
    films: int = DEFAULT_FILMS,
    facts: Sequence[tuple[str, str]] = (),
    links: Sequence[tuple[str, str]] = (),
    progress: bool = True,
) -> Report:
    """Everything there is to show of a run; what is missing is named in the notes of the page.

    Args:
        folder: ``OUTPUT_DIR`` of a run, with or without a cycle; it may still go on.
        title: of the page; the name of the folder by default.
        intro: below it.
        floors: {task: what its mean has to reach}.
        films: of the gallery, from ``DATASETS.TEST``; 0 is none and reads no data set.
        facts: (name, text) before those of the run.
        links: (file beside the page, words).
        progress: show a bar.
    """
    cfg = run_config(folder)
    curves, notes = read_curves(folder), []
    found = read_results(folder)
    if found is None:
        notes.append("Nothing was evaluated yet: there are no results.")
    forgetting = read_forgetting(folder)
    examples: list[Example] = []
    if films:
        try:
            examples = list(predicted_films(folder, cfg, films, progress=progress))
        except DataError as exc:
            notes.append(f"There are no predictions: {exc}")
    return Report(
        title=title or f"Run {folder.resolve().name}",
        intro=intro,
        results={} if found is None else found["results"],
        images=_images_of(found),
        metrics=metrics_of(cfg),
        floors=floors or {},
        curves=draw_curves(curves) if curves.rows and _has_losses(curves) else b"",
        forgetting=forgetting[0] if forgetting else b"",
        forgetting_means=forgetting[1] if forgetting else {},
        examples=examples,
        facts=[*facts, *run_facts(folder, cfg, curves)],
        links=links,
        notes=notes,
    )


def _has_losses(curves: Curves) -> bool:
    return any(name == "lr" or name.startswith("total") for name in curves.names())


def _images_of(found: Mapping[str, Any] | None) -> dict[str, int]:
    """{head: films it was scored on}."""
    notes = {} if found is None else found["notes"]
    return {head: note["images"] for head, note in notes.items() if "images" in note}


def metrics_of(cfg: CfgNode) -> dict[str, str]:
    """{task: the one figure of its heads}, of ``FORGETTING.METRICS``."""
    pairs = (text.partition("=") for text in cfg.FORGETTING.METRICS)
    return {task.strip(): metric.strip() for task, _, metric in pairs}


def predicted_films(
    folder: Path, cfg: CfgNode, number: int, *, progress: bool = True
) -> list[Example]:
    """Films of ``DATASETS.TEST`` with their truth and what the newest weights of a run say.

    Raises:
        DataError: there are no weights, or no films.
    """
    with config_errors():
        configure_reading(cfg)
        by_source: dict[str, tuple[Source, str]] = {}
        for name in cfg.DATASETS.TEST:
            source = source_of(name)
            by_source.setdefault(source.key, (source, name))
    share = spread([source for source, _ in by_source.values()], number)
    chosen: list[tuple[Record, Source]] = []
    for key, count in share.items():
        source, name = by_source[key]
        films = chosen_films(load_datasets([name]), cfg.SEED)
        chosen += [(record, source) for record in islice(films, count)]
    known = {head.partition("/")[0] for head in _heads_of(folder)}
    chosen = [(record, source) for record, source in chosen if source.key in known]
    if not chosen:
        return []
    asked = list(dict.fromkeys(source.key for _, source in chosen))
    predictor = Predictor(folder, heads=asked, device=cfg.MODEL.DEVICE)
    threshold = float(cfg.TEST.FX.SCORE_THRESHOLD)
    quiet = None if progress else True  # None: only where somebody watches
    bar = tqdm(chosen, desc="predicting films", unit="film", leave=False, disable=quiet)
    return [
        draw_example(
            record,
            source,
            predictor(record["file_name"]),
            predictor.heads,
            threshold=threshold,
        )
        for record, source in bar
    ]


def _heads_of(folder: Path) -> list[str]:
    sources = read_description(folder).get("sources") or {}
    return [f"{source}/{task}" for source, tasks in sources.items() for task in tasks]


def run_facts(folder: Path, cfg: CfgNode, curves: Curves) -> list[tuple[str, str]]:
    """(name, text) of what was trained, and with what."""
    trunk, solver = cfg.MODEL.FX.TRUNK, cfg.SOLVER
    kwargs = ", ".join(f"{key} {value}" for key, value in trunk.KWARGS.items())
    network = f"{trunk.NAME}{f' ({kwargs})' if kwargs else ''}, {cfg.INPUT.FX.SIZE} px"
    cycle = f"{cfg.CYCLE.NAME}" if cfg.CYCLE.NAME else "joint training"
    if cfg.CYCLE.CYCLES:
        cycle += f", {cfg.CYCLE.CYCLES} times"
    cuts = [str(cfg.CYCLE.MAX_STEPS_PER_PHASE or "no")]
    cuts += [str(text).replace("=", " ") for text in cfg.CYCLE.MAX_STEPS_PER_PHASE_BY]
    if cuts != ["no"]:
        cycle += f", phases cut at {', '.join(cuts)} steps"
    facts = [
        ("model", f"{cfg.MODEL.META_ARCHITECTURE} on {network}"),
        ("sources", ", ".join(dict.fromkeys(n.rpartition("_")[0] for n in cfg.DATASETS.TRAIN))),
        ("schedule", cycle),
        (
            "optimizer",
            f"{solver.FX.OPTIMIZER}, rate {solver.BASE_LR:g}, {solver.IMS_PER_BATCH} images a "
            f"step, {solver.FX.PRECISION}, seed {cfg.SEED}",
        ),
    ]
    if curves.length:
        facts.append(("iterations", f"{curves.length:,}"))
    seconds = [value for _, value in curves.series("time")]
    if seconds:
        facts.append(("time of a step", f"{sorted(seconds)[len(seconds) // 2]:.2f} s (median)"))
    gpu = accelerator(torch.device(cfg.MODEL.DEVICE))
    facts.append(("page made on", ", ".join(part for part in (machine(), gpu) if part)))
    facts.append(("versions", versions(folder)))
    return facts


def versions(folder: Path) -> str:
    """Of this package and what it stands on; of the weights where they tell."""
    text = f"fx_d2 {fx_d2.__version__}, torch {torch.__version__}"
    try:
        revision = read_description(folder).get("git_revision")
    except DataError:
        revision = git_revision()
    return f"{text}, revision {revision}" if revision else text


def write_pictures(report: Report, folder: Path, prefix: str) -> list[Path]:
    """The pictures of a page as PNG files of their own, such as for a README."""
    files = []
    for name, data in (("curves", report.curves), ("forgetting", report.forgetting)):
        if data:
            files.append(folder / f"{prefix}{name}.png")
            write_atomically(files[-1], data)
    if report.examples:
        files.append(folder / f"{prefix}gallery.png")
        save_png(files[-1], gallery_sheet(report.examples[:6]))
    return files


def write_page(report: Report, out: Path) -> None:
    """Write the page, as a whole or not at all."""
    write_atomically(out, render(report).encode("utf-8", "backslashreplace"))
