"""DICOM files of radiographs as the providers ship them, with identical bytes every time."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fx_d2.phantom.writers.raster_out import quantise

if TYPE_CHECKING:
    from pydicom.dataset import FileDataset

SYNTAXES = {  # names of pydicom.uid
    "explicit": "ExplicitVRLittleEndian",
    "implicit": "ImplicitVRLittleEndian",
    "jpeg": "JPEGBaseline8Bit",
    "jpeg2000": "JPEG2000Lossless",
}
_EXTRA = "pip install 'fx_d2[dicom]'"


@dataclass(frozen=True)
class DicomForm:
    """How the pixels are stored.

    Attributes:
        bits: BitsStored; 8 is stored in bytes, more in 16-bit words.
        syntax: Key of `SYNTAXES`.
        monochrome1: Stored values are negated: small means dense.
        window: Add WindowCenter and WindowWidth that span the stored values.
        tags: Further elements by keyword.
    """

    bits: int = 8
    syntax: str = "explicit"
    monochrome1: bool = False
    window: bool = False
    tags: Mapping[str, object] = field(default_factory=dict)


def write_dicom(
    path: Path, pixels: np.ndarray, form: DicomForm, *, sop: str, study: str, series: str
) -> None:
    """Write float (H, W) in [0, 1], bright = dense.

    Args:
        path: of the file, with or without an extension.
        pixels: what a viewer shows.
        form: how it is stored.
        sop: instance UID of the image.
        study: instance UID of the study.
        series: instance UID of the series.
    """
    _require_pydicom()
    from pydicom.config import IGNORE
    from pydicom.datadict import dictionary_VR, tag_for_keyword
    from pydicom.dataelem import DataElement

    stored = quantise(pixels, form.bits)
    if form.monochrome1:
        stored = (2**form.bits - 1 - stored).astype(stored.dtype)
    dataset = _dataset(path, form, sop)
    dataset.StudyInstanceUID = study
    dataset.SeriesInstanceUID = series
    dataset.Rows, dataset.Columns = stored.shape
    _describe(dataset, form, stored)
    for keyword, value in form.tags.items():
        # Providers write ages such as "62", which the standard does not allow.
        tag, vr = tag_for_keyword(keyword), dictionary_VR(keyword)
        dataset.add(DataElement(tag, vr, value, validation_mode=IGNORE))  # type: ignore[arg-type]
    _set_pixels(dataset, form, stored)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)


def _require_pydicom() -> None:
    """An optional extra: worlds without DICOM are made without it."""
    try:
        import pydicom  # noqa: F401
    except ModuleNotFoundError as exc:
        raise ImportError(
            f"this source is written as DICOM and pydicom is not installed: {_EXTRA}"
        ) from exc


def _dataset(path: Path, form: DicomForm, sop: str) -> FileDataset:
    from pydicom import uid
    from pydicom.dataset import FileDataset, FileMetaDataset

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = uid.UID(sop)
    meta.TransferSyntaxUID = getattr(uid, SYNTAXES[form.syntax])
    meta.ImplementationClassUID = uid.UID("2.25.302043790172249692526321623266752743501")
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = uid.ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = uid.UID(sop)
    dataset.Modality = "CR"
    return dataset


def _describe(dataset: FileDataset, form: DicomForm, stored: np.ndarray) -> None:
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME1" if form.monochrome1 else "MONOCHROME2"
    dataset.BitsAllocated = 8 if form.bits <= 8 else 16
    dataset.BitsStored = form.bits
    dataset.HighBit = form.bits - 1
    dataset.PixelRepresentation = 0
    if form.window:
        low, high = int(stored.min()), int(stored.max())
        dataset.WindowCenter = str((low + high + 1) // 2)
        dataset.WindowWidth = str(max(high - low + 1, 2))


def _set_pixels(dataset: FileDataset, form: DicomForm, stored: np.ndarray) -> None:
    from pydicom.encaps import encapsulate
    from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless

    if form.syntax == "jpeg":
        if form.bits != 8:
            raise ValueError(f"baseline JPEG holds 8 bits, not {form.bits}")
        buffer = io.BytesIO()
        Image.fromarray(stored).save(buffer, format="JPEG", quality=92)
        dataset.PixelData = encapsulate([buffer.getvalue()])
        dataset["PixelData"].VR = "OB"
        dataset.LossyImageCompression = "01"
        dataset.LossyImageCompressionMethod = "ISO_10918_1"
        return
    data = stored.tobytes()
    dataset.PixelData = data + b"\0" * (len(data) % 2)
    dataset["PixelData"].VR = "OB" if form.bits <= 8 else "OW"
    if form.syntax == "jpeg2000":
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        try:
            dataset.compress(
                JPEG2000Lossless, encoding_plugin="pylibjpeg", generate_instance_uid=False
            )
        except (RuntimeError, ValueError) as exc:
            raise ImportError(
                f"JPEG 2000 files of the phantom need pylibjpeg-openjpeg: {_EXTRA}"
            ) from exc
