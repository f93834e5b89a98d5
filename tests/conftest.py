"""Settings every test runs with, also when pytest is called without make."""

from __future__ import annotations

import os

# Before anything imports torch or matplotlib. OpenMP threads that spin while they wait slow torch
# many times on a shared machine; an attempt to reach a model hub would hang in retries.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
