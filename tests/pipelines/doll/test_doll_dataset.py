"""A folder of pseudo-masks as a registered dataset, down to what the loss is told."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from fx_d2.data import builtin
from fx_d2.data.builtin import load_records
from fx_d2.data.cache import CachedReader
from fx_d2.data.cache_build import build_cache
from fx_d2.data.catalog import source_root
from fx_d2.data.errors import DataError
from fx_d2.data.mapper import FxMapper
from fx_d2.data.masks import load_mask
from fx_d2.data.pseudo_masks import register_folder
from fx_d2.data.record import validate_record
from fx_d2.data.sources import get_source
from fx_d2.engine.setup import ConfigError, load_config
from fx_d2.pipelines.doll.build import build, plan
from fx_d2.pipelines.doll.settings import DollSettings


@pytest.fixture
def folder(tmp_path: Path, toy) -> Path:
    settings = DollSettings(dataset="doll_toy_all", shard_images=5, val_share=0.3)
    records = load_records("doll_toy", "all")
    build(plan(tmp_path / "doll", get_source("doll_toy"), records, toy, settings), progress=False)
    return tmp_path / "doll"


def test_it_is_a_source_with_splits_by_patient(folder: Path) -> None:
    cfg = load_config("", ["DATASETS.PSEUDO_MASKS", f"('doll={folder}',)"])
    assert cfg.DATASETS.PSEUDO_MASKS and "doll_toy_doll_train" in DatasetCatalog.list()
    source = get_source("doll_toy_doll")
    assert source.seg_classes == ("No Finding", "Left", "Right") and source.tasks == ("seg",)
    assert MetadataCatalog.get("doll_toy_doll_val").seg_classes == source.seg_classes
    parts = {s: list(load_records("doll_toy_doll", s)) for s in ("train", "val", "all")}
    ids = {s: {r["image_id"] for r in found} for s, found in parts.items()}
    assert ids["train"] | ids["val"] == ids["all"] and len(ids["all"]) == 22
    patients = {s: {r["patient_id"] for r in found} for s, found in parts.items()}
    assert not patients["train"] & patients["val"] and len(patients["val"]) == 3
    shard = json.loads((folder / "shards" / "00000.json").read_text())
    states = {e["image_id"]: e["states"] for e in shard["images"]}
    for record in parts["all"]:
        validate_record(record, source)
        assert Path(record["file_name"]).is_file() and "No Finding" in record["masks"]
        for k, name in ((1, "Left"), (2, "Right")):
            state = states.get(record["image_id"], [None] * 3)[k]
            if state == "negative":
                assert not load_mask(record["masks"][name], 60, 80).any()
                assert name not in record["ignore_masks"]
            elif state == "kept":
                assert load_mask(record["masks"][name], 60, 80, resize=True).any()
                assert load_mask(record["ignore_masks"][name], 60, 80, resize=True).any()
            elif state is not None:
                assert name not in record["masks"] and name not in record["ignore_masks"]
    # Registering it again is nothing; another folder under that name is refused.
    assert register_folder("doll", folder) == "doll_toy_doll"
    other = folder.parent / "other"
    shutil.copytree(folder, other)
    with pytest.raises(DataError, match="registered already, of other"):
        register_folder("doll", other)


def test_a_config_is_the_same_whatever_was_read_before_it(folder: Path) -> None:
    """Else a run that one process began would be one of other settings to the next."""
    words = ["DATASETS.PSEUDO_MASKS", f"('doll={folder}',)"]
    first, again = load_config("", words), load_config("", words)
    assert "doll_toy_doll" in builtin.SOURCES and first.dump() == again.dump()
    root = load_config("", [*words, "DATASETS.ROOTS.doll_toy_doll", str(folder)]).DATASETS.ROOTS
    assert root.doll_toy_doll == str(folder)  # it may be stated all the same


def test_the_mapper_tells_pixel_by_pixel_what_is_known(folder: Path) -> None:
    register_folder("doll", folder)
    still = [f"INPUT.FX.AUG.SEG.{key}" for key in ("ROTATE_DEG", "SHIFT", "SCALE")]
    cfg = load_config("", ["INPUT.FX.SIZE", "40", *(word for key in still for word in (key, "0"))])
    mapper, seen = FxMapper(cfg, True), 0
    for record in load_records("doll_toy_doll", "all"):
        item = mapper(record, "seg", ("x", 0))
        masks, known = item["sem_masks"], item["sem_known"]
        assert masks.shape == known.shape == (3, 40, 40) and known.dtype == torch.bool
        assert known[masks > 0].all()
        for c, name in enumerate(("No Finding", "Left", "Right")):
            if name not in record["masks"]:
                assert not known[c].any()
            elif name not in record["ignore_masks"]:
                assert known[c].all() and not masks[c].any()
            else:
                seen += 1
                # The masks are 40 x 40, as the input: up to the image and back changes a border.
                ignored = load_mask(record["ignore_masks"][name], 40, 40)
                differ = (~known[c].numpy() != ignored).mean()
                assert ignored.mean() > 0.05 and differ < 0.06
    assert seen > 10


def test_its_images_come_from_the_cache_of_those_it_is_of(folder: Path, tmp_path: Path) -> None:
    register_folder("doll", folder)
    record = next(iter(load_records("doll_toy_doll", "all")))
    images = source_root("doll_toy")
    caches = tmp_path / "caches"
    place = caches / get_source("doll_toy").folder
    build_cache([record["file_name"]], place, 24, root=images, progress=False)
    reader = CachedReader(caches)
    assert min(reader.read(record).pixels.shape) == 24
    travelled = pickle.loads(pickle.dumps(reader))  # noqa: S301 - our own bytes
    builtin.SOURCES.pop("doll_toy_doll")  # as in a spawned worker, which loads no config
    assert min(travelled.read(record).pixels.shape) == 24


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda b: b["info"].update(fingerprint="0" * 64), "another committee"),
        (lambda b: b["categories"].reverse(), "another committee"),
        (lambda b: b["images"][0].update(file_name="../../etc/passwd"), "below the source's"),
        (lambda b: b["images"][0].update(states=["kept"]), "5 states expected"),
        (lambda b: b["annotations"][0]["ignore"].update(size=[-1, 4]), "not a mask"),
        (lambda b: b["annotations"][0].update(category_id=77), "not a mask"),
        (lambda b: b["annotations"].clear(), "KeyError"),
        (lambda b: b.pop("images"), "not a shard"),
        (lambda b: b["images"][0].update(labels=[1, 2]), "labels are"),
    ],
)
def test_a_shard_that_is_not_its_own_is_refused_with_its_name(folder: Path, change, what) -> None:
    register_folder("doll", folder)
    path = folder / "shards" / "00001.json"
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    with pytest.raises(DataError, match=what) as caught:
        load_records("doll_toy_doll", "all")
    assert "00001.json" in str(caught.value)


def test_an_unfinished_or_foreign_folder_is_refused(folder: Path) -> None:
    header = folder / "pseudo_masks.json"
    body = json.loads(header.read_text())
    for change, what in (
        ({"format": "other"}, "format 'other'"),
        ({"kept": ["Edema"]}, "kept classes"),
        ({"kept": []}, "kept classes"),
        ({"source": "nowhere"}, "nowhere"),
        ({"shards": "3"}, "shards is '3'"),
    ):
        header.write_text(json.dumps({**body, **change}))
        with pytest.raises(DataError, match=what):
            register_folder("doll", folder)
    header.write_text("[" * 100_000)
    with pytest.raises(DataError, match="no pseudo-masks"):
        register_folder("doll", folder)
    header.unlink()
    with pytest.raises(DataError, match="no finished pseudo-masks"):
        register_folder("doll", folder)
    with pytest.raises(ConfigError, match="'name=folder'"):
        load_config("", ["DATASETS.PSEUDO_MASKS", "('doll',)"])


def test_a_lost_shard_is_named(folder: Path) -> None:
    register_folder("doll", folder)
    (folder / "shards" / "00002.json").unlink()
    with pytest.raises(DataError, match=r"00002\.json: shard cannot be read"):
        load_records("doll_toy_doll", "train")


def test_ignored_pixels_of_a_class_without_a_mask_are_no_record(folder: Path) -> None:
    register_folder("doll", folder)
    source = get_source("doll_toy_doll")
    record = load_records("doll_toy_doll", "all")[0]
    wrong = {**record, "ignore_masks": {"Right": record["ignore_masks"]["Left"]}, "masks": {}}
    with pytest.raises(DataError, match="ignored pixels of class 'Right'"):
        validate_record(wrong, source)
    assert replace(source) == source and np.isnan(record["labels"][4])
