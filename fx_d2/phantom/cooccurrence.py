"""How often a finding occurs in a source, and which findings occur together.

Prevalences follow the published counts of each source (see docs/phantom.md); rare ones stay rare.
Findings of one image are drawn from a Gaussian copula whose correlation comes from a few causes
that findings share (heart failure, infection, trauma ...).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from fx_d2.phantom.findings import FINDINGS

# Loadings of findings on shared causes. Squares of one finding's loadings must stay below 1.
_CAUSES: dict[str, dict[str, float]] = {
    "heart failure": {
        "cardiomegaly": 0.62, "edema": 0.72, "pleural_effusion": 0.50, "enlarged_pa": 0.5,
        "atelectasis": 0.2,
    },
    "infection": {
        "pneumonia": 0.6, "consolidation": 0.6, "infiltration": 0.5, "ground_glass": 0.4,
        "pleural_effusion": 0.3, "atelectasis": 0.15,
    },
    "trauma": {
        "pneumothorax": 0.6, "rib_fracture": 0.55, "chest_tube": 0.7, "clavicle_fracture": 0.4,
        "subcutaneous_emphysema": 0.75, "pneumomediastinum": 0.6,
    },
    "intensive care": {
        "support_device": 0.7, "edema": 0.35, "atelectasis": 0.45, "pleural_effusion": 0.4,
        "enlarged_cardiomediastinum": 0.3, "pneumoperitoneum": 0.3, "chest_tube": 0.3,
    },
    "age": {
        "aortic_enlargement": 0.6, "tortuous_aorta": 0.65, "aortic_calcification": 0.65,
        "cardiomegaly": 0.35, "calcification": 0.3, "emphysema": 0.25, "hernia": 0.35,
        "pleural_thickening": 0.2,
    },
    "smoking": {"emphysema": 0.65, "copd": 0.75, "lung_tumor": 0.3, "mass": 0.3, "nodule": 0.2},
    "scarring": {
        "fibrosis": 0.6, "pleural_thickening": 0.55, "ild": 0.6, "calcification": 0.4,
        "tuberculosis_fibrotic": 0.5, "mediastinal_shift": 0.3, "lung_cyst": 0.2,
    },
    "tuberculosis": {
        "tuberculosis_infiltrate": 0.5, "tuberculosis_cavity": 0.5, "tuberculosis_fibrotic": 0.3,
        "diffuse_nodules": 0.3, "lung_cavity": 0.4,
    },
    "tumour": {
        "mass": 0.5, "nodule": 0.45, "lung_tumor": 0.55, "diffuse_nodules": 0.4,
        "enlarged_cardiomediastinum": 0.3, "pleural_effusion": 0.2, "other_lesion": 0.2,
    },
}  # fmt: skip


@dataclass(frozen=True)
class CaseMix:
    """Healthy share and prevalence of each finding over all images of a source."""

    healthy: float
    prevalence: dict[str, float]
    exclusive: bool = False  # one finding at most, as in sources sorted by diagnosis


_NIH = {
    "infiltration": 0.177, "pleural_effusion": 0.119, "atelectasis": 0.103, "nodule": 0.056,
    "mass": 0.052, "pneumothorax": 0.047, "consolidation": 0.042, "pleural_thickening": 0.030,
    "cardiomegaly": 0.025, "emphysema": 0.022, "edema": 0.021, "fibrosis": 0.015,
    "pneumonia": 0.013, "hernia": 0.002, "support_device": 0.12, "tortuous_aorta": 0.02,
}  # fmt: skip
_MIMIC = {
    "support_device": 0.28, "pleural_effusion": 0.24, "atelectasis": 0.20, "cardiomegaly": 0.19,
    "edema": 0.12, "pneumonia": 0.07, "consolidation": 0.05, "pneumothorax": 0.045,
    "infiltration": 0.032, "enlarged_cardiomediastinum": 0.031, "nodule": 0.026, "mass": 0.018,
    "rib_fracture": 0.022, "emphysema": 0.014, "aortic_calcification": 0.015, "hernia": 0.013,
    "tortuous_aorta": 0.012, "pleural_thickening": 0.011, "subcutaneous_emphysema": 0.009,
    "chest_tube": 0.03, "fibrosis": 0.004, "pneumomediastinum": 0.003, "pneumoperitoneum": 0.002,
    "clavicle_fracture": 0.003,
}  # fmt: skip
_CHEXPERT = {
    "support_device": 0.52, "pleural_effusion": 0.385, "edema": 0.234, "atelectasis": 0.15,
    "cardiomegaly": 0.12, "infiltration": 0.12, "pneumothorax": 0.087, "consolidation": 0.066,
    "enlarged_cardiomediastinum": 0.048, "rib_fracture": 0.035, "pneumonia": 0.027,
    "nodule": 0.025, "mass": 0.015, "pleural_thickening": 0.016, "chest_tube": 0.05,
    "clavicle_fracture": 0.005, "subcutaneous_emphysema": 0.01,
}  # fmt: skip
_VINDR = {
    "aortic_enlargement": 0.156, "cardiomegaly": 0.121, "fibrosis": 0.068,
    "pleural_thickening": 0.059, "pleural_effusion": 0.042, "infiltration": 0.03, "nodule": 0.035,
    "other_lesion": 0.03, "calcification": 0.022, "ild": 0.020, "tuberculosis_infiltrate": 0.02,
    "tuberculosis_fibrotic": 0.01, "pneumonia": 0.02, "consolidation": 0.015, "mass": 0.012,
    "lung_tumor": 0.011, "atelectasis": 0.006, "pneumothorax": 0.005, "mediastinal_shift": 0.005,
    "rib_fracture": 0.004, "enlarged_pa": 0.003, "lung_cavity": 0.003, "emphysema": 0.003,
    "copd": 0.002, "clavicle_fracture": 0.001, "lung_cyst": 0.001, "edema": 0.0005,
    "aortic_calcification": 0.01,
}  # fmt: skip
_OTHER_SICK = {
    "consolidation": 0.03, "pleural_effusion": 0.03, "cardiomegaly": 0.025, "nodule": 0.02,
    "atelectasis": 0.015, "emphysema": 0.01, "fibrosis": 0.012, "mass": 0.01,
}  # fmt: skip


def _scaled(table: dict[str, float], factor: float, **changes: float) -> dict[str, float]:
    """A prevalence table times a factor, some rows replaced."""
    return {**{name: factor * value for name, value in table.items()}, **changes}


_TB = {
    "tuberculosis_infiltrate": 0.26, "tuberculosis_cavity": 0.11, "tuberculosis_fibrotic": 0.11,
    "pleural_effusion": 0.07, "pleural_thickening": 0.05, "diffuse_nodules": 0.02,
}  # fmt: skip

CASE_MIX: dict[str, CaseMix] = {
    "nih14": CaseMix(0.538, _NIH),
    "chexpert": CaseMix(0.10, _CHEXPERT),
    "mimic_cxr": CaseMix(0.34, _MIMIC),
    "vindr_cxr": CaseMix(0.707, _VINDR),
    "shenzhen": CaseMix(0.49, _TB),
    "montgomery": CaseMix(0.58, _scaled(_TB, 0.8)),
    "tbx11k": CaseMix(
        0.455,
        _scaled(_OTHER_SICK, 3.0, tuberculosis_infiltrate=0.045, tuberculosis_cavity=0.025,
                tuberculosis_fibrotic=0.02),
    ),
    "node21": CaseMix(0.72, {"nodule": 0.23, "calcification": 0.02, "cardiomegaly": 0.02}),
    "candid_ptx": CaseMix(
        0.55,
        _scaled(_NIH, 0.4, pneumothorax=0.17, chest_tube=0.045, rib_fracture=0.02,
                subcutaneous_emphysema=0.015),
    ),
    "rsna": CaseMix(
        0.33, _scaled(_NIH, 0.9, pneumonia=0.14, consolidation=0.06, infiltration=0.06)
    ),
    "chestx_det": CaseMix(
        0.181,
        {"consolidation": 0.446, "pleural_effusion": 0.392, "fibrosis": 0.138,
         "pleural_thickening": 0.136, "rib_fracture": 0.103, "nodule": 0.103, "atelectasis": 0.082,
         "cardiomegaly": 0.074, "calcification": 0.054, "pneumothorax": 0.051, "emphysema": 0.045,
         "diffuse_nodules": 0.044, "mass": 0.038},
    ),
    "siim_acr": CaseMix(0.52, _scaled(_NIH, 0.6, pneumothorax=0.222, chest_tube=0.03)),
    "vindr_ribcxr": CaseMix(0.8, _scaled(_VINDR, 0.5, rib_fracture=0.02)),
    "jsrt": CaseMix(0.38, {"nodule": 0.62}, exclusive=True),
    "covid_radiography": CaseMix(
        0.48,
        {"covid_pneumonia": 0.171, "viral_pneumonia": 0.064, "consolidation": 0.09,
         "infiltration": 0.10, "pneumonia": 0.09},
        exclusive=True,
    ),
    "covid_qu_ex": CaseMix(
        0.315,
        {"covid_pneumonia": 0.352, "viral_pneumonia": 0.11, "pneumonia": 0.13,
         "infiltration": 0.09},
        exclusive=True,
    ),
    "covid19_seg": CaseMix(
        0.06,
        {"covid_pneumonia": 0.55, "consolidation": 0.32, "ground_glass": 0.30,
         "support_device": 0.22, "pleural_effusion": 0.10},
    ),
}  # fmt: skip
for _alias, _source in {
    "vindr_local": "vindr_cxr",
    "vindr_global": "vindr_cxr",
    "chexmask_vindr": "vindr_cxr",
    "cxr_lt": "mimic_cxr",
    "covid_radiography_3": "covid_radiography",
}.items():
    CASE_MIX[_alias] = CASE_MIX[_source]

# Chance of a look-alike that no label set counts as a finding; leads depend on bedside care.
_HARD_NEGATIVES = {"nipple_shadows": 0.10, "skin_fold": 0.05, "old_granuloma": 0.06}
_LEADS = {"chexpert": 0.35, "mimic_cxr": 0.28, "cxr_lt": 0.28, "covid19_seg": 0.3}


@lru_cache(maxsize=1)
def correlation() -> tuple[tuple[str, ...], np.ndarray]:
    """Finding names and the (N, N) correlation matrix of their latent causes."""
    names = tuple(sorted(name for name, kind in FINDINGS.items() if not kind.distractor))
    loadings = _loadings(names)
    matrix = loadings @ loadings.T
    np.fill_diagonal(matrix, 1.0)
    return names, matrix


def _loadings(names: Iterable[str]) -> np.ndarray:
    return np.array([[cause.get(n, 0.0) for cause in _CAUSES.values()] for n in names])


def sample_findings(
    source_key: str,
    rng: np.random.Generator,
    *,
    include: Iterable[str] = (),
    hard_negatives: bool = True,
) -> list[str]:
    """Draw the findings of one image.

    Args:
        source_key: Key of `CASE_MIX`.
        rng: Generator; a fixed number of draws is consumed.
        include: Findings that must be there; the image is then not healthy.
        hard_negatives: Also draw look-alikes (their names are in `DISTRACTOR_NAMES`).

    Returns:
        Names for `render`, findings in alphabetical order, look-alikes last. Mostly empty for
        population sources.
    """
    if source_key not in CASE_MIX:
        raise ValueError(f"unknown source {source_key!r}; known: {', '.join(sorted(CASE_MIX))}")
    mix = CASE_MIX[source_key]
    names = tuple(sorted(mix.prevalence))
    healthy, rescue = rng.random(2)
    causes = rng.standard_normal(len(_CAUSES))
    own = rng.standard_normal(len(names))
    chance = rng.random(len(_HARD_NEGATIVES) + 1)
    forced = set(include)
    chosen: set[str] = set(forced)
    if forced or healthy >= mix.healthy:
        chosen |= _draw_sick(mix, names, causes, own, rescue, bool(forced))
    if mix.exclusive and len(chosen) > 1:
        chosen = forced or {sorted(chosen)[int(rescue * len(chosen))]}
    extra = []
    if hard_negatives:
        rates = {**_HARD_NEGATIVES, "ecg_leads": _LEADS.get(source_key, 0.03)}
        extra = [name for name, u in zip(rates, chance, strict=True) if u < rates[name]]
    return sorted(chosen) + extra


def _draw_sick(
    mix: CaseMix,
    names: tuple[str, ...],
    causes: np.ndarray,
    own: np.ndarray,
    rescue: float,
    may_be_empty: bool,
) -> set[str]:
    """Threshold correlated normals so that each finding keeps its prevalence among the sick."""
    rate = np.array([min(0.95, mix.prevalence[n] / (1.0 - mix.healthy)) for n in names])
    loading = _loadings(names)
    latent = loading @ causes + own * np.sqrt(1.0 - (loading**2).sum(axis=1))
    # Nobody who is not healthy goes without a finding; lower the rates so that adding one to the
    # otherwise empty cases brings each back to its prevalence.
    lowered = rate * _shrink_factor(tuple(rate.tolist()))
    limit = np.array([NormalDist().inv_cdf(1.0 - r) for r in lowered])
    chosen = {n for n, z, t in zip(names, latent, limit, strict=True) if z > t}
    if not chosen and not may_be_empty:
        share = np.cumsum(rate) / rate.sum()
        chosen = {names[int(np.searchsorted(share, rescue))]}
    return chosen


@lru_cache(maxsize=64)
def _shrink_factor(rates: tuple[float, ...]) -> float:
    """Solve r = c r + (r / sum r) P(none | c) for c, findings taken as independent."""
    rate = np.array(rates)
    low, high = 0.02, 1.0
    for _ in range(40):
        c = 0.5 * (low + high)
        empty = float(np.prod(1.0 - c * rate))
        if c + empty / rate.sum() > 1.0:
            high = c
        else:
            low = c
    return 0.5 * (low + high)
