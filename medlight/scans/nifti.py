"""NIfTI files (https://nifti.nimh.nih.gov/nifti-1), by nibabel."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from medlight.errors import MedlightError
from medlight.scans.files import replacing, shown
from medlight.scans.volume import Channel, Volume

_UNREADABLE = (ImageFileError, HeaderDataError, WrapStructError, OSError, EOFError, ValueError, zlib.error)
_WRITABLE = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64", "float32", "float64")


def read_nifti(path: Path) -> Volume:
    """Read a NIfTI file as it is stored; a scaled file (slope, intercept) becomes float32 in the scanner's own values.

    Time points, echoes, vector components and RGB fields become channels.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
        image = _parse(content)
        array = _channels_first(_values(image), path)
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MedlightError(f"{shown(path)}: can't be read as NIfTI ({reason}); copy it again or remove it") from None
    affine = _with_slice_axis(np.asarray(image.affine, dtype=np.float64), array.shape[1:])
    _check_affine(affine, path)
    return Volume(array, affine, (Channel(),) * len(array))  # the header's free text may name the patient: left out


def _parse(content: bytes) -> Any:
    """Open the bytes of a NIfTI-1 or NIfTI-2 file; each names itself by the length of its header."""
    second = 540 in (int.from_bytes(content[:4], "little"), int.from_bytes(content[:4], "big"))
    return (nib.Nifti2Image if second else nib.Nifti1Image).from_bytes(content)


def _values(image: Any) -> npt.NDArray[Any]:
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    if (slope, intercept) == (1, 0):
        return np.asanyarray(image.dataobj)
    return np.asanyarray(image.dataobj).astype(np.float32)


def _channels_first(array: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    """Bring any NIfTI array to ``(C, I, J, K)``."""
    if array.dtype.fields:  # RGB, RGBA
        array = np.stack([array[name] for name in array.dtype.names or ()], axis=-1)
        array = array.reshape(*array.shape[:3], 1, -1) if array.ndim >= 4 else array[..., None, :]
    if array.dtype.kind not in "biuf":
        raise MedlightError(f"{shown(path)}: holds {array.dtype} values; give real numbers (the magnitude, say)")
    if array.size == 0:
        raise MedlightError(f"{shown(path)}: has no voxels (shape {array.shape}); copy it again or remove it")
    array = array.reshape(array.shape + (1,) * (3 - array.ndim))
    flat = array.reshape(*array.shape[:3], -1)
    return np.moveaxis(flat, -1, 0).astype(flat.dtype.newbyteorder("="), copy=False)


def _with_slice_axis(affine: npt.NDArray[np.float64], shape: tuple[int, ...]) -> npt.NDArray[np.float64]:
    """A 2D file may say nothing of a third axis: it then gets 1 mm, at right angles to the picture."""
    if shape[2] > 1 or np.any(affine[:3, 2]):
        return affine
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    mended = affine.copy()
    mended[:3, 2] = normal / (np.linalg.norm(normal) or 1)
    return mended


def _check_affine(affine: npt.NDArray[np.float64], path: Path) -> None:
    mend = "set its sform or qform, with fslorient or nibabel"
    if not np.isfinite(affine).all():
        raise MedlightError(f"{shown(path)}: the affine has values that are not finite; {mend}")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if (spacing <= 0).any() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        raise MedlightError(f"{shown(path)}: the affine is singular, so voxels have no place; {mend}")


def write_nifti(volume: Volume, path: Path) -> None:
    """Write a volume as NIfTI-1 in one step; several channels become the fourth dimension, the type of number is kept.

    Booleans are written as uint8 and half precision as float32: the format has neither. Raises MedlightError where the
    suffix is neither ``.nii`` nor ``.nii.gz``.
    """
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise MedlightError(f"{shown(path)}: a NIfTI file is called .nii or .nii.gz; rename it")
    array = volume.array[0] if len(volume.array) == 1 else np.moveaxis(volume.array, 0, -1)
    if array.dtype.name not in _WRITABLE:
        array = array.astype(np.uint8 if array.dtype == bool else np.float32)
    image = nib.Nifti1Image(array, volume.affine, dtype=array.dtype)
    image.header.set_xyzt_units("mm", "sec" if len(volume.array) > 1 else None)
    image.set_sform(volume.affine, code="scanner")
    image.set_qform(volume.affine, code="scanner")
    if not np.allclose(image.get_qform(), volume.affine, atol=1e-3):  # a quaternion holds no shear
        image.set_qform(None, code="unknown")
    with replacing(path) as temporary:
        nib.save(image, temporary)
