"""What headers say, before any pixel is decoded: frames with a place in the patient, and the volumes they make."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from medlight.scans.files import shown

Vector = tuple[float, float, float]

Status = Literal[
    "ok",
    "gap",
    "uneven",
    "tilt",
    "duplicate",
    "mixed-orientation",
    "mixed-shape",
    "not-a-volume",
    "unreadable",
]

# Frame.moments: temporal position (a number); frame reference time, trigger time and acquisition time in milliseconds,
# the last with its days, so that midnight is nothing; a number for a gradient that stands in the picture's own frame.
MOMENTS = ("position", "reference", "trigger", "acquired", "direction")


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where a DICOM object lies: a file, or a member of a zip."""

    path: Path
    member: str = ""

    @property
    def title(self) -> str:
        """Its name for a person."""
        return f"{shown(self.path)}:{self.member}" if self.member else shown(self.path)

    @property
    def home(self) -> Path:
        """What holds it: the file's folder, or the zip."""
        return self.path if self.member else self.path.parent


@dataclass(frozen=True, slots=True)
class ChannelKey:
    """What tells two frames at one position apart: the channels of a 4D volume. ``None`` where it is not said."""

    time_ms: float | None = None
    b_value: float | None = None
    gradient: Vector | None = None
    echo_time_ms: float | None = None
    acquisition: int | None = None


@dataclass(frozen=True, slots=True)
class Frame:
    """One plane of pixels and where it lies; lengths in millimetres, directions and positions in DICOM's LPS.

    place, index: the object, and the frame in it, from 0. tile: a mosaic's part, as (row, column) of its first pixel.
    shape: rows and columns. spacing: between rows, between columns (PS3.3 10.7.1.3).
    position: of the centre of the first pixel (0020,0032). along_row: the way the column index grows; along_column: the
    way the row index grows (0020,0037). All three are None where the object says nothing of its place.
    thickness: of the slice, None where not said. tilt_tag: Gantry/Detector Tilt (0018,1120); geometry decides.
    interval: Spacing Between Slices (0018,0088), believed where positions leave a doubt only.
    moments: what may tell volumes in time apart, in the order of ``MOMENTS``; None where not said.
    colours: values a pixel once decoded, 3 where it is coloured.
    variant: what tells pictures of one place apart that are no channels of one volume: image type, kernel, stack.
    """

    place: Place
    sop_uid: str
    shape: tuple[int, int]
    index: int = 0
    tile: tuple[int, int] | None = None
    spacing: tuple[float, float] | None = None
    position: Vector | None = None
    along_row: Vector | None = None
    along_column: Vector | None = None
    thickness: float | None = None
    tilt_tag: float | None = None
    instance: int | None = None
    channel: ChannelKey = ChannelKey()
    interval: float | None = None
    moments: tuple[float | None, ...] = ()
    variant: str = ""
    colours: int = 1


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a stack can be read as it is.

    detail: one sentence with the figures (which slices, mm, degrees), and no file's name: it may be stored.
    place: the object to blame, where it is one.
    """

    status: Status = "ok"
    detail: str = ""
    place: Place | None = None

    @property
    def told(self) -> str:
        """The sentence for a person, with the name of the object to blame."""
        return f"{self.place.title}: {self.detail}" if self.place else self.detail


@dataclass(frozen=True)
class Stack:
    """Frames that are read as one volume, in order: channel by channel, and along the slice normal within each.

    series_uid: empty where the object has none. modality: ``CT``, ``MR``, ... frames: ``len(channels)`` times the
    slices. channels: at least one. kind: what the object is. facts: technical tags on the allow-list.
    """

    series_uid: str
    modality: str
    frames: tuple[Frame, ...]
    channels: tuple[ChannelKey, ...] = (ChannelKey(),)
    kind: Literal["image", "seg", "rtstruct", "other"] = "image"
    verdict: Verdict = Verdict()
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """A name with nothing of the patient in it, the same on every machine: modality and a digest of the UIDs."""
        parts = sorted(f"{frame.sop_uid} {frame.index} {frame.tile}" for frame in self.frames)
        digest = hashlib.sha256("\n".join([self.series_uid, *parts]).encode()).hexdigest()[:10]
        return f"{self.modality.lower() or 'dicom'}-{digest}"
