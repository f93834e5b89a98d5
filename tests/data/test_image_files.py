"""Which files count as radiographs, and that what is made of them never meets."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fx_d2.data.image_files import find_images

DICOM = b"\0" * 128 + b"DICM" + b"\0" * 20


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder as they come: images, DICOM under any name, and everything else."""
    root = tmp_path / "films"
    for name, content in {
        "b.png": b"x",
        "a.JPG": b"x",
        "notes.txt": b"x",
        "table.csv": b"x" * 200,
        ".hidden.png": b"x",
        "p1/IM0001": DICOM,
        "p1/1.2.840.113": DICOM,
        "p1/DICOMDIR": DICOM,
        "p1/README": b"x",
        "p2/deep/c.dcm": b"x",
        "p2/deep/d.mha.gz": b"x",
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


def test_images_of_a_folder_in_order(folder: Path) -> None:
    found = find_images([folder])
    assert [str(image.path.relative_to(folder)) for image in found] == [
        "a.JPG", "b.png", "p1/1.2.840.113", "p1/IM0001", "p2/deep/c.dcm", "p2/deep/d.mha.gz"
    ]  # fmt: skip
    assert [image.name for image in found] == [
        "a", "b", "p1/1.2.840.113", "p1/IM0001", "p2/deep/c", "p2/deep/d"
    ]  # fmt: skip


def test_a_file_named_by_itself_always_counts_and_each_counts_once(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder / "b.png")
    found = find_images([folder / "notes.txt", folder / "b.png", folder, folder / "p1"])
    names = [image.path.name for image in found]
    assert names[:2] == ["notes.txt", "b.png"]
    assert len(names) == len(set(names)) == 7 and "link.png" not in names


def test_a_circle_of_links_ends(folder: Path) -> None:
    (folder / "p2/again").symlink_to(folder)
    assert len(find_images([folder])) == 6


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        find_images([tmp_path / "gone.png"])


def test_pipes_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.png")
    assert find_images([tmp_path]) == []


def test_names_never_meet(tmp_path: Path) -> None:
    given = []
    for name in (
        *("x/a.png", "x/a.dcm", "x/A.png", "x/a_2.png", "x/a_dcm.png"),
        *("y/a.png", "z/a.png", "z/a.dcm", "z/a", f"z/{'n' * 240}.png", f"y/{'n' * 240}.png"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
        given.append(tmp_path / name)
    names = [image.name for image in find_images(given)]
    assert len(names) == len(given) == len({name.casefold() for name in names})
    assert names[:3] == ["a", "a_dcm", "A_png"]
    assert max(map(len, names)) < 180
    assert names == [image.name for image in find_images(given)]
