"""fx_d2: classification, localization and segmentation of chest radiographs, learned together, on Detectron2.

Importing this package registers datasets and components and does nothing else: no file is read, nothing is
downloaded, no seed and no thread setting is touched.
"""

from __future__ import annotations

__version__ = "0.1.0"
