#!/usr/bin/env python3
"""Lung masks of several models as one: area against Dice of every rule and of every model.

    python tools/ensemble_masks.py --weights output/lungs/a output/lungs/b output/lungs/c \\
        --source montgomery --split test --out output/lungs/ensemble

A weight is a .safetensors file or a run's folder; any model with masks of lungs will do. The lungs
of a source are its class Lungs, or its Left Lung and Right Lung together. Models that learned from
the splits of a file (DATASETS.SPLIT_FILES) are measured on its held images with --split-file. DIR
gets report.json, report.md and worst.png, which shows patients: keep it where the films are.

Exit code: 0 done, 1 something could not be read, 2 wrong use.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

import fx_d2  # noqa: F401 - quiets what Detectron2's imports warn about
from fx_d2.command_line import (
    FAILED,
    Parser,
    WrongUse,
    check_output,
    named_source,
    number,
    tool,
    whole,
)
from fx_d2.data.atomic import write_atomically
from fx_d2.data.catalog import load_records
from fx_d2.data.lung_input import lung_classes
from fx_d2.data.picture_files import save_png
from fx_d2.data.source import Source
from fx_d2.engine.checkpoint import CheckpointError
from fx_d2.engine.setup import ConfigError
from fx_d2.pipelines.ensemble_report import CLEANED, EnsembleReport, draw_worst, measure
from fx_d2.pipelines.lung_masks import LungSegmentor, MaskRecipe
from fx_d2.pipelines.mask_ensemble import Cleaning

_FORMAT = "fx_d2 mask ensemble 1"


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = Parser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    recipe = MaskRecipe()
    cleaning = recipe.cleaning
    add = parser.add_argument
    add("--weights", required=True, nargs="+", metavar="W", help="a file or a run's folder each")
    add("--heads", nargs="+", default=(), metavar="S",
        help="for each model the source whose lungs are taken, where it has several")  # fmt: skip
    add("--source", required=True, metavar="NAME", help="such as montgomery")
    add("--split", default="test", metavar="NAME", help="default: test")
    add("--split-file", type=Path, metavar="FILE",
        help="splits written by tools/make_split.py, in place of those of the source")  # fmt: skip
    add("--limit", type=whole(1), metavar="N", help="the first N images only")
    add("--rule", default=recipe.rule, metavar="R",
        help="of worst.png; all are measured (default union)")  # fmt: skip
    add("--threshold", type=number(1e-6, 1), default=recipe.threshold, metavar="P",
        help="probability from which a pixel belongs to a mask (default 0.5)")  # fmt: skip
    add("--components", type=whole(0), default=cleaning.components, metavar="N",
        help="cleaning: largest parts that are kept, 0 all (default 2)")  # fmt: skip
    add("--fill", type=number(0, 1), default=cleaning.fill, metavar="X",
        help="cleaning: holes up to this share of the mask are filled (default 0.1)")  # fmt: skip
    add("--dilate", type=number(0, 0.5), default=cleaning.dilate, metavar="X",
        help="cleaning: growth as a share of the longer side (default 0.005)")  # fmt: skip
    add("--skip", action="store_true", help="leave out images that cannot be read, and count them")
    add("--num", type=whole(0, 24), default=6, metavar="N", help="images drawn (default 6)")
    add("--size", type=whole(128, 1024), default=384, metavar="PX", help="of a film (default 384)")
    add("--device", metavar="D", help="such as cpu or cuda:1; default: a GPU where there is one")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the report")
    return parser


def _source(args: argparse.Namespace) -> Source:
    source = named_source(args.source)
    if args.split_file is None and args.split not in source.splits:
        raise WrongUse(
            f"--split {args.split!r}: {source.key} has {', '.join(source.splits)} (test by default)"
        )
    if not lung_classes(source.seg_classes):
        raise WrongUse(
            f"--source {source.key} has no masks of lungs, its classes of masks are "
            f"{', '.join(source.seg_classes) or 'none'}"
        )
    return source


def _segmentor(args: argparse.Namespace) -> LungSegmentor:
    try:
        cleaning = Cleaning(components=args.components, fill=args.fill, dilate=args.dilate)
        recipe = MaskRecipe(args.rule, args.threshold, cleaning)
        return LungSegmentor(args.weights, heads=args.heads, recipe=recipe, device=args.device)
    except (CheckpointError, ConfigError, ValueError) as exc:
        raise WrongUse(str(exc)) from exc


def _write(
    args: argparse.Namespace, segmentor: LungSegmentor, report: EnsembleReport, dataset: str
) -> None:
    recipe = segmentor.recipe
    body = {
        "format": _FORMAT,
        "dataset": dataset,
        "split_file": str(args.split_file or ""),
        "models": segmentor.origin(),
        "rule": recipe.rule,
        "threshold": recipe.threshold,
        "cleaning": vars(recipe.cleaning),
        **report.as_json(),
    }
    write_atomically(args.out / "report.json", json.dumps(body, indent=1) + "\n")
    skipped = f", {len(report.skipped)} left out" if report.skipped else ""
    text = (
        f"# Lung masks of {dataset}: {len(report.image_ids)} images{skipped}\n\n"
        f"{report.as_text()}\n\n"
        f"Threshold {recipe.threshold:g}; cleaning: {recipe.cleaning}. Area: share of the image. "
        "False area: mask outside the true lungs, as a share of these.\n"
    )
    write_atomically(args.out / "report.md", text)


@tool("ensemble_masks")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    source = _source(args)
    check_output(args.out, folder=True)
    segmentor = _segmentor(args)
    dataset = f"{source.key}_{args.split}"
    records = list(load_records(source.key, args.split, split_file=args.split_file))[: args.limit]
    bar = tqdm(records, desc="measuring", unit="image", delay=1)
    report = measure(segmentor, bar, source, skip=args.skip)
    for line in report.skipped:
        print(f"ensemble_masks: left out: {line}", file=sys.stderr)
    if not report.image_ids:
        print(f"ensemble_masks: no image of {dataset} could be measured", file=sys.stderr)
        return FAILED
    _write(args, segmentor, report, dataset)
    if args.num:
        by_id = {record["image_id"]: record for record in records}
        worst = report.worst(segmentor.recipe.rule + CLEANED, args.num)
        sheet = draw_worst(segmentor, [by_id[i] for i in worst], source, report, size_px=args.size)
        save_png(args.out / "worst.png", sheet)
    print(report.as_text())
    print(f"{len(report.image_ids)} images, {args.out / 'report.md'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
