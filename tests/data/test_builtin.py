from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

import make_split
from fx_d2.data import builtin, catalog
from fx_d2.data.errors import DataError, DataWarning, ReadReport
from fx_d2.data.record import PackedRecords
from fx_d2.data.source import Part, Source, carved, official
from fx_d2.data.sources import SOURCES
from fx_d2.data.splits import read_split_file, write_split_file


@pytest.fixture(autouse=True)
def default_settings():
    builtin.configure()
    yield
    builtin.configure()


@pytest.fixture
def datasets(tmp_path, monkeypatch):
    """A world with two sources: 40 Shenzhen images, 60 VinDr-CXR images of one label table."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "PHANTOM.json").write_text("{}")
    images = tmp_path / "ChinaSet_AllFiles" / "CXR_png"
    images.mkdir(parents=True)
    for i in range(40):
        (images / f"CHNCXR_{i:04d}_{i % 2}.png").touch()
    vindr = tmp_path / "vindr-cxr"
    (vindr / "annotations").mkdir(parents=True)
    (vindr / "train").mkdir()
    from fx_d2.data.vocabulary import VINDR_GLOBAL_6, VINDR_LOCAL_22

    columns = [*VINDR_LOCAL_22, *VINDR_GLOBAL_6]
    labels = [",".join(["image_id", "rad_id", *columns])]
    boxes = ["image_id,rad_id,class_name,x_min,y_min,x_max,y_max"]
    for i in range(60):
        (vindr / "train" / f"{i:032x}.dicom").touch()
        labels += [f"{i:032x},R{r}," + ",".join(["0"] * 27 + ["1"]) for r in (1, 2, 3)]
        boxes += [f"{i:032x},R{r},No finding,,,," for r in (1, 2, 3)]
    (vindr / "annotations" / "image_labels_train.csv").write_text("\n".join(labels) + "\n")
    (vindr / "annotations" / "annotations_train.csv").write_text("\n".join(boxes) + "\n")
    return tmp_path


def ids(records):
    return [r["image_id"] for r in records]


def test_every_split_of_every_row_is_registered():
    registered = set(DatasetCatalog.list())
    for source in SOURCES.values():
        for split in source.splits:
            assert f"{source.key}_{split}" in registered or source.key.startswith("toy")


def test_metadata_of_a_dataset():
    meta = MetadataCatalog.get("rsna_train")
    assert (meta.source, meta.tasks, meta.cls_kind) == ("rsna", ("cls", "loc"), "multiclass")
    assert meta.cls_classes[2] == "Lung Opacity" and meta.thing_classes == ["Lung Opacity"]
    assert meta.seg_classes == () and meta.evaluator_type == builtin.EVALUATOR_TYPE
    assert "Shih" in meta.citation and meta.licence


def test_importing_reads_no_file(tmp_path):
    """Registration works where nothing exists, and opens nothing below the datasets' folder."""
    code = (
        "import sys, os; opened = []\n"
        "sys.addaudithook(lambda e, a: opened.append(str(a[0])) if e in ('open', 'os.scandir',"
        " 'os.listdir') else None)\n"
        "import fx_d2.data.builtin\n"
        "bad = [p for p in opened if os.environ['DETECTRON2_DATASETS'] in p]\n"
        "assert not bad, bad\n"
    )
    env = {**__import__("os").environ, "DETECTRON2_DATASETS": str(tmp_path / "nowhere")}
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, env=env)


def test_splits_of_a_part_share_nothing_and_miss_nothing(datasets):
    train, val, test, whole = (
        DatasetCatalog.get(f"shenzhen_{split}") for split in ("train", "val", "test", "all")
    )
    assert isinstance(train, PackedRecords)
    assert (len(train), len(val), len(test)) == (28, 4, 8)
    assert sorted(ids(train) + ids(val) + ids(test)) == ids(whole)
    assert ids(train) == ids(builtin.load_records("shenzhen", "train")), "the same at every call"


def test_sources_of_one_folder_are_cut_identically(datasets):
    for split in ("train", "val"):
        cut = [ids(builtin.load_records(key, split)) for key in ("vindr_cxr", "vindr_local")]
        assert cut[0] == cut[1] and len(cut[0]) in (54, 6)


def test_images_without_a_good_mask_move_nobody_across(datasets):
    """CheXmask leaves images of VinDr-CXR out; those it keeps stay on VinDr-CXR's side."""
    table = datasets / "chexmask-cxr-segmentation-data" / "VinDr-CXR.csv"
    table.parent.mkdir()
    rows = ["image_id,Dice RCA (Mean),Landmarks,Left Lung,Right Lung,Heart,Height,Width"]
    for i in range(5, 60):  # no row for five images, a low score for every fourth other
        rows.append(f"{i:032x},{0.9 if i % 4 else 0.1},,1 4,6 3,9 2,6,6")
    table.write_text("\n".join(rows) + "\n")
    sides = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        for split in ("train", "val"):
            whole = set(ids(builtin.load_records("vindr_cxr", split)))
            sides[split] = set(ids(builtin.load_records("chexmask_vindr", split)))
            assert sides[split] and sides[split] < whole
        (datasets / "vindr-cxr" / "test").mkdir()
        written = catalog.split_ids("chexmask_vindr")
    assert {split: set(written[split]) for split in sides} == sides
    assert len(sides["train"] | sides["val"]) == 42


def test_patients_are_never_split(monkeypatch, datasets, tmp_path):
    def read(request) -> Iterator[dict]:
        for i in range(200):
            yield {
                "file_name": f"{i}.png", "image_id": str(i), "source": "shenzhen", "view": None,
                "patient_id": f"p{i // 5}", "labels": np.zeros(1, dtype=np.float32),
            }  # fmt: skip

    monkeypatch.setattr(catalog, "reader_of", lambda source: read)
    sides = [
        {r["patient_id"] for r in builtin.load_records("shenzhen", s)}
        for s in ("train", "val", "test")
    ]
    assert [len(s) for s in sides] == [28, 4, 8]
    assert not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    words = ["--source", "shenzhen", "--folds", "3", "--out", str(tmp_path / "f")]
    assert make_split.main(words) == 0
    held = []
    for number in (1, 2, 3):
        fold = read_split_file(tmp_path / f"f_fold{number}", "shenzhen")
        train, test = ({int(i) // 5 for i in fold[split]} for split in ("train", "test"))
        assert test and not train & test
        assert [len(fold[split]) for split in ("train", "test")] == [5 * len(train), 5 * len(test)]
        held += test
    assert sorted(held) == list(range(40))


def test_the_folder_is_looked_up_when_it_is_needed(datasets, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    (datasets / "ChinaSet_AllFiles").rename(other / "elsewhere")
    with pytest.raises(
        DataError, match=r"dataset 'NIH Shenzhen' is not there.*DETECTRON2_DATASETS"
    ):
        DatasetCatalog.get("shenzhen_all")
    builtin.set_roots({"shenzhen": str(other / "elsewhere")})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # no world there: figures are compared
        assert len(DatasetCatalog.get("shenzhen_all")) == 40
    builtin.configure()
    assert builtin.source_root("shenzhen") == datasets / "ChinaSet_AllFiles"
    monkeypatch.delenv("DETECTRON2_DATASETS")
    assert str(builtin.source_root("shenzhen")) == "datasets/ChinaSet_AllFiles"
    with pytest.raises(KeyError, match="no source 'shenzen'"):
        builtin.set_roots({"shenzen": "x"})
    with pytest.raises(KeyError, match="no source"):
        builtin.configure(options={"shenzen": {}})
    with pytest.raises(ValueError, match="'raise', 'skip'"):
        builtin.configure(on_error="ignore")


def test_published_figures_are_compared_except_in_a_synthetic_world(datasets):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        builtin.load_records("shenzhen", "all")
    (datasets / "PHANTOM.json").unlink()
    with pytest.warns(DataWarning, match="all/images: found 40, expected 662"):
        builtin.load_records("shenzhen", "all")


def test_bad_records_stop_or_are_counted(datasets):
    (datasets / "ChinaSet_AllFiles/CXR_png/other.png").touch()
    with pytest.raises(DataError, match=r"other\.png"):
        builtin.load_records("shenzhen", "all")
    for on_error in ({"on_error": "skip"}, {}):
        builtin.configure(on_error="raise" if on_error else "skip")
        with pytest.warns(DataWarning, match="skipped 1 x image with an odd name"):
            assert len(builtin.load_records("shenzhen", "all", **on_error)) == 40


def test_options_reach_the_reader(datasets):
    builtin.configure(options={"vindr_cxr": {"min_readers": 4}})
    labels = builtin.load_records("vindr_cxr", "train")[0]["labels"]
    assert labels.max() == 0, "no image has four readers"
    labels = builtin.load_records("vindr_cxr", "train", options={"min_readers": 1})[0]["labels"]
    assert labels[-1] == 1


def test_split_files(datasets, tmp_path, capsys):
    path = tmp_path / "cuts" / "shenzhen.json"
    assert make_split.main(["--source", "shenzhen", "--out", str(path)]) == 0
    assert "shenzhen train: 28 images" in capsys.readouterr().out
    for split in ("train", "val", "test"):
        read_back = builtin.load_records("shenzhen", split, split_file=path)
        assert ids(read_back) == ids(builtin.load_records("shenzhen", split))
    mine = {"train": ["CHNCXR_0003_1"], "fold": ["CHNCXR_0007_1", "CHNCXR_0001_1"]}
    write_split_file(path, "shenzhen", mine)
    builtin.configure(split_files={"shenzhen": str(path)})
    assert ids(DatasetCatalog.get("shenzhen_train")) == ["CHNCXR_0003_1"]
    assert ids(builtin.load_records("shenzhen", "fold")) == ["CHNCXR_0001_1", "CHNCXR_0007_1"]
    with pytest.raises(DataError, match="no split 'val'; expected one of"):
        builtin.load_records("shenzhen", "val")
    write_split_file(path, "shenzhen", {"train": ["CHNCXR_9999_1"]})
    with pytest.raises(DataError, match="1 images of split 'train' are not on disk"):
        builtin.load_records("shenzhen", "train")


def test_a_skipped_record_does_not_hide_that_others_are_missing(datasets, tmp_path):
    (datasets / "ChinaSet_AllFiles/CXR_png/other.png").touch()
    path = tmp_path / "split.json"
    lost = ["CHNCXR_9998_1", "CHNCXR_9999_1"]
    for missing in (lost[:1], lost):
        write_split_file(path, "shenzhen", {"train": ["CHNCXR_0003_1", *missing]})
        load = partial(builtin.load_records, "shenzhen", "train", split_file=path, on_error="skip")
        if len(missing) == 1:  # the skipped file may be the one
            with pytest.warns(DataWarning, match="skipped 1 x"):
                assert ids(load()) == ["CHNCXR_0003_1"]
        else:
            with pytest.raises(DataError, match="2 images of split 'train' are not on disk"):
                load()


def test_a_split_that_contains_others_is_not_written_down(datasets, own_source):
    (datasets / "own").mkdir()
    splits = {"everything": Part("all"), "a": Part("all", 0, 0.5), "b": Part("all", 0.5, 1)}
    own_source(splits=splits, reader=lambda request: map(an_image, range(10)))
    written = catalog.split_ids("own")
    assert list(written) == ["a", "b"]
    assert sorted(written["a"] + written["b"]) == [str(i) for i in range(10)]


def test_folds_hold_every_image_once(datasets, tmp_path, capsys):
    out = tmp_path / "shenzhen.json"
    assert make_split.main(["--source", "shenzhen", "--folds", "5", "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("test: 8 images") == 5
    held = []
    for number in range(1, 6):
        path = out.with_name(f"shenzhen_fold{number}.json")
        train, test = (
            ids(builtin.load_records("shenzhen", split, split_file=path))
            for split in ("train", "test")
        )
        assert len(train) == 32 and not set(train) & set(test)
        held += test
    assert sorted(held) == sorted(ids(builtin.load_records("shenzhen", "all")))
    many = ["--source", "shenzhen", "--folds", "41", "--out", str(out)]
    assert make_split.main(many) == 1
    assert "41 folds of 40 patients" in capsys.readouterr().err


def test_make_split_says_what_is_wrong(datasets, tmp_path, capsys):
    out = ["--out", str(tmp_path / "x.json")]
    assert make_split.main(["--source", "shenzen", *out]) == 2
    assert "Did you mean 'shenzhen'" in capsys.readouterr().err
    assert make_split.main(["--source", "rsna", *out]) == 1
    assert "is not there" in capsys.readouterr().err
    (datasets / "ChinaSet_AllFiles/CXR_png/other.png").touch()
    assert make_split.main(["--source", "shenzhen", "--on-error", "skip", *out]) == 0
    assert "skipped 1 x" in capsys.readouterr().out


def test_unknown_splits_and_empty_results(datasets):
    with pytest.raises(KeyError, match="no split 'trian'; it has"):
        builtin.load_records("shenzhen", "trian")
    for path in (datasets / "ChinaSet_AllFiles/CXR_png").iterdir():
        path.rename(path.with_name("x" + path.name))
    with pytest.warns(DataWarning), pytest.raises(DataError, match="no record in shenzhen all"):
        builtin.load_records("shenzhen", "all", on_error="skip")


@pytest.fixture
def own_source():
    """Register a source for one test; the catalogs and the table are as before afterwards."""
    added = []

    def register(**change):
        fields = {
            "key": "own", "title": "Own", "folder": "own", "reader": lambda request: iter(()),
            "splits": official(train="train"), "tasks": ("cls",), "cls_classes": ("A",),
            "licence": "own", "homepage": "none", "citation": "none", "access": "own",
        }  # fmt: skip
        source = builtin.register_source(Source(**(fields | change)))
        added.append(source)
        return source

    yield register
    for source in added:
        del SOURCES[source.key]
        for split in source.splits:
            DatasetCatalog.remove(f"{source.key}_{split}")
            MetadataCatalog.remove(f"{source.key}_{split}")


def an_image(number, **change):
    return {
        "file_name": f"{number}.png", "image_id": str(number), "source": "own",
        "patient_id": None, "view": None, "labels": np.ones(1, dtype=np.float32),
    } | change  # fmt: skip


def test_a_further_source_with_its_own_reader(datasets, own_source):
    (datasets / "own").mkdir()
    own_source(reader=lambda request: map(an_image, range(20)), splits=carved("all"))
    assert len(DatasetCatalog.get("own_train")) == 14
    with pytest.raises(ValueError, match="'own_train' is registered already"):
        own_source()
    assert "own" in SOURCES


def test_records_of_a_foreign_reader_are_checked(datasets, own_source):
    (datasets / "own").mkdir()
    own_source(reader=lambda request: iter([an_image(1, labels=[1.0])]))
    with pytest.raises(DataError, match=r"float32 array of shape \(1,\)"):
        builtin.load_records("own", "train")


def test_an_image_id_that_comes_twice(datasets, own_source):
    (datasets / "own").mkdir()
    own_source(reader=lambda request: iter([an_image(1), an_image(1), an_image(2)]))
    with pytest.raises(DataError, match="image id '1' comes twice"):
        builtin.load_records("own", "train")
    report = ReadReport(on_error="skip", published_counts=False)
    with pytest.warns(DataWarning, match="image id that comes twice"):
        records = builtin.load_records("own", "train", report=report)
    assert ids(records) == ["1", "2"]


def test_a_reader_that_cannot_be_found(datasets, own_source):
    (datasets / "own").mkdir()
    own_source(reader="no_such_package.reader")
    with pytest.raises(DataError, match="cannot be imported.*PYTHONPATH"):
        builtin.load_records("own", "train")


def test_a_module_without_read(datasets, own_source):
    (datasets / "own").mkdir()
    own_source(reader="json.decoder")
    with pytest.raises(DataError, match=r"no function read\(request\)"):
        builtin.load_records("own", "train")
