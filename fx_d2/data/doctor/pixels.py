"""Checks of the pixels of single images: readable, exposed, stored as radiographs are."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .examination import Entry, Examination
from .findings import Hit, check

WHITE_SHARE = 0.35  # real radiographs stay below 0.05, collimation and scanner borders included
BLACK_SHARE = 0.75
CLIPPED_SHARE = 0.30
FEW_LEVELS = 24
RARE_STORAGE = ("RGBA", "LA", "PA", "P")


def decoded_entries(exam: Examination) -> Iterator[Entry]:
    """One entry per decoded file."""
    for file in np.flatnonzero(exam.facts.decoded):
        yield exam.entries[exam.entries_of_file[file][0]]


@check(
    "pixels/unreadable",
    "error",
    what="an image is truncated, damaged or not an image",
    fix="download it again; compare its checksum with the provider's",
)
def unreadable(exam: Examination) -> Iterator[Hit]:
    """Files that exist and cannot be decoded."""
    for file, error in sorted(exam.facts.errors.items()):
        entry = exam.entries[exam.entries_of_file[file][0]]
        yield Hit(found=exam.relative(error), expected="a readable image", **exam.place(entry))


@check(
    "pixels/constant",
    "error",
    what="every pixel has the same value",
    fix="the file is a placeholder or was written by a failed conversion: download it again",
    needs_pixels=True,
)
def constant(exam: Examination) -> Iterator[Hit]:
    """Images without any content."""
    numbers = exam.facts.numbers
    for entry in decoded_entries(exam):
        low, high = float(numbers["low"][entry.file]), float(numbers["high"][entry.file])
        if low == high:
            yield Hit(found=f"all pixels are {low:g}", expected="a picture", **exam.place(entry))


@check(
    "pixels/saturated",
    "error",
    what="much of the image is at the end of its scale: 16 bit squashed to 8, or overexposed",
    fix="convert again from the original with its real depth; scale 16 bit before casting to 8",
    needs_pixels=True,
)
def saturated(exam: Examination) -> Iterator[Hit]:
    """Images that are mostly white, or mostly black."""
    numbers = exam.facts.numbers
    for entry in decoded_entries(exam):
        if numbers["low"][entry.file] == numbers["high"][entry.file]:
            continue
        white = float(numbers["share_high"][entry.file])
        black = float(numbers["share_low"][entry.file])
        bits = int(numbers["bits"][entry.file])
        if white > WHITE_SHARE:
            yield Hit(
                found=f"{white:.0%} of the pixels are white ({bits} bit)",
                expected=f"at most {WHITE_SHARE:.0%}",
                **exam.place(entry),
            )
        elif black > BLACK_SHARE:
            yield Hit(
                found=f"{black:.0%} of the pixels are black ({bits} bit)",
                expected=f"at most {BLACK_SHARE:.0%}",
                **exam.place(entry),
            )


@check(
    "pixels/clipped",
    "warning",
    what="the display window in the file cuts off much of the image",
    fix="check WindowCenter and WindowWidth; INPUT settings can ignore the window of the file",
    needs_pixels=True,
)
def clipped(exam: Examination) -> Iterator[Hit]:
    """Images whose own window throws much of them away."""
    numbers = exam.facts.numbers
    for entry in decoded_entries(exam):
        low, high = numbers["clipped_low"][entry.file], numbers["clipped_high"][entry.file]
        if low + high > CLIPPED_SHARE:
            yield Hit(
                found=f"{low:.0%} of the pixels lie below and {high:.0%} above the file's window",
                expected=f"at most {CLIPPED_SHARE:.0%} together",
                **exam.place(entry),
            )


@check(
    "pixels/few-levels",
    "warning",
    what="very few different grey values: depth was lost in a conversion",
    fix="convert again from the original with its real depth",
    needs_pixels=True,
)
def few_levels(exam: Examination) -> Iterator[Hit]:
    """Images whose grey scale has holes."""
    numbers = exam.facts.numbers
    for entry in decoded_entries(exam):
        levels = int(numbers["n_levels"][entry.file])
        if 1 < levels < FEW_LEVELS:
            yield Hit(
                found=f"{levels} different grey values",
                expected=f"at least {FEW_LEVELS}",
                **exam.place(entry),
            )


@check(
    "pixels/exif",
    "warning",
    what="an EXIF tag turns the image; boxes and masks may have been drawn on the unturned one",
    fix="look at it with tools/visualize_data.py; then store it turned, without the tag",
    needs_pixels=True,
)
def exif(exam: Examination) -> Iterator[Hit]:
    """Images with an orientation tag."""
    for entry in decoded_entries(exam):
        tag = int(exam.facts.numbers["exif"][entry.file])
        if tag not in (0, 1):
            yield Hit(
                found=f"EXIF orientation {tag} (applied when reading)",
                expected="1, or no tag",
                **exam.place(entry),
            )


@check(
    "pixels/storage",
    "info",
    what="a grey image stored with alpha or a palette, which naive readers misread",
    fix="nothing: it is read as grey. Other tools need an explicit conversion",
    needs_pixels=True,
)
def storage(exam: Examination) -> Iterator[Hit]:
    """RGBA and palette storage."""
    for entry in decoded_entries(exam):
        mode, photometric = exam.facts.storage[entry.file]
        if mode in RARE_STORAGE or photometric == "palette":
            yield Hit(found=f"stored as {mode}", expected="L, I;16 or RGB", **exam.place(entry))
