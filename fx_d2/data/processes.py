"""Worker processes of the tools, which an interrupt leaves to their parent."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context

import cv2


@contextmanager
def worker_pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes with one OpenCV thread each; what still waits at the end is dropped.

    Not forked: a child would inherit threads and locks of torch, OpenCV or a progress bar. A
    terminal sends Ctrl-C to every process of its group; the workers never see it, or each would
    print a traceback of its own beside the one line of the parent.

    Args:
        workers: how many, at least 1.
    """
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=cv2.setNumThreads, initargs=(1,)
    )
    others = set(active_children())
    try:
        with _interrupts_held():  # a new process inherits what is blocked
            for _ in range(workers):  # Python 3.10 starts one process per task
                pool.submit(os.getpid)
        yield pool
    except BaseException:
        # Nobody wants their results: do not wait until they have imported what they need.
        for process in set(active_children()) - others:
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """SIGINT is delivered after the block."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
