"""Series of DICOM files, damaged as disks, networks, converters and people damage them.

A series is ``{name: bytes}``. Each of ``KINDS`` takes a random generator, the series, and those around it, and gives
a damaged copy; None where the series has nothing to damage in that way. Byte mutations leave the bytes of uncompressed
pixels alone: any value is a legitimate one there.
"""

from __future__ import annotations

import copy
import io
import random
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pydicom
from pydicom import Dataset, uid
from pydicom.dataelem import RawDataElement
from pydicom.sequence import Sequence
from pydicom.tag import Tag

Files = dict[str, bytes]
Kind = Callable[[random.Random, Files, Mapping[str, Files]], Files | None]

# Half of all damage is done where the geometry stands.
PLACES = [
    Tag(keyword)
    for keyword in (
        *("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SpacingBetweenSlices"),
        *("Rows", "Columns", "NumberOfFrames", "BitsAllocated", "SamplesPerPixel", "SeriesInstanceUID", "Modality"),
        *("SOPClassUID", "ImageType", "PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"),
    )
]
TEXTS = (
    b"",
    b" ",
    b"0",
    b"-1",
    b"1e308",
    b"nan",
    b"inf",
    b"1",
    b"abc",
    b"\\\\",
    b"1\\2\\3\\4\\5\\6\\7",
    b"\0",
    b"%s\n",
)
SYNTAXES = (
    *(uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian),
    *(uid.DeflatedExplicitVRLittleEndian, uid.RLELossless, uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit),
    *(uid.JPEGLossless, uid.JPEGLosslessSV1, uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.JPEG2000),
    *(uid.HTJ2KLossless, uid.MPEG2MPML, "1.2.3", ""),
)
_PIXELS = (b"\xe0\x7f\x10\x00", b"\x7f\xe0\x00\x10")
_ITEM = b"\xfe\xff\x00\xe0"


@dataclass(frozen=True)
class Part:
    """An element of a file, by offsets."""

    tag: Tag
    start: int
    value: int
    end: int
    explicit: bool
    little: bool

    @property
    def length_at(self) -> tuple[int, str]:
        """Where its length stands, and how."""
        order = "<" if self.little else ">"
        if self.explicit and self.value - self.start == 8:
            return self.start + 6, f"{order}H"
        return self.value - 4, f"{order}I"


def parsed(data: bytes) -> Dataset:
    """A whole object."""
    return pydicom.dcmread(io.BytesIO(data), force=True)


def written(dataset: Dataset) -> bytes:
    """The bytes of an object."""
    out = io.BytesIO()
    dataset.save_as(out)
    return out.getvalue()


def pixels_at(data: bytes) -> int:
    """Where the element of the pixel data starts; the end where it can't be found, as in a deflated object."""
    element = parsed(data).__dict__["_dict"].get(0x7FE00010)
    if isinstance(element, RawDataElement):
        for at in (element.value_tell - 8, element.value_tell - 12):
            if data[at : at + 4] in _PIXELS:
                return at
    return len(data)


def parts(data: bytes) -> list[Part]:
    """The elements at the top level before the pixel data; none of a deflated object."""
    found = []
    for element in parsed(data).__dict__["_dict"].values():
        if isinstance(element, RawDataElement) and element.tag < 0x7FE00008 and element.length != 0xFFFFFFFF:
            explicit = not element.is_implicit_VR
            long = explicit and element.VR in ("OB", "OD", "OF", "OL", "OV", "OW", "SQ", "UC", "UN", "UR", "UT")
            head = 12 if long else 8
            at = element.value_tell
            tag = struct.pack("<HH" if element.is_little_endian else ">HH", element.tag.group, element.tag.element)
            if data[at - head : at - head + 4] == tag:
                end = at + element.length
                found.append(Part(element.tag, at - head, at, end, explicit, element.is_little_endian))
    return found


def _some(draw: random.Random, files: Files) -> list[str]:
    """One file, or all."""
    return list(files) if draw.random() < 0.3 else [draw.choice(list(files))]


def _by_bytes(change: Callable[[random.Random, bytearray], None]) -> Kind:
    def mutate(draw: random.Random, files: Files, beside: Mapping[str, Files]) -> Files | None:
        made, name = dict(files), draw.choice(list(files))
        data = bytearray(made[name])
        change(draw, data)
        made[name] = bytes(data)
        return made

    return mutate


def _flip(draw: random.Random, data: bytearray) -> None:
    head = pixels_at(data) + 12
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(128, min(head, len(data)))
        data[at] = draw.choice((0, 255, data[at] ^ (1 << draw.randrange(8)), draw.randrange(256)))


def _cut(draw: random.Random, data: bytearray) -> None:
    del data[draw.choice((0, 1, 130, draw.randrange(len(data)), draw.randrange(pixels_at(data)), len(data) - 1)) :]


def _splice(draw: random.Random, data: bytearray) -> None:
    at = draw.randrange(128, max(200, pixels_at(data)))
    if draw.random() < 0.5:
        data[at:at] = draw.randbytes(draw.randrange(1, 30))
    else:
        del data[at : at + draw.randrange(1, 30)]


def _ends(draw: random.Random, data: bytearray) -> None:
    junk = draw.choice((b"\0" * 7, draw.randbytes(40), bytes(data)))
    if draw.random() < 0.5:
        data += junk
    else:
        data[:0] = junk


def fragments(draw: random.Random, files: Files, beside: Mapping[str, Files]) -> Files | None:
    """Bytes of compressed pixels, and of the items around them."""
    made, name = dict(files), draw.choice(list(files))
    data = bytearray(made[name])
    at = pixels_at(data)
    if data[at + 8 : at + 12] != b"\xff\xff\xff\xff":
        return None
    places = [at + 12, data.find(_ITEM, at + 16), draw.randrange(at, len(data))]
    for _ in range(draw.choice((1, 3))):
        data[min(draw.choice(places) + draw.randrange(16), len(data) - 1)] = draw.randrange(256)
    made[name] = bytes(data)
    return made


def _by_parts(change: Callable[[random.Random, bytes, list[Part], Part], bytes]) -> Kind:
    def mutate(draw: random.Random, files: Files, beside: Mapping[str, Files]) -> Files | None:
        first = parts(next(iter(files.values())))
        if not first:
            return None
        wanted = [part.tag for part in first if draw.random() < 0.5 or part.tag in PLACES]
        near = [tag for tag in wanted if tag in PLACES]
        tag = draw.choice(near if near and draw.random() < 0.6 else wanted or [first[0].tag])
        made, seed = dict(files), draw.random()
        for name in _some(draw, files):
            here = parts(made[name])
            part = next((part for part in here if part.tag == tag), None)
            if part is not None:
                made[name] = change(random.Random(seed), made[name], here, part)
        return made

    return mutate


def _retag(draw: random.Random, data: bytes, here: list[Part], part: Part) -> bytes:
    other = draw.choice((draw.choice(here).tag, Tag(draw.getrandbits(32)), Tag(part.tag ^ (1 << draw.randrange(32)))))
    name = struct.pack("<HH" if part.little else ">HH", other.group, other.element)
    return data[: part.start] + name + data[part.start + 4 :]


def _remove(draw: random.Random, data: bytes, here: list[Part], part: Part) -> bytes:
    return data[: part.start] + data[part.end :]


def _double(draw: random.Random, data: bytes, here: list[Part], part: Part) -> bytes:
    other = draw.choice((part, draw.choice(here)))
    return data[: other.start] + data[part.start : part.end] + data[other.start :]


def _exchange(draw: random.Random, data: bytes, here: list[Part], part: Part) -> bytes:
    other = draw.choice(here)
    one, two = sorted((part, other), key=lambda one: one.start)
    if one is two:
        return data
    swapped = data[two.start : two.end] + data[one.end : two.start] + data[one.start : one.end]
    return data[: one.start] + swapped + data[two.end :]


def _length(draw: random.Random, data: bytes, here: list[Part], part: Part) -> bytes:
    at, code = part.length_at
    most = 0xFFFF if code[1] == "H" else 0xFFFFFFFF
    true = part.end - part.value
    lies = (0, 1, true - 2, true + 2, true + 8, most, most - 1, 0x7FFFFFFF, draw.randrange(most), len(data))
    return (
        data[:at]
        + struct.pack(code, max(0, min(draw.choice(lies), most)))
        + data[part.value if code[1] == "I" else at + 2 :]
    )


def _value(draw: random.Random, data: bytes, here: list[Part], part: Part) -> bytes:
    """Another value of the length that it takes; numbers in binary become any."""
    old = data[part.value : part.end]
    if len(old) in (2, 4, 8) and not old.isascii():
        new = draw.choice((b"\0" * len(old), b"\xff" * len(old), draw.randbytes(len(old))))
    elif draw.random() < 0.5 and any(48 <= byte < 58 for byte in old):
        digits = [at for at, byte in enumerate(old) if 48 <= byte < 58 or byte in b"-."]
        changed = bytearray(old)
        changed[draw.choice(digits)] = draw.choice(b"0123456789-. \\e")
        new = bytes(changed)
    else:
        new = draw.choice(TEXTS)
        new += b" " * (len(new) % 2)
    at, code = part.length_at
    head = data[: part.value]
    head = head[:at] + struct.pack(code, len(new)) + head[at + struct.calcsize(code) :]
    return head + new + data[part.end :]


def _by_dataset(change: Callable[[random.Random, Dataset], object]) -> Kind:
    """Change parsed objects and write them again: one or all, in the same way."""

    def mutate(draw: random.Random, files: Files, beside: Mapping[str, Files]) -> Files | None:
        made, seed = dict(files), draw.random()
        for name in _some(draw, files):
            dataset = parsed(made[name])
            change(random.Random(seed), dataset)
            made[name] = written(dataset)
        return made

    return mutate


def _places(dataset: Dataset) -> list[Dataset]:
    """Every item that states a place, the object itself included."""
    found = [dataset] if "ImagePositionPatient" in dataset or "PixelSpacing" in dataset else []
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        for groups in dataset.get(keyword) or []:
            for inner in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"):
                found += list(groups.get(inner) or [])
    return found


def _geometry(draw: random.Random, dataset: Dataset) -> None:
    held = _places(dataset)
    keyword = draw.choice(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SpacingBetweenSlices"))
    members = [one for one in held if one.get(keyword)]
    if not members:
        return
    if draw.random() < 0.6:
        members = [draw.choice(members)]
    how, axis = draw.randrange(6), draw.randrange(3)
    amount = draw.choice((-1, 1)) * draw.choice((0.004, 0.03, 0.5, 1.0, 7.7, 1e3, 1e7))
    for one in members:
        values = np.atleast_1d(np.array(one.get(keyword), float))
        match how:
            case 0:
                values = values + amount * (np.arange(len(values)) == axis % len(values))
            case 1:
                values = values * draw.choice((-1.0, 0.5, 1.01, 2.0))
            case 2:
                values = np.roll(values, 1)
            case 3:
                values = np.zeros_like(values)
            case 4 if len(values) == 6:
                values = np.concatenate([values[3:], values[:3]])
            case 4:
                values = -values
            case _:
                turn = np.deg2rad(draw.choice((0.01, 0.5, 15.0, 90.0)))
                if len(values) % 3 == 0:
                    about = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
                    values = (values.reshape(-1, 3) @ about.T).ravel()
        made = [float(f"{value:.9g}") for value in values]
        setattr(one, keyword, made if len(made) > 1 else made[0])


def _sizes(draw: random.Random, dataset: Dataset) -> None:
    keyword = draw.choice(("Rows", "Columns", "NumberOfFrames", "BitsAllocated", "SamplesPerPixel", "both"))
    if keyword == "both":  # the same number of pixels
        dataset.Rows, dataset.Columns = (
            (dataset.Columns, dataset.Rows) if draw.random() < 0.5 else (dataset.Rows * 2, max(1, dataset.Columns // 2))
        )
        return
    was = int(dataset.get(keyword) or 1)
    lies = (0, 1, was - 1, was + 1, was * 2, was // 2, 65535)
    setattr(dataset, keyword, max(0, min(draw.choice(lies), 65535)))


def _belongs(draw: random.Random, dataset: Dataset) -> None:
    """What says to which volume an object belongs."""
    match draw.randrange(6):
        case 0:
            dataset.SeriesInstanceUID = f"{dataset.get('SeriesInstanceUID', '1.2')}.1"[-60:].lstrip(".0")
        case 1:
            dataset.Modality = draw.choice(("CT", "MR", "PT", "CR", "SEG", "XX"))
        case 2:
            dataset.SOPClassUID = draw.choice(
                (uid.CTImageStorage, uid.MRImageStorage, uid.SecondaryCaptureImageStorage, uid.EnhancedMRImageStorage)
            )
        case 3:
            dataset.ImageType = draw.choice((["DERIVED", "SECONDARY"], ["ORIGINAL", "PRIMARY", "LOCALIZER"], ["A"]))
        case 4:
            dataset.AcquisitionNumber = draw.randrange(100)
        case _:
            dataset.EchoTime = draw.choice((1.0, 90.0))


def _nest(draw: random.Random, dataset: Dataset) -> None:
    """Sequences in sequences, as deep as pydicom writes them."""
    inner = Dataset()
    for _ in range(draw.choice((3, 40, 100))):
        outer = Dataset()
        outer.ReferencedImageSequence = Sequence([inner])
        outer["ReferencedImageSequence"].is_undefined_length = draw.random() < 0.5
        inner = outer
    dataset.ReferencedImageSequence = Sequence([inner])


def _frames(draw: random.Random, dataset: Dataset) -> None:
    """The functional groups of single frames."""
    groups = dataset.get("PerFrameFunctionalGroupsSequence")
    if not groups:
        return
    at = draw.randrange(len(groups))
    match draw.randrange(6):
        case 0:
            del groups[at]
        case 1:
            groups.append(copy.deepcopy(groups[at]))
        case 2:
            groups[at] = copy.deepcopy(groups[at - 1])
        case 3:
            groups[at].clear()
        case 4:
            groups[at].pop("PlanePositionSequence", None)
        case _:
            dataset.NumberOfFrames = len(groups) - 1
            del groups[at]


def deep(draw: random.Random, files: Files, beside: Mapping[str, Files]) -> Files | None:
    """A private sequence nested ever so deep, written by hand: of explicit little-endian files."""
    made, name = dict(files), draw.choice(list(files))
    here = [part for part in parts(made[name]) if part.explicit and part.little and part.tag > 0x00090000]
    if not here:
        return None
    one = struct.pack("<HH2sHI", 0x0009, 0x1001, b"SQ", 0, 0xFFFFFFFF) + _ITEM + b"\xff\xff\xff\xff"
    depth, at = draw.choice((10, 500, 5000)), here[0].start
    end = (b"\xfe\xff\x0d\xe0\0\0\0\0" + b"\xfe\xff\xdd\xe0\0\0\0\0") * (depth if draw.random() < 0.5 else 0)
    made[name] = made[name][:at] + one * depth + end + made[name][at:]
    return made


def syntax(draw: random.Random, files: Files, beside: Mapping[str, Files]) -> Files | None:
    """Another transfer syntax in the file meta information; the data set stays as it is."""
    made, said = dict(files), draw.choice(SYNTAXES).encode()
    said += b"\0" * (len(said) % 2)
    for name in _some(draw, files):
        data = made[name]
        at = data.find(b"\x02\x00\x10\x00UI")
        if at < 0:
            return None
        end = at + 8 + struct.unpack_from("<H", data, at + 6)[0]
        made[name] = data[: at + 6] + struct.pack("<H", len(said)) + said + data[end:]
    return made


def whole(draw: random.Random, files: Files, beside: Mapping[str, Files]) -> Files | None:
    """Files lost, doubled, emptied, or put into another series' folder."""
    made, name = dict(files), draw.choice(list(files))
    other = draw.choice(list(beside.values()))
    match draw.randrange(7):
        case 0 if len(files) > 1:
            del made[name]
        case 1:
            made[draw.choice(("copy.dcm", "copy", "below/copy.dcm"))] = made[name]
        case 2:
            made[name] = b""
        case 3:
            made[name] = draw.choice(list(other.values()))
        case 4:
            made["other.dcm"] = draw.choice(list(other.values()))
        case 5 if name.endswith(".dcm"):  # with no suffix it may as well be something else
            made[name] = draw.randbytes(len(made[name]))
        case _:
            made[draw.choice(list(files))] = made[name]
    return made


def zipped(draw: random.Random, files: Files, beside: Mapping[str, Files]) -> Files | None:
    """The series as a zip, which is damaged then; its list stands at its end."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", draw.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    data = bytearray(out.getvalue())
    listing = data.find(b"PK\x01\x02")
    match draw.randrange(4):
        case 0:
            del data[draw.randrange(1, len(data)) :]
        case 1:
            at = draw.randrange(len(data))
            data[at : at + draw.randrange(20)] = draw.randbytes(draw.randrange(20))
        case _:
            for _ in range(draw.choice((1, 1, 4))):
                data[draw.randrange(listing, len(data))] = draw.randrange(256)
    return {"series.zip": bytes(data)}


KINDS: dict[str, Kind] = {
    "flip": _by_bytes(_flip),
    "cut": _by_bytes(_cut),
    "splice": _by_bytes(_splice),
    "ends": _by_bytes(_ends),
    "fragments": fragments,
    "retag": _by_parts(_retag),
    "remove": _by_parts(_remove),
    "double": _by_parts(_double),
    "exchange": _by_parts(_exchange),
    "length": _by_parts(_length),
    "value": _by_parts(_value),
    "geometry": _by_dataset(_geometry),
    "sizes": _by_dataset(_sizes),
    "belongs": _by_dataset(_belongs),
    "nest": _by_dataset(_nest),
    "frames": _by_dataset(_frames),
    "deep": deep,
    "syntax": syntax,
    "whole": whole,
    "zip": zipped,
}


def mutant(draw: random.Random, files: Files, beside: Mapping[str, Files]) -> tuple[str, Files]:
    """A damaged copy of a series and what was done to it; geometry is hit more often than the rest."""
    names = [*KINDS, "geometry", "geometry", "value", "belongs", "whole"]
    while True:
        kind = draw.choice(names)
        made = KINDS[kind](draw, files, beside)
        if made is not None and made != files:
            return kind, made
