from __future__ import annotations

import pytest

from fx_d2.data.errors import DataError
from fx_d2.data.masks import load_mask

SIZE = (40, 30)  # height, width
HEADER = "image_id,Dice RCA (Mean),Dice RCA (Max),Landmarks,Left Lung,Right Lung,Heart,Height,Width"
BOXES = {"Left Lung": (18, 5, 28, 30), "Right Lung": (2, 5, 12, 30), "Heart": (11, 18, 22, 31)}


def rle(box, width=SIZE[1]):
    """Absolute, 1-indexed, along the rows."""
    x0, y0, x1, y1 = box
    return " ".join(f"{y * width + x0 + 1} {x1 - x0}" for y in range(y0, y1))


def landmarks():
    """120 points on the borders of the boxes: 44 right lung, 50 left lung, 26 heart."""
    points = []
    for organ, n in (("Right Lung", 44), ("Left Lung", 50), ("Heart", 26)):
        x0, y0, x1, y1 = BOXES[organ]
        corners = [(x0, y0), (x1 - 1, y0), (x1 - 1, y1 - 1), (x0, y1 - 1)]
        points += [corners[min(i * 4 // n, 3)] for i in range(n)]
    return ",".join(f"{x},{y}" for x, y in points)


def row(image, score="0.9", marks="1,2,3", height=SIZE[0], width=SIZE[1], **runs):
    cells = [runs.get(organ.split()[0].lower(), rle(box)) for organ, box in BOXES.items()]
    return ",".join([image, score, "0.95", f'"{marks}"', *cells, str(height), str(width)])


ROWS = [row("a" * 32), row("b" * 32, score="0.69"), row("c" * 32), row("d" * 32)]


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "vindr-cxr"
    for part, names in (("train", "abc"), ("test", "d")):
        (root / part).mkdir(parents=True)
        (root / part / "index.html").write_text("left behind by a recursive download")
        for name in names:
            (root / part / f"{name * 32}.dicom").write_bytes(b"")
    write(root, ROWS)
    return root


def table(root):
    return root.parent / "chexmask-cxr-segmentation-data/1.0.0/OriginalResolution/VinDr-CXR.csv"


def write(root, rows):
    path = table(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([HEADER, *rows]) + "\n")


def test_boxes_masks_and_parts(tree, read_source):
    records, report = read_source("chexmask_vindr", tree, "train")
    assert [r["image_id"] for r in records] == ["a" * 32, "c" * 32]
    assert any("1 of 3 images left out" in note and "0.7" in note for note in report.notes)
    record = records[0]
    assert (record["height"], record["width"]) == SIZE
    for category, organ in enumerate(("Heart", "Left Lung", "Right Lung")):
        annotation = record["annotations"][category]
        assert annotation["category_id"] == category
        assert annotation["bbox"] == list(BOXES[organ])
        x0, y0, x1, y1 = BOXES[organ]
        for reference in (annotation["segmentation"], record["masks"][organ]):
            mask = load_mask(reference, *SIZE)
            assert mask[y0:y1, x0:x1].all() and mask.sum() == (y1 - y0) * (x1 - x0)
    assert [r["image_id"] for r in read_source("chexmask_vindr", tree, "test")[0]] == ["d" * 32]


def test_the_threshold_is_an_option(tree, read_source):
    assert len(read_source("chexmask_vindr", tree, "train", min_dice_rca=0.0)[0]) == 3
    assert len(read_source("chexmask_vindr", tree, "train", min_dice_rca=0.91)[0]) == 0


def test_landmarks_stand_in_for_run_lengths(tree, read_source):
    for marks in (landmarks(), f"[[{landmarks()}]]"):
        write(tree, [row("a" * 32, marks=marks, left="", right="", heart="")])
        (record,), _ = read_source("chexmask_vindr", tree, "train")
        for annotation, organ in zip(
            record["annotations"], ("Heart", "Left Lung", "Right Lung"), strict=True
        ):
            assert annotation["bbox"] == list(BOXES[organ])
            x0, y0, x1, y1 = BOXES[organ]
            mask = load_mask(record["masks"][organ], *SIZE)
            assert mask[y0:y1, x0:x1].all() and mask.sum() == (y1 - y0) * (x1 - x0)


def test_places_of_the_table(tree, read_source):
    new = tree.parent / "chexmask-cxr-segmentation-data/VinDr-CXR.csv"
    table(tree).rename(new)
    assert len(read_source("chexmask_vindr", tree, "train")[0]) == 2
    (tree.parent / "chexmask-cxr-segmentation-data/Preprocessed").mkdir()
    new.rename(new.parent / "Preprocessed/VinDr-CXR.csv")
    with pytest.raises(DataError, match="padded 1024 x 1024 frame"):
        read_source("chexmask_vindr", tree, "train")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row("c" * 32, left="1 2 3"), "row 4.*3 numbers"),
        (row("c" * 32, left="1200 2"), "row 4.*leave the 40 x 30 frame"),
        (row("c" * 32, right="5 3 6 2"), "row 4.*overlap"),
        (row("c" * 32, heart="x 2"), "row 4"),
        (row("c" * 32, heart=""), "row 4.*no run lengths for Heart, and 3 numbers"),
        (row("c" * 32, height=0), "row 4.*'Height'"),
        (row("c" * 32, height="nan"), "row 4.*'Height'"),
        (row("c" * 32, width=10**9), "row 4.*'Width'"),
        (row("c" * 32, width=29), "row 4"),  # the last runs leave the frame
        (row("c" * 32, score=""), "row 4.*Dice"),
        (row("a" * 32), "row 4.*one row per image"),
    ],
)
def test_bad_rows(tree, read_source, bad, message):
    if "29" in bad.rsplit(",", 1)[-1]:
        bad = bad.replace(rle(BOXES["Left Lung"]), "1155 20")
    write(tree, [*ROWS[:2], bad, ROWS[3]])
    with pytest.raises(DataError, match=message) as error:
        read_source("chexmask_vindr", tree, "train")
    assert "VinDr-CXR.csv" in str(error.value)
    records, report = read_source("chexmask_vindr", tree, "train", on_error="skip")
    assert len(records) == 1 and report.skipped == {"bad mask row": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "row 1.*no column 'image_id'"),
        (HEADER.replace("Heart", "Hart").encode(), "row 1.*no column 'Heart'"),
        ("\n".join([HEADER, ROWS[0], ROWS[2][:400]]).encode(), "row 3"),
        ("\n".join([HEADER, ROWS[0] + ",1"]).encode(), "row 2.*10 cells"),
        (f"{HEADER}\n{ROWS[0]}\n\0\n".encode(), "row 3.*NUL"),
        (f"{HEADER}\n{ROWS[0]}\n".encode() + b"\xff\xfe", "row 3.*UTF-8"),
        (HEADER.encode() + b"\n" + b"1" * (5 << 20), "row 2.*longer than 4 MiB"),
        (f'{HEADER}\n"{"1" * 200_000}"\n'.encode(), "row 2.*field"),
    ],
)
def test_damaged_tables(tree, read_source, content, message):
    table(tree).write_bytes(content)
    for on_error in ("raise", "skip"):
        with pytest.raises(DataError, match=message):
            read_source("chexmask_vindr", tree, "train", on_error=on_error)


def test_images_without_a_row_are_told(tree, read_source):
    (tree / "train" / f"{'e' * 32}.dicom").write_bytes(b"")
    _, report = read_source("chexmask_vindr", tree, "train")
    assert any("images without a mask row: found 1" in note for note in report.notes)


def test_references_are_packed_small(tree, read_source):
    import pickle

    size = (3000, 2400)
    runs = {
        organ.split()[0].lower(): rle(tuple(v * 75 for v in box), size[1])
        for organ, box in BOXES.items()
    }
    write(tree, [row("a" * 32, height=size[0], width=size[1], **runs)])
    (record,), _ = read_source("chexmask_vindr", tree, "train")
    n_text = sum(map(len, runs.values()))
    assert n_text > 40_000 and len(pickle.dumps(record)) < n_text / 10
