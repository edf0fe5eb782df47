"""Plain images, against tifffile, ITK and Pillow's own writer."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
import tifffile
from PIL import Image

from medlight.errors import MedlightError
from medlight.prepare.reading import _picture
from medlight.scans import orientation, read
from medlight.scans.headers import facts
from medlight.scans.labels import read_label
from medlight.scans.raster import read_raster

RNG = np.random.default_rng(0)


def pixels(dtype, *shape):
    return (RNG.random(shape) * (60000 if dtype == "uint16" else 200)).astype(dtype)


def expected(array):
    """``([pages,] rows, columns[, colours])`` as ``(C, columns, rows, pages)``."""
    array = array if array.shape[-1] == 3 else array[..., None]
    array = array if array.ndim == 4 else array[None]
    return array.transpose(3, 2, 1, 0)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize("shape", [(5, 7), (4, 5, 7), (5, 7, 3), (4, 5, 7, 3)])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_tiff_as_tifffile_writes_it(tmp_path, dtype, shape, compression):
    array = pixels(dtype, *shape)
    colour = shape[-1] == 3
    kind = "rgb" if colour else "minisblack"
    tifffile.imwrite(tmp_path / "x.tif", array, compression=compression, photometric=kind)
    if colour and dtype == "float32":
        with pytest.raises(MedlightError, match="can't be read as an image"):
            read(tmp_path / "x.tif")
        return
    volume = read(tmp_path / "x.tif")
    assert volume.array.dtype == dtype
    np.testing.assert_array_equal(volume.array, expected(array))
    assert [channel.name for channel in volume.channels] == (["red", "green", "blue"] if colour else [""])
    assert facts(tmp_path / "x.tif")["shape"] == list(volume.shape)
    assert facts(tmp_path / "x.tif")["channels"] == len(volume.array)


def test_an_item_of_an_array_file_lies_the_same_way(tmp_path):
    for array in (pixels("uint8", 5, 7), pixels("uint8", 5, 7, 3)):
        Image.fromarray(array).save(tmp_path / "x.png")
        volume, other = read(tmp_path / "x.png"), _picture(array)
        np.testing.assert_array_equal(volume.array, other.array)
        np.testing.assert_array_equal(volume.affine, other.affine)
        assert orientation(volume.affine) == "LPS"


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif", "x.TIFF"])
def test_pixels_are_as_large_as_the_file_says(tmp_path, name):
    image = Image.fromarray(pixels("uint8", 5, 7))
    image.save(tmp_path / name, dpi=(254, 508))
    assert read(tmp_path / name).spacing == pytest.approx((0.1, 0.05, 1), rel=1e-3)
    for said in ({"dpi": (72, 72)}, {"dpi": (96, 96)}, {}):
        image.save(tmp_path / name, **said)
        assert read(tmp_path / name).spacing == (1, 1, 1)
        assert "1 mm" in facts(tmp_path / name)["detail"]
    tifffile.imwrite(tmp_path / "cm.tif", pixels("uint8", 5, 7), resolution=(100, 50), resolutionunit="CENTIMETER")
    assert read(tmp_path / "cm.tif").spacing == pytest.approx((0.1, 0.2, 1))


def test_grey_palette_bilevel_and_transparency(tmp_path):
    path = tmp_path / "x.png"
    grey, deep, colour = pixels("uint8", 5, 7), pixels("uint16", 5, 7), pixels("uint8", 5, 7, 3)
    Image.fromarray(deep).save(path)
    np.testing.assert_array_equal(read(path).array, expected(deep))
    assert read(path).array.dtype == np.uint16
    Image.fromarray(grey > 100).save(path)
    np.testing.assert_array_equal(read(path).array, expected((grey > 100).astype(np.uint8)))
    Image.fromarray(np.dstack([colour, grey])).save(path)
    np.testing.assert_array_equal(read(path).array, expected(colour))
    Image.merge("LA", [Image.fromarray(grey)] * 2).save(path)
    np.testing.assert_array_equal(read(path).array, expected(grey))
    indexed = Image.fromarray(grey % 4)
    indexed = Image.frombytes("P", (7, 5), indexed.tobytes())
    indexed.putpalette([9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 0, 0])
    indexed.save(path)
    np.testing.assert_array_equal(read_raster(path, indices=True).array, expected(grey % 4))
    np.testing.assert_array_equal(read(path).array, expected(np.asarray(indexed.convert("RGB"))))


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_sixteen_bits_of_colour_are_kept(tmp_path, name):
    array = pixels("uint16", 5, 7, 3)
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=True), str(tmp_path / name))
    volume = read(tmp_path / name)
    assert volume.array.dtype == np.uint16
    np.testing.assert_array_equal(volume.array, expected(array))


def test_inverted_and_turned_pictures_are_set_right(tmp_path):
    for dtype in ("uint8", "uint16"):
        array = pixels(dtype, 5, 7)
        tifffile.imwrite(tmp_path / "x.tif", array, photometric="miniswhite")
        np.testing.assert_array_equal(read(tmp_path / "x.tif").array, expected(np.iinfo(dtype).max - array))
    array = np.kron(pixels("uint8", 5, 7), np.ones((16, 16), np.uint8))
    for turn, seen in ((3, array[::-1, ::-1]), (6, np.rot90(array, -1)), (8, np.rot90(array))):
        image = Image.fromarray(array)
        exif = image.getexif()
        exif[0x0112] = turn
        image.save(tmp_path / "x.jpg", exif=exif, quality=100, dpi=(254, 508))
        image.save(tmp_path / "x.tif", tiffinfo={0x0112: turn}, dpi=(254, 508))
        for name in ("x.jpg", "x.tif"):
            volume = read(tmp_path / name)
            np.testing.assert_allclose(volume.array.astype(int), expected(seen), atol=4)
            assert facts(tmp_path / name)["shape"] == list(volume.shape)
            size = (0.1, 0.05) if turn == 3 else (0.05, 0.1)
            assert volume.spacing[:2] == pytest.approx(size, rel=1e-3)


def test_real_pictures(data_root):
    path = sorted((data_root / "bccd" / "JPEGImages").glob("*.jpg"))[0]
    np.testing.assert_array_equal(read(path).array, expected(np.asarray(Image.open(path))))
    for folder, channels in (("images", 3), ("labels", 1)):
        path = sorted((data_root / "dsb2018" / folder).glob("*.png"))[0]
        oracle = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
        np.testing.assert_array_equal(read(path).array, expected(oracle[..., :3] if channels == 3 else oracle))


# Hostile


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, content=b""):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.png", png(100_000, 100_000)),
        ("x.png", png(2**31 - 1, 2**31 - 1)),
        ("x.png", png(0, 5)),
        ("x.png", png(50, 50, zlib.compress(bytes(9)))),
        ("x.png", b"not a picture"),
        ("x.jpg", b"\xff\xd8\xff\xe0" + bytes(20)),
        ("x.tif", b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", 60000)),
        ("x.tif", b"II*\0" + struct.pack("<I", 2**32 - 1)),
    ],
)
def test_damaged_and_absurd_pictures_are_named(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MedlightError, match=r"can't be read as an image|voxels") as caught:
        read(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert facts(tmp_path / name, deep=True)["status"] == "unreadable"


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.tif"])
def test_a_picture_that_is_cut_short_is_named(tmp_path, name):
    made = io.BytesIO()
    Image.fromarray(pixels("uint8", 50, 70, 3)).save(made, {"x.png": "PNG", "x.jpg": "JPEG", "x.tif": "TIFF"}[name])
    (tmp_path / name).write_bytes(made.getvalue()[: len(made.getvalue()) // 2])
    with pytest.raises(MedlightError, match="can't be read as an image"):
        read(tmp_path / name)


def test_pages_that_differ_are_named(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(pixels("uint8", 5, 7))
        file.write(pixels("uint8", 6, 7))
    with pytest.raises(MedlightError, match="page 2 has another size"):
        read(tmp_path / "x.tif")


def test_pages_that_go_round_in_a_circle_end(tmp_path):
    tifffile.imwrite(tmp_path / "x.tif", pixels("uint8", 2, 5, 7), photometric="minisblack")
    content = bytearray((tmp_path / "x.tif").read_bytes())
    first = struct.unpack_from("<I", content, 4)[0]
    entries = struct.unpack_from("<H", content, first)[0]
    second = struct.unpack_from("<I", content, first + 2 + 12 * entries)[0]
    entries = struct.unpack_from("<H", content, second)[0]
    struct.pack_into("<I", content, second + 2 + 12 * entries, first)
    (tmp_path / "x.tif").write_bytes(content)
    assert facts(tmp_path / "x.tif", deep=True)["status"] in ("ok", "unreadable")


def test_a_label_map_with_a_palette_has_its_indices_as_values(tmp_path):
    values = np.arange(35, dtype=np.uint8).reshape(5, 7) % 4
    image = Image.frombytes("P", (7, 5), values.tobytes())
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(tmp_path / "x.png")
    label = read_label(tmp_path / "x.png", read(tmp_path / "x.png"))
    np.testing.assert_array_equal(label.array, expected(values))
