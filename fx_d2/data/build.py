"""Loaders from a config: what ``DATASETS`` and ``DATALOADER`` say is read here and nowhere else."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm
from torch.utils.data import Dataset

from . import builtin
from .errors import DataError
from .lesion_mix.written import register_written
from .mapper import FxMapper, seed_of
from .pseudo_masks import register_pseudo_masks
from .record import PackedRecords
from .samplers import JointSchedule, class_aware_weights, presence, repeat_factors
from .source import TASKS, Source
from .sources import get_source
from .task_loader import Batch, Key, Records, TaskLoader, WeightsOf, WorkerConfig

SAMPLERS = ("shuffle", "repeat_factor", "class_aware")
VIEWS = ("all", "frontal")


def configure_reading(cfg: Any) -> None:
    """Hand what ``DATASETS`` says about reading to the readers."""
    if cfg.DATASETS.VIEWS not in VIEWS:
        raise ValueError(f"DATASETS.VIEWS is {cfg.DATASETS.VIEWS!r}; allowed: {VIEWS}")
    options = {key: dict(node) for key, node in cfg.DATASETS.OPTIONS.items() if node}
    if cfg.DATASETS.VIEWS == "frontal":
        for key in cfg.DATASETS.ROOTS:
            frontal = get_source(key).frontal_views
            if frontal is not None:
                options.setdefault(key, {})["views"] = frontal
    builtin.configure(
        {key: path for key, path in cfg.DATASETS.ROOTS.items() if path},
        on_error=cfg.DATASETS.ON_ERROR,
        split_files={key: path for key, path in cfg.DATASETS.SPLIT_FILES.items() if path},
        options=options,
    )
    register_written(cfg.DATASETS.LESION_MIX)
    register_pseudo_masks(cfg.DATASETS.PSEUDO_MASKS)


def source_of(dataset_name: str) -> Source:
    """The row a registered dataset belongs to; an unknown name is answered with near ones."""
    if dataset_name not in DatasetCatalog.list():
        known = DatasetCatalog.list()
        near = difflib.get_close_matches(dataset_name, known, n=3) or [
            n for n in known if n.startswith(dataset_name.split("_")[0])
        ]
        raise KeyError(f"no dataset {dataset_name!r} is registered; near it: {near or 'nothing'}")
    return get_source(MetadataCatalog.get(dataset_name).source)


def tasks_of(cfg: Any, source: Source) -> tuple[str, ...]:
    """The tasks of ``source`` that the config trains: those of its row and extra ones asked for."""
    unknown = set(cfg.DATASETS.TASKS) - set(TASKS)
    if unknown:
        raise ValueError(f"DATASETS.TASKS names {sorted(unknown)}; allowed: {TASKS}")
    pairs = [name.partition("/")[::2] for name in cfg.DATASETS.EXTRA_TASKS]
    extra = [task for key, task in pairs if get_source(key) is source]
    for task in extra:
        if task not in source.all_tasks():
            raise ValueError(
                f"DATASETS.EXTRA_TASKS has {source.key}/{task}; {source.key} is annotated for "
                + ", ".join(source.all_tasks())
            )
    wanted = [t for t in source.tasks if t in cfg.DATASETS.TASKS]
    return tuple(t for t in TASKS if t in wanted or t in extra)


def load_datasets(names: Sequence[str]) -> Records:
    """The records of registered datasets, one after the other."""
    loaded = [DatasetCatalog.get(name) for name in names]
    return loaded[0] if len(loaded) == 1 else PackedRecords(chain.from_iterable(loaded))


def weights_from(cfg: Any) -> WeightsOf | None:
    """How often records are shown, by ``DATALOADER.FX.SAMPLER``; None is once each."""
    sampler, threshold = cfg.DATALOADER.FX.SAMPLER, float(cfg.DATALOADER.REPEAT_THRESHOLD)
    if sampler not in SAMPLERS:
        raise ValueError(f"DATALOADER.FX.SAMPLER is {sampler!r}; allowed: {SAMPLERS}")
    if sampler == "shuffle":
        return None
    if sampler == "repeat_factor" and not 0 < threshold <= 1:
        raise ValueError(
            f"DATALOADER.REPEAT_THRESHOLD is {threshold}; repeat_factor needs it in (0, 1]"
        )

    def weights_of(source: str, task: str, records: Records) -> np.ndarray:
        present = presence(records, get_source(source), task)
        if sampler == "class_aware":
            return class_aware_weights(present)
        return repeat_factors(present, threshold)

    return weights_of


def workers_from(cfg: Any) -> WorkerConfig:
    """The worker settings of the config."""
    return WorkerConfig(
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        prefetch=cfg.DATALOADER.FX.PREFETCH,
        start_method=cfg.DATALOADER.FX.START_METHOD,
        pin_memory=str(cfg.MODEL.DEVICE).startswith("cuda"),
    )


def build_task_loader(cfg: Any, *, mapper: FxMapper | None = None) -> TaskLoader:
    """The loader of ``DATASETS.TRAIN``: every (source, task) of the datasets named there.

    Several datasets of one source (``rsna_train``, ``rsna_val``) are joined. Nothing is read until
    a task becomes active.

    Args:
        cfg: a config with the keys of :func:`fx_d2.config.add_fx_config`.
        mapper: replaces the one of the config.
    """
    configure_reading(cfg)
    mapper = mapper or FxMapper(cfg, True)
    names: dict[str, list[str]] = {}
    for name in cfg.DATASETS.TRAIN:
        names.setdefault(source_of(name).key, []).append(name)
    once = _Once()
    datasets: dict[Key, Records | Callable[[], Records]] = {}
    for key, group in names.items():
        source = get_source(key)
        for task in tasks_of(cfg, source):
            mapper.check(source, task)
            datasets[(key, task)] = partial(once.load, tuple(group), cfg.DATALOADER.FX.KEEP_RECORDS)
    if not datasets:
        raise ValueError(
            f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has nothing for DATASETS.TASKS "
            f"{tuple(cfg.DATASETS.TASKS)}"
        )
    return TaskLoader(
        datasets,
        mapper,
        seed=seed_of(cfg),
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        workers=workers_from(cfg),
        rank=comm.get_rank(),
        world_size=comm.get_world_size(),
        last_batch=cfg.DATALOADER.FX.LAST_BATCH,
        weights_of=weights_from(cfg),
        on_error=cfg.DATASETS.ON_ERROR,
        keep_records=cfg.DATALOADER.FX.KEEP_RECORDS,
    )


def build_joint_schedule(cfg: Any, loader: TaskLoader) -> JointSchedule:
    """The mix of all datasets of ``loader`` by ``DATASET_RATIO`` and ``REPEAT_TO_LONGEST``."""
    ratio: dict[Key, float] = {}
    for text in cfg.DATALOADER.FX.DATASET_RATIO:
        name, _, number = text.partition("=")
        source, _, task = name.partition("/")
        try:
            ratio[(source.strip(), task.strip())] = float(number)
        except ValueError as exc:
            raise ValueError(
                f"DATALOADER.FX.DATASET_RATIO has {text!r}; write 'source/task=number'"
            ) from exc
    return loader.mix(ratio=ratio, repeat_to_longest=cfg.DATALOADER.FX.REPEAT_TO_LONGEST)


class _Once:
    """Records shared by the tasks of a source while they are kept."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, ...], Records] = {}

    def load(self, names: tuple[str, ...], keep: bool) -> Records:
        if names in self._held:
            return self._held[names]
        records = load_datasets(names)
        if keep:
            self._held[names] = records
        return records


class _InOrder(Dataset):
    """The records of an evaluation, mapped on demand."""

    def __init__(self, records: Records, mapper: FxMapper, tasks: str | Sequence[str]) -> None:
        self.records, self.mapper, self.tasks = records, mapper, tasks

    def __getitem__(self, index: int) -> dict[str, Any] | DataError:
        try:
            return self.mapper(self.records[index], self.tasks, ("eval", index))
        except DataError as error:
            return error


class EvalLoader:
    """Every image of a dataset once, in its order, without augmentation.

    Ranks take contiguous shares whose sizes differ by one at most, so that what they gather is in
    order again and no image is counted twice.

    Args:
        records: of the dataset.
        mapper: with ``is_train=False``.
        tasks: one task, or several.
        batch_size: images per step and rank.
        workers: how batches are prepared.
        rank, world_size: whose share.
        on_error: ``raise``, or ``skip``: leave the image out and keep its error in ``skipped``.
    """

    def __init__(
        self,
        records: Records,
        mapper: FxMapper,
        tasks: str | Sequence[str],
        *,
        batch_size: int,
        workers: WorkerConfig | None = None,
        rank: int = 0,
        world_size: int = 1,
        on_error: str = "raise",
    ) -> None:
        n = len(records)
        share = range(n * rank // world_size, n * (rank + 1) // world_size)
        self._batches = [list(share[i : i + batch_size]) for i in range(0, len(share), batch_size)]
        self._on_error = on_error
        self.records, self.skipped = records, list[DataError]()
        self._loader = (workers or WorkerConfig()).loader(
            _InOrder(records, mapper, tasks), self._batches, persistent=False
        )

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        """Batches; one whose images were all left out is left out too."""
        self.skipped = []
        for batch in self._loader:
            good = list(self._checked(batch))
            if good:
                yield good

    def _checked(self, batch: Iterable[dict[str, Any] | DataError]) -> Iterator[dict[str, Any]]:
        for item in batch:
            if not isinstance(item, DataError):
                yield item
            elif self._on_error == "raise":
                raise item
            else:
                self.skipped.append(item)


def build_eval_loader(
    cfg: Any,
    dataset_name: str,
    tasks: str | Sequence[str],
    *,
    targets: bool = False,
    mapper: FxMapper | None = None,
) -> EvalLoader:
    """The evaluation loader of a registered dataset.

    Args:
        cfg: a config with the keys of :func:`fx_d2.config.add_fx_config`.
        dataset_name: ``<source>_<split>``.
        tasks: which targets to make and, for one task, the value of ``task`` in the batch.
        targets: whether boxes and masks are made at the network's size (for a validation loss).
            Evaluators compare in original pixels and take the truth from the records.
        mapper: replaces the one of the config.
    """
    configure_reading(cfg)
    source_of(dataset_name)
    world_size = comm.get_world_size()
    return EvalLoader(
        load_datasets([dataset_name]),
        mapper or FxMapper(cfg, False, targets=targets),
        tasks,
        batch_size=max(1, cfg.SOLVER.IMS_PER_BATCH // world_size),
        workers=workers_from(cfg),
        rank=comm.get_rank(),
        world_size=world_size,
        on_error=cfg.DATASETS.ON_ERROR,
    )
