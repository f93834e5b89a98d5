"""Every config key of fx_d2: declared once, with its default and the reason beside it.

Section numbers refer to the Foundation X paper as summarised in the docs of that system. A preset
states only what differs from here.
"""

from __future__ import annotations

from detectron2.config import CfgNode as CN

from fx_d2.data.lesion_mix.keys import add_lesion_mix_keys
from fx_d2.data.sources import SOURCES


def add_fx_config(cfg: CN) -> None:
    """Add the keys of fx_d2 to a Detectron2 config, in place."""
    _add_input(cfg)
    _add_augmentations(cfg)
    _add_datasets(cfg)
    add_lesion_mix_keys(cfg)
    _add_loader(cfg)
    _add_solver(cfg)
    cfg.MODEL.FX = CN()
    _add_trunk(cfg)
    _add_heads(cfg)
    _add_tuning(cfg)
    _add_evaluation(cfg)
    _add_cycle(cfg)
    _add_teacher(cfg)
    _add_forgetting(cfg)


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


def _add_solver(cfg: CN) -> None:
    cfg.SOLVER.FX = CN()
    # "AdamW" (the paper's) or "SGD" with SOLVER.MOMENTUM and SOLVER.NESTEROV.
    cfg.SOLVER.FX.OPTIMIZER = "AdamW"
    # One kernel for all parameters: a faster AdamW step with the same result up to rounding.
    cfg.SOLVER.FX.FUSED = False
    # "pattern=factor of SOLVER.BASE_LR" over parameter names, such as "trunk.*=0.1"; the first
    # pattern that matches decides, 1 where none does. A pattern that decides nothing is an error.
    cfg.SOLVER.FX.LR_FACTORS = ()
    # Further patterns of parameters without weight decay; one that decides nothing is an error.
    cfg.SOLVER.FX.NO_DECAY = ()
    # Decay norms, biases and position tables too, as the released code of the paper does.
    cfg.SOLVER.FX.DECAY_ALL = False
    # Factor between the learning rates of a block of the trunk and of the next one; 1 is off.
    cfg.SOLVER.FX.LAYER_DECAY = 1.0
    # Largest norm of all gradients together; 0 does not clip.
    cfg.SOLVER.FX.CLIP_NORM = 0.0
    # Exceptions "task=norm"; the paper clips localization only: "loc=0.1" (2.3).
    cfg.SOLVER.FX.CLIP_NORM_BY = ()
    # "fp32", or "bf16": autocast, which needs no loss scaling.
    cfg.SOLVER.FX.PRECISION = "fp32"
    # Numbered checkpoints of a run that stay on disk beside the best and the final one; 0 keeps
    # all.
    cfg.SOLVER.FX.KEEP_LAST = 1
    # Metrics, as patterns over "source/task/metric", whose mean makes a checkpoint the best one
    # ("*/cls/AUC", "rsna/loc/AP40"); () keeps no best one.
    cfg.SOLVER.FX.BEST_METRIC = ()
    # Whether the best mean is the largest ("max") or the smallest ("min").
    cfg.SOLVER.FX.BEST_MODE = "max"
    # Above 1, so many of the best by that mean stay as "model_top_<iteration>".
    cfg.SOLVER.FX.KEEP_BEST = 1
    cfg.SOLVER.FX.PLATEAU = CN()
    cfg.SOLVER.FX.EARLY_STOP = CN()
    for node in (cfg.SOLVER.FX.PLATEAU, cfg.SOLVER.FX.EARLY_STOP):
        # Patterns over "source/task/metric", whose mean has to get better.
        node.METRIC = ()
        # Whether better is larger ("max") or smaller ("min").
        node.MODE = "max"
        # Evaluations (TEST.EVAL_PERIOD) without progress until something is done; 0 is off.
        node.PATIENCE = 0
        # What counts as progress: more than this.
        node.MIN_DELTA = 0.0
    # All learning rates are multiplied by it; the usual tenth.
    cfg.SOLVER.FX.PLATEAU.FACTOR = 0.1
    # Iterations between two lines of the log, of metrics.json and of TensorBoard.
    cfg.SOLVER.FX.LOG_PERIOD = 20
    # Seconds after which several processes of which none gets on end, naming the one that the
    # others wait for; an evaluation's last figures have to come within. 0 lets them wait.
    cfg.SOLVER.FX.STUCK_AFTER_S = 1800.0


def _add_trunk(cfg: CN) -> None:
    cfg.MODEL.FX.TRUNK = CN()
    # A row of docs/backbones.md (swin_b: every published Foundation X result) or any network of
    # timm with a feature pyramid, such as "convnext_small.fb_in22k".
    cfg.MODEL.FX.TRUNK.NAME = "swin_b"
    # "" starts from random weights; "timm" from the network's published weights (model hub or its
    # local cache); else a .safetensors or .pth file.
    cfg.MODEL.FX.TRUNK.PRETRAINED = ""
    # Largest chance that a block is skipped in training, growing linearly with depth (paper 1.1).
    cfg.MODEL.FX.TRUNK.DROP_PATH = 0.2
    # Recompute activations in the backward pass: less memory for a slower step.
    cfg.MODEL.FX.TRUNK.GRAD_CHECKPOINT = False
    # Norm of the last stage before pooling for classification: "auto" is the network's own (none
    # for BatchNorm trunks), "layer" a new LayerNorm, "none".
    cfg.MODEL.FX.TRUNK.NORM = "auto"
    # (height, width) that a trunk of fixed input size (CoAtNet) is built for; () is INPUT.FX.SIZE.
    # Others take any size and ignore it.
    cfg.MODEL.FX.TRUNK.IMG_SIZE = ()
    # "conv": convolutions with batch normalisation in the place of a patch embedding, from which a
    # trunk without published weights learns much sooner; "own" is the network as it is.
    cfg.MODEL.FX.TRUNK.STEM = "own"
    # Further arguments of the timm network, such as {embed_dim: 24, depths: [1, 1, 1, 1]} for a
    # tiny variant; they win over those of the row.
    cfg.MODEL.FX.TRUNK.KWARGS = CN(new_allowed=True)


def _add_heads(cfg: CN) -> None:
    # Sources that have heads; () is those of DATASETS.TRAIN. Names make a model for prediction
    # independent of what is on disk.
    cfg.MODEL.FX.SOURCES = ()
    # Weights of several runs (files or their folders), evaluated as one by their mean label
    # probabilities in place of MODEL.WEIGHTS. Each is built from its own config.
    cfg.MODEL.FX.ENSEMBLE = ()
    # torch.compile of the trunk: the heads see boxes whose number differs from image to image.
    cfg.MODEL.FX.COMPILE = False
    # Channels-last memory: faster convolutions in low precision on a GPU.
    cfg.MODEL.FX.CHANNELS_LAST = False
    # Detectron2's RPN, whose anchors do not depend on what else is in the batch of a process.
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "SeededRPN"
    cfg.MODEL.FX.CLS = CN()
    # Entry of fx_d2.modeling.heads.CLASSIFIER_REGISTRY.
    cfg.MODEL.FX.CLS.NAME = "MultiSourceClassifier"
    # Loss of independent labels: "bce" (the paper's), "asymmetric", "focal"; or, by PREVALENCE,
    # "class_weighted", "asymmetric_weighted", "ldam", "logit_adjusted".
    cfg.MODEL.FX.CLS.LOSS = "bce"
    # Loss where exactly one class is true: "ce", or "bce" as the paper does for RSNA (1.2).
    cfg.MODEL.FX.CLS.MULTICLASS_LOSS = "ce"
    # {source: [share of positives, per class]}, for the losses that need it and for the groups of
    # TEST.FX.TAIL. Training counts those of a source not named over its records and keeps them
    # here, so that a checkpoint has them.
    cfg.MODEL.FX.CLS.PREVALENCE = CN(new_allowed=True)
    # {source: [labelled training images, per class]}, counted likewise.
    cfg.MODEL.FX.CLS.LABELLED = CN(new_allowed=True)
    _add_label_losses(cfg)
    _add_pyramid(cfg)
    # Channels of a hidden layer before the linear one, per source; 0 is none, as in the paper.
    cfg.MODEL.FX.CLS.PROJECTOR = 0
    # Share of the pooled features dropped in training; the paper has none.
    cfg.MODEL.FX.CLS.DROPOUT = 0.0
    cfg.MODEL.FX.CLS.LOCAL = CN()
    # Stages whose places each vote for a class beside the pooled last stage, so that a finding of a
    # few cells is not averaged away; () is the paper's classifier.
    cfg.MODEL.FX.CLS.LOCAL.IN_FEATURES = ()
    # Channels of the shared map these stages are fused into.
    cfg.MODEL.FX.CLS.LOCAL.DIM = 128
    # How the votes of all places become one: "lse" (a soft maximum), "attention" (weighted by their
    # own softmax), "max", or "avg".
    cfg.MODEL.FX.CLS.LOCAL.POOL = "lse"
    # Between the mean (towards 0) and the maximum (large) of the votes, for "lse" and "attention".
    cfg.MODEL.FX.CLS.LOCAL.SHARPNESS = 4.0
    cfg.MODEL.FX.LOC = CN()
    # X+ (1.5): one box and mask head for all sources, and a predictor per source. False is X: both
    # per source.
    cfg.MODEL.FX.LOC.SHARED_DECODER = False
    # Sources whose row says so have one class, "any", as in the paper (1.3); False keeps all.
    cfg.MODEL.FX.LOC.AGNOSTIC = True
    cfg.MODEL.FX.SEG = CN()
    # "pyramid", narrow and with a norm everywhere; or "upernet", the layout that the weights of
    # Foundation X are for (it wants NORM "BN" and CHANNELS as wide as the finest stage).
    cfg.MODEL.FX.SEG.DECODER = "pyramid"
    # Channels of the decoder (1.4).
    cfg.MODEL.FX.SEG.CHANNELS = 128
    # Stages it reads, fine to coarse (1.4).
    cfg.MODEL.FX.SEG.IN_FEATURES = ("res2", "res3", "res4", "res5")
    # Cells per side of the pyramid pooling (1.4).
    cfg.MODEL.FX.SEG.BINS = (1, 2, 4, 6)
    # Group normalisation: batch statistics would mix the sources and do not exist for one image.
    cfg.MODEL.FX.SEG.NORM = "GN"
    # Share of the pooled channels dropped in training (1.4).
    cfg.MODEL.FX.SEG.DROPOUT = 0.1
    # "dice" (the paper's), "bce", or their sum "bce_dice", which also learns where a mask is empty.
    cfg.MODEL.FX.SEG.LOSS = "bce_dice"
    # What one Dice runs over: "batch" (the paper's X, 1.4: large structures dominate), "channel"
    # (X+, 1.5) or "image".
    cfg.MODEL.FX.SEG.DICE_OVER = "channel"
    # Probability from which a pixel belongs to a mask, of a class or of a box.
    cfg.MODEL.FX.SEG.THRESHOLD = 0.5
    # Return probabilities (float16) in place of masks: two bytes against one per pixel and class.
    cfg.MODEL.FX.SEG.SOFT_MASKS = False


def _add_label_losses(cfg: CN) -> None:
    cfg.MODEL.FX.CLS.ASYMMETRIC = CN()
    # How much easy negatives count less; this and the next two are the defaults of its authors.
    cfg.MODEL.FX.CLS.ASYMMETRIC.GAMMA_NEGATIVE = 4.0
    # How much easy positives count less: they are few.
    cfg.MODEL.FX.CLS.ASYMMETRIC.GAMMA_POSITIVE = 1.0
    # Taken off the probability of a negative, so that the very easy ones count nothing.
    cfg.MODEL.FX.CLS.ASYMMETRIC.CLIP = 0.05
    cfg.MODEL.FX.CLS.FOCAL = CN()
    # How much easy labels count less; RetinaNet's.
    cfg.MODEL.FX.CLS.FOCAL.GAMMA = 2.0
    # Factor of positives, negatives have 1 less it; RetinaNet's.
    cfg.MODEL.FX.CLS.FOCAL.ALPHA = 0.25
    cfg.MODEL.FX.CLS.LDAM = CN()
    # Margin of the rarest label, in units of the logits; the published 0.5.
    cfg.MODEL.FX.CLS.LDAM.MAX_MARGIN = 0.5
    # Factor of the logits after the margin. Published is 30, for logits that are cosines; these are
    # not.
    cfg.MODEL.FX.CLS.LDAM.SCALE = 1.0
    # Share of the run from which on labels are weighed by the effective number of their images
    # (DRW); 1 is never. Published: 160 of 200 epochs.
    cfg.MODEL.FX.CLS.LDAM.REWEIGH_FROM = 0.8
    # Of that number, from 0 (no weights) to below 1 (inverse to the number of images).
    cfg.MODEL.FX.CLS.LDAM.BETA = 0.9999
    # Of "logit_adjusted": factor of the log odds; 1 is the published one.
    cfg.MODEL.FX.CLS.TAU = 1.0


def _add_pyramid(cfg: CN) -> None:
    """Of "PyramidClassifier"; docs/systems/fpsm_dadam.md says what of it the poster states."""
    node = cfg.MODEL.FX.CLS.PYRAMID = CN()
    # Stages of the trunk, 4 the deepest (stride 32), 1 the finest (stride 4); the best of the
    # poster's table 1.
    node.LEVELS = (4, 3, 2)
    # "fpn": coarse levels are added to finer ones, all with DIM channels; "none": stages as they
    # are.
    node.NECK = "fpn"
    # Channels of every level with "fpn"; those of the FPN paper.
    node.DIM = 256
    # A LayerNorm before every stage. Trunks without norms at their outputs (Swin) need it.
    node.NORM = True
    # "sum" of what the levels say, or one classifier on their vectors side by side ("concat").
    node.FUSE = "sum"
    # One classifier for all levels, so that "sum" is that of the features, as the poster says;
    # False gives each level its own.
    node.SHARED = True
    # What a level counts: "one", "resolution" (in proportion to the side of its map) or "learned".
    node.WEIGHT = "one"
    # Weight of the losses of the levels alone; the poster has them and gives no weight.
    node.AUX = 0.5
    # Places of a level to its vector: "avg", or "csra", which adds those that speak for a class.
    node.POOL = "avg"
    # Of "csra": weight of that addition; 0.1 to 0.4 are usual.
    node.CSRA_WEIGHT = 0.2
    # Of "csra": between the mean (towards 0) and the maximum (large) of the places.
    node.CSRA_SHARPNESS = 1.0
    # What else an image is known by: some of "synthetic" (or original), "view", "source",
    # "body_part" (MURA).
    node.CONTEXT = ()


def _add_tuning(cfg: CN) -> None:
    cfg.MODEL.FX.TUNE = CN()
    # What is trained: "full"; "heads" (trunk and shared encoders locked); or all but the trunk, and
    # of that its "last_blocks", "lora" branches on its linear layers, or "adapters" after its
    # blocks. The last two start as the model of MODEL.WEIGHTS, bit for bit.
    cfg.MODEL.FX.TUNE.MODE = "full"
    # Patterns of further parameters to train, such as "seg_decoder.*" in "heads", for a decoder
    # that MODEL.WEIGHTS does not have.
    cfg.MODEL.FX.TUNE.ALSO = ()
    # Deepest blocks of the trunk that "last_blocks" trains.
    cfg.MODEL.FX.TUNE.LAST_BLOCKS = 2
    # Channels between the two layers of a LoRA branch or an adapter.
    cfg.MODEL.FX.TUNE.RANK = 8
    # A LoRA branch counts ALPHA / RANK: one learning rate serves every rank.
    cfg.MODEL.FX.TUNE.ALPHA = 16.0
    # Patterns of the trunk's modules that get a branch, such as "*.attn.qkv"; () is every linear
    # layer of the blocks for "lora", every attention and MLP for "adapters".
    cfg.MODEL.FX.TUNE.MODULES = ()


def _add_evaluation(cfg: CN) -> None:
    cfg.TEST.FX = CN()
    # An image is called positive from this probability on (F1, sensitivity, specificity, accuracy,
    # kappa); ranking figures do not depend on it.
    cfg.TEST.FX.THRESHOLD = 0.5
    # "fixed" is THRESHOLD; "f1" and "youden" (sensitivity + specificity) choose by class what is
    # best on the dataset that is evaluated. Test data is refused: choose on validation data.
    cfg.TEST.FX.THRESHOLD_POLICY = "fixed"
    # results.json of such an evaluation of the validation data: its thresholds are used; "" is
    # none.
    cfg.TEST.FX.THRESHOLD_FROM = ""
    # Two shares of training images, such as (0.01, 0.1): figures are also given as means over the
    # classes rarer than the first (tail), from the second on (head) and between (medium). () is
    # none.
    cfg.TEST.FX.TAIL = ()
    # Replicates of the bootstrap by patient behind the 95 % intervals; 0 gives none. A thousand
    # fix the bounds to about a tenth of their width.
    cfg.TEST.FX.BOOTSTRAP = 1000
    # "source=key of its records": images that share the key are one case with their mean
    # probability, such as "mura=study_id".
    cfg.TEST.FX.GROUP_BY = ()
    # A box counts as shown from this score on (RSNA's score, false positives on finding-free
    # films).
    cfg.TEST.FX.SCORE_THRESHOLD = 0.5
    # Overlap at which a lesion is found, for FROC; VinDr's rule.
    cfg.TEST.FX.MATCH_IOU = 0.4
    # COCO's figures by "faster-coco-eval" or "pycocotools", which agree; "auto" is the first where
    # it is installed.
    cfg.TEST.FX.COCO_BACKEND = "auto"
    # Whether the boundary distance HD95 of dense masks is measured: it takes most of the time.
    cfg.TEST.FX.HD95 = False
    # Whether per_image/<dataset>_<task>.csv stand beside the results: which images a model fails on
    # says more than a mean, and the figures are there anyway. A line per image and class, about
    # 15 MB for the 25,596 test images of NIH.
    cfg.TEST.FX.PER_IMAGE = True


def _add_cycle(cfg: CN) -> None:
    cfg.CYCLE = CN()
    # A preset of fx_d2/engine/cycles: "paper" (lock-release), "x_code" and "x_plus" (as released),
    # "organs", "cyclic" (never locked), "sequential", "joint"; "custom" takes all from the keys
    # below; "" is joint training without a cycle.
    cfg.CYCLE.NAME = ""
    # Cycles to train: sets SOLVER.MAX_ITER. 0 leaves that as it is, and a cycle may be cut.
    cfg.CYCLE.CYCLES = 0
    # Iterations after which a phase ends at the latest, to try a schedule on much data; 0 is none.
    cfg.CYCLE.MAX_STEPS_PER_PHASE = 0
    # In place of the preset's, as all keys below. Slots in their order: "source/task" with * and ?,
    # or {slot: "rsna/loc", phases: [...]} for one with phases of its own. "*" is every source of
    # DATASETS.TRAIN in its order, each with all its tasks.
    cfg.CYCLE.SLOTS = ()
    # {task: [{name: lock, share: 0.5, train: [group, ...]}, ...]}; train: all is every group.
    cfg.CYCLE.PHASES = CN(new_allowed=True)
    # {group: {patterns: ["trunk.*", ...], tasks: [cls, ...]}} over parameter names: each parameter
    # in exactly one group; tasks are those whose losses depend on it, by default all.
    cfg.CYCLE.GROUPS = CN(new_allowed=True)
    # "cyclic", "sequential" (CYCLES times one source, then the next) or "joint".
    cfg.CYCLE.ORDER = ""
    # What counts as a slot: a "visit" to a (source, task) with all its phases, or every "phase".
    cfg.CYCLE.SLOT_IS = ""
    # What locked norm layers, dropout and drop path do: "eval" (locked is still: statistics rest,
    # features are those of prediction) or "train" (the released code: only gradients are off).
    cfg.CYCLE.LOCKED_LAYERS = ""
    # Learning rate refreshed every "step", or where a "cycle" begins (released code, 2.3).
    cfg.CYCLE.LR_PER = ""


def _add_teacher(cfg: CN) -> None:
    # All of it is for MODEL.META_ARCHITECTURE "StudentTeacher"; configs/teacher/ has presets.
    cfg.TEACHER = CN()
    # When the teacher moves towards the student: after every "iteration", or after every "phase" of
    # a cycle as in the released code (3.1).
    cfg.TEACHER.UPDATE = "iteration"
    # Share of the teacher that stays at an update. The paper's 0.80 per phase leaves nothing of the
    # cycle before (0.8^29); 0.999 per iteration remembers about a thousand.
    cfg.TEACHER.MOMENTUM = 0.999
    # How it goes from MOMENTUM to MOMENTUM_END over the run: "constant", "linear" or "cosine".
    cfg.TEACHER.MOMENTUM_SCHEDULE = "constant"
    # Where "linear" and "cosine" end; towards 1 the average grows longer.
    cfg.TEACHER.MOMENTUM_END = 1.0
    # Bound update t by (1 + t) / (10 + t), so that the random start is soon forgotten.
    cfg.TEACHER.MOMENTUM_WARMUP = True
    # Running statistics of norm layers are "average"d as weights are, or "copy"d. Left alone, as in
    # the released code, they would stay at their start.
    cfg.TEACHER.BUFFERS = "average"
    # Of the consistency loss; 0 trains without it, the teacher is an average only.
    cfg.TEACHER.WEIGHT = 1.0
    # Iterations over which the weight grows from nearly nothing (exp(-5 (1 - x)^2)): an untrained
    # teacher has little to say. 0 is the full weight from the start.
    cfg.TEACHER.RAMP_ITERS = 0
    # "sum" adds it to the losses of the task; "convex" takes 1 - WEIGHT of these (released code,
    # 3.2).
    cfg.TEACHER.MIX = "sum"
    # Between features: "cosine" (1 - cosine per place, whatever the scale), "mse", or "unit_mse" of
    # features of unit length.
    cfg.TEACHER.DISTANCE = "cosine"
    # Exceptions "task=distance".
    cfg.TEACHER.DISTANCE_BY = ()
    # 2 gives the teacher a view of its own, the same place with other grey levels; 1 the student's
    # image, at no cost.
    cfg.TEACHER.VIEWS = 1
    # The teacher's view, as the keys of INPUT.FX.AUG.<TASK>; the student's is what these say.
    node = cfg.TEACHER.VIEW = CN()
    # See INPUT.FX.AUG: brightness factor.
    node.BRIGHTNESS = 0.2
    # Contrast factor.
    node.CONTRAST = 0.2
    # Exponent: another exposure of the same patient.
    node.GAMMA = 0.2
    # Standard deviation of noise.
    node.NOISE = 0.02
    # Standard deviation of a blur in pixels; off, small findings are of that size.
    node.BLUR_PX = 0.0
    # Probability of each of the five above.
    node.GREY_PROB = 0.5
    # Whose predictions are evaluated: "student", "teacher", or "both", one after the other. Metrics
    # of the teacher are named "teacher/<source>/<task>/<metric>".
    cfg.TEACHER.EVALUATE = "teacher"


def _add_forgetting(cfg: CN) -> None:
    cfg.FORGETTING = CN()
    # When every head is scored: after every "slot" or "cycle" of a cycle, or every PERIOD
    # "iterations"; "" is never.
    cfg.FORGETTING.AFTER = ""
    # Iterations between two scores.
    cfg.FORGETTING.PERIOD = 0
    # Score before the first iteration too: forward transfer is measured from there.
    cfg.FORGETTING.AT_START = True
    # Datasets to score on; () is "<source>_val" of every source with a head. Test sets are refused:
    # what is looked at this often is chosen by.
    cfg.FORGETTING.DATASETS = ()
    # "task=metric", the one figure of a head.
    cfg.FORGETTING.METRICS = ("cls=AUC", "loc=AP40", "seg=Dice_positive")
