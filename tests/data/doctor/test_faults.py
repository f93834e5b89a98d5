"""Every check finds its planted fault, says where it is, and a clean world raises nothing."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fx_d2.data.doctor import CHECKS, Report, examine
from fx_d2.phantom.writers import WRITERS

sys.path.insert(0, str(Path(__file__).parent))
import faults_of_annotations  # noqa: F401
import faults_of_files  # noqa: F401
from fault_tools import FAULTS, Fault

ELSEWHERE = {"index/record"}  # needs a faulty reader, not a faulty file: test_records.py


@pytest.fixture(scope="module")
def clean_report(clean_world: Path) -> Report:
    return examine(clean_world)[0]


def test_a_clean_world_raises_nothing(clean_report: Report) -> None:
    loud = [f.line() for f in clean_report.findings if f.severity != "info"]
    assert loud == []
    assert clean_report.exit_code == 0


def test_the_clean_world_is_looked_at_as_a_whole(clean_report: Report) -> None:
    assert set(clean_report.checked) == {key for writer in WRITERS for key in writer.keys}
    assert set(clean_report.checks) == set(CHECKS)
    for seen in clean_report.checked.values():
        assert seen["files"] == seen["decoded"] >= 8
        assert all(seen["parts"].values())


def test_every_check_has_a_planted_fault() -> None:
    assert {fault.check for fault in FAULTS} | ELSEWHERE == set(CHECKS)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(
    fault: Fault, copy_of: Callable[..., Path], diagnose: Callable[..., Report]
) -> None:
    root = copy_of(fault.sources)
    fault.plant(root)
    report = diagnose(root, fault.sources)
    found = [f for f in report.findings if f.check == fault.check and f.severity == fault.severity]
    lines = [f"{f.line()} | {f.where} | {f.fix}" for f in found]
    assert any(all(text in line for text in fault.says) for line in lines), report.findings
    assert all(f.fix and f.found and f.expected for f in report.findings)
    # Nothing else is blamed.
    loud = {f.check for f in report.findings if f.severity != "info"}
    assert loud <= {fault.check, *fault.also}
    assert report.exit_code == (1 if fault.severity == "error" else report.exit_code)
