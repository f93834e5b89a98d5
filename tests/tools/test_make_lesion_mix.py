from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import make_lesion_mix
from fx_d2.command_line import FAILED, INTERRUPTED, WRONG_USE
from fx_d2.data.lesion_mix import build
from fx_d2.phantom.world import make_world

LOOSE = ["INPUT.FX.LESION_MIX.MAX_DIFF", "2", "INPUT.FX.LESION_MIX.MIN_R", "-1"]
ARGS = [
    *("--size", "96", "SEED", "2", "INPUT.FX.LESION_MIX.TARGET", "7"),
    *("INPUT.FX.LESION_MIX.BANK", "('chestx_det_train',)"),
]


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory) -> Iterator[None]:
    root = tmp_path_factory.mktemp("world") / "phantom"
    make_world(root, patients=14, seed=3, sources=["cxr_lt", "chestx_det"], size_px=96)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        patch.setattr(build, "_PART_IMAGES", 5)
        yield


def call(out: Path, *args: str) -> int:
    return make_lesion_mix.main(["--out", str(out), *ARGS, *args])


def content(out: Path) -> dict[str, str]:
    """Every file of the dataset by its digest."""
    names = [p for p in out.rglob("*") if p.is_file() and p.suffix in (".png", ".jsonl", ".json")]
    return {str(p.relative_to(out)): hashlib.sha256(p.read_bytes()).hexdigest() for p in names}


def test_a_mix_is_written_audited_and_written_alike_again(tmp_path: Path, capsys, monkeypatch):
    first, second = tmp_path / "first", tmp_path / "second"
    assert call(first, *LOOSE) == 0
    out = capsys.readouterr()
    assert "patches: Atelectasis" in out.out and "correlations: largest difference" in out.out
    assert "not cut: " in out.out and "still short of" in out.out
    body = json.loads((first / "lesion_mix.json").read_text())
    rows = [json.loads(line) for line in (first / "records.jsonl").read_text().splitlines()]
    assert body["images"] == len(rows) > 10 and body["base"] == "cxr_lt"
    for name in ("audit.md", "audit.json", "examples.png", "correlations.png"):
        assert (first / "audit" / name).stat().st_size > 100

    # Killed after two parts, and continued: the same bytes, no image twice and none missing.
    write, calls = build._write_part, []

    def killed(*args):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args)
        write(*args)

    monkeypatch.setattr(build, "_write_part", killed)
    assert call(second, *LOOSE) == INTERRUPTED
    assert "call it again to continue" in capsys.readouterr().err
    assert not (second / "lesion_mix.json").exists()
    kept = sorted((second / "images").rglob("*.png"))
    assert kept and not list(second.rglob("*.tmp"))
    before = [p.stat().st_mtime_ns for p in kept]
    monkeypatch.setattr(build, "_write_part", write)
    assert call(second, *LOOSE) == 0
    assert [p.stat().st_mtime_ns for p in kept] == before
    assert content(second) == content(first)
    # A lost image is made again.
    (second / rows[3]["file"]).unlink()
    assert call(second, *LOOSE) == 0 and content(second) == content(first)
    # Other limits change no byte of the images; other settings are another mix.
    capsys.readouterr()
    assert call(second, *LOOSE, "INPUT.FX.LESION_MIX.ALPHA", "0.5") == FAILED
    assert "there is a mix of other settings" in capsys.readouterr().err


@pytest.mark.slow
def test_workers_change_no_byte(tmp_path: Path) -> None:
    limit = ["--limit", "12", *LOOSE]
    one, two = tmp_path / "one", tmp_path / "two"
    assert call(one, *limit) == 0 and call(two, "--workers", "2", *limit) == 0
    assert content(one) == content(two)


def test_a_mix_that_breaks_a_limit_is_left_unfinished(tmp_path: Path, capsys) -> None:
    out = tmp_path / "mix"
    strict = ["INPUT.FX.LESION_MIX.MAX_DIFF", "0.001", "INPUT.FX.LESION_MIX.CHANCE", "0.0"]
    assert call(out, "--limit", "15", *strict) == FAILED
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("make_lesion_mix: the audit fails: the correlation of '")
    assert "MAX_DIFF 0.001" in error and "audit.md" in error
    assert (out / "audit" / "audit.md").is_file() and not (out / "lesion_mix.json").exists()
    assert call(out, "--limit", "15", *LOOSE) == 0


def test_only_prepared(tmp_path: Path, capsys) -> None:
    assert call(tmp_path / "bank", "--prepare-only") == 0
    assert "use it:  INPUT.FX.LESION_MIX.FOLDER" in capsys.readouterr().out
    assert not (tmp_path / "bank" / "images").exists()


@pytest.mark.parametrize(
    ("args", "code", "said"),
    [
        (["INPUT.FX.LESION_MIX.ALPHA", "1.01"], WRONG_USE, "ALPHA is 1.01; allowed: [0, 1]"),
        (["INPUT.FX.LESION_MIX.SHAPE", "bax"], WRONG_USE, "Did you mean 'box'"),
        (["INPUT.FX.LESION_MIX.BANK", "('cxr_lt_train',)"], FAILED, "has no boxes to cut"),
        (["INPUT.FX.LESION_MIX.BANK", "('chestx_det_test',)"], FAILED, "there to evaluate on"),
        (["INPUT.FX.LESION_MIX.BASE", "('chestx_dt_train',)"], FAILED, "no dataset"),
        (["INPUT.FX.LESION_MIX.ON_MISSING", "error"], FAILED, "the bank has no patch of"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, capsys, args, code, said) -> None:
    assert call(tmp_path / "mix", *args) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("make_lesion_mix: ") and said in error
