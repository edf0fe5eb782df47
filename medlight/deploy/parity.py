"""Does the bundle say what the trained network says? Measured on whole cases, each path from the input file on.

The torch path: the preparation of training, the task's own whole-case prediction, back to the scan's grid. The bundle's
path: the file is read and handed to the Predictor. They share no step but the reader and the resampling formulas.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medlight.deploy.runtime.dice import dice, mean
from medlight.deploy.runtime.predictor import Predictor
from medlight.errors import MedlightError
from medlight.prepare.case import Case
from medlight.prepare.normalise import normaliser_from
from medlight.prepare.preparation import Preparation, PreparedArrays
from medlight.prepare.reading import read_label_ref, read_ref
from medlight.prepare.resample import restore

if TYPE_CHECKING:
    from medlight.tasks import Task

TOLERANCE = 1e-4  # of fp32 probabilities
Array = npt.NDArray[Any]


class ParityError(MedlightError):
    """The bundle differs from the network; ``figures`` say by how much."""

    def __init__(self, message: str, figures: dict[str, Any]) -> None:
        super().__init__(message)
        self.figures = figures


@dataclass(frozen=True)
class CaseParity:
    """One case: difference of probabilities (largest and mean), share of equal labels, Dice of both against the truth.

    ``case`` is a digest of the case's id: ids are often file names, and those may name a patient.
    """

    case: str
    max_abs_diff: float
    mean_abs_diff: float
    label_agreement: float
    dice_torch: float | None = None
    dice_bundle: float | None = None

    @property
    def dice_diff(self) -> float | None:
        """How far the two Dice scores are apart."""
        if self.dice_torch is None or self.dice_bundle is None:
            return None
        return abs(self.dice_torch - self.dice_bundle)


def compare(
    task: Task, predictor: Predictor, cases: Sequence[Case], progress: Callable[[int, int], None] | None = None
) -> tuple[dict[str, Any], str]:
    """Run both paths over the cases; return the figures (plain values, for parity.json) and the worst case's id.

    Figures: checked, tolerance, passed, cases (how many), max_abs_diff, mean_abs_diff (of probabilities),
    label_agreement (share of voxels or cases), dice_diff (the largest, None without labels), worst_case, per_case.
    """
    rows = []
    for number, case in enumerate(cases):
        rows.append(_compare_case(task, predictor, case))
        if progress is not None:
            progress(number + 1, len(cases))
    worst = int(np.argmax([math.inf if math.isnan(row.max_abs_diff) else row.max_abs_diff for row in rows]))
    differences = [row.dice_diff for row in rows if row.dice_diff is not None]
    largest = rows[worst].max_abs_diff
    figures = {
        "checked": True,
        "runtime": predictor.runtime,
        "tolerance": TOLERANCE,
        "passed": largest <= TOLERANCE,
        "cases": len(rows),
        "max_abs_diff": largest,
        "mean_abs_diff": float(np.mean([row.mean_abs_diff for row in rows])),
        "label_agreement": float(np.mean([row.label_agreement for row in rows])),
        "dice_diff": max(differences) if differences else None,
        "worst_case": rows[worst].case,
        "per_case": [asdict(row) for row in rows],
    }
    return figures, cases[worst].id


def describe(figures: dict[str, Any], worst: str) -> str:
    """Return the figures in one line."""
    spread = f"probabilities differ by up to {figures['max_abs_diff']:.3g} (mean {figures['mean_abs_diff']:.3g})"
    scores = "" if figures["dice_diff"] is None else f", Dice by up to {figures['dice_diff']:.3g}"
    agreement = f"{100 * figures['label_agreement']:.4f} % of the labels agree"
    return f"{spread}{scores}; {agreement}; worst case {worst}, of {figures['cases']}"


def _compare_case(task: Task, predictor: Predictor, case: Case) -> CaseParity:
    prepared = Preparation(**task.data["preparation"]).prepare(case, predictor.bundle.labels)
    by_torch = torch_probabilities(task, prepared)
    scans = {name: read_ref(ref, predictor.preparation.mends) for name, ref in case.images.items()}
    prediction = predictor.predict(scans)
    by_bundle = prediction.probabilities
    if by_torch.shape != by_bundle.shape:
        raise MedlightError(f"{case.id}: torch gives {by_torch.shape} and the bundle {by_bundle.shape}")
    difference = np.abs(by_torch - by_bundle)
    figures: dict[str, Any] = {
        "case": hashlib.sha256(case.id.encode()).hexdigest()[:12],
        "max_abs_diff": float(difference.max()),
        "mean_abs_diff": float(difference.mean(dtype=np.float64)),
    }
    if prediction.label is None:
        agreement = float((by_torch.argmax() == by_bundle.argmax()) if len(by_torch) > 1 else 1.0)
        return CaseParity(**figures, label_agreement=agreement)
    expected = _torch_labels(task, by_torch, prepared)
    got = prediction.label.array
    figures["label_agreement"] = float(np.mean(expected == got))
    if case.label is not None:
        truth = read_label_ref(case.label, next(iter(scans.values())), predictor.bundle.labels).array
        for name, labels in (("dice_torch", expected), ("dice_bundle", got)):
            score = mean(dice(labels, truth, predictor.bundle.labels).values())
            figures[name] = None if math.isnan(score) else score
    return CaseParity(**figures)


def torch_probabilities(task: Task, prepared: PreparedArrays) -> Array:
    """Run a prepared case through the task as validation does; returns ``(L, I, J, K)`` or ``(L,)``."""
    import torch

    specs = task.data["normalise"]
    specs = specs * len(prepared.image) if len(specs) == 1 else specs
    channels = zip(specs, prepared.image, prepared.stats, strict=True)
    image = np.stack([normaliser_from(spec).scaling(stats).apply(channel) for spec, channel, stats in channels])
    tensor = torch.from_numpy(image)
    if task.kind == "classification":
        tensor = _fitted(tensor, [int(n) for n in task.data["patch_size"]])
    if task.data["spatial_dims"] == 2:
        tensor = tensor[..., 0]
    found = task.predict_case({"image": tensor[None]})[0].cpu().numpy()
    return found if found.ndim == 1 else found.reshape(len(found), *prepared.image.shape[1:])


def _fitted(image: Any, size: Sequence[int]) -> Any:
    """Bring a whole image to the size that classification is trained on, by the data module's own code."""
    from medlight.data.patches import Window, cut

    shape = image.shape[1:]
    i, j, k = (-((side - n) // 2) for side, n in zip([*size, 1][:3], shape, strict=True))
    a, b, c = [*size, 1][:3]
    return cut(image, Window((i, j, k), (a, b, c)))


def _torch_labels(task: Task, probabilities: Array, prepared: PreparedArrays) -> Array:
    """Return the label map on the scan's own grid: probabilities restored, the largest taken; one a frame of a clip."""
    values = np.array([int(label["value"]) for label in task.data["labels"]])
    frames = [probabilities[..., n : n + 1] for n in range(prepared.frames)] or [probabilities]
    maps = []
    for frame in frames:
        restored = restore(frame, prepared.affine, prepared.original_affine, prepared.original_shape)
        labels = values[restored.argmax(axis=0)]
        if task.activation == "sigmoid":
            labels[restored.max(axis=0) <= 0.5] = 0
        maps.append(labels)
    return np.stack(maps)
