"""Imported first by the tools: Ctrl-C while torch is being imported ends them without a traceback.

Importing takes seconds and leaves nothing to clean up, so the signal may simply end the process;
``fx_d2.command_line.tool`` takes over when the work begins.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

_run_as_a_tool = Path(sys.argv[0]).absolute().parent == Path(__file__).absolute().parent
if _run_as_a_tool and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
