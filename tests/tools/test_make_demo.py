"""The demo on three sources in seconds, stopped in its middle and continued; and wrong words."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import pytest

import make_demo
import report
from fx_d2.engine.setup import ConfigError
from fx_d2.report.demo import FLOORS, Choices, Demo
from fx_d2.report.run_files import read_curves

ROOT = Path(__file__).parents[2]
CONFIG = str(ROOT / "configs/demo/foundation_x.yaml")
SOURCES = ("shenzhen", "tbx11k", "chestx_det")  # labels; boxes too; masks too
TINY: tuple[str, ...] = (
    *("DATASETS.TRAIN", str(tuple(f"{s}_train" for s in SOURCES))),
    *("DATASETS.TEST", str(tuple(f"{s}_test" for s in SOURCES))),
    *("MODEL.FX.TRUNK.KWARGS", "{'embed_dim': 24, 'depths': [1,1,1,1], 'num_heads': [1,2,4,8]}"),
    *(
        "MODEL.FX.SEG.CHANNELS",
        "32",
        "MODEL.FX.CLS.LOCAL.DIM",
        "32",
        "MODEL.FPN.OUT_CHANNELS",
        "32",
    ),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", "64", "MODEL.ROI_MASK_HEAD.CONV_DIM", "32"),
    *("INPUT.FX.SIZE", "64", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "2"),
    *("SOLVER.CHECKPOINT_PERIOD", "4", "SOLVER.FX.LOG_PERIOD", "1"),
    *("CYCLE.CYCLES", "2", "CYCLE.MAX_STEPS_PER_PHASE", "2", "FORGETTING.AT_START", "False"),
)
WORDS = ("--patients", "12", "--size", "64", "--films", "3", "--workers", "1")


def said_by(main: Callable[..., int], capsys: pytest.CaptureFixture, *words: object):
    try:
        code = main([str(word) for word in words])
    except SystemExit as exc:
        code = int(exc.code or 0)
    said = capsys.readouterr()
    return code, said.out, said.err


def stopped(out: Path, when: Callable[[], bool]) -> str:
    """Start the demo as a user does, and press Ctrl-C when it is time."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "tools/make_demo.py", "--out", str(out), *WORDS, *TINY],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 1200
    while not when():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGINT)
    text = process.communicate(timeout=300)[0]
    assert process.returncode == 130, text
    return text


def running(out: Path) -> list[str]:
    """Processes that train into ``out``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = entry.read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        if str(out / "run") in words:
            found.append(" ".join(words))
    return found


@pytest.mark.slow
def test_the_demo_is_stopped_and_continued_and_then_repeats_nothing(tmp_path: Path, capsys):
    out, pictures = tmp_path / "demo", tmp_path / "pictures"
    text = stopped(out, (out / "run/last_checkpoint").is_file)
    assert "interrupted; call it again to continue" in text.strip().splitlines()[-1]
    assert "Traceback" not in text
    assert "[4/5] pretraining (2 cycles of paper)" in text and " to the end)" in text
    assert not (out / "index.html").exists() and running(out) == []
    before = json.loads((out / "stages.json").read_text())["stages"]
    assert before["doctor"]["done"] and not before["train"]["done"]

    words = ("--out", out, *WORDS, "--pictures", pictures, *TINY)
    code, printed, err = said_by(make_demo.main, capsys, *words)
    assert code == 0, err
    for number in (1, 2, 3):
        assert re.search(rf"^\[{number}/5\] .*: done before, in ", printed, re.MULTILINE)
    log = (out / "train.log").read_text()
    starts = re.findall(r"Starting training from iteration (\d+)", log)
    assert len(starts) == 2 and starts[0] == "0" and int(starts[1]) >= 4
    after = json.loads((out / "stages.json").read_text())["stages"]
    assert after["train"]["seconds"] > before["train"]["seconds"]
    for task in FLOORS:
        assert re.search(rf"^teacher, {task}: mean \w+ [\d.]+ of ", printed, re.MULTILINE)

    # Every phase of the schedule is shaded, none twice, without a hole.
    spans = read_curves(out / "run").spans
    assert len(spans) == 2 * (3 + 2 * 2 + 1 * 2) and spans[-1].cycle == 2
    assert all(b.first == a.last + 1 for a, b in zip(spans, spans[1:], strict=False))
    assert [s.name for s in spans[:4]] == ["release", "release", "lock", "release"]

    page = (out / "index.html").read_text()
    assert page.count("<figure class=film>") == 3 and page.count("data:image/png") == 2
    results = json.loads((out / "run/results.json").read_text())["results"]
    heads = {"shenzhen/cls", "tbx11k/cls", "tbx11k/loc", *(f"chestx_det/{t}" for t in FLOORS)}
    assert set(results) == heads | {f"teacher/{head}" for head in heads}
    assert all(f"<td>{head}<td>" in page for head in heads)
    for words_on_page in ("seed 1", "12 patients of each source", "torch ", "floor seg", "cores"):
        assert words_on_page in page, words_on_page
    assert str(tmp_path) not in page
    for name in ("curves", "forgetting", "gallery"):
        assert cv2.imread(str(pictures / f"demo_{name}.png")) is not None

    written = (out / "index.html").stat().st_mtime_ns
    code, printed, _ = said_by(make_demo.main, capsys, "--out", out, *WORDS, *TINY)
    assert code == 0 and printed.count(": done before, in ") == 5
    assert (out / "index.html").stat().st_mtime_ns == written
    assert (out / "train.log").read_text() == log

    # Other settings do not touch what is there, and say so before anything is done.
    code, _, err = said_by(make_demo.main, capsys, "--out", out, *WORDS, *TINY, "SEED", "3")
    assert code == 2 and f"{out / 'run'} was made with other settings" in err
    code, _, err = said_by(make_demo.main, capsys, "--out", out, *WORDS[2:], *TINY)
    assert code == 2 and f"{out / 'world'} was made with other settings" in err

    # The page of the run alone, where its films are not at hand.
    code, printed, err = said_by(report.main, capsys, out / "run", "--films", 2)
    assert code == 0 and "There are no predictions: " in printed, err
    page = (out / "run/report.html").read_text()
    assert "mean cls" in page and "floor cls" not in page and "<figure" not in page
    code, _, _ = said_by(report.main, capsys, out / "run", "--films", 0, "--floor", "cls=0.01")
    assert code == 0 and "floor cls" in (out / "run/report.html").read_text()


def test_steps_follow_the_minutes(tmp_path: Path):
    def steps(minutes: int, *overrides: str) -> int:
        choices = Choices(tmp_path, CONFIG, (*TINY, *overrides), minutes=minutes)
        return Demo(choices, tmp_path).cfg.CYCLE.MAX_STEPS_PER_PHASE

    many = ("CYCLE.MAX_STEPS_PER_PHASE", "20")
    assert steps(12, *many) == 20
    assert 35 < steps(22, *many) < 45 and 1 <= steps(4, *many) < 8
    assert steps(40, "CYCLE.MAX_STEPS_PER_PHASE", "0") == 0


def test_exceptions_of_a_task_follow_the_minutes_too(tmp_path: Path):
    """Where only the exceptions have a number as well."""
    words = ("CYCLE.MAX_STEPS_PER_PHASE", "0", "CYCLE.MAX_STEPS_PER_PHASE_BY", "('loc=20','seg=0')")

    def steps(minutes: int) -> tuple[str, ...]:
        choices = Choices(tmp_path, CONFIG, (*TINY, *words), minutes=minutes)
        return Demo(choices, tmp_path).cfg.CYCLE.MAX_STEPS_PER_PHASE_BY

    assert steps(12) == ("loc=20", "seg=0")
    number = int(steps(22)[0].removeprefix("loc="))
    assert 35 < number < 45 and steps(22)[1:] == ("seg=0",)


def test_a_wrong_exception_is_one_line(tmp_path: Path):
    words = ("CYCLE.MAX_STEPS_PER_PHASE_BY", "('lok=3',)")
    with pytest.raises(ConfigError, match="did you mean 'loc'"):
        Demo(Choices(tmp_path, CONFIG, (*TINY, *words), minutes=20), tmp_path)


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        ((), "the following arguments are required: --out"),
        (("--out", "{}/file"), "is a file; name another place"),
        (("--out", "{}/d", "--minutes", "1"), "1 is not a whole number from 3"),
        (("--out", "{}/d", "--patients", "2"), "2 is not a whole number from 9"),
        (("--out", "{}/d", "--config-file", "{}/none.yaml"), "there is no config file"),
        (("--out", "{}/d", "SOLVER.BASE_LRR", "1"), "did you mean SOLVER.BASE_LR"),
        (("--out", "{}/d", "CYCLE.NAME", "papr"), "did you mean 'paper'"),
        (("--out", "{}/d", "--pictures", "{}/file"), "is a file; name another place"),
    ],
)
def test_wrong_words_are_answered_in_one_line(tmp_path: Path, capsys, words, answer):
    (tmp_path / "file").write_text("")
    given = [word.format(tmp_path) for word in words]
    code, _, err = said_by(make_demo.main, capsys, *given)
    assert code == 2 and answer in err and len(err.strip().splitlines()) == 1, err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("{}",), "is no folder of a run: it has no config.yaml"),
        (("{}", "--floor", "cls=2"), "write task=figure from 0 to 1"),
        (("{}", "--floor", "cls"), "write task=figure from 0 to 1"),
        (("{}", "--floor", "class=0.5"), "write task=figure from 0 to 1"),
        (("{}", "--films", "-1"), "-1 is not a whole number from 0"),
    ],
)
def test_report_answers_wrong_words_in_one_line(tmp_path: Path, capsys, words, answer):
    code, _, err = said_by(report.main, capsys, *(word.format(tmp_path) for word in words))
    assert code == 2 and answer in err and len(err.strip().splitlines()) == 1, err


def test_report_of_a_run_that_has_only_begun(tmp_path: Path, capsys):
    """Its config is there, nothing else: a page that says what is missing."""
    from fx_d2.engine.setup import load_config

    (tmp_path / "config.yaml").write_text(load_config(CONFIG, TINY).dump())
    code, printed, err = said_by(report.main, capsys, tmp_path, "--out", tmp_path / "p/page.html")
    assert code == 0, err
    assert "Nothing was evaluated yet" in printed and "There are no predictions" in printed
    assert "Nothing was evaluated yet" in (tmp_path / "p/page.html").read_text()
    (tmp_path / "config.yaml").write_text("SOLVER: {BASE_LRR: 1}\n")
    code, _, err = said_by(report.main, capsys, tmp_path)
    assert code == 2 and "did you mean SOLVER.BASE_LR" in err
