"""Faults, each written into the files of a source as it may happen to them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from PIL import Image

Plant = Callable[[Path], None]


@dataclass(frozen=True)
class Fault:
    """A fault and what the doctor has to say about it.

    Args:
        check: id of the check that must find it.
        sources: that are looked at.
        plant: writes it into the root.
        severity: of the finding.
        says: fragments of the finding's line.
        also: other checks that rightly report it as well.
    """

    name: str
    check: str
    sources: tuple[str, ...]
    plant: Plant
    severity: str = "error"
    says: tuple[str, ...] = ()
    also: tuple[str, ...] = ()


FAULTS: list[Fault] = []


def fault(
    check: str,
    *sources: str,
    severity: str = "error",
    says: Sequence[str] = (),
    also: Sequence[str] = (),
) -> Callable[[Plant], Plant]:
    def keep(plant: Plant) -> Plant:
        FAULTS.append(
            Fault(plant.__name__, check, sources, plant, severity, tuple(says), tuple(also))
        )
        return plant

    return keep


# ---------------------------------------------------------------------- editing
def nih(root: Path, name: str) -> Path:
    return next(root.glob(f"nih14/images_*/images/{name}.png"))


def nih_names(root: Path, part: str) -> list[str]:
    return (root / f"nih14/{part}_list.txt").read_text().split()


def repaint(path: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    pixels = np.asarray(Image.open(path).convert("L"))
    Image.fromarray(np.ascontiguousarray(change(pixels))).save(path)


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8-sig", newline="") as stream:
        return list(csv.reader(stream))


def put_rows(path: Path, table: list[list[str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(table)


def edit_cell(path: Path, pick: Callable[[dict[str, str]], bool], **changes: str) -> None:
    """Change cells of the first row that ``pick`` takes; columns by name, ``_`` for a blank."""
    table = rows(path)
    names = [name.strip() for name in table[0]]
    row = next(r for r in table[1:] if pick(dict(zip(names, r, strict=False))))
    for name, value in changes.items():
        row[names.index(name.replace("_", " ") if name not in names else name)] = value
    put_rows(path, table)


def edit_json(path: Path, change: Callable[[Any], None]) -> None:
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


def first(root: Path, pattern: str) -> Path:
    return min(root.glob(pattern))


def change_dicom(path: Path, **tags: Any) -> None:
    dataset = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(path)


RSNA = "rsna-pneumonia-detection-challenge"
RSNA_LABELS = f"{RSNA}/stage_2_train_labels.csv"
CHEXPERT = "chexpert/CheXpert-v1.0-small"


# ---------------------------------------------------------------------- index and files
@fault("index/unreadable", "nih14", says=["test_list.txt"])
def list_is_missing(root: Path) -> None:
    (root / "nih14/test_list.txt").unlink()


@fault("index/unreadable", "chexpert", says=["Edema", "train.csv"])
def column_is_renamed(root: Path) -> None:
    path = root / CHEXPERT / "train.csv"
    path.write_text(path.read_text().replace(",Edema,", ",Oedema,", 1))


@fault("index/bad-rows", "nih14", says=["Patient ID", "Data_Entry", "row "])
def patient_does_not_fit_its_name(root: Path) -> None:
    path = root / "nih14/Data_Entry_2017_v2020.csv"
    table = rows(path)
    table[2][3] = "999"
    put_rows(path, table)


@fault("index/note", "nih14", severity="warning", says=["boxes outside"])
def box_in_the_training_part(root: Path) -> None:
    name = nih_names(root, "train_val")[0]
    with (root / "nih14/BBox_List_2017.csv").open("a") as stream:
        stream.write(f"{name},Mass,300,300,100,100,,,\n")


@fault("index/empty", "montgomery", says=["no record"])
def folder_without_images(root: Path) -> None:
    for path in root.glob("MontgomerySet/CXR_png/*.png"):
        path.unlink()


@fault("files/missing", "nih14", says=["00000002_000.png"])
def image_is_missing(root: Path) -> None:
    nih(root, "00000002_000").unlink()


@fault("files/missing", "rsna", says=[".dcm"])
def dicom_is_missing(root: Path) -> None:
    first(root, f"{RSNA}/stage_2_train_images/*.dcm").unlink()


@fault("files/extra", "nih14", severity="warning", says=["00099999_000.png"])
def image_without_a_row(root: Path) -> None:
    source = nih(root, "00000002_000")
    shutil.copy(source, source.with_name("00099999_000.png"))


@fault("files/extra", "chexpert", severity="warning", says=["patient09999"])
def patient_without_a_row(root: Path) -> None:
    source = root / CHEXPERT / "train/patient00001"
    shutil.copytree(source, source.with_name("patient09999"))


@fault("files/size", "nih14", says=["512 x 512", "1024 x 1024"])
def image_is_of_a_resized_copy(root: Path) -> None:
    repaint(nih(root, "00000002_000"), lambda x: cv2.resize(x, (512, 512)))


# ---------------------------------------------------------------------- pixels
@fault("pixels/unreadable", "nih14", says=["00000002_000.png"])
def png_is_truncated(root: Path) -> None:
    path = nih(root, "00000002_000")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])


@fault("pixels/unreadable", "rsna", says=[".dcm"])
def dicom_is_truncated(root: Path) -> None:
    path = first(root, f"{RSNA}/stage_2_train_images/*.dcm")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@fault("pixels/unreadable", "nih14", says=["00000002_000.png"])
def image_is_an_error_page(root: Path) -> None:
    nih(root, "00000002_000").write_text("<html>404</html>")


@fault("pixels/constant", "nih14", says=["all pixels are 77", "00000002_000"])
def image_is_a_placeholder(root: Path) -> None:
    repaint(nih(root, "00000002_000"), lambda x: np.full_like(x, 77))


@fault("pixels/saturated", "nih14", says=["white", "00000002_000"], also=["pixels/few-levels"])
def sixteen_bits_squashed_to_eight(root: Path) -> None:
    repaint(nih(root, "00000002_000"), lambda x: np.minimum(x * np.float64(8), 255).astype("u1"))


@fault(
    "pixels/clipped",
    "rsna",
    severity="warning",
    says=["window"],
    also=["pixels/saturated", "pixels/few-levels"],
)
def window_is_too_narrow(root: Path) -> None:
    path = first(root, f"{RSNA}/stage_2_train_images/*.dcm")
    change_dicom(path, WindowCenter=128, WindowWidth=20)


@fault("pixels/few-levels", "nih14", severity="warning", says=["different grey", "00000002_000"])
def three_bits_are_left(root: Path) -> None:
    repaint(nih(root, "00000002_000"), lambda x: x // 32 * 32)


@fault(
    "pixels/exif",
    "chexpert",
    severity="warning",
    says=["EXIF orientation 6", "patient00001"],
    also=["orientation/turned"],
)
def exif_tag_turns_the_image(root: Path) -> None:
    path = root / CHEXPERT / "train/patient00001/study1/view1_frontal.jpg"
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


@fault("pixels/storage", "chestx_det", severity="info", says=["stored as P"])
def image_has_a_palette(root: Path) -> None:
    path = first(root, "chestx_det/train/*.png")
    Image.open(path).convert("L").convert("P").save(path)


# ---------------------------------------------------------------------- orientation
@fault("orientation/turned", "nih14", says=["turned clockwise", "00000002_000"])
def image_lies_on_its_side(root: Path) -> None:
    repaint(nih(root, "00000002_000"), lambda x: np.rot90(x, -1))


@fault("orientation/turned", "nih14", says=["upside down", "00000002_000"])
def image_is_upside_down(root: Path) -> None:
    repaint(nih(root, "00000002_000"), lambda x: np.rot90(x, 2))


@fault("orientation/turned", "nih14", says=["turned anticlockwise"], also=["orientation/inverted"])
def whole_source_is_transposed(root: Path) -> None:
    for name in (*nih_names(root, "train_val"), *nih_names(root, "test")):
        repaint(nih(root, name[:-4]), lambda x: np.rot90(x))


@fault("orientation/inverted", "rsna", says=["inverted", "MONOCHROME1"])
def photometric_tag_is_wrong(root: Path) -> None:
    path = first(root, f"{RSNA}/stage_2_train_images/*.dcm")
    change_dicom(path, PhotometricInterpretation="MONOCHROME1")


@fault("orientation/inverted", "nih14", says=["inverted"])
def whole_source_is_inverted(root: Path) -> None:
    for name in (*nih_names(root, "train_val"), *nih_names(root, "test")):
        repaint(nih(root, name[:-4]), lambda x: 255 - x)


@fault("orientation/mirrored", "nih14", severity="warning", says=["left of the middle"])
def whole_source_is_mirrored(root: Path) -> None:
    for name in (*nih_names(root, "train_val"), *nih_names(root, "test")):
        repaint(nih(root, name[:-4]), np.fliplr)


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
def test_image_is_a_training_image(root: Path) -> None:
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
