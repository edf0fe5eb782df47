"""The channels of a 4D stack: their order, and what each shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from medlight.scans.dicom.frames import MOMENTS, ChannelKey, Frame

_POSITION = MOMENTS.index("position")
# Where several say when a channel was taken, the first that differs between channels is believed: a PET frame's own
# time, the time after the heart beat, the clock.
_CLOCKS = ("reference", "trigger", "acquired")


def keyed(channels: list[list[Frame]]) -> tuple[tuple[ChannelKey, ...], list[Frame]]:
    """Sort channels by time, then echo, b-value and gradient; return their keys, and the frames channel by channel.

    Times are in milliseconds; those of a clock count from the earliest channel, so that no time of day is kept.
    """
    if len(channels) == 1:
        key = channels[0][0].channel
        return (replace(key, acquisition=None, time_ms=None),), channels[0]
    times = _times(channels)
    positions = [_only([frame.moments[_POSITION] if frame.moments else None for frame in one]) for one in channels]
    keys = [_key(one, time, place) for one, time, place in zip(channels, times, positions, strict=True)]
    order = sorted(range(len(channels)), key=lambda at: _rank(keys[at], positions[at]))
    return tuple(keys[at] for at in order), [frame for at in order for frame in channels[at]]


def _only(values: Sequence[float | None]) -> float | None:
    """The one value that all have, None where they differ."""
    return values[0] if len(set(values)) == 1 else None


def _times(channels: Sequence[Sequence[Frame]]) -> list[float | None]:
    for name in _CLOCKS:
        at = MOMENTS.index(name)
        taken = [[frame.moments[at] if frame.moments else None for frame in one] for one in channels]
        known = [[value for value in values if value is not None] for values in taken]
        if all(known) and len(first := {min(values) for values in known}) > 1:
            start = min(first) if name == "acquired" else 0.0
            return [round(min(values) - start, 3) for values in known]
    return [None] * len(channels)


def _key(frames: Sequence[Frame], time: float | None, position: float | None) -> ChannelKey:
    """A channel's key; the number of its temporal position stands for an acquisition number that is none."""
    acquisition = _only([frame.channel.acquisition for frame in frames])
    if position is not None:
        acquisition = position
    whole = None if acquisition is None else int(acquisition)
    return replace(frames[0].channel, time_ms=time, acquisition=whole)


def _rank(key: ChannelKey, position: float | None) -> tuple[float, float, float, float, float, tuple[float, ...]]:
    return (
        position or 0,
        key.time_ms or 0,
        key.acquisition or 0,
        key.echo_time_ms or 0,
        key.b_value or 0,
        key.gradient or (),
    )
