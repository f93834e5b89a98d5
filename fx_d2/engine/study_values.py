"""Values of a study file, each checked where it is read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml

from .cycle import choose
from .setup import ConfigError

Made = TypeVar("Made")


class Loader(yaml.SafeLoader):
    """Refuses a key that stands twice: the first of two arms of one name would be lost."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._seen: set[int] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Called for every mapping, again for one that others merge and that holds more by then."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice and id(node) not in self._seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {twice[0]!r} stands twice", node.start_mark
            )
        self._seen.add(id(node))
        super().flatten_mapping(node)


def read_file(file: str | Path, what: str, pattern: str, make: Callable[[Path, Any], Made]) -> Made:
    """What a YAML file describes, checked.

    Args:
        file: relative to where the call is made.
        what: it is, for messages: "study".
        pattern: of the names of such files, shown where this one is not there.
        make: from the path and the content; its ValueError names the place in the file.

    Raises:
        ConfigError: it cannot be read, or ``make`` refuses it; the message is one line.
    """
    path = Path(file).expanduser().absolute()
    if not path.is_file():
        there = ", ".join(sorted(p.name for p in path.parent.glob(pattern))) or f"no {what}"
        raise ConfigError(f"there is no {what} file {file}; its folder has {there}")
    try:
        raw = yaml.load(path.read_text("utf-8"), Loader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as exc:
        raise ConfigError(f"{file}: {' '.join(str(exc).split())[:300]}") from exc
    try:
        return make(path, raw)
    except (KeyError, ValueError) as exc:
        said = exc.args[0] if isinstance(exc, KeyError) and exc.args else exc
        raise ConfigError(f"{file}: {' '.join(str(said).split())}") from exc


def mapping(
    raw: Any, where: str, known: Sequence[str] = (), needed: Sequence[str] = ()
) -> dict[str, Any]:
    """Names to values; with ``known`` no other name is allowed."""
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where} is {str(raw)[:60]!r}; write a mapping of names to values")
    given = {str(key): value for key, value in raw.items()}
    for key in given if known else ():
        choose(key, known, f"{where}: key")
    for key in needed:
        if key not in given:
            raise ValueError(f"{where} has no {key!r}")
    return given


def listed(raw: Any, where: str) -> list[Any]:
    """A list."""
    if not isinstance(raw, list):
        raise ValueError(f"{where} is {str(raw)[:60]!r}; write a list")
    return raw


def whole(raw: Any, where: str, low: int) -> int:
    """A whole number from ``low`` on."""
    if isinstance(raw, bool) or not isinstance(raw, int) or raw < low:
        raise ValueError(f"{where} is {str(raw)[:60]!r}; allowed: a whole number from {low}")
    return raw


def number(raw: Any, where: str) -> float:
    """A number, not a truth value."""
    if isinstance(raw, bool) or not isinstance(raw, (int, float)):
        raise ValueError(f"{where} is {str(raw)[:60]!r}; write a number")
    return float(raw)


def flag(raw: Any, where: str) -> bool:
    """True or false."""
    if not isinstance(raw, bool):
        raise ValueError(f"{where} is {str(raw)[:60]!r}; allowed: true or false")
    return raw


def text(raw: Any, where: str) -> str:
    """A text, its blanks as one."""
    if not isinstance(raw, str):
        raise ValueError(f"{where} is {str(raw)[:60]!r}; write a text")
    return " ".join(raw.split())


def seeds(raw: Any, where: str) -> tuple[int, ...]:
    """One or more different seeds."""
    found = tuple(whole(seed, where, 0) for seed in listed(raw, where))
    if not found or len(set(found)) < len(found):
        raise ValueError(f"{where} is {raw}; write one or more different whole numbers")
    return found


def files(file: Path, names: Sequence[Any], where: str) -> tuple[Path, ...]:
    """Files that are there; names are relative to the folder of ``file``."""
    found = []
    for name in names:
        path = Path(file.parent, text(name, where)).resolve()
        if not path.is_file():
            raise ValueError(f"{where}: there is no file {path}")
        found.append(path)
    return tuple(found)
