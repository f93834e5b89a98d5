#!/usr/bin/env python3
"""DADAM: paste lesions from sources with boxes onto images of a source with long-tailed labels.

    python tools/make_lesion_mix.py --out output/dadam --size 512 --workers 2 \
      INPUT.FX.LESION_MIX.BASE "('cxr_lt_train',)" \
      INPUT.FX.LESION_MIX.BANK "('vindr_local_train','chestx_det_train')"

Images are made until every minority class has INPUT.FX.LESION_MIX.TARGET of them (up to 1: a share
of the base images). Labels, boxes and masks of the result are exact. Never a patch or a base of a
patient in a validation or test split. The same config and seed give the same bytes for any number
of workers; a call that was interrupted is continued by the same call.

The folder gets images/, records.jsonl and audit/ (audit.md, audit.json, pictures). A mix whose
audit breaks a limit is left unfinished, with exit code 1. Use a finished one with
DATASETS.LESION_MIX "('dadam=output/dadam',)": it is the dataset cxr_lt_dadam (for the heads of
cxr_lt), and the source cxr_lt_dadam with boxes and masks too. --prepare-only stops before the
images: what INPUT.FX.LESION_MIX.FOLDER and PROB need to mix while training.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import fx_d2  # noqa: F401 - quiets what Detectron2's imports warn about
from fx_d2.command_line import FAILED, Parser, WrongUse, check_output, tool, whole
from fx_d2.data.atomic import write_atomically
from fx_d2.data.build import configure_reading
from fx_d2.data.lesion_mix.audit import as_text, audit
from fx_d2.data.lesion_mix.audit_pictures import write_pictures
from fx_d2.data.lesion_mix.build import Job, Written, check_same, digest, write_mix
from fx_d2.data.lesion_mix.prepare import Ready, prepare
from fx_d2.data.lesion_mix.written import finish
from fx_d2.engine.setup import ConfigError, load_config

# Limits of the audit, and what only training uses: they change no byte of the images.
_NO_BYTES = ("prob", "max_diff", "min_r", "chance", "max_source_share")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the mix")
    add("--config-file", default="", metavar="FILE", help="default: the defaults of every key")
    add("--size", type=whole(32, 4096), default=None, metavar="PX",
        help="shrink base images to this shorter side; default: their own size")  # fmt: skip
    add("--limit", type=whole(1), default=None, metavar="N", help="try at most N images")
    add("--workers", type=whole(1), default=1, help="processes (default 1)")
    add("--prepare-only", action="store_true", help="only the bank and the statistics")
    add("opts", nargs="*", metavar="KEY VALUE", help="changes to the config, SEED among them")
    return parser.parse_intermixed_args(arguments)


def report(ready: Ready, written: Written, args: argparse.Namespace, seed: int) -> int:
    found = audit(written, ready.prepared, ready.records, ready.settings, ready.held_out)
    names = ", ".join(ready.prepared.datasets)
    folder = args.out / "audit"
    write_atomically(folder / "audit.json", json.dumps(found.body, indent=1) + "\n")
    write_atomically(
        folder / "audit.md", as_text(found, f"Lesions pasted onto {names}, seed {seed}")
    )
    write_pictures(args.out, found, written.rows, ready.records)
    if found.problems:
        print(f"make_lesion_mix: the audit fails: {'; '.join(found.problems)}. "
              f"See {folder / 'audit.md'}; other settings, or other limits, in the config",
              file=sys.stderr)  # fmt: skip
        return FAILED
    finish(args.out, ready.prepared, written, found, seed)
    print(f"correlations: largest difference {found.body['correlation']['max_diff']:.3f}, "
          f"r {found.body['correlation']['pearson_r']:.3f}; see {folder / 'audit.md'}")  # fmt: skip
    for name, entry in found.body["short"].items():
        print(f"still short of {entry['missing']} x {name}: {entry['why']}")
    return 0


def run(args: argparse.Namespace) -> int:
    cfg = load_config(args.config_file, args.opts)
    configure_reading(cfg)
    began = time.monotonic()
    ready = prepare(cfg, args.out, workers=args.workers)
    bank = ready.prepared.bank
    listed = ", ".join(f"{name} {len(found)}" for name, found in sorted(bank.by_label.items()))
    print(f"{len(bank)} patches: {listed}")
    for why, n in bank.header["skipped"].items():
        print(f"not cut: {n} x {why}")
    if args.prepare_only:
        print(f"use it:  INPUT.FX.LESION_MIX.FOLDER {args.out} INPUT.FX.LESION_MIX.PROB 0.5")
        return 0
    kept = {k: v for k, v in ready.settings.to_dict().items() if k not in _NO_BYTES}
    check_same(
        args.out,
        "begun.json",
        {
            "settings": kept,
            "base images": digest(ready.records),
            "seed": cfg.SEED,
            "size": args.size,
            "limit": args.limit,
        },
    )
    voi, on_error = cfg.INPUT.FX.INTENSITY.VOI, cfg.DATASETS.ON_ERROR
    job = Job(args.out, ready.prepared.base.key, ready.settings, args.size or 0, voi, on_error)
    written = write_mix(
        job, ready.prepared, ready.records, seed=cfg.SEED, limit=args.limit, workers=args.workers
    )
    print(f"{len(written.rows)} images in {args.out}, {time.monotonic() - began:.1f} s")
    if not written.rows:
        raise WrongUse("no image was made: no class is short of INPUT.FX.LESION_MIX.TARGET")
    return report(ready, written, args, cfg.SEED)


@tool("make_lesion_mix", resumable=True)
def main(arguments: Sequence[str] | None = None) -> int:
    args = parse(arguments)
    check_output(args.out, folder=True)
    try:
        return run(args)
    except ConfigError as exc:
        raise WrongUse(str(exc)) from exc


if __name__ == "__main__":
    sys.exit(main())
