"""Checks of records that a lenient reader hands on, with a reader made for the purpose."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fx_d2.data.catalog import load_records
from fx_d2.data.doctor import Report, examine
from fx_d2.data.doctor.examination import role_finder
from fx_d2.data.doctor.facts import Job, look_at_all, run_job
from fx_d2.data.doctor.rows import RowReport
from fx_d2.data.doctor.run import Options, read_with_reader
from fx_d2.data.errors import DataError
from fx_d2.data.source import Source, official
from fx_d2.data.sources import get_source

SIDE = 100
LAX = Source(
    key="lax",
    title="A source whose reader checks nothing",
    folder="lax",
    reader="nowhere",
    splits=official(train="one", test="two"),
    tasks=("cls", "loc"),
    cls_classes=("Nodule", "Mass"),
    thing_classes=("Nodule",),
    licence="none",
    homepage="none",
    citation="none",
    access="none",
)
Boxes = list[list[float]]


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., Report]:
    """The report on images with the given boxes (XYXY) and changes, all in part ``one``."""

    def run(per_image: list[Boxes], **changes: Any) -> Report:
        (tmp_path / "lax").mkdir(exist_ok=True)
        rng = np.random.default_rng(1)
        records = []
        for i, boxes in enumerate(per_image):
            path = tmp_path / "lax" / f"{i}.png"
            cv2.imwrite(str(path), rng.integers(0, 255, (SIDE, SIDE), dtype=np.uint8))
            note = {"bbox_mode": 0, "category_id": 0}
            record = {
                "file_name": str(path),
                "image_id": f"i{i}",
                "height": SIDE,
                "width": SIDE,
                "source": "lax",
                "patient_id": None,
                "view": None,
                "labels": np.array([1, np.nan], dtype=np.float32),
                "annotations": [{"bbox": box, **note} for box in boxes],
            }
            records.append(record | (changes if i == 0 else {}))

        def read_part(source: Source, part: str, folder: Path) -> tuple[list[Any], RowReport]:
            return (records if part == "one" else []), RowReport()

        return examine(tmp_path, [LAX], Options(parts=["one"]), read_part=read_part)[0]

    return run


def found(report: Report) -> dict[str, int]:
    counts: dict[str, int] = {}
    for finding in report.findings:
        if finding.severity != "info":
            counts[finding.check] = counts.get(finding.check, 0) + 1
    return counts


GOOD: list[Boxes] = [[[10.0, 20.0, 40.0, 60.0]], [[30.0, 5.0, 90.0, 50.0]], []] * 3


def test_good_records_raise_nothing(judge: Callable[..., Report]) -> None:
    assert found(judge(GOOD)) == {}


def test_a_box_beyond_the_image_is_found(judge: Callable[..., Report]) -> None:
    assert found(judge([*GOOD, [[50.0, 50.0, 120.0, 80.0]]])) == {"boxes/outside": 1}


def test_a_box_without_area_is_found(judge: Callable[..., Report]) -> None:
    assert found(judge([*GOOD, [[50.0, 50.0, 50.0, 80.0]]])) == {"boxes/degenerate": 1}


def test_width_and_height_read_as_corners_are_recognised(judge: Callable[..., Report]) -> None:
    wrong: list[Boxes] = [[[60.0 + i, 55.0, 30.0, 20.0]] for i in range(8)]
    counts = found(judge(wrong))
    assert counts == {"boxes/degenerate": 8, "boxes/convention": 1}


def test_corners_read_as_width_and_height_are_recognised_when_clamped(
    judge: Callable[..., Report],
) -> None:
    # x, y, x + x1, y + y1 cut at the border: every box is possible, all of them together are not.
    wrong: list[Boxes] = [[[40.0 + i, 45.0, SIDE, SIDE]] for i in range(8)]
    assert found(judge(wrong)) == {"boxes/convention": 1}


def test_boxes_at_all_borders_are_no_wrong_convention(judge: Callable[..., Report]) -> None:
    wide: list[Boxes] = [[[0.0, 0.0, SIDE, SIDE]] for _ in range(8)]
    assert found(judge(wide)) == {}


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"view": 3}, "index/record"),
        ({"masks": {"Spleen": "x.png"}}, "index/record"),
        (
            {"annotations": [{"bbox": [1, 1, 9, 9], "bbox_mode": 0, "category_id": 7}]},
            "index/record",
        ),
        ({"labels": np.array([3, 0], dtype=np.float32)}, "labels/values"),
        ({"height": 50, "annotations": []}, "files/size"),
    ],
)
def test_a_broken_record_is_found(
    judge: Callable[..., Report], changes: dict[str, Any], check: str
) -> None:
    report = judge(GOOD, **changes)
    assert found(report) == {check: 1}
    assert "i0" in str(report.findings[0].where)


def test_findings_beyond_the_limit_are_counted(
    judge: Callable[..., Report], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fx_d2.data.doctor.run.MAX_PER_CHECK", 3)
    report = judge([[[50.0, 50.0, 120.0, 80.0]] for _ in range(8)])
    outside = [f for f in report.findings if f.check == "boxes/outside"]
    assert len(outside) == 4
    assert sum(f.count for f in outside) == 8


@pytest.mark.parametrize("key", ["nih14", "montgomery", "chexpert", "chexmask_vindr"])
def test_roles_are_the_registered_splits(clean_world: Path, key: str) -> None:
    source = get_source(key)
    folder = clean_world / source.folder
    for part in {p.name for p in source.splits.values()}:
        records, report = read_with_reader(source, part, folder)
        role = role_finder(source, part, records, report)
        mine = {r["image_id"]: role(r) for r in records}
        for split in ("train", "val", "test"):
            if split in source.splits and source.splits[split].name == part:
                theirs = {r["image_id"] for r in load_records(key, split, root=folder)}
                assert {i for i, name in mine.items() if name == split} == theirs


def test_a_reader_that_gives_up_does_not_stop_the_others(tmp_path: Path) -> None:
    def read_part(source: Source, part: str, folder: Path) -> tuple[list[Any], RowReport]:
        raise DataError("the index is gone", file=folder / "index.csv", row=3, fix="find it")

    report, _ = examine(tmp_path, [LAX], read_part=read_part)
    assert {(f.check, f.part, f.where) for f in report.findings} == {
        ("index/unreadable", "one", "row 3"),
        ("index/unreadable", "two", "row 3"),
    }


def test_a_bug_in_a_reader_is_a_finding(tmp_path: Path) -> None:
    def read_part(source: Source, part: str, folder: Path) -> tuple[list[Any], RowReport]:
        raise ZeroDivisionError("oops")

    report, _ = examine(tmp_path, [LAX], read_part=read_part)
    assert [f.check for f in report.findings] == ["index/unreadable"] * 2
    assert "ZeroDivisionError: oops" in report.findings[0].found


def test_the_doctor_survives_whatever_is_on_disk(
    copy_of: Callable[..., Path], clean_world: Path
) -> None:
    keys = ["nih14", "chexpert", "montgomery", "siim_acr", "chestx_det"]
    root = copy_of(keys)
    rng = np.random.default_rng(11)
    sources = [get_source(key) for key in keys]
    files = sorted(p for p in root.rglob("*") if p.is_file() and p.name != "PHANTOM.json")
    indexes = [p for p in files if p.suffix in (".csv", ".txt", ".json")]
    for round_number in range(25):
        path = files[rng.integers(len(files))] if round_number % 2 else indexes[round_number // 2]
        original = path.read_bytes()
        damaged = bytearray(original)
        for position in rng.integers(0, len(original), 8):
            damaged[position] = int(rng.integers(256))
        cut = len(damaged) if round_number % 3 else int(rng.integers(len(damaged)))
        path.write_bytes(bytes(damaged[:cut]))
        report, _ = examine(root, sources, Options(decode=False))
        assert all(f.fix and f.found for f in report.findings)
        path.write_bytes(original)
    assert examine(root, sources, Options(decode=False))[0].exit_code == 0


def test_worker_processes_see_what_one_process_sees(tmp_path: Path) -> None:
    jobs = []
    for i in range(5):
        path = tmp_path / f"{i}.png"
        cv2.imwrite(str(path), np.random.default_rng(i).integers(0, 255, (40, 30), dtype=np.uint8))
        jobs.append(Job(str(path), decode=True))
    jobs.append(Job(str(tmp_path / "missing.png"), decode=True))
    apart = list(look_at_all(iter(jobs), workers=1, batch=2))
    for mine, theirs in zip(map(run_job, jobs), apart, strict=True):
        assert mine.file.error == theirs.file.error
        assert mine.file.hash == theirs.file.hash
        assert np.array_equal(mine.file.thumb, theirs.file.thumb)  # type: ignore[arg-type]
    assert apart[-1].file.missing
