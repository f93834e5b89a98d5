"""Two processes, forked so that nothing is imported anew, do together what one does alone."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.utils import comm
from runs import TINY, train
from torch import nn

from fx_d2.engine.precise_bn import _measured
from fx_d2.engine.weights import read_weights

MakeCfg = Callable[..., CfgNode]


def _joined(rank: int, meeting: Path, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    comm._LOCAL_PROCESS_GROUP = dist.new_group([0, 1])
    work(rank, *args)
    dist.barrier()
    dist.destroy_process_group()


def in_two(folder: Path, work: Callable[..., None], *args: Any) -> None:
    """Run ``work(rank, *args)`` in two processes that know each other."""
    context = multiprocessing.get_context("fork")
    meeting = folder / "meeting"
    processes = [
        context.Process(target=_joined, args=(rank, meeting, work, args)) for rank in (0, 1)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=200)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]


def _train(_: int, cfg: CfgNode) -> None:
    train(cfg)


@pytest.mark.parametrize("fusion", ["sum", "concat"])
def test_fpsm_in_two_processes_equals_one(toy_cfg: MakeCfg, tmp_path: Path, fusion: str):
    """Labels are known of two in three images, so that ranks know other numbers of them."""
    options = {
        **TINY, "MODEL__META_ARCHITECTURE": "FPSM", "MODEL__FX__CLS__NAME": "PyramidClassifier",
        "MODEL__FX__CLS__PYRAMID__FUSE": fusion, "MODEL__FX__CLS__PYRAMID__LEVELS": (4, 3),
        "MODEL__FX__CLS__PYRAMID__CONTEXT": ("view",), "MODEL__FX__CLS__LOSS": "asymmetric",
        "DATASETS__TASKS": ("cls",), "DATASETS__TEST": (), "SOLVER__FX__OPTIMIZER": "SGD",
        "MODEL__FX__TRUNK__DROP_PATH": 0.0, "SOLVER__MAX_ITER": 8, "SOLVER__BASE_LR": 0.1,
    }  # fmt: skip
    one, two = toy_cfg("one", **options), toy_cfg("two", **options)
    start = read_weights(_start(toy_cfg("start", **options | {"SOLVER__BASE_LR": 0.0})))
    train(one)
    in_two(tmp_path, _train, two)
    a, b = (read_weights(Path(c.OUTPUT_DIR) / "model_final.safetensors") for c in (one, two))
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-5
    moved = {n.split(".")[0] for n in a if float((a[n] - start[n]).abs().max()) > 1e-3}
    assert moved == {"trunk", "cls_encoder", "heads"}


def _start(cfg: CfgNode) -> Path:
    train(cfg)
    return Path(cfg.OUTPUT_DIR) / "model_final.safetensors"


def _measure(rank: int, given: torch.Tensor, out: Path) -> None:
    norm = nn.BatchNorm1d(3)
    with _measured(nn.Sequential(norm), [norm]):
        norm(given[:20] if rank == 0 else given[20:])
    torch.save(norm.state_dict(), out / f"{rank}.pt")


def test_norms_are_measured_over_all_processes(tmp_path: Path):
    torch.manual_seed(2)
    given = torch.randn(50, 3) * 2 + torch.arange(50)[:, None] / 10
    in_two(tmp_path, _measure, given, tmp_path)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.allclose(found["running_mean"], given.mean(0), atol=1e-5)
        assert torch.allclose(found["running_var"], given.var(0, unbiased=False), rtol=1e-5)
