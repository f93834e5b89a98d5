"""Weights of other projects as fx_d2 checkpoints: what has a place here is put there exactly.

:mod:`.read` opens a file and tells what it is, :mod:`.rules` says where each of its names belongs
or why it has no place, :mod:`.convert` checks shapes, writes and reports, :mod:`.merge` folds LoRA
weights of our own.
"""

from .convert import Conversion, convert, write_conversion
from .merge import merged_lora
from .read import Foreign, read_foreign

__all__ = [
    "Conversion",
    "Foreign",
    "convert",
    "merged_lora",
    "read_foreign",
    "write_conversion",
]
