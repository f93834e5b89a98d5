"""What a check reports, and the registry of checks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .examination import Examination

SEVERITIES = ("error", "warning", "info")
REPORT_FORMAT = "fx_d2 doctor 1"


@dataclass(frozen=True)
class Hit:
    """One thing a check noticed; the rest of a :class:`Finding` comes from the check itself.

    Args:
        source: key of the source, or several joined by ``+``.
        found: what is there, with the offending value.
        expected: what belongs there.
        part: published part of the source.
        file: the file it is about.
        where: row of the index, or ``image_id ...``.
        count: how many cases this one line stands for.
        severity, fix: where they differ from the check's own.
        record: (part number, record number) of an image to show in the report.
    """

    source: str
    found: str
    expected: str
    part: str | None = None
    file: str | None = None
    where: str | None = None
    count: int = 1
    severity: str | None = None
    fix: str | None = None
    record: tuple[int, int] | None = None


@dataclass(frozen=True)
class Check:
    """A registered check: its id, how bad a hit is, what it looks at and what to do about a hit."""

    id: str
    severity: str
    what: str
    fix: str
    needs_pixels: bool
    run: Callable[[Examination], Iterator[Hit]]


@dataclass(frozen=True)
class Finding:
    """A line of the report; the fields of :class:`Hit` with the check's own filled in."""

    severity: str
    check: str
    source: str
    part: str | None
    file: str | None
    where: str | None
    found: str
    expected: str
    fix: str
    count: int = 1
    record: tuple[int, int] | None = None

    @classmethod
    def of(cls, check: Check, hit: Hit) -> Finding:
        """``hit`` as a line of the report of ``check``."""
        return cls(
            severity=hit.severity or check.severity,
            check=check.id,
            source=hit.source,
            part=hit.part,
            file=hit.file,
            where=hit.where,
            found=hit.found,
            expected=hit.expected,
            fix=hit.fix or check.fix,
            count=hit.count,
            record=hit.record,
        )

    def line(self) -> str:
        """The finding on one line, as it is printed."""
        place = ", ".join(p for p in (self.file, self.where) if p) or self.part or "all of it"
        return f"[{self.check}] {self.source}: {place}: {self.found}; expected {self.expected}"

    def to_json(self) -> dict[str, Any]:
        """The finding as plain values; which record is shown is of no use outside this process."""
        body = asdict(self)
        del body["record"]
        return body


CHECKS: dict[str, Check] = {}


def check(
    id: str, severity: str, *, what: str, fix: str, needs_pixels: bool = False
) -> Callable[[Callable[[Examination], Iterator[Hit]]], Callable[[Examination], Iterator[Hit]]]:
    """Register a generator of :class:`Hit` as the check ``id``.

    Args:
        id: ``family/name``.
        severity: of a hit, unless the hit says otherwise.
        what: what is looked at, for ``docs/doctor.md``.
        fix: what to do about a hit.
        needs_pixels: the check is skipped when images are not decoded.
    """
    if severity not in SEVERITIES:
        raise ValueError(f"check {id!r}: severity {severity!r} is not one of {SEVERITIES}")

    def register(
        run: Callable[[Examination], Iterator[Hit]],
    ) -> Callable[[Examination], Iterator[Hit]]:
        if id in CHECKS:
            raise ValueError(f"check {id!r} is registered twice")
        CHECKS[id] = Check(id, severity, what, fix, needs_pixels, run)
        return run

    return register


def check_table() -> str:
    """The checks as a Markdown table, as it stands in ``docs/doctor.md``."""
    lines = ["| check | severity | what it finds | what to do |", "|---|---|---|---|"]
    rows = sorted(CHECKS.values(), key=lambda c: c.id)
    lines += [f"| `{c.id}` | {c.severity} | {c.what} | {c.fix} |" for c in rows]
    return "\n".join(lines) + "\n"


@dataclass
class Report:
    """Everything the doctor found.

    Args:
        root: the datasets root.
        findings: worst first.
        checked: per source, what was looked at (``images``, ``decoded``, ``parts`` ...).
        checks: ids of the checks that ran.
        seconds: how long it took.
    """

    root: str
    findings: list[Finding] = field(default_factory=list)
    checked: dict[str, dict[str, Any]] = field(default_factory=dict)
    checks: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def counts(self) -> dict[str, int]:
        """Number of findings per severity."""
        found = Counter(finding.severity for finding in self.findings)
        return {severity: found[severity] for severity in SEVERITIES}

    @property
    def exit_code(self) -> int:
        """0 without errors (warnings are printed, not fatal), else 1."""
        return 1 if self.counts["error"] else 0

    def by_check(self) -> dict[str, list[Finding]]:
        """Findings grouped by check, worst severity first."""
        groups: dict[str, list[Finding]] = {}
        for finding in sorted(self.findings, key=lambda f: SEVERITIES.index(f.severity)):
            groups.setdefault(finding.check, []).append(finding)
        return groups

    def to_json(self) -> dict[str, Any]:
        """The report as plain values."""
        return {
            "format": REPORT_FORMAT,
            "root": self.root,
            "seconds": round(self.seconds, 2),
            "counts": self.counts,
            "checked": self.checked,
            "checks": list(self.checks),
            "findings": [finding.to_json() for finding in self.findings],
        }
