"""The config keys of the lesion mix: ``INPUT.FX.LESION_MIX`` and ``DATASETS.LESION_MIX``."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode as CN

from .settings import MixSettings

# Keys beside the settings proper.
_PLACES = ("FOLDER", "BASE", "BANK", "HELD_OUT")


def add_lesion_mix_keys(cfg: CN) -> None:
    """Add the keys; names and defaults of the settings are those of :class:`MixSettings`."""
    node = cfg.INPUT.FX.LESION_MIX = CN()
    # Online: the --out of tools/make_lesion_mix.py, whose bank, counts and correlations are used.
    node.FOLDER = ""
    # Images that are pasted onto: training splits of one source.
    node.BASE = ("cxr_lt_train",)
    # Where lesions are cut out: training splits of sources with boxes. The poster adds nih14, whose
    # boxes are of test images: write splits of your own for it (DATASETS.SPLIT_FILES).
    node.BANK = ("vindr_local_train", "chestx_det_train")
    # Further datasets whose patients give no patch and no base, beside the other splits of the
    # sources above.
    node.HELD_OUT = ()
    for name, value in MixSettings().to_dict().items():
        node[name.upper()] = tuple(value) if isinstance(value, list) else value
    # Written mixes to register, "name=folder": each becomes the dataset "<base source>_<name>", for
    # the heads of the base source, and the source of that name with a split "train" and heads of
    # its own, for boxes and masks too.
    cfg.DATASETS.LESION_MIX = ()


def settings_of(cfg: Any) -> MixSettings:
    """The settings of a config."""
    node = cfg.INPUT.FX.LESION_MIX
    return MixSettings.from_dict({k: v for k, v in node.items() if k not in _PLACES})
