"""Bundles come back as written, and are refused when altered."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from medlight.deploy.bundle import Bundle, Model, sha256
from medlight.errors import MedlightError, UsageError
from medlight.prepare.case import Label

BESIDE = ["parity.json", "requirements.txt", "model.layers.json"]


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    (tmp_path / "model.onnx").write_bytes(b"weights")
    model = Model("model.onnx", "onnxruntime", "fp32", sha256(tmp_path / "model.onnx"), ["batch", "i"], 8)
    for name in BESIDE:
        (tmp_path / name).write_text(name)
    made = Bundle(
        root=tmp_path,
        task="segmentation",
        data={"labels": [{"value": 0, "name": "background"}, {"value": 2, "name": "liver", "code": ["1", "SCT", "L"]}]},
        activation="softmax",
        outputs=["background", "liver"],
        window={"size": [8, 8, 8], "overlap": 0.5, "mode": "gaussian"},
        normalise_in_graph=False,
        models=[model],
        tools={"torch": "2.13.0"},
        parity={"max_abs_diff": 1e-6},
        digests={name: sha256(tmp_path / name) for name in BESIDE},
    )
    made.save()
    return made


def test_comes_back_as_written(bundle: Bundle) -> None:
    assert Bundle.load(bundle.root) == bundle
    assert Bundle.load(bundle.root).labels == (Label(0, "background"), Label(2, "liver", None, ("1", "SCT", "L")))


def test_layers_that_stay_in_float32_come_back_and_older_bundles_name_none(bundle: Bundle) -> None:
    int8 = replace(bundle.models[0], precision="int8", kept=["first", "last"])
    replace(bundle, models=[*bundle.models, int8]).save()
    assert [model.kept for model in Bundle.load(bundle.root).models] == [[], ["first", "last"]]
    without(bundle, "models", "kept")
    assert [model.kept for model in Bundle.load(bundle.root).models] == [[], []]


def without(bundle: Bundle, key: str, *inner: str) -> None:
    """Write the description as an older medlight did, without a key (of each entry below another one)."""
    file = bundle.root / "bundle.json"
    text = json.loads(file.read_text())
    del text["digest"]
    for entry in text[key] if inner else ():
        del entry[inner[0]]
    if not inner:
        del text[key]
    text["schema_version"] = 1
    described(bundle, text)


def described(bundle: Bundle, text: dict) -> None:
    """Write a description with its digest."""
    digest = hashlib.sha256(json.dumps(text, sort_keys=True).encode()).hexdigest()
    (bundle.root / "bundle.json").write_text(json.dumps({**text, "digest": digest}))


def test_an_altered_model_is_refused(bundle: Bundle) -> None:
    (bundle.root / "model.onnx").write_bytes(b"weightS")
    with pytest.raises(MedlightError, match=r"model\.onnx was altered.*mend") as error:
        Bundle.load(bundle.root)
    assert error.value.exit_code == 1


@pytest.mark.parametrize("name", BESIDE)
def test_an_altered_file_beside_the_models_is_refused(bundle: Bundle, name: str) -> None:
    (bundle.root / name).write_text("another")
    with pytest.raises(MedlightError, match=rf"{name} was altered after the export .*mend: export it again") as error:
        Bundle.load(bundle.root)
    assert error.value.exit_code == 1
    without(bundle, "digests")  # a bundle of earlier days knows nothing of it
    assert Bundle.load(bundle.root).digests == {}


@pytest.mark.parametrize("name", BESIDE)
def test_files_beside_the_models_may_be_taken_away_and_others_laid_there(bundle: Bundle, name: str) -> None:
    (bundle.root / name).unlink()
    (bundle.root / "registered_model_meta").write_text("what MLflow writes where it loads a model")
    assert Bundle.load(bundle.root) == bundle


def test_a_missing_model_is_refused(bundle: Bundle) -> None:
    (bundle.root / "model.onnx").unlink()
    with pytest.raises(MedlightError, match=r"model\.onnx is missing"):
        Bundle.load(bundle.root)


def test_an_altered_description_is_refused(bundle: Bundle) -> None:
    file = bundle.root / "bundle.json"
    file.write_text(file.read_text().replace("liver", "spleen"))
    with pytest.raises(MedlightError, match=r"bundle\.json was altered"):
        Bundle.load(bundle.root)


def test_an_unknown_schema_version_is_refused(bundle: Bundle) -> None:
    file = bundle.root / "bundle.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": 99}))
    with pytest.raises(UsageError, match=r"schema_version 99 is none of .*mend"):
        Bundle.load(bundle.root)


def test_a_key_that_is_not_known_is_refused(bundle: Bundle) -> None:
    text = json.loads((bundle.root / "bundle.json").read_text())
    del text["digest"]
    for wrong in ({**text, "colour": "red"}, {**text, "models": [{**text["models"][0], "colour": "red"}]}):
        described(bundle, wrong)
        with pytest.raises(MedlightError, match=r"not a bundle's description .*colour.*mend"):
            Bundle.load(bundle.root)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("data", [1, 2], r"data is \[1, 2\], no dict"),
        ("window", None, "window is None, no dict"),
        ("outputs", "liver", "outputs is 'liver', no list"),
        ("normalise_in_graph", "no", "normalise_in_graph is 'no', no bool"),
        ("task", "detection", "task 'detection' is none of those that are predicted: segmentation, classification"),
    ],
)
def test_values_of_another_kind_are_refused(bundle: Bundle, key: str, value: object, said: str) -> None:
    text = json.loads((bundle.root / "bundle.json").read_text())
    del text["digest"]
    described(bundle, text | {key: value})
    with pytest.raises(MedlightError, match=rf"bundle\.json: .*{said}.*; mend: export it again"):
        Bundle.load(bundle.root)


@pytest.mark.parametrize("models", [[], ["../model.onnx"], ["sub/model.onnx"], ["/etc/hostname"]])
def test_no_models_or_files_elsewhere_are_refused(bundle: Bundle, models: list[str]) -> None:
    text = json.loads((bundle.root / "bundle.json").read_text())
    del text["digest"]
    text["models"] = [{**text["models"][0], "file": file} for file in models]
    described(bundle, text)
    with pytest.raises(MedlightError, match=r"names no models, or files outside of the bundle; mend"):
        Bundle.load(bundle.root)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no bundle here"):
        Bundle.load(tmp_path)
    (tmp_path / "bundle.json").write_text("{")
    with pytest.raises(MedlightError, match="not valid JSON"):
        Bundle.load(tmp_path)


def test_an_absent_runtime_says_which_there_are(bundle: Bundle) -> None:
    with pytest.raises(UsageError, match=r"no model 'openvino' \(there: onnxruntime-fp32\)"):
        bundle.model("openvino")
