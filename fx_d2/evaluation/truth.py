"""What the evaluators share: the records of a dataset by image id, and rows gathered over ranks."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from fx_d2.data.build import source_of
from fx_d2.data.record import Record
from fx_d2.data.source import Source

from .per_image import PerImage
from .results import Results

_logger = logging.getLogger(__name__)


def as_bool(mask: Any, threshold: float = 0.5) -> np.ndarray:
    """A mask of any kind, array or tensor, as bool (H, W); ``threshold`` is for probabilities."""
    if hasattr(mask, "detach"):
        mask = mask.detach().cpu().numpy()
    mask = np.asarray(mask)
    if mask.dtype.kind == "f":
        return mask >= threshold
    return mask.astype(bool)


class Truth:
    """The records of a dataset, found by image id; read when the first one is asked for.

    Args:
        dataset_name: registered name, ``<source>_<split>``.
        records: of the dataset where they are in memory already (``EvalLoader.records``).
        source: its row; default the one the dataset is registered with.
    """

    def __init__(
        self,
        dataset_name: str,
        records: Sequence[Record] | None = None,
        source: Source | None = None,
    ) -> None:
        self.dataset_name = dataset_name
        self.source = source_of(dataset_name) if source is None else source
        self._records = records
        self._places: dict[str, int] = {}

    @property
    def records(self) -> Sequence[Record]:
        """All records of the dataset."""
        if self._records is None:
            self._records = DatasetCatalog.get(self.dataset_name)
        return self._records

    def place(self, image_id: str) -> int:
        """The number of an image in the dataset."""
        if image_id not in self._numbers():
            raise KeyError(
                f"image {image_id!r} is not in dataset {self.dataset_name!r}; build the loader and "
                "the evaluator for the same dataset"
            )
        return self._places[image_id]

    def image_ids(self, places: Sequence[int]) -> list[str]:
        """The inverse of :meth:`place`, without unpacking the records again."""
        ids = {place: image_id for image_id, place in self._numbers().items()}
        return [ids[place] for place in places]

    def _numbers(self) -> dict[str, int]:
        if not self._places:
            self._places = {record["image_id"]: i for i, record in enumerate(self.records)}
        return self._places


class TaskEvaluator(DatasetEvaluator):
    """Base of the three: a row of small figures per image, gathered and ordered, then summarised.

    A subclass gives ``task``, ``columns``, ``_figures``, ``_row``, ``_lines`` and ``_summarise``.
    Ranks compare their own images; rows are put in the order of the dataset before anything is
    computed, so that a result does not depend on the number of ranks, and an image that came twice
    counts once.
    """

    task: str
    columns: tuple[str, ...]  # of the figures of single images

    def __init__(self, truth: Truth) -> None:
        self.truth, self.source = truth, truth.source
        self.classes = self.names = self.source.classes(self.task)
        if not self.classes:
            raise ValueError(
                f"source {self.source.key!r} has no classes of task {self.task!r}; it is annotated "
                f"for {self.source.all_tasks()}"
            )
        self._rows: dict[int, Any] = {}

    @property
    def key(self) -> str:
        """What results are filed under: ``<source>/<task>``."""
        return f"{self.source.key}/{self.task}"

    def metric_names(self) -> list[str]:
        """Every metric that :meth:`evaluate` could give, whatever the data."""
        per_class, alone = self._figures()
        return [*per_class, *alone, *(f"{m}-{c}" for m in per_class for c in self.names)]

    def reset(self) -> None:
        """Forget all rows."""
        self._rows = {}

    def process(self, inputs: Sequence[Mapping], outputs: Sequence[Mapping]) -> None:
        """Compare predictions with the truth of their images.

        Args:
            inputs: as the mapper makes them; ``image_id``, ``height``, ``width`` are used.
            outputs: what the model returns at inference, one dict per image.
        """
        if len(inputs) != len(outputs):
            raise ValueError(f"{len(inputs)} inputs but {len(outputs)} outputs")
        for given, output in zip(inputs, outputs, strict=True):
            came_from = given.get("source", self.source.key)
            if came_from != self.source.key:
                raise ValueError(
                    f"image {given['image_id']!r} is of {came_from!r}, the evaluator of "
                    f"{self.source.key!r}"
                )
            place = self.truth.place(given["image_id"])
            row = self._row(self.truth.records[place], given, output)
            if row is not None:
                self._rows[place] = row

    def evaluate(self) -> Results:
        """The figures of all ranks on the main process; empty elsewhere."""
        gathered = comm.gather(self._rows)
        if not comm.is_main_process():
            return Results()
        merged: dict[int, Any] = {}
        for rows in gathered:
            merged.update(rows)
        places = sorted(merged)
        metrics, notes = self._summarise(places, [merged[i] for i in places])
        counted = {"images": len(places), "images_of_dataset": len(self.truth.records)}
        notes = {"dataset": self.truth.dataset_name, **counted, **notes}
        if not places:
            _logger.warning("%s: no annotated image was evaluated", self.key)
        for reason, names in notes.get("left_out", {}).items():
            _logger.warning("%s: left out, %s: %s", self.key, reason, names)
        results = Results({self.key: metrics})
        results.notes[self.key] = notes
        results.per_image[f"{self.truth.dataset_name}_{self.task}"] = self._per_image(merged)
        return results

    def _per_image(self, merged: Mapping[int, Any]) -> PerImage:
        """The figures of every image, in the order of the dataset."""
        places = sorted(merged)
        small = [self._shortened(merged[i]) for i in places]

        def lines() -> Iterator[tuple]:
            for image_id, row in zip(self.truth.image_ids(places), small, strict=True):
                yield from ((image_id, *values) for values in self._lines(row))

        return PerImage(("image_id", *self.columns), lines)

    def _shortened(self, row: Any) -> Any:
        """What :meth:`_lines` needs of a row: results are kept until the next evaluation."""
        return row

    def _lines(self, row: Any) -> Iterator[tuple]:
        """The figures of an image, a line of ``columns`` for each class or one for all."""
        raise NotImplementedError

    def _figures(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Names of the metrics that there is one of per class, and of those without classes."""
        raise NotImplementedError

    def _row(self, record: Record, given: Mapping, output: Mapping) -> Any:
        """What is kept of an image, or None where it is not annotated for this task."""
        raise NotImplementedError

    def _summarise(
        self, places: list[int], rows: list[Any]
    ) -> tuple[dict[str, float], dict[str, Any]]:
        """Metrics, and notes that say how they were made and what was left out."""
        raise NotImplementedError

    def _of_source(self, output: Mapping, kind: str) -> Any:
        """The part of an output that the heads of this source made."""
        heads = output.get(kind, {})
        if self.source.key not in heads:
            raise KeyError(
                f"the model's output has no {kind!r} of source {self.source.key!r}, only of "
                f"{sorted(heads)}; add the source to the config or leave this evaluation out"
            )
        return heads[self.source.key]

    def _by_class(self, values: Mapping[str, Any]) -> list[Any]:
        """The values of a dict by class name, in the order of the source's classes."""
        missing = [name for name in self.classes if name not in values]
        if missing:
            raise KeyError(
                f"the model's output for {self.key} lacks the classes {missing}; it has "
                f"{list(values)}"
            )
        return [values[name] for name in self.classes]
