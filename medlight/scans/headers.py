"""What a scan that is no DICOM says of itself before its voxels are read: a row of ``medlight data check``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medlight.errors import MedlightError
from medlight.scans.grid import FileGrid, affine_fault
from medlight.scans.orientation import orientation
from medlight.scans.read import check_file, format_of, read


def facts(path: Path, deep: bool = False) -> dict[str, Any]:
    """Return ``shape``, ``channels``, ``spacing_mm``, ``orientation``, ``status`` and ``detail`` of a file.

    status: ``ok``, ``affine`` (voxels have no place, or two), ``nan`` (voxels that are no numbers; only ``deep`` looks)
    or ``unreadable``; detail is one sentence, with the mend, that names the file where it can't be read. What isn't
    known is empty. deep: read the voxels too, which finds a file that is cut short.
    """
    path = Path(path)
    row: dict[str, Any] = {"shape": [], "channels": 0, "spacing_mm": [], "orientation": ""}
    try:
        check_file(path)
        grid = _grid(path)
    except MedlightError as error:
        return {**row, "status": "unreadable", "detail": str(error)}
    row |= {"shape": list(grid.shape[1:]), "channels": grid.shape[0]}
    if not affine_fault(grid.affine, ""):
        row |= {"spacing_mm": [round(size, 6) for size in grid.spacing], "orientation": orientation(grid.affine)}
    if grid.fault:
        return {**row, "status": "affine", "detail": grid.fault}
    detail = "; ".join(grid.remarks)
    return {**row, **(_voxels(path, detail) if deep else {"status": "ok", "detail": detail})}


def not_finite(array: npt.NDArray[Any]) -> int:
    """Count the values that are NaN or infinite."""
    return array.size - int(np.isfinite(array).sum()) if array.dtype.kind == "f" else 0


def _grid(path: Path) -> FileGrid:
    match format_of(path):
        case "nifti":
            from medlight.scans.nifti import nifti_grid

            return nifti_grid(path)
        case "nrrd":
            from medlight.scans.nrrd import nrrd_grid

            return nrrd_grid(path)
        case "metaimage":
            from medlight.scans.metaimage import metaimage_grid

            return metaimage_grid(path)
        case "raster":
            from medlight.scans.raster import raster_grid

            return raster_grid(path)
        case other:
            raise ValueError(f"{path.name}: {other} is for the survey of DICOM")


def _voxels(path: Path, detail: str) -> dict[str, str]:
    try:
        broken = not_finite(read(path).array)
    except MedlightError as error:
        return {"status": "unreadable", "detail": str(error)}
    if broken:
        return {"status": "nan", "detail": f"{broken} voxels are NaN or infinite; replace them, by 0 say"}
    return {"status": "ok", "detail": detail}
