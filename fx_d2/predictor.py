"""A trained model as a function of images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypedDict, cast, overload

import numpy as np
import numpy.typing as npt
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor
from torch.utils.data import Dataset

from .data.errors import DataError
from .data.formats.contract import ImageFacts, LoadedImage
from .data.images import read_image
from .data.mapper import FxMapper
from .data.record import Record
from .data.task_loader import WorkerConfig
from .engine.ensemble import load_ensemble, load_trained
from .engine.step import precision_of
from .modeling.heads.context import stated_items
from .modeling.heads.spec import select_heads

PathLike = str | os.PathLike[str]
Image = PathLike | npt.NDArray[Any]
Heads = Iterable[str | tuple[str, str]]

# Masks are of the original's size: eight large films with fifteen classes would take a gigabyte.
_MAX_MASK_BYTES = 1 << 30
_DEVICES = ("cpu", "cuda", "mps", "xpu")


class Prediction(TypedDict):
    """What a model says about one image, in pixels of the original.

    ``labels`` {source: {class: probability}}; ``instances`` {source: Detectron2's ``Instances``
    with ``pred_boxes`` (XYXY), ``scores``, ``pred_classes`` (places in the head's class list) and,
    where the source has them, ``pred_masks``}; ``masks`` {source: {class: bool (height, width)}};
    ``height`` and ``width`` of the original. Sources without an asked head of a task are absent
    there.
    """

    labels: dict[str, dict[str, float]]
    instances: dict[str, Instances]
    masks: dict[str, dict[str, Tensor]]
    height: int
    width: int


class Predictor:
    """Predicts with the weights of a run; everything else is in the description beside them.

    ::

        predictor = fx_d2.Predictor("output/model_final.safetensors")
        predictor.heads                                  # {"rsna/loc": ("Lung Opacity",), ...}
        predictor("film.dcm")["labels"]["rsna"]          # {"Normal": 0.91, ...}
        for path, found in predictor.stream(paths): ...  # a Prediction or a DataError

    An image takes the way it takes in an evaluation: read, normalised and resized by the settings
    in the checkpoint. Nothing is downloaded and no random state is changed.

    Args:
        weights: a ``.safetensors`` file with its ``.json``, or the output folder of a run; or
            several, whose mean label probabilities are predicted.
        heads: which to run: each ``"source/task"``, a source or a task; None is all.
        device: such as ``"cpu"`` or ``"cuda:1"``; None is a GPU where there is one.
        batch_size: images in a forward pass, at most.
        context: what else the images are known by, for models that are told it
            (``MODEL.FX.CLS.PYRAMID.CONTEXT``), such as ``{"body_part": "WRIST"}``. One that learned
            from MURA with body parts has to be told.

    Raises:
        CheckpointError: the weights cannot be read or belong to another model, or several expect
            different images.
        KeyError: there is no such head; the message has near names and the list.
        ValueError: there is no such device, the batch size is not positive, several models have
            no label head in common, or the context is not what the model is told.
    """

    def __init__(
        self,
        weights: PathLike | Sequence[PathLike],
        *,
        heads: Heads | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 8,
        context: Mapping[str, str] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it is at least 1")
        self.batch_size = batch_size
        self.device = _device(device)
        files = [weights] if isinstance(weights, (str, os.PathLike)) else list(weights)
        if not files:
            raise ValueError("no weights are named; give a file, a run's folder or several")
        if len(files) == 1:
            trained = load_trained(files[0], self.device)
            self.model, self.description = trained.model, trained.description
        else:
            self.model, members = load_ensemble(files, self.device)
            trained = members[0]
            hashes = [member.description.get("weights_sha256") for member in members]
            self.description = trained.description | {"weights_sha256": hashes}
        self.cfg = trained.cfg
        specs: Sequence[Any] = cast(Any, self.model).specs
        self.heads: dict[str, tuple[str, ...]] = {spec.name: spec.classes for spec in specs}
        chosen = select_heads(specs, None if heads is None else _listed(heads))
        self.asked: tuple[str, ...] = tuple(spec.name for spec in chosen)
        self._mask_channels = sum(len(spec.classes) for spec in chosen if spec.task == "seg")
        stated = stated_items(self.model, context or {})
        self._inputs = Inputs(self.cfg, specs[0].source, stated)

    @overload
    def __call__(self, image: Image) -> Prediction: ...

    @overload
    def __call__(self, image: list[Image]) -> list[Prediction]: ...

    def __call__(self, image: Image | list[Image]) -> Prediction | list[Prediction]:
        """Predict one image, or several in batches.

        Args:
            image: a file, see :func:`fx_d2.data.images.read_image`; or grey values (H, W), bright
                = dense, of uint8, uint16 or a float type; or a list of them.

        Raises:
            DataError: an image cannot be read; use :meth:`stream` to go on with the others.
        """
        images = image if isinstance(image, list) else [image]
        found = []
        for _, prediction in self._predicted((item, self._inputs[item][1]) for item in images):
            if isinstance(prediction, DataError):
                raise prediction
            found.append(prediction)
        return found if isinstance(image, list) else found[0]

    def stream(
        self, images: Iterable[Image], *, num_workers: int = 0
    ) -> Iterator[tuple[Image, Prediction | DataError]]:
        """Predict any number of images, in their order, a batch in memory at a time.

        An image that cannot be read gives its error; the others are predicted as if it were not
        there, to the last bit.

        Args:
            images: as for a call; may be a generator.
            num_workers: processes that read ahead; 0 reads in this one.

        Yields:
            The image as given, with its prediction or what is wrong with it.
        """
        workers = WorkerConfig(num_workers, pin_memory=self.device.type == "cuda")
        loader = workers.loader(self._inputs, ([image] for image in images), persistent=False)
        yield from self._predicted(row for (row,) in loader)

    def _predicted(
        self, samples: Iterable[tuple[Image, dict[str, Any] | DataError]]
    ) -> Iterator[tuple[Image, Prediction | DataError]]:
        """Samples as the mapper makes them, in batches of those that are whole."""
        waiting: list[tuple[Image, dict[str, Any] | DataError]] = []
        count, mask_bytes = 0, 0
        for image, sample in samples:
            if isinstance(sample, dict):
                size = sample["height"] * sample["width"] * self._mask_channels
                if count == self.batch_size or (count and mask_bytes + size > _MAX_MASK_BYTES):
                    yield from self._run(waiting)
                    waiting, count, mask_bytes = [], 0, 0
                count, mask_bytes = count + 1, mask_bytes + size
            waiting.append((image, sample))
        yield from self._run(waiting)

    def _run(
        self, waiting: list[tuple[Image, dict[str, Any] | DataError]]
    ) -> Iterator[tuple[Image, Prediction | DataError]]:
        batch = [sample for _, sample in waiting if isinstance(sample, dict)]
        outputs = []
        if batch:
            with precision_of(self.cfg), cast(Any, self.model).asking(self.asked):
                outputs = self.model(batch)[::-1]
        while waiting:
            # Given away one by one: what the caller is done with need not stay.
            image, sample = waiting.pop(0)
            if isinstance(sample, DataError):
                yield image, sample
            else:
                size = {"height": sample["height"], "width": sample["width"]}
                yield image, cast(Prediction, {**outputs.pop(), **size})


class Inputs(Dataset):
    """Images as the network sees them in an evaluation, each beside what was asked for.

    Args:
        cfg: of the model.
        source: any one of its sources.
        stated: what an image is known by, for every image.
    """

    def __init__(self, cfg: CfgNode, source: str, stated: Mapping[str, Any]) -> None:
        reader = _Reader(cfg.INPUT.FX.INTENSITY.VOI, cfg.INPUT.FX.INTENSITY.MODE)
        self._mapper = FxMapper(cfg, False, reader=reader, targets=False)
        self._source = source  # any: without targets the mapper does the same for all
        self._stated = stated

    def __getitem__(self, image: Image) -> tuple[Image, dict[str, Any] | DataError]:
        name = "array" if isinstance(image, np.ndarray) else os.fspath(image)
        record: Record = {"file_name": name, "image_id": name, "source": self._source}
        if isinstance(image, np.ndarray):
            record["pixels"] = image
        elif hasattr(image, "loaded"):
            record["opened"] = image
        try:
            return image, self._mapper(record, "loc", ("predict",)) | self._stated
        except DataError as error:
            return image, error


class _Reader:
    """Files, arrays in place of files, and files that somebody holds open.

    The last are paths with a method ``loaded(voi)``: several models look at them, one decodes.
    """

    def __init__(self, voi: str, mode: str) -> None:
        self._voi, self._mode = voi, mode

    def read(self, record: Record) -> LoadedImage:
        if "pixels" in record:
            return _from_array(record["pixels"], self._mode)
        if "opened" in record:
            return record["opened"].loaded(self._voi)
        return read_image(record["file_name"], voi=self._voi)


def _from_array(array: npt.NDArray[Any], mode: str) -> LoadedImage:
    kinds = {"uint8": 255.0, "uint16": 65535.0}
    floating = array.dtype.kind == "f"
    if array.ndim != 2 or not array.size or not (floating or array.dtype.name in kinds):
        raise DataError(
            f"an array of {array.dtype} {array.shape}",
            expected="grey values (height, width) of uint8, uint16 or float, bright = dense",
            fix="take one channel, or name the file",
        )
    pixels = array.astype(np.float32)
    if not np.isfinite(pixels).all():
        raise DataError("an array with values that are not finite", fix="replace NaN and infinity")
    if floating and mode == "depth" and (pixels.min() < 0 or pixels.max() > 1):
        raise DataError(
            f"a float array from {pixels.min():g} to {pixels.max():g}",
            expected="values in [0, 1]: this model divides by the depth, which floats do not tell",
        )
    height, width = array.shape
    facts = ImageFacts(
        format="array",
        bits=8 * min(array.dtype.itemsize, 4),
        max_value=kinds.get(array.dtype.name, 1.0),
        height=height,
        width=width,
        mode=array.dtype.name,
    )
    return LoadedImage(pixels, facts)


def _listed(heads: Heads) -> list[str | tuple[str, str]]:
    return [heads] if isinstance(heads, str) else list(heads)


def _device(name: str | torch.device | None) -> torch.device:
    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        known = device.type in _DEVICES
        if known:
            torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as exc:
        reason = str(exc).strip().partition("\n")[0]
        raise ValueError(f"device {str(name)!r} cannot be used: {reason}") from exc
    if not known:
        raise ValueError(f"device {str(name)!r} cannot be used; allowed: {', '.join(_DEVICES)}")
    return device
