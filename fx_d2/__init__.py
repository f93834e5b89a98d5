"""Classification, localization and segmentation of chest radiographs, learned together.

An extension of Detectron2 for public datasets that are each annotated for only some tasks.

Importing this package registers datasets and components and does nothing else: no file is read,
nothing is downloaded, no seed and no thread setting is touched.
"""

from __future__ import annotations

import warnings as _warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .predictor import Predictor

__version__ = "0.1.0"

try:
    with _warnings.catch_warnings():
        # fvcore and Detectron2 script small functions when they are imported; nothing a user could
        # change.
        _warnings.filterwarnings("ignore", message="`torch.jit.script` is", category=FutureWarning)
        import detectron2.modeling as _d2_modeling  # noqa: F401
except ImportError as exc:
    raise ImportError(
        "fx_d2 extends Detectron2, which cannot be imported here "
        f"({exc}). Install it with: python tools/install_detectron2.py"
    ) from exc

from . import modeling as _modeling  # noqa: F401  (registers trunks, heads, meta-architectures)
from .config import add_fx_config
from .data import builtin as _builtin  # noqa: F401  (registers <source>_<split>)

__all__ = ["Predictor", "__version__", "add_fx_config"]


def __getattr__(name: str) -> Any:
    """``Predictor`` when it is asked for: training and reading data do without its imports."""
    if name == "Predictor":
        from .predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
