from __future__ import annotations

import gzip

import numpy as np
import pytest

from fx_d2.data.errors import DataError, ReadReport
from fx_d2.data.sources import get_source

ALPHABETICAL = (
    "Atelectasis,Cardiomegaly,Consolidation,Edema,Enlarged Cardiomediastinum,Fracture,Lung Lesion,"
    "Lung Opacity,No Finding,Pleural Effusion,Pleural Other,Pneumonia,Pneumothorax,Support Devices"
)
IDS = [f"{i:08x}-11111111-22222222-33333333-44444444" for i in range(4)]
SPLIT = (
    "dicom_id,study_id,subject_id,split\n"
    f"{IDS[0]},50000001,10000001,train\n"
    f"{IDS[1]},50000001,10000001,train\n"
    f"{IDS[2]},50000002,10000002,train\n"
    f"{IDS[3]},50000003,11000003,validate\n"
)
METADATA = (
    "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns\n"
    f'{IDS[1]},10000001,50000001,"CHEST, PA AND LAT",LATERAL,2500,3056\n'
    f"{IDS[0]},10000001,50000001,CHEST,PA,3056,2544\n"
    f"{IDS[3]},11000003,50000003,CHEST,,,\n"
)
LABELS = (
    f"subject_id,study_id,{ALPHABETICAL}\n"
    "10000001,50000001,1.0,-1.0,,,,0.0,,,,1.0,,,,\n"
    "11000003,50000003,,,,,,,,,1.0,,,,,\n"
)


def files(prefix="", suffix="", split=SPLIT, metadata=METADATA, labels=LABELS, name="chexpert"):
    return {
        f"{prefix}mimic-cxr-2.0.0-split.csv{suffix}": split,
        f"{prefix}mimic-cxr-2.0.0-metadata.csv{suffix}": metadata,
        f"{prefix}mimic-cxr-2.0.0-{name}.csv{suffix}": labels,
        f"{prefix}files/p10/readme": b"",
    }


def named(**values):
    classes = get_source("mimic_cxr").cls_classes
    vector = np.full(len(classes), np.nan, dtype=np.float32)
    for name, value in values.items():
        vector[classes.index(name.replace("_", " "))] = value
    return vector


@pytest.mark.parametrize(
    ("prefix", "suffix"), [("", ""), ("2.0.0/", ".gz"), ("files/mimic-cxr-jpg/2.0.0/", "")]
)
def test_study_labels_reach_every_image_by_name(tree, read, prefix, suffix):
    root = tree(files(prefix, suffix))
    first, second, third = read("mimic_cxr", "train", root)
    assert first["image_id"] == IDS[0]
    assert first["file_name"] == str(root / prefix / f"files/p10/p10000001/s50000001/{IDS[0]}.jpg")
    expected = named(Atelectasis=1, Cardiomegaly=-1, Fracture=0, Pleural_Effusion=1)
    np.testing.assert_array_equal(first["labels"], expected)
    np.testing.assert_array_equal(second["labels"], expected)
    assert np.isnan(third["labels"]).all(), "a study without labels is not annotated"
    assert (first["height"], first["width"], first["view"]) == (3056, 2544, "PA")
    assert second["view"] == "LATERAL"
    assert third["view"] is None and "height" not in third
    assert (third["patient_id"], third["study_id"]) == ("10000002", "50000002")
    (held_out,) = read("mimic_cxr", "validate", root)
    np.testing.assert_array_equal(held_out["labels"], named(No_Finding=1))
    assert "height" not in held_out


def test_negbio_and_views_are_options(tree, read):
    root = tree(files(labels=LABELS.replace("1.0,-1.0", "0.0,0.0"), name="negbio"))
    records = read("mimic_cxr", "train", root, labels="negbio", views=["PA"])
    assert [r["image_id"] for r in records] == [IDS[0], IDS[2]], "an unknown view is kept"
    assert records[0]["labels"][get_source("mimic_cxr").cls_classes.index("Atelectasis")] == 0
    with pytest.raises(ValueError, match="allowed"):
        read("mimic_cxr", "train", root, labels="mine")


def test_radiologist_labels_of_2_1_0(tree, read):
    header = ALPHABETICAL.replace("Lung Opacity", "Airspace Opacity")
    row = ",".join("1.0" if n == "Airspace Opacity" else "0.0" for n in header.split(","))
    root = tree(
        files(split=SPLIT.replace("validate", "test"))
        | {"mimic-cxr-2.1.0-test-set-labeled.csv": f"study_id,{header}\n50000003,{row}\n"}
    )
    (record,) = read("mimic_cxr", "test", root, labels="radiologist")
    position = get_source("mimic_cxr").cls_classes.index("Lung Opacity")
    assert np.flatnonzero(record["labels"] == 1).tolist() == [position]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": SPLIT.replace(f"{IDS[0]},50000001", f"50000001,{IDS[0]}")}, "row 2: .*dicom_id"),
        ({"split": SPLIT.replace(",validate", ",val")}, "row 5: column 'split' holds 'val'"),
        ({"split": SPLIT.replace(IDS[1], IDS[0])}, "row 3: column 'dicom_id'.*one row only"),
        ({"split": SPLIT.replace("10000002,", "x/../etc,")}, "row 4: column 'subject_id'"),
        ({"labels": LABELS.replace("10000001,50", "10000007,50")}, "row 2: column 'subject_id'"),
        ({"labels": LABELS.replace("-1.0", "maybe")}, "row 2: column 'Cardiomegaly' holds 'maybe'"),
        ({"labels": LABELS.replace("11000003,50000003", "10000001,50000001")}, "'study_id'"),
        ({"labels": LABELS.replace("Edema,", "")}, "no column 'Edema'|cells"),
        ({"metadata": METADATA.replace("3056,2544", "tall,2544")}, "row 3: column 'Rows'"),
        ({"metadata": METADATA.replace(IDS[1], IDS[0])}, "row 3: column 'dicom_id'"),
        ({"metadata": METADATA.replace("ViewPosition", "View")}, "no column 'ViewPosition'"),
    ],
)
def test_bad_input_is_named(tree, read, change, message):
    root = tree(files(**change))
    with pytest.raises(DataError, match=message):
        read("mimic_cxr", "train", root)


@pytest.mark.parametrize("keep", [30, -40, -12])
def test_truncated_gzip(tree, read, keep):
    root = tree(files(suffix=".gz"))
    path = root / "mimic-cxr-2.0.0-split.csv.gz"
    path.write_bytes(gzip.compress(SPLIT.encode())[:keep])
    with pytest.raises(DataError, match=r"split\.csv\.gz"):
        read("mimic_cxr", "train", root)


def test_a_bomb_is_refused(tree, read, monkeypatch):
    from fx_d2.data.readers import tables

    monkeypatch.setattr(tables, "_UNPACKED_LIMIT", (1 << 20, 100))
    root = tree(files(suffix=".gz", split=SPLIT + "\n" * (1 << 22)))
    with pytest.raises(DataError, match="unpacks without end"):
        read("mimic_cxr", "train", root)


def test_missing_parts_of_the_download(tree, read):
    root = tree(files())
    (root / "mimic-cxr-2.0.0-metadata.csv").unlink()
    with pytest.raises(DataError, match=r"no mimic-cxr-2\.0\.0-metadata\.csv"):
        read("mimic_cxr", "train", root)


def test_bad_rows_are_counted_where_that_is_allowed(tree, read):
    report = ReadReport(on_error="skip", published_counts=False)
    root = tree(files(split=SPLIT.replace("10000002,", "abc,"), labels=LABELS.replace("-1.0", "x")))
    assert read("mimic_cxr", "train", root, report=report) == []
    assert dict(report.skipped) == {"row with a bad subject_id": 1, "row with a bad label": 1}
