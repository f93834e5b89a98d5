"""Which findings make which class of a source positive, and which findings to draw so that a class is.

``TABLES[source][class]`` lists findings; the first one stands for the class when a case is arranged. A finding may
make several classes positive: that is the hierarchy of label sets such as CheXpert's, where edema, consolidation,
pneumonia, lesions and atelectasis are lung opacities too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

Table = Mapping[str, tuple[str, ...]]

NODULES = ("nodule", "mass", "diffuse_nodules")
AIRSPACE = ("consolidation", "pneumonia", "infiltration", "ground_glass")
DEVICES = (
    "central_venous_line",
    "endotracheal_tube",
    "nasogastric_tube",
    "pacemaker",
    "chest_tube",
    "monitoring_leads",
)
FRACTURES = ("rib_fracture", "clavicle_fracture")
TB_ACTIVE = ("tuberculosis_infiltrate", "tuberculosis_cavity", "miliary_tuberculosis")
TB_OLD = ("tuberculosis_scar",)

_CHEXPERT: Table = {
    "Enlarged Cardiomediastinum": ("enlarged_mediastinum", "cardiomegaly"),
    "Cardiomegaly": ("cardiomegaly",),
    "Lung Opacity": ("infiltration", *AIRSPACE, "edema", "atelectasis", *NODULES, *TB_ACTIVE),
    "Lung Lesion": (*NODULES, "tuberculosis_cavity"),
    "Edema": ("edema",),
    "Consolidation": ("consolidation",),
    "Pneumonia": ("pneumonia",),
    "Atelectasis": ("atelectasis",),
    "Pneumothorax": ("pneumothorax",),
    "Pleural Effusion": ("pleural_effusion",),
    "Pleural Other": ("pleural_thickening",),
    "Fracture": FRACTURES,
    "Support Devices": DEVICES,
}
_NIH: Table = {
    "Atelectasis": ("atelectasis",),
    "Cardiomegaly": ("cardiomegaly",),
    "Effusion": ("pleural_effusion",),
    "Infiltration": ("infiltration", "ground_glass", "tuberculosis_infiltrate"),
    "Mass": ("mass",),
    "Nodule": ("nodule", "diffuse_nodules"),
    "Pneumonia": ("pneumonia",),
    "Pneumothorax": ("pneumothorax",),
    "Consolidation": ("consolidation",),
    "Edema": ("edema",),
    "Emphysema": ("emphysema",),
    "Fibrosis": ("fibrosis", "tuberculosis_scar"),
    "Pleural_Thickening": ("pleural_thickening",),
    "Hernia": ("hernia",),
}
_TB: Table = {"Tuberculosis": (*TB_ACTIVE, *TB_OLD)}
_RSNA: Table = {"Lung Opacity": ("pneumonia", "consolidation", "infiltration", "ground_glass")}

TABLES: dict[str, Table] = {
    "chexpert": _CHEXPERT,
    "mimic_cxr": _CHEXPERT,
    "nih14": _NIH,
    "rsna": _RSNA,
    "montgomery": _TB,
    "shenzhen": _TB,
}


@cache
def _inverse(key: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name, findings in TABLES[key].items():
        for finding in dict.fromkeys(findings):
            found.setdefault(finding, []).append(name)
    return {finding: tuple(names) for finding, names in found.items()}


def classes_of(key: str, finding: str) -> tuple[str, ...]:
    """Classes of a source that a finding makes positive, possibly none."""
    return _inverse(key).get(finding, ())


def positive_classes(key: str, findings: Iterable[str]) -> set[str]:
    """Classes of a source that some findings make positive."""
    return {name for finding in findings for name in classes_of(key, finding)}


def representatives(key: str) -> tuple[str, ...]:
    """One finding per class of a source, in the order of its table."""
    return tuple(dict.fromkeys(findings[0] for findings in TABLES[key].values()))
