"""Patches of the training cases, as the exported graph takes them, to find the ranges of its tensors on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from medlight.data.patches import Triple, Window, place
from medlight.data.sampler import case_of
from medlight.errors import UsageError
from medlight.prepare import PreparedCase, normaliser_from

Array = npt.NDArray[np.float32]


def calibration_batches(
    cases: Sequence[PreparedCase], signature: Mapping[str, Any], count: int = 16, seed: int = 0
) -> list[Array]:
    """Return ``count`` batches of one patch each, float32 ``(1, C, *window)``; the same ones for the same seed.

    cases: prepared training cases (``data.prepared["train"]``); each is taken about equally often.
    signature: that of the task (`Task.signature`): its window, its normalisers, and whether the graph normalises
        itself, in which case the patches keep the scanner's own values.

    For segmentation every second patch is centred on a random voxel of a random label that the case has, and the
    others lie anywhere, as windows of a whole scan do; for classification the whole image is brought to the window's
    size. Raises UsageError where there is no case.
    """
    if not cases:
        raise UsageError("there is no training case to calibrate INT8 on; mend: name data that has some")
    return [_patch(cases[case_of(seed, draw, len(cases))], signature, seed, draw) for draw in range(count)]


def _patch(case: PreparedCase, signature: Mapping[str, Any], seed: int, draw: int) -> Array:
    rng = np.random.default_rng([seed, draw])
    i, j, k = (*signature["window"]["size"], 1)[:3]
    size: Triple = (int(i), int(j), int(k))
    a, b, c = case.shape[-3:]
    shape: Triple = (a, b, c)
    if signature["task"] == "classification":
        low = [-((side - n) // 2) for side, n in zip(size, shape, strict=True)]
        window = Window((low[0], low[1], low[2]), size)
    else:
        window = place(size, shape, rng, _centre(case, rng) if draw % 2 else None)
    patch = _read(case, window.inside(shape), window, signature)
    return (patch[..., 0] if signature["data"]["spatial_dims"] == 2 else patch)[None]


def _read(case: PreparedCase, slab: Window, window: Window, signature: Mapping[str, Any]) -> Array:
    """Read the part of a window that lies in the image; around it is what padding is to the network: 0, normalised."""
    specs = list(signature["data"]["normalise"])
    specs = specs * len(case.stats) if len(specs) == 1 else specs
    scalings = [normaliser_from(spec).scaling(stats) for spec, stats in zip(specs, case.stats, strict=True)]
    inner = slab.seen_from(window).slices
    patch = np.zeros((len(scalings), *window.size), np.float32)
    for channel, (values, scaling) in enumerate(zip(case.image_slab(slab.slices), scalings, strict=True)):
        if signature["normalise_in_graph"]:
            patch[channel] = scaling.shift
            patch[channel][inner] = values
        else:
            patch[channel][inner] = scaling.apply(values)
    return patch


def _centre(case: PreparedCase, rng: np.random.Generator) -> npt.NDArray[np.integer[Any]] | None:
    """Return a random voxel of a random label that the case has; None where it has none."""
    present = [value for value, voxels in sorted(case.counts.items()) if value and voxels]
    if not present:
        return None
    voxels = case.foreground(present[int(rng.integers(len(present)))])
    return voxels[int(rng.integers(len(voxels)))] if len(voxels) else None
