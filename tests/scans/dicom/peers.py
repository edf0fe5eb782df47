"""Other readers of DICOM series, for cross-checks, and what turns their result into ours where the reason is known."""

from __future__ import annotations

import contextlib
import io
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
SAME_MM = 1e-3
DIGITS = 1e-6  # of the largest value: what float32 holds
PADDING, AIR = -3024, -1024


class Read(NamedTuple):
    """One volume: array ``(C, I, J, K)``, affine from voxel index to RAS+ millimetres."""

    array: np.ndarray
    affine: np.ndarray


def gathered(files: Sequence[Path], folder: Path) -> Path:
    """The files alone in a folder, under names that say nothing and end in ``.dcm``, which some readers ask for."""
    folder.mkdir(parents=True)
    for number, file in enumerate(files):
        shutil.copyfile(file, folder / f"{number:04d}.dcm")
    return folder


def dcm2niix(folder: Path, out: Path) -> list[Read]:
    """All volumes that dcm2niix writes, those of a corrected tilt left out."""
    return [of_nifti(file) for file in run_dcm2niix(folder, out) if "_Tilt" not in file.stem]


def run_dcm2niix(folder: Path, out: Path) -> list[Path]:
    """Its files, in order of their names; RuntimeError where it writes none."""
    out.mkdir(parents=True)
    program = Path(sys.executable).with_name("dcm2niix")
    command = [program, "-b", "n", "-z", "n", "-f", "scan", "-o", out, folder]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, check=False)
    written = sorted(out.glob("*.nii"))
    if not written:
        raise RuntimeError(done.stdout + done.stderr)
    return written


def simpleitk(folder: Path, _: Path) -> list[Read]:
    """GDCM's sorting and ITK's series reader, once for each series in a folder; many frames in one file as they are."""
    import SimpleITK as sitk  # noqa: N813

    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    reader = sitk.ImageSeriesReader()
    found = []
    for series in reader.GetGDCMSeriesIDs(str(folder)):
        names = reader.GetGDCMSeriesFileNames(str(folder), series)
        reader.SetFileNames(names)
        found.append(of_itk(reader.Execute() if len(names) > 1 else sitk.ReadImage(names[0])))
    return found


def dicom2nifti(folder: Path, out: Path) -> list[Read]:
    """Its conversion of one series, with its own checks on."""
    from dicom2nifti.convert_dicom import dicom_series_to_nifti

    out.mkdir(parents=True)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        dicom_series_to_nifti(str(folder), str(out / "scan.nii"), reorient_nifti=False)
    return [of_nifti(out / "scan.nii")]


READERS: dict[str, Callable[[Path, Path], list[Read]]] = {
    "dcm2niix": dcm2niix,
    "SimpleITK": simpleitk,
    "dicom2nifti": dicom2nifti,
}


def of_nifti(file: Path) -> Read:
    """A NIfTI file, scaled; colours and the fourth axis are channels."""
    image = nib.load(file)
    raw = np.asanyarray(image.dataobj)
    if raw.dtype.names:
        raw = np.stack([raw[name] for name in raw.dtype.names], axis=-1)
    elif raw.ndim < 4:
        raw = raw[..., None]
    return Read(np.moveaxis(raw, -1, 0), image.affine)


def of_itk(image: object) -> Read:
    """An image of SimpleITK, of two dimensions or three."""
    import SimpleITK as sitk  # noqa: N813

    array = sitk.GetArrayFromImage(image)
    if image.GetNumberOfComponentsPerPixel() == 1:
        array = array[..., None]
    size = image.GetDimension()
    lps = np.eye(4)
    lps[:size, :size] = np.array(image.GetDirection()).reshape(size, size) * image.GetSpacing()
    lps[:size, 3] = image.GetOrigin()
    return Read((array[None] if size == 2 else array).T, LPS_TO_RAS @ lps)


def aligned(theirs: Read, ours: Read) -> Read:
    """Theirs with its axes in the order of ours, each along the one of ours that it is nearest to."""
    axes = [one.affine[:3, :3] / np.linalg.norm(one.affine[:3, :3], axis=0) for one in (ours, theirs)]
    between = np.eye(4)
    between[:3, :3] = np.linalg.inv(axes[0]) @ axes[1]
    turn = io_orientation(between)
    array = apply_orientation(np.moveaxis(theirs.array, 0, -1), turn)
    return Read(np.moveaxis(array, -1, 0), theirs.affine @ inv_ornt_aff(turn, theirs.array.shape[1:]))


def difference(theirs: Read, ours: Read) -> str:
    """What differs between volumes whose axes are in one order: ``shape``, ``voxels``, ``affine``; empty if nothing."""
    if theirs.array.shape != ours.array.shape:
        return "shape"
    most = DIGITS * float(np.abs(ours.array).max()) if ours.array.dtype.kind == "f" else 0.0
    found = [] if np.allclose(theirs.array, ours.array, rtol=0, atol=most) else ["voxels"]
    _, *size = ours.array.shape
    corners = np.array(np.meshgrid(*[(0, side - 1) for side in size])).reshape(3, -1)
    apart = (theirs.affine - ours.affine) @ np.concatenate([corners, np.ones((1, 8))])
    return ", ".join(found + ["affine"] * bool(np.abs(apart).max() > SAME_MM))


# What follows makes of theirs what it would be if they did as we do in one thing; it takes theirs and ours.


def unpadded(theirs: Read, _: Read) -> Read:
    """Padding is air."""
    return theirs._replace(array=np.where(theirs.array == PADDING, AIR, theirs.array))


def turned(theirs: Read, ours: Read) -> Read:
    """Bright is dark: their value and ours have the same sum everywhere."""
    return theirs._replace(array=ours.array.max() + theirs.array.min() - theirs.array.astype(np.float64))


def unplaced(theirs: Read, ours: Read) -> Read:
    """A picture that says nothing of its place lies where we put it."""
    affine = theirs.affine.copy()
    affine[:3, 3] = ours.affine[:3, 3]
    return theirs._replace(affine=affine)


def tenth(theirs: Read, _: Read) -> Read:
    """Pixels of 0.1 mm instead of 1 mm."""
    return theirs._replace(affine=theirs.affine @ np.diag([0.1, 0.1, 1, 1]))


def opaque(theirs: Read, _: Read) -> Read:
    """Without a fourth colour."""
    assert (theirs.array[3] == theirs.array[3].flat[0]).all()
    return theirs._replace(array=theirs.array[:3])


def deep(theirs: Read, _: Read) -> Read:
    """Colours of 16 bits instead of their upper 8."""
    return theirs._replace(array=theirs.array.astype(np.uint16) << 8)


def coloured(theirs: Read, ours: Read) -> Read:
    """The colours that ours has for each index of a palette."""
    index = theirs.array[0] if len(theirs.array) == 1 else theirs.array
    colours = np.moveaxis(ours.array.reshape(-1, 3, *ours.array.shape[1:]), 1, 0).reshape(3, -1)
    table = np.zeros((3, int(index.max()) + 1), ours.array.dtype)
    table[:, index.ravel().astype(int)] = colours
    made = table[:, index.astype(int)]
    return theirs._replace(array=made if made.ndim == 4 else np.moveaxis(made, 0, 1).reshape(ours.array.shape))


def film(theirs: Read, _: Read) -> Read:
    """Pictures of one plane at several times are channels, no slices."""
    array = np.moveaxis(theirs.array, 3, 0)
    return theirs._replace(array=array.reshape(-1, *array.shape[2:], 1))


def dose(theirs: Read, _: Read) -> Read:
    """Stored values times Dose Grid Scaling, which is 1e-6."""
    return theirs._replace(array=theirs.array * 1e-6)


def five_apart(theirs: Read, _: Read) -> Read:
    """Planes 5 mm apart instead of 1 mm."""
    return theirs._replace(affine=theirs.affine @ np.diag([1, 1, 5, 1]))


def six_lower(theirs: Read, _: Read) -> Read:
    """Seven slices whose last lies where the first does."""
    affine = theirs.affine.copy()
    affine[:, 3] -= 6 * affine[:, 2]
    return theirs._replace(affine=affine)


def seven_off(theirs: Read, ours: Read) -> Read:
    """Values up to 7 off are the same."""
    near = np.abs(theirs.array.astype(int) - ours.array) <= 7
    return theirs._replace(array=np.where(near, ours.array, theirs.array))


def pairs_swapped(theirs: Read, _: Read) -> Read:
    """Neighbours in a row the other way round."""
    channels, columns, *rest = theirs.array.shape
    pairs = theirs.array.reshape(channels, columns // 2, 2, *rest)
    return theirs._replace(array=pairs[:, :, ::-1].reshape(theirs.array.shape))


def halves_swapped(theirs: Read, _: Read) -> Read:
    """The halves of each number of 32 bits the other way round."""
    array = theirs.array.astype(np.uint32)
    return theirs._replace(array=(array >> 16) | (array << 16))


def pieces(theirs: Read, ours: Read) -> Read:
    """Planes in the order of ours, whatever order they are in or larger picture they are tiles of, in our place."""
    channels, columns, rows, slices = ours.array.shape
    found = {}
    for picture in np.moveaxis(theirs.array, 3, 1).reshape(-1, *theirs.array.shape[1:3]):
        for left in range(0, picture.shape[0], columns):
            for top in range(0, picture.shape[1], rows):
                tile = picture[left : left + columns, top : top + rows]
                found[tile.astype(np.float64).tobytes()] = tile
    planes = np.moveaxis(ours.array, 3, 1).reshape(-1, columns, rows)
    array = np.stack([found.get(plane.astype(np.float64).tobytes(), np.zeros_like(plane)) for plane in planes])
    return Read(np.moveaxis(array.reshape(channels, slices, columns, rows), 1, 3), ours.affine)


def reordered(theirs: Read, ours: Read) -> Read:
    """The same channels in another order."""
    return pieces(theirs, ours)._replace(affine=theirs.affine)
