"""The training loader: one (source, task) at a time, or a mix of them step by step.

Workers start when the first batch of a task is asked for and stop when another task becomes
active: eleven sources with their own workers each would hold eleven times the memory and idle ten
elevenths of the time. What a worker is sent is (record number, position); it holds no random state,
so their number changes nothing, and a loader can begin at any step.
"""

from __future__ import annotations

import copy
import itertools
import logging
import multiprocessing
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from .errors import DataError
from .mapper import FxMapper, Position
from .record import Record
from .samplers import JointSchedule, batch_places, order, pass_length, steps_in_pass
from .source import Source
from .sources import SOURCES

_logger = logging.getLogger(__name__)

Key = tuple[str, str]  # (source, task)
Batch = list[dict[str, Any]]
Records = Sequence[Record]
WeightsOf = Callable[[str, str, Records], "np.ndarray | None"]


@dataclass(frozen=True)
class _Wanted:
    """One image to map: where it is and where in the schedule it stands."""

    key: Key
    index: int
    position: Position


@dataclass(frozen=True)
class _Failed:
    """A bad record met in a worker; raised there, it would arrive as a page of traceback."""

    key: Key
    error: DataError


class _Mapped(Dataset):
    """Maps on demand; lives in the workers."""

    def __init__(self, records: Mapping[Key, Records], mapper: FxMapper) -> None:
        self.records, self.mapper = records, mapper

    def __getitem__(self, wanted: _Wanted) -> dict[str, Any] | _Failed:
        record = self.records[wanted.key][wanted.index]
        try:
            return self.mapper(record, wanted.key[1], wanted.position)
        except DataError as error:
            return _Failed(wanted.key, error)


class _Stream:
    """The batches to come, as the current activation set them; read in the main process."""

    def __init__(self) -> None:
        self.batches: Callable[[], Iterator[list[_Wanted]]] = lambda: iter(())

    def __iter__(self) -> Iterator[list[_Wanted]]:
        return self.batches()


def _as_list(items: list[Any]) -> list[Any]:
    return items


def _begin_worker(rows: Sequence[Source], _: int) -> None:
    """One thread per worker: on a shared machine their thread pools would fight for the cores.

    Args:
        rows: every source there is; a spawned worker knows only those that an import registers.
    """
    for row in rows:
        SOURCES.setdefault(row.key, row)
    torch.set_num_threads(1)
    cv2.setNumThreads(0)


def start_method(name: str) -> str | None:
    """``name``, or for ``""`` fork where the system has it."""
    known = multiprocessing.get_all_start_methods()
    if name and name not in known:
        raise ValueError(f"DATALOADER.FX.START_METHOD is {name!r}; this system has {known}")
    return name or ("fork" if "fork" in known else None)


@dataclass(frozen=True)
class WorkerConfig:
    """How batches are prepared.

    Args:
        num_workers: processes; 0 maps in the calling process.
        prefetch: batches each worker prepares ahead.
        start_method: see ``DATALOADER.FX.START_METHOD``.
        pin_memory: page-locked tensors for a GPU.
    """

    num_workers: int = 0
    prefetch: int = 2
    start_method: str = ""
    pin_memory: bool = False

    def loader(self, dataset: Dataset, batches: Any, *, persistent: bool) -> DataLoader:
        """The DataLoader underneath."""
        processes: dict[str, Any] = {}
        if self.num_workers:
            processes = {
                "prefetch_factor": self.prefetch,
                "persistent_workers": persistent,
                "multiprocessing_context": start_method(self.start_method),
                "worker_init_fn": partial(_begin_worker, tuple(SOURCES.values())),
            }
        return DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=self.num_workers,
            collate_fn=_as_list,
            pin_memory=self.pin_memory,
            # A generator of its own: the base seed of the workers would be drawn from torch's
            # global state, and a run with workers would then differ from one without in every later
            # draw.
            generator=torch.Generator(),
            **processes,
        )


class TaskLoader:
    """Batches of one (source, task) at a time.

    ::

        loader.activate("rsna", "loc", fraction=0.5, pass_index=3)
        for batch in loader: ...                  # list of dicts, see FxMapper

    Args:
        datasets: {(source, task): records, or a function that reads them}; read at the first
            activation.
        mapper: maps a record; its seed should be ``seed``.
        seed: of the order of images.
        batch_size: images per step over all ranks.
        workers: how batches are prepared.
        rank, world_size: this process takes every ``world_size``-th image of each batch.
        last_batch: ``fill``, ``drop`` or ``keep``, see ``DATALOADER.FX.LAST_BATCH``.
        shuffle: whether a pass is shuffled.
        weights_of: gives the weights of a dataset's records, see :func:`fx_d2.data.samplers.order`.
        on_error: ``raise``, or ``skip``: a bad image is left out of its batch, counted and logged.
        keep_records: whether records stay in memory when another task becomes active.
    """

    def __init__(
        self,
        datasets: Mapping[Key, Records | Callable[[], Records]],
        mapper: FxMapper,
        *,
        seed: int,
        batch_size: int,
        workers: WorkerConfig | None = None,
        rank: int = 0,
        world_size: int = 1,
        last_batch: str = "fill",
        shuffle: bool = True,
        weights_of: WeightsOf | None = None,
        on_error: str = "raise",
        keep_records: bool = True,
    ) -> None:
        if batch_size % world_size or batch_size < 1:
            raise ValueError(
                f"batch size {batch_size} is not a multiple of the {world_size} processes it is for"
            )
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error is {on_error!r}; allowed: 'raise', 'skip'")
        steps_in_pass(1, 1, last_batch)
        self._datasets, self._mapper = dict(datasets), mapper
        self._seed, self._batch_size, self._workers = seed, batch_size, workers or WorkerConfig()
        self._rank, self._world_size, self._last_batch = rank, world_size, last_batch
        self._shuffle, self._weights_of = shuffle, weights_of
        self._on_error, self._keep_records = on_error, keep_records
        self._records: dict[Key, Records] = {}
        self._weights: dict[Key, np.ndarray | None] = {}
        self._stream = _Stream()
        self._loader: DataLoader | None = None
        self._serves: tuple[Key, ...] = ()  # what the running workers hold
        self._prepared: Iterator[list[Any]] | None = None
        self._iteration = 0
        self.skipped: Counter[Key] = Counter()

    @property
    def keys(self) -> tuple[Key, ...]:
        """Every (source, task) there is."""
        return tuple(self._datasets)

    def records(self, source: str, task: str) -> Records:
        """The records of (source, task), read now if they were not."""
        key = (source, task)
        if key not in self._datasets:
            known = ", ".join("/".join(k) for k in self._datasets)
            raise KeyError(f"no dataset {source}/{task}; the loader has {known}")
        if key not in self._records:
            given = self._datasets[key]
            self._records[key] = given() if callable(given) else given
            self._weights[key] = (
                self._weights_of(source, task, self._records[key]) if self._weights_of else None
            )
        return self._records[key]

    def images_per_pass(self, source: str, task: str, fraction: float = 1.0) -> int:
        """Images that a pass of (source, task) shows over all ranks, before a batch is filled."""
        n = len(self.records(source, task))
        return pass_length(n, fraction, self._weights[(source, task)])

    def steps_per_pass(self, source: str, task: str, fraction: float = 1.0) -> int:
        """Batches that a pass of (source, task) gives to every rank."""
        length = self.images_per_pass(source, task, fraction)
        return steps_in_pass(length, self._batch_size, self._last_batch)

    def activate(
        self,
        source: str,
        task: str,
        *,
        fraction: float = 1.0,
        pass_index: int = 0,
        start_step: int = 0,
    ) -> int:
        """Make (source, task) the one that iteration gives; workers start at the first batch.

        Args:
            source: whose images.
            task: with which targets.
            fraction: share of a whole pass, in (0, 1].
            pass_index: number of the pass of this (source, task); another number, another order.
            start_step: first step of the pass to give, to continue an interrupted one.

        Returns:
            Steps of the pass, those before ``start_step`` included.
        """
        self._switch(((source, task),))
        steps = self.steps_per_pass(source, task, fraction)

        def batches() -> Iterator[list[_Wanted]]:
            return self._pass(source, task, pass_index, range(start_step, steps), fraction)

        self._stream.batches = batches
        return steps

    def activate_mix(self, schedule: JointSchedule, *, start_step: int = 0) -> None:
        """Make iteration give the endless mix of ``schedule``, from ``start_step`` on."""
        self._switch(schedule.keys)
        for key in schedule.keys:
            self.records(*key)

        def batches() -> Iterator[list[_Wanted]]:
            orders: dict[Key, tuple[int, np.ndarray]] = {}
            for number in itertools.count(start_step):
                source, task, pass_index, step = schedule.at(number)
                held = orders.get((source, task))
                if held is None or held[0] != pass_index:
                    held = (pass_index, self._order(source, task, pass_index, 1.0))
                    orders[(source, task)] = held
                yield self._batch(source, task, pass_index, held[1], step, 1.0)

        self._stream.batches = batches

    def mix(
        self, *, ratio: Mapping[Key, float] | None = None, repeat_to_longest: bool = False
    ) -> JointSchedule:
        """The schedule of joint training over all datasets; its effective mix is logged."""
        steps = {key: self.steps_per_pass(*key) for key in self.keys}
        schedule = JointSchedule(
            self._seed, steps, ratio=ratio, repeat_to_longest=repeat_to_longest
        )
        _logger.info(schedule.describe())
        return schedule

    def __iter__(self) -> Iterator[Batch]:
        """The batches of this rank from the activated step to the end of the pass."""
        if not self._serves:
            raise RuntimeError("no task is active: call activate(source, task) first")
        if self._loader is None:
            records = {key: self.records(*key) for key in self._serves}
            dataset = _Mapped(records, self._mapper)
            self._loader = self._workers.loader(dataset, self._stream, persistent=True)
        # Held here and not by the generator: whoever keeps that would keep the workers alive.
        self._prepared = iter(self._loader)
        self._iteration += 1
        return self._batches(self._iteration)

    def _batches(self, iteration: int) -> Iterator[Batch]:
        while iteration == self._iteration and self._prepared is not None:
            batch = next(self._prepared, None)
            if batch is None:
                return
            yield self._checked(batch)
        raise RuntimeError("the loader was activated or iterated anew: use the new iterator")

    def _checked(self, batch: list[Any]) -> Batch:
        good = []
        for item in batch:
            if not isinstance(item, _Failed):
                good.append(item)
            elif self._on_error == "raise":
                raise item.error
            else:
                self.skipped[item.key] += 1
                _logger.warning(
                    "image left out of its batch (%d so far): %s",
                    self.skipped.total(),
                    item.error,
                )
        if not good:
            raise DataError(
                f"none of the {len(batch)} images of a batch is readable; last: {batch[-1].error}",
                fix="run tools/doctor.py on this source, or use larger batches",
            )
        return good

    def twin(self) -> TaskLoader:
        """One beside this, of the same records, with a task and workers of its own."""
        twin = copy.copy(self)
        twin._records, twin._weights = dict(self._records), dict(self._weights)
        twin._stream, twin.skipped = _Stream(), Counter()
        twin._loader = twin._prepared = None
        twin._serves = ()
        return twin

    def close(self) -> None:
        """Stop the workers; records stay."""
        self._prepared = self._loader = None  # the last references: the finaliser joins the workers
        self._serves = ()

    def _switch(self, keys: tuple[Key, ...]) -> None:
        for key in keys:
            if key not in self._datasets:
                self.records(*key)  # raises
        if self._serves != keys:
            self.close()
            if not self._keep_records:
                for key in set(self._records) - set(keys):
                    del self._records[key], self._weights[key]
        self._serves = keys
        self._iteration += 1

    def _order(self, source: str, task: str, pass_index: int, fraction: float) -> np.ndarray:
        return order(
            self._seed,
            source,
            task,
            pass_index,
            len(self.records(source, task)),
            fraction=fraction,
            shuffle=self._shuffle,
            weights=self._weights[(source, task)],
        )

    def _pass(
        self, source: str, task: str, pass_index: int, steps: range, fraction: float
    ) -> Iterator[list[_Wanted]]:
        records = self._order(source, task, pass_index, fraction)
        for step in steps:
            yield self._batch(source, task, pass_index, records, step, fraction)

    def _batch(
        self,
        source: str,
        task: str,
        pass_index: int,
        records: np.ndarray,
        step: int,
        fraction: float,
    ) -> list[_Wanted]:
        places = batch_places(
            step, len(records), self._batch_size, self._last_batch, self._rank, self._world_size
        )
        return [
            _Wanted(
                (source, task),
                int(records[place % len(records)]),
                (source, task, pass_index, repr(float(fraction)), place),
            )
            for place in places
        ]
