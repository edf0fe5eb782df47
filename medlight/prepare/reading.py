"""Reading what a case refers to: a scan, one frame of it, or one entry of an array file."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from medlight.errors import MedlightError
from medlight.prepare.case import ArrayItem, FileRef, FrameItem, Label
from medlight.scans import Channel, Volume, read
from medlight.scans.files import shown
from medlight.scans.labels import read_label
from medlight.scans.read import format_of

if TYPE_CHECKING:
    from medlight.scans.dicom.mend import Mends

# A picture's columns run to the patient's left and its rows downwards, as TorchIO has it.
_PICTURE = np.diag([-1.0, -1.0, 1.0, 1.0])


def read_ref(ref: FileRef, mends: Mends | None = None) -> Volume:
    """Read what a case refers to as a volume; errors are MedlightErrors that name it."""
    if isinstance(ref, FrameItem):
        return _frame(_read_4d(ref.path, mends), ref)
    if isinstance(ref, ArrayItem):
        array = read_array(ref.path, ref.key)
        if not 0 <= ref.index < len(array):
            raise MedlightError(f"{shown(ref.path)}: {ref.key} has {len(array)} entries, none at {ref.index}")
        return _picture(array[ref.index])
    return read(ref, mends)


def read_label_ref(ref: FileRef, image: Volume, labels: Sequence[Label] = ()) -> Volume:
    """Read what a case refers to as its label map; a DICOM-SEG or RTSTRUCT comes on the image's grid (`read_label`)."""
    return read_label(ref, image, labels) if isinstance(ref, Path) else read_ref(ref)


def drawn(ref: FileRef | None) -> bool:
    """Whether a label is a DICOM-SEG or RTSTRUCT: the schema says which of its segments becomes which voxel value."""
    return isinstance(ref, Path) and format_of(ref) == "dicom"


def colours(volume: Volume) -> int:
    """How many channels make one frame: 3 in colour, else 1."""
    return 3 if [channel.name for channel in volume.channels[:3]] == ["red", "green", "blue"] else 1


def _frame(whole: Volume, ref: FrameItem) -> Volume:
    width = colours(whole)
    if not 0 <= ref.frame < len(whole.array) // width:
        raise MedlightError(f"{shown(ref.path)}: has {len(whole.array) // width} frames, none at {ref.frame}")
    one = slice(ref.frame * width, (ref.frame + 1) * width)
    return Volume(whole.array[one], whole.affine, whole.channels[one], whole.meta)


@lru_cache(maxsize=1)
def _read_4d(path: Path, mends: Mends | None) -> Volume:
    """Read a 4D scan once for all its frames, which come one after the other."""
    return read(path, mends)


def forget() -> None:
    """Let go of the scan whose frames were read last."""
    _read_4d.cache_clear()


def read_array(path: Path, key: str) -> npt.NDArray[Any]:
    """Read one array of an ``.npz`` file, once a process as long as the file doesn't change; don't write to it."""
    return _read_array(path, key, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=6)
def _read_array(path: Path, key: str, stamp: int) -> npt.NDArray[Any]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return np.asarray(arrays[key])
    except KeyError:
        raise MedlightError(f"{shown(path)}: has no array {key!r}; give a file in MedMNIST's layout") from None
    except (OSError, ValueError, EOFError, BadZipFile, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise MedlightError(f"{shown(path)}: can't be read as .npz ({reason}); copy it again") from None


def _picture(item: npt.NDArray[Any]) -> Volume:
    """Bring ``(rows, columns)``, ``(rows, columns, 3)`` or ``(depth, rows, columns)`` to ``(C, I, J, K)``."""
    if item.ndim == 2:
        item = item[..., None]
    turned = item.transpose(2, 1, 0)
    array = turned[..., None] if item.shape[-1] in (1, 3, 4) else turned[None]
    return Volume(np.ascontiguousarray(array), _PICTURE.copy(), (Channel(),) * len(array))
