#!/usr/bin/env python3
"""DoLL: explanations of a committee of classifiers as masks to learn segmentation from.

    python tools/make_pseudo_masks.py --out output/doll --dataset chexpert_train \
      --member output/a --member output/b --member output/c --workers 2 labels.top_share 0.1

Every positive label whose class the committee sees too becomes a mask of three values: foreground,
background, and ignored where its members are not sure. What is not labelled is ignored throughout.
The settings are those of configs/doll/pseudo_masks.yaml; KEY VALUE pairs change them. The same
settings and seed give the same bytes for any number of workers; a call that was interrupted is
continued by the same call.

The folder gets shards/ (COCO-style JSON), measures/, report.md, report.json and sheets/ (pictures
per class). Classes that are not good enough (quality.*, --exclude) are left out and named; other
limits need no new explanation. Use it with DATASETS.PSEUDO_MASKS "('doll=output/doll',)": it is the
source chexpert_doll, with the splits chexpert_doll_train and chexpert_doll_val.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from fx_d2.command_line import Parser, WrongUse, check_output, tool, whole
from fx_d2.data.build import configure_reading, load_datasets, source_of
from fx_d2.engine.setup import ConfigError, load_config
from fx_d2.pipelines.committee import CommitteeError, MemberSpec, build_committee
from fx_d2.pipelines.doll.build import build, plan
from fx_d2.pipelines.doll.settings import DollSettings, SettingsError, load_settings
from fx_d2.pipelines.doll.sheets import write_sheets

_MEMBER_KEYS = ("path", "head", "layer", "name", "weight")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the masks")
    add("--config-file", default="", metavar="FILE", help="settings; default: the defaults")
    add("--reading", default="", metavar="FILE",
        help="a config whose DATASETS says where and how the dataset is read")  # fmt: skip
    add("--dataset", default="", metavar="NAME", help="registered dataset to explain")
    add("--member", action="append", default=[], metavar="RUN",
        help="output folder or weights of a classifier; once per member")  # fmt: skip
    add("--exclude", action="append", default=[], metavar="CLASS", help="leave a class out")
    add("--limit", type=whole(1), default=None, metavar="N", help="only N images, spread")
    add("--workers", type=whole(1), default=1, help="processes (default 1)")
    add("opts", nargs="*", metavar="KEY VALUE", help="changes to the settings, seed among them")
    return parser.parse_intermixed_args(arguments)


def settings_of(args: argparse.Namespace) -> DollSettings:
    settings = load_settings(args.config_file, args.opts)
    settings = replace(
        settings,
        dataset=args.dataset or settings.dataset,
        members=tuple(args.member) or settings.members,
        exclude=(*settings.exclude, *args.exclude),
    )
    if not settings.dataset:
        raise WrongUse("no dataset; name one with --dataset, such as chexpert_train")
    if not settings.members:
        raise WrongUse("no classifier; name the members of the committee with --member")
    return settings


def spec_of(member: Any) -> MemberSpec:
    """A member as the settings name it: a path, or a mapping with one."""
    if isinstance(member, str):
        return MemberSpec(member)
    if not isinstance(member, Mapping) or "path" not in member or set(member) - {*_MEMBER_KEYS}:
        raise WrongUse(f"member {member!r}; expected a path, or {', '.join(_MEMBER_KEYS)}")
    return MemberSpec(**member)


def run(args: argparse.Namespace) -> int:
    began = time.monotonic()
    settings = settings_of(args)
    cfg = load_config(args.reading)
    configure_reading(cfg)
    try:
        source = source_of(settings.dataset)
    except KeyError as exc:
        raise WrongUse(exc.args[0]) from exc
    specs = [spec_of(member) for member in settings.members]
    made = plan(
        args.out, source, load_datasets([settings.dataset]),
        partial(build_committee, specs, device=settings.device), settings,
        limit=args.limit, on_error=cfg.DATASETS.ON_ERROR,
    )  # fmt: skip
    for name in made.unlabelled:
        print(f"no label of {source.key}: {name}; its channel is ignored")
    report = build(made, workers=args.workers)
    parts = len(made.parts())
    write_sheets(made.job, made.records, parts, [n for n in report.classes if n in report.kept])
    masks = sum(report.per_class[name]["masks"] for name in report.kept)
    print(f"{report.images} images, {masks} masks of {len(report.kept)} classes in {args.out}, "
          f"{time.monotonic() - began:.1f} s")  # fmt: skip
    for why, n in report.failed.items():
        print(f"not read: {n} x {why}")
    for name, why in report.excluded.items():
        print(f"excluded: {name}: {why}")
    print(f"see {args.out / 'report.md'}")
    return 0


@tool("make_pseudo_masks", resumable=True)
def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    check_output(args.out, folder=True)
    try:
        return run(args)
    except (ConfigError, SettingsError, CommitteeError) as exc:
        raise WrongUse(str(exc)) from exc


if __name__ == "__main__":
    sys.exit(main())
