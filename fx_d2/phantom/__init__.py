"""A synthetic chest X-ray world: anatomy, findings with exact truth, and a look per source.

    rng = np.random.default_rng(0)
    patient = sample_patient(rng)
    names = sample_findings("nih14", rng)
    radiograph = render(patient, names, view="PA", size=(512, 512), rng=rng)
    picture = apply_look(radiograph.image, LOOKS["nih14"], rng)

Everything random comes from the generator handed in: equal state, equal bytes.
"""

from __future__ import annotations

from fx_d2.phantom.cooccurrence import CASE_MIX, CaseMix, sample_findings
from fx_d2.phantom.findings import (
    DISTRACTOR_NAMES,
    FINDING_NAMES,
    FINDINGS,
    Finding,
    FindingKind,
    FindingSpec,
)
from fx_d2.phantom.limb import REGIONS, render_bone
from fx_d2.phantom.look import LOOKS, Look, apply_look
from fx_d2.phantom.patient import PatientSpec, Pose, View, sample_patient, sample_pose
from fx_d2.phantom.render import Radiograph, render

__all__ = [
    "CASE_MIX",
    "DISTRACTOR_NAMES",
    "FINDINGS",
    "FINDING_NAMES",
    "LOOKS",
    "REGIONS",
    "CaseMix",
    "Finding",
    "FindingKind",
    "FindingSpec",
    "Look",
    "PatientSpec",
    "Pose",
    "Radiograph",
    "View",
    "apply_look",
    "render",
    "render_bone",
    "sample_findings",
    "sample_patient",
    "sample_pose",
]
