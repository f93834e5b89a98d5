#!/usr/bin/env python3
"""Train or evaluate the model of a config.

    python tools/train_net.py --config-file configs/foundation_x/swin_t_11src_xplus.yaml
    python tools/train_net.py --config-file FILE --num-gpus 8 SOLVER.IMS_PER_BATCH 192
    torchrun --nproc-per-node 2 tools/train_net.py --config-file FILE --resume
    python tools/train_net.py --config-file FILE --dry-run CYCLE.NAME paper CYCLE.CYCLES 100
    python tools/train_net.py --config-file FILE --eval-only MODEL.WEIGHTS W.safetensors
    python tools/train_net.py --config-file FILE --eval-only MODEL.FX.ENSEMBLE "['A', 'B']"

The datasets lie below $DETECTRON2_DATASETS. Without a GPU it runs on the CPU. Exit code: 0 done,
1 results not as TEST.EXPECTED_RESULTS says, 2 an error of one line, 3 a rank is stuck, 130 stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import fx_d2  # noqa: F401  isort: skip  (first: it quiets what Detectron2's imports warn about)
from detectron2.engine import default_argument_parser, default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from fx_d2.command_line import WrongUse, check_output
from fx_d2.data.errors import DataError
from fx_d2.engine.checkpoint import FxCheckpointer
from fx_d2.engine.checks import check_heads, check_loaded, checked_config
from fx_d2.engine.dry_run import dry_run
from fx_d2.engine.ensemble import evaluated_ensemble
from fx_d2.engine.launch import is_main, joined, launch
from fx_d2.engine.prevalence import with_prevalence
from fx_d2.engine.setup import ConfigError, config_errors, config_of_the_run_kept
from fx_d2.engine.step import NonFiniteLoss
from fx_d2.engine.trainer import FxTrainer
from fx_d2.modeling.meta_arch import Ensemble

_FOR_USERS = (ConfigError, DataError, NonFiniteLoss, OSError, WrongUse)


def _parser() -> argparse.ArgumentParser:
    parser = default_argument_parser(epilog=(__doc__ or "").partition("\n")[2])
    parser.description = (__doc__ or "").partition("\n")[0]
    parser.add_argument("--dry-run", action="store_true", help="print the schedule; train nothing")
    parser.add_argument("--traceback", action="store_true", help="show where an error comes from")
    return parser


def _set_up(cfg, args: argparse.Namespace) -> None:
    check_output(Path(cfg.OUTPUT_DIR), folder=True)
    with config_errors():
        default_setup(cfg, args)
    log = setup_logger(cfg.OUTPUT_DIR, distributed_rank=comm.get_rank(), name="fx_d2")
    log.info("running on %s", cfg.MODEL.DEVICE)


def _evaluate(cfg, args: argparse.Namespace) -> None:
    _set_up(cfg, args)
    cfg = with_prevalence(cfg, train=False)
    with config_errors():
        model = evaluated_ensemble(cfg) or FxTrainer.build_model(cfg)
        check_heads(cfg, model, train=False)
    if not isinstance(model, Ensemble):
        checkpointer = FxCheckpointer(model, cfg.OUTPUT_DIR, cfg=cfg)
        checkpointer.resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
        check_loaded(cfg, model, checkpointer.report)
    results = FxTrainer.test(cfg, model)
    if comm.is_main_process() and cfg.TEST.EXPECTED_RESULTS:
        verify_results(cfg, results)


def _train(cfg, args: argparse.Namespace) -> None:
    with config_of_the_run_kept(cfg.OUTPUT_DIR):
        _set_up(cfg, args)
        with config_errors():
            trainer = FxTrainer(cfg)
        trainer.resume_or_load(resume=args.resume)
    trainer.train()


def _show(cfg, args: argparse.Namespace) -> None:
    with config_errors():
        text = dry_run(FxTrainer, cfg)
    if comm.is_main_process():
        print(text)


def _run(args: argparse.Namespace) -> None:
    """In every process; an error for the user becomes one line and exit code 2."""
    work = _show if args.dry_run else _evaluate if args.eval_only else _train
    try:
        cfg = checked_config(args)
        with joined(cfg):
            work(cfg, args)
    except KeyboardInterrupt:
        print("train_net.py: interrupted; --resume goes on from there", file=sys.stderr)
        sys.exit(130)
    except _FOR_USERS as exc:
        if args.traceback:
            raise
        _say(exc)
        sys.exit(2)


def _say(exc: Exception) -> None:
    """What is wrong with a config is wrong in all processes, but a file may be bad in one."""
    if is_main():
        print(f"train_net.py: error: {exc}", file=sys.stderr)
    elif isinstance(exc, (DataError, OSError)):
        print(f"train_net.py: error in rank {comm.get_rank()}: {exc}", file=sys.stderr)


def main() -> None:
    args = _parser().parse_args()
    try:
        launch(_run, args)
    except ConfigError as exc:
        _say(exc)
        sys.exit(2)


if __name__ == "__main__":
    main()
