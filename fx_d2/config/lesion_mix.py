"""Keys of the lesion mix: INPUT.FX.LESION_MIX and DATASETS.LESION_MIX."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

from fx_d2.data.lesion_mix.settings import MixSettings


def add_lesion_mix(cfg: CN) -> None:
    """What is pasted onto what; needs the keys of :func:`fx_d2.config.data.add_data`."""
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
    # How: the fields of MixSettings, where each has its default and its reason.
    for name, value in MixSettings().to_dict().items():
        node[name.upper()] = tuple(value) if isinstance(value, list) else value
    # Written mixes to register, "name=folder": each becomes the dataset "<base source>_<name>", for
    # the heads of the base source, and the source of that name with a split "train" and heads of
    # its own, for boxes and masks too.
    cfg.DATASETS.LESION_MIX = ()
