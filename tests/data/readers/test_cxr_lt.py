from __future__ import annotations

import gzip
import time

import numpy as np
import pytest

from fx_d2.data.errors import DataError
from fx_d2.data.vocabulary import CXR_LT_26

LABELS = "cxr-lt-multi-label-long-tailed-classification-on-chest-x-rays"


def image_id(i):
    return "-".join(f"{i + 7 * k:08x}" for k in range(5))


def row(i, positive, view="AP"):
    subject, study = f"{10000000 + i // 2}", f"{50000000 + i}"
    path = f"files/p{subject[:2]}/p{subject}/s{study}/{image_id(i)}.jpg"
    cells = [image_id(i), subject, study, view, "antero-posterior", path]
    return ",".join([*cells, *("1" if name in positive else "0" for name in CLASSES)])


# The order of the columns is not fixed by the dataset: labels are found by name.
CLASSES = tuple(reversed(CXR_LT_26))
HEADER = ",".join(
    (
        "dicom_id",
        "subject_id",
        "study_id",
        "ViewPosition",
        "ViewCodeSequence_CodeMeaning",
        "path",
        *CLASSES,
    )
)
ROWS = [row(0, ["Hernia"]), row(1, ["No Finding"], "LATERAL"), row(2, ["Mass", "Edema"], "")]


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "mimic-cxr-jpg/files").mkdir(parents=True)
    folder = tmp_path / f"{LABELS}-2.0.0/cxr-lt-2023"
    folder.mkdir(parents=True)
    (folder / "train.csv").write_text("\n".join([HEADER, *ROWS]) + "\n")
    return tmp_path / "mimic-cxr-jpg"


def table(tree):
    return tree.parent / f"{LABELS}-2.0.0/cxr-lt-2023/train.csv"


def test_labels_by_name_and_paths_below_mimic(tree, read_source):
    records, _ = read_source("cxr_lt", tree, "train")
    found = [
        [name for name, value in zip(CXR_LT_26, r["labels"], strict=True) if value == 1]
        for r in records
    ]
    assert found == [["Hernia"], ["No Finding"], ["Edema", "Mass"]]
    assert [r["view"] for r in records] == ["AP", "LATERAL", None]
    assert [r["patient_id"] for r in records] == ["10000000", "10000000", "10000001"]
    assert records[0]["image_id"] == image_id(0)
    assert records[0]["file_name"] == str(tree / f"files/p10/p10000000/s50000000/{image_id(0)}.jpg")


def test_versions_gzip_and_versioned_image_folder(tree, read_source):
    old = table(tree)
    new = tree.parent / f"{LABELS}/1.1.0/cxr-lt-2023/train.csv.gz"
    new.parent.mkdir(parents=True)
    new.write_bytes(gzip.compress(old.read_bytes()))
    old.unlink()
    (tree / "2.0.0").mkdir()
    (tree / "files").rename(tree / "2.0.0/files")
    records, _ = read_source("cxr_lt", tree, "train")
    assert len(records) == 3 and "/2.0.0/files/" in records[0]["file_name"]


def test_views_option_keeps_unknown_views(tree, read_source):
    records, _ = read_source("cxr_lt", tree, "train", views=["AP", "PA"])
    assert [r["view"] for r in records] == ["AP", None]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",LATERAL,", ",LATERAL,,", "row 3"),
        ("antero-posterior,files/p10/p10000001", "x,/etc/p10/p10000001", "row 4.*'path'"),
        ("p10000001/s50000002", "p10000002/s50000002", "row 4.*'path'"),
        ("p10000001/s50000002", "p10000001/s50000003", "row 4.*'path'"),
        (ROWS[2], ROWS[0], "row 4.*second time"),
        (ROWS[1], ROWS[1][:-1] + "2", "row 3.*Atelectasis"),
        (ROWS[1], ROWS[1][:-1] + "-1", "row 3.*Atelectasis"),
        (ROWS[1], ROWS[1][:-1], "row 3.*Atelectasis"),
        (ROWS[2], ROWS[2][:200], "row 4"),
        (",LATERAL,", ",LAT\x07ERAL,", "row 3.*ViewPosition"),
        ("Hernia", "Herniation", "row 1.*no column 'Hernia'"),
    ],
)
def test_bad_rows(tree, read_source, old, new, message):
    path = table(tree)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(DataError, match=message) as error:
        read_source("cxr_lt", tree, "train")
    assert "train.csv" in str(error.value)


def test_skipping_counts_bad_rows(tree, read_source):
    path = table(tree)
    path.write_text(path.read_text().replace(ROWS[1], ROWS[1][:-1] + "7"))
    records, report = read_source("cxr_lt", tree, "train", on_error="skip")
    assert len(records) == 2 and report.skipped == {"row with a bad label": 1}


def test_missing_labels_and_missing_images(tree, read_source):
    with pytest.raises(DataError, match=r"development\.csv"):
        read_source("cxr_lt", tree, "development")
    (tree / "files").rmdir()
    with pytest.raises(DataError, match="MIMIC-CXR-JPG's images"):
        read_source("cxr_lt", tree, "train")


@pytest.mark.slow
def test_true_size_takes_seconds(tree, read_source):
    labels = ",".join(ROWS[0].split(",")[6:])
    with table(tree).open("w") as stream:
        stream.write(HEADER + "\n")
        for i in range(264849):
            subject, study = 10000000 + i // 4, 50000000 + i
            path = f"files/p10/p{subject}/s{study}/{image_id(i)}.jpg"
            stream.write(f"{image_id(i)},{subject},{study},PA,,{path},{labels}\n")
    begin = time.perf_counter()
    from fx_d2.data.readers import cxr_lt
    from fx_d2.data.readers.base import ReadRequest
    from fx_d2.data.sources import get_source

    request = ReadRequest(tree, "train", get_source("cxr_lt"))
    total = sum(np.float64(r["labels"].sum()) for r in cxr_lt.read(request))
    seconds = time.perf_counter() - begin
    assert total == 264849  # one finding each
    assert seconds < 60  # about 5 on an idle core
