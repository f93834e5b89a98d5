"""Keys of the network: MODEL.FX, and which of its parameters are trained."""

from __future__ import annotations

from detectron2.config import CfgNode as CN

from .labels import add_label_losses, add_pyramid


def add_model(cfg: CN) -> None:
    """Trunk, heads, and what of them is tuned."""
    cfg.MODEL.FX = CN()
    _add_trunk(cfg)
    _add_heads(cfg)
    _add_tuning(cfg)


def _add_trunk(cfg: CN) -> None:
    cfg.MODEL.FX.TRUNK = CN()
    # A row of docs/backbones.md (swin_b: every published Foundation X result) or any network of
    # timm with a feature pyramid, such as "convnext_small.fb_in22k"; an encoder's name where
    # MODEL.BACKBONE.NAME is build_smp_encoder (docs/systems/hybrid.md).
    cfg.MODEL.FX.TRUNK.NAME = "swin_b"
    # "" starts from random weights; "timm" from the network's published weights (model hub or its
    # local cache), which encoders of build_smp_encoder call "imagenet"; else a .safetensors or .pth
    # file.
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
    # Weight of a batch in the running statistics of "conv", which predictions are made with. 0.02
    # remembers the last fifty batches: a cycle that stays with a source for long wants less.
    cfg.MODEL.FX.TRUNK.STEM_MOMENTUM = 0.02
    # Weight of a batch in the running statistics of an encoder of build_smp_encoder; 0 is its own,
    # which for EfficientNet (0.01) is too slow for a short run from random weights.
    cfg.MODEL.FX.TRUNK.NORM_MOMENTUM = 0.0
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
    _add_classifier(cfg)
    _add_decoders(cfg)


def _add_classifier(cfg: CN) -> None:
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
    add_label_losses(cfg)
    add_pyramid(cfg)
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


def _add_decoders(cfg: CN) -> None:
    cfg.MODEL.FX.LOC = CN()
    # X+ (1.5): one box and mask head for all sources, and a predictor per source. False is X: both
    # per source.
    cfg.MODEL.FX.LOC.SHARED_DECODER = False
    # Sources whose row says so have one class, "any", as in the paper (1.3); False keeps all.
    cfg.MODEL.FX.LOC.AGNOSTIC = True
    cfg.MODEL.FX.SEG = CN()
    # "pyramid", narrow and with a norm everywhere; or "upernet", the layout that the weights of
    # Foundation X are for (it wants NORM "BN" and CHANNELS as wide as the finest stage); or "unet",
    # "linknet" and "fpn" of segmentation_models_pytorch, with stages and norms of their own.
    cfg.MODEL.FX.SEG.DECODER = "pyramid"
    # Channels of the decoder (1.4), that is of its map. 0 is the usual width of "unet" (16),
    # "linknet" (32) and "fpn" (128), whose other layers go with it.
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
    # Evaluations then have BCE, a validation loss.
    cfg.MODEL.FX.SEG.SOFT_MASKS = False


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
