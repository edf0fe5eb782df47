"""NIfTI files (https://nifti.nimh.nih.gov/nifti-1): headers by nibabel, voxels in bounded memory."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from medlight.errors import MedlightError
from medlight.scans.diffusion import read_table, write_table
from medlight.scans.files import replacing, shown
from medlight.scans.grid import Affine, FileGrid, affine_fault, bytes_needed, corners_apart
from medlight.scans.raw import reason, whole
from medlight.scans.volume import Channel, Volume

NIFTI_SUFFIXES = (".nii.gz", ".nii")

_UNREADABLE = (
    HeaderDataError,
    WrapStructError,
    ArithmeticError,
    EOFError,
    MemoryError,
    OSError,
    TypeError,
    ValueError,
    zlib.error,
)
_WRITABLE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")
_DESCRIPTION = 79  # bytes of a description: the 80th ends it
_MOST_EXTENSION = 64 << 20  # bytes between the header and the voxels
_MILLIMETRES = {"meter": 1e3, "micron": 1e-3}
_MILLISECONDS = {"sec": 1e3, "msec": 1.0, "usec": 1e-3}
_TEMPLATES = (3, 4, 5)  # sform codes of a space other than the scanner's: Talairach, MNI 152, another template
_APART = 0.1  # of the smallest voxel, and never below 0.1 mm, which rounding of a quaternion reaches near a half turn
_QUIET = logging.Logger("nifti", logging.CRITICAL + 1)
_MEND = "set its sform or qform, with fslorient or nibabel"


def read_nifti(path: Path) -> Volume:
    """Read a NIfTI file as it is stored; a scaled file (slope, intercept) becomes float32 in the scanner's own values.

    Time points, echoes, vector components and RGB fields become channels; frame times come from ``pixdim[4]`` and its
    unit, b-values and gradients from FSL's ``.bval`` and ``.bvec`` beside the file. Raises MedlightError where the file
    is damaged, gives voxels no place or two places (qform against sform), or holds no real numbers.
    """
    with _opened(path) as (header, stream):
        grid = _grid(header, path).checked(path)
        array = _channels_first(_values(header, stream, path))
    channels = read_table(path, _timed(header, len(array)), grid.affine)
    return Volume(array, grid.affine, channels, grid.meta)  # the header's free text may name a patient


def nifti_grid(path: Path) -> FileGrid:
    """Return where a NIfTI file's voxels lie, from its header; MedlightError where there is no header to read."""
    with _opened(path) as (header, _):
        return _grid(header, path)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, BinaryIO]]:
    """Open a NIfTI-1 or NIfTI-2 file behind its header; each names itself by the header's length."""
    try:
        with path.open("rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            stream: Any = gzip.GzipFile(fileobj=file) if packed else file
            start = stream.read(348)
            if 540 in (int.from_bytes(start[:4], "little"), int.from_bytes(start[:4], "big")):
                yield _sound(nib.Nifti2Header(start + stream.read(540 - 348), check=False)), stream
            else:
                yield _sound(nib.Nifti1Header(start, check=False)), stream
    except _UNREADABLE as error:
        raise MedlightError(
            f"{shown(path)}: can't be read as NIfTI ({reason(error)}); copy it again or remove it"
        ) from None


def _sound(header: Any) -> Any:
    """Return a header that nibabel finds sound; ValueError where what it would mend decides where voxels lie."""
    if header["magic"].tobytes()[:3] not in (b"n+1", b"n+2"):
        raise ValueError("it says neither n+1 nor n+2: voxels aren't in this file, or it is Analyze")
    codes = [int(header["qform_code"]), int(header["sform_code"])]
    if not all(0 <= code <= _TEMPLATES[-1] for code in codes):
        raise ValueError(f"qform and sform codes are {codes[0]} and {codes[1]}, 0 to {_TEMPLATES[-1]} are known")
    header.check_fix(_QUIET)
    return header


def _grid(header: Any, path: Path) -> FileGrid:
    sizes = tuple(int(n) for n in header.get_data_shape())
    dtype = header.get_data_dtype()
    bytes_needed(sizes, dtype, path)
    i, j, k = (*sizes, 1, 1)[:3]
    fields = len(dtype.names or ()) or 1
    shape = (fields * int(np.prod(sizes[3:], dtype=np.int64)), i, j, k)
    affine, remarks, fault = _affine(header, (i, j, k))
    if dtype.kind not in "biuf" and not dtype.names:
        fault = f"holds {dtype} values; give real numbers (the magnitude, say)"
    return FileGrid(shape, affine, fault, remarks)


def _affine(header: Any, shape: tuple[int, int, int]) -> tuple[Affine, tuple[str, ...], str]:
    """Return the affine in millimetres, remarks, and what is wrong with it."""
    unit = _units(header)[0]
    scale = _MILLIMETRES.get(unit, 1.0)
    affine = _with_slice_axis(_in_millimetres(header.get_best_affine(), scale), shape)
    remarks = [f"lengths in {unit}s are turned to millimetres"] if scale != 1 else []
    fault = affine_fault(affine, _MEND)
    remarks += [] if fault else _size_remarks(header, affine, shape, scale)
    if header["qform_code"] == header["sform_code"] == 0:
        remarks.append("says nothing of its place (qform and sform codes are 0): only voxel sizes are known")
    elif not fault and header["qform_code"] > 0 and header["sform_code"] > 0:
        qform = _with_slice_axis(_in_millimetres(header.get_qform(), scale), shape)
        remark, fault = _two_places(header, qform, affine, shape)
        remarks += remark
    return affine, tuple(remarks), fault


def _size_remarks(header: Any, affine: Affine, shape: tuple[int, int, int], scale: float) -> list[str]:
    """Say where voxels have other sizes by ``pixdim`` than by the affine: some readers take the one, some the other."""
    axes = 3 if shape[2] > 1 else 2
    sizes = np.abs(header["pixdim"][1 : axes + 1].astype(np.float64)) * scale
    if np.allclose(np.linalg.norm(affine[:3, :axes], axis=0), sizes, rtol=0.01):
        return []
    return [f"pixdim has other voxel sizes ({' x '.join(f'{size:.4g}' for size in sizes)} mm) than the sform, taken"]


def _two_places(header: Any, qform: Affine, sform: Affine, shape: tuple[int, ...]) -> tuple[list[str], str]:
    """Compare qform and sform where both are set: readers differ in which they follow, so one file lies in two places.

    An sform that places a scan in a template's space (MNI, Talairach) may differ: the two don't speak of one space.
    """
    apart = corners_apart(qform, sform, shape) if np.isfinite(qform).all() else np.inf
    if apart <= max(0.1, _APART * float(np.linalg.norm(sform[:3, :3], axis=0).min())):
        return [], ""
    codes = f"codes {int(header['qform_code'])} and {int(header['sform_code'])}"
    said = f"qform and sform ({codes}) put voxels up to {apart:.3g} mm apart"
    if int(header["sform_code"]) in _TEMPLATES and int(header["qform_code"]) not in _TEMPLATES:
        return [f"{said}: the sform's template space is taken"], ""
    return [], f"{said}; keep the right one, with fslorient -copysform2qform or -copyqform2sform"


def _units(header: Any) -> tuple[str, str]:
    """The units of length and time; a code that the standard doesn't have is taken for none."""
    try:
        space, time = header.get_xyzt_units()
    except KeyError:
        return "unknown", "unknown"
    return space, time


def _in_millimetres(affine: Any, scale: float) -> Affine:
    scaled = np.array(affine, dtype=np.float64)
    scaled[:3] *= scale
    return scaled


def _with_slice_axis(affine: Affine, shape: tuple[int, ...]) -> Affine:
    """A 2D file may say nothing of a third axis: it then gets 1 mm, at right angles to the picture."""
    if shape[2] > 1 or np.any(affine[:3, 2]):
        return affine
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    mended = affine.copy()
    mended[:3, 2] = normal / (np.linalg.norm(normal) or 1)
    return mended


def _values(header: Any, stream: Any, path: Path) -> npt.NDArray[Any]:
    """Read the voxels, in the file's own order of axes; scaled where the header says so."""
    sizes, dtype = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype()
    needed = bytes_needed(sizes, dtype, path)
    start = int(header.get_data_offset())
    if not 0 <= start - stream.tell() <= _MOST_EXTENSION:
        raise MedlightError(f"{shown(path)}: its header puts the voxels at byte {start}; copy it again or remove it")
    stream.seek(start)
    content = whole(stream, needed)
    if len(content) != needed:
        raise ValueError(f"cut short: {len(content)} of {needed} bytes of voxels")
    array = content.view(dtype).reshape(sizes, order="F")
    slope, intercept = header.get_slope_inter()
    if slope is None or (slope, intercept) == (1, 0) or dtype.names:
        return array
    scaled = np.empty(sizes, np.float32, order="F")
    with np.errstate(over="ignore", invalid="ignore"):  # what isn't finite is named later, with its count
        for plane in np.ndindex(sizes[2:]):  # one at a time: the float64 between would take eight bytes a voxel
            scaled[(..., *plane)] = array[(..., *plane)].astype(np.float64) * slope + intercept
    return scaled


def _channels_first(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Bring any NIfTI array to ``(C, I, J, K)``."""
    if array.dtype.fields:  # RGB, RGBA
        array = np.stack([array[name] for name in array.dtype.names or ()], axis=-1)
        array = array.reshape(*array.shape[:3], 1, -1) if array.ndim >= 4 else array[..., None, :]
    array = array.reshape(array.shape + (1,) * (3 - array.ndim))
    flat = array.reshape(*array.shape[:3], -1)
    plain = np.float64 if flat.dtype.itemsize > 8 else flat.dtype.newbyteorder("=")  # an 80-bit float is no other's
    return np.moveaxis(flat, -1, 0).astype(plain, copy=False)


def _timed(header: Any, count: int) -> tuple[Channel, ...]:
    """Describe channels: frame ``n`` of a time series begins ``n`` times ``pixdim[4]`` after the first."""
    sizes = header.get_data_shape()
    frames = int(sizes[3]) if len(sizes) > 3 else 1
    step = float(header["pixdim"][4]) * _MILLISECONDS.get(_units(header)[1], 0.0)
    if frames < 2 or not (np.isfinite(step) and step > 0):
        return (Channel(),) * count
    return tuple(Channel(frame_time_ms=n // (count // frames) * step) for n in range(count))


def write_nifti(volume: Volume, path: Path, note: str = "") -> None:
    """Write a volume as NIfTI-1 in one step; several channels become the fourth dimension, the type of number is kept.

    Evenly spaced frame times become ``pixdim[4]``; b-values and gradients become FSL's ``.bval`` and ``.bvec`` beside
    the file. Booleans are written as uint8 and half precision as float32: the format has neither.
    note: what a reader of the file has to know, for the header's description; see `description`.
    Raises MedlightError where the suffix is neither ``.nii`` nor ``.nii.gz``.
    """
    path = Path(path)
    if not path.name.endswith(NIFTI_SUFFIXES):
        raise MedlightError(f"{shown(path)}: a NIfTI file is called .nii or .nii.gz; rename it")
    array = volume.array[0] if len(volume.array) == 1 else np.moveaxis(volume.array, 0, -1)
    if array.dtype.name not in _WRITABLE:
        array = array.astype(np.uint8 if array.dtype == bool else np.float32)
    image = nib.Nifti1Image(array, volume.affine, dtype=array.dtype)
    step = _time_step(volume.channels)
    image.header.set_xyzt_units("mm", "sec" if step else None)
    if step:
        image.header["pixdim"][4] = step
    image.header["descrip"] = description(note)
    image.set_sform(volume.affine, code="scanner")
    image.set_qform(volume.affine, code="scanner")
    if not np.allclose(image.get_qform(), volume.affine, atol=1e-3):  # a quaternion holds no shear
        image.set_qform(None, code="unknown")
    with replacing(path) as temporary:
        nib.save(image, temporary)
    write_table(path, volume.channels, volume.affine)


def description(note: str) -> bytes:
    """Return what a NIfTI header holds of a text: ASCII, at most 79 bytes; what is longer ends with ``...``."""
    text = note.encode("ascii", "replace")
    return text if len(text) <= _DESCRIPTION else text[: _DESCRIPTION - 3] + b"..."


def _time_step(channels: tuple[Channel, ...]) -> float:
    """Seconds between frames, 0 where frame times are not known or not even: NIfTI has no place for those."""
    times = [channel.frame_time_ms for channel in channels]
    known = np.array([time for time in times if time is not None])
    if len(known) < 2 or len(known) < len(times):
        return 0.0
    steps = np.diff(known)
    return float(steps.mean() / 1e3) if steps.min() > 0 and np.ptp(steps) < 1e-3 * steps.mean() + 1e-3 else 0.0
