"""The bundle: a folder with ``bundle.json`` and model files, and nothing else needed to predict.

``bundle.json`` says how an input becomes what the network was trained on (spacing, orientation, normaliser), how
windows are blended, what comes out, which files hold the network, with what tools they were made and how they compare
with it.
One file may serve several runtimes. Digests guard the files and the description itself: a bundle that was altered is
refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medlight.errors import MedlightError, UsageError
from medlight.prepare.case import Label

SCHEMA_VERSION = 2
_READ = (1, 2)  # what 2 added (kept, digests) is empty in 1
DESCRIPTION = "bundle.json"
PARITY = "parity.json"  # figures of each case of the comparison with the trained network
TASKS = ("segmentation", "classification")
_KINDS = {"dict": dict, "list": list, "str": str, "bool": bool}
_AGAIN = "mend: export it again with medlight export"


@dataclass(frozen=True)
class Model:
    """One file that holds the network.

    runtime: ``onnxruntime``, ``openvino``, ``tensorrt`` or ``torch``.
    precision: of its weights and sums: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
    dynamic_axes: names of the input's axes whose size is free (``batch``, ``i``, ``j``, ``k``).
    size_multiple: a free spatial size must be a multiple of this.
    engine: of a TensorRT engine, what it was built with and for.
    kept: layers of an INT8 graph that stay in float32, for INT8 would cost too much there.
    """

    file: str
    runtime: str
    precision: str
    sha256: str
    dynamic_axes: list[str]
    size_multiple: int
    engine: dict[str, Any] | None = None
    kept: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What it is called where one of several is meant: ``openvino-int8``."""
        return f"{self.runtime}-{self.precision}"


@dataclass(frozen=True)
class Bundle:
    """A deployable model; the fields are the keys of ``bundle.json``.

    data: the data's signature (spatial_dims, channels, labels, classes, preparation, normalise, patch_size; where the
        training scans tell: modalities, and spacing_range in mm).
    activation: ``softmax`` or ``sigmoid``, inside the graph: models give probabilities.
    window: size in voxels of the prepared grid, overlap (0 to 1) and blending mode.
    normalise_in_graph: the graph takes the scanner's own values; otherwise the predictor normalises with the
        statistics of the whole scan.
    models: what can be run; the first is the network in float32 for onnxruntime, which all others are made from.
    network: parameters, floating-point operations of one window, share of channels that were pruned.
    parity: figures of the comparison with the trained network; empty before it was made.
    digests: SHA-256 of the files beside the models that predicting does without (parity.json, requirements.txt, reports
        of engines); one may be taken away, but not altered. Empty in bundles of earlier days.
    """

    root: Path
    task: str
    data: dict[str, Any]
    activation: str
    outputs: list[str]
    window: dict[str, Any]
    normalise_in_graph: bool
    models: list[Model]
    tools: dict[str, str]
    network: dict[str, Any] = field(default_factory=dict)
    run_id: str | None = None
    parity: dict[str, Any] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @classmethod
    def load(cls, path: Path) -> Bundle:
        """Read a bundle folder and check every digest.

        Raises UsageError where the folder holds no bundle or one of another schema version, MedlightError where a
        file is missing or was altered; both name the file and the mend.
        """
        root = Path(path)
        text = _description(root)
        if text.get("schema_version") not in _READ:
            raise UsageError(
                f"{root / DESCRIPTION}: schema_version {text.get('schema_version')!r} is none of those that "
                f"this medlight reads ({', '.join(map(str, _READ))}); mend: use the medlight that wrote it, "
                "or export the run again"
            )
        if text.pop("digest", None) != _digest(text):
            raise MedlightError(f"{root / DESCRIPTION} was altered after the export (its digest differs); {_AGAIN}")
        try:
            models = [Model(**entry) for entry in text.pop("models")]
            bundle = cls(root=root, models=models, **text)
        except (KeyError, TypeError) as error:
            raise MedlightError(f"{root / DESCRIPTION}: not a bundle's description ({error}); {_AGAIN}") from None
        bundle._check_kinds()
        files = [*(model.file for model in models), *bundle.digests]
        if not models or any(Path(file).name != file for file in files):
            raise MedlightError(f"{root / DESCRIPTION}: names no models, or files outside of the bundle; {_AGAIN}")
        for model in models:
            bundle._check(model.file, model.sha256)
        for name, digest in bundle.digests.items():
            if (root / name).exists():
                bundle._check(name, digest)
        return bundle

    def save(self) -> None:
        """Write ``bundle.json`` with its own digest."""
        text = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "root"}
        text["models"] = [dataclasses.asdict(model) for model in self.models]
        text = json.loads(json.dumps(text))
        text["digest"] = _digest(text)
        (self.root / DESCRIPTION).write_text(json.dumps(text, indent=2) + "\n")

    @property
    def labels(self) -> tuple[Label, ...]:
        """The schema of the label maps."""
        return tuple(
            Label(
                int(e["value"]),
                str(e["name"]),
                e.get("colour"),
                tuple(e["code"]) if e.get("code") else None,
                e.get("order"),
            )
            for e in self.data.get("labels", [])
        )

    @property
    def checked(self) -> bool:
        """Whether it was compared with the trained network, and the figures are there."""
        return bool(self.parity.get("checked")) and (self.root / PARITY).is_file()

    def model(self, name: str) -> Model:
        """Return a model by its name or its runtime's, the first that fits; UsageError says which there are."""
        for model in self.models:
            if name in (model.name, model.runtime):
                return model
        there = ", ".join(model.name for model in self.models) or "none"
        raise UsageError(f"{self.root}: no model {name!r} (there: {there}); mend: name one of them, or export it")

    def _check_kinds(self) -> None:
        for field_ in dataclasses.fields(self):
            value, kind = getattr(self, field_.name), _KINDS.get(field_.type.partition("[")[0])
            if kind and not isinstance(value, kind):
                what = f"{field_.name} is {value!r:.40}, no {kind.__name__}"
                raise MedlightError(f"{self.root / DESCRIPTION}: not a bundle's description ({what}); {_AGAIN}")
        if self.task not in TASKS:
            what = f"task {self.task!r} is none of those that are predicted: {', '.join(TASKS)}"
            raise MedlightError(f"{self.root / DESCRIPTION}: {what}; {_AGAIN}")

    def _check(self, name: str, digest: str) -> None:
        file = self.root / name
        if not file.is_file():
            raise MedlightError(f"{file} is missing from the bundle; {_AGAIN}")
        if sha256(file) != digest:
            raise MedlightError(f"{file} was altered after the export (its digest differs); {_AGAIN}")


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file's bytes in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _description(root: Path) -> dict[str, Any]:
    file = root / DESCRIPTION
    if root.is_file():
        raise UsageError(f"{root}: is a file; mend: name the bundle's folder, which export wrote")
    if not file.is_file():
        raise UsageError(f"{root}: no bundle here ({DESCRIPTION} is missing); mend: name a folder that export wrote")
    try:
        text = json.loads(file.read_text())
    except ValueError as error:
        raise MedlightError(f"{file}: not valid JSON ({error}); {_AGAIN}") from None
    if not isinstance(text, dict):
        raise MedlightError(f"{file}: not a bundle's description; {_AGAIN}")
    return text


def _digest(text: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()
