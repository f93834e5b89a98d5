#!/usr/bin/env python3
"""Check datasets before anyone spends a GPU day.

    python tools/doctor.py                       # every source below $DETECTRON2_DATASETS
    python tools/doctor.py --source rsna nih14 --html report.html --json report.json

Exit code: 0 no errors (warnings are printed), 1 errors, 2 wrong use. docs/doctor.md explains the
checks.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from fx_d2.command_line import (
    Parser,
    WrongUse,
    check_output,
    existing_root,
    named_source,
    tool,
    whole,
)
from fx_d2.data.atomic import write_atomically
from fx_d2.data.catalog import datasets_root
from fx_d2.data.doctor import CHECKS, Report, check_table, examine
from fx_d2.data.doctor.report_html import render_html
from fx_d2.data.doctor.run import Options, present_sources
from fx_d2.data.source import Source

_SHOWN = 5  # findings printed per check; all are in --json and --html


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--source", nargs="+", metavar="S", help="sources to check; default: all that are there")
    add("--root", type=Path, metavar="DIR", help="datasets root; default: $DETECTRON2_DATASETS")
    add("--split", nargs="+", metavar="SPLIT", help="splits to check (their published parts)")
    add("--json", type=Path, metavar="FILE", help="write every finding as JSON")
    add("--html", type=Path, metavar="FILE", help="write a page with pictures of the offenders")
    add("--max-images", type=whole(1), metavar="N", help="decode at most N images per source")
    cores = min(4, os.cpu_count() or 1)
    add("--workers", type=whole(0), default=cores, metavar="N", help=f"processes; default: {cores}")
    add("--fast", action="store_true", help="read indexes and image headers only")
    add("--quiet", action="store_true", help="no progress bars")
    add("--list-checks", action="store_true", help="print the table of checks and stop")
    return parser


def _sources(args: argparse.Namespace, root: Path) -> list[Source]:
    if args.source is None:
        found = present_sources(root)
        if not found:
            raise WrongUse(f"no known source below {root}; datasets/README.md lists their folders")
        return found
    return [named_source(key) for key in dict.fromkeys(args.source)]


def _parts(args: argparse.Namespace, sources: Sequence[Source]) -> list[str] | None:
    """Published parts that hold the wanted splits."""
    if args.split is None:
        return None
    known = {name for source in sources for name in source.splits}
    for split in args.split:
        if split not in known:
            raise WrongUse(f"no split {split!r}; the sources have {', '.join(sorted(known))}")
    return sorted({s.splits[n].name for s in sources for n in args.split if n in s.splits})


def print_report(report: Report) -> None:
    """The findings, worst first, a few per check."""
    for key, seen in report.checked.items():
        parts = ", ".join(f"{name} {n:,}" for name, n in seen["parts"].items())
        print(f"{key:18s} {seen['files']:>8,} images, {seen['decoded']:>7,} decoded ({parts})")
    for check, findings in report.by_check().items():
        worst = findings[0].severity
        cases = sum(finding.count for finding in findings)
        print(
            f"\n{worst.upper()} {check}: {cases:,} case{'s' * (cases != 1)} - {CHECKS[check].what}"
        )
        for finding in findings[:_SHOWN]:
            print(f"  {finding.line()}")
        if len(findings) > _SHOWN:
            print(f"  ... and {len(findings) - _SHOWN} more")
        print(f"  to do: {findings[0].fix}")
    counts = ", ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in report.counts.items())
    verdict = "NOT FIT" if report.exit_code else "fit for training"
    print(f"\n{counts.replace('infos', 'notes').replace('info', 'note')}: {verdict}")
    print(f"({len(report.checks)} checks in {report.seconds:.1f} s)")


@tool("doctor")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if args.list_checks:
        print(check_table(), end="")
        return 0
    root = existing_root(args.root or datasets_root())
    sources = _sources(args, root)
    for path in filter(None, (args.json, args.html)):
        check_output(path)
    options = Options(
        parts=_parts(args, sources),
        max_images=args.max_images,
        workers=args.workers,
        decode=not args.fast,
        progress=not args.quiet,
    )
    report, exam = examine(root, sources, options)
    # Files first: they are there even when whoever reads the output has seen enough.
    if args.json:
        write_atomically(args.json, json.dumps(report.to_json(), indent=1) + "\n")
    if args.html:
        page = render_html(report, exam)
        write_atomically(args.html, page.encode("utf-8", "backslashreplace"))
    print_report(report)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
