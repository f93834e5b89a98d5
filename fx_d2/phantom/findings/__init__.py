"""Findings: what each one is (`FINDINGS`), and drawing one into a scene."""

from __future__ import annotations

import numpy as np

from fx_d2.phantom.anatomy import Body
from fx_d2.phantom.findings import (
    airspace,
    bone,
    devices,
    interstitial,
    mediastinum,
    nodules,
    pleural,
)
from fx_d2.phantom.findings.base import (
    Finding,
    FindingKind,
    FindingSpec,
    Scene,
    box_of,
    resolve,
    rng_for_finding,
)

FINDINGS: dict[str, FindingKind] = {
    kind.name: kind
    for module in (airspace, interstitial, pleural, nodules, mediastinum, bone, devices)
    for kind in module.KINDS
}
FINDING_NAMES: tuple[str, ...] = tuple(k.name for k in FINDINGS.values() if not k.distractor)
DISTRACTOR_NAMES: tuple[str, ...] = tuple(k.name for k in FINDINGS.values() if k.distractor)

__all__ = [
    "DISTRACTOR_NAMES",
    "FINDINGS",
    "FINDING_NAMES",
    "Finding",
    "FindingKind",
    "FindingSpec",
    "as_spec",
    "draw_finding",
    "plan_findings",
    "shape_finding",
]


def as_spec(finding: FindingSpec | str) -> FindingSpec:
    """Accept a bare name; refuse an unknown one."""
    spec = FindingSpec(finding) if isinstance(finding, str) else finding
    if spec.name not in FINDINGS:
        raise ValueError(f"unknown finding {spec.name!r}; known: {', '.join(sorted(FINDINGS))}")
    return spec


def plan_findings(
    findings: list[FindingSpec], seed: int
) -> list[tuple[FindingSpec, np.random.Generator]]:
    """Resolve every open choice, each finding from its own stream."""
    seen: dict[str, int] = {}
    plan = []
    for spec in findings:
        occurrence = seen.get(spec.name, 0)
        seen[spec.name] = occurrence + 1
        rng = rng_for_finding(seed, spec.name, occurrence)
        plan.append((resolve(spec, FINDINGS[spec.name], rng), rng))
    return plan


def shape_finding(body: Body, spec: FindingSpec) -> None:
    """Let a resolved finding change the body before it is drawn."""
    shape = FINDINGS[spec.name].shape
    if shape is not None:
        shape(body, spec)


def draw_finding(
    scene: Scene, spec: FindingSpec, rng: np.random.Generator, first_instance: int
) -> list[Finding]:
    """Draw a resolved finding and return its truth."""
    kind = FINDINGS[spec.name]
    if kind.frontal_only and scene.view == "LL":
        empty = np.zeros(scene.frame.shape, bool)
        return [_truth(kind, spec, empty, spec.side or "none", first_instance)]
    return [
        _truth(kind, spec, item.mask, item.side, first_instance + k, item.part)
        for k, item in enumerate(kind.draw(scene, spec, rng))
    ]


def _truth(
    kind: FindingKind,
    spec: FindingSpec,
    mask: np.ndarray,
    side: str,
    instance: int,
    part: str = "",
) -> Finding:
    return Finding(
        name=kind.name,
        mask=mask,
        box=box_of(mask),
        laterality=side,
        instance=instance,
        texture=kind.texture,
        severity=float(spec.severity or 0.0),
        distractor=kind.distractor,
        part=part,
    )
