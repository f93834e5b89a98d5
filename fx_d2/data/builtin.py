"""Registers ``<source>_<split>`` for every row of the source table in Detectron2's catalogs.

Importing this module reads no file: the catalog holds a function per dataset, and folders are
looked up when it is called.
"""

from __future__ import annotations

from functools import partial

from detectron2.data import DatasetCatalog, MetadataCatalog

from .catalog import (
    configure,
    datasets_root,
    load_records,
    read_part,
    set_roots,
    source_root,
)
from .source import Source
from .sources import SOURCES, add_source

__all__ = [
    "EVALUATOR_TYPE",
    "configure",
    "dataset_name",
    "datasets_root",
    "load_records",
    "read_part",
    "register_source",
    "set_roots",
    "source_root",
]

EVALUATOR_TYPE = "fx_d2"


def dataset_name(key: str, split: str) -> str:
    """The registered name of a split."""
    return f"{key}_{split}"


def _register_splits(source: Source) -> None:
    for split in source.splits:
        name = dataset_name(source.key, split)
        DatasetCatalog.register(name, partial(load_records, source.key, split))
        MetadataCatalog.get(name).set(
            source=source.key,
            split=split,
            tasks=source.tasks,
            cls_classes=source.cls_classes,
            cls_kind=source.cls_kind,
            thing_classes=list(source.thing_classes),
            seg_classes=source.seg_classes,
            evaluator_type=EVALUATOR_TYPE,
            licence=source.licence,
            citation=source.citation,
        )


def register_source(source: Source) -> Source:
    """Add a row to the source table and register its splits: all a further dataset needs.

    Raises:
        ValueError: if the key, or the name of one of the datasets, is taken.
    """
    for split in source.splits:
        name = dataset_name(source.key, split)
        if name in DatasetCatalog.list():
            raise ValueError(f"dataset {name!r} is registered already; choose another key")
    add_source(source)
    _register_splits(source)
    return source


for _source in list(SOURCES.values()):
    _register_splits(_source)
