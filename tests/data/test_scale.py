"""The two largest indexes at their true size: read in seconds, in bounded memory.

Each is read in a process of its own, whose peak memory is compared with the peak after its imports.
Typical on one core: MIMIC-CXR 5.5 s and 400 MB, of which 178 MB are the packed records that stay;
CheXpert 3.2 s, 290 MB and 101 MB.
"""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from fx_d2.data.sources import get_source

MIMIC_IMAGES, MIMIC_STUDIES, MIMIC_PATIENTS = 377_110, 227_835, 65_379
CHEXPERT_IMAGES, CHEXPERT_PATIENTS = 223_414, 64_540

_READ = """
import json, sys, time, warnings
from fx_d2.data.catalog import load_records
warnings.simplefilter("ignore")
def peak_mb():  # not ru_maxrss, which a child process inherits from its parent
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
key, split, root = sys.argv[1:]
before, start = peak_mb(), time.process_time()
records = load_records(key, split, root=root)
print(json.dumps({
    "cpu_seconds": time.process_time() - start, "images": len(records),
    "grown_mb": peak_mb() - before, "packed_mb": records.nbytes / 2**20,
    "first": records[0]["image_id"], "last": records[-1]["image_id"],
    "sum": float(sum(r["labels"][0] == 1 for r in records)),
}))
"""


def read_in_a_process(key, split, root):
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _READ, key, split, str(root)],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    return json.loads(result.stdout.strip().splitlines()[-1])


def cells(rng, rows, columns):
    """Label cells as one text per row, drawn from the four that occur."""
    table = np.array(["", "", "1.0", "0.0", "-1.0"])[rng.integers(0, 5, (rows, columns))]
    return [",".join(row) for row in table]


@pytest.fixture(scope="module")
def mimic(tmp_path_factory):
    """All 377,110 images in the training part; no image files, as no reader looks at them."""
    root, rng = tmp_path_factory.mktemp("mimic"), np.random.default_rng(0)
    (root / "files").mkdir()
    classes = sorted(get_source("mimic_cxr").cls_classes)
    study = np.sort(rng.integers(0, MIMIC_STUDIES, MIMIC_IMAGES))
    subject = 10_000_000 + np.arange(MIMIC_STUDIES) * MIMIC_PATIENTS // MIMIC_STUDIES
    hexes = rng.integers(0, 2**32, (MIMIC_IMAGES, 5))
    split = ["dicom_id,study_id,subject_id,split"]
    metadata = [
        "dicom_id,subject_id,study_id,PerformedProcedureStepDescription,ViewPosition,Rows,Columns,"
        "StudyDate,StudyTime,ProcedureCodeSequence_CodeMeaning"
    ]
    for i in range(MIMIC_IMAGES):
        name = "{:08x}-{:08x}-{:08x}-{:08x}-{:08x}".format(*hexes[i].tolist())
        s = int(study[i])
        split.append(f"{name},{50_000_000 + s},{subject[s]},train")
        metadata.append(
            f"{name},{subject[s]},{50_000_000 + s},CHEST (PA AND LAT),PA,3056,2544,21800506,"
            "213014.531,CHEST (PA AND LAT)"
        )
    labels = [f"subject_id,study_id,{','.join(classes)}"]
    labels += [
        f"{subject[s]},{50_000_000 + s},{row}"
        for s, row in enumerate(cells(rng, MIMIC_STUDIES, len(classes)))
    ]
    for name, lines in (("split", split), ("metadata", metadata), ("chexpert", labels)):
        (root / f"mimic-cxr-2.0.0-{name}.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def chexpert(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("chexpert"), np.random.default_rng(1)
    (root / "train").mkdir()
    classes = get_source("chexpert").cls_classes
    lines = [f"Path,Sex,Age,Frontal/Lateral,AP/PA,{','.join(classes)}"]
    for i, row in enumerate(cells(rng, CHEXPERT_IMAGES, len(classes))):
        patient = i * CHEXPERT_PATIENTS // CHEXPERT_IMAGES + 1
        lines.append(
            f"CheXpert-v1.0-small/train/patient{patient:05d}/study{i % 9 + 1}/view{i}_frontal.jpg,"
            f"Male,61,Frontal,AP,{row}"
        )
    (root / "train.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
@pytest.mark.slow
def test_mimic_cxr_at_its_true_size(mimic):
    found = read_in_a_process("mimic_cxr", "train", mimic)
    print(found)
    assert found["images"] == MIMIC_IMAGES
    assert 0.15 < found["sum"] / MIMIC_IMAGES < 0.25, "labels are read, one in five is positive"
    assert found["cpu_seconds"] < 60
    assert found["grown_mb"] < 700
    assert found["packed_mb"] < 350


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
@pytest.mark.slow
def test_chexpert_at_its_true_size(chexpert):
    found = read_in_a_process("chexpert", "train", chexpert)
    print(found)
    assert found["images"] == CHEXPERT_IMAGES
    assert found["first"] == "patient00001/study1/view0_frontal"
    assert found["last"].startswith("patient64540/")
    assert found["cpu_seconds"] < 60
    assert found["grown_mb"] < 500
    assert found["packed_mb"] < 200
