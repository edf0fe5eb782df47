"""Does each model of a bundle say what the trained network says? Measured on whole cases, from the input file on.

The torch path: the preparation of training, the task's own whole-case prediction, back to the scan's grid. The bundle's
path: the file is read and handed to the Predictor. They share no step but the reader and the resampling formulas.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from medlight.deploy.runtime.dice import dice, mean
from medlight.deploy.runtime.predictor import Predictor
from medlight.errors import MedlightError
from medlight.prepare.case import Case, Label
from medlight.prepare.normalise import normaliser_from
from medlight.prepare.preparation import Preparation, PreparedArrays
from medlight.prepare.reading import read_label_ref, read_ref
from medlight.prepare.resample import restore
from medlight.scans.volume import Volume

if TYPE_CHECKING:
    from medlight.tasks import Task

TOLERANCE = {"fp32": 1e-4, "fp16": 0.002, "bf16": 0.002, "int8": 0.005}
"""By precision: fp32 of any probability; the others of the mean Dice, or of the AUROC, over the cases."""
OVERLAP = 0.8
"""Least mean Dice of a lower precision's label maps against torch's, whatever the scores: where a network finds little,
one that finds nothing any more scores alike. Trained networks had 0.98 and above in INT8."""
SCORES = {
    "dice": "mean Dice",
    "agreement": "Dice of the label maps against torch's",
    "auroc": "AUROC",
    "probability": "mean probability",
}

Array = npt.NDArray[Any]
Figures = dict[str, Any]


class ParityError(MedlightError):
    """The bundle differs from the network; ``figures`` say by how much."""

    def __init__(self, message: str, figures: dict[str, Any]) -> None:
        super().__init__(message)
        self.figures = figures


@dataclass(frozen=True)
class CaseParity:
    """One case: difference of probabilities (largest and mean), share of equal labels, Dice of both against the truth.

    ``case`` is what runs call it, see `recorded_name`. ``dice_maps`` is the Dice of the two label maps, one against the
    other. The last three are of classification, and not written down.
    """

    case: str
    max_abs_diff: float
    mean_abs_diff: float
    label_agreement: float
    dice_torch: float | None = None
    dice_bundle: float | None = None
    dice_maps: float | None = None
    target: int | tuple[float, ...] | None = None
    by_torch: tuple[float, ...] = ()
    by_bundle: tuple[float, ...] = ()

    @property
    def dice_diff(self) -> float | None:
        """How far the two Dice scores are apart."""
        if self.dice_torch is None or self.dice_bundle is None:
            return None
        return abs(self.dice_torch - self.dice_bundle)

    def written(self) -> dict[str, Any]:
        """Return what goes to parity.json."""
        return {name: value for name, value in asdict(self).items() if name not in ("target", "by_torch", "by_bundle")}


def compare(
    task: Task,
    predictors: Mapping[str, tuple[str, Predictor]],
    cases: Sequence[Case],
    progress: Callable[[int, int], None] | None = None,
    recorded: Mapping[str, str] | None = None,
) -> dict[str, Figures]:
    """Run the network and every model over the cases.

    predictors: by the model's name, its precision and what runs it. torch runs once a case.
    recorded: what runs call the cases, by id (`ScanDataModule.recorded`).

    Returns the figures of each model (plain values, for parity.json): runtime, precision, tolerance, passed, cases (how
    many), max_abs_diff, mean_abs_diff (of probabilities), label_agreement (share of voxels or cases), score and
    score_diff (see `_score`), dice_diff (the largest of a case) and dice (means of torch and of the model; both None
    without labels), overlap (mean Dice of the two label maps; None for classification), auroc_diff and auroc (of a
    class, and over the classes; None for segmentation, or where no class has cases on both sides), worst_case (with the
    largest difference, as runs call it), per_case.
    """
    rows: dict[str, list[CaseParity]] = {name: [] for name in predictors}
    for number, case in enumerate(cases):
        name = recorded_name(case, recorded or {})
        expected = _Expected.of(task, case, name, next(iter(predictors.values()))[1])
        for model, (_, predictor) in predictors.items():
            rows[model].append(expected.compared(predictor))
        if progress is not None:
            progress(number + 1, len(cases))
    figures = {}
    for model, (precision, predictor) in predictors.items():
        index = int(np.argmax([math.inf if math.isnan(row.max_abs_diff) else row.max_abs_diff for row in rows[model]]))
        figures[model] = {"runtime": predictor.runtime, **_figures(precision, rows[model], index)}
    return figures


def recorded_name(case: Case, recorded: Mapping[str, str]) -> str:
    """Return what runs call a case; where they don't know it, a digest of an id that may be a patient's name."""
    unknown = hashlib.sha256(os.fsencode(case.id)).hexdigest()[:12] if case.private else case.id
    return recorded.get(case.id, unknown)


def _figures(precision: str, rows: list[CaseParity], worst: int) -> Figures:
    tolerance, largest = TOLERANCE[precision], rows[worst].max_abs_diff
    score, apart = _score(rows)
    aurocs = _aurocs(rows)
    differences = [row.dice_diff for row in rows if row.dice_diff is not None]
    overlap = _overlap(rows)
    passed = (
        largest <= tolerance if precision == "fp32" else apart <= tolerance and (overlap is None or overlap >= OVERLAP)
    )
    return {
        "checked": True,
        "precision": precision,
        "tolerance": tolerance,
        "passed": passed,
        "cases": len(rows),
        "max_abs_diff": largest,
        "mean_abs_diff": float(np.mean([row.mean_abs_diff for row in rows])),
        "label_agreement": float(np.mean([row.label_agreement for row in rows])),
        "score": score,
        "score_diff": apart,
        "dice_diff": max(differences) if differences else None,
        "dice": _mean_dice(rows),
        "overlap": overlap,
        "auroc_diff": max((abs(one - other) for one, other in aurocs), default=None),
        "auroc": _means(aurocs),
        "worst_case": rows[worst].case,
        "per_case": [row.written() for row in rows],
    }


def _mean_dice(rows: list[CaseParity]) -> dict[str, float] | None:
    """Return the mean Dice of torch and of the bundle over the labelled cases; None without labels."""
    return _means(
        [(r.dice_torch, r.dice_bundle) for r in rows if r.dice_torch is not None and r.dice_bundle is not None]
    )


def _overlap(rows: list[CaseParity]) -> float | None:
    maps = [row.dice_maps for row in rows if row.dice_maps is not None]
    return float(np.mean(maps)) if maps else None


def _means(pairs: list[tuple[float, float]]) -> dict[str, float] | None:
    if not pairs:
        return None
    of_torch, of_bundle = np.mean(pairs, axis=0)
    return {"torch": float(of_torch), "bundle": float(of_bundle)}


def _score(rows: list[CaseParity]) -> tuple[str, float]:
    """Return what a lower precision is judged by, and how far the model is from torch in it.

    ``dice``: of the mean Dice of labelled cases. ``agreement``: 1 minus the mean Dice of the model's label maps against
    torch's, where there are no labels. ``auroc``: the largest difference of a class. ``probability``: the mean
    difference of probabilities, where the cases are of one class only.
    """
    if (means := _mean_dice(rows)) is not None:
        return "dice", abs(means["torch"] - means["bundle"])
    if (overlap := _overlap(rows)) is not None:
        return "agreement", 1 - overlap
    if found := _aurocs(rows):
        return "auroc", max(abs(one - other) for one, other in found)
    return "probability", float(np.mean([row.mean_abs_diff for row in rows]))


def _aurocs(rows: list[CaseParity]) -> list[tuple[float, float]]:
    """Return each class' AUROC by torch and by the model; classes without cases on both sides are left out."""
    import torch
    from torchmetrics.functional.classification import binary_auroc

    found = []
    for index in range(len(rows[0].by_torch)):
        known = [row for row in rows if row.target is not None]
        truth = [int(row.target[index] if isinstance(row.target, tuple) else row.target == index) for row in known]
        if len(set(truth)) == 2:
            both = [[row.by_torch[index] for row in known], [row.by_bundle[index] for row in known]]
            one, other = (float(binary_auroc(torch.tensor(scores), torch.tensor(truth))) for scores in both)
            found.append((one, other))
    return found


def describe(figures: Figures) -> str:
    """Return the figures in one line."""
    spread = f"probabilities differ by up to {figures['max_abs_diff']:.3g} (mean {figures['mean_abs_diff']:.3g})"
    scores = "" if figures["dice_diff"] is None else f", Dice by up to {figures['dice_diff']:.3g}"
    if figures["precision"] != "fp32":
        scores += f", the {SCORES[figures['score']]} by {figures['score_diff']:.3g}"
        scores += (
            "" if figures["overlap"] is None else f", the label maps' Dice against torch's is {figures['overlap']:.3g}"
        )
    agreement = f"{100 * figures['label_agreement']:.4f} % of the labels agree"
    return f"{spread}{scores}; {agreement}; worst case {figures['worst_case']}, of {figures['cases']}"


def allowed(figures: Figures) -> str:
    """Return what the figures were judged by."""
    least = figures["precision"] != "fp32" and figures["overlap"] is not None
    return f"tolerance {figures['tolerance']:g}{f', label maps at least {OVERLAP:g}' if least else ''}"


@dataclass(frozen=True)
class _Expected:
    """What the network says of a case, what runs call it, and what its scan and its truth are."""

    case: Case
    name: str
    scans: dict[str, Volume]
    probabilities: Array
    labels: Array | None
    truth: Array | None
    schema: Sequence[Label]

    @classmethod
    def of(cls, task: Task, case: Case, name: str, like: Predictor) -> _Expected:
        """Run the network on a case."""
        schema = like.bundle.labels
        prepared = Preparation(**task.data["preparation"]).prepare(case, schema)
        probabilities = torch_probabilities(task, prepared)
        scans = {name: read_ref(ref, like.preparation.mends) for name, ref in case.images.items()}
        if task.kind == "classification":
            return cls(case, name, scans, probabilities, None, None, schema)
        labels, truth = _torch_labels(task, probabilities, prepared), None
        if case.label is not None:
            truth = read_label_ref(case.label, next(iter(scans.values())), schema).array
        return cls(case, name, scans, probabilities, labels, truth, schema)

    def compared(self, predictor: Predictor) -> CaseParity:
        """Predict the case and compare."""
        prediction, case = predictor.predict(self.scans), self.case
        expected, got = self.probabilities, prediction.probabilities
        if expected.shape != got.shape:
            raise MedlightError(f"{self.name}: torch gives {expected.shape} and the bundle {got.shape}")
        difference = np.abs(expected - got)
        row = CaseParity(
            case=self.name,
            max_abs_diff=float(difference.max()),
            mean_abs_diff=float(difference.mean(dtype=np.float64)),
            label_agreement=float((expected.argmax() == got.argmax()) if len(expected) > 1 else 1.0),
        )
        if self.labels is None or prediction.label is None:
            by_torch, by_bundle = tuple(map(float, expected)), tuple(map(float, got))
            return replace(row, target=case.target, by_torch=by_torch, by_bundle=by_bundle)
        labels = prediction.label.array
        row = replace(row, label_agreement=float(np.mean(self.labels == labels)))
        row = replace(row, dice_maps=self._dice(labels, self.labels))
        if self.truth is None:
            return row
        return replace(row, dice_torch=self._dice(self.labels, self.truth), dice_bundle=self._dice(labels, self.truth))

    def _dice(self, labels: Array, truth: Array) -> float | None:
        score = mean(dice(labels, truth, self.schema).values())
        return None if math.isnan(score) else score


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
