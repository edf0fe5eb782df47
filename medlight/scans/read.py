"""Reading a scan, whatever its format."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from medlight.errors import MedlightError, UsageError
from medlight.scans.files import shown
from medlight.scans.nifti import NIFTI_SUFFIXES
from medlight.scans.volume import Volume

if TYPE_CHECKING:
    from medlight.scans.dicom.mend import Mends

Format = Literal["nifti", "nrrd", "metaimage", "raster", "dicom"]

_FORMATS: dict[str, Format] = {
    **dict.fromkeys(NIFTI_SUFFIXES, "nifti"),
    **dict.fromkeys((".nrrd", ".nhdr"), "nrrd"),
    **dict.fromkeys((".mha", ".mhd"), "metaimage"),
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".tif", ".tiff"), "raster"),
    **dict.fromkeys((".dcm", ".dicom", ".ima", ".zip"), "dicom"),
}
SUFFIXES = tuple(_FORMATS)

_LOOKED_AT = 1000  # entries of a folder: a series' files are among the first


def stem(path: Path) -> str:
    """Return a file's name without the suffix of a scan (``.nii.gz`` counts as one)."""
    for suffix in SUFFIXES:
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


def format_of(path: Path) -> Format | None:
    """Say what a path is read as: by its suffix, else by DICOM's mark; a folder holds DICOM. None for anything else."""
    for suffix, known in _FORMATS.items():
        if path.name.lower().endswith(suffix) and not path.is_dir():
            return known
    return "dicom" if path.is_dir() or path.name == "DICOMDIR" or _has_mark(path) else None


def is_scan(path: Path) -> bool:
    """Whether a path can be read as a scan: a file of a known format, or a folder with DICOM files somewhere in it."""
    path = Path(path)
    if not path.is_dir():
        return path.is_file() and format_of(path) is not None
    files = (file for file in islice(path.rglob("*"), _LOOKED_AT) if file.is_file())
    return any(file.name.lower().endswith((".dcm", ".dicom", ".ima")) or _has_mark(file) for file in files)


def read(path: Path, mends: Mends | None = None, indices: bool = False) -> Volume:
    """Read a scan: NIfTI, NRRD, MetaImage, PNG, JPEG or TIFF by suffix, DICOM from a folder, a zip or a file.

    mends: what is done about a DICOM series whose verdict isn't ``ok``; without, it is refused.
    indices: of an image with a palette, the indices instead of the colours: a label map's values.

    Raises UsageError for a format that is not read, MedlightError (naming the file and the mend) where the file is
    absent, empty, unreadable, holds no real numbers, or doesn't say where its voxels lie.
    """
    path = Path(path)
    known = format_of(path)
    if known is None:
        raise UsageError(f"{shown(path)}: not a format that is read here; convert it to {' or '.join(NIFTI_SUFFIXES)}")
    check_file(path)
    match known:
        case "nifti":
            from medlight.scans.nifti import read_nifti

            return read_nifti(path)
        case "nrrd":
            from medlight.scans.nrrd import read_nrrd

            return read_nrrd(path)
        case "metaimage":
            from medlight.scans.metaimage import read_metaimage

            return read_metaimage(path)
        case "raster":
            from medlight.scans.raster import read_raster

            return read_raster(path, indices)
        case "dicom":
            from medlight.scans.dicom.load import read_dicom
            from medlight.scans.dicom.mend import Mends

            return read_dicom(path, mends or Mends())


def check_file(path: Path) -> None:
    """Raise MedlightError where there is nothing to read."""
    if not path.exists():
        raise MedlightError(f"{shown(path)}: no such file; restore it or take it off the list")
    if path.is_file() and path.stat().st_size == 0:
        raise MedlightError(f"{shown(path)}: the file is empty (0 bytes); copy it again or remove it")
    if not (path.is_file() or path.is_dir()):
        raise MedlightError(f"{shown(path)}: is neither a file nor a folder; give a scan")


def _has_mark(path: Path) -> bool:
    """Whether a file begins as PS3.10 says: 128 bytes of anything, then DICM."""
    try:
        if not path.is_file():  # a pipe would be waited for
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
