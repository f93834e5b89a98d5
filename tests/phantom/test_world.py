"""The synthetic world: same seed, same bytes; complete truth; writers apart from readers."""

from __future__ import annotations

import ast
import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import fx_d2.phantom.writers as writers_package
from fx_d2.data.sources import SOURCES, get_source
from fx_d2.phantom.findings import FINDINGS
from fx_d2.phantom.vocabulary_map import TABLES, classes_of
from fx_d2.phantom.world import FULL_PATIENTS, MARK, WorldError, make_world, read_mark, read_truth
from fx_d2.phantom.writers import WRITERS, mimic
from fx_d2.phantom.writers.base import Member, allot
from fx_d2.phantom.writers.runs_out import absolute_row_runs, filled, relative_column_runs, rings_of

# One source of each kind of file, small enough to be written several times.
SMALL = ("chexpert", "rsna", "node21", "mimic_cxr", "montgomery", "mura", "covid_radiography")
FAST = {"patients": 3, "seed": 5, "size_px": 64}


def digests(root: Path) -> dict[str, str]:
    """Digest by path of everything but the mark, which lists the sources."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.name != MARK
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("small") / "world"
    make_world(root, sources=SMALL, **FAST)
    return root


def test_same_seed_same_bytes_with_two_workers(small: Path, tmp_path: Path) -> None:
    make_world(tmp_path / "again", sources=SMALL, workers=2, **FAST)
    assert digests(tmp_path / "again") == digests(small)
    assert (tmp_path / "again" / MARK).read_bytes() == (small / MARK).read_bytes()


def test_a_source_does_not_depend_on_the_others(small: Path, tmp_path: Path) -> None:
    make_world(tmp_path / "part", sources=["node21", "cxr_lt"], **FAST)
    all_of_them, part = digests(small), digests(tmp_path / "part")
    assert part == {path: all_of_them[path] for path in part}
    assert {Path(path).parts[0] for path in part} >= {"node21", "mimic-cxr-jpg", "_truth"}


def test_every_format_is_written_the_same_twice(phantom_world: Path, tmp_path: Path) -> None:
    """DICOM, packed tables, workbooks and GIFs hold no time of writing."""
    mark = read_mark(phantom_world)
    keys = ("vindr_cxr", "siim_acr", "jsrt", "tbx11k")
    size = {name: mark[name] for name in ("patients", "seed", "size_px")}
    make_world(tmp_path / "again", sources=keys, **size)
    before, again = digests(phantom_world), digests(tmp_path / "again")
    assert again == {path: before[path] for path in again}


def test_another_seed_gives_other_images(small: Path, tmp_path: Path) -> None:
    make_world(tmp_path / "other", sources=["montgomery"], **{**FAST, "seed": 6})
    first, other = digests(small), digests(tmp_path / "other")
    images = [path for path in other if "CXR_png" in path and path in first]
    assert images
    assert all(other[path] != first[path] for path in images)


def test_no_image_occurs_twice(phantom_world: Path) -> None:
    thumbs: dict[str, str] = {}
    for key in SOURCES:
        for row in read_truth(phantom_world, key):
            picture = json.dumps(row["thumb"])
            assert thumbs.setdefault(picture, row["file"]) == row["file"]


@pytest.mark.parametrize("key", list(SOURCES))
def test_truth_is_complete(phantom_world: Path, key: str) -> None:
    source, rows = get_source(key), read_truth(phantom_world, key)
    assert {row["part"] for row in rows} == {part.name for part in source.splits.values()}
    assert len({row["image_id"] for row in rows}) == len(rows)
    for row in rows:
        assert (phantom_world / row["file"]).is_file()
        assert (row["labels"] is None) == (not source.cls_classes)
        if row["labels"] is not None:
            assert tuple(row["labels"]) == source.cls_classes
            assert set(row["labels"].values()) <= {0, 1, -1, None}
        for box in row["boxes"] or ():
            x0, y0, x1, y1 = box["xyxy"]
            assert box["category"] in source.thing_classes
            assert 0 <= x0 < x1 <= row["width"] and 0 <= y0 < y1 <= row["height"]
        for name, rle in (row["masks"] or {}).items():
            assert name in source.seg_classes
            assert rle["size"] == [row["height"], row["width"]]
        thumb = np.array(row["thumb"])
        assert thumb.shape == (32, 32) and thumb.std() > 10
        if source.image_size is not None:
            assert (row["height"], row["width"]) == source.image_size


@pytest.mark.parametrize("key", [k for k, s in SOURCES.items() if s.cls_classes])
def test_labels_vary(phantom_world: Path, key: str) -> None:
    """Positives and negatives in every part of more than one image; many classes overall."""
    by_part: dict[str, list[tuple]] = {}
    positive: Counter[str] = Counter()
    for row in read_truth(phantom_world, key):
        by_part.setdefault(row["part"], []).append(tuple(row["labels"].values()))
        positive.update(name for name, value in row["labels"].items() if value == 1)
    for part, rows in by_part.items():
        assert len(rows) == 1 or len(set(rows)) > 1, part
    classes = get_source(key).cls_classes
    assert len(positive) >= min(len(classes), max(3, len(classes) // 3))


def test_uncertain_and_missing_labels_occur(phantom_world: Path) -> None:
    for key in ("chexpert", "mimic_cxr"):
        rows = read_truth(phantom_world, key)
        values = {value for row in rows for value in row["labels"].values()}
        assert values == {0, 1, -1, None}
    certain = [r for r in read_truth(phantom_world, "chexpert") if r["part"] != "train"]
    assert {value for row in certain for value in row["labels"].values()} == {0, 1}
    blank = [r for r in read_truth(phantom_world, "candid_ptx") if r["boxes"] is None]
    assert blank and all(r["masks"] is None for r in blank)
    assert any(r["masks"] is None for r in read_truth(phantom_world, "shenzhen"))


def test_cxr_lt_has_splits_of_its_own(phantom_world: Path) -> None:
    parts = {row["image_id"]: row["part"] for row in read_truth(phantom_world, "mimic_cxr")}
    rename = {"validate": "development"}
    moved = [
        row
        for row in read_truth(phantom_world, "cxr_lt")
        if rename.get(parts[row["image_id"]], parts[row["image_id"]]) != row["part"]
    ]
    assert moved


def test_every_source_has_a_writer_and_every_folder_one_owner() -> None:
    keys = [key for writer in WRITERS for key in writer.keys]
    folders = [folder for writer in WRITERS for folder in writer.folders]
    assert sorted(keys) == sorted(SOURCES)
    assert len(set(folders)) == len(folders)
    assert {SOURCES[key].folder for key in keys} <= set(folders)


def test_the_vocabulary_names_findings_and_classes_that_exist() -> None:
    for table, classes in TABLES.items():
        source = get_source(table)
        assert set(classes) <= {*source.cls_classes, *source.thing_classes}
        for name, findings in classes.items():
            assert findings and set(findings) <= set(FINDINGS), (table, name)
    assert set(classes_of("chexpert", "edema")) == {"Edema", "Lung Opacity"}
    assert classes_of("nih14", "ecg_leads") == ()


def test_writers_and_readers_share_no_code() -> None:
    """Only the source table, the class lists in it and the keyed draws are common ground."""
    folder = Path(writers_package.__file__).parent
    files = [*folder.glob("*.py"), *(folder.parent / n for n in ("truth.py", "studio.py"))]
    allowed = {"fx_d2.data.sources", "fx_d2.data.draws"}
    assert len(files) > 20
    for path in files:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
                names = [node.module, *(f"{node.module}.{a.name}" for a in node.names)]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            for name in names:
                if name.startswith("fx_d2.data"):
                    assert any(name == a or name.startswith(f"{a}.") for a in allowed), (path, name)


def test_an_interrupted_world_is_completed(small: Path, tmp_path: Path, monkeypatch) -> None:
    root = tmp_path / "world"
    make_world(root, sources=["node21"], **FAST)
    montgomery = next(w for w in WRITERS if w.family == "montgomery")
    with monkeypatch.context() as patch:
        patch.setattr(type(montgomery), "write_index", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            make_world(root, sources=["node21", "montgomery"], **FAST)
    assert read_mark(root)["sources"] == ["node21"]
    assert not (root / "MontgomerySet").exists()
    assert not list(root.glob(".partial*"))
    assert make_world(root, sources=["node21", "montgomery"], **FAST) == ["montgomery"]
    every, found = digests(small), digests(root)
    assert found == {path: every[path] for path in found}


def test_a_folder_that_the_world_did_not_write_is_never_replaced(tmp_path: Path) -> None:
    root = tmp_path / "world"
    make_world(root, sources=["montgomery"], **FAST)
    (root / "nih14").mkdir()
    (root / "nih14" / "mine.png").write_bytes(b"x")
    with pytest.raises(WorldError, match="did not write it"):
        make_world(root, sources=["nih14"], **FAST)
    assert (root / "nih14" / "mine.png").exists()


def test_from_nine_patients_on_every_split_has_images() -> None:
    for patients in (FULL_PATIENTS - 1, FULL_PATIENTS, 10, 11, 12, 17, 30):
        empty = []
        for writer in WRITERS:
            counts = allot(writer.parts, patients)
            for key in writer.keys:
                for split, part in get_source(key).splits.items():
                    n = counts.get(part.name, 0) - (key == "chexmask_vindr")  # one of low quality
                    if key != "cxr_lt" and round(part.high * n) <= round(part.low * n):
                        empty.append(f"{key} {split}")
        assert bool(empty) == (patients < FULL_PATIENTS), (patients, empty)


def test_what_is_refused(tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "holiday.jpg").write_bytes(b"x")
    with pytest.raises(WorldError, match="not empty"):
        make_world(full, **FAST)
    make_world(tmp_path / "world", sources=["montgomery"], **FAST)
    with pytest.raises(WorldError, match="another world"):
        make_world(tmp_path / "world", sources=["montgomery"], **{**FAST, "seed": 6})
    make_world(tmp_path / "world", sources=["mura"], force=True, **{**FAST, "seed": 6})
    assert not (tmp_path / "world" / "MontgomerySet").exists()
    with pytest.raises(KeyError, match="Did you mean 'montgomery'"):
        make_world(tmp_path / "x", sources=["montgomry"], **FAST)
    with pytest.raises(WorldError, match="at least"):
        make_world(tmp_path / "x", **{**FAST, "patients": 2})
    with pytest.raises(WorldError, match="at least"):
        make_world(tmp_path / "x", **{**FAST, "size_px": 8})


def test_every_part_gets_patients() -> None:
    assert allot({"train": 0.7, "valid": 0.15, "test": 0.15}, 3) == {
        "train": 1, "valid": 1, "test": 1,
    }  # fmt: skip
    for patients in (4, 10, 1001):
        counts = allot({"train": 0.7, "valid": 0.15, "test": 0.15}, patients)
        assert sum(counts.values()) == patients and min(counts.values()) >= 1
    assert allot({"train": 0.8, "test": 0.2}, 1000)["test"] in range(198, 203)
    with pytest.raises(ValueError, match="cannot fill"):
        allot({"a": 1.0, "b": 1.0}, 1)
    assert [Member(0, "all", rank).mode() for rank in range(3)] == ["positive", "negative", "drawn"]


def test_ids_of_a_large_world_differ_and_keep_their_eight_digits() -> None:
    found = [mimic.ids(index, study) for index in range(20_000) for study in range(2)]
    subjects, studies = zip(*found, strict=True)
    assert len(set(studies)) == len(found) and len(set(subjects)) == len(found) / 2
    assert {s[0] for s in subjects} == {"1"} and {len(s) for s in subjects + studies} == {8}


def test_run_lengths_by_hand() -> None:
    """The two conventions, on the examples of the data specification."""
    mask = np.zeros((4, 4), bool)
    for x, y in ((0, 1), (0, 2), (1, 0), (1, 1), (1, 2)):
        mask[y, x] = True
    assert relative_column_runs(mask) == "1 2 1 3"
    rows = np.zeros((3, 4), bool)
    for x, y in ((1, 0), (2, 0), (1, 1)):
        rows[y, x] = True
    assert absolute_row_runs(rows) == "2 2 6 1"


def test_rings_enclose_what_they_say() -> None:
    mask = np.zeros((40, 40), bool)
    mask[5:20, 6:30] = True
    mask[10:12, 10:14] = False  # a hole that one ring cannot show
    mask[30:36, 3:9] = True
    mask[25, 35] = True  # a speck
    (ring, area), (small_ring, small) = list(rings_of(mask))
    assert set(ring) == {(6, 5), (29, 5), (29, 19), (6, 19)}
    assert area.sum() == 15 * 24 and filled(mask)[10:12, 10:14].all()
    assert len(small_ring) == 4 and small.sum() == 36
    scattered = np.zeros((60, 60), bool)
    scattered[5:55:10, 5:55:10] = True
    scattered = np.kron(scattered, np.ones((4, 4), bool))
    ((hull, inside),) = list(rings_of(scattered))
    assert inside[scattered].all() and len(hull) == 4
