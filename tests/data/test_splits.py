from __future__ import annotations

import json
import os

import pytest

from fx_d2.data.errors import DataError
from fx_d2.data.splits import (
    folds_of,
    patients_between,
    read_split_file,
    write_split_file,
)

PATIENTS = [f"p{i:04d}" for i in range(1000)]


def test_shares_are_disjoint_complete_and_of_the_right_size():
    train = patients_between(PATIENTS, 0.0, 0.7)
    val = patients_between(PATIENTS, 0.7, 0.8)
    test = patients_between(PATIENTS, 0.8, 1.0)
    assert (len(train), len(val), len(test)) == (700, 100, 200)
    assert train | val | test == set(PATIENTS)
    assert not train & val and not train & test and not val & test


def test_the_cut_depends_on_nothing_but_the_patients():
    once = patients_between(PATIENTS, 0.0, 0.5, salt="a")
    assert patients_between(PATIENTS[::-1] * 3, 0.0, 0.5, salt="a") == once
    assert patients_between(PATIENTS, 0.0, 0.5, salt="b") != once
    assert patients_between(PATIENTS, 0.0, 0.5, salt="a", seed=1) != once


def test_the_cut_is_the_same_on_every_machine():
    """Recorded once: a change here changes every published result on a carved split."""
    chosen = patients_between([f"p{i}" for i in range(10)], 0.0, 0.3, salt="montgomery")
    assert sorted(chosen) == RECORDED


RECORDED = ["p2", "p4", "p5"]


def test_leaving_patients_out_moves_nobody_in_a_large_source():
    many = [f"{i:032x}" for i in range(6000)]
    fewer = [p for i, p in enumerate(many) if i % 20]
    sides = [(0.0, 0.9), (0.9, 1.0)]
    whole = [patients_between(many, *side, salt="vindr-cxr") for side in sides]
    part = [patients_between(fewer, *side, salt="vindr-cxr") for side in sides]
    assert part[0] == whole[0] & set(fewer) and part[1] == whole[1] & set(fewer)
    assert whole[0] | whole[1] == set(many) and not whole[0] & whole[1]
    assert abs(len(whole[1]) - 600) < 4 * (6000 * 0.9 * 0.1) ** 0.5


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.5), (0.6, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_impossible_shares(low, high):
    with pytest.raises(ValueError, match="fractions"):
        patients_between(PATIENTS, low, high)


@pytest.mark.parametrize(
    "counts", [[1] * 60, [30, 1, 1, 1, 1], [1, 1, 1, 1, 50], [12, 9, 7, 7, 5, 5, 4, 3, 3, 2, 2, 1]]
)
def test_folds_keep_patients_together_and_none_is_empty(counts):
    patients = [f"p{i}" for i, images in enumerate(counts) for _ in range(images)]
    folds = folds_of(patients, 5, salt="covid19_seg")
    assert set(folds) == set(range(5))
    assert len(set(zip(patients, folds, strict=True))) == len(counts)
    sizes = [folds.count(fold) for fold in range(5)]
    assert max(sizes) - min(sizes) <= 2 * max(counts) or max(counts) > len(patients) / 5


def test_equal_patients_make_equal_folds_whatever_their_order():
    folds = folds_of(PATIENTS, 5)
    assert [folds.count(fold) for fold in range(5)] == [200] * 5
    assert folds_of(PATIENTS[::-1], 5)[::-1] == folds
    assert folds_of(PATIENTS, 5, salt="other") != folds


@pytest.mark.parametrize("count", [1, 1001])
def test_impossible_folds(count):
    with pytest.raises(ValueError, match="folds"):
        folds_of(PATIENTS, count)


def test_files_are_written_and_read_back(tmp_path):
    path = tmp_path / "deep" / "split.json"
    write_split_file(path, "jsrt", {"train": ["b", "a"], "test": ["c"]})
    assert read_split_file(path, "jsrt") == {"train": {"a", "b"}, "test": {"c"}}
    assert os.listdir(path.parent) == ["split.json"], "no temporary file is left"


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "split.json"
    write_split_file(path, "jsrt", {"train": ["a"]})
    with pytest.raises(TypeError):
        write_split_file(path, "jsrt", {"train": [object()]})
    assert read_split_file(path, "jsrt") == {"train": {"a"}}
    assert os.listdir(tmp_path) == ["split.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not a split file"),
        ("[]", "not a split file"),
        ('{"source": "jsrt"}', "not a split file"),
        ('{"source": "jsrt", "splits": ["a"]}', "not a split file"),
        ('{"source": "jsrt", "splits": {"train": 5}}', "not a split file"),
        (json.dumps({"source": "rsna", "splits": {}}), "split file of source 'rsna'"),
        (
            json.dumps({"source": "jsrt", "splits": {"train": ["a"], "test": ["a"]}}),
            "image 'a' is in splits 'train' and 'test'",
        ),
        (b"\xff\xfe", "not a split file"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    path = tmp_path / "split.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=message) as caught:
        read_split_file(path, "jsrt")
    assert caught.value.file == str(path) and "make_split" in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"cannot read the split file"):
        read_split_file(tmp_path / "none.json", "jsrt")
