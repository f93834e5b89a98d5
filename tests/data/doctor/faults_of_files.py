"""Faults of indexes, files and pixels, as they may happen to a download or a conversion."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from fault_tools import (
    CHEXPERT,
    RSNA,
    change_dicom,
    fault,
    first,
    nih,
    nih_names,
    put_rows,
    repaint,
    rows,
)


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
