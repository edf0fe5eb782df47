"""A bundle in MLflow's model registry, so that ``mlflow.pyfunc.load_model("models:/NAME/1")`` predicts."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

import medlight
from medlight.deploy.bundle import DESCRIPTION, Bundle, sha256
from medlight.deploy.registered import OUTPUT, columns
from medlight.errors import UsageError
from medlight.tracking import store
from medlight.tracking.connection import reached

FOLDER = "model"  # among the run's artifacts; each bundle has a folder of its own in it
DIGEST = "medlight.bundle"  # tag of a version: digest of bundle.json, which has those of all its files
_LOADER = "medlight.deploy.registered"
_ALWAYS = {"id", "warnings", "error"}
_TEXTS = {*_ALWAYS, "label_map"}


def register(bundle: Bundle, name: str, run_id: str) -> str:
    """Register a bundle as the next version of a model, kept among the artifacts of its run; returns the version.

    The same bundle is registered once: its version is returned where it is there. What MLflow loads is the bundle's
    folder and a module of medlight: nothing is pickled, and torch is not needed.

    Raises UsageError for a name that MLflow does not take or a run that is not there.
    """
    if not name or any(sign in name for sign in "/:"):
        raise UsageError(f"model name {name!r}: MLflow takes neither '/' nor ':' in it, and no empty one")
    client = store.client()
    digest = sha256(bundle.root / DESCRIPTION)
    with reached():
        run = client.get_run(run_id)
        known = _version_of(client, name, digest)
        if known is not None:
            return known
        place = f"{FOLDER}/{digest[:12]}"
        with tempfile.TemporaryDirectory() as folder:
            saved = _save(bundle, Path(folder) / FOLDER)
            client.log_artifacts(run_id, str(saved), place)
        tags = {DIGEST: digest, "medlight.task": bundle.task, "medlight.checked": str(bundle.checked).lower()}
        version: Any = client.create_model_version(name, f"{run.info.artifact_uri}/{place}", run_id, tags)
        return str(version.version)


def signature(bundle: Bundle) -> ModelSignature:
    """Return what the registered model takes and gives, as MLflow shows and checks it."""
    channels = [str(channel) for channel in bundle.data["channels"]]
    several = [ColSpec(DataType.string, name, required=False) for name in channels if name != "image"]
    single = ColSpec(DataType.string, "image", required=len(channels) == 1)
    inputs: list[Any] = [
        single,
        *(several if len(channels) > 1 else []),
        ColSpec(DataType.string, "id", required=False),
    ]
    outputs: list[Any] = [
        ColSpec(DataType.string if name in _TEXTS else DataType.double, name, required=name in _ALWAYS)
        for name in columns(bundle)
    ]
    params = [ParamSpec("output", DataType.string, OUTPUT), ParamSpec("force", DataType.boolean, False)]
    return ModelSignature(Schema(inputs), Schema(outputs), ParamSchema(params))


def requirements(bundle: Bundle) -> list[str]:
    """Return what pip has to install to predict with a bundle: its own list where it has one."""
    own = bundle.root / "requirements.txt"
    listed = [line.strip() for line in own.read_text().splitlines()] if own.is_file() else ["onnxruntime", "numpy"]
    kept = [line for line in listed if line and not line.startswith(("#", "-", "medlight"))]
    return [f"medlight=={medlight.__version__}", *kept]


def _save(bundle: Bundle, folder: Path) -> Path:
    """Write the folder that MLflow loads."""
    from mlflow import pyfunc

    pyfunc.save_model(
        folder,
        loader_module=_LOADER,
        data_path=str(bundle.root),
        signature=signature(bundle),
        pip_requirements=requirements(bundle),
        metadata={"task": bundle.task, "run_id": bundle.run_id},
    )
    return folder


def _version_of(client: MlflowClient, name: str, digest: str) -> str | None:
    """Return the version that a bundle has, None where it has none; makes the model where it is not there."""
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    for version in client.search_model_versions(f"name = '{name}'"):
        if version.tags.get(DIGEST) == digest:
            return str(version.version)
    return None
