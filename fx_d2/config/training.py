"""Keys of a run: SOLVER.FX, TEST.FX, CYCLE, TEACHER and FORGETTING."""

from __future__ import annotations

from detectron2.config import CfgNode as CN


def add_training(cfg: CN) -> None:
    """From optimizer to evaluation, with the schedule between."""
    _add_solver(cfg)
    _add_evaluation(cfg)
    _add_cycle(cfg)
    _add_teacher(cfg)
    _add_forgetting(cfg)


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
    # Rates are not lowered below this one; 0 is no bound.
    cfg.SOLVER.FX.PLATEAU.MIN_LR = 0.0
    # Iterations between two lines of the log, of metrics.json and of TensorBoard.
    cfg.SOLVER.FX.LOG_PERIOD = 20
    # Seconds after which several processes of which none gets on end, naming the one that the
    # others wait for; an evaluation's last figures have to come within. 0 lets them wait.
    cfg.SOLVER.FX.STUCK_AFTER_S = 1800.0


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
    # Exceptions "task=iterations".
    cfg.CYCLE.MAX_STEPS_PER_PHASE_BY = ()
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
