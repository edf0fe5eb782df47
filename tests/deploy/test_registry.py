"""Registered bundles: loaded by MLflow in a process of their own, which needs no torch."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medlight.deploy.bundle import Bundle
from medlight.deploy.export import export
from medlight.deploy.registered import columns
from medlight.deploy.registry import register, requirements, signature
from medlight.deploy.runtime import Predictor
from medlight.errors import MedlightError, UsageError
from medlight.scans import Volume, read, write_nifti
from medlight.tracking import store
from tests.deploy import trained

PREDICT = """
import json, sys
import mlflow.pyfunc
import pandas as pd

rows, params, uri = json.loads(sys.argv[1])
model = mlflow.pyfunc.load_model(uri)
found = model.predict(pd.DataFrame(rows), params=params)
assert "torch" not in sys.modules and "lightning" not in sys.modules
inputs = model.metadata.get_input_schema().input_names()
print("RESULT", json.dumps({"rows": found.to_dict("records"), "inputs": inputs}))
"""


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> tuple[trained.Trained, Bundle]:
    root = tmp_path_factory.mktemp("segmentation")
    made = trained.segmentation(root, channels=2)
    return made, export(made.checkpoint, root / "bundle", cases=None)


@pytest.fixture(scope="module")
def classified(tmp_path_factory: pytest.TempPathFactory) -> tuple[trained.Trained, Bundle]:
    root = tmp_path_factory.mktemp("classification")
    made = trained.classification(root)
    return made, export(made.checkpoint, root / "bundle", cases=None)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A current folder with a store of its own, which takes seconds to make."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_RUN_ID", "MEDLIGHT_DATA"):
            patch.delenv(name, raising=False)
        yield folder


@pytest.fixture(scope="module")
def run_id(home: Path) -> str:
    client = store.client()
    return client.create_run(client.create_experiment("registry")).info.run_id


def predicted(uri: str, rows: list[dict], **params) -> dict:
    """Predict in a fresh process."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": f"sqlite:///{Path.cwd() / 'mlruns' / 'mlflow.db'}"}
    command = [sys.executable, "-c", PREDICT, json.dumps([rows, params, uri])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("RESULT"))[7:])


def test_a_segmentation_predicts_from_the_registry(segmented, run_id: str, home: Path) -> None:
    made, bundle = segmented
    assert register(bundle, "organs", run_id) == "1"
    scans = sorted((made.checkpoint.parent / "images").iterdir())[:2]
    contrasts = apart(scans[1], bundle, home)
    rows = [{"image": str(scans[0])}, {**contrasts, "id": "second"}, {"image": str(home / "none.nii")}]
    rows += [{**contrasts, "id": "second"}, {"id": "third", next(iter(contrasts)): "one.nii.gz"}]
    answer = predicted("models:/organs/1", rows, output=str(home / "out"))
    assert answer["inputs"] == ["image", *contrasts, "id"]
    first, second, absent, twice, half = answer["rows"]
    assert [first["id"], second["id"]] == [scans[0].name.removesuffix(".nii.gz"), "second"]
    assert first["error"] == second["error"] == ""
    assert "no such" in absent["error"]
    assert "another row has this name" in twice["error"]
    assert f"no image and no {list(contrasts)[1]}" in half["error"]
    for row, scan in zip((first, second), scans, strict=True):
        expected = Predictor(bundle, 1).predict(read(scan)).label
        found = read(Path(row["label_map"]))
        assert Path(row["label_map"]).parent == home / "out"
        np.testing.assert_array_equal(found.array, expected.array)
        for label in bundle.labels:
            if label.value:
                volume = (expected.array == label.value).sum() * np.prod(expected.spacing) / 1000
                assert row[f"{label.name}_ml"] == pytest.approx(volume, abs=1e-6)


def apart(scan: Path, bundle: Bundle, folder: Path) -> dict[str, str]:
    """Write the channels of a scan as a file each; returns them by the contrast's name."""
    volume, files = read(scan), {}
    for index, name in enumerate(bundle.data["channels"]):
        files[str(name)] = str(folder / f"contrast-{index}.nii.gz")
        write_nifti(Volume(volume.array[index : index + 1], volume.affine), Path(files[str(name)]))
    return files


def test_a_classification_predicts_from_the_registry(classified, run_id: str, home: Path) -> None:
    _, bundle = classified
    register(bundle, "pictures", run_id)
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(0, 255, (28, 28), dtype=np.uint8)).save(home / "one.png")
    answer = predicted("models:/pictures/1", [{"image": str(home / "one.png")}], output=str(home / "out"))
    (row,) = answer["rows"]
    assert row["error"] == ""
    expected = Predictor(bundle, 1).predict(read(home / "one.png")).probabilities
    np.testing.assert_allclose([row[name] for name in bundle.outputs], expected, atol=1e-5)


def test_the_same_bundle_is_registered_once(segmented, run_id: str, tmp_path: Path) -> None:
    _, bundle = segmented
    assert register(bundle, "once", run_id) == "1"
    assert register(bundle, "once", run_id) == "1"
    version = store.client().get_model_version("once", "1")
    assert version.run_id == run_id
    assert version.tags["medlight.checked"] == "false"
    assert version.tags["medlight.task"] == "segmentation"
    shutil.copytree(bundle.root, tmp_path / "other")
    Bundle(**{**Bundle.load(tmp_path / "other").__dict__, "run_id": "another"}).save()
    assert register(Bundle.load(tmp_path / "other"), "once", run_id) == "2"
    assert store.client().get_model_version("once", "2").source != version.source


def test_an_altered_bundle_does_not_load(segmented, run_id: str) -> None:
    register(segmented[1], "altered", run_id)
    place = next(Path("mlruns").rglob("model.onnx"))
    place.write_bytes(place.read_bytes() + b" ")
    from mlflow import pyfunc

    with pytest.raises(MedlightError, match=r"model\.onnx was altered"):
        pyfunc.load_model(str(place.parents[2]))


@pytest.mark.parametrize("name", ["", "a/b", "a:b"])
def test_names_that_mlflow_does_not_take(name: str, segmented, run_id: str) -> None:
    with pytest.raises(UsageError, match="model name"):
        register(segmented[1], name, run_id)


def test_a_run_that_is_not_there(segmented, run_id: str) -> None:
    with pytest.raises(UsageError, match="not in the tracking store"):
        register(segmented[1], "organs", "0" * 32)


def test_the_signature_names_contrasts_and_answers(segmented, classified) -> None:
    bundle = segmented[1]
    assert columns(bundle) == ["id", "label_map", "one_ml", "two_ml", "warnings", "error"]
    several = Bundle(**{**bundle.__dict__, "data": {**bundle.data, "channels": ["t1", "flair"]}})
    assert signature(several).inputs.input_names() == ["image", "t1", "flair", "id"]
    assert signature(several).inputs.required_input_names() == []
    assert signature(classified[1]).inputs.required_input_names() == ["image"]
    assert columns(classified[1]) == ["id", *classified[1].outputs, "warnings", "error"]
    assert requirements(bundle)[0].startswith("medlight==")
