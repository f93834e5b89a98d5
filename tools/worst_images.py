#!/usr/bin/env python3
"""Draw the images a model is most wrong about: film, truth and prediction side by side.

    python tools/worst_images.py --config-file FILE --weights output/run --dataset rsna_val --out D
    python tools/worst_images.py --config-file FILE --weights W.safetensors \\
        --dataset chestx_det_test --task seg --class Effusion --num 9 --out D SOLVER.IMS_PER_BATCH 4

A sheet per class of labels and masks, one for all boxes; with labels the film stands alone. The
scores are those an evaluation wrote to per_image/ beside the weights or in OUTPUT_DIR, if it was of
these weights, images and settings; else the dataset is evaluated first. The pictures show patients:
keep them where the films are.

Exit code: 0 done, 1 something could not be read, 2 wrong use.
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fx_d2.command_line import Parser, WrongUse, check_output, tool, whole
from fx_d2.data.picture_files import file_name, save_png
from fx_d2.data.source import TASKS
from fx_d2.engine.checkpoint import CheckpointError
from fx_d2.engine.setup import ConfigError, load_config
from fx_d2.engine.worst import WorstImages


def _parser() -> argparse.ArgumentParser:
    summary, _, rest = (__doc__ or "").partition("\n")
    parser = Parser(
        description=summary, epilog=rest, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--config-file", required=True, metavar="FILE", help="config of the model")
    add("--weights", required=True, metavar="W", help="a .safetensors file, or a run's folder")
    add("--dataset", required=True, metavar="NAME", help="such as rsna_val")
    add("--task", choices=TASKS, help="default: all that the model has a head for")
    add("--class", dest="cls", metavar="NAME", help="default: all classes")
    # A sheet is one array: of these it takes 0.5 GB at most.
    add("--num", type=whole(1, 24), default=6, metavar="N", help="images of a sheet (default 6)")
    add("--size", type=whole(128, 1024), default=448, metavar="PX", help="of a film (default 448)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the sheets")
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config")
    return parser


@tool("worst_images")
def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    check_output(args.out, folder=True)
    try:
        worst = WorstImages(load_config(args.config_file, args.opts), args.weights, args.dataset)
        chosen = worst.chosen(args.task, args.cls)
    except (CheckpointError, ConfigError) as exc:
        raise WrongUse(str(exc)) from exc
    mistakes = worst.mistakes(chosen, args.num)
    for task, folder in worst.read_from.items():
        print(f"{task}: scores of {folder}")
    for task, cls, found in mistakes:
        name = "_".join(part for part in (args.dataset, task, cls) if part)
        if not found:
            print(f"{name}: nothing wrong")
            continue
        path = args.out / f"{file_name(name)}.png"
        save_png(path, worst.sheet(task, cls, found, size_px=args.size))
        print(f"{path}: {len(found)} images, the worst {found[0].image_id} ({found[0].text})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
