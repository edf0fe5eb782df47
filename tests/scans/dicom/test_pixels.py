"""Stored pixels against what was written, and against pydicom's own reading with other decoders."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path

import data_store
import numpy as np
import pydicom
import pytest
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels import get_decoder

from medlight.scans.dicom import pixels
from medlight.scans.dicom.opened import KEYWORDS

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
PACKAGED = Path(data_store.__file__).parent / "data"
# Refused, and why; whoever reads them reads something else than what was written.
REFUSED = {
    "JPEG2000-embedded-sequence-delimiter.dcm": "compressed frame has",
    "MR_small_padded.dcm": "longer",
    "MR_truncated.dcm": "shorter",
    "badVR.dcm": "NumberOfFrames",
    "emri_small_jpeg_2k_lossless_too_short.dcm": "10 frames",
}


def _read(dataset: Dataset) -> np.ndarray:
    layout = pixels.layout(dataset)
    read = pixels.frames(dataset, layout)
    return np.stack([read(index) for index in range(layout.frames)])


def _object(values: np.ndarray, syntax: str = uid.ExplicitVRLittleEndian, **tags) -> Dataset:
    """A data set as it comes out of a file, so that value representations are what a reader finds."""
    made = Dataset()
    made.Rows, made.Columns = values.shape[:2]
    made.SamplesPerPixel = values.shape[2] if values.ndim == 3 else 1
    made.PhotometricInterpretation = "RGB" if values.ndim == 3 else "MONOCHROME2"
    if values.ndim == 3:
        made.PlanarConfiguration = 0
    made.BitsAllocated = made.BitsStored = 8 * values.dtype.itemsize
    made.HighBit = made.BitsStored - 1
    made.PixelRepresentation = int(values.dtype.kind == "i")
    made.SOPClassUID, made.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.7", "1.2.3"
    order = ">" if syntax == uid.ExplicitVRBigEndian else "<"
    made.PixelData = values.astype(values.dtype.newbyteorder(order)).tobytes()
    made["PixelData"].VR = "OW"
    for name, value in tags.items():
        setattr(made, name, value)
    if len(made.PixelData) % 2:
        made.PixelData += b"\0"
    made.file_meta = FileMetaDataset()
    made.file_meta.TransferSyntaxUID = syntax
    if uid.UID(syntax).is_encapsulated:
        made["PixelData"].is_undefined_length = True
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, made, enforce_file_format=True)
    buffer.seek(0)
    return pydicom.dcmread(buffer)


def _ramp(dtype: str, shape: tuple[int, ...] = (6, 8)) -> np.ndarray:
    info = np.iinfo(dtype)
    return np.linspace(info.min, info.max, int(np.prod(shape))).astype(dtype).reshape(shape)


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32"])
def test_uncompressed_numbers_of_any_size_sign_and_order(syntax, dtype):
    values = _ramp(dtype)
    if syntax == uid.ExplicitVRBigEndian and values.dtype.itemsize == 1:
        made = _object(values, syntax, PixelData=values.view(">u2").astype("<u2").tobytes())  # bytes in words
    else:
        made = _object(values, syntax)
    got = _read(made)[0]
    assert got.dtype == values.dtype
    np.testing.assert_array_equal(got, values)


def test_bits_outside_the_stored_ones_are_dropped():
    values = np.array([[0, 1, 2047], [2048, 4000, 4095]], np.uint16)
    overlaid = values | np.uint16(0xA000)
    np.testing.assert_array_equal(_read(_object(overlaid, BitsStored=12, HighBit=11))[0], values)
    shifted = (values << 4) | np.uint16(5)
    np.testing.assert_array_equal(_read(_object(shifted, BitsStored=12, HighBit=15))[0], values)
    signed = np.array([[-2048, -1, 0], [1, 2047, -2000]], np.int16)
    bare = (signed & 0x0FFF).astype(np.int16)  # the sign is not carried into the unused bits
    np.testing.assert_array_equal(_read(_object(bare, BitsStored=12, HighBit=11))[0], signed)


def test_single_bits_and_floats():
    bits = (np.arange(3 * 5 * 7).reshape(3, 5, 7) % 3 == 0).astype(np.uint8)
    packed = np.packbits(bits.reshape(-1), bitorder="little").tobytes()
    tags = {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0, "NumberOfFrames": 3, "PixelData": packed}
    np.testing.assert_array_equal(_read(_object(bits[0], **tags)), bits)
    values = np.linspace(-3, 5, 12, dtype=np.float32).reshape(3, 4)
    made = _object(np.zeros((3, 4), np.uint32))
    del made.PixelData
    made.FloatPixelData = values.tobytes()
    np.testing.assert_array_equal(_read(made)[0], values)


def test_colour_by_pixel_and_by_plane():
    values = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    np.testing.assert_array_equal(_read(_object(values))[0], values)
    planes = np.moveaxis(values, -1, 0).tobytes()
    np.testing.assert_array_equal(_read(_object(values, PlanarConfiguration=1, PixelData=planes))[0], values)


def test_ybr_becomes_rgb():
    red = np.zeros((2, 2, 3), np.uint8)
    red[:] = (76, 85, 255)  # ITU-T T.871's YCbCr of pure red
    got = _read(_object(red, PhotometricInterpretation="YBR_FULL"))[0]
    assert np.abs(got.astype(int) - (254, 0, 0)).max() <= 1
    halved = bytes((76, 76, 85, 255)) * 2
    got = _read(_object(red, PhotometricInterpretation="YBR_FULL_422", PixelData=halved))[0]
    assert np.abs(got.astype(int) - (254, 0, 0)).max() <= 1


@pytest.mark.parametrize("path", sorted([*SHIPPED.rglob("*.dcm"), *PACKAGED.glob("*.dcm")]), ids=lambda path: path.name)
def test_every_file_of_pydicom_is_read_as_pydicom_does_or_refused_by_name(path):
    dataset = pydicom.dcmread(path, force=True)
    if not any(keyword in dataset for keyword in KEYWORDS) or "BitsAllocated" not in dataset:
        with pytest.raises(ValueError, match=r"no pixel data|missing"):
            pixels.layout(dataset)
        return
    if path.name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[path.name]):
            _read(dataset)
        return
    got = _read(dataset)
    if path.name in ("JPGExtended.dcm", "JPEG-lossy.dcm"):  # 12-bit: the values in pydicom's and pylibjpeg's tests
        assert (got[0, 420, 140], got[0, 230, 120]) == (244, 95)
        return
    if not dataset.file_meta.get("TransferSyntaxUID"):
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian
    theirs = dataset.pixel_array
    np.testing.assert_array_equal(got.reshape(theirs.shape), theirs)


@pytest.mark.parametrize("folder", ["compressed_j2k", "compressed_jpeg", "compressed_jpegls", "compressed_rle"])
def test_copies_of_one_series_decode_to_identical_arrays(data_root, folder):
    generic = data_root / "dicom" / "generic"

    def series(name: str) -> dict[float, np.ndarray]:
        files = [
            pydicom.dcmread(path)
            for path in sorted((generic / name).rglob("*"))
            if path.suffix != ".gz" and path.is_file()
        ]
        return {float(one.ImagePositionPatient[2]): _read(one)[0] for one in files}

    plain, compressed = series("compressed"), series(folder)
    assert plain.keys() == compressed.keys()
    for place, values in plain.items():
        np.testing.assert_array_equal(compressed[place], values)


@pytest.mark.parametrize("name", [name for name in dir(uid) if name.startswith(("JPEG", "HTJ2K", "RLE"))])
def test_every_encoding_of_pictures_has_its_decoder_in_the_base_install(name):
    syntax = getattr(uid, name)
    if isinstance(syntax, uid.UID) and syntax in pixels.PLUGINS:
        assert pixels.PLUGINS[syntax] in get_decoder(syntax).available_plugins


@pytest.mark.parametrize(
    ("tags", "named"),
    [
        ({"Rows": 7}, "shorter"),
        ({"Rows": 5}, "longer"),
        ({"Columns": 7}, "longer"),
        ({"NumberOfFrames": 2}, "shorter"),
        ({"NumberOfFrames": 2**31 - 1}, "shorter"),
        ({"Rows": 65535, "Columns": 65535}, "65535 x 65535"),
        ({"Rows": 0}, "claims"),
        ({"BitsAllocated": 8, "BitsStored": 8}, "longer"),
        ({"BitsAllocated": 12}, "12 bits"),
        ({"BitsStored": 17}, "17 bits"),
        ({"SamplesPerPixel": 3}, "samples"),
        ({"SamplesPerPixel": 4}, "samples"),
        ({"PhotometricInterpretation": "PATIENT"}, "photometric"),
        ({"PixelData": b""}, "no pixel data"),
        ({"PixelData": b"\0" * 94}, "shorter"),
    ],
)
def test_a_header_that_lies_is_named(tags, named):
    with pytest.raises(ValueError, match=named) as caught:
        _read(_object(_ramp("uint16"), **tags))
    assert "PATIENT" not in str(caught.value)


def test_pixels_that_are_missing_or_encoded_in_a_way_that_is_not_read():
    made = _object(_ramp("uint16"))
    del made.PixelData
    with pytest.raises(ValueError, match="no pixel data"):
        _read(made)
    made = _object(_ramp("uint16"))
    made.file_meta.TransferSyntaxUID = uid.MPEG2MPML
    with pytest.raises(ValueError, match="MPEG2"):
        _read(made)


def _j2k(rows: int, columns: int) -> bytes:
    siz = struct.pack(">HHIIIIIIIIH", 41, 0, columns, rows, 0, 0, columns, rows, 0, 0, 1)
    return b"\xff\x4f\xff\x51" + siz + b"\x0f\x01\x01" + b"\xff\xd9"


def test_a_codestream_names_its_size_before_it_is_decoded():
    assert pixels.codestream_size(_j2k(11, 22)) == (11, 22)
    sof = b"\xff\xd8" + b"\xff\xe0\x00\x04ab" + b"\xff\xff\xc0" + struct.pack(">HBHHB", 11, 8, 33, 44, 1)
    assert pixels.codestream_size(sof) == (33, 44)
    for junk in (b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8\xff\xc0\x00", b"\0" * 64, b"\xff\x4f\xff\x51\0"):
        assert pixels.codestream_size(junk) is None


def test_a_bomb_in_a_codestream_is_refused_before_any_memory_is_taken():
    made = _object(_ramp("uint16"), uid.JPEG2000Lossless, PixelData=encapsulate([_j2k(60000, 60000)]))
    with pytest.raises(ValueError, match="60000"):
        _read(made)


@pytest.mark.parametrize("count", [1, 3])
def test_a_number_of_frames_that_is_not_the_number_of_fragments(count):
    part = (PACKAGED / "emri_small_RLE.dcm").read_bytes()
    dataset = pydicom.dcmread(io.BytesIO(part))
    dataset.NumberOfFrames = count
    with pytest.raises(ValueError, match="frames"):
        _read(dataset)


def test_the_bytes_of_a_compressed_frame_may_be_anything():
    rng = np.random.default_rng(3)
    for name in (
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "SC_rgb_jpeg_gdcm.dcm",
    ):
        clean = pydicom.dcmread(SHIPPED / name)
        shape = _read(clean).shape
        for _ in range(20):
            dataset = pydicom.dcmread(SHIPPED / name)
            data = bytearray(dataset.PixelData)
            for place in rng.integers(20, len(data), 4):
                data[place] = rng.integers(256)
            dataset.PixelData = bytes(data)
            with contextlib.suppress(Exception):  # a crash or a panic is none
                assert _read(dataset).shape == shape
