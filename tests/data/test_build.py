from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from fx_d2.data import build, catalog
from fx_d2.data.builtin import register_source
from fx_d2.data.errors import DataError
from fx_d2.data.mapper import FxMapper
from fx_d2.data.record import PackedRecords
from fx_d2.data.sources import SOURCES, get_source


@pytest.fixture
def registered(toy, monkeypatch, tmp_path) -> Iterator[SimpleNamespace]:
    """The toy source in the catalogs, read by a reader that counts."""
    reads = []

    def read(request):
        reads.append((request.part, request.report.on_error, dict(request.options)))
        yield from toy.records

    monkeypatch.delitem(SOURCES, toy.source.key)
    register_source(replace(toy.source, reader=read, extra_tasks=()))
    monkeypatch.setenv("DETECTRON2_DATASETS", str(toy.folder.parent))
    (toy.folder.parent / toy.source.folder).mkdir(exist_ok=True)
    yield SimpleNamespace(reads=reads, toy=toy)
    for split in toy.source.splits:
        DatasetCatalog.remove(f"{toy.source.key}_{split}")
        MetadataCatalog.remove(f"{toy.source.key}_{split}")
    SOURCES.pop(toy.source.key)
    catalog.configure()


def names(*splits):
    return tuple(f"toy_chest_{s}" for s in splits)


def test_a_task_loader_from_the_config(registered, fx_cfg):
    fx_cfg.DATASETS.TRAIN = names("train")
    fx_cfg.DATASETS.TASKS = ("cls", "seg")
    fx_cfg.SOLVER.IMS_PER_BATCH = 2
    fx_cfg.DATALOADER.NUM_WORKERS = 0
    loader = build.build_task_loader(fx_cfg)
    assert loader.keys == (("toy_chest", "cls"), ("toy_chest", "seg"))
    assert registered.reads == []
    loader.activate("toy_chest", "seg")
    batch = next(iter(loader))
    assert len(batch) == 2 and "sem_masks" in batch[0]
    loader.activate("toy_chest", "cls")
    assert len(registered.reads) == 1  # both tasks share the records


def test_records_that_are_not_kept_are_read_again(registered, fx_cfg):
    fx_cfg.DATASETS.TRAIN = names("train")
    fx_cfg.DATALOADER.FX.KEEP_RECORDS = False
    loader = build.build_task_loader(fx_cfg)
    for task in ("cls", "seg", "cls"):
        loader.activate("toy_chest", task)
    assert len(registered.reads) == 3


def test_datasets_of_one_source_are_joined(registered, fx_cfg):
    fx_cfg.DATASETS.TRAIN = names("train", "val", "test")
    loader = build.build_task_loader(fx_cfg)
    assert len(loader.records("toy_chest", "cls")) == 13


def test_samplers_of_the_config(registered, fx_cfg):
    fx_cfg.DATASETS.TRAIN = names("all")
    fx_cfg.SOLVER.IMS_PER_BATCH = 1
    fx_cfg.DATALOADER.FX.SAMPLER = "repeat_factor"
    with pytest.raises(ValueError, match="REPEAT_THRESHOLD"):
        build.build_task_loader(fx_cfg)
    fx_cfg.DATALOADER.REPEAT_THRESHOLD = 1.0
    factor = np.sqrt(13 / 6)  # 6 of 13 are positive
    steps = build.build_task_loader(fx_cfg).steps_per_pass("toy_chest", "cls")
    assert steps == round(7 + 6 * factor)
    fx_cfg.DATALOADER.FX.SAMPLER = "class_aware"
    assert build.build_task_loader(fx_cfg).steps_per_pass("toy_chest", "cls") == 13
    fx_cfg.DATALOADER.FX.SAMPLER = "random"
    with pytest.raises(ValueError, match="SAMPLER"):
        build.build_task_loader(fx_cfg)


def test_the_mix_of_the_config(registered, fx_cfg):
    fx_cfg.DATASETS.TRAIN = names("all")
    fx_cfg.SOLVER.IMS_PER_BATCH = 1
    fx_cfg.DATALOADER.FX.DATASET_RATIO = ("toy_chest/cls=2",)
    fx_cfg.DATALOADER.FX.REPEAT_TO_LONGEST = True
    loader = build.build_task_loader(fx_cfg)
    schedule = build.build_joint_schedule(fx_cfg, loader)
    assert schedule.counts == {
        ("toy_chest", "cls"): 26,
        ("toy_chest", "loc"): 13,
        ("toy_chest", "seg"): 13,
    }
    fx_cfg.DATALOADER.FX.DATASET_RATIO = ("toy_chest/cls",)
    with pytest.raises(ValueError, match="source/task=number"):
        build.build_joint_schedule(fx_cfg, loader)


def test_reading_follows_the_config(registered, fx_cfg, tmp_path):
    fx_cfg.DATASETS.TRAIN = names("all")
    fx_cfg.DATASETS.ROOTS["toy_chest"] = str(tmp_path)
    fx_cfg.DATASETS.ON_ERROR = "skip"
    fx_cfg.DATASETS.OPTIONS["toy_chest"] = {"speed": 3}
    build.build_task_loader(fx_cfg).records("toy_chest", "cls")
    assert registered.reads == [("all", "skip", {"speed": 3})]
    assert catalog.source_root("toy_chest") == tmp_path


def test_frontal_views_only(fx_cfg):
    fx_cfg.DATASETS.VIEWS = "frontal"
    try:
        build.configure_reading(fx_cfg)
        assert catalog._settings.options["chexpert"]["views"] == ("AP", "PA")
        assert "views" not in catalog._settings.options.get("rsna", {})
    finally:
        catalog.configure()
    fx_cfg.DATASETS.VIEWS = "lateral"
    with pytest.raises(ValueError, match="VIEWS"):
        build.configure_reading(fx_cfg)


def test_what_cannot_work_is_said(registered, fx_cfg):
    fx_cfg.DATASETS.TRAIN = ("toy_chest_trian",)
    with pytest.raises(KeyError, match="toy_chest_train"):
        build.build_task_loader(fx_cfg)
    fx_cfg.DATASETS.TRAIN = names("train")
    fx_cfg.DATASETS.TASKS = ("detect",)
    with pytest.raises(ValueError, match="'detect'"):
        build.build_task_loader(fx_cfg)
    fx_cfg.DATASETS.TASKS = ()
    with pytest.raises(ValueError, match="nothing for"):
        build.build_task_loader(fx_cfg)


def test_extra_tasks_are_used_when_asked_for(fx_cfg):
    nih = get_source("nih14")
    assert build.tasks_of(fx_cfg, nih) == ("cls",)
    fx_cfg.DATASETS.EXTRA_TASKS = ("nih14/loc", "montgomery/cls")
    assert build.tasks_of(fx_cfg, nih) == ("cls", "loc")
    fx_cfg.DATASETS.EXTRA_TASKS = ("nih14/seg",)
    with pytest.raises(ValueError, match="EXTRA_TASKS"):
        build.tasks_of(fx_cfg, nih)
    fx_cfg.DATASETS.EXTRA_TASKS = ("nih15/loc",)
    with pytest.raises(KeyError, match="Did you mean 'nih14'"):
        build.tasks_of(fx_cfg, nih)


@pytest.mark.parametrize("world", [1, 2, 3, 20])
def test_evaluation_covers_every_image_once_and_in_order(toy, fx_cfg, world):
    seen = []
    for rank in range(world):
        loader = build.EvalLoader(
            PackedRecords(toy.records),
            FxMapper(fx_cfg, False),
            "cls",
            batch_size=4,
            rank=rank,
            world_size=world,
        )
        found = list(loader)
        assert len(found) == len(loader)
        seen += [item["image_id"] for batch in found for item in batch]
    assert seen == [f"toy{i}" for i in range(13)]


def test_an_eval_loader_from_the_config(registered, augmented_cfg):
    augmented_cfg.SOLVER.IMS_PER_BATCH = 5
    runs = []
    for workers in (0, 2):
        augmented_cfg.DATALOADER.NUM_WORKERS = workers
        loader = build.build_eval_loader(augmented_cfg, "toy_chest_all", ("cls", "seg"))
        runs.append([item for batch in loader for item in batch])
        assert [len(b) for b in loader] == [5, 5, 3]  # twice over the same loader
    assert "sem_masks" not in runs[0][0]
    for a, b in zip(*runs, strict=True):
        assert torch.equal(a["image"], b["image"])
    with_targets = build.build_eval_loader(augmented_cfg, "toy_chest_all", "seg", targets=True)
    assert "sem_masks" in next(iter(with_targets))[0]


def test_ranks_divide_the_batch_of_the_config(registered, fx_cfg, monkeypatch):
    fx_cfg.DATASETS.TRAIN = names("all")
    fx_cfg.SOLVER.IMS_PER_BATCH = 4
    fx_cfg.DATALOADER.NUM_WORKERS = 0
    trained, evaluated = [], []
    monkeypatch.setattr(build.comm, "get_world_size", lambda: 2)
    for rank in range(2):
        monkeypatch.setattr(build.comm, "get_rank", lambda rank=rank: rank)
        loader = build.build_task_loader(fx_cfg)
        assert loader.activate("toy_chest", "cls") == 4
        trained.append([[item["image_id"] for item in batch] for batch in loader])
        share = list(build.build_eval_loader(fx_cfg, "toy_chest_all", "cls"))
        assert max(map(len, share)) == 2
        evaluated += [item["image_id"] for batch in share for item in batch]
    assert evaluated == [f"toy{i}" for i in range(13)]
    for one, other in zip(*trained, strict=True):
        assert len(one) == len(other) == 2 and set(one).isdisjoint(other)
    assert {i for run in trained for batch in run for i in batch} == set(evaluated)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation_with_a_bad_image(registered, fx_cfg, workers):
    fx_cfg.DATALOADER.NUM_WORKERS = workers
    fx_cfg.SOLVER.IMS_PER_BATCH = 1
    path = registered.toy.folder / "not_an_image.png"
    path.write_bytes(b"hello")
    registered.toy.records[2]["file_name"] = str(path)
    with pytest.raises(DataError, match=r"not_an_image\.png"):
        list(build.build_eval_loader(fx_cfg, "toy_chest_all", "cls"))
    fx_cfg.DATASETS.ON_ERROR = "skip"
    loader = build.build_eval_loader(fx_cfg, "toy_chest_all", "cls")
    assert len(list(loader)) == 12
    assert [e.file for e in loader.skipped] == [str(path)]
