"""Faults of boxes, masks, labels and splits, as a script or an editor may make them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from fault_tools import (
    CHEXPERT,
    RSNA_LABELS,
    edit_cell,
    edit_json,
    fault,
    first,
    nih_names,
    put_rows,
    repaint,
    rows,
)


# ---------------------------------------------------------------------- boxes
def _has_box(row: dict[str, str]) -> bool:
    return row["Target"] == "1"


@fault("boxes/outside", "rsna", says=["stage_2_train_labels.csv", "leaves the image"])
def box_leaves_the_image(root: Path) -> None:
    edit_cell(root / RSNA_LABELS, _has_box, x="1000.0", width="300.0")


@fault("boxes/degenerate", "rsna", says=["stage_2_train_labels.csv", "no area"])
def box_has_no_width(root: Path) -> None:
    edit_cell(root / RSNA_LABELS, _has_box, width="0.0")


@fault(
    "boxes/convention",
    "chestx_det",
    says=["impossible"],
    also=["boxes/degenerate", "boxes/outside", "masks/box"],
)
def corners_are_written_as_width_and_height(root: Path) -> None:
    def change(body: list[dict[str, Any]]) -> None:
        for image in body:
            image["boxes"] = [[a, b, c - a, d - b] for a, b, c, d in image["boxes"]]

    edit_json(root / "chestx_det/ChestX_Det_train.json", change)


# ---------------------------------------------------------------------- masks
def _montgomery_mask(root: Path, side: str = "left") -> Path:
    return first(root, f"MontgomerySet/ManualMask/{side}Mask/*.png")


@fault("masks/unreadable", "montgomery", says=["leftMask"])
def mask_is_truncated(root: Path) -> None:
    path = _montgomery_mask(root)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@fault("masks/size", "montgomery", says=["leftMask", "Left Lung"])
def mask_is_of_a_resized_copy(root: Path) -> None:
    repaint(_montgomery_mask(root), lambda x: cv2.resize(x, (64, 64)))


def _siim_row(root: Path) -> tuple[Path, list[list[str]], list[str]]:
    path = root / "siim-acr-pneumothorax/stage_2_train.csv"
    table = rows(path)
    return path, table, next(row for row in table[1:] if len(row[1]) > 200)


@fault("masks/frame", "siim_acr", says=["stage_2_train.csv", "run lengths"])
def runs_leave_the_frame(root: Path) -> None:
    path, table, row = _siim_row(root)
    start, rest = row[1].split(" ", 1)
    row[1] = f"{int(start) + 1024 * 1000} {rest}"
    put_rows(path, table)


@fault("masks/frame", "covid19_seg", says=["structure.csv", "crop"])
def crop_lies_beside_the_image(root: Path) -> None:
    edit_cell(root / "covid19_seg/structure.csv", lambda row: bool(row["Mask"]), Left="100000")


@fault("masks/stripes", "siim_acr", says=["separate pieces"], also=["masks/box"])
def gaps_are_counted_from_the_wrong_end(root: Path) -> None:
    path, table, row = _siim_row(root)
    numbers = np.array(row[1].split(), dtype=int).reshape(-1, 2)[:20]
    numbers[1:, 0] += 2 * numbers[1:, 1]
    numbers[0, 0] = 5000
    row[1] = " ".join(map(str, numbers.ravel()))
    put_rows(path, table)


@fault("masks/implausible", "montgomery", severity="warning", says=["Left Lung", "covers"])
def mask_is_sheared_by_a_wrong_width(root: Path) -> None:
    def shear(mask: np.ndarray) -> np.ndarray:
        return np.stack([np.roll(row, 3 * i) for i, row in enumerate(mask)])

    path = _montgomery_mask(root, "left")
    repaint(path, shear)


@fault("masks/empty", "montgomery", severity="warning", says=["no pixel", "Left Lung"])
def mask_of_a_lung_is_black(root: Path) -> None:
    repaint(_montgomery_mask(root), np.zeros_like)


@fault("masks/absent", "covid19_seg", severity="info", says=["Left Lung", "not annotated"])
def lung_was_never_drawn(root: Path) -> None:
    path = root / "covid19_seg/structure.csv"
    table = rows(path)
    table.remove(next(row for row in table if "Left Lung" in row))
    put_rows(path, table)


@fault("masks/sides", "montgomery", says=["Left Lung", "Right Lung"])
def left_and_right_are_exchanged(root: Path) -> None:
    left, right = _montgomery_mask(root, "left"), _montgomery_mask(root, "right")
    a, b = left.read_bytes(), right.read_bytes()
    left.write_bytes(b)
    right.write_bytes(a)


@fault("masks/box", "chestx_det", severity="warning", says=["IoU 0.00"])
def box_belongs_to_another_polygon(root: Path) -> None:
    def change(body: list[dict[str, Any]]) -> None:
        image = next(image for image in body if image["boxes"])
        image["boxes"][0] = [5, 5, 60, 60]

    edit_json(root / "chestx_det/ChestX_Det_train.json", change)


# ---------------------------------------------------------------------- labels
@fault("labels/values", "chexpert", says=["train.csv", "2.0"])
def label_is_two(root: Path) -> None:
    path = root / CHEXPERT / "train.csv"
    table = rows(path)
    table[3][7] = "2.0"
    put_rows(path, table)


@fault("labels/published", "nih14", severity="warning", says=["86,524", "images"])
def download_is_incomplete(root: Path) -> None:
    (root / "PHANTOM.json").unlink()  # a world that claims to be the real dataset


@fault("labels/contradiction", "chexpert", severity="info", says=["normal and have a finding"])
def normal_image_has_a_finding(root: Path) -> None:
    path = root / CHEXPERT / "train.csv"
    table = rows(path)
    row = table[1]
    row[table[0].index("No Finding")] = row[table[0].index("Edema")] = "1.0"
    put_rows(path, table)


@fault("labels/one-value", "chexpert", severity="info", says=["no positive", "Cardiomegaly"])
def class_has_no_positive(root: Path) -> None:
    path = root / CHEXPERT / "train.csv"
    table = rows(path)
    for row in table[1:]:
        row[table[0].index("Cardiomegaly")] = "0.0"
    put_rows(path, table)


# ---------------------------------------------------------------------- duplicates and splits
def _train_and_test(root: Path) -> tuple[Path, Path]:
    """An image that is trained on and one that is tested."""
    from fx_d2.data.catalog import load_records

    found = [load_records("nih14", split, root=root / "nih14")[0] for split in ("train", "test")]
    return Path(found[0]["file_name"]), Path(found[1]["file_name"])


@fault("duplicates/image", "nih14", says=["same picture as", "train", "test"])
def held_out_image_is_a_training_image(root: Path) -> None:
    train, test = _train_and_test(root)
    pixels = Image.open(train).convert("L")
    pixels.resize((700, 700)).resize((1024, 1024)).save(test)


@fault("duplicates/image", "montgomery", severity="warning", says=["same picture as"])
def image_is_there_twice(root: Path) -> None:
    from fx_d2.data.catalog import load_records

    # Two images of one split: no leak, only a double.
    records = load_records("montgomery", "train", root=root / "MontgomerySet")
    one, other = Path(records[0]["file_name"]), Path(records[1]["file_name"])
    for side in ("left", "right"):
        masks = root / f"MontgomerySet/ManualMask/{side}Mask"
        shutil.copy(masks / one.name, masks / other.name)
    shutil.copy(one, other)


@fault("duplicates/across", "montgomery", "chestx_det", says=["trained on in one"])
def undeclared_overlap_leaks(root: Path) -> None:
    from fx_d2.data.catalog import load_records

    mine = load_records("montgomery", "test", root=root / "MontgomerySet")[0]
    other = load_records("chestx_det", "train", root=root / "chestx_det")[0]
    theirs = Image.open(other["file_name"]).convert("L")
    size = Image.open(mine["file_name"]).size
    theirs.resize(size).save(mine["file_name"])


@fault("duplicates/across", "nih14", "chestx_det", severity="warning", says=["trained on in one"])
def declared_overlap_leaks(root: Path) -> None:
    from fx_d2.data.catalog import load_records

    other = load_records("chestx_det", "test", root=root / "chestx_det")[0]["file_name"]
    Image.open(_train_and_test(root)[0]).convert("L").save(other)


@fault("duplicates/image-id", "nih14", says=["00000002_000", "twice"])
def image_is_listed_twice(root: Path) -> None:
    path = root / "nih14/train_val_list.txt"
    path.write_text(path.read_text().rstrip("\n") + "\n00000002_000.png")


@fault("splits/patient", "nih14", says=["patient", "one split per patient"])
def patient_is_in_two_splits(root: Path) -> None:
    names = nih_names(root, "train_val")
    twice = next(n for n in names if n.endswith("_001.png"))
    names.remove(twice)
    (root / "nih14/train_val_list.txt").write_text("\n".join(names))
    with (root / "nih14/test_list.txt").open("a") as stream:
        stream.write(f"\n{twice}")


@fault("splits/image", "nih14", says=["one split per image"], also=["splits/patient"])
def image_is_in_both_lists(root: Path) -> None:
    with (root / "nih14/test_list.txt").open("a") as stream:
        stream.write(f"\n{nih_names(root, 'train_val')[0]}")


@fault("splits/overlap", "nih14", "chestx_det", severity="info", says=["share images"])
def two_sources_share_images(root: Path) -> None:
    """Nothing to plant: both are there."""
