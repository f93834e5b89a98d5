"""Which findings make which class of a source positive, and which to draw so that a class is.

``TABLES[table][class]`` lists findings; the first one stands for the class when a case is
arranged. A finding may make several classes positive: that is the hierarchy of label sets such as
CheXpert's, where edema, consolidation, pneumonia and lesions are lung opacities too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

Table = Mapping[str, tuple[str, ...]]

TB_ACTIVE = ("tuberculosis_infiltrate", "tuberculosis_cavity")
TB_OLD = ("tuberculosis_fibrotic",)
NODULES = ("nodule", "mass", "lung_tumor", "diffuse_nodules")
_CAVITIES = ("lung_cavity", "tuberculosis_cavity")
_VIRAL = ("viral_pneumonia", "covid_pneumonia")
_OPACITIES = ("consolidation", "pneumonia", "infiltration", "ground_glass", *_VIRAL)
_FRACTURES = ("rib_fracture", "clavicle_fracture")
_DEVICES = ("support_device", "chest_tube")

_CHEXPERT: Table = {  # the five classes that papers average over come first
    "Atelectasis": ("atelectasis",),
    "Cardiomegaly": ("cardiomegaly",),
    "Consolidation": ("consolidation",),
    "Edema": ("edema",),
    "Pleural Effusion": ("pleural_effusion",),
    "Pneumothorax": ("pneumothorax",),
    "Pneumonia": ("pneumonia", *_VIRAL),
    "Lung Opacity": (
        "infiltration", *_OPACITIES, "edema", "atelectasis", *NODULES, *TB_ACTIVE, *_CAVITIES,
    ),
    "Lung Lesion": (*NODULES, *_CAVITIES),
    "Enlarged Cardiomediastinum": ("enlarged_cardiomediastinum", "cardiomegaly"),
    "Fracture": _FRACTURES,
    "Support Devices": _DEVICES,
    "Pleural Other": ("pleural_thickening",),
}  # fmt: skip
_LONG_TAIL: Table = {
    **_CHEXPERT,
    "Calcification of the Aorta": ("aortic_calcification",),
    "Emphysema": ("emphysema", "copd"),
    "Fibrosis": ("fibrosis", "ild", "tuberculosis_fibrotic"),
    "Hernia": ("hernia",),
    "Infiltration": ("infiltration", "tuberculosis_infiltrate"),
    "Mass": ("mass", "lung_tumor"),
    "Nodule": ("nodule", "diffuse_nodules"),
    "Pleural Thickening": ("pleural_thickening",),
    "Pneumomediastinum": ("pneumomediastinum",),
    "Pneumoperitoneum": ("pneumoperitoneum",),
    "Subcutaneous Emphysema": ("subcutaneous_emphysema",),
    "Tortuous Aorta": ("tortuous_aorta", "aortic_enlargement"),
}
_NIH: Table = {
    "Atelectasis": ("atelectasis",),
    "Cardiomegaly": ("cardiomegaly",),
    "Effusion": ("pleural_effusion",),
    "Infiltration": ("infiltration", "ground_glass", "tuberculosis_infiltrate"),
    "Mass": ("mass", "lung_tumor"),
    "Nodule": ("nodule", "diffuse_nodules"),
    "Pneumonia": ("pneumonia", *_VIRAL),
    "Pneumothorax": ("pneumothorax",),
    "Consolidation": ("consolidation",),
    "Edema": ("edema",),
    "Emphysema": ("emphysema", "copd"),
    "Fibrosis": ("fibrosis", "ild", "tuberculosis_fibrotic"),
    "Pleural_Thickening": ("pleural_thickening",),
    "Hernia": ("hernia",),
}
_VINDR_LOCAL: Table = {
    "Aortic enlargement": ("aortic_enlargement", "tortuous_aorta"),
    "Atelectasis": ("atelectasis",),
    "Calcification": ("calcification", "aortic_calcification"),
    "Cardiomegaly": ("cardiomegaly",),
    "Clavicle fracture": ("clavicle_fracture",),
    "Consolidation": ("consolidation", "pneumonia"),
    "Edema": ("edema",),
    "Emphysema": ("emphysema", "copd"),
    "Enlarged PA": ("enlarged_pa",),
    "ILD": ("ild",),
    "Infiltration": ("infiltration", "tuberculosis_infiltrate"),
    "Lung Opacity": ("ground_glass", *_VIRAL),
    "Lung cavity": _CAVITIES,
    "Lung cyst": ("lung_cyst",),
    "Mediastinal shift": ("mediastinal_shift",),
    "Nodule/Mass": NODULES,
    "Pleural effusion": ("pleural_effusion",),
    "Pleural thickening": ("pleural_thickening",),
    "Pneumothorax": ("pneumothorax",),
    "Pulmonary fibrosis": ("fibrosis", "tuberculosis_fibrotic"),
    "Rib fracture": ("rib_fracture",),
    "Other lesion": (
        "other_lesion", "hernia", "pneumoperitoneum", "pneumomediastinum",
        "subcutaneous_emphysema", "enlarged_cardiomediastinum",
    ),
}  # fmt: skip
_VINDR_GLOBAL: Table = {
    "COPD": ("copd",),
    "Lung tumor": ("lung_tumor", "mass"),
    "Pneumonia": ("pneumonia", "consolidation", *_VIRAL),
    "Tuberculosis": (*TB_ACTIVE, *TB_OLD),
    "Other diseases": (
        "cardiomegaly", "pleural_effusion", "pneumothorax", "ild", "fibrosis", "emphysema",
        "aortic_enlargement", "edema", "hernia", "enlarged_pa", "other_lesion",
    ),
}  # fmt: skip
_CHESTX_DET: Table = {
    "Atelectasis": ("atelectasis",),
    "Calcification": ("calcification", "aortic_calcification"),
    "Cardiomegaly": ("cardiomegaly",),
    "Consolidation": ("consolidation", "pneumonia", "infiltration", "ground_glass", *_VIRAL),
    "Diffuse Nodule": ("diffuse_nodules",),
    "Effusion": ("pleural_effusion",),
    "Emphysema": ("emphysema", "copd"),
    "Fibrosis": ("fibrosis", "ild", "tuberculosis_fibrotic"),
    "Fracture": _FRACTURES,
    "Mass": ("mass", "lung_tumor"),
    "Nodule": ("nodule",),
    "Pleural Thickening": ("pleural_thickening",),
    "Pneumothorax": ("pneumothorax",),
}
_TUBERCULOSIS: Table = {"Tuberculosis": (*TB_ACTIVE, *TB_OLD)}

TABLES: dict[str, Table] = {
    "chexpert": _CHEXPERT,
    "mimic_cxr": _CHEXPERT,
    "cxr_lt": _LONG_TAIL,
    "nih14": _NIH,
    "vindr_local": _VINDR_LOCAL,
    "vindr_global": _VINDR_GLOBAL,
    "chestx_det": _CHESTX_DET,
    "rsna": {"Lung Opacity": ("pneumonia", *_OPACITIES)},
    "montgomery": _TUBERCULOSIS,
    "shenzhen": _TUBERCULOSIS,
    "tbx11k": {"ActiveTuberculosis": TB_ACTIVE, "ObsoletePulmonaryTuberculosis": TB_OLD},
    "node21": {"Nodule": ("nodule", "diffuse_nodules")},
    "jsrt": {"Nodule": ("nodule",)},
    "candid_ptx": {"Pneumothorax": ("pneumothorax",)},
    "siim_acr": {"Pneumothorax": ("pneumothorax",)},
}


@cache
def _inverse(table: str) -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for name, findings in TABLES[table].items():
        for finding in dict.fromkeys(findings):
            found.setdefault(finding, []).append(name)
    return {finding: tuple(names) for finding, names in found.items()}


def classes_of(table: str, finding: str) -> tuple[str, ...]:
    """Classes of a table that a finding makes positive, possibly none."""
    return _inverse(table).get(finding, ())


def positive_classes(table: str, findings: Iterable[str]) -> set[str]:
    """Classes of a table that some findings make positive."""
    return {name for finding in findings for name in classes_of(table, finding)}


def representatives(table: str) -> tuple[str, ...]:
    """One finding per class of a table, in its order."""
    return tuple(dict.fromkeys(findings[0] for findings in TABLES[table].values()))
