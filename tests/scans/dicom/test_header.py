"""Headers: the quick walk agrees with pydicom, and hostile bytes end in a named refusal, in bounded time and memory."""

from __future__ import annotations

import copy
import io
import random
import resource
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian

from medlight.errors import MedlightError
from medlight.scans.dicom import parsing
from medlight.scans.dicom.frames import Place
from medlight.scans.dicom.header import UnreadableError, frames_of, header_of, parse
from tests.data import fake_dicom as fake
from tests.data.fake_dicom import Grid

PYDICOM = Path(pydicom.__file__).parent / "data" / "test_files"


@pytest.fixture
def plane():
    return fake.scanner_header(fake.plane(Grid(), 0))


def saved(dataset, folder: Path, syntax=None) -> Place:
    if syntax is not None:
        dataset.file_meta.TransferSyntaxUID = syntax
    return Place(fake.save(dataset, folder / "x.dcm"))


def refused(place: Place, words: str, seconds: float = 10.0) -> UnreadableError:
    """The object is refused, naming the file and the cause, and soon."""
    start = time.process_time()
    with pytest.raises(UnreadableError, match=words) as raised:
        frames_of(parse(place), place)
    assert time.process_time() - start < seconds
    assert str(raised.value).startswith(str(place.path))
    return raised.value


def summary(place: Place):
    dataset = parse(place)
    return header_of(dataset), frames_of(dataset, place)


def every_file(root: Path) -> list[Path]:
    found = [*PYDICOM.rglob("*"), *(root / "dicom").rglob("*")]
    return [f for f in found if f.is_file() and f.read_bytes()[128:132] == b"DICM"]


def test_the_quick_walk_says_what_pydicom_says(data_root, monkeypatch):
    """On every real file: the same header and frames, or the same refusal."""

    def told(path: Path):
        try:
            return summary(Place(path))
        except MedlightError as error:
            return str(error)

    files = every_file(data_root)
    quick = [told(path) for path in files]
    skimmed = []
    original = parsing._skimmed
    monkeypatch.setattr(parsing, "_skimmed", lambda raw, size: skimmed.append(original(raw, size)) and None)
    slow = [told(path) for path in files]
    assert quick == slow
    assert sum(found is not None for found in skimmed) > 0.7 * len(files)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian])
def test_every_encoding_of_a_header_says_the_same(plane, tmp_path, syntax):
    expected = summary(saved(copy.deepcopy(plane), tmp_path / "a"))
    place = tmp_path / "b" / "x.dcm"
    place.parent.mkdir()
    if syntax == ExplicitVRBigEndian:
        plane.PixelData = np.frombuffer(plane.PixelData, "<u2").astype(">u2").tobytes()
    plane.file_meta.TransferSyntaxUID = syntax
    plane.save_as(place)
    header, frames = summary(Place(place))
    assert header == expected[0]
    assert repr(frames).replace("/b/", "/a/") == repr(expected[1])


def test_the_header_alone_is_read(plane, tmp_path, monkeypatch):
    """A file of 200 MB takes no more bytes than its header."""
    plane.Rows = plane.Columns = 10_000
    plane.PixelData = b"\0" * 200_000_000
    place = saved(plane, tmp_path)
    read = []
    original = io.FileIO.read

    class Counting(io.FileIO):
        def read(self, size=-1):
            data = original(self, size)
            read.append(len(data))
            return data

    monkeypatch.setattr(Path, "open", lambda self, *a, **k: io.BufferedReader(Counting(self)))
    assert frames_of(parse(place), place)[0].shape == (10_000, 10_000)
    assert sum(read) <= 1 << 15


def test_truncated_anywhere_is_refused(plane, tmp_path):
    whole = saved(plane, tmp_path).path.read_bytes()
    draw = random.Random(3)
    for end in [*range(132, 400, 7), *draw.sample(range(400, len(whole)), 60), len(whole) - 1]:
        (tmp_path / "cut.dcm").write_bytes(whole[:end])
        with pytest.raises(UnreadableError, match="cut"):
            parse(Place(tmp_path / "cut.dcm"))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"Rows": 11}, "says that it holds 11x12 pixels, 264 bytes, and its pixel data is 240"),
        ({"Columns": 65535}, "65535 pixels"),
        ({"Rows": 9}, "9x12 pixels"),
        ({"Rows": 0}, "holds 0x12 pixels"),
        ({"NumberOfFrames": 3}, "in 3 frames"),
        ({"NumberOfFrames": 2147483647}, "GiB; no object does"),
        ({"NumberOfFrames": -1}, "-1 frames"),
        ({"BitsAllocated": 32}, "480 bytes"),
        ({"BitsAllocated": 0}, "1 numbers of 0 bits"),
        ({"SamplesPerPixel": 9}, "9 numbers"),
        ({"PixelData": None}, "no pixel data"),
        ({"Rows": None}, "says no Rows and Columns"),
    ],
)
def test_sizes_that_lie_are_refused(plane, tmp_path, changes, words):
    for keyword, value in changes.items():
        delattr(plane, keyword) if value is None else setattr(plane, keyword, value)
    refused(saved(plane, tmp_path), words)


def test_the_wrong_transfer_syntax_is_refused(plane, tmp_path):
    refused(_packed(plane, tmp_path), "syntax")
    data = saved(plane, tmp_path).path.read_bytes()
    at = data.index(b"1.2.840.10008.1.2.1\0")
    (tmp_path / "big.dcm").write_bytes(data[:at] + b"1.2.840.10008.1.2.2\0" + data[at + 20 :])
    refused(Place(tmp_path / "big.dcm"), "neither what it is|can't be read|cut off")


def _packed(plane, folder: Path) -> Place:
    """Native pixels under the name of JPEG 2000."""
    data = saved(plane, folder / "native").path.read_bytes()
    at = data.index(b"1.2.840.10008.1.2.1\0")
    meta = data[:at] + b"1.2.840.10008.1.2.4.90" + data[at + 20 :]
    meta = meta[: at - 2] + struct.pack("<H", 22) + meta[at:]
    (folder / "packed.dcm").write_bytes(meta)
    return Place(folder / "packed.dcm")


@pytest.mark.parametrize(
    ("keyword", "value", "words"),
    [
        ("ImagePositionPatient", b"1\\2", "holds 2 numbers in place of 3"),
        ("ImagePositionPatient", b"1\\2\\x ", "holds no number"),
        ("ImagePositionPatient", b"1\\2\\1e999 ", "not finite"),
        ("ImageOrientationPatient", b"1\\0\\0\\nan\\1\\0", "not finite"),
        ("PixelSpacing", b"1 ", "holds 1 numbers"),
    ],
)
def test_places_that_make_no_sense_are_refused(plane, tmp_path, keyword, value, words):
    place = saved(plane, tmp_path)
    replace_value(place.path, keyword, value)
    assert refused(place, words).series_uid == plane.SeriesInstanceUID


def replace_value(file: Path, keyword: str, value: bytes) -> None:
    """Put other bytes in place of a decimal string, as no library writes them."""
    data, tag = file.read_bytes(), pydicom.tag.Tag(keyword)
    start = struct.pack("<HH", tag.group, tag.element) + b"DS"
    at = data.index(start)
    length = struct.unpack_from("<H", data, at + 6)[0]
    file.write_bytes(data[:at] + start + struct.pack("<H", len(value)) + value + data[at + 8 + length :])


def header_of_bytes(body: bytes, syntax: bytes = b"1.2.840.10008.1.2.1\0") -> bytes:
    meta = b"\x02\0\x10\0UI" + struct.pack("<H", len(syntax)) + syntax
    return b"\0" * 128 + b"DICM" + b"\x02\0\0\0UL\x04\0" + struct.pack("<I", len(meta)) + meta + body


def test_sequences_nested_deeply_are_refused(plane, tmp_path):
    """A hundred thousand open sequences: pydicom's recursion ends, and so does ours."""
    opened = b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\0\xe0\xff\xff\xff\xff" * 100_000
    (tmp_path / "deep.dcm").write_bytes(header_of_bytes(opened))
    refused(Place(tmp_path / "deep.dcm"), "nested too deep")


@pytest.mark.parametrize("tag", [b"\x00\x52\x30\x92", b"\x00\x52\x20\x92"], ids=["wanted", "unwanted"])
@pytest.mark.parametrize("odd", [False, True])
def test_millions_of_empty_items_are_refused(tmp_path, tag, odd):
    items = b"\xfe\xff\0\xe0\0\0\0\0" * 4_000_000
    bomb = tag + b"SQ\0\0\xff\xff\xff\xff" + items + b"\xfe\xff\xdd\xe0\0\0\0\0"
    rows = b"\x28\0\x10\0US\2\0\1\0\x28\0\x11\0US\2\0\1\0\x28\0\0\1US\2\0\x10\0"
    kind = b"\x08\0\x60\0CS\2\0MR"
    end = b"\xe0\x7f\x10\0OW\0\0\2\0\0\0\0\0"
    (tmp_path / "bomb.dcm").write_bytes(header_of_bytes(kind + rows + (b"\0" * 8 if odd else b"") + bomb + end))
    place = Place(tmp_path / "bomb.dcm")
    if tag == b"\x00\x52\x20\x92" and not odd:
        assert len(frames_of(parse(place), place)) == 1  # stepped over
        return
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(place, "too long to be true", seconds=20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB


def test_functional_groups_that_are_bombs_are_refused(tmp_path):
    made = fake.enhanced()
    place = saved(made, tmp_path)
    data = place.path.read_bytes()
    items = b"\xfe\xff\0\xe0\0\0\0\0" * 1_000_000
    at = data.index(b"\x00\x52\x30\x92SQ")
    old = struct.unpack_from("<I", data, at + 8)[0]
    bomb = data[:at] + b"\x00\x52\x30\x92SQ\0\0" + struct.pack("<I", len(items)) + items
    place.path.write_bytes(bomb + data[at + 12 + old :] if old != 0xFFFFFFFF else bomb + made.PixelData)
    refused(place, "too long to be true")


def test_a_header_of_endless_elements_is_refused(tmp_path):
    (tmp_path / "zeros.dcm").write_bytes(header_of_bytes(b"\0" * 30_000_000, b"1.2.840.10008.1.2\0"))
    refused(Place(tmp_path / "zeros.dcm"), "too long to be true|neither what it is")


def test_a_value_of_gigabytes_is_refused(plane, tmp_path):
    body = b"\x08\0\x60\0UN\0\0" + struct.pack("<I", 0xFFFFFFF0) + b"CT"
    (tmp_path / "long.dcm").write_bytes(header_of_bytes(body))
    refused(Place(tmp_path / "long.dcm"), "too long to be true|neither what it is")


def test_a_deflate_bomb_is_refused(tmp_path):
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = b"".join(packer.compress(b"\0" * (1 << 24)) for _ in range(64)) + packer.flush()
    assert len(packed) < 2 << 20
    (tmp_path / "bomb.dcm").write_bytes(header_of_bytes(packed, b"1.2.840.10008.1.2.1.99"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(Place(tmp_path / "bomb.dcm"), "too long to be true|neither what it is", seconds=20)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1 << 20  # KiB: 1 of 64 times 16 MiB


def test_a_deflated_object_that_is_cut_off_is_refused(plane, tmp_path):
    data = saved(plane, tmp_path, DeflatedExplicitVRLittleEndian).path.read_bytes()
    for end in (len(data) - 200, len(data) // 2):
        (tmp_path / "cut.dcm").write_bytes(data[:end])
        with pytest.raises(UnreadableError):
            parse(Place(tmp_path / "cut.dcm"), pixels=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.__delitem__((0x29, 0x1010)), "without its Siemens CSA header"),
        (
            lambda m: m.__setitem__((0x29, 0x1010), pydicom.DataElement((0x29, 0x1010), "OB", b"SV10" + b"\xff" * 400)),
            "broken",
        ),
        (lambda m: delattr(m, "SpacingBetweenSlices"), "distance between its slices"),
        (lambda m: setattr(m, "ImageOrientationPatient", [0, 1, 0, 0, 0, -1]), "which way its slices go"),
        (lambda m: delattr(m, "ImagePositionPatient"), "where it lies"),
    ],
)
def test_a_mosaic_that_lacks_something_is_refused(tmp_path, change, words):
    made = fake.mosaic()
    change(made)
    refused(saved(made, tmp_path), words)


def test_a_mosaic_of_more_tiles_than_fit_is_refused(tmp_path):
    made = fake.mosaic()
    made[0x29, 0x1010].value = fake.csa_header(
        NumberOfImagesInMosaic=("US", ["50"]), SliceNormalVector=("FD", ["0", "0", "1"])
    )
    refused(saved(made, tmp_path), "50 slices can't fill")


def test_frames_whose_pixels_have_no_size_have_no_spacing(tmp_path):
    made = fake.enhanced()
    made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.0, 0.75]
    place = saved(made, tmp_path)
    assert {frame.spacing for frame in frames_of(parse(place), place)} == {None}


def test_packed_pixels_that_are_cut_off_are_refused(data_root, tmp_path):
    """pydicom gives back an empty data set for these, without a word."""
    whole = next((data_root / "dicom" / "generic" / "compressed_j2k" / "001").glob("*.dcm")).read_bytes()
    place = Place(tmp_path / "cut.dcm")
    place.path.write_bytes(whole[:-30000])
    with pytest.raises(UnreadableError, match="cut off"):
        parse(place, pixels=True)


def test_an_object_whose_class_is_no_uid_is_refused(tmp_path):
    made = fake.report()
    made["SOPClassUID"] = pydicom.DataElement("SOPClassUID", "LO", "1.2.840\x01")
    made.file_meta.MediaStorageSOPClassUID = "1.2"
    refused(saved(made, tmp_path), "is no UID")


def test_frames_that_are_not_all_described_are_refused(tmp_path):
    made = fake.enhanced()
    del made.PerFrameFunctionalGroupsSequence[-1]
    refused(saved(made, tmp_path), "6, and 5 frames are described")


def test_a_named_refusal_says_nothing_of_the_patient(plane, tmp_path):
    place = saved(plane, tmp_path)
    replace_value(place.path, "ImagePositionPatient", b"Zyzzyva ")
    with pytest.raises(UnreadableError) as raised:
        frames_of(parse(place), place)
    assert not any(secret in str(raised.value) for secret in fake.SECRETS)


def test_mutated_headers_give_frames_or_a_named_refusal(data_root, tmp_path):
    """Bytes of real headers changed at random: nothing but ``MedlightError``, and soon."""
    files = [file for file in every_file(data_root) if file.stat().st_size < 1 << 20]
    draw = random.Random(11)
    for _ in range(2000):
        mutate_once(draw, draw.choice(files), Place(tmp_path / "mutant.dcm"))


def mutate_once(draw: random.Random, file: Path, place: Place) -> None:
    data = bytearray(file.read_bytes())
    end = min(len(data), 6000)
    for _ in range(draw.choice((1, 1, 3, 20))):
        data[draw.randrange(128, end)] = draw.choice((0, 255, draw.randrange(256)))
    if draw.random() < 0.2:
        del data[draw.randrange(132, len(data)) :]
    place.path.write_bytes(data)
    start = time.process_time()
    said = str(place.path)
    try:
        summary(place)
    except MedlightError as error:
        said = str(error)
    assert said.startswith(str(place.path))
    assert time.process_time() - start < 20
