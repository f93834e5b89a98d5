"""What has to change in the Detectron2 0.6 source before it builds and runs today.

The table is applied by ``install_detectron2.py`` to the unpacked source distribution. Each row says
which text it replaces, how often that text must occur and why; nothing is written unless every row
fits. Standard library only: this runs before anything else is installed.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path


class PatchError(RuntimeError):
    """The source is not the one the patches were written for, or is patched already."""


@dataclass(frozen=True)
class Patch:
    """One textual replacement.

    Attributes:
        name: Short unique name, used in messages and in the tests.
        file: Path inside the source tree, with forward slashes.
        old: Text to be replaced, exactly as it is in the source.
        new: Text put in its place.
        why: What breaks without it.
        count: How many times ``old`` must occur.
    """

    name: str
    file: str
    old: str
    new: str
    why: str
    count: int = 1


# Detectron2's compiled extension is absent. Importing it works, so that every module that mentions
# it can be imported; using one of its functions says what is missing.
_C_SOURCE = '''\
"""Stands in for Detectron2's compiled extension, which this pure-Python build does not have."""


class MissingCompiledOp(AttributeError, NotImplementedError):
    """A compiled operator was asked for. An AttributeError, so that hasattr() answers False."""


def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    raise MissingCompiledOp(
        f"detectron2._C.{name} is a compiled operator and this is the pure-Python build of "
        "Detectron2. Rotated boxes, deformable convolution on a GPU and the fast COCO evaluation "
        "need it. Build the official Detectron2 to have it: "
        "python tools/install_detectron2.py --official"
    )
'''

GENERATED_FILES: dict[str, str] = {"detectron2/_C.py": _C_SOURCE}

_NUMPY_ALIAS = (
    "NumPy 1.24 removed the aliases np.int, np.float, np.str and np.bool; the last one came back "
    "in 2.0."
)
_NO_SOURCES = "The distribution has no C++ or CUDA sources, so that there is nothing to compile"

PATCHES: tuple[Patch, ...] = (
    # Building.
    Patch(
        name="setup-torch-import",
        file="setup.py",
        old=(
            "import torch\n"
            "from torch.utils.cpp_extension import CUDA_HOME, CppExtension, CUDAExtension\n\n"
            'torch_ver = [int(x) for x in torch.__version__.split(".")[:2]]\n'
            'assert torch_ver >= [1, 8], "Requires PyTorch >= 1.8"\n'
        ),
        new="",
        why=f"{_NO_SOURCES} and torch is not needed to build.",
    ),
    Patch(
        name="setup-extension",
        file="setup.py",
        old=(
            "    ext_modules=get_extensions(),\n"
            '    cmdclass={"build_ext": torch.utils.cpp_extension.BuildExtension},\n'
        ),
        new="",
        why=f"{_NO_SOURCES}; get_extensions() fails on the missing vision.cpp.",
    ),
    Patch(
        name="setup-packages",
        file="setup.py",
        old='find_packages(exclude=("configs", "tests*"))',
        new='find_packages(include=("detectron2", "detectron2.*"))',
        why="Would install a top-level package 'tools' too, which hides the tools/ of others.",
    ),
    Patch(
        name="setup-requirements",
        file="setup.py",
        old=(
            '        "future",  # used by caffe2\n'
            '        "pydot",  # used to save caffe2 SVGs\n'
            "        \"dataclasses; python_version<'3.7'\",\n"
            '        "omegaconf>=2.1",\n'
            '        "hydra-core>=1.1",\n'
            '        "black==21.4b2",\n'
        ),
        new='        "omegaconf>=2.1",\n        "hydra-core>=1.1",\n',
        why="black==21.4b2 excludes every current click; future and pydot were for caffe2.",
    ),
    Patch(
        name="setup-model-zoo-configs",
        file="setup.py",
        old='package_data={"detectron2.model_zoo": get_model_zoo_configs()}',
        new='package_data={"detectron2.model_zoo": ["configs/**/*.yaml", "configs/**/*.py"]}',
        why=(
            "Looks for configs/ beside setup.py, where this distribution has none: the model zoo's "
            "config files, which lie inside the package, would be left out of the wheel."
        ),
    ),
    # The compiled extension.
    Patch(
        name="nms-rotated",
        file="detectron2/layers/nms.py",
        old="    return torch.ops.detectron2.nms_rotated(boxes, scores, iou_threshold)\n",
        new=(
            "    from detectron2 import _C\n\n"
            "    return _C.nms_rotated(boxes, scores, iou_threshold)\n"
        ),
        why="torch.ops only says that '_OpNamespace' has no such attribute; _C says what to do.",
    ),
    Patch(
        name="coco-fast-eval",
        file="detectron2/evaluation/coco_evaluation.py",
        old="        self._use_fast_impl = use_fast_impl\n",
        new=(
            "        self._use_fast_impl = use_fast_impl and hasattr("
            '_C, "COCOevalEvaluateImages")\n'
        ),
        why="use_fast_impl=True is the default and needs the compiled extension: use pycocotools.",
    ),
    Patch(
        name="coco-fast-eval-import",
        file="detectron2/evaluation/coco_evaluation.py",
        old="from detectron2.config import CfgNode\n",
        new="from detectron2 import _C\nfrom detectron2.config import CfgNode\n",
        why="Needed by the row above.",
    ),
    Patch(
        name="collect-env",
        file="detectron2/utils/collect_env.py",
        old=(
            "        import detectron2._C as _C\n"
            "    except ImportError as e:\n"
            '        data.append(("detectron2._C", f"not built correctly: {e}"))\n'
        ),
        new=(
            "        import detectron2._C as _C\n\n"
            "        _C.get_compiler_version\n"
            "    except (ImportError, AttributeError):\n"
            '        data.append(("detectron2._C", "not built (pure-Python build)"))\n'
        ),
        why="Calls the compiled extension; default_setup() of every run comes through here.",
    ),
    # Pillow.
    Patch(
        name="pillow-linear",
        file="detectron2/data/transforms/transform.py",
        old="interp=Image.LINEAR",
        new="interp=Image.BILINEAR",
        why="Pillow 10 removed Image.LINEAR, an alias: importing detectron2.data fails.",
    ),
    # NumPy.
    Patch(
        name="numpy-build",
        file="detectron2/data/build.py",
        old="dtype=np.int\n        )\n",
        new="dtype=int\n        )\n",
        why=_NUMPY_ALIAS,
    ),
    Patch(
        name="numpy-build-histogram",
        file="detectron2/data/build.py",
        old="    histogram = np.zeros((num_classes,), dtype=np.int)\n",
        new="    histogram = np.zeros((num_classes,), dtype=int)\n",
        why=_NUMPY_ALIAS,
    ),
    Patch(
        name="numpy-pascal-voc-data",
        file="detectron2/data/datasets/pascal_voc.py",
        old="np.loadtxt(f, dtype=np.str)",
        new="np.loadtxt(f, dtype=str)",
        why=_NUMPY_ALIAS,
    ),
    Patch(
        name="numpy-pascal-voc-evaluation",
        file="detectron2/evaluation/pascal_voc_evaluation.py",
        old='np.array([x["difficult"] for x in R]).astype(np.bool)',
        new='np.array([x["difficult"] for x in R]).astype(bool)',
        why=_NUMPY_ALIAS,
    ),
    Patch(
        name="numpy-sem-seg-int",
        file="detectron2/evaluation/sem_seg_evaluation.py",
        old="dtype=np.int)",
        new="dtype=int)",
        why=_NUMPY_ALIAS,
        count=2,
    ),
    Patch(
        name="numpy-sem-seg-float-dtype",
        file="detectron2/evaluation/sem_seg_evaluation.py",
        old="dtype=np.float)",
        new="dtype=float)",
        why=_NUMPY_ALIAS,
        count=2,
    ),
    Patch(
        name="numpy-sem-seg-float-cast",
        file="detectron2/evaluation/sem_seg_evaluation.py",
        old=".astype(np.float)",
        new=".astype(float)",
        why=_NUMPY_ALIAS,
        count=3,
    ),
    Patch(
        name="numpy-masks-cast",
        file="detectron2/structures/masks.py",
        old=".astype(np.bool)",
        new=".astype(bool)",
        why=_NUMPY_ALIAS,
        count=2,
    ),
    Patch(
        name="numpy-masks-dtype",
        file="detectron2/structures/masks.py",
        old="np.asarray(keep, dtype=np.bool)",
        new="np.asarray(keep, dtype=bool)",
        why=_NUMPY_ALIAS,
    ),
    Patch(
        name="numpy-visualizer",
        file="detectron2/utils/visualizer.py",
        old=".numpy().astype(np.bool)",
        new=".numpy().astype(bool)",
        why=_NUMPY_ALIAS,
        count=3,
    ),
    Patch(
        name="numpy-video-visualizer",
        file="detectron2/utils/video_visualizer.py",
        old="np.zeros((len(instances),), dtype=np.bool)",
        new="np.zeros((len(instances),), dtype=bool)",
        why=_NUMPY_ALIAS,
    ),
    # setuptools, Python.
    Patch(
        name="pkg-resources-import",
        file="detectron2/model_zoo/model_zoo.py",
        old="import pkg_resources\n",
        new="",
        why="setuptools 82 removed pkg_resources: importing detectron2.model_zoo fails.",
    ),
    Patch(
        name="pkg-resources-use",
        file="detectron2/model_zoo/model_zoo.py",
        old=(
            "    cfg_file = pkg_resources.resource_filename(\n"
            '        "detectron2.model_zoo", os.path.join("configs", config_path)\n'
            "    )\n"
        ),
        new=(
            "    cfg_file = os.path.join(\n"
            '        os.path.dirname(os.path.abspath(__file__)), "configs", config_path\n'
            "    )\n"
        ),
        why="setuptools 82 removed pkg_resources.",
    ),
    Patch(
        name="map-dataset-sample",
        file="detectron2/data/common.py",
        old="self._rng.sample(self._fallback_candidates, k=1)[0]",
        new="self._rng.sample(tuple(self._fallback_candidates), k=1)[0]",
        why=(
            "Python 3.11 no longer samples from a set: a mapper that returns None stops the run. "
            "A tuple is what earlier versions made of it, so that the draws are the same."
        ),
    ),
    # torch.
    Patch(
        name="caffe2-export",
        file="detectron2/export/__init__.py",
        old="from .api import *\nfrom .flatten import TracingAdapter\n",
        new=("from .flatten import TracingAdapter\n"),
        why="torch no longer ships caffe2: importing detectron2.export (and utils.analysis) fails.",
    ),
    Patch(
        name="caffe2-names",
        file="detectron2/export/__init__.py",
        old='__all__ = [k for k in globals().keys() if not k.startswith("_")]\n',
        new=(
            '__all__ = [k for k in globals().keys() if not k.startswith("_")]\n\n\n'
            "def __getattr__(name):\n"
            '    if name in ("Caffe2Model", "Caffe2Tracer", "add_export_config",\n'
            '                "export_caffe2_model", "export_onnx_model"):\n'
            "        raise ImportError(\n"
            '            f"detectron2.export.{name} needs caffe2, which torch no longer ships. "\n'
            '            "Use TracingAdapter with torch.onnx.export(dynamo=False) instead."\n'
            "        )\n"
            '    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")\n'
        ),
        why="The names that need caffe2 are still asked for in tutorials: say why they are gone.",
    ),
    Patch(
        name="lr-scheduler-hook",
        file="detectron2/engine/hooks.py",
        old="isinstance(self.scheduler, torch.optim.lr_scheduler._LRScheduler)",
        new="isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler)",
        why=(
            "torch 2.0 made _LRScheduler a subclass of LRScheduler. StepLR and its like are no "
            "longer instances of it: their state is silently not saved, and a resumed run restarts "
            "its schedule."
        ),
        count=2,
    ),
    Patch(
        name="meshgrid-indexing",
        file="detectron2/modeling/anchor_generator.py",
        old="torch.meshgrid(shifts_y, shifts_x)",
        new='torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        why="torch announces that the indexing argument becomes required; every run warns.",
    ),
)


def patch_label() -> str:
    """The local version label of the patched build, for example ``fx.1a2b3c4d``.

    It changes with the table, so that a build made from an older table is recognised.
    """
    rows = [(patch.file, patch.old, patch.new, patch.count) for patch in PATCHES]
    content = repr((rows, sorted(GENERATED_FILES.items()))).encode()
    return "fx." + hashlib.sha256(content).hexdigest()[:8]


def apply_patches(
    root: Path,
    patches: tuple[Patch, ...] | None = None,
    generated: dict[str, str] | None = None,
) -> None:
    """Patch an unpacked source tree, all of it or nothing.

    Args:
        root: The folder that holds ``setup.py``.
        patches: Rows to apply, in this order. Default: ``PATCHES``.
        generated: Files to add, path to text; they must not exist. Default: ``GENERATED_FILES``.

    Raises:
        PatchError: A text to be replaced is not there as often as expected, a replacement is there
            already, or a file to be added exists.
    """
    patches = PATCHES if patches is None else patches
    generated = GENERATED_FILES if generated is None else generated
    texts: dict[str, str] = {}
    for patch in patches:
        if patch.file not in texts:
            path = root / patch.file
            if not path.is_file():
                raise PatchError(f"{patch.file}: no such file (patch {patch.name!r})")
            texts[patch.file] = path.read_text(encoding="utf-8")
        texts[patch.file] = _apply_one(patch, texts[patch.file])
    for name in generated:
        if (root / name).exists():
            raise PatchError(f"{name}: exists already, but is to be generated")
    texts.update(generated)
    for name, text in texts.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def _apply_one(patch: Patch, text: str) -> str:
    found = text.count(patch.old)
    # A replacement that contains what it replaces could be applied twice without this.
    if patch.old in patch.new and patch.new in text:
        raise PatchError(f"{patch.file}: patch {patch.name!r} is applied already")
    if found != patch.count:
        raise PatchError(
            f"{patch.file}: patch {patch.name!r} expects its text {patch.count} time(s), found "
            f"{found}. This is not the source the patch was written for. Text: {patch.old!r}"
        )
    return text.replace(patch.old, patch.new)
