"""setup.py, the pinned versions and the make targets agree with each other."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")

# Logs how it is called; makes what "python -m venv" would make; fails where it is told to.
FAKE_PYTHON = """#!/bin/sh
echo "$*" >> "{log}"
case "$*" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "--version") echo "Python 3.11.0" ;;
esac
if [ -f "{fail}" ]; then case "$*" in *"$(cat "{fail}")"*) exit 1 ;; esac; fi
exit 0
"""


def setup_values() -> dict[str, object]:
    """The upper-case constants of setup.py, without running it."""
    tree = ast.parse((ROOT / "setup.py").read_text())
    values = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and node.targets[0].id in ("CORE", "EXTRAS"):
            values[node.targets[0].id] = ast.literal_eval(node.value)
    return values


def pinned(python: str) -> dict[str, str]:
    """Name to version of what the constraints file pins on Linux with a Python version."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
    }
    pins: dict[str, str] = {}
    for line in (ROOT / "requirements/constraints.txt").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            assert name not in pins, f"{name} is pinned twice for Python {python}"
            pins[name] = str(requirement.specifier).removeprefix("==")
    return pins


@pytest.mark.parametrize("python", PYTHONS)
def test_what_make_installs_is_pinned_within_its_range(python):
    values = setup_values()
    texts = values["CORE"] + values["EXTRAS"]["dicom"] + values["EXTRAS"]["dev"]
    texts += (ROOT / "requirements/build.in").read_text().splitlines()[1:]
    pins = pinned(python)
    for text in texts:
        requirement = Requirement(text)
        version = pins.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} is not pinned"
        assert requirement.specifier.contains(version), f"{text} does not allow {version}"


def test_gpl_code_is_in_no_default():
    values = setup_values()
    holders = [
        name for name, texts in values["EXTRAS"].items() if "pylibjpeg-libjpeg" in " ".join(texts)
    ]
    assert holders == ["dicom-gpl"]
    makefile = (ROOT / "Makefile").read_text()
    extras = re.search(r"^EXTRAS \?= (.*)$", makefile, re.MULTILINE).group(1).split(",")
    assert "dicom-gpl" not in extras
    assert "pylibjpeg-libjpeg" not in pinned("3.11")


def test_building_imports_nothing_but_setuptools():
    tree = ast.parse((ROOT / "setup.py").read_text())
    modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {
        a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names
    }
    assert modules == {"re", "pathlib", "setuptools"}


class Clone:
    """A copy of the files make looks at, with a Python that only takes notes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "clone"
        self.log = folder / "log"
        self.fail = folder / "fail"
        for name in ("Makefile", "setup.py"):
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.folder / name)
        shutil.copytree(ROOT / "requirements", self.folder / "requirements")
        (self.folder / "tools").mkdir()
        for path in (ROOT / "tools").glob("*detectron2*.py"):
            shutil.copy(path, self.folder / "tools")
        # As old as a clone: well before the first stamp.
        for path in self.folder.rglob("*"):
            os.utime(path, (1_000_000_000, 1_000_000_000))
        self.python = folder / "python3"
        self.python.write_text(FAKE_PYTHON.format(log=self.log, fail=self.fail))
        self.python.chmod(0o755)

    def make(self, *arguments: str) -> tuple[int, list[str], str]:
        """Exit code, calls of Python and output."""
        self.log.write_text("")
        env = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
        command = ["make", f"PYTHON={self.python}", *arguments]
        run = subprocess.run(
            command, cwd=self.folder, env=env, capture_output=True, text=True, check=False
        )
        return run.returncode, self.log.read_text().splitlines(), run.stdout + run.stderr


@pytest.fixture
def clone(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    return Clone(tmp_path)


def steps(calls: list[str]) -> list[str]:
    """Which parts of the set-up were run, in order."""
    names = {"-m venv": "venv", "build.in": "build", "--editable": "package"}
    names["install_detectron2"] = "detectron2"
    return [name for call in calls for key, name in names.items() if key in call]


def test_first_call_sets_up_and_the_second_does_nothing(clone):
    code, calls, output = clone.make("install")
    assert code == 0, output
    assert steps(calls) == ["venv", "build", "package", "detectron2"]
    assert all("constraints.txt" in call for call in calls if "pip install" in call)
    code, calls, _ = clone.make("install")
    assert (code, calls) == (0, [])


@pytest.mark.parametrize("target", ["test", "demo", "lint"])
def test_every_target_sets_up_by_itself(clone, target):
    code, calls, output = clone.make(target)
    assert code == 0, output
    assert steps(calls) == ["venv", "build", "package", "detectron2"]
    assert steps(clone.make(target)[1]) == []


@pytest.mark.parametrize("step", ["-m venv", "build.in", "--editable", "install_detectron2"])
def test_an_interrupted_step_is_taken_up_again(clone, step):
    clone.fail.write_text(step)
    code, calls, _ = clone.make("install")
    assert code != 0
    assert step in calls[-1] or calls[-1] == "--version"
    clone.fail.unlink()
    code, calls, _ = clone.make("install")
    assert code == 0
    assert any(step in call for call in calls)
    assert clone.make("install")[1] == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ("setup.py", ["package", "detectron2"]),
        ("requirements/constraints.txt", ["package", "detectron2"]),
        ("tools/detectron2_patches.py", ["detectron2"]),
        ("tools/install_detectron2.py", ["detectron2"]),
    ],
)
def test_a_changed_file_brings_its_steps_up_to_date(clone, changed, expected):
    clone.make("install")
    stamp = clone.folder / ".venv" / ".stamps"
    for path in stamp.iterdir():
        os.utime(path, (1_100_000_000, 1_100_000_000))
    os.utime(clone.folder / changed, (1_200_000_000, 1_200_000_000))
    assert steps(clone.make("install")[1]) == expected
    assert clone.make("install")[1] == []


def test_help_is_the_default_and_lists_every_target(clone):
    code, calls, output = clone.make()
    assert (code, calls) == (0, [])
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE).group(1)
    assert [line.split()[1] for line in output.splitlines()] == phony.split()


def test_unsupported_python_is_named(clone):
    clone.fail.write_text("sys.version_info")
    code, _, output = clone.make("install")
    assert code != 0
    assert "Python 3.11.0; fx_d2 is tested on Python 3.10 to 3.13" in output
    assert not (clone.folder / ".venv").exists()


def test_ci_lints_and_tests_and_nothing_else():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    assert [line for line in lines if line.startswith("make")] == ["make lint", "make test"]
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
