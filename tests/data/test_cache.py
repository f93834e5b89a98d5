"""The image cache: what comes back, resuming, staleness, damage, speed, the mapper's view of it."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from PIL import Image

from fx_d2.data import cache as cache_module
from fx_d2.data.cache import (
    INDEX_NAME,
    RECORD,
    CacheSettings,
    ImageCache,
    read_records,
    shard_name,
)
from fx_d2.data.cache_build import build_cache, pack, shrink
from fx_d2.data.errors import DataError
from fx_d2.data.formats.contract import ImageFacts, LoadedImage
from fx_d2.data.images import read_image
from fx_d2.data.intensity import normalise


def smooth(height, width, top, seed=0):
    noise = np.random.default_rng(seed).normal(size=(height, width)).astype(np.float32)
    blurred = cv2.GaussianBlur(noise, (0, 0), 6)
    blurred -= blurred.min()
    return np.rint(blurred / blurred.max() * top)


def build(*args, **kwargs):
    return build_cache(*args, progress=False, **kwargs)


@pytest.fixture
def images(tmp_path):
    """Six files of both depths in two folders."""
    paths = []
    for n in range(6):
        folder = tmp_path / "images" / str(n % 2)
        folder.mkdir(parents=True, exist_ok=True)
        dtype, top = (np.uint8, 255) if n % 3 else (np.uint16, 65535)
        pixels = smooth(120 + 10 * n, 200, top, n).astype(dtype)
        Image.fromarray(pixels).save(folder / f"{n}.png")
        paths.append(folder / f"{n}.png")
    return paths


def test_a_bar_while_there_is_something_to_do(tmp_path, images, capfd):
    build_cache(images, tmp_path / "cache", 64, progress=True)
    assert "6/6" in capfd.readouterr().err
    build_cache(images, tmp_path / "cache", 64, progress=True)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("side, expected", [("short", (64, 107)), ("long", (38, 64))])
def test_the_smaller_copy_is_the_averaged_image(tmp_path, images, side, expected):
    report = build(images, tmp_path / "cache", 64, side=side)
    assert (report.n_built, report.n_kept, report.failed) == (6, 0, [])
    cache = ImageCache.open(tmp_path / "cache")
    assert len(cache) == 6
    for path in images:
        direct, cached = read_image(path), cache.get(path)
        assert cached.facts == direct.facts
        assert (cached.facts.height, cached.facts.width) == direct.pixels.shape
        assert cached.pixels.dtype == np.float32
        size = cached.pixels.shape[::-1]
        wanted = cv2.resize(direct.pixels, size, interpolation=cv2.INTER_AREA)
        assert np.abs(cached.pixels - wanted).max() <= 0.5
    assert cache.get(images[0]).pixels.shape == expected


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_small_images_come_back_exactly(bits):
    top = 2**bits - 1
    pixels = smooth(40, 50, top).astype(np.float32)
    facts = ImageFacts("dicom", bits, float(top), 40, 50, mode="uint16")
    stored, scale = pack(LoadedImage(pixels, facts), CacheSettings(64))
    assert stored.dtype.itemsize == (1 if bits == 8 else 2)
    np.testing.assert_array_equal(np.divide(stored, np.float32(scale), dtype=np.float32), pixels)


@pytest.mark.parametrize("top", [1.0, 0.003, 2047.5, 1e6])
def test_odd_ranges_use_all_16_bits(top):
    pixels = (smooth(40, 50, 65535) / 65535 * top).astype(np.float32)
    facts = ImageFacts("mha", 32, top, 40, 50, mode="float32")
    stored, scale = pack(LoadedImage(pixels, facts), CacheSettings(64))
    np.testing.assert_allclose(stored / scale, pixels, atol=top / 30_000)


def test_shrink_never_enlarges():
    pixels = np.ones((10, 300), np.float32)
    assert shrink(pixels, 10, "short") is pixels
    assert shrink(pixels, 9, "short").shape == (9, 270)
    assert shrink(pixels, 30, "long").shape == (1, 30)


def test_normalisation_hardly_differs_from_the_original(tmp_path, images):
    build(images, tmp_path / "cache", 64)
    cache = ImageCache.open(tmp_path / "cache")
    for path in images:
        small = normalise(cache.get(path))
        direct = normalise(read_image(path))
        wanted = cv2.resize(direct, small.shape[::-1], interpolation=cv2.INTER_AREA)
        assert np.abs(small - wanted).mean() < 0.01


def test_a_second_run_keeps_what_is_fresh(tmp_path, images):
    build(images[:4], tmp_path / "cache", 64, root=tmp_path)
    before = (tmp_path / "cache" / shard_name(0)).read_bytes()
    report = build(images + images, tmp_path / "cache", 64)
    assert (report.n_built, report.n_kept) == (2, 4)
    assert (tmp_path / "cache" / shard_name(0)).read_bytes().startswith(before)


def test_a_changed_file_is_refused_and_then_renewed(tmp_path, images):
    build(images, tmp_path / "cache", 64)
    Image.fromarray(np.full((99, 99), 7, np.uint8)).save(images[1])
    with pytest.raises(DataError, match=r"1\.png.*changed since it was cached.*cache_images") as e:
        ImageCache.open(tmp_path / "cache").get(images[1])
    assert "\n" not in str(e.value)
    report = build(images, tmp_path / "cache", 64)
    assert (report.n_built, report.n_kept) == (1, 5)
    cache = ImageCache.open(tmp_path / "cache")
    assert len(cache) == 6
    assert cache.get(images[1]).pixels.max() == 7


def test_a_changed_file_of_the_same_size_is_refused(tmp_path):
    path = tmp_path / "a.bmp"
    Image.fromarray(np.zeros((50, 50), np.uint8)).save(path)
    build([path], tmp_path / "cache", 64)
    Image.fromarray(np.ones((50, 50), np.uint8)).save(path)
    os.utime(path, (1, 1))
    cache = ImageCache.open(tmp_path / "cache")
    for _ in range(2):
        with pytest.raises(DataError, match="changed"):
            cache.get(path)
    assert build([path], tmp_path / "cache", 64).n_built == 1
    assert ImageCache.open(tmp_path / "cache").get(path).pixels.max() == 1


def test_a_touched_file_is_still_the_same(tmp_path, images):
    build(images, tmp_path / "cache", 64)
    os.utime(images[0], (1, 1))
    cache = ImageCache.open(tmp_path / "cache")
    assert cache.get(images[0]).pixels.shape == cache.get(images[0]).pixels.shape == (64, 107)


def test_moved_and_missing_originals(tmp_path, images):
    build(images, tmp_path / "cache", 64, root=tmp_path / "images")
    os.rename(tmp_path / "images", tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / "0" / "0.png"
    cache = ImageCache.open(tmp_path / "cache", root=tmp_path / "elsewhere")
    assert cache.get(moved).facts.bits == 16
    with pytest.raises(DataError, match="cannot be read"):
        ImageCache.open(tmp_path / "cache").get(images[0])
    offline = ImageCache.open(tmp_path / "cache", check_sources=False)
    assert offline.get(images[0]).facts.bits == 16


def test_other_settings_are_refused(tmp_path, images):
    build(images, tmp_path / "cache", 64)
    with pytest.raises(DataError, match="voi auto.*expected voi ignore"):
        ImageCache.open(tmp_path / "cache", voi="ignore")
    with pytest.raises(DataError, match="size_px 64.*expected size_px 512"):
        ImageCache.open(tmp_path / "cache", size_px=512)
    with pytest.raises(DataError, match="other settings"):
        build(images, tmp_path / "cache", 65)


def test_unknown_image_and_no_cache(tmp_path, images):
    build(images[1:], tmp_path / "cache", 64, root=tmp_path)
    cache = ImageCache.open(tmp_path / "cache")
    assert images[1] in cache
    assert images[0] not in cache
    with pytest.raises(DataError, match="not in the cache.*cache_images"):
        cache.get(images[0])
    with pytest.raises(DataError, match="no image cache in this folder"):
        ImageCache.open(tmp_path)


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_images_are_reported_and_the_rest_is_cached(tmp_path, images, workers):
    images[2].write_bytes(images[2].read_bytes()[:-50])
    images[3].write_text("404")
    report = build(images, tmp_path / "cache", 64, workers=workers)
    assert report.summary() == "4 built, 0 kept, 2 failed"
    assert sorted(os.path.basename(e.file) for e in report.failed) == ["2.png", "3.png"]
    cache = ImageCache.open(tmp_path / "cache")
    for n, path in enumerate(images):
        assert (path in cache) is (n not in (2, 3))
        if path in cache:
            wanted = shrink(read_image(path).pixels, 64, "short")
            np.testing.assert_allclose(cache.get(path).pixels, wanted, atol=0.5)


def test_several_shards(tmp_path, images):
    build(images, tmp_path / "cache", 64, shard_bytes=8000)
    assert (tmp_path / "cache" / shard_name(2)).exists()
    cache = ImageCache.open(tmp_path / "cache")
    assert all(cache.get(path).facts.width == 200 for path in images)


KILLED = """
import os, sys
from fx_d2.data import cache_build
seen = 0
original = cache_build._decode
def decode(path, settings):
    global seen
    seen += 1
    if seen == 4:
        os.kill(os.getpid(), 9)
    return original(path, settings)
cache_build._decode = decode
cache_build._FLUSH_IMAGES = 2
cache_build.build_cache(sys.argv[2:], sys.argv[1], 64, progress=False)
"""


def test_a_killed_run_continues(tmp_path, images):
    folder = tmp_path / "cache"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), *map(str, images)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    with open(folder / INDEX_NAME, "ab") as file:
        file.write(b"half a record")
    assert len(ImageCache.open(folder)) == 2
    report = build(images, folder, 64)
    assert (report.n_built, report.n_kept) == (4, 2)
    cache = ImageCache.open(folder)
    for path in images:
        np.testing.assert_allclose(
            cache.get(path).pixels,
            shrink(read_image(path).pixels, 64, "short"),
            atol=0.5,
        )
    assert not list(folder.glob("*.tmp"))


def test_one_builder_at_a_time(tmp_path, images):
    import fcntl

    build(images[:1], tmp_path / "cache", 64)
    with open(tmp_path / "cache" / "lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process"):
            build(images, tmp_path / "cache", 64)


def test_damaged_pixels_are_refused(tmp_path, images):
    build(images, tmp_path / "cache", 64)
    shard = tmp_path / "cache" / shard_name(0)
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DataError, match="checksum is wrong.*delete the folder"):
        ImageCache.open(tmp_path / "cache").get(images[0])
    shard.write_bytes(data[:-100])
    with pytest.raises(DataError, match="outside its shard"):
        ImageCache.open(tmp_path / "cache").get(images[-1])
    shard.unlink()
    with pytest.raises(DataError, match="cannot be opened"):
        ImageCache.open(tmp_path / "cache").get(images[0])


def test_every_flip_in_the_index_is_noticed(tmp_path, images):
    build(images[:1], tmp_path / "cache", 64)
    index = tmp_path / "cache" / INDEX_NAME
    data = index.read_bytes()
    assert len(data) == RECORD.itemsize
    for at in range(len(data)):
        index.write_bytes(data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :])
        with pytest.raises(DataError, match=r"index\.bin: record 0 of 1 is damaged"):
            ImageCache.open(tmp_path / "cache")


@pytest.mark.parametrize(
    "header",
    ["", "{", "[]", "null", '{"format": "other"}', '{"format": "fx_d2 image cache", "version": 9}'],
)
def test_damaged_headers(tmp_path, images, header):
    build(images[:1], tmp_path / "cache", 64)
    path = tmp_path / "cache" / "cache.json"
    good = json.loads(path.read_text())
    for text in (header, json.dumps({**good, "side": "up"}), json.dumps({**good, "more": 1})):
        path.write_text(text)
        with pytest.raises(DataError, match=r"cache\.json.*not the header"):
            ImageCache.open(tmp_path / "cache")


def read_in_worker(cache, path, queue):
    queue.put(float(cache.get(path).pixels.sum()))


def test_a_cache_travels_to_loader_workers(tmp_path, images):
    build(images, tmp_path / "cache", 64)
    cache = ImageCache.open(tmp_path / "cache")
    expected = float(cache.get(images[0]).pixels.sum())
    copy = pickle.loads(pickle.dumps(cache))  # noqa: S301 - our own bytes
    assert float(copy.get(images[0]).pixels.sum()) == expected
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    worker = context.Process(target=read_in_worker, args=(cache, images[0], queue))
    worker.start()
    assert queue.get(timeout=60) == expected
    worker.join()


def test_a_large_index_opens_fast_and_small(tmp_path, monkeypatch):
    """377,110 images, as many as the largest source: an array, not objects."""
    n = 377_110
    records = np.zeros(n, dtype=RECORD)
    rng = np.random.default_rng(0)
    keys = rng.integers(1, 256, (n, 16), dtype=np.uint8)
    records["key"] = keys.view("S16")[:, 0]
    records["record_crc"] = cache_module.record_crcs(records)
    (tmp_path / INDEX_NAME).write_bytes(records.tobytes())
    start = time.perf_counter()
    cache = ImageCache(tmp_path, CacheSettings(64))
    seconds = time.perf_counter() - start
    assert len(cache) == n
    assert cache._records.nbytes < 40 << 20
    assert seconds < 10
    assert len(read_records(tmp_path)) == n


def test_cached_reading_is_at_least_5_times_direct_reading(tmp_path):
    pytest.importorskip("pydicom")
    from pydicom import uid
    from pydicom.dataset import Dataset, FileMetaDataset

    pixels = smooth(2500, 2048, 4000).astype(np.uint16)
    pixels += np.random.default_rng(0).integers(0, 64, pixels.shape, dtype=np.uint16)
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = uid.UID("1.2.840.10008.5.1.4.1.1.7")
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = uid.UID("1.2.3")
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME1"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 12, 11, 0
    ds.PixelData = pixels.tobytes()
    ds.save_as(tmp_path / "plain.dcm", enforce_file_format=True)
    ds.compress(uid.JPEG2000Lossless, generate_instance_uid=False)
    ds.save_as(tmp_path / "j2k.dcm", enforce_file_format=True)
    paths = [tmp_path / "plain.dcm", tmp_path / "j2k.dcm"]
    build(paths, tmp_path / "cache", 512)
    cache = ImageCache.open(tmp_path / "cache")
    for path in paths:
        direct = shortest(lambda path=path: read_image(path), 2)
        cached = shortest(lambda path=path: cache.get(path), 20)
        print(f"{path.name}: direct {direct * 1e3:.2f} ms, cached {cached * 1e3:.2f} ms")
        assert direct > 5 * cached


def shortest(action, n_times):
    times = []
    for _ in range(n_times):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return min(times)
