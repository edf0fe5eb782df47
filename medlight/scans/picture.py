"""A picture of a scan: middle slices in grey, label maps over them in colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFont

from medlight.prepare.case import Label
from medlight.scans.values import values_of

Style = Literal["fill", "outline"]
Overlay = tuple[npt.NDArray[np.integer[Any]], Style]
Pixels = npt.NDArray[np.uint8]
Colour = tuple[int, ...]

# Okabe and Ito's colours, told apart with any colour vision (https://jfly.uni-koeln.de/color/), lightest first on grey.
PALETTE = ("#E69F00", "#56B4E9", "#CC79A7", "#F0E442", "#009E73", "#D55E00", "#0072B2")
_ALPHA = 0.45
_FILL = 1e30
_LOOKED_AT = 2**24  # voxels, for the percentiles: 256 x 256 x 256
_TALL, _SHORT, _LIMIT = 384, 256, 1024  # pixels: tallest panel, shortest panel, the most for either side of a panel
_GAP, _LINE = 8, 22
_TEXT = (225, 225, 225)


@dataclass(frozen=True)
class _View:
    """One slice, ready to be looked at: rows top to bottom, columns left to right."""

    name: str
    axis: int
    marks: tuple[str, str, str, str]  # what lies left, right, above and below

    def cut(self, array: npt.NDArray[Any], at: tuple[int, ...]) -> npt.NDArray[Any]:
        """Return the slice of an ``(I, J, K)`` array in RAS+; radiological: the patient's right is on the left."""
        plane = array[(slice(None),) * self.axis + (at[self.axis],)]  # take would copy all of a turned array first
        return plane[::-1, ::-1].T

    def size(self, shape: Sequence[int], spacing: Sequence[float]) -> tuple[float, float]:
        """Height and width in millimetres."""
        across, up = (n for n in range(3) if n != self.axis)
        return shape[up] * spacing[up], shape[across] * spacing[across]


_AXIAL = _View("axial", 2, ("R", "L", "A", "P"))
_FLAT = _View("flat", 2, ("", "", "", ""))  # a 2D image may show anything: no sides are claimed
_CORONAL = _View("coronal", 1, ("R", "L", "S", "I"))
_SAGITTAL = _View("sagittal", 0, ("A", "P", "S", "I"))


def panel(
    image: npt.NDArray[Any],
    spacing: Sequence[float],
    overlays: Sequence[Overlay] = (),
    labels: Sequence[Label] = (),
    span: tuple[float, float] | None = None,
    lines: Sequence[str] = (),
) -> Pixels:
    """Draw three slices (axial, coronal, sagittal) through the middle of the foreground; one slice where ``K`` is 1.

    image: ``(I, J, K)``, axes along RAS+, any unit; shown between its 1st and 99th percentile, or where there is a
        ``span`` between these values.
    spacing: voxel size along I, J, K in mm; every panel is isotropic, at one scale.
    overlays: label maps ``(I, J, K)`` on the image's grid, each filled half-transparent (a prediction) or drawn
        as an outline (the truth); the middle is the centroid of all that is not 0 in any of them.
    labels: names and colours of the values (``Label.colour``, else colour-blind-safe ones); value 0 is never drawn.
    lines: text below the slices, one under the other; what is wider than the picture ends with ``...``.

    Returns ``(H, W, 3)`` uint8, at least 300 pixels high. Raises ValueError where a map has another shape.
    """
    if image.ndim != 3 or any(overlay.shape != image.shape for overlay, _ in overlays):
        shapes = [image.shape, *(overlay.shape for overlay, _ in overlays)]
        raise ValueError(f"a picture needs one (I, J, K) image and label maps of the same shape, got {shapes}")
    values = sorted({int(v) for overlay, _ in overlays for v in values_of(overlay)} - {0})
    colours = colours_of(values, labels)
    at = _middle(image.shape, overlays)
    views = [_FLAT] if image.shape[2] == 1 else [_AXIAL, _CORONAL, _SAGITTAL]
    sizes = [view.size(image.shape, spacing) for view in views]
    scale = _scale(sizes)
    pixels = [(max(1, round(h * scale)), max(1, round(w * scale))) for h, w in sizes]
    shown = span or _span(image)
    greys = [_window(view.cut(image, at), shown) for view in views]
    drawn = [
        _draw(view, grey, overlays, colours, at, size) for view, grey, size in zip(views, greys, pixels, strict=True)
    ]
    row = _side_by_side(drawn)
    names = {label.value: label.name for label in labels}
    entries = [(names.get(value, f"label {value}"), colours[value]) for value in values]
    width = row.shape[1]
    return np.vstack([row, *_legend(entries, {style for _, style in overlays}, width), *_written(lines, width)])


def colours_of(values: Sequence[int], labels: Sequence[Label]) -> dict[int, Colour]:
    """Return an RGB colour for each label value: the schema's, else the palette's, by its place in the schema."""
    schema = {label.value: label for label in labels}
    order = [value for value in schema if value != 0] + [value for value in values if value not in schema]
    found: dict[int, Colour] = {}
    for place, value in enumerate(order):
        label = schema.get(value)
        own = label.colour if label else None
        red, green, blue = ImageColor.getrgb(own or PALETTE[place % len(PALETTE)])[:3]
        lighter = 0.0 if own else 1 - 0.6 ** (place // len(PALETTE))  # another shade each time the palette is used up
        found[value] = tuple(round(part + (255 - part) * lighter) for part in (red, green, blue))
    return found


def _middle(shape: Sequence[int], overlays: Sequence[Overlay]) -> tuple[int, ...]:
    """Return the voxel at the centroid of the overlays' foreground, or the middle of the image."""
    drawn = np.zeros(tuple(shape), bool)
    for overlay, _ in overlays:
        drawn |= overlay != 0
    if not drawn.any():
        return tuple(n // 2 for n in shape)
    profiles = [drawn.sum(axis=tuple(a for a in range(3) if a != axis)) for axis in range(3)]
    return tuple(_central(profile) for profile in profiles)


def _central(profile: npt.NDArray[np.integer[Any]]) -> int:
    """Return the place of a profile's mean, or the nearest place where there is something to see."""
    places = np.flatnonzero(profile)
    mean = float(np.average(np.arange(len(profile)), weights=profile))
    return int(places[np.argmin(np.abs(places - mean))])


def _scale(sizes: Sequence[tuple[float, float]]) -> float:
    """Pixels a millimetre: the tallest panel is easy to see, and no panel of an elongated scan is tiny or huge."""
    heights = [h for h, _ in sizes]
    wanted = max(_TALL / max(heights), _SHORT / min(heights))
    return min(wanted, _LIMIT / max(max(size) for size in sizes))


def _span(image: npt.NDArray[Any]) -> tuple[float, float]:
    """The 1st to 99th percentile of what is not constant background; of a big image, of a part of its voxels."""
    step = ceil((image.size / _LOOKED_AT) ** (1 / 3))
    known = _measured(image[::step, ::step, ::step])
    return _percentiles(known[np.isfinite(known)].astype(np.float32, copy=False))


def _measured(image: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Values beyond ``_FILL`` are no measurements but say that there is none: they are as dark as NaN."""
    if image.dtype.kind != "f":
        return image
    return np.where(np.isfinite(image) & (np.abs(image) > _FILL), np.nan, image)


def _window(image: npt.NDArray[Any], span: tuple[float, float]) -> npt.NDArray[np.float32]:
    """Map a span of values to 0 to 255."""
    image, (low, high) = _measured(image), span
    width = high - low if high > low else 1.0
    grey = (np.nan_to_num(image.astype(np.float32), nan=low, posinf=high, neginf=low) - low) / width
    return np.clip(grey * 255, 0, 255).astype(np.float32)


def _percentiles(values: npt.NDArray[np.float32]) -> tuple[float, float]:
    inside = values[values != values.min()] if values.size else values
    low, high = np.percentile(inside, (1, 99)) if inside.size else (0.0, 1.0)
    low = min(low, float(np.percentile(values, 1))) if values.size else low
    return float(low), float(high)


def _draw(
    view: _View,
    grey: npt.NDArray[np.float32],  # of the slice
    overlays: Sequence[Overlay],
    colours: dict[int, Colour],
    at: tuple[int, ...],
    size: tuple[int, int],
) -> Pixels:
    """Draw one view at ``size`` (height, width) pixels."""
    height, width = size
    cut = Image.fromarray(np.ascontiguousarray(grey))
    flat = np.clip(np.asarray(cut.resize((width, height), Image.Resampling.BICUBIC)), 0, 255)
    canvas = np.repeat(flat[..., None], 3, axis=2)
    for overlay, style in sorted(overlays, key=lambda pair: pair[1]):  # fills first, outlines stay on top
        enlarged = _enlarge(view.cut(overlay, at), size)
        for value, colour in colours.items():
            mask = enlarged == value
            if style == "outline":
                canvas[_edge(mask)] = colour
            else:
                canvas[mask] = (1 - _ALPHA) * canvas[mask] + _ALPHA * np.asarray(colour, np.float32)
    picture = Image.fromarray(canvas.round().astype(np.uint8))
    _mark(picture, view)
    return np.asarray(picture)


def _enlarge(labels: npt.NDArray[Any], size: tuple[int, int]) -> npt.NDArray[Any]:
    """Nearest-neighbour resize of a label slice (voxel centres to pixel centres, as Pillow resizes the image)."""
    rows, columns = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(size, labels.shape, strict=True))
    return labels[np.ix_(rows, columns)]


def _edge(mask: npt.NDArray[np.bool_], width: int = 2) -> npt.NDArray[np.bool_]:
    """Return the pixels of a mask within ``width`` of its border."""
    inner = mask
    for _ in range(width):
        padded = np.pad(inner, 1)
        inner = inner & padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
    return mask & ~inner


def _mark(picture: Image.Image, view: _View) -> None:
    """Write what lies left, right, above and below."""
    pen = ImageDraw.Draw(picture)
    width, height = picture.size
    left, right, above, below = view.marks
    places = ((left, (4, height / 2), "lm"), (right, (width - 4, height / 2), "rm"))
    places += ((above, (width / 2, 3), "mt"), (below, (width / 2, height - 3), "mb"))  # type: ignore[assignment]
    for text, place, anchor in places:
        pen.text(place, text, fill=_TEXT, font=_font(13), anchor=anchor, stroke_width=1, stroke_fill=(0, 0, 0))


def _side_by_side(panels: Sequence[Pixels]) -> Pixels:
    """Put panels of any height in one row on black, each in the middle."""
    height = max(300, *(p.shape[0] for p in panels))
    width = sum(p.shape[1] for p in panels) + _GAP * (len(panels) - 1)
    row = np.zeros((height, width, 3), np.uint8)
    left = 0
    for p in panels:
        top = (height - p.shape[0]) // 2
        row[top : top + p.shape[0], left : left + p.shape[1]] = p
        left += p.shape[1] + _GAP
    return row


def _legend(entries: Sequence[tuple[str, Colour]], styles: set[Style], width: int) -> list[Pixels]:
    """Return a strip with each label's colour and name, wrapped to the picture's width; nothing where no label is."""
    if not entries:
        return []
    items: list[tuple[str, Colour | None]] = [(name, colour) for name, colour in entries]
    if styles == {"fill", "outline"}:
        items.append(("filled: prediction, line: truth", None))
    spots: list[tuple[float, int]] = []
    x, line = 6.0, 0
    for text, colour in items:
        needed = _font(14).getlength(text) + (18 if colour else 0) + 14
        if x + needed > width and x > 6:
            x, line = 6.0, line + 1
        spots.append((x, line))
        x += needed
    strip = Image.new("RGB", (width, _LINE * (line + 1) + 4))
    pen = ImageDraw.Draw(strip)
    for (text, colour), (left, row) in zip(items, spots, strict=True):
        middle = _LINE * row + _LINE // 2 + 2
        if colour:
            pen.rectangle((left, middle - 6, left + 12, middle + 6), fill=colour)
        pen.text((left + (18 if colour else 0), middle), text, fill=_TEXT, font=_font(14), anchor="lm")
    return [np.asarray(strip)]


def _written(lines: Sequence[str], width: int) -> list[Pixels]:
    """Return a strip with lines of text; nothing where there are none."""
    if not lines:
        return []
    strip = Image.new("RGB", (width, _LINE * len(lines) + 4))
    pen, font = ImageDraw.Draw(strip), _font(14)
    for number, line in enumerate(lines):
        text = line
        while len(text) > 3 and font.getlength(text) > width - 12:
            text = f"{text.removesuffix('...')[:-1]}..."
        pen.text((6, _LINE * number + _LINE // 2 + 2), text, fill=_TEXT, font=font, anchor="lm")
    return [np.asarray(strip)]


def _font(size: int) -> Any:
    return ImageFont.load_default(size)
