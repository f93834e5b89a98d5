"""Walking a dataset's folder: in one order everywhere, through links, never in a circle."""

from __future__ import annotations

import os
from collections.abc import Iterator


def walk_files(root: str | os.PathLike[str]) -> Iterator[tuple[str, list[str]]]:
    """Every folder below ``root`` with the names of its files, both sorted; hidden ones left out.

    Image folders on a cluster are often links to a shared disk, so links are followed. A folder
    that was seen under another name is not entered again, which also ends a circle of links.
    """
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        try:
            info = os.stat(folder)
        except OSError:
            folders.clear()
            continue
        if (info.st_dev, info.st_ino) in seen:
            folders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        folders.sort()
        yield folder, sorted(name for name in names if not name.startswith("."))
