from __future__ import annotations

import pytest

from fx_d2.data.errors import DataError

STUDIES = (
    ("XR_WRIST/patient00001/study1_positive", 2),
    ("XR_HAND/patient00001/study1_negative", 1),
    ("XR_HAND/patient00002/study2_positive", 1),
)


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "MURA-v1.1"
    root.mkdir()
    images, studies = [], []
    for study, n in STUDIES:
        studies.append(f"MURA-v1.1/train/{study}/,{int('positive' in study)}\n")
        images += [f"MURA-v1.1/train/{study}/image{i + 1}.png\n" for i in range(n)]
    images.insert(1, f"MURA-v1.1/train/{STUDIES[0][0]}/._image1.png\n")
    (root / "train_image_paths.csv").write_text("".join(images))
    (root / "train_labeled_studies.csv").write_text("".join(studies))
    return root


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize("nested", [False, True])
def test_labels_come_from_the_study(tree, read_source, nested):
    records, _ = read_source("mura", tree.parent if nested else tree, "train")
    assert [r["image_id"] for r in records] == [
        "train/XR_WRIST/patient00001/study1_positive/image1",
        "train/XR_WRIST/patient00001/study1_positive/image2",
        "train/XR_HAND/patient00001/study1_negative/image1",
        "train/XR_HAND/patient00002/study2_positive/image1",
    ]
    assert [r["labels"].tolist() for r in records] == [[1], [1], [0], [1]]
    assert [r["patient_id"] for r in records] == ["patient00001"] * 3 + ["patient00002"]
    assert records[0]["file_name"] == str(tree / (records[0]["image_id"] + ".png"))
    assert records[0]["body_part"] == "WRIST"
    assert len({r["study_id"] for r in records}) == 3  # one patient's study1 of two bones are two


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("train_labeled_studies.csv", "study1_positive/,1", "study1_positive/,0", "row 1"),
        ("train_labeled_studies.csv", "/,0", "/,", "row 2"),
        ("train_labeled_studies.csv", "/,0", "/,2", "row 2"),
        (
            "train_labeled_studies.csv",
            "MURA-v1.1/train/XR_HAND",
            "MURA-v1.1/valid/XR_HAND",
            "row 2",
        ),
        ("train_image_paths.csv", "/image2.png", "/image1.png", "row 3.*second time"),
        ("train_image_paths.csv", "train/XR_HAND", "../../XR_HAND", "row 4"),
        ("train_image_paths.csv", "study2_positive", "study3_positive", "row 5.*no label"),
    ],
)
def test_bad_rows(tree, read_source, file, old, new, message):
    edit(tree / file, old, new)
    with pytest.raises(DataError, match=message) as error:
        read_source("mura", tree, "train")
    assert file in str(error.value)
    records, report = read_source("mura", tree, "train", on_error="skip")
    assert 0 < len(records) < 4 and sum(report.skipped.values()) >= 1


def test_other_part_is_missing(tree, read_source):
    with pytest.raises(DataError, match="valid_labeled_studies"):
        read_source("mura", tree, "valid")


def test_published_counts(tree, read_source):
    _, report = read_source("mura", tree, "train", counts=True)
    assert any("train/images: found 4, expected 36808" in n for n in report.notes)
    assert any("train/studies: found 3, expected 13457" in n for n in report.notes)
