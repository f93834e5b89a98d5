"""Where every name of a foreign checkpoint belongs, or why it has no place: ordered tables.

Names, shapes and the order of heads are those documented in docs/convert_weights.md. The first rule
whose pattern matches a whole name decides; a name that no rule knows is reported as such.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fx_d2.data.vocabulary import CHEXPERT_14

# Index of a head in the checkpoint, which is not the order of the paper.
CLS_HEADS = (
    *("tbx11k", "node21", "candid_ptx", "rsna", "chestx_det", "siim_acr"),
    *("chexpert", "nih14", "vindr_cxr", "shenzhen", "mimic_cxr"),
)
SEG_HEADS = {2: "candid_ptx", 4: "chestx_det", 5: "siim_acr"}

# MIMIC's label file, by whose columns that head was trained, is alphabetical; ours has CheXpert's
# order.
_ALPHABETICAL = sorted(CHEXPERT_14)
_ROWS = {"mimic_cxr": tuple(_ALPHABETICAL.index(name) for name in CHEXPERT_14)}

NO_NAME = "a name that is not documented"
_COMPUTED = "computed from the window size, not learned"
_CLASSIFIER = "a classifier of other classes"
_ARK = "a projector and heads of Ark-6, between which and the pooled features ours has nothing"
_DINO = "of the DINO detector; localization is Detectron2's Mask R-CNN here"
_DEAD = "used by nothing in the released code"
_ORGANS = "a head of the organ experiments; which organ is not documented"
_COPY = "a second copy of the one shared smoothing convolution"


@dataclass(frozen=True)
class Place:
    """Where a tensor goes.

    Args:
        target: name in fx_d2.
        rows: order of its first dimension there; None leaves it.
    """

    target: str
    rows: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Rule:
    """What becomes of the names that a pattern matches.

    Args:
        pattern: of whole names, as a regular expression.
        place: of a match, where it goes; or why it has no place.
    """

    pattern: str
    place: str | Callable[[re.Match[str]], Place | str]


def _to(template: str) -> Callable[[re.Match[str]], Place]:
    return lambda match: Place(match.expand(template))


def _swin(prefix: str, *, at_end: bool) -> list[Rule]:
    """The trunk. The reduction between two stages belongs to the later one in timm."""
    pre = re.escape(prefix)

    def reduction(match: re.Match[str]) -> Place:
        stage = int(match[1]) + (1 if at_end else 0)
        return Place(f"trunk.net.layers.{stage}.downsample.{match[2]}")

    return [
        Rule(pre + r"(patch_embed\.(?:proj|norm)\.\w+)", _to(r"trunk.net.\1")),
        Rule(r".*\.(?:relative_position_index|attn_mask)", _COMPUTED),
        Rule(pre + r"(layers\.\d+\.blocks\.\d+\..+)", _to(r"trunk.net.\1")),
        Rule(pre + r"layers\.(\d+)\.downsample\.((?:norm|reduction)\.\w+)", reduction),
        Rule(pre + r"norm\.(weight|bias)", _to(r"trunk.norm.\1")),
        Rule(pre + r"(?:backbone\.)?(?:head|classifier)\..*", _CLASSIFIER),
    ]


def _classifier(match: re.Match[str]) -> Place | str:
    index = int(match[1])
    if index >= len(CLS_HEADS):
        return NO_NAME
    source = CLS_HEADS[index]
    return Place(f"heads.cls.{source}.linear.{match[2]}", _ROWS.get(source))


def _mask_head(match: re.Match[str]) -> Place | str:
    source = SEG_HEADS.get(int(match[1]))
    return _ORGANS if source is None else Place(f"heads.seg.{source}.{match[2]}")


def _foundation_x(prefix: str, *, at_end: bool) -> list[Rule]:
    pre = re.escape(prefix)
    ppn, fpn = f"{pre}segmentation_PPN\\.", f"{pre}segmentation_FPN\\."
    return [
        Rule(pre + r"classification_heads\.(\d+)\.(weight|bias)", _classifier),
        Rule(pre + r"segmentation_heads\.(\d+)\.(weight|bias)", _mask_head),
        Rule(ppn + r"stages\.(\d)\.1\.(\w+)", _to(r"seg_decoder.pooling.reduce.\1.0.\2")),
        Rule(ppn + r"stages\.(\d)\.2\.(\w+)", _to(r"seg_decoder.pooling.reduce.\1.1.\2")),
        Rule(ppn + r"bottleneck\.([01]\.\w+)", _to(r"seg_decoder.pooling.fuse.\1")),
        Rule(
            fpn + r"conv1x1\.(\d)\.(\w+)",
            lambda m: Place(f"seg_decoder.laterals.res{int(m[1]) + 3}.{m[2]}"),
        ),
        Rule(fpn + r"smooth_conv\.0\.(\w+)", _to(r"seg_decoder.smooth.\1")),
        Rule(fpn + r"smooth_conv\.\d\.\w+", _COPY),
        Rule(fpn + r"conv_fusion\.([01]\.\w+)", _to(r"seg_decoder.fuse.\1")),
        # Each stage's own norm in front of the detector, as here.
        Rule(
            pre + r"Locnorm(\d)\.(\w+)",
            lambda m: Place(f"loc_encoder.neck.bottom_up.res{int(m[1]) + 2}.{m[2]}"),
        ),
        Rule(pre + r"(?:Segnorm\d|head|classification_norm)\..*", _DEAD),
        *_swin(prefix, at_end=at_end),
        Rule(r"(?:transformer|input_proj|label_enc|(?:bbox|class)_embed_?)\..*", _DINO),
    ]


def rules_for(kind: str, prefix: str, *, at_end: bool) -> list[Rule]:
    """The table of a kind of checkpoint.

    Args:
        kind: see :data:`fx_d2.engine.convert.read.KINDS`.
        prefix: what stands before the names of the Swin.
        at_end: whether a stage ends with its reduction.
    """
    if kind.startswith("foundation_x"):
        return _foundation_x(prefix, at_end=at_end)
    own = (
        [Rule(re.escape(prefix) + r"(?:projector|omni_heads)\..*", _ARK)] if kind == "ark6" else []
    )
    return own + _swin(prefix, at_end=at_end)


def place_of(name: str, rules: Sequence[Rule]) -> Place | str:
    """Where a tensor goes, or why it does not."""
    for rule in rules:
        match = re.fullmatch(rule.pattern, name)
        if match:
            return rule.place if isinstance(rule.place, str) else rule.place(match)
    return NO_NAME
