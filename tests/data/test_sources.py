from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from fx_d2.data import readers
from fx_d2.data.catalog import configure, read_part
from fx_d2.data.readers.lookup import check_options, reader_of
from fx_d2.data.source import Part, Source, carved, official, val_from_train
from fx_d2.data.sources import SOURCES, add_source, get_source, pretraining_sources


def a_source(**change):
    fields = {
        "key": "mine", "title": "Mine", "folder": "mine", "reader": "tbx11k",
        "splits": official(train="train"), "tasks": ("cls",), "cls_classes": ("A", "B"),
        "licence": "own", "homepage": "none", "citation": "none", "access": "own",
    }  # fmt: skip
    return Source(**(fields | change))


def test_paper_order_of_the_pretraining_sources():
    assert [s.key for s in pretraining_sources()] == [
        "chexpert", "nih14", "vindr_cxr", "shenzhen", "mimic_cxr", "tbx11k", "node21",
        "candid_ptx", "rsna", "chestx_det", "siim_acr",
    ]  # fmt: skip


def test_heads_of_the_paper():
    """11 classification, 6 localisation and 3 segmentation heads with their widths."""
    rows = pretraining_sources()
    widths = {s.key: len(s.cls_classes) for s in rows if "cls" in s.tasks}
    assert list(widths.values()) == [14, 14, 6, 1, 14, 1, 1, 1, 3, 13, 1]
    assert [s.key for s in rows if "loc" in s.tasks] == [
        "tbx11k", "node21", "candid_ptx", "rsna", "chestx_det", "siim_acr"
    ]  # fmt: skip
    assert [s.key for s in rows if "seg" in s.tasks] == ["candid_ptx", "chestx_det", "siim_acr"]


# Written out from the providers' files and papers: a head's outputs have no names in a checkpoint,
# so two classes that change places would be wrong without any error.
_CHEXPERT = (
    "No Finding, Enlarged Cardiomediastinum, Cardiomegaly, Lung Opacity, Lung Lesion, Edema, "
    "Consolidation, Pneumonia, Atelectasis, Pneumothorax, Pleural Effusion, Pleural Other, "
    "Fracture, Support Devices"
)
_CHESTX_DET = (
    "Atelectasis, Calcification, Cardiomegaly, Consolidation, Diffuse Nodule, Effusion, Emphysema, "
    "Fibrosis, Fracture, Mass, Nodule, Pleural Thickening, Pneumothorax"
)
CLASS_ORDERS = {
    ("chexpert", "cls"): _CHEXPERT,
    ("mimic_cxr", "cls"): _CHEXPERT,
    ("nih14", "cls"): (
        "Atelectasis, Cardiomegaly, Effusion, Infiltration, Mass, Nodule, Pneumonia, Pneumothorax, "
        "Consolidation, Edema, Emphysema, Fibrosis, Pleural_Thickening, Hernia"
    ),
    ("vindr_cxr", "cls"): (
        "Pleural effusion, Lung tumor, Pneumonia, Tuberculosis, Other diseases, No finding"
    ),
    ("vindr_local", "loc"): (
        "Aortic enlargement, Atelectasis, Calcification, Cardiomegaly, Consolidation, ILD, "
        "Infiltration, Lung Opacity, Nodule/Mass, Other lesion, Pleural effusion, "
        "Pleural thickening, Pneumothorax, Pulmonary fibrosis"
    ),
    ("tbx11k", "loc"): "ActiveTuberculosis, ObsoletePulmonaryTuberculosis",
    ("rsna", "cls"): "Normal, No Lung Opacity / Not Normal, Lung Opacity",
    ("chestx_det", "cls"): _CHESTX_DET,
    ("chestx_det", "loc"): _CHESTX_DET,
    ("chestx_det", "seg"): _CHESTX_DET,
    ("chexmask_vindr", "loc"): "Heart, Left Lung, Right Lung",
    ("vindr_ribcxr", "seg"): (
        "R1, R2, R3, R4, R5, R6, R7, R8, R9, R10, L1, L2, L3, L4, L5, L6, L7, L8, L9, L10"
    ),
    ("jsrt", "seg"): "Left Lung, Right Lung, Heart, Left Clavicle, Right Clavicle",
    ("montgomery", "seg"): "Left Lung, Right Lung",
    ("covid_radiography", "cls"): "COVID, Lung_Opacity, Normal, Viral Pneumonia",
    ("covid_radiography_3", "cls"): "COVID, Normal, Viral Pneumonia",
    ("covid_qu_ex", "cls"): "COVID-19, Non-COVID, Normal",
}


@pytest.mark.parametrize(("key", "task"), CLASS_ORDERS)
def test_the_order_of_classes_is_the_published_one(key, task):
    assert ", ".join(SOURCES[key].classes(task)) == CLASS_ORDERS[key, task]


def test_the_long_tail_is_alphabetical_and_keeps_the_classes_of_mimic():
    tail = SOURCES["cxr_lt"].cls_classes
    assert len(tail) == 26 and list(tail) == sorted(tail)
    assert set(SOURCES["mimic_cxr"].cls_classes) < set(tail)


def test_every_other_source_of_the_project_is_there():
    expected = {
        "vindr_local", "vindr_global", "chexmask_vindr", "vindr_ribcxr", "montgomery", "jsrt",
        "covid_radiography", "covid_qu_ex", "cxr_lt", "mura", "covid19_seg",
    }  # fmt: skip
    assert expected <= set(SOURCES)


@pytest.mark.parametrize("key", SOURCES)
def test_each_row_is_complete(key):
    source = SOURCES[key]
    assert source.key == key and key.isidentifier()
    for name in ("title", "folder", "licence", "homepage", "citation", "access"):
        assert getattr(source, name).strip()
    assert source.tasks and source.expected and "train" in source.splits
    assert callable(reader_of(source))
    parts = {part.name for part in source.splits.values()}
    for figure, value in source.expected.items():
        assert figure.split("/")[0] in parts, "a figure of a part no split uses is never compared"
        assert value > 0
    for other in source.overlaps:
        assert other in SOURCES and other != key
    for subset in source.cls_subsets.values():
        assert set(subset) <= set(source.cls_classes)


def asked_for(module: str) -> set[str]:
    """The options that a reader's code looks up, itself or through the filter of views."""
    code = (Path(readers.__path__[0]) / f"{module}.py").read_text("utf-8")
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    names = {ast.unparse(c.args[0]) for c in calls if ast.unparse(c.func).endswith(".option")}
    found = {ast.literal_eval(name) for name in names}
    return found | {"views" for c in calls if ast.unparse(c.func) == "view_filter"}


def test_each_reader_names_the_options_it_looks_up():
    files = Path(readers.__path__[0]).glob("*.py")
    found = {file.stem for file in files if "\ndef read(" in file.read_text("utf-8")}
    assert {source.reader for source in SOURCES.values()} <= found
    for name in found:
        module = importlib.import_module(f"{readers.__name__}.{name}")
        assert asked_for(name) == set(getattr(module, "OPTIONS", ())), name
    for source in SOURCES.values():
        check_options(replace(source, options={}), source.options)
        if source.frontal_views:
            check_options(source, ["views"])


def test_an_option_that_a_reader_does_not_know_is_refused(tmp_path, monkeypatch):
    line = (
        "OPTIONS.vindr_local: the reader 'vindr' has no option 'fuse_iuo'. Did you mean 'fuse_iou'"
    )
    with pytest.raises(ValueError, match=re.escape(line)) as caught:
        list(read_part("vindr_local", "train", root=tmp_path, options={"fuse_iuo": 0.4}))
    assert "min_readers, fuse_iou" in str(caught.value)
    with pytest.raises(ValueError, match=re.escape(line)):
        configure(options={"vindr_local": {"fuse_iou": 0.4, "fuse_iuo": 0.4}})
    with pytest.raises(ValueError, match="has no option 'views'. Options: none"):
        check_options(SOURCES["rsna"], ["views"])
    # From elsewhere: refused where the module says what it takes.
    check_options(a_source(reader=lambda request: iter(())), ["speed"])
    for name, text in (("open_reader", ""), ("closed_reader", "OPTIONS = ('sped',)\n")):
        (tmp_path / f"{name}.py").write_text(f"{text}def read(request):\n    yield\n")
    monkeypatch.syspath_prepend(tmp_path)
    check_options(a_source(reader="open_reader"), ["speed"])
    check_options(a_source(reader="closed_reader", options={"own": 1}), ["own", "sped"])
    with pytest.raises(ValueError, match="'speed'. Did you mean 'sped'"):
        check_options(a_source(reader="closed_reader"), ["speed"])


def test_the_validation_share_of_nih_is_that_of_the_paper():
    """11,212 of the 86,524 images of the official list."""
    part = SOURCES["nih14"].splits["val"]
    assert part.high == 1.0 and abs((1 - part.low) - 11_212 / 86_524) < 0.001


@pytest.mark.parametrize("key", SOURCES)
def test_splits_of_a_part_do_not_overlap(key):
    """Train, val and test of a row share no patient: their shares of a part are disjoint."""
    by_part: dict[str, list[Part]] = {}
    for split, part in SOURCES[key].splits.items():
        if split not in ("all", "trainval"):
            by_part.setdefault(part.name, []).append(part)
    for shares in by_part.values():
        shares.sort(key=lambda part: part.low)
        assert all(a.high <= b.low for a, b in zip(shares, shares[1:], strict=False))


def test_official_val_of_tbx11k_is_what_the_paper_tests_on():
    assert get_source("tbx11k").splits["test"] == Part("TBX11K_val")


def test_shares():
    assert carved("all")["train"] == Part("all", 0.0, 0.7)
    assert carved("all")["val"].high == carved("all")["test"].low
    assert val_from_train("a", "b", share=0.25)["val"] == Part("a", 0.75, 1.0)
    assert val_from_train("a", "b")["trainval"] == Part("a")


def test_an_unknown_key_is_answered_with_the_nearest():
    with pytest.raises(KeyError, match="Did you mean 'chexpert'"):
        get_source("chexprt")
    with pytest.raises(KeyError, match="Known: chexpert, nih14"):
        get_source("zzz")


def test_a_key_can_be_taken_once():
    with pytest.raises(ValueError, match="exists already"):
        add_source(a_source(key="rsna"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ("cls", "detect")}, "'detect' is not one of"),
        ({"tasks": ("loc",)}, "task 'loc' has no classes"),
        ({"extra_tasks": ("seg",)}, "task 'seg' has no classes"),
        ({"cls_kind": "softmax"}, "cls_kind 'softmax'"),
        ({"cls_classes": ("A", "A")}, "stands twice"),
    ],
)
def test_a_row_that_cannot_work_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        a_source(**change)


def test_tasks_and_classes_of_a_row():
    source = replace(a_source(), extra_tasks=("seg",), seg_classes=("Lung",))
    assert source.all_tasks() == ("cls", "seg")
    assert source.classes("seg") == ("Lung",) and source.classes("cls") == ("A", "B")


def test_the_table_needs_no_torch():
    """A process that only wants the rows does not wait for torch (run without the package root)."""
    code = (
        "import sys, types, pathlib; root = pathlib.Path(sys.argv[1]);"
        "package = types.ModuleType('fx_d2'); package.__path__ = [str(root / 'fx_d2')];"
        "sys.modules['fx_d2'] = package;"
        "import fx_d2.data.sources, fx_d2.data.splits;"
        "assert not {'torch', 'detectron2', 'pandas', 'cv2'} & set(sys.modules)"
    )
    import fx_d2

    root = str(__import__("pathlib").Path(fx_d2.__file__).parents[1])
    subprocess.run([sys.executable, "-c", code, root], check=True)
