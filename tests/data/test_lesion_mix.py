"""Pasting: exact labels, boxes and masks for any draw, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fx_d2.data.builtin import load_records
from fx_d2.data.draws import rng_for
from fx_d2.data.errors import DataError
from fx_d2.data.formats.contract import ImageFacts, LoadedImage
from fx_d2.data.images import read_image
from fx_d2.data.lesion_mix.bank import PatchBank
from fx_d2.data.lesion_mix.bank_build import build_bank, harvest
from fx_d2.data.lesion_mix.classes import class_map, is_finding_free, union
from fx_d2.data.lesion_mix.lungs import lung_box
from fx_d2.data.lesion_mix.mixer import LesionMixer, encoded_png
from fx_d2.data.lesion_mix.place import DoesNotFit, Paste
from fx_d2.data.lesion_mix.recipe import Kitchen, Recipe
from fx_d2.data.lesion_mix.settings import MixSettings
from fx_d2.data.lesion_mix.truth import record_of
from fx_d2.data.masks import load_mask
from fx_d2.data.record import validate_record
from fx_d2.data.sources import get_source

BASE = get_source("cxr_lt")
CLASSES = BASE.cls_classes
MIX = MixSettings(target=40)


@pytest.fixture(scope="module")
def world(lesion_world: Path):
    """A bank of two sources, one with masks and one with boxes only, and base images."""
    base = list(load_records("cxr_lt", "train"))
    named = {n: load_records(*n.rsplit("_", 1)) for n in ("chestx_det_train", "vindr_local_train")}
    found = harvest(named, BASE, MIX)
    folder = lesion_world / "bank of the unit tests"
    build_bank(folder, found, MIX, progress=False)
    bank = PatchBank.open(folder, CLASSES)
    frontal = [r for r in base if r["view"] in BASE.frontal_views]
    seen = [r for r in frontal if lung_box(read_image(r["file_name"]).pixels / 255) is not None]
    return bank, seen


def kitchen(bank: PatchBank, mix: MixSettings = MIX) -> Kitchen:
    phi = np.full((len(CLASSES), len(CLASSES)), 0.1)
    np.fill_diagonal(phi, 0)
    return Kitchen(BASE, bank, mix, np.ones(len(CLASSES)), phi)


def mixed(world, number: int, mix: MixSettings, seed: int):
    bank, base = world
    record = base[number % len(base)]
    arm = kitchen(bank, mix).arm_of(record["labels"], record["view"]) or "mixup"
    recipe = kitchen(bank, mix).draw(rng_for(seed, "test", number), arm, record["labels"])
    loaded = read_image(record["file_name"])
    return record, loaded, recipe, LesionMixer(BASE, bank, mix).apply(record, loaded, recipe)


@settings(max_examples=40, deadline=None)
@given(
    number=st.integers(0, 200),
    seed=st.integers(0, 2**31),
    alpha=st.floats(0, 1),
    feather=st.sampled_from([0.0, 0.08, 0.4]),
    shape=st.sampled_from(["mask", "box"]),
    match=st.sampled_from(["surround", "none"]),
    blend=st.sampled_from(["both", "second"]),
)
def test_labels_boxes_and_masks_agree_with_the_pixels(
    world, number, seed, alpha, feather, shape, match, blend
) -> None:
    mix = replace(MIX, alpha=alpha, feather=feather, shape=shape, match=match, blend=blend)
    try:
        record, loaded, recipe, result = mixed(world, number, mix, seed)
    except DoesNotFit:
        return
    before, after, truth = loaded.pixels, result.image.pixels, result.truth
    changed = before != after
    inside = np.any([lesion.placed(truth.size) for lesion in truth.lesions], axis=0)
    boxes = np.zeros(truth.size, dtype=bool)
    for lesion in truth.lesions:
        x0, y0, x1, y1 = lesion.box
        assert 0 <= x0 < x1 <= truth.size[1] and 0 <= y0 < y1 <= truth.size[0]
        boxes[y0:y1, x0:x1] = True
        if lesion.mask is not None and shape == "mask":  # tight on all four sides
            assert lesion.mask.any(axis=0)[[0, -1]].all() and lesion.mask.any(axis=1)[[0, -1]].all()
    assert not (changed & ~boxes).any()
    if shape == "mask":
        assert not (changed & ~inside).any()
    pasted = {lesion.label for lesion in truth.lesions}
    for name, was, now in zip(CLASSES, record["labels"], truth.labels, strict=True):
        expected = 1.0 if name in pasted else 0.0 if name == "No Finding" else was
        assert now == expected
    assert (before == read_image(record["file_name"]).pixels).all()  # the input is untouched
    assert (after == np.rint(after)).all() and after.min() >= 0 and after.max() <= 255
    again = LesionMixer(BASE, world[0], mix).apply(record, loaded, recipe)
    assert (again.image.pixels == after).all()


def test_alpha_is_respected(world) -> None:
    """With a hard edge and no matching, every pasted pixel is the stated mixture to 1/2 level."""
    bank, base = world
    literal = replace(MIX, feather=0, match="none", zoom=(1, 1), shift=0)
    number = next(i for i, p in enumerate(bank.patches) if p.has_mask)
    record = base[0]
    loaded = read_image(record["file_name"])

    def at(alpha: float) -> np.ndarray:
        recipe = Recipe("mixup", ((Paste(number, 1.0, 0.0, 0.0, alpha),),))
        return LesionMixer(BASE, bank, literal).apply(record, loaded, recipe).image.pixels

    none, whole = at(0.0), at(1.0)
    assert (none == loaded.pixels).all() and (whole != loaded.pixels).any()
    for alpha in (0.25, 0.6):
        expected = (1 - alpha) * loaded.pixels + alpha * whole
        assert np.abs(at(alpha) - expected).max() <= 1.0
    see_through = replace(MIX, alpha=0.6, alpha_means="see_through")
    assert see_through.mixup_weight == pytest.approx(0.4)


def test_the_truth_serves_all_three_tasks(world) -> None:
    everything = replace(
        BASE, key="cxr_lt", tasks=("cls", "loc", "seg"), thing_classes=CLASSES, seg_classes=CLASSES
    )
    kinds = set()
    for number in range(40):
        try:
            record, _, recipe, result = mixed(world, number, MIX, 5)
        except DoesNotFit:
            continue
        row = result.truth.to_row()
        made = record_of(row, everything)
        stated = {"file_name": "x.png", "image_id": "x", "patient_id": None, "view": None}
        validate_record({**stated, **made}, everything)
        free = is_finding_free(record["labels"], CLASSES)
        assert ("annotations" in made) == free  # else lesions of the base have no box
        kinds.add(recipe.arm)
        if not free:
            continue
        assert len(made["annotations"]) == len(result.truth.lesions)
        for lesion in result.truth.lesions:
            if lesion.mask is None:
                assert lesion.label not in made["masks"]
            elif lesion.label in made["masks"]:
                mask = load_mask(made["masks"][lesion.label], *result.truth.size)
                assert not (lesion.placed(result.truth.size) & ~mask).any()
        absent = [n for n, v in zip(CLASSES, made["labels"], strict=True) if v == 0]
        for name in set(absent) - {"No Finding"}:
            assert not load_mask(made["masks"][name], *result.truth.size).any()
        assert "annotations" not in record_of(row, BASE)  # the row of the base has no boxes
    assert kinds == {"cutmix", "mixup"}


def test_a_patch_keeps_its_side_and_place(world) -> None:
    bank, base = world
    still = replace(MIX, zoom=(1, 1), shift=0)
    for number, patch in enumerate(bank.patches):
        recipe = Recipe("cutmix", ((Paste(number, 1.0, 0.0, 0.0, 1.0),),))
        loaded = read_image(base[0]["file_name"])
        try:
            lesion = LesionMixer(BASE, bank, still).apply(base[0], loaded, recipe).truth.lesions[0]
        except DoesNotFit:
            continue
        lungs = lung_box(loaded.pixels / 255)
        assert lungs is not None
        theirs = _place((patch.box[0], patch.box[2]), patch.lungs, patch.frame[1])
        ours = _place((lesion.box[0], lesion.box[2]), lungs, loaded.pixels.shape[1])
        if 0.1 < theirs < 0.9:  # others may have been moved into the image
            assert ours == pytest.approx(theirs, abs=0.12)


def _place(sides, lungs, width) -> float:
    return (sum(sides) / 2 / width - lungs[0]) / (lungs[2] - lungs[0])


def test_a_base_smaller_than_the_patch_is_told(world) -> None:
    bank, base = world
    number = max(range(len(bank)), key=lambda i: bank.patches[i].crop_shape[0])
    recipe = Recipe("cutmix", ((Paste(number, 9.0, 0.0, 0.0, 1.0),),))
    loaded = read_image(base[0]["file_name"])
    with pytest.raises(DoesNotFit, match=r"base is smaller than the patch \(\d+ x \d+ px"):
        LesionMixer(BASE, bank, MIX).apply(base[0], loaded, recipe)
    tiny = Recipe("cutmix", ((Paste(number, 1e-4, 0.0, 0.0, 1.0),),))
    with pytest.raises(DoesNotFit, match="smaller than a pixel"):
        LesionMixer(BASE, bank, MIX).apply(base[0], loaded, tiny)


def test_lesions_of_one_image_do_not_hide_each_other(world) -> None:
    bank, base = world
    paste = Paste(0, 1.0, 0.0, 0.0, 1.0)
    loaded = read_image(base[0]["file_name"])
    result = LesionMixer(BASE, bank, MIX).apply(
        base[0], loaded, Recipe("cutmix", ((paste,), (paste,)))
    )
    assert len(result.truth.lesions) == 1 and result.dropped == 1


def test_a_12_bit_image_keeps_its_depth(world, tmp_path: Path) -> None:
    bank, base = world
    small = read_image(base[0]["file_name"])
    facts = ImageFacts("dicom", 12, 4095.0, *small.pixels.shape, mode="uint16")
    deep = LoadedImage((small.pixels * 16).astype(np.float32), facts)
    recipe = kitchen(bank).draw(rng_for(3, "deep"), "cutmix", base[0]["labels"])
    result = LesionMixer(BASE, bank, MIX).apply(base[0], deep, recipe)
    path = tmp_path / "deep.png"
    path.write_bytes(encoded_png(result.image))
    read = read_image(path)
    assert read.facts.max_value == 65535 and read.facts.bits == 16
    assert np.abs(read.pixels / 16 - result.image.pixels).max() == 0


def test_soft_labels_have_the_weight(world) -> None:
    for number in range(40):
        mix = replace(MIX, soft_labels=True, mixup_share=1.0)
        try:
            record, _, recipe, result = mixed(world, number, mix, 2)
        except DoesNotFit:
            continue
        if recipe.arm == "mixup":
            new = [x for x in result.truth.lesions if record["labels"][CLASSES.index(x.label)] == 0]
            if new:
                assert result.truth.labels[CLASSES.index(new[0].label)] == pytest.approx(0.6)
                return
    raise AssertionError("no MixUp image gained a label")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"alpha": 1.2}, r"ALPHA is 1.2; allowed: \[0, 1\]"),
        ({"alpha": float("nan")}, "ALPHA is nan"),
        ({"prob": -0.1}, "PROB is -0.1"),
        ({"shape": "masc"}, "Did you mean 'mask'"),
        ({"n_patches": (3, 1)}, r"N_PATCHES is \(3, 1\)"),
        ({"target": 0}, "TARGET is 0"),
        ({"zoom": (0.0, 1.0)}, "ZOOM"),
        ({"feather": 0.7}, "FEATHER is 0.7"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(change, said) -> None:
    with pytest.raises(ValueError, match=said):
        MixSettings(**change)
    assert MixSettings.from_dict(MIX.to_dict()) == MIX
    with pytest.raises(ValueError, match="Did you mean 'alpha'"):
        MixSettings.from_dict({"alphaa": 1})


def test_classes_are_matched_by_finding_or_not_at_all() -> None:
    found = class_map(get_source("chestx_det"), CLASSES)
    assert found["Effusion"] == "Pleural Effusion" and found["Mass"] == "Mass"
    assert found["Calcification"] is None  # of what, the class does not say
    told = class_map(get_source("chestx_det"), CLASSES, ["chestx_det/Calcification=Lung Lesion"])
    assert told["Calcification"] == "Lung Lesion"
    assert class_map(get_source("chestx_det"), CLASSES, ["chestx_det/Mass="])["Mass"] is None
    nih = class_map(get_source("chestx_det"), get_source("nih14").cls_classes)
    assert nih["Pleural Thickening"] == "Pleural_Thickening"
    for text, said in (
        ("chestx_det/Mas=Mass", "Did you mean 'Mass'"),
        ("chestx_det/Mass=Mas", "Did you mean 'Mass'"),
        ("Mass", "write 'source/class=label'"),
    ):
        with pytest.raises(ValueError, match=said):
            class_map(get_source("chestx_det"), CLASSES, [text])


def test_what_is_free_of_findings() -> None:
    names = ("No Finding", "Mass", "Support Devices")
    nan = np.nan
    assert is_finding_free(np.array([1, 0, 1]), names)
    assert is_finding_free(np.array([1, nan, nan]), names)
    assert not is_finding_free(np.array([1, 1, 0]), names)
    assert not is_finding_free(np.array([1, -1, 0]), names)  # perhaps one
    assert not is_finding_free(np.array([0, 0, 0]), names)
    assert not is_finding_free(np.array([0, nan]), ("Mass", "Nodule"))  # nobody looked
    assert is_finding_free(np.array([0, 0]), ("Mass", "Nodule"))
    result = union(np.array([1, nan, -1], dtype=np.float32), names, [("Mass", 1.0)])
    assert result.tolist() == [0, 1, -1]


def test_a_source_without_boxes_is_refused(world) -> None:
    records = load_records("cxr_lt", "train")
    with pytest.raises(DataError, match="cxr_lt_train has no boxes to cut patches out of"):
        harvest({"cxr_lt_train": records}, BASE, MIX)
    # A source whose boxes are of test images only: nothing to cut, and it is said.
    found = harvest({"nih14_train": load_records("nih14", "train")}, BASE, MIX)
    assert not found.records
    assert found.skipped["nih14_train: source without a usable box"] == 1


def test_small_and_huge_boxes_give_no_patch(world, tmp_path: Path) -> None:
    records = list(load_records("chestx_det", "train"))
    strict = replace(MIX, min_box_px=100, max_box_share=0.05)
    build_bank(tmp_path, harvest({"chestx_det_train": records}, BASE, strict), strict,
               progress=False)  # fmt: skip
    bank = PatchBank.open(tmp_path, CLASSES)
    for patch in bank.patches:
        # Masks may be tighter than the annotator's box, by little.
        assert min(patch.box[2] - patch.box[0], patch.box[3] - patch.box[1]) >= 90
    reasons = " ".join(bank.header["skipped"])
    assert "box below 100 px" in reasons and "box above 0.05 of its image" in reasons


def test_a_damaged_bank_is_one_line(world, tmp_path: Path) -> None:
    bank, _ = world
    with pytest.raises(DataError, match="no lesion bank"):
        PatchBank.open(tmp_path, CLASSES)
    for name in ("bank.json", "part-00000.jsonl", "part-00000.bin"):
        (tmp_path / name).write_bytes((bank.folder / name).read_bytes())
    index = tmp_path / "part-00000.jsonl"
    good = index.read_text()
    index.write_text(good.replace('"box": [', '"box": [-', 1))
    with pytest.raises(DataError, match=r"part-00000.jsonl, row 1: not a patch"):
        PatchBank.open(tmp_path, CLASSES)
    index.write_text(good)
    (tmp_path / "part-00000.bin").write_bytes(b"short")
    with pytest.raises(DataError, match="is cut off"):
        PatchBank.open(tmp_path, CLASSES).load(0)
