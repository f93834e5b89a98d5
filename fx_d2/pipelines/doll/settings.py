"""Every choice of a run of pseudo-masks, from a YAML file and the command line."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import yaml

from fx_d2.data.errors import did_you_mean
from fx_d2.explain import CAM_METHODS, IGSettings
from fx_d2.explain.consensus import ConsensusSettings
from fx_d2.explain.pseudo_labels import LabelRules

INTEGRATED_GRADIENTS = "integrated_gradients"
EXPLAINERS = (INTEGRATED_GRADIENTS, *CAM_METHODS)
_MAX_FILE_BYTES = 1 << 20


class SettingsError(ValueError):
    """A setting that cannot be; one line that names it."""


@dataclass(frozen=True)
class Quality:
    """Below one of these a class is excluded. What cannot be measured excludes nothing.

    Args:
        min_masks: masks with foreground.
        min_auc: of the committee's mean probability, on the explained images.
        min_pointing: share of masks whose highest consensus lies in the true region.
        min_kept: share of the positive images that got a mask.
    """

    min_masks: int = 1
    min_auc: float = 0.0
    min_pointing: float = 0.0
    min_kept: float = 0.0

    def __post_init__(self) -> None:
        if self.min_masks < 0:
            raise ValueError(f"min_masks is {self.min_masks}; allowed: 0 and more")
        for name in ("min_auc", "min_pointing", "min_kept"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; allowed: [0, 1]")


@dataclass(frozen=True)
class DollSettings:
    """A run of ``tools/make_pseudo_masks.py``.

    Args:
        dataset: registered name, such as ``chexpert_train``.
        members: of the committee: weights of a run, or mappings with ``path`` and, where they are
            needed, ``head`` (source), ``layer`` (for class activation maps).
        explainer: ``integrated_gradients`` or a class activation method.
        beside: further explainers that the report measures; no mask comes from them.
        ig: see :class:`fx_d2.explain.IGSettings`.
        consensus: see :class:`fx_d2.explain.consensus.ConsensusSettings`.
        class_weights: class -> a weight per member; others weigh what the member says.
        labels: see :class:`fx_d2.explain.pseudo_labels.LabelRules`.
        quality: see :class:`Quality`.
        exclude: classes to leave out whatever their quality.
        truth_by: class -> the name its boxes and masks have in the dataset, where that differs.
        mask_px: longer side of the masks; 0 is that of the largest member's input.
        shard_images: images per shard.
        val_share: share of the patients whose images become the split ``val``.
        device: ``cpu`` or ``cuda``.
        seed: of all noise.
    """

    dataset: str = ""
    members: tuple[Any, ...] = ()
    explainer: str = INTEGRATED_GRADIENTS
    beside: tuple[str, ...] = ()
    ig: IGSettings = field(default_factory=IGSettings)
    consensus: ConsensusSettings = field(default_factory=ConsensusSettings)
    class_weights: Mapping[str, Sequence[float]] = field(default_factory=dict)
    labels: LabelRules = field(default_factory=LabelRules)
    quality: Quality = field(default_factory=Quality)
    exclude: tuple[str, ...] = ()
    truth_by: Mapping[str, str] = field(default_factory=dict)
    mask_px: int = 0
    shard_images: int = 64
    val_share: float = 0.1
    device: str = "cpu"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (self.explainer, *self.beside):
            if name not in EXPLAINERS:
                raise ValueError(
                    f"explainer {name!r}; allowed: {', '.join(EXPLAINERS)}."
                    + did_you_mean(name, EXPLAINERS)
                )
        if self.explainer in self.beside or len(set(self.beside)) != len(self.beside):
            raise ValueError(f"beside {list(self.beside)} repeats an explainer")
        if self.mask_px and not 16 <= self.mask_px <= 4096:
            raise ValueError(f"mask_px is {self.mask_px}; allowed: 0, or 16 to 4096")
        if not 1 <= self.shard_images <= 10_000:
            raise ValueError(f"shard_images is {self.shard_images}; allowed: 1 to 10000")
        if not 0 <= self.val_share < 1:
            raise ValueError(f"val_share is {self.val_share}; allowed: [0, 1)")
        for name, row in self.class_weights.items():
            if not all(math.isfinite(w) and w >= 0 for w in row) or not any(row):
                raise ValueError(f"class_weights[{name!r}] is {list(row)}; allowed: 0 and more, "
                                 "one of them above 0")  # fmt: skip

    def check_classes(self, classes: Sequence[str], members: int) -> None:
        """Raise where a setting names a class the committee has not, or too few weights."""
        self.labels.check_classes(classes)
        for what in ("class_weights", "exclude", "truth_by"):
            for name in getattr(self, what):
                if name not in classes:
                    raise SettingsError(
                        f"{what} names {name!r}, which is not a class of the committee."
                        f"{did_you_mean(name, classes)} Classes: {', '.join(classes)}"
                    )
        for name, row in self.class_weights.items():
            if len(row) != members:
                raise SettingsError(
                    f"class_weights[{name!r}] has {len(row)} weights for {members} members"
                )

    def deciding(self) -> dict[str, Any]:
        """Plain values of all that decides the bytes of the shards, but data and committee."""
        ig = asdict(self.ig)
        del ig["seed"]  # that of the run is used
        return {
            "explainer": self.explainer,
            "beside": list(self.beside),
            "ig": ig if self._walks() else None,
            "consensus": asdict(self.consensus),
            "class_weights": {k: list(map(float, v)) for k, v in self.class_weights.items()},
            "labels": self.labels.to_dict(),
            "truth_by": dict(self.truth_by),
            "mask_px": self.mask_px,
            "shard_images": self.shard_images,
            "device": self.device.partition(":")[0],
            "seed": self.seed,
        }

    def _walks(self) -> bool:
        return INTEGRATED_GRADIENTS in (self.explainer, *self.beside)


def load_settings(file: str | Path, overrides: Sequence[str] = ()) -> DollSettings:
    """Settings of a YAML file and ``KEY VALUE`` pairs such as ``labels.top_share 0.2``.

    Raises:
        SettingsError: a key or a value cannot be.
    """
    tree: dict[str, Any] = {}
    if file:
        tree = _read(Path(file))
    if len(overrides) % 2:
        raise SettingsError(f"overrides are KEY VALUE pairs; {overrides[-1]!r} has no value")
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        node = tree
        *groups, name = key.split(".")
        for group in groups:
            node = node.setdefault(group, {})
            if not isinstance(node, dict):
                raise SettingsError(f"{key}: {group} is no group of settings")
        try:
            node[name] = yaml.safe_load(text)
        except yaml.YAMLError as exc:
            raise SettingsError(f"{key}: {text!r} is no value") from exc
    return _made(DollSettings, tree, "")


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise SettingsError(f"{path}: larger than a file of settings can be")
        body = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as exc:
        near = did_you_mean(str(path), [str(p) for p in path.parent.glob("*.yaml")])
        raise SettingsError(f"{path}: cannot be read ({exc.strerror}).{near}") from exc
    except (UnicodeDecodeError, yaml.YAMLError, RecursionError) as exc:
        raise SettingsError(f"{path}: not YAML ({' '.join(str(exc).split())[:200]})") from exc
    if not isinstance(body, dict):
        raise SettingsError(f"{path}: expected settings such as 'dataset: chexpert_train'")
    return body


def _made(kind: Any, tree: Mapping[Any, Any], where: str) -> Any:
    """A settings dataclass from a mapping, its values checked by the fields' types."""
    hints = typing.get_type_hints(kind)
    known = [f.name for f in fields(kind)]
    values = {}
    for key, value in tree.items():
        if key not in known:
            raise SettingsError(
                f"there is no setting {where}{key}.{did_you_mean(str(key), known)} "
                f"Settings: {', '.join(known)}"
            )
        values[key] = _value(hints[key], value, f"{where}{key}")
    try:
        return kind(**values)
    except ValueError as exc:
        raise SettingsError(f"{where}{exc}") from exc


def _value(hint: Any, value: Any, name: str) -> Any:
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise SettingsError(f"{name} is {value!r}; expected a group of settings")
        return _made(hint, value, f"{name}.")
    origin = typing.get_origin(hint)
    if origin is tuple:
        given = [value] if isinstance(value, (str, dict)) else value
        inner = typing.get_args(hint)[0]
        if not isinstance(given, list):
            raise SettingsError(f"{name} is {value!r}; expected a list")
        return tuple(_value(inner, v, name) for v in given)
    if _is_a(origin, Mapping):
        if not isinstance(value, Mapping):
            raise SettingsError(f"{name} is {value!r}; expected 'class: value' pairs")
        inner = typing.get_args(hint)[1]
        return {str(k): _value(inner, v, f"{name}[{k!r}]") for k, v in value.items()}
    if _is_a(origin, Sequence):
        if not isinstance(value, list):
            raise SettingsError(f"{name} is {value!r}; expected a list")
        return [_value(typing.get_args(hint)[0], v, name) for v in value]
    if origin is typing.Literal:
        return value
    if hint is float and type(value) is int:
        return float(value)
    if hint in (int, float, str, bool) and type(value) is not hint:
        raise SettingsError(f"{name} is {value!r}; expected {_words(hint)}")
    if hint is float and not math.isfinite(value):
        raise SettingsError(f"{name} is {value!r}; expected a finite number")
    return value


def _is_a(origin: Any, kind: type) -> bool:
    return isinstance(origin, type) and issubclass(origin, kind)


def _words(hint: type) -> str:
    names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
    return names[hint]
