#!/usr/bin/env python3
"""Lung masks, scores of the lungs and heat maps of radiographs: the hybrid pipeline.

    python tools/run_hybrid.py films/ --weights runs --out hybrid
    python tools/run_hybrid.py a.dcm b.png --segmentor runs/unet --segmentor runs/fpn \\
        --classifier runs/coatnet --out hybrid
    python tools/run_hybrid.py films/ --weights output/joint@covid_radiography --out hybrid
    python tools/run_hybrid.py --dataset chestx_det_test --weights runs --out hybrid

--weights DIR holds segmentors/<run>/ (all are combined) and classifier/, or is the folder of one
run whose model has lung masks and image labels. PATH@SOURCE names the head to use.

Of an input folder every PNG, JPEG, BMP, GIF, DICOM, MetaImage and JSRT file below it is taken; with
--dataset the films of a registered split, whose lesions are compared with the heat maps. DIR gets
masks/, maps/, overlays/, films.jsonl, summary.csv, summary.json and index.html.

Exit code: 0 all films done, 1 some could not be read, 2 wrong use.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from fx_d2.benchmark.memory import status_mib
from fx_d2.command_line import FAILED, Parser, WrongUse, check_output, number, tool, whole
from fx_d2.data.build import load_datasets, source_of
from fx_d2.data.errors import DataError
from fx_d2.data.image_files import ImageFile, find_images
from fx_d2.data.images import read_mask_image
from fx_d2.data.lung_input import LUNG_MODES
from fx_d2.data.lung_masks import OF_RECORD, lungs_of
from fx_d2.data.picture_files import file_name
from fx_d2.data.record import Record
from fx_d2.data.source import Source
from fx_d2.engine.checkpoint import CheckpointError
from fx_d2.engine.setup import ConfigError
from fx_d2.explain import CAM_METHODS
from fx_d2.pipelines.evidence import LungLimits, lesions_of
from fx_d2.pipelines.hybrid import Hybrid, HybridSettings
from fx_d2.pipelines.hybrid_files import FOLDERS, HybridFolder
from fx_d2.pipelines.hybrid_weights import HybridWeights, find_weights
from fx_d2.pipelines.lung_classifier import LungClassifier
from fx_d2.pipelines.lung_masks import LungSegmentor, MaskRecipe
from fx_d2.pipelines.mask_ensemble import RULES, Cleaning
from fx_d2.pipelines.stages import Film, LungMask

_DEFAULTS, _RECIPE = HybridSettings(), MaskRecipe()
_SHARE = number(0, 1)
_OF_RECORD = Path(OF_RECORD)


@dataclass(frozen=True)
class _Job:
    """A film to do, with its record where it is of a data set."""

    image: ImageFile
    record: Record | None = None


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = Parser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("input", nargs="*", type=Path, metavar="INPUT", help="image files or folders of them")
    add("--dataset", metavar="NAME", help="a registered split, <source>_<split>, in their place")
    add("--num", type=whole(1), metavar="N", help="the first N films only")
    add("--out", type=Path, required=True, metavar="DIR", help="where results go")
    models = parser.add_argument_group("models")
    add = models.add_argument
    add("--weights", metavar="DIR", help="segmentors/<run> and classifier/, or a run")
    add("--segmentor", action="append", default=[], metavar="PATH", help="may be repeated")
    add("--classifier", metavar="PATH", help="in place of that in --weights")
    add("--masks", type=Path, metavar="DIR",
        help="lung masks <name>.png or record, those of --dataset")  # fmt: skip
    add("--device", default="", metavar="D", help="such as cuda:1; default: a GPU if there is one")
    stages = parser.add_argument_group("stages")
    add = stages.add_argument
    add("--rule", choices=tuple(RULES), default=_RECIPE.rule, help="of several segmentors")
    add("--dilate", type=number(0, 0.5), default=_RECIPE.cleaning.dilate, metavar="S",
        help="growth of a mask as a share of the longer side (default 0.005)")  # fmt: skip
    add(
        "--lung-area",
        nargs=2,
        type=_SHARE,
        metavar=("LOW", "HIGH"),
        help="plausible: 0.1 0.6",
    )
    add("--lung-input", choices=LUNG_MODES, help="shown to the classifier; default: as trained")
    add("--method", choices=CAM_METHODS, default=_DEFAULTS.method, help="of the heat maps")
    add("--layer", default="", metavar="NAME", help="default: the last stage of 7 x 7 cells")
    add("--class", dest="classes", action="append", default=[], metavar="NAME", help="to explain")
    add(
        "--threshold",
        type=_SHARE,
        default=_DEFAULTS.threshold,
        metavar="P",
        help="positive from",
    )
    add("--min-in-lung", type=_SHARE, default=_DEFAULTS.min_in_lung, metavar="S",
        help="share of a positive class's map that has to lie in the lungs")  # fmt: skip
    add(
        "--level",
        type=_SHARE,
        default=_DEFAULTS.level,
        metavar="L",
        help="of the severity score",
    )
    look = parser.add_argument_group("pictures")
    add = look.add_argument
    add("--size", type=whole(128, 4096), default=640, metavar="PX", help="of a panel (640)")
    add("--cards", type=whole(0, 5000), default=200, metavar="N", help="films on the page (200)")
    return parser


def _jobs(args: argparse.Namespace) -> list[_Job]:
    if bool(args.input) == bool(args.dataset):
        raise WrongUse("name INPUT files or folders, or --dataset NAME")
    if args.dataset:
        try:
            records: Any = load_datasets([args.dataset])
        except KeyError as exc:
            raise WrongUse(str(exc.args[0])) from exc
        jobs = list(_listed(records))
    else:
        try:
            jobs = [_Job(image) for image in find_images(args.input)]
        except FileNotFoundError as exc:
            raise WrongUse(f"{exc}: there is no such file or folder") from exc
    if not jobs:
        places = ", ".join(map(str, args.input))
        raise WrongUse(f"no image in {places}; expected PNG, JPEG, BMP, GIF, DICOM, .mha or .IMG")
    return jobs[: args.num]


def _listed(records: Sequence[Record]) -> Iterator[_Job]:
    """The films of a data set; ids that become one file name are told apart by a number."""
    taken: Counter[str] = Counter()
    for record in records:
        name = file_name(str(record["image_id"]))
        taken[name.casefold()] += 1
        number = taken[name.casefold()]
        unique = name if number == 1 else f"{name}__{number}"
        yield _Job(ImageFile(Path(record["file_name"]), unique), record)


def _check_out(out: Path, given: Sequence[Path]) -> None:
    for folder in (out, *(out / name for name in FOLDERS)):
        check_output(folder, folder=True)
    place = out.resolve()
    for folder in given:
        if folder.is_dir() and folder.resolve() in (place, *place.parents):
            raise WrongUse(
                f"--out {out} lies in {folder}: its pictures would be taken for radiographs the "
                "next time; name another folder"
            )


def _pipeline(args: argparse.Namespace) -> Hybrid:
    try:
        device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as exc:
        reason = str(exc).strip().partition("\n")[0]
        raise WrongUse(f"device {args.device!r} cannot be used: {reason}") from exc
    if args.masks == _OF_RECORD and args.dataset:
        pass
    elif args.masks is not None and not args.masks.is_dir():
        raise WrongUse(f"--masks {args.masks} is not a folder")
    try:
        found = find_weights(
            args.weights, args.segmentor, args.classifier, need_segmentors=args.masks is None
        )
        one = found.classifier
        classifier = LungClassifier.load(one.path, device, head=one.head)
        return Hybrid(_segmentor(args, found, device), classifier, _settings(args))
    except (CheckpointError, ConfigError) as exc:
        raise WrongUse(str(exc)) from exc
    except (KeyError, ValueError) as exc:
        raise WrongUse(str(exc.args[0])) from exc


def _segmentor(
    args: argparse.Namespace, found: HybridWeights, device: torch.device
) -> LungSegmentor | None:
    if args.masks is not None:
        return None
    heads = [one.head for one in found.segmentors]
    paths = [one.path for one in found.segmentors]
    recipe = MaskRecipe(args.rule, cleaning=Cleaning(dilate=args.dilate))
    return LungSegmentor(paths, heads=heads, recipe=recipe, device=device)


def _settings(args: argparse.Namespace) -> HybridSettings:
    limits = LungLimits(*args.lung_area) if args.lung_area else LungLimits()
    return HybridSettings(
        limits=limits,
        lung_input=args.lung_input,
        method=args.method,
        layer=args.layer,
        classes=tuple(args.classes),
        threshold=args.threshold,
        min_in_lung=args.min_in_lung,
        level=args.level,
    )


def _given_mask(
    args: argparse.Namespace, job: _Job, film: Film, source: Source | None
) -> LungMask | None:
    if args.masks is None:
        return None
    film.loaded()  # a film that cannot be read has no mask either, and that is not its trouble
    if args.masks == _OF_RECORD and source is not None and job.record is not None:
        own = lungs_of(job.record, film.size, resize=source.resize_masks)
        if own is None:
            raise DataError("its record has no lung mask", file=film.path)
        return LungMask(own, OF_RECORD)
    path = args.masks / f"{job.image.name}.png"
    if not path.is_file():
        raise DataError("no lung mask", file=path, fix="make it, or leave --masks out")
    return LungMask(read_mask_image(path))


def _run(args: argparse.Namespace, jobs: Sequence[_Job], pipeline: Hybrid) -> dict[str, Any]:
    """Do all films; the summary."""
    source = source_of(args.dataset) if args.dataset else None
    look = {"size_px": args.size, "max_cards": args.cards, "lesions": source is not None}
    with (
        HybridFolder(args.out, pipeline, **look) as folder,
        tqdm(total=len(jobs), desc="films", unit="film", delay=1) as bar,
    ):
        for job in jobs:
            start = time.perf_counter()
            try:
                film = Film(job.image.path)
                lesions = {}
                if source is not None and job.record is not None:
                    lesions = lesions_of(job.record, source, film.size)
                found = pipeline(film, _given_mask(args, job, film, source), lesions)
                folder.write(job.image, found, time.perf_counter() - start, lesions)
            except DataError as exc:
                folder.fail(job.image, str(exc))
                bar.write(f"run_hybrid: {exc}", file=sys.stderr)
            bar.update()
        return folder.finish(status_mib("VmHWM"))


def _told(summary: dict[str, Any], out: Path) -> Iterator[str]:
    status = summary["by_status"]
    done = status.get("done", 0)
    yield f"{done} of {summary['films']} films done, page in {out / 'index.html'}"
    if summary["with_warnings"]:
        kinds = ", ".join(f"{kind} {count}" for kind, count in summary["warnings"].items())
        yield f"{summary['with_warnings']} with warnings: {kinds}"
    if status.get("not read"):
        yield f"{status['not read']} not read, see above"
    if summary["seconds_per_film"] is not None:
        seconds, peak = summary["seconds_per_film"], summary["peak_memory_mib"]
        memory = f", {peak:.0f} MiB peak memory" if peak else ""
        yield f"{seconds:.2f} s per film{memory}"


@tool("run_hybrid")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    jobs = _jobs(args)
    _check_out(args.out, args.input)
    pipeline = _pipeline(args)
    try:
        summary = _run(args, jobs, pipeline)
    except torch.OutOfMemoryError as exc:
        raise WrongUse("the device has too little memory for one film; use --device cpu") from exc
    for line in _told(summary, args.out):
        print(line, file=sys.stderr)
    return FAILED if summary["not_read"] else 0


if __name__ == "__main__":
    sys.exit(main())
