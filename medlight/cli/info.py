"""``medlight data info``: one scan, its technical facts and a picture."""

from __future__ import annotations

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medlight.cli.mends import add_on
from medlight.errors import MedlightError, UsageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from rich.console import Console

    from medlight.scans import Volume
    from medlight.scans.dicom.mend import Mends

HELP = "show one scan: what it is, and its three middle slices"
EPILOG = """\
example:
  medlight data info scan.nii.gz
  medlight data info series --png slices.png --window lung

The picture is drawn in the terminal, or written with --png. It is shown between black and white as the scan's own first
window says, where it has one, else from the 1st to the 99th percentile; --window takes a name (lung, bone, brain,
soft-tissue, mediastinum, liver, ...) or CENTRE/WIDTH. Nothing of the patient is shown.

Of a scan that can't be read (exit code 1) it shows what the headers say, and its verdict as of data check."""
_COLOURS = ("red", "green", "blue")
_WHOLE = 1e9  # a larger number is no count, and is shown by its first digits
_WIDEST = 120  # columns of a picture in the terminal


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``medlight data info``."""
    parser.add_argument(
        "source", metavar="FILE|FOLDER", type=Path, help="a scan: NIfTI, a DICOM series, NRRD, PNG, ..."
    )
    parser.add_argument("--png", metavar="OUT", type=Path, help="write the picture as a PNG")
    parser.add_argument("--window", metavar="NAME|C/W", help="what lies between black and white")
    add_on(parser)


def run(args: argparse.Namespace) -> int:
    """Read the scan whole, so that what can't be read is found; print, draw, write."""
    from medlight.cli.output import write_json
    from medlight.scans import read
    from medlight.scans.dicom.mend import Mends
    from medlight.scans.window import window

    if args.png and args.png.suffix.lower() != ".png":
        raise UsageError(f"--png {args.png}: is written as PNG; call it .png")
    if args.window:
        window(args.window)
    mends = Mends.parse(args.on)
    try:
        volume = read(args.source, mends)
    except MedlightError as error:
        if not isinstance(error, UsageError):
            with contextlib.suppress(MedlightError, OSError):  # the first error is the one to be told
                _tell_headers(args, mends)
        raise
    found = facts(volume)
    _print(rows(found), args.json)
    write_json(args.json, found)
    if args.png or sys.stdout.isatty():
        pixels = picture(volume, args.window)
        if args.png:
            _write(pixels, args.png)
        elif args.json != "-":
            from rich.console import Console

            draw(pixels, Console())
    return 0


def _print(table: list[tuple[str, str]], json: str | None) -> None:
    from medlight.cli.table import printable

    for name, text in table if json != "-" else ():
        print(f"{name:<12} {printable(text)}")


def _tell_headers(args: argparse.Namespace, mends: Mends) -> None:
    """What the headers say of a scan that can't be read; nothing where they say nothing, or of several volumes."""
    from medlight.cli.check import after, other
    from medlight.cli.output import write_json
    from medlight.scans.dicom.survey import survey
    from medlight.scans.read import format_of

    if not args.source.exists():
        return
    meta: dict[str, Any] = {}
    if format_of(args.source) == "dicom":
        images = [stack for stack in survey([args.source]).stacks if stack.kind == "image"]
        volumes = [stack for stack in images if stack.verdict.status != "not-a-volume"] or images
        judged = after(volumes[0], mends) if len(volumes) == 1 else []
        if len(judged) != 1:
            return
        (_, entry), meta = judged[0], volumes[0].facts
    else:
        entry, _ = other(args.source, deep=False)
    status = entry["status"] if entry["status"] != "ok" else "unreadable"  # what its headers don't show
    found = {**entry, "status": status, "meta": meta}
    del found["series_uid"]
    _print(header_rows(found), args.json)
    write_json(args.json, found)


def header_rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What a row of ``data check`` says, as text, and the technical facts of the file; no detail: the error has it."""
    axes = f", axes to {found['orientation']}" if found["orientation"] else ""
    spacing = " x ".join(f"{size:g}" for size in found["spacing_mm"])
    table = [
        ("modality", found["modality"]),
        ("voxels", " x ".join(map(str, found["shape"]))),
        ("spacing", f"{spacing} mm{axes}" if spacing else ""),
        ("channels", str(found["channels"]) if found["channels"] > 1 else ""),
        *_further(found["meta"]),
        ("verdict", found["status"]),
    ]
    return [(name, text) for name, text in table if text]


def _write(pixels: npt.NDArray[np.uint8], path: Path) -> None:
    """Write the picture; MedlightError where that can't be done."""
    from PIL import Image

    from medlight.scans.files import replacing

    try:
        with replacing(path) as temporary:
            Image.fromarray(pixels).save(temporary, format="png")
    except OSError as error:
        said = error.strerror or type(error).__name__
        raise MedlightError(f"--png {path}: can't be written ({said}); give another place") from None


def facts(volume: Volume) -> dict[str, Any]:
    """What a scan is, as plain values; ``minimum`` and ``maximum`` are in ``unit``, and of numbers only."""
    import numpy as np

    from medlight.scans import orientation

    finite = volume.array[np.isfinite(volume.array)] if volume.array.dtype.kind == "f" else volume.array
    known = ("frame_time_ms", "b_value", "echo_time_ms")
    channels = {name: [getattr(channel, name) for channel in volume.channels] for name in known}
    return {
        "shape": list(volume.shape),
        "channels": len(volume.array),
        "colour": _is_colour(volume),
        **{name: values for name, values in channels.items() if any(value is not None for value in values)},
        "spacing_mm": [round(size, 4) for size in volume.spacing],
        "orientation": orientation(volume.affine),
        "type": str(volume.array.dtype),
        "minimum": finite.min().item() if finite.size else None,
        "maximum": finite.max().item() if finite.size else None,
        "not_numbers": int(volume.array.size - finite.size),
        "meta": volume.meta,
    }


def rows(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts as text, those there are; further technical facts of the file come last."""
    meta = dict(found["meta"])
    unit = str(meta.pop("unit", "") or "")
    windows = [f"{window['centre']:g}/{window['width']:g}" for window in meta.pop("windows", [])]
    mended = meta.pop("mended", [])
    spacing = " x ".join(f"{size:g}" for size in found["spacing_mm"])
    lost = f", {found['not_numbers']} are no numbers" if found["not_numbers"] else ""
    table = [
        ("voxels", " x ".join(map(str, found["shape"]))),
        ("spacing", f"{spacing} mm, axes to {found['orientation']}"),
        ("channels", _channels(found)),
        ("values", f"{_figure(found['minimum'])} to {_figure(found['maximum'])} {unit} ({found['type']}{lost})"),
        ("windows", ", ".join(windows)),
        *(("mended", note) for note in mended),
        *_further(meta),
    ]
    return [(name, " ".join(text.split())) for name, text in table if text]


def _further(meta: dict[str, Any]) -> list[tuple[str, str]]:
    """Technical facts of a file, by name."""
    plain = {name: value for name, value in meta.items() if isinstance(value, str | int | float)}
    swapped = [("turned", "bright and dark, so that more is brighter (MONOCHROME1)")] if plain.pop("turned", 0) else []
    return [*((name.replace("_", " "), _figure(value)) for name, value in plain.items()), *swapped]


def _channels(found: dict[str, Any]) -> str:
    if found["colour"]:
        return f"3 ({', '.join(_COLOURS)})"
    units = {"frame_time_ms": "frames at {} ms", "b_value": "b-values {} s/mm2", "echo_time_ms": "echo times {} ms"}
    said = [text.format(_listed(found[name])) for name, text in units.items() if name in found]
    count = str(found["channels"])
    return f"{count} ({', '.join(said)})" if said else count if found["channels"] > 1 else ""


def _listed(values: list[float | None]) -> str:
    """Up to six different values, or the first and the last of more."""
    distinct = [_figure(value) for value in dict.fromkeys(values) if value is not None]
    return ", ".join(distinct) if len(distinct) <= 6 else f"{distinct[0]}, {distinct[1]} ... {distinct[-1]}"


def _figure(value: float | str | None) -> str:
    if value is None:
        return "-"
    whole = isinstance(value, float) and value.is_integer() and abs(value) < _WHOLE
    return str(int(value)) if whole else f"{value:g}" if isinstance(value, float) else str(value)


def _is_colour(volume: Volume) -> bool:
    return tuple(channel.name for channel in volume.channels[:3]) == _COLOURS and len(volume.array) == 3


def picture(volume: Volume, asked: str | None = None) -> npt.NDArray[np.uint8]:
    """Draw the three middle slices of the first channel (of colour: its mean), or the one slice of a 2D image.

    asked: a window as ``medlight.scans.window.window`` takes it; None: the scan's own, else the percentiles.
    Returns ``(H, W, 3)``.
    """
    import numpy as np

    from medlight.scans import reorient
    from medlight.scans.picture import panel
    from medlight.scans.window import apply_window, window

    first = volume.array.mean(axis=0) if _is_colour(volume) else volume.array[0]
    image, affine = reorient(first, volume.affine, "RAS")
    if volume.shape[2] == 1 and image.shape[2] != 1:  # a 2D image is shown as it is, whatever plane it lies in
        image, affine = first, volume.affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0).tolist()
    own = volume.meta.get("windows") or []
    if asked:
        chosen = window(asked)
        return panel(apply_window(image, chosen.centre, chosen.width), spacing, span=(0, 1))
    if own:
        centre, width, curve = own[0]["centre"], own[0]["width"], own[0]["function"]
        shown = apply_window(image, centre, width, "LINEAR_EXACT" if width < 1 else curve)  # LINEAR starts at 1
        return panel(shown, spacing, span=(0, 1))
    return panel(image, spacing)


def draw(pixels: npt.NDArray[np.uint8], console: Console) -> None:
    """Draw a picture in a terminal, two rows of pixels a line of half blocks."""
    import numpy
    from PIL import Image
    from rich.text import Text

    width = min(console.width, _WIDEST, pixels.shape[1])
    height = max(1, round(pixels.shape[0] * width / pixels.shape[1] / 2)) * 2
    small = numpy.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BOX))
    for above, below in zip(small[::2].tolist(), small[1::2].tolist(), strict=True):
        line = Text()
        for upper, lower in zip(above, below, strict=True):
            line.append("▀", style=f"rgb({','.join(map(str, upper))}) on rgb({','.join(map(str, lower))})")
        console.print(line, no_wrap=True)
