"""Folders are walked in one order, through links, and never in a circle."""

from __future__ import annotations

import os
from pathlib import Path

from fx_d2.data.tree import walk_files


def _names(root: Path) -> list[str]:
    return [
        os.path.relpath(os.path.join(f, n), root) for f, names in walk_files(root) for n in names
    ]


def test_order_is_that_of_names_and_hidden_files_are_left_out(tmp_path):
    for name in ("b/2.png", "a/9.png", "a/1.png", "a/._1.png", "z.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert _names(tmp_path) == ["z.png", "a/1.png", "a/9.png", "b/2.png"]


def test_linked_folders_are_entered_and_circles_end(tmp_path):
    disk, root = tmp_path / "disk", tmp_path / "root"
    (disk / "deep").mkdir(parents=True)
    (disk / "deep" / "x.png").touch()
    root.mkdir()
    (root / "images").symlink_to(disk)
    (disk / "back").symlink_to(root)  # root/images/back is root again
    (disk / "deep" / "self").symlink_to(disk / "deep")
    (root / "gone").symlink_to(tmp_path / "nothing")
    assert _names(root) == ["gone", "images/deep/x.png"]


def test_a_reader_finds_images_behind_a_link(tmp_path):
    from fx_d2.data.readers.base import index_by_stem

    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "1.png").touch()
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "images").symlink_to(tmp_path / "disk")
    assert index_by_stem(tmp_path / "root", [".png"]) == {
        "1": str(tmp_path / "root" / "images" / "1.png")
    }
