"""PNG, JPEG, BMP, GIF, MetaImage, JSRT .IMG and gzipped files to grey; sizes."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import threading
import warnings
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from fx_d2.data.errors import DataError
from fx_d2.data.formats import quiet
from fx_d2.data.formats.contract import ReadLimits, inflate
from fx_d2.data.images import image_size, read_image, read_mask_image

HEIGHT, WIDTH = 23, 31


@pytest.fixture
def grey():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)


@pytest.fixture
def deep():
    values = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
    values[0, :2] = 0, 65535
    return values


def check(path, expected, **facts):
    loaded = read_image(path)
    np.testing.assert_array_equal(loaded.pixels, expected)
    assert loaded.pixels.dtype == np.float32
    assert loaded.pixels.flags.c_contiguous
    assert image_size(path) == loaded.pixels.shape
    assert (loaded.facts.height, loaded.facts.width) == loaded.pixels.shape
    for name, value in facts.items():
        assert getattr(loaded.facts, name) == value, name
    return loaded


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif"])
def test_8_bit_grey(tmp_path, grey, suffix):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(grey).save(path)
    check(path, grey, format=suffix, bits=8, max_value=255)


def test_16_bit_png_does_not_saturate(tmp_path, deep):
    Image.fromarray(deep).save(tmp_path / "a.png")
    check(tmp_path / "a.png", deep, bits=16, max_value=65535, mode="I;16")


def test_the_content_decides_not_the_extension(tmp_path, deep):
    Image.fromarray(deep).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", tmp_path / "a.jpg")
    check(tmp_path / "a.jpg", deep, format="png")
    os.rename(tmp_path / "a.jpg", tmp_path / "noextension")
    check(tmp_path / "noextension", deep, format="png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P", "PA"])
def test_grey_content_in_other_modes(tmp_path, grey, mode):
    image = Image.fromarray(grey)
    if mode in ("RGBA", "LA"):
        image = image.convert(mode)
        image.putalpha(Image.fromarray(255 - grey))
    elif mode == "RGB":
        image = image.convert(mode)
    else:
        # A palette in reverse: the index is not the grey value.
        image = Image.fromarray(255 - grey)
        image = image.convert("P")
        image.putpalette([v for i in range(256) for v in (255 - i,) * 3])
    suffix = "png" if mode != "PA" else "gif"
    path = tmp_path / f"a.{suffix}"
    image.save(path)
    loaded = check(path, grey, max_value=255, bits=8)
    assert ("alpha" in " ".join(loaded.facts.notes)) is (mode in ("RGBA", "LA"))


def test_colour_is_weighted(tmp_path):
    colour = np.zeros((2, 3, 3), np.uint8)
    colour[:, 0, 0] = colour[:, 1, 1] = colour[:, 2, 2] = 255
    Image.fromarray(colour).save(tmp_path / "a.png")
    check(tmp_path / "a.png", [[76, 150, 29]] * 2, photometric="colour", n_samples=3)


@pytest.mark.parametrize("n_samples", [3, 4])
def test_16_bit_colour_png_keeps_its_depth(tmp_path, deep, n_samples):
    stacked = np.stack([deep] * 3 + [np.full_like(deep, 65535)] * (n_samples - 3), axis=-1)
    assert cv2.imwrite(str(tmp_path / "a.png"), stacked)
    check(tmp_path / "a.png", deep, bits=16, max_value=65535, n_samples=n_samples)


def test_16_bit_colour_png_is_weighted(tmp_path):
    blue_green_red = np.zeros((1, 3, 3), np.uint16)
    blue_green_red[0, [0, 1, 2], [2, 1, 0]] = 65535
    assert cv2.imwrite(str(tmp_path / "a.png"), blue_green_red)
    check(tmp_path / "a.png", [[19595, 38469, 7471]])


@pytest.mark.parametrize("bits, mode", [(1, "1"), (2, "P"), (4, "P")])
def test_few_bits(tmp_path, bits, mode):
    values = np.arange(2**bits, dtype=np.uint8)[None].repeat(3, 0)
    packed = write_small_png(tmp_path / "a.png", values, bits)
    assert packed
    check(tmp_path / "a.png", values * (255 // (2**bits - 1)), bits=bits, max_value=255)


def png_chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def write_small_png(path, values, bits, extra=b""):
    """A grey PNG of 1 to 8 bits, written by hand."""
    height, width = values.shape
    rows = b""
    for row in values:
        text = "".join(f"{v:0{bits}b}" for v in row)
        text += "0" * (-len(text) % 8)
        rows += b"\0" + int(text, 2).to_bytes(len(text) // 8, "big")
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    data += png_chunk(b"IDAT", zlib.compress(rows)) + extra + png_chunk(b"IEND", b"")
    path.write_bytes(data)
    return len(data)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    upright = np.zeros((24, 40), np.uint8)
    upright[:8, :8] = 255
    upright[:8, 16:24] = 128
    # What a camera stores so that the orientation turns it upright again.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright, 1),
        7: upright.T[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=95)
    loaded = read_image(path)
    assert loaded.pixels.shape == image_size(path) == upright.shape
    assert np.abs(loaded.pixels - upright).max() < 12
    assert loaded.facts.exif_orientation == orientation


def test_exif_after_the_pixels_of_a_png(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    values = np.arange(6, dtype=np.uint8).reshape(2, 3)
    block = png_chunk(b"eXIf", exif.tobytes()[6:])
    write_small_png(tmp_path / "a.png", values, 8, extra=block)
    check(tmp_path / "a.png", np.rot90(values, -1), exif_orientation=6)


def test_broken_exif_leaves_the_pixels_alone(tmp_path, grey):
    Image.fromarray(grey).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff junk")
    assert read_image(tmp_path / "a.jpg").facts.exif_orientation == 1


def test_colour_jpeg_gives_its_luma(tmp_path, grey):
    smooth = cv2.GaussianBlur(grey, (0, 0), 5)
    Image.fromarray(np.stack([smooth] * 3, -1)).save(tmp_path / "a.jpg", quality=95)
    loaded = read_image(tmp_path / "a.jpg")
    assert np.abs(loaded.pixels - smooth).max() <= 4
    assert (loaded.facts.mode, loaded.facts.n_samples) == ("RGB", 3)


def test_cmyk_is_refused(tmp_path):
    Image.new("CMYK", (8, 8)).save(tmp_path / "a.jpg")
    with pytest.raises(DataError, match=r"a\.jpg.*CMYK"):
        read_image(tmp_path / "a.jpg")


def test_animated_gif_is_refused(tmp_path, grey):
    frames = [Image.fromarray(grey), Image.fromarray(255 - grey)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(DataError, match="several frames"):
        read_image(tmp_path / "a.gif")


ELEMENTS = {
    "MET_UCHAR": np.uint8,
    "MET_SHORT": np.int16,
    "MET_USHORT": np.uint16,
    "MET_FLOAT": np.float32,
}


def mha(values, element, *, slices=False, compressed=False, msb=False, **more):
    """A MetaImage written by hand, after the format's description."""
    height, width = values.shape
    body = values.astype(values.dtype.newbyteorder(">" if msb else "<")).tobytes()
    if compressed:
        body = zlib.compress(body)
    fields = {
        "ObjectType": "Image",
        "NDims": 3 if slices else 2,
        "BinaryData": "True",
        "BinaryDataByteOrderMSB": msb,
        "CompressedData": compressed,
        "DimSize": f"{width} {height} 1" if slices else f"{width} {height}",
        "ElementType": element,
        **more,
        "ElementDataFile": "LOCAL",
    }
    return "".join(f"{k} = {v}\n" for k, v in fields.items()).encode() + body


@pytest.mark.parametrize("element", ELEMENTS)
@pytest.mark.parametrize("slices", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("msb", [False, True])
def test_metaimage(tmp_path, deep, element, slices, compressed, msb):
    values = (deep // (1 if element == "MET_USHORT" else 2)).astype(ELEMENTS[element])
    path = tmp_path / "a.mha"
    path.write_bytes(mha(values, element, slices=slices, compressed=compressed, msb=msb))
    tops = {"MET_UCHAR": 255, "MET_SHORT": 32767, "MET_USHORT": 65535}
    check(path, values, format="mha", max_value=tops.get(element, float(values.max())))


def test_metaimage_with_negative_values_is_shifted(tmp_path):
    values = np.array([[-1000, 0], [3000, 32767]], np.int16)
    (tmp_path / "a.mha").write_bytes(mha(values, "MET_SHORT"))
    check(tmp_path / "a.mha", values.astype(int) + 32768, max_value=65535, offset=32768)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("slices", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_metaimage_agrees_with_simpleitk(tmp_path, deep, dtype, slices, compressed):
    sitk = pytest.importorskip("SimpleITK")
    values = (deep // 2).astype(dtype)
    image = sitk.GetImageFromArray(values[None] if slices else values)
    path = tmp_path / "a.mha"
    sitk.WriteImage(image, str(path), compressed)
    expected = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).reshape(values.shape)
    check(path, expected)


@pytest.mark.parametrize(
    "more, message",
    [
        ({"DimSize": "31 23 4", "NDims": 3}, "4 slices"),
        ({"ElementNumberOfChannels": 3}, "3 channels"),
        ({"ElementType": "MET_LONG_LONG"}, "MET_LONG_LONG"),
        ({"DimSize": "31 24"}, "1488, as DimSize"),
        ({"DimSize": "31 22"}, "1364, as DimSize"),
        ({"DimSize": "100000 100000"}, "at most"),
        ({"DimSize": "-3 4"}, "whole numbers"),
        ({"DimSize": "0 4"}, "at least 1"),
        ({"DimSize": ""}, "whole numbers"),
        ({"NDims": 3}, "NDims 3"),
        ({"BinaryData": "False"}, "ASCII"),
        ({"HeaderSize": "12"}, "HeaderSize 12"),
        ({"CompressedData": "True"}, "damaged"),
    ],
)
def test_metaimage_refusals(tmp_path, deep, more, message):
    path = tmp_path / "a.mha"
    path.write_bytes(mha(deep, "MET_USHORT", **more))
    with pytest.raises(DataError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_metaimage_with_values_that_are_no_numbers(tmp_path, value):
    values = np.full((4, 4), 0.5, np.float32)
    values[2, 2] = value
    (tmp_path / "a.mha").write_bytes(mha(values, "MET_FLOAT"))
    with pytest.raises(DataError, match="finite"):
        read_image(tmp_path / "a.mha")


def test_jsrt_img(tmp_path):
    stored = (np.arange(2048 * 2048) % 4096).reshape(2048, 2048).astype(">u2")
    path = tmp_path / "JPCLN001.IMG"
    path.write_bytes(stored.tobytes())
    check(path, 4095 - stored.astype(int), format="jsrt", bits=12, max_value=4095, inverted=True)


def test_jsrt_img_of_the_wrong_length_or_byte_order(tmp_path):
    stored = (np.arange(2048 * 2048) % 4096).astype("<u2")
    path = tmp_path / "a.IMG"
    path.write_bytes(stored.tobytes())
    with pytest.raises(DataError, match="big-endian"):
        read_image(path)
    path.write_bytes(stored.tobytes()[:-2])
    for read in (read_image, image_size):
        with pytest.raises(DataError, match="8388606 bytes.*expected 8388608"):
            read(path)


def test_gzipped_files(tmp_path, deep):
    Image.fromarray(deep).save(tmp_path / "a.png")
    (tmp_path / "a.png.gz").write_bytes(gzip.compress((tmp_path / "a.png").read_bytes()))
    check(tmp_path / "a.png.gz", deep)
    stored = np.zeros(2048 * 2048, ">u2")
    (tmp_path / "a.IMG.gz").write_bytes(gzip.compress(stored.tobytes()))
    check(tmp_path / "a.IMG.gz", np.full((2048, 2048), 4095), format="jsrt")


def test_gzip_bomb_is_refused(tmp_path):
    (tmp_path / "a.gz").write_bytes(gzip.compress(bytes(50 << 20)))
    with pytest.raises(DataError, match="unpacks to more than"):
        read_image(tmp_path / "a.gz", limits=ReadLimits(max_file_bytes=1 << 20))


@pytest.mark.parametrize("size", [0, 1, 100, 4096])
def test_inflate_is_exact_at_its_bound(size):
    data = bytes(range(256)) * 16
    packed = zlib.compress(data[:size])
    assert inflate(packed, size) == data[:size]
    assert inflate(packed, size + 1) == data[:size]
    with pytest.raises(EOFError):
        inflate(packed[:-1], size)
    if size > 1:
        with pytest.raises(OverflowError):
            inflate(packed, size - 1)


def test_limits_come_before_decoding(tmp_path, grey):
    Image.fromarray(grey).save(tmp_path / "a.png")
    limits = ReadLimits(max_pixels=HEIGHT * WIDTH - 1)
    for read in (read_image, image_size, read_mask_image):
        with pytest.raises(DataError, match=r"a\.png.*ReadLimits\.max_pixels"):
            read(tmp_path / "a.png", limits=limits)
    with pytest.raises(DataError, match="max_file_bytes"):
        read_image(tmp_path / "a.png", limits=ReadLimits(max_file_bytes=10))


def test_limits_are_ours_and_leave_pillow_alone():
    assert Image.MAX_IMAGE_PIXELS == 89478485
    from PIL import ImageFile

    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.parametrize("reader", [read_image, image_size, read_mask_image])
def test_what_is_no_file(tmp_path, reader):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("<html>404</html>")
    os.mkfifo(tmp_path / "pipe.png")
    for name, message in [
        ("", "directory"),
        ("missing.png", "no such file"),
        ("empty.png", "0 bytes"),
        ("text.png", "not an image"),
        ("pipe.png", "not a regular file"),
        ("nul\0.png", "null"),
    ]:
        with pytest.raises(DataError, match=message) as caught:
            reader(f"{tmp_path}/{name}")
        assert "To do: " in str(caught.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_permission_denied(tmp_path, grey):
    Image.fromarray(grey).save(tmp_path / "a.png")
    os.chmod(tmp_path / "a.png", 0)
    with pytest.raises(DataError, match="permission denied.*chmod"):
        read_image(tmp_path / "a.png")


def test_permission_error_is_explained(tmp_path, grey, monkeypatch):
    Image.fromarray(grey).save(tmp_path / "a.png")

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fx_d2.data.formats.contract.os.stat", refuse)
    with pytest.raises(DataError, match="permission denied.*chmod"):
        read_image(tmp_path / "a.png")


def test_voi_is_checked(tmp_path):
    with pytest.raises(ValueError, match="allowed: auto, ignore"):
        read_image(tmp_path / "a.png", voi="always")


def test_facts_survive_pickling(tmp_path, grey):
    Image.fromarray(grey).save(tmp_path / "a.png")
    facts = read_image(tmp_path / "a.png").facts
    assert pickle.loads(pickle.dumps(facts)) == facts  # noqa: S301 - our own bytes


def test_a_mask_is_no_radiograph_format(tmp_path):
    (tmp_path / "m.mha").write_bytes(mha(np.ones((3, 3), np.uint8), "MET_UCHAR"))
    with pytest.raises(DataError, match="a mask as mha file"):
        read_mask_image(tmp_path / "m.mha")


def test_warnings_of_two_threads_stay_apart_and_filters_come_back():
    filters, shown = list(warnings.filters), warnings.showwarning
    gate = threading.Barrier(2)
    seen = {}

    def work(name):
        with quiet.collecting_notes() as notes:
            gate.wait()
            warnings.warn(f"from {name}", stacklevel=1)
            gate.wait()
            seen[name] = list(notes)
        gate.wait()

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {"a": ["from a"], "b": ["from b"]}
    assert warnings.filters == filters
    assert warnings.showwarning is shown
