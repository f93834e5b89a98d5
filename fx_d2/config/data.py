"""Keys of what is read: INPUT.FX, DATASETS and DATALOADER.FX."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

from fx_d2.data.sources import SOURCES

# Of sources that a config registers: DATASETS.LESION_MIX and DATASETS.PSEUDO_MASKS.
_MADE = ("lesion_mix", "pseudo_masks")


def add_data(cfg: CN) -> None:
    """From files to batches."""
    _add_input(cfg)
    _add_augmentations(cfg)
    _add_datasets(cfg)
    _add_loader(cfg)


def _add_input(cfg: CN) -> None:
    cfg.INPUT.FX = CN()
    # Side of the square the network sees, in pixels. 224: every published Foundation X result.
    cfg.INPUT.FX.SIZE = 224
    # "square" stretches to SIZE x SIZE as the paper's loaders do; "keep" scales the longest edge to
    # SIZE and pads with zeros at the right and bottom (the batch's "content_size" says where the
    # image ends).
    cfg.INPUT.FX.RESIZE = "square"
    # 3 repeats the grey channel for trunks pretrained on colour images; 1 for trunks built for
    # grey.
    cfg.INPUT.FX.CHANNELS = 3
    # Grey values to [0, 1], the same at training, evaluation and prediction; stored in the
    # checkpoint.
    cfg.INPUT.FX.INTENSITY = CN()
    # "percentile" ignores burned-in markers and unused depth; "minmax" and "depth" are there to
    # reproduce others.
    cfg.INPUT.FX.INTENSITY.MODE = "percentile"
    # Percentile that becomes 0: below it lie collimated borders.
    cfg.INPUT.FX.INTENSITY.LOW = 0.5
    # Percentile that becomes 1: above it lie markers and dead pixels (well under 0.5 % of a film).
    cfg.INPUT.FX.INTENSITY.HIGH = 99.5
    # Clip limit of an adaptive histogram equalisation (8 x 8 tiles), which brings out airways and
    # faint opacities; 2 is usual, 0 is none.
    cfg.INPUT.FX.INTENSITY.CLAHE = 0.0
    # Exponent applied last; 1 changes nothing.
    cfg.INPUT.FX.INTENSITY.GAMMA = 1.0
    # "auto" applies a DICOM's VOI LUT or window where it is sensible; "ignore" keeps the modality
    # values.
    cfg.INPUT.FX.INTENSITY.VOI = "auto"
    # Training target of an uncertain (-1) label: "ignore", "zeros", "ones" or "smooth". Ignoring
    # invents nothing.
    cfg.INPUT.FX.UNCERTAIN = "ignore"
    # Exceptions "source=policy" or "source/class=policy". The paper (4.1): "chexpert=smooth",
    # "mimic_cxr=ones".
    cfg.INPUT.FX.UNCERTAIN_BY = ()
    # Range "smooth" draws from; the paper's LSR-Ones (4.1).
    cfg.INPUT.FX.UNCERTAIN_SMOOTH = (0.55, 0.85)
    # Training target of a label that is not annotated: "ignore" or "zeros". Not annotated is not
    # negative.
    cfg.INPUT.FX.UNKNOWN = "ignore"
    # Exceptions as above. The paper (4.1) reads a finding that the report leaves out as absent:
    # "chexpert=zeros".
    cfg.INPUT.FX.UNKNOWN_BY = ()
    # Folder of tools/cache_images.py, read instead of the original files; "" reads these. Where
    # AUG.<TASK>.CROP_SCALE is on, build it larger than SIZE: a crop of a small copy is blurred.
    cfg.INPUT.FX.CACHE = ""
    # A box with a side below this after the augmentations is dropped, in pixels of the resized
    # image.
    cfg.INPUT.FX.MIN_BOX_PX = 1.0
    cfg.INPUT.FX.LUNGS = CN()
    # What is shown of a radiograph by its lung mask: "none" is all of it, "mask", "crop",
    # "mask+crop" the lungs; "background" and "frame" all but the lungs or their box, to find out
    # whether a classifier needs them (fx_d2/data/lung_input.py). Those that crop are for labels
    # alone.
    cfg.INPUT.FX.LUNGS.MODE = "none"
    # Where masks come from: "record" is the source's own, else a folder of <image_id>.png.
    cfg.INPUT.FX.LUNGS.SOURCE = "record"
    # By how much the box around the lungs grows on each side, as a share of its width and height: a
    # mask often ends short of the pleura.
    cfg.INPUT.FX.LUNGS.MARGIN = 0.05
    # Grey value in [0, 1] of what is not shown; black, as collimated borders are.
    cfg.INPUT.FX.LUNGS.FILL = 0.0
    # A box with a shorter side grows to this: a few stray pixels are no lungs.
    cfg.INPUT.FX.LUNGS.MIN_SIDE_PX = 16


def _add_augmentations(cfg: CN) -> None:
    cfg.INPUT.FX.AUG = CN()
    for task in ("CLS", "LOC", "SEG"):
        node = cfg.INPUT.FX.AUG[task] = CN()
        # Share of the area that a random crop keeps, (low, high); (1, 1) is off, so that no lesion
        # is cut away.
        node.CROP_SCALE = [1.0, 1.0]
        # Width / height of the crop, (low, high); the usual range.
        node.CROP_RATIO = [0.75, 1.3333]
        # Probability of a mirror image. Left and right classes are swapped with it, but the heart
        # lies on the wrong side then: off unless the paper has it on.
        node.FLIP = 0.0
        # Largest rotation either way, in degrees; a patient is never positioned perfectly.
        node.ROTATE_DEG = 0.0
        # Largest shift as a share of the frame.
        node.SHIFT = 0.0
        # Largest zoom in or out as a share.
        node.SCALE = 0.0
        # Largest shear either way, in degrees.
        node.SHEAR_DEG = 0.0
        # Zoom width and height apart, each by a factor from 1 +- SCALE.
        node.SCALE_APART = False
        # What a rotation, shift, shear or zoom uncovers: "zero", or "nearest", the edge drawn out.
        node.BORDER = "zero"
        # Probability of the rotation and of the shift and zoom, each.
        node.GEOMETRY_PROB = 1.0
        # Brightness factor drawn from 1 +- this; the image stays in [0, 1].
        node.BRIGHTNESS = 0.0
        # Contrast factor drawn from 1 +- this, about the image's mean.
        node.CONTRAST = 0.0
        # Exponent drawn from [1 / (1 + this), 1 + this]: another exposure of the same patient.
        node.GAMMA = 0.0
        # Standard deviation of added noise, up to this share of the grey range.
        node.NOISE = 0.0
        # Standard deviation of a blur, up to this many pixels of the resized image.
        node.BLUR_PX = 0.0
        # Probability of each of the five above.
        node.GREY_PROB = 0.5
    # Paper 4.3, classification: crop of 8 to 100 %, mirrored half of the time, rotated by up to 7
    # degrees.
    cfg.INPUT.FX.AUG.CLS.CROP_SCALE = [0.08, 1.0]
    cfg.INPUT.FX.AUG.CLS.FLIP = 0.5  # paper 4.3; no image label has a side
    cfg.INPUT.FX.AUG.CLS.ROTATE_DEG = 7.0  # paper 4.3
    cfg.INPUT.FX.AUG.LOC.FLIP = 0.5  # paper 4.3, the only augmentation of localization
    # Paper 4.3, segmentation: shift, scale and rotation by 10 degrees half of the time. Two of its
    # sources are also mirrored; here none is, because organs and ribs carry their side.
    cfg.INPUT.FX.AUG.SEG.ROTATE_DEG = 10.0
    cfg.INPUT.FX.AUG.SEG.SHIFT = 0.0625  # the default of the paper's library
    cfg.INPUT.FX.AUG.SEG.SCALE = 0.1  # the default of the paper's library
    cfg.INPUT.FX.AUG.SEG.GEOMETRY_PROB = 0.5  # the default of the paper's library
    cfg.INPUT.FX.AUG.SEG.BRIGHTNESS = 0.2  # the default of the paper's library
    cfg.INPUT.FX.AUG.SEG.CONTRAST = 0.2  # the default of the paper's library


def _add_datasets(cfg: CN) -> None:
    # Tasks to train and evaluate; each source contributes those its row names.
    cfg.DATASETS.TASKS = ("cls", "loc", "seg")
    # "source/task" annotated on disk but not a default of the row, such as "nih14/loc" (boxes of
    # test images only).
    cfg.DATASETS.EXTRA_TASKS = ()
    # A record or image that cannot be read: "raise" stops with file and row, "skip" leaves it out
    # and counts it.
    cfg.DATASETS.ON_ERROR = "raise"
    # "all", or "frontal" to leave out lateral views of CheXpert and MIMIC (the paper uses all,
    # 4.1).
    cfg.DATASETS.VIEWS = "all"
    cfg.DATASETS.ROOTS = CN(new_allowed=True)
    cfg.DATASETS.SPLIT_FILES = CN(new_allowed=True)
    cfg.DATASETS.OPTIONS = CN(new_allowed=True)
    for source, row in SOURCES.items():
        if row.reader in _MADE:  # defaults are the same whatever config was read before
            continue
        # Where this source lies; "" is $DETECTRON2_DATASETS/<folder of its row>.
        cfg.DATASETS.ROOTS[source] = ""
        # A split file that replaces this source's splits, to repeat somebody's experiment exactly;
        # "" is none.
        cfg.DATASETS.SPLIT_FILES[source] = ""
        # What the reader of this source may be told, with the row's values as defaults (box fusion
        # of VinDr, ...).
        cfg.DATASETS.OPTIONS[source] = CN(dict(row.options), new_allowed=True)


def _add_loader(cfg: CN) -> None:
    cfg.DATALOADER.FX = CN()
    # Order of a training pass: "shuffle"; "repeat_factor" repeats images of classes rarer than
    # DATALOADER.REPEAT_THRESHOLD; "class_aware" shows every class equally often.
    cfg.DATALOADER.FX.SAMPLER = "shuffle"
    # Incomplete last batch of a pass: "fill" tops it up with the pass's first images (every image
    # is seen, batches keep their size), "drop" leaves it out, "keep" keeps it as it is.
    cfg.DATALOADER.FX.LAST_BATCH = "fill"
    # Batches each worker prepares ahead; bounds the memory a loader holds.
    cfg.DATALOADER.FX.PREFETCH = 2
    # How workers start: "fork" shares the records without copying them, "spawn" or "forkserver"
    # where a fork is unsafe; "" is fork where the system has it.
    cfg.DATALOADER.FX.START_METHOD = ""
    # Whether the records of a task stay in memory when another task becomes active; False reads
    # them again.
    cfg.DATALOADER.FX.KEEP_RECORDS = True
    # Joint training: "source/task=number", how often that batch is drawn relative to the others.
    # Unnamed ones have 1; none named: in proportion to size, or equally often with
    # REPEAT_TO_LONGEST.
    cfg.DATALOADER.FX.DATASET_RATIO = ()
    # Joint training: a round lasts until the source that takes longest is seen once (True) or until
    # the first one is (False); shorter ones are repeated.
    cfg.DATALOADER.FX.REPEAT_TO_LONGEST = False
