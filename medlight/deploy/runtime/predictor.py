"""From a scan as it was read to probabilities and a label map on the scan's own grid, with no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medlight.deploy.bundle import Bundle
from medlight.deploy.runtime.choice import Choice, chosen, fastest
from medlight.deploy.runtime.session import Session
from medlight.deploy.runtime.sliding import blended, fitted, joined
from medlight.errors import MedlightError
from medlight.prepare.normalise import Scaling, normaliser_from
from medlight.prepare.preparation import Preparation, PreparedArrays
from medlight.prepare.resample import restore
from medlight.prepare.slab_restore import SlabRestore
from medlight.scans.volume import Volume

Array = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a bundle says of one scan.

    probabilities: ``(L, I, J, K)`` on the prepared grid (segmentation), or ``(L,)`` (classification).
    affine: of the prepared grid.
    label: the label map ``(1, I, J, K)`` with the schema's values, on the input's own grid; None for classification.
    frames: of a clip, which lie along K of the prepared grid, and are ``frames`` label maps; 0 where it is none.
    """

    probabilities: Array
    affine: npt.NDArray[np.float64]
    label: Volume | None = None
    frames: int = 0


class Predictor:
    """Runs a bundle. The same input always gives the same output, whatever the number of windows in a batch.

    runtime: one line that says which runtime was picked and why.
    batch: windows in one run of the model.
    """

    def __init__(
        self,
        bundle: Bundle | Path | str,
        threads: int | None = None,
        batch: int | None = None,
        session: Session | None = None,
        model: str | None = None,
    ) -> None:
        """Load a bundle (a folder, or one already loaded).

        threads: of the CPU runtime; by default one for each CPU that this process may use.
        batch: windows in one run of the model; by default what was faster on this machine, 1 with a ``session``.
        session: what runs the network; by default the fastest of the bundle's models on this machine.
        model: the one to run instead, as ``runtime`` or ``runtime-precision`` (``openvino-int8``).
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(Path(bundle))
        if session is not None:
            choice = Choice(session, 1)
        else:
            choice = chosen(self.bundle, model, threads) if model else fastest(self.bundle, threads)
        self._session: Session = choice.session
        self.asked = model  # None: whichever is the fastest
        self.batch = batch or choice.batch
        self.preparation = Preparation(**self.bundle.data["preparation"])
        self._normalisers = [normaliser_from(spec) for spec in self.bundle.data["normalise"]]
        self.runtime = self._session.reason + (f", {self.batch} windows at once" if self.batch > 1 else "")

    def predict(
        self, scan: Volume | Mapping[str, Volume], progress: Progress | None = None, batch: int | None = None
    ) -> Prediction:
        """Predict one scan, or the contrasts of one examination (brought onto the first one's grid).

        progress: called with the windows done and their total. batch: windows in one run, where not as many as usual.
        Raises MedlightError where the scan does not fit the bundle: channels, dimensions, values that are not finite.
        """
        prepared, image, pad = self._prepared(scan)
        if self.bundle.task == "classification":
            return Prediction(self._classify(image, pad), prepared.affine)
        probabilities = joined(self._slabs(image, pad, progress, batch), prepared.image.shape[1:])
        label = self.label_map(probabilities, prepared)
        return Prediction(probabilities, prepared.affine, label, prepared.frames)

    def segment(
        self, scan: Volume | Mapping[str, Volume], progress: Progress | None = None, batch: int | None = None
    ) -> Volume:
        """Return the label map of `predict` alone, with no more of the probabilities in memory than is being worked on.

        Takes and raises what `predict` does.
        """
        prepared, image, pad = self._prepared(scan)
        slabs = self._slabs(image, pad, progress, batch)
        if prepared.frames:
            return self.label_map(joined(slabs, prepared.image.shape[1:]), prepared)
        found = self._empty(prepared)
        back = SlabRestore(prepared.affine, prepared.image.shape[1:], prepared.original_affine, prepared.original_shape)
        for slab in slabs:
            self._vote(back, slab, found.array[0])
        return found

    def label_map(self, probabilities: Array, prepared: PreparedArrays) -> Volume:
        """Bring probabilities to the input's grid and take the largest (sigmoid: the largest of those above 1/2).

        One label at a time: the input's grid may be far larger than the prepared one. A clip has a map for each frame.
        """
        found = self._empty(prepared)
        for number, label in enumerate(found.array):
            part = probabilities[..., number : number + 1] if prepared.frames else probabilities
            shape: Any = part.shape[1:]
            back = SlabRestore(prepared.affine, shape, prepared.original_affine, prepared.original_shape)
            self._vote(back, part, label)
        return found

    def _empty(self, prepared: PreparedArrays) -> Volume:
        largest = max(label.value for label in self.bundle.labels)
        kind = np.uint8 if largest <= np.iinfo(np.uint8).max else np.uint16
        return Volume(np.zeros((prepared.frames or 1, *prepared.original_shape), kind), prepared.original_affine)

    def _vote(self, back: SlabRestore, slab: Array, found: npt.NDArray[Any]) -> None:
        """Write the labels that win where a slab of probabilities ``(L, i, J, K)`` lies in the input's grid."""
        least = 0.5 if self.bundle.activation == "sigmoid" else 0.0
        for box, scores in back.add(slab, self._in_doubt):
            best, winner = np.empty(0, np.float32), np.empty(0, found.dtype)
            for label, score in zip(self.bundle.labels, scores, strict=True):
                if not best.size:  # laid out in memory as the scores are, which takes half the time
                    best, winner = np.full_like(score, least), np.zeros_like(score, found.dtype)
                better = score > best
                np.copyto(winner, label.value, where=better)
                np.copyto(best, score, where=better)
            found[box] = winner

    def _in_doubt(self, probabilities: Array) -> npt.NDArray[np.bool_]:
        """The voxels of ``(L, i, j, k)`` where some label but 0 may win, in themselves or between them and others.

        Interpolation is a mean: between voxels that are 0 for certain there is nothing else.
        """
        if self.bundle.activation == "sigmoid":
            found: npt.NDArray[np.bool_] = probabilities.max(axis=0) >= 0.49
        elif self.bundle.labels[0].value == 0:
            found = probabilities[0] <= 0.51
        else:
            found = np.ones(probabilities.shape[1:], bool)
        return found

    def probability_map(self, prediction: Prediction, scan: Volume) -> Volume:
        """Return the probabilities on the input's own grid, one channel a label; of a clip, one a label and frame."""
        spread = _apart(prediction.probabilities) if prediction.frames else prediction.probabilities
        return Volume(restore(spread, prediction.affine, scan.affine, scan.shape), scan.affine)

    def _prepared(self, scan: Volume | Mapping[str, Volume]) -> tuple[PreparedArrays, Array, list[float]]:
        """Return the prepared scan, what the graph takes (the same memory) and the value of padding in each channel."""
        volumes = dict(scan) if isinstance(scan, Mapping) else {"image": scan}
        self.check(volumes)
        described = not all(normaliser.per_voxel for normaliser in self._normalisers)
        prepared = self.preparation.prepare_volumes(volumes, described=described)
        image, pad = self._normalised(prepared)
        return prepared, image[..., 0] if self.bundle.data["spatial_dims"] == 2 else image, pad

    def _slabs(self, image: Array, pad: list[float], progress: Progress | None, batch: int | None) -> Iterator[Array]:
        """Probabilities ``(L, i, J, K)``, slab by slab along I."""
        window, flat = self.bundle.window, self.bundle.data["spatial_dims"] == 2
        options: dict[str, Any] = {"overlap": float(window["overlap"]), "batch": batch or self.batch}
        for slab in blended(image, window["size"], self._session, pad_value=pad, progress=progress, **options):
            yield slab[..., None] if flat else slab

    def check(self, volumes: dict[str, Volume]) -> None:
        """Raise MedlightError where scans can't be run: other channels or dimensions, values that are not finite."""
        frames = self.preparation.clip_frames(volumes) or 1
        expected = self.bundle.data["channels"]
        given = sum(len(volume.array) // frames for volume in volumes.values())
        if given != len(expected):
            names = ", ".join(map(str, expected))
            raise MedlightError(f"has {given} channels, but the bundle was trained on {len(expected)} ({names})")
        for name, volume in volumes.items():
            if self.bundle.data["spatial_dims"] == 2 and volume.shape[2] != 1:
                raise MedlightError(f"has {volume.shape[2]} slices, but the bundle was trained on 2D images")
            if volume.array.dtype.kind == "f" and not np.isfinite(volume.array).all():
                raise MedlightError(f"{name} has voxels that are not finite (NaN or infinite); replace them by 0, say")

    def _normalised(self, prepared: PreparedArrays) -> tuple[Array, list[float]]:
        """Return what the graph takes, and the value of each channel that padding (0 after normalising) has there."""
        specs: list[Any] = self._normalisers
        if len(specs) == 1:
            specs = specs * len(prepared.image)
        scalings: list[Scaling] = [n.scaling(stats) for n, stats in zip(specs, prepared.stats, strict=True)]
        if self.bundle.normalise_in_graph:
            return prepared.image, [scaling.shift for scaling in scalings]
        for scaling, channel in zip(scalings, prepared.image, strict=True):
            for plane in channel:  # in place: a second copy of a big scan may not fit
                plane[...] = scaling.apply(plane)
        return prepared.image, [0.0] * len(scalings)

    def _classify(self, image: Array, pad: list[float]) -> Array:
        return self._session(fitted(image, self.bundle.window["size"], pad)[None])[0]


def _apart(clip: Array) -> Array:
    """Take the frames of a clip ``(L, I, J, T)`` apart: ``(L * T, I, J, 1)``."""
    frames: Array = np.moveaxis(clip, -1, 1)
    return frames.reshape(-1, *clip.shape[1:3], 1)
