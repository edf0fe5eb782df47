"""Plain images: PNG, JPEG and TIFF (8 and 16 bits, several pages), for radiographs and tiles of pathology."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from medlight.errors import MedlightError
from medlight.scans.files import shown
from medlight.scans.grid import FileGrid, bytes_needed
from medlight.scans.raw import reason
from medlight.scans.volume import Channel, Volume

# A picture's columns run to the patient's left and its rows downwards, as TorchIO has it.
PICTURE = np.diag([-1.0, -1.0, 1.0, 1.0])

_FORMATS = ("PNG", "JPEG", "TIFF")
_COLOURS = (Channel("red"), Channel("green"), Channel("blue"))
_SCREENS = (72.0, 96.0)  # dots an inch that programs write when they know nothing
_INCH = 25.4
_ORIENTATION, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC = 0x0112, 256, 257, 258, 262  # tags of EXIF and TIFF


def read_raster(path: Path, indices: bool = False) -> Volume:
    """Read a plain image as ``(C, I, J, 1)``: I runs along its columns, J down its rows; a TIFF's pages lie along K.

    Grey stays uint8, uint16, int32 or float32, colour becomes three channels; transparency is left out, a bilevel image
    is 0 and 1, and what is stored turned (EXIF) or inverted (TIFF's white is zero) is set right. Pixels are as large as
    the file says, else 1 mm: 72 and 96 dots an inch say nothing, programs write them for screens.

    indices: a palette's indices instead of its colours, for label maps. Raises MedlightError where the file is damaged,
    its pages differ, or it is too large.
    """
    with _opened(path) as image:
        grid = _grid(image, path)
        array = _deep_colour(path, image) if _is_deep(image) else _pages(image, path, grid, indices)
    return Volume(array, grid.affine, _COLOURS if len(array) == 3 else (Channel(),) * len(array), grid.meta)


def raster_grid(path: Path) -> FileGrid:
    """Return an image's size and the size of its pixels, from its header; MedlightError where there is none to read."""
    with _opened(path) as image:
        return _grid(image, path)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        # Opened by name, Pillow 13 maps an unpacked TIFF that is stored turned with rows and columns changed over.
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            yield image
    except MedlightError:
        raise
    except Exception as error:  # Pillow's parsers raise nearly anything on a damaged file
        said = "is none of PNG, JPEG, TIFF" if isinstance(error, UnidentifiedImageError) else reason(error)
        raise MedlightError(f"{shown(path)}: can't be read as an image ({said}); copy it again or remove it") from None


def _grid(image: Any, path: Path) -> FileGrid:
    stored = (image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]) if image.format == "TIFF" else image.size
    turned = _turn(image) >= 5  # rows and columns change places
    width, height = stored[::-1] if turned else stored
    shape = (len(_COLOURS) if _is_colour(image) else 1, width, height, _count(image))
    bytes_needed(shape, np.dtype(np.uint8 if image.mode in ("L", "P", "RGB") else np.float32), path)
    x, y, remarks = _pixel_size(image)
    size = np.diag([y, x, 1.0, 1.0] if turned else [x, y, 1.0, 1.0])
    return FileGrid(shape, PICTURE @ size, remarks=remarks)


def _count(image: Any) -> int:
    return int(image.n_frames) if image.format == "TIFF" else 1


def _turn(image: Any) -> int:
    """EXIF's orientation, 1 to 8; a PNG hardly has one, and would have to be decoded to see."""
    turn = image.getexif().get(_ORIENTATION, 1) if image.format != "PNG" else 1
    return turn if isinstance(turn, int) else 1


def _is_colour(image: Any) -> bool:
    return not image.mode.startswith(("1", "L", "I", "F")) or image.mode == "LAB"


def _is_deep(image: Any) -> bool:
    """Whether it has colours of 16 bits, of which Pillow would keep 8."""
    bits = image.tag_v2.get(_BITS, (8,)) if image.format == "TIFF" else (8,)
    return _is_colour(image) and (max(bits) > 8 or any(";16" in str(tile[3]) for tile in image.tile))


def _pixel_size(image: Any) -> tuple[float, float, tuple[str, ...]]:
    """Width and height of a pixel in millimetres, and what is odd about it."""
    try:
        dots = [float(value) for value in image.info.get("dpi", ())]
    except (TypeError, ValueError, ArithmeticError):
        dots = []
    if len(dots) != 2 or not np.isfinite(dots).all() or min(dots) <= 1:
        return 1.0, 1.0, ("says nothing of its pixels' size: 1 mm is taken",)
    if any(abs(value - screen) < 0.1 for value in dots for screen in _SCREENS):
        return 1.0, 1.0, (f"says {dots[0]:.0f} dots an inch, a screen's usual value: pixels of 1 mm are taken",)
    return _INCH / dots[0], _INCH / dots[1], ()


def _pages(image: Any, path: Path, grid: FileGrid, indices: bool) -> npt.NDArray[Any]:
    first, size = image.mode, image.size
    planes = []
    for page in range(grid.shape[3]):
        if page:
            image.seek(page)
        if (image.mode, image.size) != (first, size):
            raise MedlightError(f"{shown(path)}: page {page + 1} has another size or kind than the first; split it")
        planes.append(_plane(image, indices))
    return np.stack(planes, axis=-1)


def _plane(image: Any, indices: bool) -> npt.NDArray[Any]:
    """Return one page as ``(C, columns, rows)``."""
    inverted = image.mode.startswith("I;16") and image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0
    if image.format == "JPEG":
        image = ImageOps.exif_transpose(image)
    match image.mode:
        case "1" | "L" | "I" | "F" | "I;16" | "I;16B" | "I;16L" | "RGB":
            array = np.asarray(image)
        case "LA" | "La":
            array = np.asarray(image.convert("L"))
        case "P" if indices:
            array = np.asarray(image)
        case _:
            array = np.asarray(image.convert("RGB"))
    array = array.astype(np.uint8) if array.dtype == bool else array.astype(array.dtype.newbyteorder("="), copy=False)
    array = np.iinfo(array.dtype).max - array if inverted else array
    return np.ascontiguousarray(array.T if array.ndim == 3 else array.T[None])


def _deep_colour(path: Path, image: Any) -> npt.NDArray[Any]:
    """Read colours of 16 bits, with ITK; Pillow has seen to the header."""
    import SimpleITK as sitk  # noqa: N813

    reader = sitk.ImageFileReader()
    reader.SetImageIO("TIFFImageIO" if image.format == "TIFF" else "PNGImageIO")
    reader.SetFileName(str(path))
    array = sitk.GetArrayFromImage(reader.Execute())
    array = array.reshape(-1, *array.shape[-3:])[..., : len(_COLOURS)]  # (pages, rows, columns, colours)
    return np.ascontiguousarray(array.transpose(3, 2, 1, 0))
