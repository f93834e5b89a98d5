"""Every finding changes the picture where its mask says, in the right direction and place."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
import pytest

from fx_d2.phantom import (
    CASE_MIX,
    DISTRACTOR_NAMES,
    FINDING_NAMES,
    FINDINGS,
    LOOKS,
    FindingSpec,
    render,
    sample_findings,
    sample_patient,
)
from fx_d2.phantom.anatomy import heart_width, make_body
from fx_d2.phantom.bones import RIB_NAMES
from fx_d2.phantom.cooccurrence import correlation
from fx_d2.phantom.findings import plan_findings, shape_finding

SIZE = (160, 160)
IMAGE_LEVEL = {"copd"}
NAMES = tuple(FINDINGS)
LOCAL = tuple(n for n in NAMES if n not in IMAGE_LEVEL)


@lru_cache(maxsize=8)
def _well(seed: int):
    patient = sample_patient(np.random.default_rng(seed))
    return render(patient, [], size=SIZE, rng=np.random.default_rng(seed))


@lru_cache(maxsize=200)
def _pair(name: str, seed: int, severity: float = 0.6):
    """The same exposure with and without a finding."""
    patient = sample_patient(np.random.default_rng(seed))
    spec = FindingSpec(name, severity=severity)
    ill = render(patient, [spec], size=SIZE, rng=np.random.default_rng(seed))
    return ill, _well(seed)


def _union(radiograph) -> np.ndarray:
    return np.any([f.mask for f in radiograph.findings], axis=0)


@pytest.mark.parametrize("name", NAMES)
def test_truth_is_consistent(name):
    for seed in range(3):
        ill, _ = _pair(name, seed)
        assert ill.findings and {f.name for f in ill.findings} == {name}
        assert [f.instance for f in ill.findings] == list(range(len(ill.findings)))
        for finding in ill.findings:
            assert finding.mask.dtype == bool and finding.mask.shape == SIZE
            assert finding.laterality in {"left", "right", "both", "none"}
            assert finding.distractor == (name in DISTRACTOR_NAMES)
            if not finding.mask.any():
                assert finding.box is None
                continue
            x0, y0, x1, y1 = finding.box
            assert finding.mask[y0:y1, x0:x1].sum() == finding.mask.sum()
            edges = (
                finding.mask[y0, x0:x1], finding.mask[y1 - 1, x0:x1],
                finding.mask[y0:y1, x0], finding.mask[y0:y1, x1 - 1],
            )  # fmt: skip
            assert all(edge.any() for edge in edges), "the box is not tight"
        if name in IMAGE_LEVEL:
            assert not _union(ill).any()
        else:
            assert _union(ill).any()


@pytest.mark.parametrize("name", LOCAL)
def test_the_change_is_where_the_mask_is(name):
    for seed in range(4):
        ill, well = _pair(name, seed)
        mask = _union(ill)
        change = np.abs(ill.image - well.image)
        near = cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))).astype(bool)
        if FINDINGS[name].shape is None:
            assert change[mask].mean() > 3.0 * change[~near].mean(), (name, seed)
        else:
            assert change[mask].mean() > change[~near].mean(), (name, seed)
        assert change[mask].max() > 0.004, (name, seed)


@pytest.mark.parametrize("name", [n for n in LOCAL if FINDINGS[n].sign != 0])
def test_the_change_has_the_right_sign(name):
    gains = []
    for seed in range(4):
        ill, well = _pair(name, seed)
        gains.append(float((ill.image - well.image)[_union(ill)].mean()))
    sign = FINDINGS[name].sign
    assert sign * np.mean(gains) > 0.0, gains
    assert sum(sign * g > 0 for g in gains) >= 3, gains


def _allowed(radiograph, where: tuple[str, ...]) -> np.ndarray:
    s = radiograph.structures
    lungs = s["left_lung"] | s["right_lung"]
    chest = lungs | s["mediastinum"] | s["heart"]
    wide = cv2.dilate(chest.astype(np.uint8), np.ones((9, 9))).astype(bool)
    bones = np.any([s[n] for n in (*RIB_NAMES, "left_clavicle", "right_clavicle")], axis=0)
    parts = {
        "lung": lungs,
        "pleura": wide,
        "heart": s["heart"],
        "mediastinum": s["mediastinum"] | s["aorta"],
        "abdomen": s["diaphragm"],
        "bone": cv2.dilate(bones.astype(np.uint8), np.ones((7, 7))).astype(bool),
        "body": np.ones(SIZE, bool),
    }
    return np.any([parts[w] for w in where], axis=0)


@pytest.mark.parametrize("name", LOCAL)
def test_masks_stay_in_their_anatomy(name):
    for seed in range(4):
        ill, _ = _pair(name, seed)
        mask = _union(ill)
        inside = (mask & _allowed(ill, FINDINGS[name].where)).sum() / mask.sum()
        assert inside > 0.95, (seed, inside)


@pytest.mark.parametrize("name", ["consolidation", "nodule", "pneumothorax", "pleural_effusion"])
@pytest.mark.parametrize("side", ["left", "right"])
def test_side_is_the_patients(name, side):
    patient = sample_patient(np.random.default_rng(5))
    spec = FindingSpec(name, side=side, severity=0.6)
    radiograph = render(patient, [spec], size=SIZE, rng=np.random.default_rng(5))
    (finding,) = radiograph.findings
    assert finding.laterality == side
    lung = radiograph.structures[f"{side}_lung"]
    assert (finding.mask & lung).sum() > 0.9 * finding.mask.sum()
    centre = np.nonzero(finding.mask)[1].mean()
    spine = np.nonzero(radiograph.structures["spine"])[1].mean()
    assert (centre > spine) == (side == "left")


@pytest.mark.parametrize("zone,low,high", [("upper", 0.0, 0.45), ("lower", 0.5, 1.0)])
def test_zone_is_respected(zone, low, high):
    for seed in range(4):
        patient = sample_patient(np.random.default_rng(seed))
        spec = FindingSpec("nodule", side="right", zone=zone, severity=0.3)
        radiograph = render(patient, [spec], size=SIZE, rng=np.random.default_rng(seed))
        rows = np.flatnonzero(radiograph.structures["right_lung"].any(axis=1))
        centre = np.nonzero(radiograph.findings[0].mask)[0].mean()
        assert low - 0.05 <= (centre - rows[0]) / (rows[-1] - rows[0]) <= high + 0.05


def test_cardiomegaly_widens_the_heart_beyond_half_the_chest():
    for seed in range(6):
        patient = sample_patient(np.random.default_rng(seed))
        ill, well = _pair("cardiomegaly", seed)
        body = make_body(patient, ill.pose)
        ((spec, _),) = plan_findings([FindingSpec("cardiomegaly", severity=0.3)], 1)
        shape_finding(body, spec)
        assert heart_width(body) / (2.0 * float(body.wall_x(0.85 * body.span))) > 0.55
        assert ill.structures["heart"].sum() > 1.1 * well.structures["heart"].sum()
        assert np.array_equal(ill.findings[0].mask, ill.structures["heart"])


def test_pneumothorax_is_apical_dark_and_without_vessels():
    for seed in range(4):
        ill, well = _pair("pneumothorax", seed)
        (finding,) = ill.findings
        lung = ill.structures[f"{finding.laterality}_lung"]
        rows = np.flatnonzero(lung.any(axis=1))
        top = slice(rows[0], rows[0] + len(rows) // 3)
        bottom = slice(rows[-1] - len(rows) // 3, rows[-1])
        assert (
            finding.mask[top].sum() / lung[top].sum()
            > finding.mask[bottom].sum() / lung[bottom].sum()
        )
        assert ill.image[finding.mask].mean() < well.image[finding.mask].mean()


def test_effusion_fills_from_below():
    ill, _ = _pair("pleural_effusion", 2, severity=0.6)
    for finding in ill.findings:
        lung = ill.structures[f"{finding.laterality}_lung"]
        rows = np.flatnonzero(lung.any(axis=1))
        assert np.nonzero(finding.mask)[0].mean() > rows[0] + 0.6 * len(rows)
        assert finding.mask.any(axis=1)[rows[-1] - 2]


def test_severity_scales():
    patient = sample_patient(np.random.default_rng(1))
    for name in ("pleural_effusion", "pneumothorax", "consolidation", "mass"):
        areas = []
        for severity in (0.2, 0.5, 0.9):
            spec = FindingSpec(name, side="right", severity=severity)
            shot = render(patient, [spec], size=SIZE, rng=np.random.default_rng(1))
            areas.append(sum(int(f.mask.sum()) for f in shot.findings))
        assert areas[0] < areas[1] < areas[2], (name, areas)


@pytest.mark.parametrize("name", ["consolidation", "infiltration", "ground_glass"])
def test_opacities_fade_towards_their_rim(name):
    """The change at the rim of the mask is small; in its middle it is not."""
    ratios = []
    for seed in range(6):
        ill, well = _pair(name, seed)
        change = ill.image - well.image
        for finding in ill.findings:
            lung = ill.structures[f"{finding.laterality}_lung"]
            depth = (
                cv2.distanceTransform((~(lung & ~finding.mask)).astype(np.uint8), cv2.DIST_L2, 3)
                * finding.mask
            )
            rim = (depth > 0) & (depth <= 2)
            ratios.append(change[rim].mean() / change[depth > 0.6 * depth.max()].mean())
    assert np.median(ratios) < 0.5 and min(ratios) > 0.0, ratios


def test_findings_do_not_disturb_each_other():
    """A nodule is drawn alike whether or not an effusion follows it in the list."""
    patient = sample_patient(np.random.default_rng(2))
    alone = render(patient, ["nodule"], size=SIZE, rng=np.random.default_rng(3))
    pair = render(patient, ["nodule", "chest_tube"], size=SIZE, rng=np.random.default_rng(3))
    assert np.array_equal(alone.findings[0].mask, pair.findings[0].mask)
    twice = render(patient, ["nodule", "nodule"], size=SIZE, rng=np.random.default_rng(3))
    assert not np.array_equal(twice.findings[0].mask, twice.findings[1].mask)


def test_all_findings_render_laterally():
    patient = sample_patient(np.random.default_rng(2))
    for name in NAMES:
        shot = render(patient, [name], view="LL", size=(96, 96), rng=np.random.default_rng(1))
        assert np.isfinite(shot.image).all()
        if FINDINGS[name].frontal_only:
            assert not _union(shot).any()


def test_unknown_finding_is_refused():
    with pytest.raises(ValueError, match="nodul"):
        render(sample_patient(np.random.default_rng(0)), ["nodul"], rng=np.random.default_rng(0))


def test_case_mix_covers_the_looks_and_only_known_findings():
    assert set(CASE_MIX) == set(LOOKS)
    for mix in CASE_MIX.values():
        assert set(mix.prevalence) <= set(FINDING_NAMES)
        assert 0.0 <= mix.healthy < 1.0


@pytest.mark.parametrize("source", ["nih14", "vindr_cxr", "chestx_det", "siim_acr", "jsrt"])
def test_prevalences_are_met(source):
    rng = np.random.default_rng(0)
    mix, n = CASE_MIX[source], 3000
    draws = [set(sample_findings(source, rng, hard_negatives=False)) for _ in range(n)]
    assert np.mean([not d for d in draws]) == pytest.approx(mix.healthy, abs=0.03)
    for name, share in mix.prevalence.items():
        seen = np.mean([name in d for d in draws])
        assert seen == pytest.approx(share, abs=0.025 + 0.1 * share), name


def test_findings_occur_together_as_their_causes_do():
    names, matrix = correlation()
    assert np.allclose(matrix, matrix.T) and np.linalg.eigvalsh(matrix).min() > 0.0
    i, j, k = (names.index(n) for n in ("edema", "pleural_effusion", "rib_fracture"))
    assert matrix[i, j] > 0.3 > matrix[i, k]
    rng = np.random.default_rng(1)
    draws = [set(sample_findings("chexpert", rng)) for _ in range(3000)]
    edema = np.array(["edema" in d for d in draws])
    effusion = np.array(["pleural_effusion" in d for d in draws])
    assert effusion[edema].mean() > effusion[~edema].mean() + 0.1


def test_hard_negatives_and_forced_findings():
    rng = np.random.default_rng(2)
    draws = [sample_findings("mimic_cxr", rng) for _ in range(400)]
    assert any(set(d) & set(DISTRACTOR_NAMES) for d in draws)
    plain = [sample_findings("mimic_cxr", rng, hard_negatives=False) for _ in range(400)]
    assert not any(set(d) & set(DISTRACTOR_NAMES) for d in plain)
    assert all("hernia" in sample_findings("nih14", rng, include=("hernia",)) for _ in range(20))
    with pytest.raises(ValueError, match="unknown source"):
        sample_findings("nih15", rng)
