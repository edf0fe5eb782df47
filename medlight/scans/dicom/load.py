"""DICOM objects to a Volume: each file read once, every check on, real values in the patient's frame."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medlight.errors import MedlightError
from medlight.scans.dicom import pixels
from medlight.scans.dicom.archive import title
from medlight.scans.dicom.decode import KEPT_BYTES, Decoder, naming, source
from medlight.scans.dicom.frames import ChannelKey, Frame, Place, Stack
from medlight.scans.dicom.geometry import affine, continues
from medlight.scans.dicom.group import stacks
from medlight.scans.dicom.header import Header, frames_of, header_of, parse
from medlight.scans.dicom.mend import MENDS, Mends, mend_array, mended_frames
from medlight.scans.dicom.opened import Opened, opened
from medlight.scans.dicom.tree import objects
from medlight.scans.files import shown
from medlight.scans.volume import Channel, Volume

_COLOURS = ("red", "green", "blue")
_NO_MENDS = Mends()


def read_dicom(path: Path, mends: Mends = _NO_MENDS) -> Volume:
    """Read the one volume that a folder, a zip, a DICOMDIR or a file holds.

    Localizers, secondary captures and objects that are no images are passed over and counted in
    ``meta["passed_over"]``. Raises MedlightError where no volume is found, where there are several (it lists them),
    where an object can't be read (a slice may be missing without it), and where the volume is not ``ok`` and ``mends``
    says nothing of it.
    """
    path = Path(path)
    tree = objects([path])
    if tree.faults:
        place, reason = tree.faults[0]
        raise MedlightError(f"{title(place)}: {reason}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote values, which may be a patient's
        found, held = headers(tree.places)
        volumes = [stack for stack in found if stack.kind == "image" and stack.verdict.status != "not-a-volume"]
        chosen = _only(path, volumes or found)
        _complete(chosen, found)
        volume = _load(_accepted(chosen, mends, shown(path)), mends, held)
    over = len(found) - 1
    return replace(volume, meta={**volume.meta, "passed_over": over}) if over else volume


def headers(places: Sequence[Place]) -> tuple[list[Stack], dict[Place, Opened]]:
    """Parse every object once; what was read is kept for decoding as long as there is room."""
    held: dict[Place, Opened] = {}
    room = KEPT_BYTES
    parsed: list[tuple[Header, list[Frame]]] = []
    for place in places:
        one = opened(place) if room > 0 else Opened(parse(place))
        parsed.append((header_of(one.dataset), frames_of(one.dataset, place)))
        if room > 0:
            held[place] = one
            room -= one.in_memory
    return stacks(parsed), held


def _only(path: Path, found: Sequence[Stack]) -> Stack:
    if not found:
        raise MedlightError(
            f"{shown(path)}: holds no DICOM object; give a folder, a zip, a DICOMDIR or a file of a series"
        )
    if len(found) > 1:
        listed = ", ".join(f"{stack.id} ({stack.verdict.status})" for stack in found[:8])
        more = f" and {len(found) - 8} more" if len(found) > 8 else ""
        mend = "give each its own folder, or use medlight data convert"
        raise MedlightError(f"{shown(path)}: holds {len(found)} volumes: {listed}{more}; {mend}")
    return found[0]


def _complete(chosen: Stack, found: Sequence[Stack]) -> None:
    """Raise MedlightError where slices may be lost to what lies beside a volume.

    That are pictures of the same series and size that say nothing of their place, and slices of any series that lie
    where the volume's next one would: one wrong character in an object takes it out of its series, unseen at the ends.
    """
    for stack in found:
        first = stack.frames[0]
        alike = (stack.series_uid, stack.modality, first.shape) == (
            chosen.series_uid,
            chosen.modality,
            chosen.frames[0].shape,
        )
        if stack is not chosen and alike and "LOCALIZER" not in first.variant.split("\\"):
            raise MedlightError(f"{title(first.place)}: {stack.verdict.detail}; take out what is no slice of it")
        of_one = chosen.frames[: len(chosen.frames) // len(chosen.channels)]
        lost = [] if stack is chosen else [frame for frame in stack.frames if continues(of_one, frame)]
        if lost:
            where = "lies where the next slice of the volume beside it would, and isn't one of its series"
            raise MedlightError(f"{title(lost[0].place)}: {where}; take it out, or mend what it says")


def load(stack: Stack, mends: Mends = _NO_MENDS) -> Volume:
    """Decode a stack into the real quantity (HU, Bq/ml, ...), checked.

    The array is ``(C, I, J, K)``: columns, rows, slices, as stored; C is the stack's channels, times three for colour.
    Whole numbers stay int16 or uint16 where slope and intercept are whole numbers too, all else is float32. The affine
    goes to RAS+ millimetres. ``meta``: the stack's technical facts and its ``modality``, what the middle slice says of
    its values (``unit``, ``turned``, ``windows``, ``voi_luts``), for PET ``suv_factor`` (None where ``suv_note`` says
    what is missing), and ``mended``.

    Raises MedlightError with the verdict's sentence unless it is ``ok`` or ``mends`` names what to do about it, and
    where an object's pixels are missing, cut off, of another size than the header says, or can't be decoded.
    """
    places = {frame.place for frame in stack.frames}
    where = shown(stack.frames[0].place.path.parent) if len(places) > 1 else title(stack.frames[0].place)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _load(_accepted(stack, mends, where), mends, {})


def _load(stack: Stack, mends: Mends, held: dict[Place, Opened]) -> Volume:
    decoder = Decoder(stack, held)
    meta = {**stack.facts, **decoder.facts, **({"modality": stack.modality} if stack.modality else {})}
    array = decoder.run()
    placed = affine(stack.frames[: decoder.slices])
    array, placed, notes = mend_array(array, placed, stack, mends)
    if notes:
        meta["mended"] = notes
    colours = len(array) // len(stack.channels)
    channels = [_channel(key, colour) for key in stack.channels for colour in (_COLOURS if colours == 3 else ("",))]
    return Volume(array, placed, tuple(channels), meta)


def _accepted(stack: Stack, mends: Mends, where: str) -> Stack:
    """The frames that are read, once the verdict allows it. Raises MedlightError with the verdict otherwise."""
    if stack.kind == "other":
        raise MedlightError(f"{where}: {stack.id} is no image; give one, or a folder of slices")
    if stack.kind != "image":
        raise MedlightError(f"{where}: {stack.id} is no image but labels of one; give it as a label")
    pieces = mended_frames(stack, mends)
    if len(pieces) > 1:
        mend = "medlight data convert writes each, gap=interpolate makes one of them"
        raise MedlightError(f"{where}: {stack.id} is {len(pieces)} volumes once it is split; {mend}")
    status, detail = pieces[0].verdict.status, pieces[0].verdict.told
    if mends.covers(status):
        return pieces[0]
    hint = f"; --on {status}={MENDS[status]} mends it" if status in MENDS else ""
    raise MedlightError(f"{where}: {stack.id}: {status}: {detail}{hint}")


def _channel(key: ChannelKey, colour: str) -> Channel:
    turned = None
    if key.gradient is not None:
        x, y, z = key.gradient
        turned = (0.0 - x, 0.0 - y, z)  # LPS to RAS, without a negative zero
    return Channel(colour, key.time_ms, key.b_value, key.echo_time_ms, turned)


def check_pixels(stack: Stack) -> str | None:
    """Decode every frame of a stack, whatever its verdict; return the first fault, naming the file, or None."""
    wanted: dict[Place, set[int]] = {}
    for frame in stack.frames:
        wanted.setdefault(frame.place, set()).add(frame.index)
    if stack.kind in ("rtstruct", "other"):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for place, indices in wanted.items():
                _check_object(place, indices, stack.kind == "image")
        except MedlightError as error:
            return str(error)
    return None


def _check_object(place: Place, indices: set[int], image: bool) -> None:
    one = opened(place)
    with naming(place):
        layout = source(one, dict.fromkeys(indices)).layout if image else pixels.layout(one.dataset, one.keyword)
        read = pixels.frames(one.dataset, layout, one.data)
        for index in sorted(indices):
            read(index)
