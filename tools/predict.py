#!/usr/bin/env python3
"""Predict radiographs with trained weights: labels, boxes and masks as pictures and JSON.

    python tools/predict.py films/ --weights output/model_final.safetensors --out predictions
    python tools/predict.py a.dcm b.png --weights output --heads chexpert/cls,loc
    python tools/predict.py films/ --weights output --json | jq .labels

Of a folder every PNG, JPEG, BMP, GIF, DICOM, MetaImage and JSRT file below it is taken. DIR gets
json/<name>.json, overlays/<name>.png and labels.csv. --json prints a line of JSON per image, and
writes files only where --out is given too.

Exit code: 0 everything predicted, 1 something could not be read, 2 wrong use.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch
from tqdm import tqdm

from fx_d2.command_line import FAILED, Parser, WrongUse, check_output, number, tool, whole
from fx_d2.data.draw_predictions import Look
from fx_d2.data.errors import DataError
from fx_d2.data.image_files import ImageFile, find_images
from fx_d2.engine.checkpoint import CheckpointError
from fx_d2.engine.setup import ConfigError
from fx_d2.prediction_files import JSON_FOLDER, PICTURE_FOLDER, PredictionFolder, as_json
from fx_d2.predictor import Predictor

_DEFAULT_OUT = Path("predictions")


def _stated(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not (separator and name and value):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=VALUE")
    return name, value


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = Parser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("input", nargs="+", type=Path, metavar="INPUT", help="image files or folders of them")
    add(
        "--weights",
        required=True,
        action="append",
        metavar="W",
        help="a .safetensors file, or a run's folder; repeated: their mean label probabilities",
    )
    add(
        "--heads",
        action="append",
        metavar="H,H",
        help="source/task, source or task; default: all; may be repeated",
    )
    add(
        "--context",
        action="append",
        type=_stated,
        default=[],
        metavar="NAME=VALUE",
        help="what all images are known by, where the model is told: body_part=WRIST, view=AP",
    )
    add("--out", type=Path, metavar="DIR", help=f"default: {_DEFAULT_OUT}, none with --json")
    add("--json", action="store_true", help="print JSON lines on standard output")
    add("--batch-size", type=whole(1), default=8, metavar="N", help="images at once (default 8)")
    add("--workers", type=whole(0), default=0, metavar="N", help="processes that read (default 0)")
    add("--device", metavar="D", help="such as cpu or cuda:1; default: a GPU where there is one")
    add(
        "--score-threshold",
        type=number(0, 1),
        default=0.5,
        metavar="S",
        help="boxes below are neither drawn nor written (default 0.5)",
    )
    add("--size", type=whole(128, 4096), default=640, metavar="PX", help="of a panel (default 640)")
    return parser


def _images(args: argparse.Namespace) -> list[ImageFile]:
    try:
        images = find_images(args.input)
    except FileNotFoundError as exc:
        raise WrongUse(f"{exc}: there is no such file or folder") from exc
    if not images:
        places = ", ".join(map(str, args.input))
        raise WrongUse(f"no image in {places}; expected PNG, JPEG, BMP, GIF, DICOM, .mha or .IMG")
    return images


def _check_out(out: Path, given: Sequence[Path], images: Sequence[ImageFile]) -> None:
    """Raise where results cannot be written, or would lie among the radiographs."""
    ours = [out / JSON_FOLDER, out / PICTURE_FOLDER]
    for folder in (out, *ours):
        check_output(folder, folder=True)
    there = next(place for place in (out, *out.absolute().parents) if place.is_dir())
    try:
        # Permissions say little of a full, read-only or virtual file system.
        tempfile.TemporaryFile(dir=there).close()
    except OSError as exc:
        raise WrongUse(f"--out {out} cannot be written: {exc.strerror} in {there}") from exc
    place = out.resolve()
    for folder in given:
        if folder.is_dir() and folder.resolve() in (place, *place.parents):
            raise WrongUse(
                f"--out {out} lies in {folder}: its pictures would be taken for radiographs the "
                "next time; name another folder"
            )
    pictures = ours[1].resolve()
    for image in images:
        if pictures in image.path.resolve().parents:
            raise WrongUse(f"{image.path} lies where --out {out} puts its pictures")


def _predictor(args: argparse.Namespace) -> Predictor:
    heads = None
    if args.heads:
        heads = [name.strip() for text in args.heads for name in text.split(",") if name.strip()]
    try:
        return Predictor(
            args.weights,
            heads=heads,
            device=args.device,
            batch_size=args.batch_size,
            context=dict(args.context),
        )
    except (CheckpointError, ConfigError) as exc:
        raise WrongUse(f"--weights: {exc}") from exc
    except (KeyError, ValueError) as exc:
        raise WrongUse(str(exc.args[0])) from exc


def _predict(args: argparse.Namespace, images: Sequence[ImageFile], predictor: Predictor) -> int:
    """Predict and write; how many images could not be."""
    look = Look(predictor.heads, args.score_threshold, args.size)
    folder = PredictionFolder(args.out, look, predictor.asked) if args.out else nullcontext()
    found = predictor.stream((i.path for i in images), num_workers=args.workers)
    failed = 0
    with folder as files, tqdm(total=len(images), desc="predicting", unit="image", delay=1) as bar:
        for image, (_, prediction) in zip(images, found, strict=True):
            try:
                if isinstance(prediction, DataError):
                    raise prediction
                described = as_json(
                    prediction,
                    predictor.heads,
                    file=str(image.path),
                    score_threshold=args.score_threshold,
                    weights_sha256=predictor.description.get("weights_sha256"),
                )
                if files is not None:
                    files.write(image, prediction, described)
            except DataError as exc:
                failed += 1
                described = {"file": str(image.path), "error": str(exc)}
                bar.write(f"predict: {exc}", file=sys.stderr)
            if args.json:
                print(json.dumps(described), flush=True)
            bar.update()
    return failed


@tool("predict")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.out is None and not args.json:
        args.out = _DEFAULT_OUT
    images = _images(args)
    if args.out is not None:
        _check_out(args.out, args.input, images)
    predictor = _predictor(args)
    try:
        failed = _predict(args, images, predictor)
    except torch.OutOfMemoryError as exc:
        raise WrongUse(f"{predictor.device} has too little memory; lower --batch-size") from exc
    where = f", in {args.out}" if args.out else ""
    print(f"{len(images) - failed} of {len(images)} images predicted{where}", file=sys.stderr)
    return FAILED if failed else 0


if __name__ == "__main__":
    sys.exit(main())
