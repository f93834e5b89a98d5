"""Class lists of the sources, in the order of their heads (paper order where a paper fixes one)."""

from __future__ import annotations

CHEXPERT_14 = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
CHEXPERT_5 = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")

NIH_14 = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
NIH_BOXES_8 = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
)

VINDR_PAPER_6 = (
    "Pleural effusion",  # a local label; the other five are global
    "Lung tumor",
    "Pneumonia",
    "Tuberculosis",
    "Other diseases",
    "No finding",
)
VINDR_GLOBAL_6 = (
    "COPD",
    "Lung tumor",
    "Pneumonia",
    "Tuberculosis",
    "Other diseases",
    "No finding",
)
VINDR_LOCAL_22 = (
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Clavicle fracture",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged PA",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Lung cavity",
    "Lung cyst",
    "Mediastinal shift",
    "Nodule/Mass",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
    "Rib fracture",
    "Other lesion",
)
VINDR_BOXES_14 = (  # the VinBigData challenge's ids 0..13
    "Aortic enlargement",
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "ILD",
    "Infiltration",
    "Lung Opacity",
    "Nodule/Mass",
    "Other lesion",
    "Pleural effusion",
    "Pleural thickening",
    "Pneumothorax",
    "Pulmonary fibrosis",
)

RSNA_3 = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")

CHESTX_DET_13 = (
    "Atelectasis",
    "Calcification",
    "Cardiomegaly",
    "Consolidation",
    "Diffuse Nodule",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Fracture",
    "Mass",
    "Nodule",
    "Pleural Thickening",
    "Pneumothorax",
)

TBX11K_BOXES_2 = ("ActiveTuberculosis", "ObsoletePulmonaryTuberculosis")

CXR_LT_26 = (
    "Atelectasis",
    "Calcification of the Aorta",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Enlarged Cardiomediastinum",
    "Fibrosis",
    "Fracture",
    "Hernia",
    "Infiltration",
    "Lung Lesion",
    "Lung Opacity",
    "Mass",
    "No Finding",
    "Nodule",
    "Pleural Effusion",
    "Pleural Other",
    "Pleural Thickening",
    "Pneumomediastinum",
    "Pneumonia",
    "Pneumoperitoneum",
    "Pneumothorax",
    "Subcutaneous Emphysema",
    "Support Devices",
    "Tortuous Aorta",
)

CHEXMASK_ORGANS_3 = ("Heart", "Left Lung", "Right Lung")
RIBS_20 = (*(f"R{i}" for i in range(1, 11)), *(f"L{i}" for i in range(1, 11)))
LUNGS_2 = ("Left Lung", "Right Lung")
JSRT_5 = ("Left Lung", "Right Lung", "Heart", "Left Clavicle", "Right Clavicle")

COVID_RADIOGRAPHY_4 = ("COVID", "Lung_Opacity", "Normal", "Viral Pneumonia")
COVID_RADIOGRAPHY_3 = ("COVID", "Normal", "Viral Pneumonia")
COVID_QU_EX_3 = ("COVID-19", "Non-COVID", "Normal")
COVID_QU_EX_MASKS = ("Lungs", "COVID-19 Infection")
COVID19_SEG_12 = (
    "Left Lung",
    "Right Lung",
    "Cardiomediastinum",
    "Airways",
    "Ground Glass Opacities",
    "Consolidation",
    "Pneumothorax",
    "Endotracheal Tube",
    "Nosogastric Tube",
    "Central Venous Line",
    "Monitoring Probes",
    "Tubings",
)
