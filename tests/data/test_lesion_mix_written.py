"""A planned, written, audited and registered mix, and the same draws within the mapper."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from fx_d2.data.build import build_task_loader
from fx_d2.data.builtin import load_records
from fx_d2.data.errors import DataError
from fx_d2.data.images import read_image
from fx_d2.data.intensity import normalise
from fx_d2.data.lesion_mix.audit import _changed, _Limits, as_text, audit
from fx_d2.data.lesion_mix.build import Job, known_recipe, read_base, read_prepared, write_mix
from fx_d2.data.lesion_mix.classes import union
from fx_d2.data.lesion_mix.correlation import (
    compare,
    deviations,
    label_counts,
    phi_matrix,
    standard_errors,
)
from fx_d2.data.lesion_mix.held_out import HeldOut, held_out_of, split_of
from fx_d2.data.lesion_mix.mixer import LesionMixer
from fx_d2.data.lesion_mix.plan import Planner, Stock
from fx_d2.data.lesion_mix.prepare import prepare
from fx_d2.data.lesion_mix.settings import MixSettings
from fx_d2.data.lesion_mix.written import finish, register_mix
from fx_d2.data.mapper import FxMapper
from fx_d2.data.masks import load_mask
from fx_d2.data.record import box_xyxy, validate_record
from fx_d2.data.sources import SOURCES, get_source
from fx_d2.data.transforms import RandomAreaCrop
from fx_d2.engine.setup import ConfigError, load_config

CXR_LT = get_source("cxr_lt")
KEYS = [
    *("INPUT.FX.LESION_MIX.TARGET", "8", "INPUT.FX.LESION_MIX.MAX_DIFF", "2"),
    *("INPUT.FX.LESION_MIX.MIN_R", "-1", "DATASETS.TRAIN", "('cxr_lt_train',)"),
    *("INPUT.FX.SIZE", "64", "SOLVER.IMS_PER_BATCH", "2", "DATALOADER.NUM_WORKERS", "0"),
    *("INPUT.FX.AUG.CLS.CROP_SCALE", "[1.0, 1.0]"),  # to compare whole images
]


@pytest.fixture(scope="module")
def made(lesion_world: Path):
    """A prepared and written mix."""
    folder = lesion_world / "mix"
    ready = prepare(load_config("", KEYS), folder, progress=False)
    job = Job(folder, "cxr_lt", ready.settings, 96)
    written = write_mix(job, ready.prepared, ready.records, seed=4, progress=False)
    return folder, ready, job, written


def audited(made, **changes):
    _, ready, _, written = made
    return audit(
        changes.get("written", written), ready.prepared, ready.records,
        changes.get("settings", ready.settings), changes.get("held_out", ready.held_out),
    )  # fmt: skip


def test_every_class_that_can_be_served_reaches_the_target(made) -> None:
    _, ready, _, written = made
    counts = audited(made).body["counts"]
    for name, entry in counts.items():
        if name in ready.prepared.bank.by_label:
            assert entry["after"] >= 8 or name in written.unserved, name
    assert counts["No Finding"]["before"] == counts["No Finding"]["after"]
    before = label_counts(np.stack([record["labels"] for record in ready.records]))
    gained = Counter(
        c for r in written.rows for c, v in zip(counts, r["labels"], strict=True) if (v or 0) > 0
    )
    for (name, entry), number in zip(counts.items(), before, strict=True):
        assert (entry["before"], entry["after"]) == (number, number + gained[name])
    short = audited(made).body["short"]
    assert all(entry["why"] for entry in short.values())
    assert set(Counter(row["image_id"] for row in written.rows).values()) == {1}
    assert {row["arm"] for row in written.rows} == {"cutmix", "mixup"}


def test_online_and_offline_make_the_same_image_of_the_same_draws(made) -> None:
    folder, ready, job, written = made
    mixer = LesionMixer(CXR_LT, ready.prepared.bank, ready.settings)
    for row in written.rows[:12]:
        record = ready.records[row["base"]]
        base = read_base(record["file_name"], job.size_px)
        mixed = mixer.apply(record, base, known_recipe(row))
        read = read_image(folder / row["file"])
        assert (read.pixels == mixed.image.pixels).all()
        assert (normalise(read) == normalise(mixed.image)).all()


def test_the_planned_recipe_is_what_the_mapper_draws(made) -> None:
    """The mapper's kitchen draws a function of (seed, position), whatever was drawn before."""
    folder, ready, _, _ = made
    keys = ["INPUT.FX.LESION_MIX.FOLDER", str(folder), "INPUT.FX.LESION_MIX.PROB", "1.0"]
    mapper = FxMapper(load_config("", [*KEYS, *keys]), True)
    plain = FxMapper(load_config("", KEYS), True)
    n = 0
    for i, record in enumerate(ready.records):
        position = ("cxr_lt", "cls", 0, "1.0", i)
        first, again = mapper(record, "cls", position), mapper(record, "cls", position)
        assert (first["image"] == again["image"]).all()
        untouched = plain(record, "cls", position)
        if not first["synthetic"]:
            assert (first["image"] == untouched["image"]).all()
            continue
        n += 1
        gained = first["labels"].sum() - untouched["labels"].sum()
        assert gained >= -1 and (first["image"] != untouched["image"]).any()
        assert first["image_id"] == f"{record['image_id']}+mix"
    assert n > 3
    assert FxMapper(load_config("", [*KEYS, *keys]), False).lesion_mix is None  # never evaluated on


def test_a_crop_keeps_what_was_pasted(made, monkeypatch) -> None:
    """A label without its lesion in the image would teach the wrong thing."""
    drawn = []
    draw = RandomAreaCrop.get_transform

    def noted(self, image, boxes=None):
        drawn.append((boxes, draw(self, image, boxes)))
        return drawn[-1][1]

    monkeypatch.setattr(RandomAreaCrop, "get_transform", noted)
    crop = ["INPUT.FX.AUG.CLS.CROP_SCALE", "[0.05, 0.1]"]
    keys = ["INPUT.FX.LESION_MIX.FOLDER", str(made[0]), "INPUT.FX.LESION_MIX.PROB", "1.0"]
    mapper = FxMapper(load_config("", [*KEYS, *keys, *crop]), True)
    n = 0
    for i, record in enumerate(made[1].records):
        synthetic = mapper(record, "cls", ("cxr_lt", "cls", 0, "1.0", i))["synthetic"]
        boxes, found = drawn.pop()
        assert (boxes is not None) == synthetic
        for x0, y0, x1, y1 in () if boxes is None else boxes:
            assert found.x0 <= x0 < x1 <= found.x0 + found.w
            assert found.y0 <= y0 < y1 <= found.y0 + found.h
            n += 1
    assert n > 3


def test_batches_do_not_depend_on_the_number_of_workers(made) -> None:
    folder = made[0]
    keys = ["INPUT.FX.LESION_MIX.FOLDER", str(folder), "INPUT.FX.LESION_MIX.PROB", "0.7"]

    def images(workers: str):
        cfg = load_config("", [*KEYS, *keys, "DATALOADER.NUM_WORKERS", workers])
        loader = build_task_loader(cfg)
        loader.activate("cxr_lt", "cls", fraction=0.5)
        found = [item for batch in loader for item in batch]
        loader.close()
        return found

    one, two = images("0"), images("2")
    assert any(item["synthetic"] for item in one)
    assert [i["image_id"] for i in one] == [i["image_id"] for i in two]
    assert all((a["image"] == b["image"]).all() for a, b in zip(one, two, strict=True))


def test_a_written_mix_is_a_dataset_of_its_base_and_a_source_of_its_own(made, monkeypatch) -> None:
    folder, ready, _, written = made
    finish(folder, ready.prepared, written, audited(made), seed=4)
    name, own = register_mix("unit", folder)
    try:
        assert (name, own) == ("cxr_lt_unit", "cxr_lt_unit_train")
        assert register_mix("unit", folder) == (name, own)  # a second time changes nothing
        assert name not in load_config("", KEYS).DATASETS.ROOTS  # nor does it any other config
        with_base = DatasetCatalog.get(name)
        for record in with_base:
            validate_record(record, CXR_LT)
            assert record["synthetic"] and "annotations" not in record
            assert record["pasted"]  # which a crop keeps
        source = SOURCES[name]
        assert source.tasks == ("cls", "loc", "seg")
        boxes = 0
        for record in DatasetCatalog.get(own):
            validate_record(record, source)
            image = read_image(record["file_name"])
            size = image.pixels.shape
            for annotation in record.get("annotations", ()):
                boxes += 1
                label = source.thing_classes[annotation["category_id"]]
                assert record["labels"][source.cls_classes.index(label)] == 1
                x0, y0, x1, y1 = (int(v) for v in box_xyxy(annotation))
                assert 0 <= x0 < x1 <= size[1] and 0 <= y0 < y1 <= size[0]
                if "segmentation" in annotation:
                    mask = load_mask(annotation["segmentation"], *size)
                    outside = mask.copy()
                    outside[y0:y1, x0:x1] = False
                    assert mask.any() and not outside.any()
        assert boxes > 5
        assert MetadataCatalog.get(name).source == "cxr_lt"
        cfg = load_config("", [*KEYS, "DATASETS.TRAIN", f"('cxr_lt_train','{name}')"])
        loader = build_task_loader(cfg)
        assert len(loader.records("cxr_lt", "cls")) == len(ready.records) + len(written.rows)
    finally:
        DatasetCatalog.remove(name)
        DatasetCatalog.remove(own)
        SOURCES.pop(name, None)


def test_a_planted_correlation_break_fails_the_audit_and_names_the_classes(made) -> None:
    _, ready, _, written = made
    strict = replace(ready.settings, max_diff=0.1, min_r=0.9, chance=0.0)
    a, b = (CXR_LT.cls_classes.index(n) for n in ("Mass", "Hernia"))
    rows = []
    for row in written.rows:
        labels = list(row["labels"])
        labels[a] = labels[b] = float(len(rows) % 2)  # always together
        rows.append({**row, "labels": labels})
    found = audited(made, written=replace(written, rows=rows), settings=strict)
    assert any("'Hernia' and 'Mass'" in p and "MAX_DIFF 0.1" in p for p in found.problems)
    assert "LIMIT BROKEN" in as_text(found, "x")
    # A break that few images cannot explain is one with room for chance too, which is stated.
    found = audited(
        made, written=replace(written, rows=rows * 20), settings=replace(strict, chance=0.05)
    )
    (problem,) = (p for p in found.problems if "MAX_DIFF" in p)
    link = found.body["correlation"]
    assert "'Hernia' and 'Mass'" in problem and f"and {link['by_chance']:.3f} for chance" in problem
    assert link["limit_max_diff"] == pytest.approx(0.1 + link["by_chance"])
    assert f"of which chance has {link['by_chance']:.3f}" in as_text(found, "x")


@pytest.mark.parametrize("count", [40, 300, 4000])
def test_limits_leave_room_for_chance_and_no_more(count: int) -> None:
    """Two samples of one population agree; a planted correlation is beyond what chance explains."""
    rng = np.random.default_rng(count)

    def sample(planted: bool = False) -> np.ndarray:
        labels = (rng.random((count, 10)) < 0.25).astype(np.float32)
        labels[:, 1] = np.where(rng.random(count) < 0.5, labels[:, 0], labels[:, 1])
        if planted:
            labels[:, 3] = labels[:, 2]
        return labels

    room = deviations(10, 0.05)
    assert room == pytest.approx(3.26, abs=0.01)  # 1 - 0.025 / 45 of the normal distribution
    limits = _Limits.of(phi_matrix(first := sample()), standard_errors(first), MixSettings())
    assert limits.by_chance[0, 1] == pytest.approx(room / count**0.5)
    alarms = 0
    for _ in range(20):
        change = compare(phi_matrix(first), phi_matrix(sample()), limits.by_chance)
        alarms += bool(_changed(change, "ab", limits))
    assert alarms <= 3  # of two limits at 5 %
    change = compare(phi_matrix(first), phi_matrix(sample(planted=True)), limits.by_chance)
    assert change.pair == (2, 3) and any("MAX_DIFF" in p for p in _changed(change, "ab", limits))
    strict = _Limits.of(phi_matrix(first), standard_errors(first), MixSettings(chance=0.0))
    assert strict.max_diff((0, 1)) == 0.1 and strict.min_r == 0.9
    assert limits.min_r < 0.9 and (count < 4000 or limits.min_r > 0.8)


def test_a_planted_patient_leak_fails_the_audit(made) -> None:
    _, ready, _, written = made
    assert not audited(made).problems
    held = HeldOut({CXR_LT.folder: {written.rows[0]["patient_id"]}})
    found = audited(made, held_out=held).problems
    assert found == [f"base of patient {written.rows[0]['patient_id']!r}, who is evaluated on"]
    # Whoever a row says that it is of: its base is looked up.
    forged = [{**written.rows[0], "patient_id": "x"}, *written.rows[1:]]
    theirs = [r for r in forged if r["patient_id"] != written.rows[0]["patient_id"]]
    assert audited(made, held_out=held, written=replace(written, rows=theirs)).problems == found
    patch = ready.prepared.bank.patches[written.rows[0]["patches"][0]]
    held = HeldOut({get_source(patch.source).folder: {patch.patient}})
    assert any(f"patch of {patch.source}" in p for p in audited(made, held_out=held).problems)


def test_one_source_behind_a_class_is_a_shortcut(made) -> None:
    _, ready, _, _ = made
    found = audited(made, settings=replace(ready.settings, max_source_share=0.5))
    assert any("MAX_SOURCE_SHARE 0.5" in p and "come from" in p for p in found.problems)
    assert json.dumps(found.body)


def test_no_patch_and_no_base_of_who_is_evaluated_on(made, lesion_world: Path, tmp_path) -> None:
    with pytest.raises(DataError, match="chestx_det_test is there to evaluate on"):
        split_of("chestx_det_test")
    bank = ["INPUT.FX.LESION_MIX.BANK", "('nih14_test',)"]
    with pytest.raises(DataError, match=r"nih14_test is there to evaluate on.*make_split"):
        prepare(load_config("", [*KEYS, *bank]), tmp_path / "a", progress=False)
    # trainval holds patients of val.
    both = ["INPUT.FX.LESION_MIX.BANK", "('chestx_det_trainval',)"]
    with pytest.raises(DataError, match="patients of chestx_det_trainval are also evaluated on"):
        prepare(load_config("", [*KEYS, *both]), tmp_path / "b", progress=False)
    further = ["INPUT.FX.LESION_MIX.HELD_OUT", "('cxr_lt_train',)"]
    with pytest.raises(DataError, match="patients of cxr_lt_train are also evaluated on"):
        prepare(load_config("", [*KEYS, *further]), tmp_path / "c", progress=False)
    held = held_out_of(["cxr_lt_train"])
    ids = {r["patient_id"] for r in load_records("cxr_lt", "test")}
    assert ids <= held.patients[CXR_LT.folder]


def test_a_bank_of_nothing_and_a_base_of_the_wrong_kind(made, tmp_path: Path) -> None:
    nothing = ["INPUT.FX.LESION_MIX.BANK", "('nih14_train',)"]
    with pytest.raises(DataError, match="no patch in nih14_train is of use for cxr_lt: .*without"):
        prepare(load_config("", [*KEYS, *nothing]), tmp_path / "a", progress=False)
    several = ["INPUT.FX.LESION_MIX.BASE", "('cxr_lt_train','nih14_train')"]
    with pytest.raises(DataError, match="training splits of one source"):
        prepare(load_config("", [*KEYS, *several]), tmp_path / "b", progress=False)
    bare = ["INPUT.FX.LESION_MIX.BANK", "('cxr_lt_train',)"]
    with pytest.raises(DataError, match="has no boxes"):
        prepare(load_config("", [*KEYS, *bare]), tmp_path / "c", progress=False)


def planner(made, **changes) -> tuple[Planner, np.ndarray]:
    _, ready, _, _ = made
    labels = np.stack([r["labels"] for r in ready.records])
    mix = replace(ready.settings, **changes)
    views = [r["view"] for r in ready.records]
    return Planner(ready.prepared.kitchen(mix), labels, views, 1), labels


@pytest.mark.parametrize("policy", ["base", "skip", "error"])
def test_a_class_without_patches(made, policy) -> None:
    plans, labels = planner(made, on_missing=policy, target=60.0, max_per_base=0)
    kitchen = plans.kitchen
    carried = labels[plans.by_arm["mixup"]].sum(axis=0)
    wanted = (carried > 0) & (plans.short(label_counts(labels)) > 0)
    index = int(np.flatnonzero(wanted & ~kitchen.has_patches)[0])
    name = CXR_LT.cls_classes[index]
    stock = Stock(label_counts(labels))
    if policy == "error":
        with pytest.raises(DataError, match=r"the bank has no patch of '[\w ]+', which is short"):
            list(plans.plan(stock, 0))
        return
    served = {item.served for item in plans.plan(stock, 0)}
    # A rarer finding of the same images may serve the class on the way.
    assert bool(served & set(np.flatnonzero(~kitchen.has_patches))) == (policy == "base")
    if policy == "skip":
        assert plans.unserved[name] == "no patch in the bank (ON_MISSING 'skip')"


def test_the_plan_keeps_its_caps_and_is_a_function_of_the_seed(made) -> None:
    plans, labels = planner(made, max_per_base=2, max_per_patch=3, target=60.0)
    items = list(plans.plan(Stock(label_counts(labels)), 0))
    bases = Counter(item.base for item in items)
    patches = Counter(slot[0].patch for item in items for slot in item.recipe.slots)
    assert max(bases.values()) <= 2
    # A cap is met before an image is planned; its several patches may be of one kind.
    assert max(patches.values()) <= 3 + 2
    assert any("as often as allowed" in why for why in plans.unserved.values())
    again, _ = planner(made, max_per_base=2, max_per_patch=3, target=60.0)
    assert list(again.plan(Stock(label_counts(labels)), 0)) == items
    # Always for the class that is shortest then, and until none is short that can be served.
    classes, counts = CXR_LT.cls_classes, label_counts(labels)
    served = [i for i, name in enumerate(classes) if name not in plans.unserved]
    for item in items:
        short = plans.short(counts)
        assert short[item.served] > 0 and short[item.served] >= short[served].max()
        labels_of = plans.kitchen.bank.patches
        pasted = [(labels_of[slot[0].patch].label, 1.0) for slot in item.recipe.slots]
        counts = counts + (union(labels[item.base], classes, pasted) > 0)
    assert not plans.short(counts)[served].any()
    refused = set(list(bases)[:4])
    others = planner(made)[0].plan(Stock(label_counts(labels), refused=refused), 0)
    assert not refused & {item.base for item in others}
    assert not list(planner(made, target=0.001)[0].plan(Stock(labels.sum(axis=0) + 99), 0))


def test_the_correlated_partner(made) -> None:
    plans, labels = planner(made, mixup_share=1.0)
    kitchen = plans.kitchen
    first = CXR_LT.cls_classes.index("Mass")
    other = CXR_LT.cls_classes.index("Fibrosis")
    kitchen.phi = np.zeros_like(kitchen.phi)
    kitchen.phi[first, other] = kitchen.phi[other, first] = 0.7
    kitchen.phi[first, CXR_LT.cls_classes.index("Hernia")] = 0.9  # but there is no patch of it
    base = labels[plans.by_arm["mixup"][0]]
    for seed in range(5):
        recipe = kitchen.draw(np.random.default_rng(seed), "mixup", base, first=first)
        names = [kitchen.bank.patches[slot[0].patch].label for slot in recipe.slots]
        assert names == ["Mass", "Fibrosis"]
        assert {p.weight for slot in recipe.slots for p in slot} == {0.6}


def test_phi_is_the_correlation_of_what_is_known() -> None:
    rng = np.random.default_rng(0)
    labels = (rng.random((200, 4)) < 0.4).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    labels[rng.random(labels.shape) < 0.05] = -1
    phi = phi_matrix(labels)
    for i in range(4):
        for j in range(4):
            both = (labels[:, i] >= 0) & (labels[:, j] >= 0)
            expected = 0 if i == j else np.corrcoef(labels[both, i], labels[both, j])[0, 1]
            assert phi[i, j] == pytest.approx(expected, abs=1e-9)
    assert (phi_matrix(np.zeros((5, 3))) == 0).all()
    same = compare(phi, phi)
    assert same.max_diff == 0 and same.pearson_r == pytest.approx(1)


def test_a_config_that_cannot_be_meant_is_one_line(made, tmp_path: Path) -> None:
    folder = made[0]
    for keys, said in (
        (["INPUT.FX.LESION_MIX.ALPHA", "1.5"], r"ALPHA is 1.5; allowed: \[0, 1\]"),
        (["DATASETS.LESION_MIX", "('dadam',)"], "'name=folder'"),
        (["DATASETS.LESION_MIX", f"('dadam={tmp_path}',)"], "no finished lesion mix"),
    ):
        with pytest.raises(ConfigError, match=said):
            load_config("", keys)
    prob = ["INPUT.FX.LESION_MIX.PROB", "0.5"]
    with pytest.raises(ValueError, match="FOLDER names no bank"):
        FxMapper(load_config("", [*KEYS, *prob]), True)
    with pytest.raises(DataError, match="no prepared lesion mix"):
        read_prepared(tmp_path)
    other = ["DATASETS.TRAIN", "('cxr_lt_val',)", "INPUT.FX.LESION_MIX.FOLDER", str(folder)]
    with pytest.raises(ValueError, match=r"has cxr_lt_val, but the mix .* cxr_lt_train"):
        FxMapper(load_config("", [*KEYS, *prob, *other]), True)


def test_a_share_is_a_target_too() -> None:
    assert MixSettings(target=0.25).target_of(201) == 51
    assert MixSettings().target_of(200_000) == 15_000
