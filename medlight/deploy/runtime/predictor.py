"""From a scan as it was read to probabilities and a label map on the scan's own grid, with no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from medlight.deploy.bundle import Bundle
from medlight.deploy.runtime.session import OnnxSession, Session
from medlight.deploy.runtime.sliding import fitted, sliding_window
from medlight.errors import MedlightError
from medlight.prepare.normalise import Scaling, normaliser_from
from medlight.prepare.preparation import Preparation, PreparedArrays
from medlight.prepare.resample import restore
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
    """

    def __init__(
        self, bundle: Bundle | Path | str, threads: int | None = None, batch: int = 1, session: Session | None = None
    ) -> None:
        """Load a bundle (a folder, or one already loaded).

        threads: of the CPU runtime; by default one for each CPU that this process may use.
        batch: windows in one run of the model.
        session: what runs the network; by default the bundle's ONNX model in onnxruntime.
        """
        self.bundle = bundle if isinstance(bundle, Bundle) else Bundle.load(Path(bundle))
        self._session: Session = session or OnnxSession(self.bundle, threads)
        self._batch = batch
        self.preparation = Preparation(**self.bundle.data["preparation"])
        self._normalisers = [normaliser_from(spec) for spec in self.bundle.data["normalise"]]
        self.runtime = self._session.reason

    def predict(self, scan: Volume | Mapping[str, Volume], progress: Progress | None = None) -> Prediction:
        """Predict one scan, or the contrasts of one examination (brought onto the first one's grid).

        progress: called with the windows done and their total.
        Raises MedlightError where the scan does not fit the bundle: channels, dimensions, values that are not finite.
        """
        volumes = dict(scan) if isinstance(scan, Mapping) else {"image": scan}
        self._check(volumes)
        prepared = self.preparation.prepare_volumes(volumes)
        image, pad = self._normalised(prepared)
        if self.bundle.data["spatial_dims"] == 2:
            image = image[..., 0]
        if self.bundle.task == "classification":
            return Prediction(self._classify(image, pad), prepared.affine)
        window = self.bundle.window
        probabilities = sliding_window(
            image,
            window["size"],
            self._session,
            overlap=float(window["overlap"]),
            batch=self._batch,
            pad_value=pad,
            progress=progress,
        )
        probabilities = probabilities.reshape(len(probabilities), *prepared.image.shape[1:])
        label = self.label_map(probabilities, prepared)
        return Prediction(probabilities, prepared.affine, label, prepared.frames)

    def label_map(self, probabilities: Array, prepared: PreparedArrays) -> Volume:
        """Bring probabilities to the input's grid and take the largest (sigmoid: the largest of those above 1/2).

        One label at a time: the input's grid may be far larger than the prepared one. A clip has a map for each frame.
        """
        values = [label.value for label in self.bundle.labels]
        kind = np.uint8 if max(values) <= np.iinfo(np.uint8).max else np.uint16
        shape = (prepared.frames or 1, *prepared.original_shape)
        found = np.zeros(shape, kind)
        best = np.full(shape, 0.5 if self.bundle.activation == "sigmoid" else 0.0, np.float32)
        for index, value in enumerate(values):
            score = probabilities[index : index + 1]
            score = _apart(score) if prepared.frames else score
            score = restore(score, prepared.affine, prepared.original_affine, prepared.original_shape)
            better = score > best
            found[better] = value
            best[better] = score[better]
        return Volume(found, prepared.original_affine)

    def probability_map(self, prediction: Prediction, scan: Volume) -> Volume:
        """Return the probabilities on the input's own grid, one channel a label; of a clip, one a label and frame."""
        spread = _apart(prediction.probabilities) if prediction.frames else prediction.probabilities
        return Volume(restore(spread, prediction.affine, scan.affine, scan.shape), scan.affine)

    def _check(self, volumes: dict[str, Volume]) -> None:
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
        channels = [scaling.apply(channel) for scaling, channel in zip(scalings, prepared.image, strict=True)]
        return np.stack(channels), [0.0] * len(channels)

    def _classify(self, image: Array, pad: list[float]) -> Array:
        return self._session(fitted(image, self.bundle.window["size"], pad)[None])[0]


def _apart(clip: Array) -> Array:
    """Take the frames of a clip ``(L, I, J, T)`` apart: ``(L * T, I, J, 1)``."""
    frames: Array = np.moveaxis(clip, -1, 1)
    return frames.reshape(-1, *clip.shape[1:3], 1)
