"""Damaged index files of every source: an error that names file and row, or a harmless read.

A small synthetic world is written once. One index file at a time is damaged, the source is read
with both error policies, and the file is put back. A reader may answer with a `DataError`, or with
records; of these every one must equal the undamaged world's, unless the damage cannot be told from
other data (a number cut short at the very end of a file without a closing line end).
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import shutil
import signal
import warnings
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from fx_d2.data.catalog import read_part
from fx_d2.data.errors import DataError, DataWarning, ReadReport
from fx_d2.data.record import validate_record
from fx_d2.data.sources import SOURCES, get_source
from fx_d2.phantom.world import make_world

SECONDS = 20  # a read of this world takes some milliseconds
MINIMUM = 300  # mutations, over all sources

# The index files a source's reader depends on, below the world's folder.
INDEX = {
    "chexpert": ("chexpert/*/train.csv", "chexpert/*/valid.csv", "chexpert/*/test_labels.csv"),
    "nih14": ("nih14/*.csv", "nih14/*_list.txt"),
    "vindr_cxr": ("vindr-cxr/1.0.0/annotations/image_labels_*.csv",),
    "vindr_local": ("vindr-cxr/1.0.0/annotations/*.csv",),
    "vindr_global": ("vindr-cxr/1.0.0/annotations/image_labels_*.csv",),
    "chexmask_vindr": ("chexmask-*/1.0.0/OriginalResolution/*.csv",),
    "mimic_cxr": tuple(
        f"mimic-cxr-jpg/2.0.0/*-{n}.csv.gz" for n in ("chexpert", "metadata", "split")
    ),
    "cxr_lt": ("cxr-lt-*/cxr-lt-2023/*.csv",),
    "tbx11k": ("TBX11K/annotations/json/TBX11K_train.json", "TBX11K/lists/TBX11K_train.txt"),
    "node21": ("node21/cxr_images/proccessed_data/metadata.csv",),
    "candid_ptx": ("candid_ptx/Pneumothorax_reports.csv",),
    "rsna": (
        "rsna-*/stage_2_train_labels.csv",
        "rsna-*/stage_2_detailed_class_info.csv",
    ),
    "chestx_det": ("chestx_det/*.json",),
    "siim_acr": ("siim-*/stage_2_train.csv", "siim-*/train-rle.csv"),
    "vindr_ribcxr": ("vindr-ribcxr/data/*/*.json",),
    "jsrt": ("jsrt/Clinical_Information/CLNDAT_EN.txt",),
    "mura": ("MURA-v1.1/*.csv",),
    "covid19_seg": ("covid19_seg/structure.csv",),
}
# These have no index: folders and file names say everything.
FOLDERS = {
    "shenzhen": ("ChinaSet_AllFiles/CXR_png", "ChinaSet_AllFiles/mask/mask"),
    "montgomery": ("MontgomerySet/CXR_png", "MontgomerySet/ManualMask/leftMask"),
    "covid_radiography": (
        "COVID-19_Radiography_Dataset/COVID/images",
        "COVID-19_Radiography_Dataset/Normal/masks",
    ),
    "covid_radiography_3": (
        "COVID-19_Radiography_Dataset/Viral Pneumonia/images",
        "COVID-19_Radiography_Dataset/COVID/masks",
    ),
    "covid_qu_ex": (
        "covid-qu-ex/Lung Segmentation Data/Lung Segmentation Data/Train/Normal/lung masks",
        "covid-qu-ex/Infection Segmentation Data/Infection Segmentation Data/Train/COVID-19/images",
    ),
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile") / "world"
    make_world(root, patients=5, seed=3, size_px=64)
    return root


@pytest.fixture(scope="module")
def outcomes():
    return Counter()


# -- damage: bytes of a file -> bytes -----------------------------------------------------------


def truncated(data, rng):
    return data[: rng.randrange(1, max(2, len(data) - 1))]


def emptied(data, rng):
    return b""


def not_utf8(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + b"\xff\xfe\xe9" + data[at:]


def with_nul(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + b"\0" + data[at:]


def garbage(data, rng):
    return rng.randbytes(4096)


def one_long_line(data, rng):
    return b"A1," * (6 << 20)


def without_first_line(data, rng):
    end = b"\r" if b"\n" not in data else b"\n"
    return data.split(end, 1)[-1]


def with_a_row_twice(data, rng):
    end = b"\r" if b"\n" not in data else b"\n"
    lines = data.split(end)
    at = rng.randrange(min(1, len(lines) - 1), len(lines))
    return end.join([*lines[: at + 1], lines[at], *lines[at + 1 :]])


WHOLE = (truncated, truncated, truncated, emptied, not_utf8, not_utf8, with_nul, garbage)
TABLES = (without_first_line, with_a_row_twice, one_long_line)
WORDS = ("abc", "-7", "99999999999999999999", "1e308", "nan", "", "../../../etc/passwd", "0 0")


def cells_of(data):
    """Rows of a table and its separator."""
    text = data.decode()
    separator = "\t" if "\t" in text else ","
    lines = io.StringIO(text.replace("\r", "\n") if "\n" not in text else text)
    return [row for row in csv.reader(lines, delimiter=separator) if row], separator


def table_of(rows, separator):
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


def with_cell(data, rng, word):
    rows, separator = cells_of(data)
    row = rows[rng.randrange(min(1, len(rows) - 1), len(rows))]
    row[rng.randrange(len(row))] = word
    return table_of(rows, separator)


def with_swapped_header(data, rng):
    rows, separator = cells_of(data)
    other = rng.randrange(1, len(rows[0]))
    rows[0][0], rows[0][other] = rows[0][other], rows[0][0]
    return table_of(rows, separator)


def nodes_of(body, path=()):
    """Every path into a JSON body."""
    yield path
    if isinstance(body, (dict, list)):
        for key, value in body.items() if isinstance(body, dict) else enumerate(body):
            yield from nodes_of(value, (*path, key))


def with_node(data, rng, value):
    """A JSON body with one node replaced; nodes near the root come as often as deep ones."""
    body = json.loads(data)
    paths = [path for path in nodes_of(body) if path]
    depth = rng.choice(sorted({len(path) for path in paths}))
    path = rng.choice([path for path in paths if len(path) == depth])
    inner = body
    for key in path[:-1]:
        inner = inner[key]
    if value == "delete":
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return json.dumps(body).encode()


def other_top_level(data, rng):
    body = json.loads(data)
    return json.dumps(list(body) if isinstance(body, dict) else {"items": body}).encode()


def too_deep(data, rng):
    return b"[" * 100_000


VALUES = (None, [], {}, "abc", -7, 1e308, "delete", [[1]], True, float("nan"))


def damages(path):
    """(name, function of data and rng) for a file."""
    found = [(f.__name__, f) for f in WHOLE]
    name = path.name.removesuffix(".gz")
    if name.endswith(".json"):
        found += [(f.__name__, f) for f in (other_top_level, too_deep)]
        for value in VALUES:
            found.append((f"node {value!r}", lambda d, r, v=value: with_node(d, r, v)))
        return found
    found += [(f.__name__, f) for f in TABLES]
    found += [(f"cell {w!r}", lambda d, r, w=w: with_cell(d, r, w)) for w in WORDS for _ in (0, 1)]
    if name.endswith(".csv") and not path.parts[-2].startswith("MURA"):
        found += [("with_swapped_header", with_swapped_header)] * 2
    return found


@contextmanager
def damaged(path, change):
    """The file changed, and restored afterwards."""
    data = path.read_bytes()
    packed = path.suffix == ".gz"
    try:
        changed = change(gzip.decompress(data) if packed else data)
        path.write_bytes(gzip.compress(changed, 1) if packed else changed)
        yield
    finally:
        path.write_bytes(data)


# -- reading and judging ------------------------------------------------------------------------


def too_slow(signum, frame):
    raise TimeoutError(f"reading took more than {SECONDS} s")


def read_all(key, world, on_error):
    """(records by part and id, report); a hang becomes a TimeoutError."""
    source = get_source(key)
    report = ReadReport(on_error=on_error, published_counts=False)
    found = {}
    signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(SECONDS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)
            for part in sorted({p.name for p in source.splits.values()}):
                for record in read_part(key, part, root=world / source.folder, report=report):
                    found[part, record["image_id"]] = record
    finally:
        signal.alarm(0)
    for record in found.values():
        validate_record(record, source)
    return found, report


def same(a, b):
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and np.array_equal(a, b, equal_nan=True)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def claims(record, true):
    """What a record says that the undamaged world's does not, by key.

    What is lost may be absent: no boxes annotated, no mask of a class, a label or a view unknown.
    A box fewer among others, or another label, is a claim.
    """
    found = []
    for name, value in record.items():
        if name == "labels":
            known = ~np.isnan(value)
            differs = "labels" not in true or not same(value[known], true["labels"][known])
        elif name == "masks":
            differs = not all(same(v, true.get("masks", {}).get(k)) for k, v in value.items())
        elif name == "age":
            differs = False  # published tables hold ages up to 414: nothing absurd can be told
        else:
            differs = value is not None and not same(value, true.get(name))
        if differs:
            found.append(name)
    return found


def altered(records, truth):
    """``id: keys`` of the records that claim what the undamaged world's do not."""
    found = {key: claims(r, truth[key]) if key in truth else ["new"] for key, r in records.items()}
    return [f"{'/'.join(key)}: {names}" for key, names in found.items() if names]


def fault_of(error, world):
    """What is wrong with an error message, None if it is as it should be."""
    line = str(error)
    if "\n" in line or len(line) > 2000:
        return f"not one line: {line[:200]}"
    if error.file is None or not Path(error.file).is_relative_to(world):
        return f"names no file: {line}"
    return None if error.expected or error.fix else f"does not say what to do: {line}"


def judge(key, world, truth, outcomes, *, undetectable=0):
    """Read with both policies, count the outcome, and say what is wrong with it."""
    faults = []
    try:
        records, _ = read_all(key, world, "raise")
    except DataError as error:
        failed = error
        faults.append(fault_of(error, world))
        outcomes["error"] += 1
        outcomes["error with a row"] += error.row is not None
    except Exception as error:
        return [f"{type(error).__name__}: {error}"]
    else:
        wrong = altered(records, truth)
        if len(wrong) > undetectable:
            faults.append(f"silently altered {wrong[:3]}")
        outcomes["unharmed" if len(records) == len(truth) and not wrong else "fewer records"] += 1
        return [fault for fault in faults if fault]  # nothing to skip
    try:
        records, report = read_all(key, world, "skip")
    except DataError as error:
        faults.append(fault_of(error, world))
        outcomes["skip: error of the whole file"] += 1
    except Exception as error:
        return [*faults, f"when skipping: {type(error).__name__}: {error}"]
    else:
        wrong = altered(records, truth)
        if len(wrong) > undetectable:
            faults.append(f"when skipping: silently altered {wrong[:3]}")
        if not report.skipped:
            faults.append(f"when skipping: nothing was counted of: {failed}")
        outcomes["skip: the rest is read"] += 1
    return [fault for fault in faults if fault]


# Damage that no reader can tell from other data, by source and damage: records that may differ.
UNTELLABLE = {
    ("chexmask_vindr", "cell ''"): 1,  # landmarks stand in for run lengths that are blank
    ("node21", "with_swapped_header"): 9,  # the unnamed first column holds numbers as x and y do
}


def leeway(key, name):
    """Records that may differ: the last one of a file cut within its last number, or nothing."""
    return UNTELLABLE.get((key, name), int(name == "truncated"))


@pytest.mark.parametrize("key", INDEX)
def test_damaged_index_files(key, world, outcomes):
    truth, _ = read_all(key, world, "raise")
    paths = sorted({path for pattern in INDEX[key] for path in world.glob(pattern)})
    assert truth and paths
    faults = []
    for path in paths:
        for i, (name, change) in enumerate(damages(path)):
            rng = random.Random(f"{key} {path.name} {name} {i}")
            with damaged(path, lambda data, change=change, rng=rng: change(data, rng)):
                found = judge(key, world, truth, outcomes, undetectable=leeway(key, name))
            faults += [f"{path.name}, {name} #{i}: {fault}" for fault in found]
        faults += replaced_by_folder(key, path, world, truth, outcomes)
    assert not faults, "\n".join(faults)
    assert not altered(read_all(key, world, "raise")[0], truth)  # everything was put back


def replaced_by_folder(key, path, world, truth, outcomes):
    aside = path.with_name(path.name + ".aside")
    path.rename(aside)
    try:
        path.mkdir()
        found = judge(key, world, truth, outcomes)
        path.rmdir()
        found += judge(key, world, truth, outcomes)
        return [f"{path.name}, a folder or missing: {fault}" for fault in found]
    finally:
        if path.is_dir():
            path.rmdir()
        aside.rename(path)


@pytest.mark.parametrize("key", FOLDERS)
def test_damaged_folders(key, world, outcomes):
    truth, _ = read_all(key, world, "raise")
    assert truth
    faults = []
    for name in FOLDERS[key]:
        folder = world / name
        files = sorted(folder.iterdir())
        aside = world.parent / "aside"
        folder.rename(aside)
        for what in ("missing", "file", "empty", "fewer", "renamed", "hidden", "subfolder"):
            shutil.copytree(aside, folder)
            first = folder / files[0].name
            if what == "fewer":
                first.unlink()
            elif what == "renamed":
                first.rename(first.with_name("x" + first.name))
            elif what == "hidden":
                (folder / f"._{first.name}").write_bytes(b"\0\5\x16\7")
            elif what == "subfolder":
                first.unlink()
                first.mkdir()
            else:
                shutil.rmtree(folder)
            if what == "file":
                folder.write_bytes(b"not a folder")
            elif what == "empty":
                folder.mkdir()
            faults += [f"{name}, {what}: {f}" for f in judge(key, world, truth, outcomes)]
            if folder.is_file():
                folder.unlink()
            elif folder.exists():
                shutil.rmtree(folder)
        aside.rename(folder)
    assert not faults, "\n".join(faults)
    assert not altered(read_all(key, world, "raise")[0], truth)


def test_every_source_is_damaged():
    assert set(INDEX) | set(FOLDERS) == set(SOURCES)
    assert not set(INDEX) & set(FOLDERS)


def test_there_were_enough_mutations(outcomes, capsys):
    kinds = ("error", "unharmed", "fewer records")
    total = sum(outcomes[kind] for kind in kinds)
    if total == 0:
        pytest.skip("the damaging tests were not selected")
    with capsys.disabled():
        print(f"\n{total} damaged index files: {dict(sorted(outcomes.items()))}")
    assert total >= MINIMUM
    assert outcomes["error"] > 0.6 * total
