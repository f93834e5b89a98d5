"""The promise everything rests on: batches depend on (seed, position) and on nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from detectron2.structures import Instances

from fx_d2.data.mapper import FxMapper
from fx_d2.data.record import PackedRecords
from fx_d2.data.task_loader import TaskLoader, WorkerConfig

KEY = "toy_chest"
# torch finds three workers too many for a small machine; here they are the point.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def same(a, b):
    """Bit for bit, NaN equal to NaN."""
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and np.array_equal(a.numpy().tobytes(), b.numpy().tobytes())
    if isinstance(a, Instances):
        fields, others = a.get_fields(), b.get_fields()
        return fields.keys() == others.keys() and all(
            same(getattr(v, "tensor", v), getattr(others[k], "tensor", others[k]))
            for k, v in fields.items()
        )
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def loader(toy, cfg, workers=0, **more):
    options = {"seed": cfg.SEED, "batch_size": 4, **more}
    keys = [(KEY, task) for task in toy.source.tasks]
    return TaskLoader(
        {key: PackedRecords(toy.records) for key in keys},
        FxMapper(cfg, True),
        workers=WorkerConfig(num_workers=workers),
        **options,
    )


def batches(a_loader, task="loc", **position):
    a_loader.activate(KEY, task, **position)
    try:
        return list(a_loader)
    finally:
        a_loader.close()


@pytest.mark.parametrize("task", ["cls", "loc", "seg"])
def test_workers_change_nothing(toy, augmented_cfg, task):
    augmented_cfg.INPUT.FX.UNCERTAIN = "smooth"
    alone = batches(loader(toy, augmented_cfg), task)
    assert len(alone) == 4 and all(len(b) == 4 for b in alone)
    for workers in (1, 3):
        assert same(alone, batches(loader(toy, augmented_cfg, workers), task)), workers


def test_global_random_state_is_neither_used_nor_moved(toy, augmented_cfg):
    first = batches(loader(toy, augmented_cfg))
    for make in (np.random.seed, random.seed, torch.manual_seed):
        make(123)
    states = (np.random.get_state()[1].copy(), random.getstate(), torch.get_rng_state().clone())
    assert same(first, batches(loader(toy, augmented_cfg)))
    assert np.array_equal(states[0], np.random.get_state()[1])
    assert states[1] == random.getstate()
    assert torch.equal(states[2], torch.get_rng_state())
    batches(loader(toy, augmented_cfg, workers=1))
    assert torch.equal(states[2], torch.get_rng_state())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("start", [1, 2, 3])
def test_started_in_the_middle_is_the_tail(toy, augmented_cfg, workers, start):
    whole = batches(loader(toy, augmented_cfg), pass_index=2)
    tail = batches(loader(toy, augmented_cfg, workers), pass_index=2, start_step=start)
    assert same(whole[start:], tail)


@pytest.mark.parametrize("policy", ["fill", "drop"])
def test_two_ranks_together_see_what_one_sees(toy, augmented_cfg, policy):
    more = {"last_batch": policy}
    alone = batches(loader(toy, augmented_cfg, **more))
    ranks = [batches(loader(toy, augmented_cfg, rank=r, world_size=2, **more)) for r in (0, 1)]
    woven = [
        [item for pair in zip(*pairs, strict=True) for item in pair]
        for pairs in zip(*ranks, strict=True)
    ]
    assert same(alone, woven)


def test_another_seed_pass_or_fraction_is_another_stream(toy, augmented_cfg):
    base = batches(loader(toy, augmented_cfg))
    assert not same(base, batches(loader(toy, augmented_cfg), pass_index=1))
    assert not same(base, batches(loader(toy, augmented_cfg, seed=6)))
    # The same image in another pass is augmented differently.
    again = batches(loader(toy, augmented_cfg), pass_index=1)
    by_id = [{i["image_id"]: i["image"] for b in run for i in b} for run in (base, again)]
    assert all(not same(by_id[0][i], by_id[1][i]) for i in by_id[0])


def test_no_two_images_of_a_run_share_a_position(toy):
    """A shared position would be the same crop, flip and noise twice."""

    def positions_only(record, task, position):
        return {"position": position}

    a_loader = TaskLoader(
        {(key, task): toy.records for key in (KEY, "other") for task in ("cls", "loc")},
        positions_only,
        seed=5,
        batch_size=4,
    )
    seen = []
    for key, task in a_loader.keys:
        for number, fraction in ((0, 1.0), (1, 1.0), (0, 0.5)):
            a_loader.activate(key, task, pass_index=number, fraction=fraction)
            seen += [item["position"] for batch in a_loader for item in batch]
    assert len(seen) == 4 * (16 + 16 + 8) and len(set(seen)) == len(seen)


def test_the_same_image_twice_in_a_pass_is_augmented_twice(toy, augmented_cfg):
    """A repeated image (here by filling up the last batch) is no copy."""
    items = [i for b in batches(loader(toy, augmented_cfg)) for i in b]
    first, last = items[0], items[13]
    assert first["image_id"] == last["image_id"]
    assert not same(first["image"], last["image"])


@pytest.mark.parametrize("start", [0, 7])
def test_a_mix_is_the_same_for_any_workers_and_start(toy, augmented_cfg, start):
    def run(workers, first):
        a_loader = loader(toy, augmented_cfg, workers)
        a_loader.activate_mix(a_loader.mix(), start_step=first)
        stream = iter(a_loader)
        result = [next(stream) for _ in range(14 - first)]
        a_loader.close()
        return result

    whole = run(0, 0)
    assert {b[0]["task"] for b in whole[:12]} == {"cls", "loc", "seg"}
    assert all(len({i["task"] for i in b}) == 1 for b in whole)
    assert same(whole[start:], run(2, start))


@pytest.mark.slow
def test_spawned_workers_agree_with_forked_ones(toy, augmented_cfg):
    """A spawned worker imports afresh: it has to be told of sources that no import registers."""

    def run(method):
        a_loader = TaskLoader(
            {(KEY, "cls"): PackedRecords(toy.records)},
            FxMapper(augmented_cfg, True),
            seed=1,
            batch_size=4,
            workers=WorkerConfig(num_workers=1 if method else 0, start_method=method),
        )
        a_loader.activate(KEY, "cls")
        result = list(a_loader)
        a_loader.close()
        return result

    assert same(run(""), run("spawn"))
