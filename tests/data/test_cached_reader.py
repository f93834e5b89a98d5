"""Caches in use: by the mapper's reader, and as ``tools/cache_images.py`` builds them."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from fx_d2.data.cache import CachedReader
from fx_d2.data.cache_build import build_cache
from fx_d2.data.catalog import configure
from fx_d2.data.errors import DataError
from fx_d2.data.images import read_image
from fx_d2.data.mapper import FileReader, _reader
from fx_d2.data.sources import get_source


@pytest.fixture
def montgomery_root(tmp_path):
    """The folder of a source, with six images in two folders."""
    rng = np.random.default_rng(0)
    root = tmp_path / "montgomery"
    for n in range(6):
        folder = root / str(n % 2)
        folder.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (120 + 10 * n, 200), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n}.png")
    configure({"montgomery": str(root)})
    yield root
    configure()


def test_a_reader_travels_with_the_folders_of_its_sources(tmp_path, montgomery_root):
    """A spawned worker knows nothing of DATASETS.ROOTS."""
    paths = sorted(montgomery_root.rglob("*.png"))
    folder = tmp_path / "caches" / get_source("montgomery").folder
    build_cache(paths, folder, 64, root=montgomery_root, progress=False)
    record = {"source": "montgomery", "file_name": str(paths[0])}
    reader = CachedReader(tmp_path / "caches")
    expected = reader.read(record).pixels
    packed = pickle.dumps(reader)
    configure()
    copy = pickle.loads(packed)  # noqa: S301 - our own bytes
    np.testing.assert_array_equal(copy.read(record).pixels, expected)


def test_the_mapper_reads_from_the_cache_of_a_source(tmp_path, montgomery_root, caplog):
    paths = sorted(montgomery_root.rglob("*.png"))
    folder = tmp_path / "caches" / get_source("montgomery").folder
    build_cache(paths, folder, 64, root=montgomery_root, progress=False)
    reader = CachedReader(tmp_path / "caches")
    record = {"source": "montgomery", "file_name": str(paths[0])}
    assert min(reader.read(record).pixels.shape) == 64
    other = {"source": "jsrt", "file_name": str(paths[0])}
    for _ in range(2):
        assert reader.read(other).pixels.shape == read_image(paths[0]).pixels.shape
    assert caplog.text.count("jsrt has no cache") == 1
    with pytest.raises(DataError, match="voi"):
        CachedReader(tmp_path / "caches", voi="ignore").read(record)
    with pytest.raises(DataError, match="no such folder"):
        CachedReader(tmp_path / "nowhere")


def test_the_mapper_takes_the_cache_from_the_config(tmp_path):
    assert isinstance(_reader("", "auto"), FileReader)
    (tmp_path / "caches").mkdir()
    reader = _reader(str(tmp_path / "caches"), "ignore")
    assert isinstance(reader, CachedReader)
    assert reader.voi == "ignore"


@pytest.fixture
def tool():
    return pytest.importorskip("cache_images")


def test_the_tool(tmp_path, montgomery_root, tool, monkeypatch, capsys):
    paths = sorted(montgomery_root.rglob("*.png"))

    def load_records(key, split):
        assert (key, split) == ("montgomery", "train")
        return [{"source": key, "file_name": str(path)} for path in paths]

    monkeypatch.setattr(tool, "load_records", load_records)
    command = ["--source", "montgomery", "--split", "train", "--out", str(tmp_path / "out")]
    assert tool.main([*command, "--size", "64", "--workers", "0"]) == 0
    assert "6 built, 0 kept, 0 failed" in capsys.readouterr().out
    record = {"source": "montgomery", "file_name": str(paths[3])}
    assert min(CachedReader(tmp_path / "out").read(record).pixels.shape) == 64
    paths[0].write_text("404")
    assert tool.main([*command, "--size", "64", "--workers", "0"]) == 1
    shown = capsys.readouterr()
    assert "0 built, 5 kept, 1 failed" in shown.out
    assert "not an image" in shown.err


def test_the_tool_explains_wrong_use(tmp_path, tool, capsys):
    out = ["--out", str(tmp_path / "out"), "--size", "64"]
    assert tool.main(["--source", "montgomry", *out]) == 2
    assert "Did you mean 'montgomery'" in capsys.readouterr().err
    assert tool.main(["--source", "montgomery", "--split", "tset", *out]) == 2
    assert "no split 'tset'" in capsys.readouterr().err
    root = ["--root", str(tmp_path / "nowhere")]
    assert tool.main(["--source", "montgomery", *root, *out]) == 2
    assert "is not there" in capsys.readouterr().err
    configure()
