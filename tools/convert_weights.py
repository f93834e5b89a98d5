#!/usr/bin/env python3
"""Turn weights of another project into an fx_d2 checkpoint, and tell what became of each tensor.

    python tools/convert_weights.py --input swin_base_patch4_window7_224_22k.pth \
      --config-file configs/foundation_x/swin_b_11src_x.yaml --out swin_b.safetensors
    python tools/convert_weights.py --input ckpt_E930_TH10.pth --out fxplus.safetensors \
      --config-file configs/published/foundation_x_swin_b.yaml --report fxplus_report.json
    python tools/convert_weights.py --input tuned.safetensors --out plain.safetensors

Read are Swin (Microsoft, timm), Ark-6, Foundation X and X+; the last line folds the LoRA branches
of an fx_d2 checkpoint into its weights. The result is for MODEL.WEIGHTS (docs/convert_weights.md).
"""

from __future__ import annotations

import quiet_interrupt  # noqa: F401 - before anything slow

# isort: split
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fx_d2.command_line import Parser, WrongUse, check_output, tool
from fx_d2.engine.convert import convert, read_foreign, write_conversion
from fx_d2.engine.convert.convert import meta_model, write_report
from fx_d2.engine.convert.merge import write_merged
from fx_d2.engine.convert.read import WHICH
from fx_d2.engine.setup import ConfigError, load_config
from fx_d2.engine.weights import CheckpointError


def parse_args(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--input", type=Path, required=True, metavar="FILE", help="the weights to read")
    add("--out", type=Path, required=True, metavar="FILE", help=".safetensors file to write")
    add("--config-file", default="", metavar="FILE", help="of the model they are for")
    add("--weights", choices=WHICH, default=WHICH[0], help="whose, where a file has both")
    add("--report", type=Path, metavar="FILE", help="every tensor, as JSON")
    add("--trust-pickle", action="store_true", help="run code in the file: you trust its origin")
    add("opts", nargs="*", metavar="KEY VALUE", help="changes to the config")
    return parser.parse_args(arguments)


@tool("convert_weights")
def main(arguments: Sequence[str] | None = None) -> int:
    args = parse_args(arguments)
    if args.out.suffix != ".safetensors":
        raise WrongUse(f"--out {args.out}: name a file that ends in .safetensors")
    for path in filter(None, (args.out, args.report)):
        check_output(path)
    try:
        foreign = read_foreign(args.input, which=args.weights, trust_pickle=args.trust_pickle)
        if foreign.kind == "fx_d2_lora":
            write_merged(args.input, args.out)
            print(f"wrote {args.out}: the LoRA branches are part of the weights")
            return 0
        if not args.config_file:
            raise WrongUse("--config-file is needed: which model are the weights for?")
        cfg = load_config(args.config_file, args.opts)
        result = convert(foreign, meta_model(cfg))
        write_conversion(result, cfg, args.out)
        if args.report:
            write_report(result, args.report)
    except (CheckpointError, ConfigError) as exc:
        raise WrongUse(str(exc)) from exc
    print(result.summary())
    print(f"wrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
