"""What goes wrong in a tool is one line and an exit code; an error of the program is not hidden."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from fx_d2 import command_line
from fx_d2.command_line import Parser, WrongUse, check_output, existing_root, named_source, whole
from fx_d2.data.errors import DataError, DataWarning


def outcome(problem: BaseException, **options: bool) -> int:
    @command_line.tool("a_tool", **options)
    def main(argv=None):
        raise problem

    return main([])


@pytest.mark.parametrize(
    ("problem", "code", "says"),
    [
        (WrongUse("--num is odd"), 2, "a_tool: --num is odd"),
        (DataError("bad", file="a.csv", fix="mend it"), 1, "a_tool: a.csv: bad. To do: mend it"),
        (PermissionError(13, "Permission denied", "/x/y"), 1, "a_tool: /x/y: Permission denied"),
        (OSError(28, "No space left on device"), 1, "No space left on device; is there room"),
        (ImportError("needs\npydicom"), 1, "a_tool: needs pydicom"),
        (KeyboardInterrupt(), 130, "a_tool: interrupted\n"),
        (OSError("name \udcff.png"), 1, "name \\udcff.png"),
    ],
)
def test_expected_failures_are_one_line(problem, code, says, capsys) -> None:
    assert outcome(problem) == code
    printed = capsys.readouterr()
    assert says in printed.err and printed.err.count("\n") == 1 and printed.out == ""


def test_an_interrupted_tool_says_when_it_can_continue(capsys) -> None:
    assert outcome(KeyboardInterrupt(), resumable=True) == 130
    assert "call it again to continue" in capsys.readouterr().err


@pytest.mark.parametrize("problem", [KeyError("x"), ValueError("x"), AssertionError("x")])
def test_errors_of_the_program_keep_their_traceback(problem) -> None:
    with pytest.raises(type(problem)):
        outcome(problem)


def test_interrupts_are_heard_again_after_the_imports() -> None:
    seen = []

    @command_line.tool("a_tool")
    def main(argv=None):
        seen.append(signal.getsignal(signal.SIGINT))
        return 0

    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        assert main([]) == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert seen == [signal.default_int_handler]


def test_warnings_about_data_are_one_line() -> None:
    formats = []

    @command_line.tool("a_tool")
    def main(argv=None):
        for category in (DataWarning, UserWarning):
            formats.append(warnings.formatwarning("12 rows", category, "x.py", 3, "code"))
        return 0

    before = warnings.formatwarning
    assert main([]) == 0
    assert formats[0] == "a_tool: warning: 12 rows\n"
    assert "x.py:3" in formats[1]
    assert warnings.formatwarning is before


def test_any_file_name_can_be_printed() -> None:
    program = (
        "import sys\nfrom fx_d2.command_line import tool\n"
        "@tool('a_tool')\ndef main(argv=None):\n    print('caf\\udce9')\n    return 0\n"
        "sys.exit(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONIOENCODING": "utf-8:strict"},
    )
    assert (done.returncode, done.stdout) == (0, "caf\\udce9\n"), done.stderr


def test_a_closed_pipe_is_quiet() -> None:
    program = (
        "import sys\nfrom fx_d2.command_line import tool\n"
        "@tool('a_tool')\ndef main(argv=None):\n"
        "    for i in range(200_000):\n        print(i)\n    return 0\n"
        "sys.exit(main())\n"
    )
    command = '"$0" -c "$1" | head -n 1; exit "${PIPESTATUS[0]}"'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert (done.returncode, done.stdout, done.stderr) == (141, "0\n", "")


def test_a_wrong_argument_is_one_line(capsys) -> None:
    parser = Parser(prog="a_tool.py")
    parser.add_argument("--num", type=whole(1, 9), required=True)
    for given, says in ([], "required"), (["--num", "0"], "0 is not a whole number from 1 to 9"):
        with pytest.raises(SystemExit) as stop:
            parser.parse_args(given)
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert error.startswith("a_tool: ") and says in error and error.count("\n") == 1


@pytest.mark.parametrize("text", ["x", "1.5", "", "0", "10", "9" * 30])
def test_numbers_are_bounded(text) -> None:
    assert whole(1, 9)("9") == 9
    with pytest.raises(argparse.ArgumentTypeError, match="a whole number from 1 to 9"):
        whole(1, 9)(text)


def test_sources_and_roots(tmp_path: Path) -> None:
    assert named_source("rsna").key == "rsna"
    with pytest.raises(WrongUse, match="Did you mean 'rsna'"):
        named_source("rsn")
    assert existing_root(tmp_path) == tmp_path
    (tmp_path / "file").touch()
    with pytest.raises(WrongUse, match="is not a folder"):
        existing_root(tmp_path / "file")
    with pytest.raises(WrongUse, match="is not there"):
        existing_root(tmp_path / "none")


def test_outputs_are_checked_before_the_work(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").touch()
    check_output(tmp_path / "a/b/c.json")
    check_output(tmp_path / "file")
    check_output(tmp_path, folder=True)
    with pytest.raises(WrongUse, match="is a folder"):
        check_output(tmp_path)
    with pytest.raises(WrongUse, match="is a file"):
        check_output(tmp_path / "file", folder=True)
    with pytest.raises(WrongUse, match="is a file"):
        check_output(tmp_path / "file/x.json")
    monkeypatch.setattr(command_line.os, "access", lambda path, mode: False)
    with pytest.raises(WrongUse, match="no permission to write"):
        check_output(tmp_path / "new.json")
