"""Answers a benchmark over standard input and output: how many patches a loader gives in so many seconds.

Needs nothing but the standard library, so that peers in environments of their own can use it.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PATCH = (40, 56, 40)
BATCH = 6
FOREGROUND = 0.33  # share of patches centred on a foreground voxel, where the peer can do that


def arguments() -> argparse.Namespace:
    """What every peer is told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--labels", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True, help="where prepared data may be kept")
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--transforms", choices=["full", "lean"], required=True)
    return parser.parse_args()


def serve(batches: Iterator[object], size_of: Callable[[object], tuple[int, ...]]) -> None:
    """For each line with a number of seconds, write one with the patches per second.

    size_of: the shape of a batch's images, which must be ``(BATCH, 1, *PATCH)``.
    """
    shape = tuple(size_of(next(batches)))
    assert shape == (BATCH, 1, *PATCH), shape
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        seconds = float(line)
        _count(batches, seconds / 4)  # what was loaded ahead while others had their turn isn't counted
        start = time.perf_counter()
        patches = _count(batches, seconds)
        print(json.dumps(patches / (time.perf_counter() - start)), flush=True)


def _count(batches: Iterator[object], seconds: float) -> int:
    end, patches = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        next(batches)
        patches += BATCH
    return patches
