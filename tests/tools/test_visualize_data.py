"""The viewer's command line."""

from __future__ import annotations

from pathlib import Path

import cv2
import pytest

import visualize_data
from fx_d2.phantom.world import make_world


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("viewer") / "world"
    make_world(root, patients=8, seed=5, size_px=96, sources=["rsna", "montgomery"])
    return root


def run(root: Path, out: Path, *argv: str) -> int:
    return visualize_data.main(["--root", str(root), "--out", str(out), "--size", "200", *argv])


def test_every_source_that_is_there_becomes_a_sheet(small_world: Path, tmp_path: Path) -> None:
    assert run(small_world, tmp_path, "--sheet", "--num", "3", "--columns", "2") == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["montgomery_train.png", "rsna_train.png"]
    sheet = cv2.imread(str(tmp_path / "montgomery_train.png"))
    assert sheet.shape[0] > 400 and sheet.shape[1] > 400


def test_one_sheet_of_all_sources_with_nothing_drawn_on_it(
    small_world: Path, tmp_path: Path
) -> None:
    assert run(small_world, tmp_path, "--together", "--bare", "--num", "2", "--columns", "4") == 0
    assert [p.name for p in tmp_path.iterdir()] == ["together.png"]
    sheet = cv2.imread(str(tmp_path / "together.png"))
    assert 4 * 150 < sheet.shape[1] < 4 * 220  # four films side by side, without legends
    assert (sheet[40:-20].max(axis=2) - sheet[40:-20].min(axis=2)).max() <= 6  # no colour


def test_single_files_are_named_after_their_images(small_world: Path, tmp_path: Path) -> None:
    assert run(small_world, tmp_path, "--dataset", "montgomery_all", "--num", "2") == 0
    names = [p.name for p in (tmp_path / "montgomery_all").iterdir()]
    assert len(names) == 2 and all(name.startswith("MCUCXR_") for name in names)


def test_annotated_images_come_first(small_world: Path, tmp_path: Path) -> None:
    from fx_d2.data.catalog import load_records

    records = load_records("rsna", "all", root=small_world / "rsna-pneumonia-detection-challenge")
    with_boxes = [i for i, r in enumerate(records) if r["annotations"]]
    assert with_boxes and len(with_boxes) < len(records)
    assert set(with_boxes) <= set(visualize_data.choose(records, len(records), True))
    bare = [{"annotations": []}, {"annotations": [1]}, {}]
    assert visualize_data.choose(bare, 3, annotated=True) == [1]
    assert visualize_data.choose(bare, 2, annotated=False) == [0, 2]


def test_mapped_samples_are_drawn(small_world: Path, tmp_path: Path) -> None:
    assert run(small_world, tmp_path, "--source", "montgomery", "--mapped", "--num", "2") == 0
    assert len(list((tmp_path / "montgomery_train").iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "expected"),
    [("rsna_train", ("rsna", "train")), ("vindr_cxr_test", ("vindr_cxr", "test"))],
)
def test_dataset_names_are_taken_apart(name: str, expected: tuple[str, str]) -> None:
    assert visualize_data.parse_dataset(name) == expected


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--dataset", "rsna_trian"], "rsna_train"),
        (["--dataset", "rsna"], "names no split"),
        (["--source", "rnsa"], "Did you mean 'rsna'"),
        (["--source", "rsna", "--split", "fold9"], "no split 'fold9'"),
        (["--dataset", "rnsa_train"], "Did you mean 'rsna'"),
        (["--num", "0"], "from 1"),
        (["--size", "100000"], "from 64 to 8192"),
        (["--num", "100000", "--sheet"], "too large; at this --size it holds 655"),
        (["--task", "seg"], "go with --mapped"),
        (["--mapped", "--bare"], "choose one"),
        (["--mapped", "--source", "montgomery", "--config-file", "/none.yaml"], "/none.yaml"),
        (["--out", "/dev/null"], "is a file"),
        (["--root", "/nonexistent"], "is not there"),
        (["--root", "/dev/null"], "is not a folder"),
    ],
)
def test_wrong_use_gives_exit_code_two(
    small_world: Path, argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = [] if "--root" in argv else ["--root", str(small_world)]
    try:
        code = visualize_data.main([*root, *argv])
    except SystemExit as stop:  # of argparse
        code = stop.code
    error = capsys.readouterr().err
    assert code == 2
    assert says in error and error.count("\n") == 1


def test_what_cannot_be_read_is_told_and_the_rest_is_drawn(
    small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(small_world, tmp_path, "--source", "jsrt", "montgomery", "--num", "1") == 1
    assert "jsrt" in capsys.readouterr().err
    assert (tmp_path / "montgomery_train").is_dir()
