#!/usr/bin/env python3
"""Draw datasets with their boxes, masks and labels, as PNG files or contact sheets.

    python tools/visualize_data.py --source rsna --split train --num 12 --sheet --out pictures
    python tools/visualize_data.py --dataset rsna_train nih14_test --num 4
    python tools/visualize_data.py --root datasets --sheet          # every source that is there
    python tools/visualize_data.py --source rsna --task loc --mapped   # as the model sees them
    python tools/visualize_data.py --num 1 --together --bare        # one film of every source

Exit code: 0 everything drawn, 1 something could not be read, 2 wrong use.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import yaml
from tqdm import tqdm

from fx_d2.command_line import (
    Parser,
    WrongUse,
    check_output,
    existing_root,
    named_source,
    tool,
    whole,
)
from fx_d2.data import catalog
from fx_d2.data.doctor.run import present_sources
from fx_d2.data.draw import (
    Picture,
    contact_sheet,
    draw_record,
    draw_scene,
    scene_of_sample,
)
from fx_d2.data.errors import DataError
from fx_d2.data.picture_files import file_name, save_png
from fx_d2.data.record import Record
from fx_d2.data.source import Source
from fx_d2.data.sources import SOURCES, get_source

_SPLITS = ("train", "val", "trainval", "test", "all")
_FIRST_CHOICE = ("train", "all")  # split drawn when none is named
_TOGETHER = "together.png"
_MAX_PX = 8192
_MAX_SHEET_PX = 1 << 28  # a sheet is one array; this one takes 0.8 GB


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--source", nargs="+", metavar="S", help="sources; see --split")
    what.add_argument("--dataset", nargs="+", metavar="NAME", help="names as <source>_<split>")
    add("--root", type=Path, metavar="DIR", help="datasets root; default: $DETECTRON2_DATASETS")
    add("--split", metavar="SPLIT", help="split of every source; default: train")
    add("--num", type=whole(1), default=8, metavar="N", help="images per dataset (default 8)")
    add("--out", type=Path, default=Path("pictures"), metavar="DIR", help="default: pictures")
    add("--sheet", action="store_true", help="one contact sheet per dataset instead of files")
    add("--together", action="store_true", help="one contact sheet of all datasets")
    add("--bare", action="store_true", help="the images alone, nothing drawn on them")
    add("--columns", type=whole(1), default=4, metavar="N", help="of a sheet")
    add(
        "--size", type=whole(64, _MAX_PX), default=640, metavar="PX", help="longer side of an image"
    )
    add("--mapped", action="store_true", help="after the mapper: augmented, as the model sees it")
    add("--task", choices=("cls", "loc", "seg"), help="with --mapped; default: the richest")
    add("--config-file", metavar="FILE", help="with --mapped: a config other than the defaults")
    add("--evaluation", action="store_true", help="with --mapped: as for evaluation, not training")
    add("--annotated", action="store_true", help="prefer images that have boxes, masks or labels")
    return parser


def parse_dataset(name: str) -> tuple[str, str]:
    """``rsna_train`` as (``rsna``, ``train``); the longest source name counts."""
    for key in sorted(SOURCES, key=len, reverse=True):
        if name.startswith(f"{key}_"):
            split = name[len(key) + 1 :]
            if split in SOURCES[key].splits:
                return key, split
            known = ", ".join(f"{key}_{s}" for s in SOURCES[key].splits)
            raise WrongUse(f"no dataset {name!r}; {key} has {known}")
    # Answers with the nearest names; without the split they are nearer.
    stem, _, split = name.rpartition("_")
    named_source(stem if split in _SPLITS and stem else name)
    raise WrongUse(f"{name!r} names no split; use {name}_train, or --source {name}")


def _wanted(args: argparse.Namespace, root: Path) -> list[tuple[str, str]]:
    if args.dataset:
        return [parse_dataset(name) for name in args.dataset]
    keys = args.source or [source.key for source in present_sources(root)]
    pairs = []
    for source in map(named_source, keys):
        split = args.split or next(
            s for s in (*_FIRST_CHOICE, *source.splits) if s in source.splits
        )
        if split not in source.splits:
            raise WrongUse(f"{source.key} has no split {split!r}; it has {list(source.splits)}")
        pairs.append((source.key, split))
    return pairs


def has_content(record: Record) -> bool:
    """Whether something can be seen on it: a box or a positive label; without labels, a mask."""
    if record.get("annotations"):
        return True
    if "labels" in record:
        return bool((record["labels"] == 1).any())
    return bool(record.get("masks"))


def choose(records: Sequence[Record], num: int, annotated: bool) -> list[int]:
    """Indices spread evenly over the dataset; with ``annotated``, over records with content."""
    indices = list(range(len(records)))
    if annotated:
        seen = [i for i in indices if has_content(records[i])]
        indices = seen or indices
    if len(indices) <= num:
        return indices
    return [indices[i] for i in np.linspace(0, len(indices) - 1, num).round().astype(int)]


def mapped_drawer(args: argparse.Namespace) -> Callable[[Record, Source, int], Picture]:
    """Draws a record as the mapper hands it to the model, number by number of one pass."""
    # Detectron2 and torch take seconds to import: only where they are needed.
    from detectron2.config import get_cfg

    from fx_d2.config import add_fx_config
    from fx_d2.data.mapper import FxMapper

    cfg = get_cfg()
    add_fx_config(cfg)
    if args.config_file:
        try:
            cfg.merge_from_file(args.config_file)
        except (AssertionError, KeyError, ValueError, yaml.YAMLError) as exc:
            raise WrongUse(f"--config-file {args.config_file}: {exc}") from exc
    mapper = FxMapper(cfg, is_train=not args.evaluation)

    def draw(record: Record, source: Source, number: int) -> Picture:
        task = args.task or source.all_tasks()[-1]
        if task not in source.all_tasks():
            raise DataError(
                f"{source.key} has no task {task!r}",
                expected=f"one of {source.all_tasks()}",
                fix="choose another --task",
            )
        sample = mapper(record, task, (source.key, task, number))
        return draw_scene(scene_of_sample(sample, source), source.thing_classes, size_px=args.size)

    return draw


def _pictures(
    records: Sequence[Record], source: Source, args: argparse.Namespace, split: str
) -> Iterator[tuple[str, Picture]]:
    chosen = choose(records, args.num, args.annotated)
    mapped = mapped_drawer(args) if args.mapped else None
    for number, i in enumerate(tqdm(chosen, desc=f"drawing {source.key}_{split}", delay=2)):
        record = records[i]
        if mapped is not None:
            yield record["image_id"], mapped(record, source, number)
        else:
            picture = draw_record(record, source, size_px=args.size, bare=args.bare)
            yield record["image_id"], picture


def draw_dataset(
    key: str, split: str, root: Path, args: argparse.Namespace
) -> Iterator[tuple[str, Picture]]:
    """The pictures of one dataset with the ids of their images."""
    source = get_source(key)
    records = catalog.load_records(key, split, root=root / source.folder, on_error="skip")
    yield from _pictures(records, source, args, split)


def save_dataset(
    key: str, split: str, pictures: Iterable[tuple[str, Picture]], args: argparse.Namespace
) -> list[Path]:
    """Write the pictures of one dataset as files or as a sheet; returns the files written."""
    if args.sheet:
        sheet = contact_sheet([picture for _, picture in pictures], columns=args.columns)
        path = args.out / f"{key}_{split}.png"
        save_png(path, sheet)
        return [path]
    written = []
    for image_id, picture in pictures:
        path = args.out / f"{key}_{split}" / f"{file_name(image_id)}.png"
        save_png(path, picture)
        written.append(path)
    return written


def _check_use(args: argparse.Namespace, wanted: Sequence[tuple[str, str]]) -> None:
    if not args.mapped and (args.task or args.config_file or args.evaluation):
        raise WrongUse("--task, --config-file and --evaluation go with --mapped")
    if args.mapped and args.bare:
        raise WrongUse("--bare draws files as they are, --mapped what becomes of them: choose one")
    images = args.num * (len(wanted) if args.together else 1)
    if (args.sheet or args.together) and images * args.size**2 > _MAX_SHEET_PX:
        raise WrongUse(
            f"a sheet of {images} images of {args.size} px is too large; "
            f"at this --size it holds {_MAX_SHEET_PX // args.size**2}"
        )
    check_output(args.out, folder=True)


@tool("visualize_data")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    root = existing_root(args.root or catalog.datasets_root())
    wanted = _wanted(args, root)
    if not wanted:
        raise WrongUse(f"no known source below {root}; datasets/README.md lists their folders")
    _check_use(args, wanted)
    failed = 0
    together: list[Picture] = []
    for key, split in wanted:
        try:
            pictures = draw_dataset(key, split, root, args)
            if args.together:
                together += [picture for _, picture in pictures]
                continue
            written = save_dataset(key, split, pictures, args)
        except DataError as exc:
            print(f"{key}_{split}: {exc}", file=sys.stderr)
            failed += 1
            continue
        print(f"{key}_{split}: {len(written)} file(s), {written[0]}")
    if together:
        save_png(args.out / _TOGETHER, contact_sheet(together, columns=args.columns))
        print(f"{len(together)} images on {args.out / _TOGETHER}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
