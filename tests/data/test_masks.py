"""Mask references: hand-made vectors, round trips, and what must be refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools import mask as coco_mask

from fx_d2.data.errors import DataError
from fx_d2.data.masks import (
    absolute_runs,
    check_runs,
    empty_mask,
    encode_mask,
    load_mask,
    pack_runs,
    parse_runs,
    runs_to_coco,
)

MASKS = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=12))


def pixels(mask):
    """Foreground as a set of (x, y)."""
    return {(int(x), int(y)) for y, x in zip(*np.nonzero(mask), strict=True)}


def flat_runs(flat):
    """(start, end) of the runs of a flat boolean array, found pixel by pixel."""
    runs, start = [], None
    for i, value in enumerate([*flat.tolist(), False]):
        if value and start is None:
            start = i
        elif not value and start is not None:
            runs.append((start, i))
            start = None
    return runs


def relative_columns(mask):
    text, end = [], 0
    for start, stop in flat_runs(mask.T.ravel()):
        text += [start - end, stop - start]
        end = stop
    return " ".join(map(str, text))


def absolute_rows(mask):
    return " ".join(f"{start + 1} {stop - start}" for start, stop in flat_runs(mask.ravel()))


def runs_ref(text, convention, size):
    return {"size": list(size), "runs": text, "convention": convention}


# -- the specification's vectors ----------------------------------------------------------------


def test_relative_columns_vector():
    mask = load_mask(runs_ref("1 2 1 3", "relative_columns", (4, 4)), 4, 4)
    assert pixels(mask) == {(0, 1), (0, 2), (1, 0), (1, 1), (1, 2)}


def test_the_same_string_read_as_absolute_rows_is_another_mask():
    # "1 2 1 3" starts twice at the same pixel: as absolute runs it is refused, not drawn.
    with pytest.raises(DataError, match="overlap"):
        load_mask(runs_ref("1 2 1 3", "absolute_rows_1", (4, 4)), 4, 4)
    one = load_mask(runs_ref("1 2", "absolute_rows_1", (4, 4)), 4, 4)
    other = load_mask(runs_ref("1 2", "relative_columns", (4, 4)), 4, 4)
    assert pixels(one) == {(0, 0), (1, 0)}
    assert pixels(other) == {(0, 1), (0, 2)}


def test_absolute_rows_vector():
    mask = load_mask(runs_ref("2 2 6 1", "absolute_rows_1", (3, 4)), 3, 4)
    assert pixels(mask) == {(1, 0), (2, 0), (1, 1)}


# -- round trips --------------------------------------------------------------------------------


@given(MASKS)
def test_relative_runs_round_trip(mask):
    text = relative_columns(mask)
    if not text:
        return
    decoded = load_mask(runs_ref(text, "relative_columns", mask.shape), *mask.shape)
    assert (decoded == mask).all()
    assert (load_mask(runs_to_coco(text, mask.shape), *mask.shape) == mask).all()


@given(MASKS)
def test_absolute_runs_round_trip_as_text_and_packed(mask):
    text = absolute_rows(mask)
    if not text:
        return
    for runs in (text, pack_runs(text)):
        decoded = load_mask(runs_ref(runs, "absolute_rows_1", mask.shape), *mask.shape)
        assert (decoded == mask).all()
        assert parse_runs(runs).tolist() == parse_runs(text).tolist()


@given(MASKS)
def test_box_of_runs_is_the_box_of_the_mask(mask):
    if not mask.any():
        return
    ys, xs = np.nonzero(mask)
    true = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)
    for text, convention in (
        (relative_columns(mask), "relative_columns"),
        (absolute_rows(mask), "absolute_rows_1"),
    ):
        box = check_runs(text, convention, mask.shape)
        # A run that wraps into the next line touches both borders, so the box is still exact.
        assert tuple(box) == true


@given(MASKS)
def test_coco_strings_agree_with_pycocotools(mask):
    packed = encode_mask(mask)
    for counts in (packed["counts"], packed["counts"].decode()):
        decoded = load_mask({"size": packed["size"], "counts": counts}, *mask.shape)
        assert decoded.dtype == np.bool_
        assert (decoded == mask).all()


@given(MASKS)
def test_encoding_agrees_with_pycocotools(mask):
    assert encode_mask(mask) == coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert encode_mask(mask.astype(np.uint8)) == encode_mask(mask)


def test_encoding_many_runs_agrees_with_pycocotools():
    noise = np.random.default_rng(0).random((300, 400)) < 0.5
    assert encode_mask(noise) == coco_mask.encode(np.asfortranarray(noise.astype(np.uint8)))


def test_large_coco_string_agrees_with_pycocotools():
    rng = np.random.default_rng(0)
    mask = np.repeat(np.repeat(rng.random((40, 50)) > 0.5, 37, axis=0), 41, axis=1)
    mask[500:, :900] = False
    packed = encode_mask(mask)
    assert (load_mask(packed, *mask.shape) == coco_mask.decode(packed).astype(bool)).all()


@given(MASKS)
def test_coco_lists(mask):
    flat = mask.T.ravel()
    edges = [0, *(i for run in flat_runs(flat) for i in run), flat.size]
    counts = np.diff(edges).tolist()
    decoded = load_mask({"size": list(mask.shape), "counts": counts}, *mask.shape)
    assert (decoded == mask).all()


# -- what must be refused -----------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["relative_columns", "absolute_rows_1"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "1",
        "1 2 3",
        "a b",
        "1.5 2",
        "1 2\x00",
        "-3 2",
        "3 -2",
        "3 0",
        "1 99999999999999999999",
        "9223372036854775807 9223372036854775807",
        "13 4 14",
        "16 5",
        "17 1",
        "1 17",
    ],
)
def test_bad_runs_name_file_and_row(text, convention):
    with pytest.raises(DataError) as error:
        check_runs(text, convention, (4, 4), file="masks.csv", row=7)
    line = str(error.value)
    assert "masks.csv" in line and "row 7" in line and "\n" not in line


def test_a_run_may_end_at_the_last_pixel_and_not_one_further():
    assert absolute_runs(parse_runs("13 4"), "absolute_rows_1", (4, 4)).tolist() == [[12, 16]]
    with pytest.raises(DataError, match="leave the 4 x 4 frame"):
        absolute_runs(parse_runs("13 5"), "absolute_rows_1", (4, 4))
    assert absolute_runs(parse_runs("12 4"), "relative_columns", (4, 4)).tolist() == [[12, 16]]
    with pytest.raises(DataError, match="leave the 4 x 4 frame"):
        absolute_runs(parse_runs("13 4"), "relative_columns", (4, 4))


def test_overlapping_absolute_runs_are_refused():
    with pytest.raises(DataError, match="overlap"):
        check_runs("1 4 3 2", "absolute_rows_1", (4, 4))
    with pytest.raises(DataError, match="overlap"):
        check_runs("9 2 1 2", "absolute_rows_1", (4, 4))


def test_unknown_convention_is_a_programming_error():
    with pytest.raises(ValueError, match="not one of"):
        absolute_runs(parse_runs("1 1"), "columns", (4, 4))


@given(st.binary(max_size=40), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=400)
def test_damaged_coco_strings_never_crash(counts, height, width):
    # pycocotools writes out of bounds on such strings and takes the process with it.
    try:
        mask = load_mask({"size": [height, width], "counts": counts}, height, width)
    except DataError:
        return
    assert mask.shape == (height, width)


@given(st.text(alphabet=[chr(c) for c in range(48, 112)], max_size=30))
@settings(max_examples=400)
def test_plausible_coco_strings_never_crash(counts):
    try:
        mask = load_mask({"size": [5, 7], "counts": counts}, 5, 7)
    except DataError:
        return
    assert mask.shape == (5, 7)


@pytest.mark.parametrize("counts", [[5, 4], [20], [-4, 20], [8.5, "x"], [1 << 70], [[16]], []])
def test_bad_coco_lists(counts):
    with pytest.raises(DataError):
        load_mask({"size": [4, 4], "counts": counts}, 4, 4)


@pytest.mark.parametrize("size", [[0, 4], [-1, -4], [1 << 20, 1 << 20], [1 << 40, 1]])
def test_a_stated_size_cannot_fill_the_memory(size):
    with pytest.raises(DataError, match="mask of"):
        load_mask({"size": size, "polygons": []}, 4, 4, resize=True)


@pytest.mark.parametrize(
    "ring", [[1.0, 2.0, 3.0], [0, 0, 4, 0, 1e12, 9], [0, 0, float("nan"), 1], [float("inf")] * 6]
)
def test_bad_polygons(ring):
    with pytest.raises(DataError, match="polygon"):
        load_mask({"size": [9, 9], "polygons": [ring]}, 9, 9)


# -- polygons, files, unions, sizes -------------------------------------------------------------


def test_polygon_includes_its_border():
    mask = load_mask({"size": [8, 9], "polygons": [[2, 1, 6, 1, 6, 4, 2, 4]]}, 8, 9)
    assert pixels(mask) == {(x, y) for x in range(2, 7) for y in range(1, 5)}


def test_polygons_are_a_union_and_may_be_cut_by_the_frame():
    rings = [[0, 0, 2, 0, 2, 2, 0, 2], [6, 6, 20, 6, 20, 20, 6, 20]]
    mask = load_mask({"size": [8, 8], "polygons": rings}, 8, 8)
    assert pixels(mask) == {(x, y) for x in range(3) for y in range(3)} | {
        (x, y) for x in (6, 7) for y in (6, 7)
    }


def test_no_polygon_is_an_empty_mask():
    assert not load_mask({"size": [8, 9], "polygons": []}, 8, 9).any()
    assert load_mask(empty_mask(), 3, 5).shape == (3, 5)
    assert not load_mask(empty_mask(), 3, 5).any()


@pytest.fixture
def mask_file(tmp_path):
    def write(name, box, size=(10, 12), mode="L"):
        canvas = np.zeros(size, np.uint8)
        x0, y0, x1, y1 = box
        canvas[y0:y1, x0:x1] = 255
        Image.fromarray(canvas).convert(mode).save(tmp_path / name)
        return str(tmp_path / name)

    return write


def test_file_and_union_of_files(mask_file):
    one, two = mask_file("1.png", (1, 1, 3, 3)), mask_file("2.gif", (5, 5, 7, 8))
    assert load_mask(one, 10, 12).sum() == 4
    assert load_mask([one, two], 10, 12).sum() == 4 + 6
    union = {"size": [10, 12], "union": [one, {"polygons": [[0, 0, 2, 0, 2, 2, 0, 2]]}]}
    assert load_mask(union, 10, 12).sum() == 4 + 9 - 4


def test_crop_is_placed_at_left_and_top(mask_file):
    crop = mask_file("c.png", (0, 0, 3, 2), size=(2, 3), mode="RGBA")
    ref = {"size": [10, 12], "file": crop, "left": 4, "top": 7}
    assert pixels(load_mask(ref, 10, 12)) == {(x, y) for x in (4, 5, 6) for y in (7, 8)}
    for left, top in ((10, 0), (0, 9), (-1, 0)):
        with pytest.raises(DataError, match="leaves the image"):
            load_mask({**ref, "left": left, "top": top}, 10, 12)


def test_another_size_is_an_error_unless_it_may_be_resized(mask_file):
    half = mask_file("half.png", (2, 1, 6, 3), size=(5, 6))
    with pytest.raises(DataError, match="5 x 6") as error:
        load_mask(half, 10, 12)
    assert "half.png" in str(error.value)
    with pytest.raises(DataError, match="8 x 8"):
        load_mask(runs_ref("1 2", "absolute_rows_1", (8, 8)), 10, 12)
    resized = load_mask(half, 10, 12, resize=True)
    assert pixels(resized) == {(x, y) for x in range(4, 12) for y in range(2, 6)}


def test_masks_of_different_sizes_have_no_union(mask_file):
    one = mask_file("1.png", (1, 1, 3, 3))
    two = mask_file("2.png", (1, 1, 3, 3), size=(9, 9))
    with pytest.raises(DataError, match="differ in size"):
        load_mask([one, two], 10, 12, resize=True)


def test_missing_mask_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png"):
        load_mask(str(tmp_path / "gone.png"), 4, 4)


def test_unknown_form_is_a_programming_error():
    with pytest.raises(TypeError, match="none of the forms"):
        load_mask({"size": [4, 4], "bitmap": "x"}, 4, 4)
