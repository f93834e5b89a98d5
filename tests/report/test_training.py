"""A training as a child process: what is told of it, and how it ends."""

from __future__ import annotations

import io
import os
import sys
import textwrap
import time
from pathlib import Path

import pytest

from fx_d2.command_line import WrongUse
from fx_d2.data.errors import DataError
from fx_d2.report import training
from fx_d2.report.training import Progress, train

_PHASE = (
    "[11/20 18:17:33] fx_d2.engine.lock_release INFO: iteration {}: cycle {}, slot {} of 20, "
    "tbx11k/loc lock, share 0.5 in 1 iterations; trains loc_decoder (7,973,487 parameters)"
)


def child(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def run(code: str, folder: Path, out: io.StringIO | None = None) -> Progress:
    progress = Progress(4, 22)
    train(
        child(code),
        folder / "train.log",
        progress,
        expected_s=100,
        environment={"FX_D2_TEST": "yes"},
        out=out or io.StringIO(),
    )
    return progress


def test_progress_by_the_lines_of_a_log():
    progress = Progress(4, 22)
    assert (progress.share, progress.words) == (0.0, "starting")
    progress.read(_PHASE.format(6, 2, 11))
    assert progress.share == pytest.approx(30 / 80)
    assert progress.words == "cycle 2 of 4, tbx11k/loc lock"
    progress.read("[11/20] fx_d2.engine.forgetting INFO: scoring every head: cycle 2\n")
    assert progress.words == "scoring every head, cycle 2"
    for _ in range(3):
        progress.read("[11/20] d2.evaluation.evaluator INFO: Start inference on 1 batches")
    assert (progress.share, progress.words) == (1.0, "evaluating 3 of 22")
    progress.read("anything else")
    assert progress.words == "evaluating 3 of 22"


def test_time_left_goes_from_what_is_expected_to_the_pace():
    progress = Progress(1, 1)
    assert progress.left_s(0, 600) == 600 and progress.left_s(60, 600) == 540
    progress.share = 0.5
    assert progress.left_s(100, 600) == pytest.approx(100)  # as long again
    progress.share = 0.15
    assert 425 < progress.left_s(75, 600) < 600  # between 425 by the pace and 525 expected
    progress.share = 0.75  # resumed at a half
    assert progress.left_s(90, 600, since=0.5) == pytest.approx(90 * 250 / 300 + 210 * 50 / 300)


def test_what_it_prints_is_kept_and_its_environment_is_ours(tmp_path: Path):
    (tmp_path / "train.log").write_text("earlier\n")
    line = _PHASE.format(6, 1, 11)
    progress = run(f"import os; print({line!r}); print(os.environ['FX_D2_TEST'])", tmp_path)
    assert progress.share == pytest.approx(10 / 80)
    assert (tmp_path / "train.log").read_text() == f"earlier\n{line}\nyes\n"


def test_earlier_attempts_in_the_log_are_not_taken_for_this_one(tmp_path: Path):
    (tmp_path / "train.log").write_text(_PHASE.format(6, 3, 11) + "\n")
    assert run("pass", tmp_path).share == 0


def test_refused_settings_are_wrong_use_with_the_last_line(tmp_path: Path):
    with pytest.raises(WrongUse, match=r"^train_net.py: error: there is no key$"):
        run("import sys; print('a'); sys.exit('train_net.py: error: there is no key' and "
            "(print('train_net.py: error: there is no key') or 2))", tmp_path)  # fmt: skip


def test_a_failure_names_the_log_and_the_last_line(tmp_path: Path):
    with pytest.raises(DataError, match=r"train.log: the training ended with exit code 3: ouch"):
        run("import sys; print('ouch'); sys.exit(3)", tmp_path)


class Terminal(io.StringIO):
    """Somebody who presses Ctrl-C at the first word."""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        raise KeyboardInterrupt


@pytest.mark.parametrize("deaf", [False, True], ids=["listens", "is deaf to Ctrl-C"])
def test_an_interruption_leaves_no_process(tmp_path: Path, deaf: bool, monkeypatch):
    monkeypatch.setattr(training, "_PATIENCE_S", 3.0)
    monkeypatch.setattr(training, "_POLL_S", 0.05)
    mark = tmp_path / "pid"
    code = f"""
        import os, pathlib, signal, sys, time
        def stop(*_):
            print("told to stop", flush=True)
            sys.exit(130)
        signal.signal(signal.SIGINT, signal.SIG_IGN if {deaf} else stop)
        pathlib.Path({str(mark)!r}).write_text(str(os.getpid()))
        time.sleep(60)
    """

    class Later(Terminal):
        def write(self, text: str) -> int:
            if mark.is_file() and mark.read_text():
                raise KeyboardInterrupt
            return 0

    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run(code, tmp_path, Later())
    assert time.monotonic() - began < 30
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)
    assert ("told to stop" in (tmp_path / "train.log").read_text()) is not deaf
