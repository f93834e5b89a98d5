"""Tools are tried on what the tests of the engine are tried on."""

from __future__ import annotations

import sys
from pathlib import Path

# Makes ``studies`` importable.
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "engine"))
