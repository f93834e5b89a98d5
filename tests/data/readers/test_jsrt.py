from __future__ import annotations

import numpy as np
import pytest

from fx_d2.data.errors import DataError
from fx_d2.data.masks import load_mask
from fx_d2.data.vocabulary import JSRT_5

LINES = [
    "JPCLN001.IMG\t5\t15\t53\tFemale\t1634\t692\tmalignant\tl.upper lobe\t(S3)\tlung cancer",
    "JPCLN002.IMG\t1\t60\t?\tMale\t100\t2040\tbenign\tr.lower lobe\t\thamartoma\tor other",
]
FOLD = {1: "fold1", 2: "fold2"}


@pytest.fixture
def tree(tmp_path, put_png):
    root = tmp_path / "jsrt"
    images = root / "All247images"
    images.mkdir(parents=True)
    for name in ("JPCLN001", "JPCLN002", "JPCNN001", "JPCNN002"):
        with (images / f"{name}.IMG").open("wb") as stream:
            stream.truncate(2048 * 2048 * 2)  # sparse: the reader looks at the length alone
        for i, structure in enumerate(JSRT_5):
            folder = root / "scratch" / FOLD[2 - int(name[-1]) % 2] / "masks" / structure.lower()
            put_png(folder / f"{name}.gif", (32, 32), (i, i, i + 5, i + 9))
    clinical = root / "Clinical_Information"
    clinical.mkdir()
    (clinical / "CLNDAT_EN.txt").write_bytes("\r".join([*LINES, ""]).encode())
    (clinical / "CNNDAT_EN.TXT").write_text("JPCNN001.IMG 30  female   non-nodule\n")
    return root


def clinical(tree):
    return tree / "Clinical_Information/CLNDAT_EN.txt"


def test_folds_boxes_and_masks(tree, read_source):
    odd, _ = read_source("jsrt", tree, "fold1")
    even, _ = read_source("jsrt", tree, "fold2")
    assert [r["image_id"] for r in odd] == ["JPCLN001", "JPCNN001"]
    assert [r["image_id"] for r in even] == ["JPCLN002", "JPCNN002"]
    nodule, none = odd
    half = 15 / 0.175 / 2
    assert nodule["annotations"][0]["bbox"] == pytest.approx(
        [1634 - half, 692 - half, 1634 + half, 692 + half]
    )
    assert none["annotations"] == []  # looked at by the panel: annotated, nothing there
    assert (nodule["labels"].tolist(), none["labels"].tolist()) == ([1.0], [0.0])
    assert (nodule["height"], nodule["width"]) == (2048, 2048)
    for i, structure in enumerate(JSRT_5):
        mask = load_mask(nodule["masks"][structure], 2048, 2048, resize=True)
        ys, xs = np.nonzero(mask)
        scale = 2048 // 32
        assert (xs.min(), xs.max() + 1) == (i * scale, (i + 5) * scale)
        assert (ys.min(), ys.max() + 1) == (i * scale, (i + 9) * scale)


def test_box_is_cut_at_the_border(tree, read_source):
    (record, _), _ = read_source("jsrt", tree, "fold2")
    half = 60 / 0.175 / 2
    assert record["annotations"][0]["bbox"] == pytest.approx([0, 2040 - half, 100 + half, 2048])


def test_line_ends_of_an_edited_copy(tree, read_source):
    clinical(tree).write_text("\r\n".join([*LINES, "", ""]))
    assert len(read_source("jsrt", tree, "fold1")[0][0]["annotations"]) == 1


def test_png_copy_with_its_table(tree, put_png, read_source):
    for path in sorted((tree / "All247images").iterdir()):
        put_png(tree / f"images/images/{path.stem}.png", (512, 512))
        path.unlink()
    clinical(tree).unlink()
    (tree / "jsrt_metadata.csv").write_text(
        "study_id,state,x,y,size,age\nJPCLN001.png,malignant,1634,692,15,53\n"
        "JPCLN002.png,benign,100,2040,60,\nJPCNN001.png,non-nodule,,,,30\n"
    )
    (nodule, none), _ = read_source("jsrt", tree, "fold1")
    half = 15 / 0.175 / 2 / 4  # the copy has a quarter of the side
    assert nodule["annotations"][0]["bbox"] == pytest.approx(
        [408.5 - half, 173 - half, 408.5 + half, 173 + half]
    )
    assert none["annotations"] == []


def test_converted_folders_with_underscores(tree, put_png, read_source):
    for path in sorted((tree / "All247images").iterdir()):
        put_png(tree / f"All247images/images/{path.stem}.IMG.png", (64, 64))
        path.unlink()
    for structure in JSRT_5:
        for fold in FOLD.values():
            for path in sorted((tree / f"scratch/{fold}/masks/{structure.lower()}").iterdir()):
                name = structure.lower().replace(" ", "_") + "_png"
                put_png(tree / f"All247images/masks/{name}/{path.stem}.png", (32, 32), (1, 1, 9, 9))
                path.unlink()
    records, _ = read_source("jsrt", tree, "fold2")
    assert len(records) == 2 and set(records[0]["masks"]) == set(JSRT_5)


def test_without_scr_nothing_is_claimed_about_masks(tree, read_source):
    (tree / "scratch").rename(tree / "not_unpacked")
    records, report = read_source("jsrt", tree, "fold1")
    assert len(records) == 2 and not any("masks" in r for r in records)
    assert any("SCR masks" in note for note in report.notes)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("\t1634\t", "\tx\t", "row 1.*'x'"),
        ("\t1634\t", "\t16340\t", "row 1"),
        ("\t692\t", "\t-692\t", "row 1"),
        ("\t15\t", "\t0\t", "row 1"),
        ("\t15\t", "\t150\t", "row 1"),
        ("\tmalignant\t", "\tnon-nodule\t", "row 1"),
        ("JPCLN002", "JPCLN001", "row 2.*second time"),
        (LINES[1], LINES[1][:20], "row 2"),
        (LINES[1], "", "no row of image JPCLN002"),
        ("lung cancer", "lung canc\xe9r", "row 1.*ASCII"),
    ],
)
def test_bad_clinical_rows(tree, read_source, old, new, message):
    text = clinical(tree).read_bytes().decode()
    assert old in text
    clinical(tree).write_bytes(text.replace(old, new, 1).encode("latin-1"))
    with pytest.raises(DataError, match=message) as error:
        read_source("jsrt", tree, "fold1" if "JPCLN002" not in message else "fold2")
    assert "CLNDAT_EN.txt" in str(error.value)


def test_missing_mask_and_truncated_image(tree, read_source):
    (tree / "scratch/fold1/masks/left clavicle/JPCNN001.gif").unlink()
    with pytest.raises(DataError, match=r"JPCNN001\.IMG: no mask of Left Clavicle"):
        read_source("jsrt", tree, "fold1")
    (tree / "All247images/JPCLN001.IMG").write_bytes(b"\0" * 100)
    records, report = read_source("jsrt", tree, "fold1", on_error="skip")
    assert records == [] and report.skipped == {"image with a file missing or bad": 2}
