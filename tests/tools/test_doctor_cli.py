"""The doctor's command line: exit codes, files written, wrong use."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import doctor
from fx_d2.phantom.world import make_world


@pytest.fixture(scope="module")
def small_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cli") / "world"
    make_world(root, patients=8, seed=5, size_px=96, sources=["chexpert", "montgomery"])
    return root


def run(*argv: str | Path) -> int:
    return doctor.main([str(a) for a in ("--quiet", "--workers", "0", *argv)])


def test_a_clean_world_is_fit(
    small_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, body = tmp_path / "out/report.html", tmp_path / "out/report.json"
    assert run("--root", small_world, "--html", page, "--json", body) == 0
    text = capsys.readouterr().out
    assert "fit for training" in text and "NOT FIT" not in text
    report = json.loads(body.read_text())
    assert set(report["checked"]) == {"chexpert", "montgomery"}
    assert report["counts"]["error"] == 0
    assert page.read_text().startswith("<!doctype html>")
    assert sorted(p.name for p in page.parent.iterdir()) == ["report.html", "report.json"]


def test_errors_give_exit_code_one_and_say_what_to_do(
    small_world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # The root comes from the environment when it is not given; one source lacks its index.
    image = min(small_world.glob("MontgomerySet/CXR_png/*.png"))
    content = image.read_bytes()
    image.write_bytes(content[:200])
    monkeypatch.setenv("DETECTRON2_DATASETS", str(small_world))
    try:
        assert run("--source", "montgomery") == 1
    finally:
        image.write_bytes(content)
    text = capsys.readouterr().out
    assert "NOT FIT" in text and "pixels/unreadable" in text
    assert image.name in text and "to do:" in text


def test_a_source_that_is_not_there_is_an_error(
    small_world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--root", small_world, "--source", "rsna") == 1
    assert "index/unreadable" in capsys.readouterr().out


def test_fast_reads_headers_only(small_world: Path, tmp_path: Path) -> None:
    body = tmp_path / "fast.json"
    assert run("--root", small_world, "--fast", "--json", body) == 0
    report = json.loads(body.read_text())
    assert all(seen["decoded"] == 0 for seen in report["checked"].values())
    assert "orientation/turned" not in report["checks"] and "files/missing" in report["checks"]


def test_a_sample_of_images_is_decoded(small_world: Path, tmp_path: Path) -> None:
    body = tmp_path / "some.json"
    assert run("--root", small_world, "--max-images", "3", "--json", body) == 0
    assert {s["decoded"] for s in json.loads(body.read_text())["checked"].values()} == {3}


def test_a_folder_whose_name_is_not_text(small_world: Path, tmp_path: Path) -> None:
    root = tmp_path / os.fsdecode(b"caf\xe9")
    shutil.copytree(small_world / "MontgomerySet", root / "MontgomerySet")
    strange = root / "MontgomerySet/CXR_png" / os.fsdecode(b"MCUCXR_\xff_0.png")
    shutil.copy(min(root.glob("MontgomerySet/CXR_png/*.png")), strange)
    assert run("--root", root, "--json", root / "r.json", "--html", root / "r.html") == 1
    assert "MCUCXR_\\udcff_0.png" in (root / "r.html").read_text(encoding="utf-8")


def test_one_split(small_world: Path, tmp_path: Path) -> None:
    body = tmp_path / "split.json"
    args = ("--root", small_world, "--source", "chexpert", "--split", "val", "--json", body)
    assert run(*args) == 0
    assert set(json.loads(body.read_text())["checked"]["chexpert"]["parts"]) == {"valid"}


def test_files_of_splits_not_asked_for_are_not_extra(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_world(tmp_path / "world", patients=8, seed=5, size_px=96, sources=["jsrt"])
    args = ("--root", tmp_path / "world", "--fast", "--split", "train")
    assert run(*args) == 0
    assert "files/extra" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--root", "/nonexistent"], "is not there"),
        (["--source", "chexprt"], "Did you mean 'chexpert'"),
        (["--split", "trian"], "no split 'trian'"),
        (["--json", "/dev/null/report.json"], "/dev/null is a file"),
        (["--html", "/"], "is a folder"),
        (["--workers", "-2"], "not a whole number from 0"),
        (["--max-images", "0"], "not a whole number from 1"),
    ],
)
def test_wrong_use_gives_exit_code_two(
    small_world: Path, argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    root = [] if "--root" in argv else ["--root", small_world]
    assert exit_code(*argv, *root) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def exit_code(*argv: str | Path) -> int | str | None:
    """Of ``main``, which argparse leaves by ``SystemExit``."""
    try:
        return run(*argv)
    except SystemExit as stop:
        return stop.code


def test_an_empty_root_is_wrong_use(tmp_path: Path) -> None:
    assert run("--root", tmp_path) == 2


def test_the_checks_can_be_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--list-checks"]) == 0
    assert "| `orientation/turned` | error |" in capsys.readouterr().out
