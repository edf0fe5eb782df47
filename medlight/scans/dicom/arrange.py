"""Frames of one shape and orientation to volumes: which are slices of one, which channels of one, which of another."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np

from medlight.scans.dicom.channels import keyed
from medlight.scans.dicom.frames import MOMENTS, ChannelKey, Frame, Verdict
from medlight.scans.dicom.geometry import SAME_MM, along_normal, problems, slice_positions

_SOUND = ("ok", "tilt")  # a tilt is the whole stack's: it says nothing against which frames belong together
_ENOUGH = 3  # slices that show by themselves that they are evenly spaced

Arranged = tuple[tuple[ChannelKey, ...], list[Frame], Verdict]
Key = Callable[[Frame], Hashable]
Part = list[int]  # frames by their number
Parts = dict[tuple[Hashable, Hashable], Part]  # by what frames are, and by their time


@dataclass
class _Option:
    """A way to tell frames apart. volumes: the channels of each, all at the same places; doubled: frames too many."""

    volumes: list[list[Part]]
    verdicts: list[Verdict]
    doubled: int
    by_variant: bool = False

    def cost(self) -> tuple[int, int, bool, int]:
        """The less, the better: frames at a taken place, frames of unsound volumes, image types mixed, volumes."""
        pairs = zip(self.volumes, self.verdicts, strict=True)
        unsound = sum(sum(map(len, volume)) for volume, judged in pairs if judged.status not in _SOUND)
        return self.doubled, unsound, not self.by_variant, len(self.volumes)

    def sound(self) -> bool:
        """Whether each volume is, by itself."""
        judged = all(verdict.status in _SOUND for verdict in self.verdicts)
        return judged and not self.doubled and all(len(volume[0]) >= _ENOUGH for volume in self.volumes)


def arranged(frames: Sequence[Frame]) -> list[Arranged]:
    """Make volumes of frames: channel keys, frames channel by channel in order, and the verdict, for each volume.

    Sets of frames that differ in echo time, b-value or gradient are never mixed where each is sound by itself. Image
    type and kernel tell volumes apart, and times and acquisition numbers channels, only where the frames make no sound
    volume without: a scanner may give each slice its own. Of all ways to tell them apart that one is taken that leaves
    the fewest frames at a place that is taken, then the fewest faults, then the fewest volumes.
    """
    table = _Table(frames)
    best = plain = table.plain()
    if plain.doubled or not plain.sound():
        for option in table.options(plain):
            if (option.doubled < plain.doubled or option.sound()) and option.cost() < best.cost():
                best = option
            if best.cost()[:2] == (0, 0) and len(best.volumes) == 1:
                break
    elif len(table.contrasts) > 1:
        apart = table.option([_contrast], None)
        best = apart if apart is not None and apart.sound() else plain
    pairs = zip(best.volumes, best.verdicts, strict=True)
    return [(*keyed([[frames[at] for at in part] for part in volume]), judged) for volume, judged in pairs]


class _Table:
    """Frames with the number of the place where each lies."""

    def __init__(self, frames: Sequence[Frame]) -> None:
        numbers = {id(frame): number for number, frame in enumerate(frames)}
        self.frames = frames
        self.along = [numbers[id(frame)] for frame in along_normal(frames)]
        self.spots = _spots(frames)
        self.places = len(set(self.spots))
        self.contrasts = {_contrast(frame) for frame in frames}
        self.variants = {frame.variant for frame in frames}

    def plain(self) -> _Option:
        """All frames as one volume of one channel."""
        return _Option([[self.along]], [self._verdict(self.along)], len(self.along) - self.places)

    def option(self, keys: Sequence[Key], times: Key | int | None, by_variant: bool = False) -> _Option | None:
        """Tell frames apart by keys, and by a time: by its value, or (an int) by its rank at each place.

        None where that tells nearly each frame from all others, and where ranks don't tell times.
        """
        parts: Parts = {}
        ranks = self._ranks(keys, times) if isinstance(times, int) else None
        for number in self.along:
            frame = self.frames[number]
            moment = ranks[number] if ranks else times(frame) if callable(times) else None
            parts.setdefault((tuple(key(frame) for key in keys), moment), []).append(number)
        if self.places > 2 and len(parts) > len(self.frames) / 2:
            return None
        if isinstance(times, int) and not self._in_order(parts, times):
            return None
        doubled = sum(len(part) - len({self.spots[at] for at in part}) for part in parts.values())
        volumes: dict[Hashable, list[Part]] = {}
        for key, part in parts.items():
            places = frozenset(self.spots[at] for at in part)
            alone = key if len(places) < len(part) else None
            volumes.setdefault((self.frames[part[0]].variant if by_variant else "", places, alone), []).append(part)
        found = _Option(list(volumes.values()), [], doubled, by_variant)
        found.verdicts = [self._verdict(volume[0]) for volume in found.volumes]
        self._leftovers(found)
        return found

    def _in_order(self, parts: Parts, moment: int) -> bool:
        """Whether ranks are times: as many at each place, or each over before the next begins; of one image type."""
        if any(len({self.frames[at].variant for at in part}) > 1 for part in parts.values()):
            return False
        if len({len(part) for part in parts.values()}) == 1:
            return True
        spans: dict[Hashable, list[tuple[float, float]]] = {}
        for (kind, _), part in parts.items():
            taken = [_time(self.frames[at], moment) for at in part]
            spans.setdefault(kind, []).append((min(taken), max(taken)))
        return all(one[1] < other[0] for taken in spans.values() for one, other in pairwise(sorted(taken)))

    def _verdict(self, part: Part) -> Verdict:
        found = problems([self.frames[at] for at in part])
        return found[0] if found else Verdict()

    def _ranks(self, keys: Sequence[Key], moment: int) -> list[int]:
        """Of each frame's time among those of its kind at its place; those at one time share a rank."""
        times: dict[Hashable, set[float]] = {}
        kinds: list[Hashable] = []
        for number, frame in enumerate(self.frames):
            kinds.append((self.spots[number], *(key(frame) for key in keys)))
            times.setdefault(kinds[-1], set()).add(_time(frame, moment))
        rank = {kind: {time: at for at, time in enumerate(sorted(values))} for kind, values in times.items()}
        return [rank[kinds[number]][_time(frame, moment)] for number, frame in enumerate(self.frames)]

    def _leftovers(self, option: _Option) -> None:
        """Judge times that have some of the places of others: they were cut short.

        Beside a single other one it tells no time: a slice was taken again, and nobody knows which is meant.
        """
        if not 1 < len(option.volumes) <= 64:
            return
        places = [{self.spots[at] for at in volume[0]} for volume in option.volumes]
        kinds = [{(_contrast(f), f.variant) for f in (self.frames[p[0]] for p in volume)} for volume in option.volumes]
        for one, volume in enumerate(option.volumes):
            for other, whole in enumerate(option.volumes):
                if places[one] < places[other] and kinds[one] & kinds[other]:
                    if len(whole) == 1:
                        option.doubled += sum(map(len, volume))
                    detail = f"cut short: {len(places[one])} of the {len(places[other])} slices of the times beside it"
                    option.verdicts[one] = Verdict("gap", detail)
                    break

    def options(self, plain: _Option) -> Iterator[_Option]:
        """All ways to tell the frames apart, the likeliest first; frames of two contrasts are never of one channel."""
        on_one_grid = not plain.doubled and plain.verdicts[0].status == "gap"  # slices are missing: no other volume's
        times: list[Key | int | None] = [None] if on_one_grid else list(self._times())
        contrast: list[Key] = [_contrast] if len(self.contrasts) > 1 else []
        for by_variant in (True, False) if len(self.variants) > 1 else (False,):
            keys = [_variant, *contrast] if by_variant else contrast
            yield from (option for time in times if (option := self.option(keys, time, by_variant)) is not None)

    def _times(self) -> Iterator[Key | int | None]:
        """The times and numbers in which frames differ: values that name a volume, then the order at each place."""
        yield None
        position, reference, trigger, acquired, direction = range(len(MOMENTS))
        for moment in (position, reference):
            if self._differ(moment):
                yield partial(_moment, moment)
        if len({frame.channel.acquisition for frame in self.frames}) > 1:
            yield lambda frame: frame.channel.acquisition
        for moment in (direction, trigger, acquired):
            if self._differ(moment):
                yield partial(_moment, moment)
        for moment in (trigger, acquired, reference):
            if self._differ(moment):
                yield moment

    def _differ(self, moment: int) -> bool:
        return len({_time(frame, moment) for frame in self.frames}) > 1


def _time(frame: Frame, moment: int) -> float:
    found = frame.moments[moment] if frame.moments else None
    return -1.0 if found is None else found


def _moment(moment: int, frame: Frame) -> Hashable:
    return frame.moments[moment] if frame.moments else None


def _variant(frame: Frame) -> Hashable:
    return frame.variant


def _contrast(frame: Frame) -> Hashable:
    """Echo time, b-value and gradient, rounded: a scanner may write a slice's a digit off."""
    key = frame.channel
    return (
        None if key.echo_time_ms is None else round(key.echo_time_ms, 2),
        None if key.b_value is None else round(key.b_value),
        None if key.gradient is None else tuple(round(part, 3) for part in key.gradient),
    )


def _spots(frames: Sequence[Frame]) -> list[int]:
    """A number for the place of each frame; the same where two lie at one."""
    positions = np.array([frame.position for frame in frames], dtype=np.float64)
    plane = np.array([frames[0].along_row, frames[0].along_column], dtype=np.float64)
    sides = (slice_positions(frames), *(positions @ plane.T).T)
    cells = np.stack([_cells(side) for side in sides], axis=1)
    return [int(number) for number in np.unique(cells, axis=0, return_inverse=True)[1].reshape(-1)]


def _cells(
    values: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """A number for each value; the same for those that follow each other within ``SAME_MM``."""
    order = np.argsort(values)
    found = np.empty(len(values), np.int64)
    found[order] = np.concatenate([[0], np.cumsum(np.diff(values[order]) > SAME_MM)])
    return found
