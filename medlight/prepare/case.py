"""A case: what is known of one examination before any voxel is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class ArrayItem:
    """One entry of an array in an ``.npz`` file (MedMNIST)."""

    path: Path
    key: str
    index: int

    def __str__(self) -> str:
        return f"{self.path}[{self.key}][{self.index}]"


@dataclass(frozen=True)
class FrameItem:
    """One frame of a 4D scan (a time point, a b-value, an echo), taken as a scan of its own."""

    path: Path
    frame: int

    def __str__(self) -> str:
        return f"{self.path}[{self.frame}]"


FileRef = Path | ArrayItem | FrameItem


def file_of(ref: FileRef) -> Path:
    """The file or folder that holds what a case refers to."""
    return ref if isinstance(ref, Path) else ref.path


@dataclass(frozen=True)
class Label:
    """One class of a label map: its voxel value, name, colour (``#rrggbb``) and coded term (value, scheme, meaning).

    order: where drawn segments or structures overlap, the label with the higher one has the voxel; without it, overlap
    is refused.
    """

    value: int
    name: str
    colour: str | None = None
    code: tuple[str, str, str] | None = None
    order: int | None = None


@dataclass(frozen=True)
class Box:
    """An axis-aligned box in voxel indices of the first image: ``low`` inclusive, ``high`` exclusive."""

    low: tuple[float, float, float]
    high: tuple[float, float, float]
    label: int


@dataclass(frozen=True)
class Case:
    """One examination: named images, and whatever is known of it.

    id: stable across machines (the manifest's, else the name of its file or folder).
    private: the id is a file's or folder's name, which may be a patient's; runs and artifacts call the case by its
    content instead.
    images: contrast name to file, or the folder or zip of a DICOM series; all are brought onto the grid of the first.
    label: a label map on the grid of the first image (a file, a DICOM-SEG or an RTSTRUCT), or ``None`` where the case
    is unlabelled.
    target: a class index, several 0/1 values (multi-label) or real values (regression).
    """

    id: str
    images: dict[str, FileRef]
    label: FileRef | None = None
    target: int | tuple[float, ...] | None = None
    boxes: tuple[Box, ...] = ()
    table: dict[str, float | str] = field(default_factory=dict)
    subject: str | None = None
    site: str | None = None
    split: str | None = None
    private: bool = False


@dataclass(frozen=True)
class BadCase:
    """A case that can't be used, and why (one line that names the file and the mend)."""

    id: str
    reason: str


@dataclass(frozen=True)
class CaseList:
    """What a source found: usable cases, unusable ones, and the schema of their labels or classes."""

    cases: list[Case]
    bad: list[BadCase] = field(default_factory=list)
    labels: tuple[Label, ...] = ()
    classes: tuple[str, ...] = ()
    multilabel: bool = False
