"""Damaged, lying and malicious image files: refused in one line, or read to a valid array.

Never a library's own traceback, a hang, memory out of proportion, or a silent replacement.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hostile_images import dicom_files, flipped, intact_files, lies, mutations

from fx_d2.data.errors import DataError
from fx_d2.data.images import image_size, read_image, read_mask_image

# Of Python and NumPy; an intact file of this size takes under 1 MB.
MEMORY_BYTES = 24 << 20
# Against hangs, not slowness: CharLS takes seconds over some damaged JPEG-LS frames.
SECONDS = 60.0


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Every hostile file, written: [(label, path)]."""
    folder = tmp_path_factory.mktemp("hostile")
    rng = random.Random(20_24)
    files = intact_files()
    cases = []
    for name, data in files.items():
        cases += [(f"{name}: {what}", new, body) for what, new, body in mutations(name, data, rng)]
    cases += list(lies(files))
    written = []
    for n, (label, name, body) in enumerate(cases):
        path = folder / f"{n:03d}_{name}"
        path.write_bytes(body)
        written.append((label, path))
    return written


def check_image(loaded, path):
    pixels, facts = loaded.pixels, loaded.facts
    assert pixels.dtype == np.float32
    assert pixels.ndim == 2
    assert pixels.size >= 1
    assert np.isfinite(pixels).all()
    assert pixels.min() >= 0
    assert pixels.max() <= facts.max_value
    assert image_size(path) == pixels.shape


def attempt(reader, path):
    """The outcome of ``reader``: its result, or the DataError; anything else is a failure."""
    start = time.perf_counter()
    tracemalloc.start()
    try:
        return reader(path)
    except DataError as error:
        line = str(error)
        assert str(path) in line, line
        assert "\n" not in line
        assert "To do: " in line or "expected" in line, line
        return error
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MEMORY_BYTES, f"{peak} bytes"
        assert time.perf_counter() - start < SECONDS


def test_every_hostile_file_is_refused_or_valid(hostile, recwarn, capfd):
    """At least 160 damaged files over all formats; most are refused, none gets through wrong."""
    outcomes = Counter()
    for label, path in hostile:
        try:
            loaded = attempt(read_image, path)
            if isinstance(loaded, DataError):
                outcomes["refused"] += 1
            else:
                check_image(loaded, path)
                outcomes["valid"] += 1
            attempt(image_size, path)
            attempt(read_mask_image, path)
        except Exception as exc:
            raise AssertionError(f"{label} ({path.name}): {type(exc).__name__}: {exc}") from exc
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list
    with capfd.disabled():
        print(f"\n{len(hostile)} mutated image files: {dict(outcomes)}")
    assert len(hostile) >= 160
    assert outcomes["refused"] >= 160


def test_cut_files_are_never_filled_up(hostile):
    """A file that misses a fifth of its bytes has lost pixels: no format may hide that."""
    cut = [path for label, path in hostile if "cut to" in label]
    assert len(cut) > 60
    for path in cut:
        with pytest.raises(DataError):
            read_image(path)


def test_intact_files_are_read(tmp_path):
    """The counterpart: what the mutations start from is fine, so a refusal is due to the damage."""
    for name, data in intact_files().items():
        (tmp_path / name).write_bytes(data)
        check_image(read_image(tmp_path / name), tmp_path / name)


@pytest.mark.parametrize("name", ["grey.png", "deep.png", "packed.mha", "palette.png"])
def test_checksummed_pixels_are_never_read_wrong(tmp_path, name):
    """PNG and compressed MHA carry checksums: a flip in the pixels is noticed, every single one."""
    data = intact_files()[name]
    rng = random.Random(5)
    start = data.index(b"IDAT") + 4 if name.endswith("png") else data.index(b"LOCAL\n") + 6
    stop = len(data) - (16 if name.endswith("png") else 0)
    path = tmp_path / name
    for at in rng.sample(range(start, stop), 60):
        path.write_bytes(flipped(data, at, rng))
        with pytest.raises(DataError):
            read_image(path)


PROBE = """
import resource, sys
from fx_d2.data.errors import DataError
from fx_d2.data.images import image_size, read_image
read_image(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
refused = 0
for path in sys.argv[2:]:
    for reader in (read_image, image_size):
        try:
            reader(path)
        except DataError:
            refused += 1
print(refused, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_bombs_cost_no_memory(hostile, tmp_path):
    """Counted by the operating system, so that allocations of the C libraries are included."""
    words = ("100k", "65k", "bomb", "2^31", "100000", "999999999", "4294967295", "4 GB")
    bombs = [str(path) for label, path in hostile if any(word in label for word in words)]
    assert len(bombs) >= 15
    (tmp_path / "a.dcm").write_bytes(dicom_files()["dicom_JPEG2000Lossless"])
    done = subprocess.run(
        [sys.executable, "-c", PROBE, str(tmp_path / "a.dcm"), *bombs],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    refused, grown_kib = map(int, done.stdout.split())
    assert refused >= len(bombs)
    assert grown_kib < 96 << 10, f"{grown_kib >> 10} MiB"
