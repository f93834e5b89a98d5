"""The processes of a run: those that torchrun started, or those that Detectron2 starts here."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from detectron2 import engine
from detectron2.config import CfgNode
from detectron2.utils import comm

from .setup import ConfigError
from .stuck import StuckWatch

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
# torch's own timeout names nobody, so it comes after that of StuckWatch.
_NEVER = timedelta(days=1)


def under_torchrun() -> bool:
    """Whether this process is one of torchrun's."""
    return all(name in os.environ for name in _TORCHRUN)


def is_main() -> bool:
    """Whether this process speaks for all; known before they have found each other, too."""
    if dist.is_available() and dist.is_initialized():
        return comm.is_main_process()
    return not under_torchrun() or os.environ["RANK"] == "0"


def launch(work: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run ``work(args)`` in every process of the run; it calls :func:`joined`.

    Args:
        work: at the top level of a module, since new processes import it.
        args: of ``detectron2.engine.default_argument_parser``.

    Raises:
        ConfigError: these processes cannot be.
    """
    if under_torchrun():
        if args.num_gpus * args.num_machines > 1:
            raise ConfigError(
                f"torchrun has started {os.environ['WORLD_SIZE']} processes already; leave "
                "--num-gpus and --num-machines out"
            )
        work(args)
        return
    found = torch.cuda.device_count()
    if args.num_gpus > max(found, 1):
        raise ConfigError(
            f"--num-gpus {args.num_gpus}, {found} found. For processes on the CPU: torchrun "
            f"--nproc-per-node {args.num_gpus} {sys.argv[0]}, and the other words as here"
        )
    try:
        engine.launch(
            work,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(args,),
            timeout=_NEVER,
        )
    except torch.multiprocessing.ProcessExitedException as exc:
        sys.exit(exc.exit_code or 1)  # it has said why


@contextmanager
def joined(cfg: CfgNode) -> Iterator[None]:
    """Within, the processes of the run know each other, and none of them waits for ever.

    Args:
        cfg: ``MODEL.DEVICE`` decides between NCCL and gloo; ``SOLVER.FX.STUCK_AFTER_S`` is the
            patience.
    """
    patience_s = float(cfg.SOLVER.FX.STUCK_AFTER_S)
    if under_torchrun() and int(os.environ["WORLD_SIZE"]) > 1 and not dist.is_initialized():
        _join(str(cfg.MODEL.DEVICE), timedelta(seconds=2 * patience_s) if patience_s else _NEVER)
    with StuckWatch.of_this_process(patience_s):
        yield
        comm.synchronize()  # who ends first takes the meeting point of the others with it
    if dist.is_initialized():
        dist.destroy_process_group()


def _join(device: str, timeout: timedelta) -> None:
    local, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    kind, _, number = device.partition(":")
    if number:
        raise ConfigError(
            f"MODEL.DEVICE is {device!r}; with several processes name no GPU, each takes its own"
        )
    if kind == "cuda":
        if here > torch.cuda.device_count():
            raise ConfigError(
                f"torchrun has started {here} processes on {socket.gethostname()}, which has "
                f"{torch.cuda.device_count()} GPUs; lower --nproc-per-node, or set MODEL.DEVICE cpu"
            )
        torch.cuda.set_device(local)
    backend = "nccl" if kind == "cuda" else "gloo"
    store, rank, world_size = next(dist.rendezvous("env://", timeout=_NEVER))
    # The agent's store outlives a restart: addresses of processes that are gone are still in it.
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    store = dist.PrefixStore(f"fx_d2 attempt {attempt}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=world_size, timeout=timeout)
    comm._LOCAL_PROCESS_GROUP = _local_group()
    comm.synchronize()


def _local_group() -> Any:
    """The processes of this machine, which Detectron2's own launcher tells it about."""
    nodes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(nodes, os.environ.get("GROUP_RANK", "0"))
    mine = None
    for node in dict.fromkeys(nodes):  # every process makes every group
        group = dist.new_group([rank for rank, of in enumerate(nodes) if of == node])
        if node == nodes[dist.get_rank()]:
            mine = group
    return mine
