"""Cases of the COVID-19 sources, shared by their writers."""

from __future__ import annotations

import numpy as np

from fx_d2.phantom.cases import Case
from fx_d2.phantom.findings import FindingSpec

INFECTED = ("covid_pneumonia", "ground_glass")  # what an infection mask of COVID-19 covers


def covid_case(rng: np.random.Generator) -> Case:
    """Opacities at both bases."""
    return [FindingSpec("covid_pneumonia", severity=float(rng.uniform(0.35, 1.0)))]


def bacterial_case(rng: np.random.Generator) -> Case:
    """Opacities of another origin: focal, one-sided."""
    names = ("consolidation", "pneumonia", "atelectasis", "pleural_effusion")
    return [FindingSpec(str(rng.choice(names)))]


def viral_case(rng: np.random.Generator) -> Case:
    """Patchy infiltrates on both sides."""
    return [FindingSpec("viral_pneumonia", severity=float(rng.uniform(0.3, 0.9)))]
