"""Checks of datasets before anyone spends a GPU day; ``tools/doctor.py`` is its command line.

Records and files are looked at once and reduced to a table of facts (``examination.py``,
``facts.py``); every check is a registered generator over that table (``findings.py``), one module
per family.
"""

from .findings import CHECKS, Check, Finding, Hit, Report, check, check_table
from .run import examine

__all__ = ["CHECKS", "Check", "Finding", "Hit", "Report", "check", "check_table", "examine"]
