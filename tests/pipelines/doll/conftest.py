"""A small source and a committee of functions, for the tests of pseudo-masks."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from fx_d2.data import builtin, catalog
from fx_d2.data.sources import SOURCES

sys.path.insert(0, str(Path(__file__).parent))  # for the module beside that is no test


@pytest.fixture
def forget() -> Iterator[None]:
    """What a test registers is gone after it."""
    known, there = set(SOURCES), set(DatasetCatalog.list())
    yield
    for key in set(SOURCES) - known:
        del SOURCES[key]
    for name in set(DatasetCatalog.list()) - there:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    catalog.configure()


@pytest.fixture(scope="session")
def doll_images(tmp_path_factory) -> Path:
    import doll_world

    root = tmp_path_factory.mktemp("doll")
    doll_world.write(root / "doll_toy", 22)
    return root


@pytest.fixture
def toy(doll_images: Path, forget, monkeypatch) -> partial:
    """The registered source ``doll_toy``; what makes its committee of three."""
    import doll_world

    monkeypatch.setenv("DETECTRON2_DATASETS", str(doll_images))
    builtin.register_source(doll_world.SOURCE)
    return partial(doll_world.committee, 3)
