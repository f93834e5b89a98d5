"""DICOM: from the file to the stored integers, whatever the transfer syntax.

:mod:`fx_d2.data.formats.dicom_grey` turns those into grey.

pydicom and its decoders are an optional extra and are imported on first use.
"""

from __future__ import annotations

import importlib
import io
import re
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from fx_d2.data.errors import DataError
from fx_d2.data.formats import dicom_grey
from fx_d2.data.formats.codestream import frame_header, rle_segment_lengths
from fx_d2.data.formats.contract import (
    ImageFacts,
    LoadedImage,
    OpenedFile,
    ReadLimits,
    check_extent,
    inflate,
    refusing,
)

_EXTRA = "pip install 'fx_d2[dicom]'"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_IMPLICIT_LITTLE = "1.2.840.10008.1.2"
_EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
# Pillow refuses truncated JPEG data where GDCM fills up; the others are the fastest exact decoder
# first.
_PLUGINS = ("pyjpegls", "pillow", "pylibjpeg", "gdcm")
_J2K_PLUGINS = ("pylibjpeg", "gdcm", "pillow")
_RLE_PLUGINS = ("pylibjpeg", "pydicom")
_RLE_PADDING_BYTES = 64
_MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420")
_VALUE_REPRESENTATION = re.compile(rb"[A-Z]{2}")


def looks_like(head: bytes) -> bool:
    """Whether ``head`` begins a DICOM file, with or without the 128-byte preamble."""
    if head[128:132] == b"DICM":
        return True
    # Without a preamble the first element is of group 0002 or 0008, little-endian, and of a small
    # group-element.
    if len(head) < 16 or head[:2] not in (b"\x02\x00", b"\x08\x00") or head[3] != 0:
        return False
    if _VALUE_REPRESENTATION.fullmatch(head[4:6]):
        return True
    return head[:2] == b"\x08\x00" and int.from_bytes(head[4:8], "little") < 256


def size(file: OpenedFile, limits: ReadLimits) -> tuple[int, int]:
    """(height, width) from the header; the pixel data is not read."""
    dataset = _read_dataset(file, limits, pixels=False)
    return _extent(dataset, file, limits)


def decode(file: OpenedFile, limits: ReadLimits, notes: list[str], voi: str) -> LoadedImage:
    """Grey pixels: modality rescale, VOI LUT or window, inversion last; padding is 0."""
    dataset = _read_dataset(file, limits, pixels=True)
    height, width = _extent(dataset, file, limits)
    syntax = _transfer_syntax(dataset, file)
    photometric = _photometric(dataset, file)
    _check_layout(dataset, file)
    if "PixelData" not in dataset:
        raise DataError(
            "the DICOM file has no pixel data",
            file=file.path,
            expected="integer pixel data (7FE0,0010)",
            fix="it is truncated or not an image: download it again",
        )
    plugins: tuple[str, ...] = ()
    if syntax.is_encapsulated:
        plugins = _check_frame(dataset, file, limits, syntax)
    stored = _decode_pixels(dataset, file, syntax, plugins)
    n_samples = 1 if stored.ndim == 2 else stored.shape[2]
    if stored.shape[:2] != (height, width):
        raise DataError(
            f"{stored.shape} pixels decoded", file=file.path, expected=f"{height} x {width}"
        )
    if n_samples > 1:
        stored = dicom_grey.luminance(stored)
        notes.append(f"{photometric} was turned into luminance")
    with refusing(file.path, "applying the DICOM grey-scale transformations"):
        grey = dicom_grey.to_grey(stored, dataset, file.path, voi=voi, notes=notes)
    facts = ImageFacts(
        format="dicom",
        bits=grey.bits,
        max_value=grey.max_value,
        height=height,
        width=width,
        mode=stored.dtype.name,
        photometric=photometric,
        inverted=photometric == "MONOCHROME1",
        window=grey.window,
        voi=grey.voi,
        n_samples=n_samples,
        clipped_low=grey.clipped_low,
        clipped_high=grey.clipped_high,
        padded=grey.padded,
        offset=grey.offset,
        transfer_syntax=str(syntax),
        notes=tuple(notes),
    )
    return LoadedImage(grey.pixels, facts)


def _pydicom(module: str, path: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as exc:
        raise DataError(
            "this is a DICOM file and pydicom is not installed", file=path, fix=_EXTRA
        ) from exc


def _read_dataset(file: OpenedFile, limits: ReadLimits, *, pixels: bool) -> Any:
    filereader = _pydicom("pydicom.filereader", file.path)
    with refusing(file.path, "reading the DICOM header"):
        start = 132 if file.head(132)[128:] == b"DICM" else 0
        file.stream.seek(start)
        meta = filereader.read_dataset(
            file.stream, is_implicit_VR=False, is_little_endian=True, stop_when=_leaves_group_2
        )
        if str(meta.get("TransferSyntaxUID", "")) == _DEFLATED:
            return _read_deflated(file, limits, meta, filereader, pixels=pixels)
        file.stream.seek(0)
        # Without a preamble pydicom wants force; looks_like() has seen that the bytes are DICOM
        # elements.
        return filereader.dcmread(file.stream, stop_before_pixels=not pixels, force=start == 0)


def _leaves_group_2(tag: int, vr: str | None, length: int) -> bool:
    return int(tag) >> 16 != 2


def _is_pixel_data(tag: int, vr: str | None, length: int) -> bool:
    return int(tag) >> 16 == 0x7FE0


def _read_deflated(
    file: OpenedFile, limits: ReadLimits, meta: Any, filereader: Any, *, pixels: bool
) -> Any:
    # pydicom inflates such a file without a bound.
    try:
        payload = inflate(file.stream.read(), limits.max_file_bytes, wbits=-zlib.MAX_WBITS)
    except OverflowError as exc:
        raise DataError(
            f"deflated DICOM unpacks to more than {limits.max_file_bytes} bytes",
            file=file.path,
            fix="the file is damaged or hostile; if it is real, raise ReadLimits.max_file_bytes",
        ) from exc
    dataset = filereader.read_dataset(
        io.BytesIO(payload),
        is_implicit_VR=False,
        is_little_endian=True,
        stop_when=None if pixels else _is_pixel_data,
    )
    dataset.file_meta = meta
    return dataset


def _whole(dataset: Any, keyword: str, file: OpenedFile, default: int | None = None) -> int:
    """A whole-number element; hostile files store text, lists or nothing there."""
    with refusing(file.path, f"reading DICOM {keyword}"):
        value = dataset.get(keyword)
        if value is None or value == "":
            value = default
        if value is None or isinstance(value, (list, tuple)) or int(value) != value:
            raise DataError(
                f"DICOM {keyword} is {value!r}",
                file=file.path,
                expected="a whole number",
                fix="download it again",
            )
        return int(value)


def _extent(dataset: Any, file: OpenedFile, limits: ReadLimits) -> tuple[int, int]:
    height, width = _whole(dataset, "Rows", file), _whole(dataset, "Columns", file)
    check_extent(height, width, limits, file.path)
    return height, width


def _transfer_syntax(dataset: Any, file: OpenedFile) -> Any:
    uid_module = _pydicom("pydicom.uid", file.path)
    meta = getattr(dataset, "file_meta", None)
    value = None if meta is None else meta.get("TransferSyntaxUID")
    if not value:
        implicit = bool(dataset.original_encoding[0])
        value = _IMPLICIT_LITTLE if implicit else _EXPLICIT_LITTLE
    syntax = uid_module.UID(str(value))
    if not syntax.is_transfer_syntax:
        raise DataError(
            f"transfer syntax {syntax} is unknown",
            file=file.path,
            fix="convert it to Explicit VR Little Endian",
        )
    return syntax


def _photometric(dataset: Any, file: OpenedFile) -> str:
    value = str(dataset.get("PhotometricInterpretation", "")).strip()
    if value not in _MONOCHROME + _COLOUR:
        raise DataError(
            f"PhotometricInterpretation is {value!r}",
            file=file.path,
            expected="MONOCHROME1, MONOCHROME2 or RGB",
            fix="convert it to a grey DICOM or a 16-bit PNG",
        )
    return value


def _check_layout(dataset: Any, file: OpenedFile) -> None:
    """Refuse several frames and impossible depths; complete what is left out in practice."""

    def bad(
        problem: str, expected: str, fix: str = "convert it to a single grey frame of 8 to 16 bit"
    ) -> DataError:
        return DataError(problem, file=file.path, expected=expected, fix=fix)

    frames = _whole(dataset, "NumberOfFrames", file, default=1)
    if frames not in (0, 1):
        raise bad(f"{frames} frames", "one")
    allocated = _whole(dataset, "BitsAllocated", file)
    stored = _whole(dataset, "BitsStored", file, default=allocated)
    if allocated not in (8, 16) or not 1 <= stored <= allocated:
        raise bad(
            f"BitsAllocated {allocated}, BitsStored {stored}",
            "8 or 16 allocated, at most as many stored",
        )
    samples = _whole(dataset, "SamplesPerPixel", file, default=1)
    monochrome = str(dataset.PhotometricInterpretation).strip() in _MONOCHROME
    if samples != (1 if monochrome else 3):
        raise bad(
            f"{samples} samples per pixel with {dataset.PhotometricInterpretation}",
            "1 for grey, 3 for colour",
        )
    if not monochrome and stored != 8:
        raise bad(f"colour with {stored} bits", "8 bits")
    signed = _whole(dataset, "PixelRepresentation", file, default=0)
    if signed not in (0, 1):
        raise bad(f"PixelRepresentation {signed}", "0 or 1")
    dataset.NumberOfFrames = 1
    dataset.BitsStored = stored
    dataset.SamplesPerPixel = samples
    dataset.PixelRepresentation = signed


def _check_frame(
    dataset: Any, file: OpenedFile, limits: ReadLimits, syntax: Any
) -> tuple[str, ...]:
    """What the compressed frame itself would decode to, and the plugins to trust with it."""
    encaps = _pydicom("pydicom.encaps", file.path)
    height, width = int(dataset.Rows), int(dataset.Columns)
    with refusing(file.path, "reading the compressed DICOM frame"):
        frame = next(iter(encaps.generate_frames(dataset.PixelData, number_of_frames=1)))
        if syntax.name == "RLE Lossless":
            n_segments = dataset.SamplesPerPixel * dataset.BitsAllocated // 8
            lengths = rle_segment_lengths(frame, n_segments, height * width + _RLE_PADDING_BYTES)
            # The fast decoder panics on a segment that is too long, if only by its padding.
            return _RLE_PLUGINS if max(lengths) <= height * width else _RLE_PLUGINS[1:]
    inner = frame_header(frame)
    if inner is None:
        raise DataError(
            "the compressed DICOM frame does not start like its transfer syntax",
            file=file.path,
            expected=syntax.name,
            fix="the file is damaged: download it again",
        )
    check_extent(inner.height, inner.width, limits, file.path)
    expected = (height, width, int(dataset.SamplesPerPixel))
    if (inner.height, inner.width, inner.n_components) != expected:
        raise DataError(
            f"the compressed frame is {inner.height} x {inner.width} x {inner.n_components}",
            file=file.path,
            expected="{} x {} x {}, as the DICOM header says".format(*expected),
            fix="the file is damaged: download it again",
        )
    return _J2K_PLUGINS if "2000" in syntax.name else _PLUGINS


def _decode_pixels(
    dataset: Any, file: OpenedFile, syntax: Any, plugins: tuple[str, ...]
) -> npt.NDArray:
    decoders = _pydicom("pydicom.pixels", file.path)
    try:
        decoder = decoders.get_decoder(syntax)
    except NotImplementedError as exc:
        raise DataError(
            f"transfer syntax {syntax.name} ({syntax}) is not supported",
            file=file.path,
            fix="convert it to Explicit VR Little Endian",
        ) from exc
    if not decoder.is_available:
        raise DataError(
            f"no decoder for the transfer syntax {syntax.name} ({syntax}) is installed",
            file=file.path,
            fix=_EXTRA,
        )
    plugin = next((name for name in plugins if name in decoder.available_plugins), "")
    with refusing(
        file.path, f"decoding {syntax.name}", fix=f"download it again; decoders come with {_EXTRA}"
    ):
        array, _ = decoder.as_array(
            dataset, index=0, decoding_plugin=plugin, correct_unused_bits=False
        )
    return _without_unused_bits(np.asarray(array), dataset)


def _without_unused_bits(stored: npt.NDArray, dataset: Any) -> npt.NDArray:
    """Clear what does not belong to the pixel in the bits above BitsStored.

    Old files keep an overlay there, and say so. Without one, bits that are set mean that BitsStored
    is wrong, and cutting them off would fold bright values onto dark ones.
    """
    shift = stored.dtype.itemsize * 8 - int(dataset.BitsStored)
    overlay = any(
        dataset.get((group, 0x0102)) is not None and dataset[group, 0x0102].value != 0
        for group in range(0x6000, 0x6020, 2)
    )
    if shift <= 0 or stored.ndim != 2 or not (overlay or stored.dtype.kind == "i"):
        return stored
    # Up and down again: extends the sign of signed values, clears the rest.
    return np.right_shift(np.left_shift(stored, shift), shift)
