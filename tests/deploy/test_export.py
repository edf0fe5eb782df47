"""Checkpoint to bundle to prediction, for real, on scans that are neither isotropic nor RAS."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import medlight.deploy.export as export_module
from medlight import tasks
from medlight.callbacks.export import metrics
from medlight.deploy import half, quantise, tensorrt, torch_program
from medlight.deploy.bundle import Bundle
from medlight.deploy.export import check_targets, export
from medlight.deploy.parity import OVERLAP, ParityError
from medlight.deploy.qdq import LAYERS
from medlight.deploy.runtime import Predictor
from medlight.errors import MedlightError, UsageError
from medlight.prepare.reading import read_ref
from medlight.scans import Volume, read
from tests.deploy.trained import Trained, classification, segmentation


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return segmentation(tmp_path_factory.mktemp("segmentation"))


@pytest.fixture(scope="module")
def bundle(trained: Trained) -> Bundle:
    options = {"cases": trained.cases, "recorded": trained.data.recorded, "run_id": "r", "threads": 1}
    return export(trained.checkpoint, trained.checkpoint.parent / "bundle", **options)


def test_the_bundle_says_what_torch_says(bundle: Bundle, trained: Trained) -> None:
    figures = json.loads((bundle.root / "parity.json").read_text())
    assert figures["passed"]
    assert 0 < figures["max_abs_diff"] < 1e-4
    assert figures["label_agreement"] > 0.999
    assert figures["dice_diff"] < 1e-3
    assert figures["cases"] == len(figures["per_case"]) == 2
    assert all(row["dice_torch"] is not None for row in figures["per_case"])
    assert bundle.parity["max_abs_diff"] == figures["max_abs_diff"]
    recorded = [trained.data.recorded[case.id] for case in trained.cases]
    assert [row["case"] for row in figures["per_case"]] == recorded  # as in cases.csv of the run
    worst = max(figures["per_case"], key=lambda row: row["max_abs_diff"])
    assert figures["worst_case"] == bundle.parity["worst_case"] == worst["case"]
    assert figures["mean_abs_diff"] == pytest.approx(np.mean([row["mean_abs_diff"] for row in figures["per_case"]]))
    assert "case_0" not in (bundle.root / "parity.json").read_text()  # ids may be file names, and those patients'
    assert {f.name for f in bundle.root.iterdir()} == {"bundle.json", "model.onnx", "parity.json", "requirements.txt"}
    assert not [f for f in bundle.root.parent.iterdir() if f.name.startswith(".bundle")]


def test_every_file_of_the_bundle_has_a_digest(bundle: Bundle, tmp_path: Path) -> None:
    named = {"bundle.json", *bundle.digests, *(model.file for model in bundle.models)}
    assert {file.name for file in bundle.root.iterdir()} == named
    assert set(bundle.digests) == {"parity.json", "requirements.txt"}
    for name in bundle.digests:
        copy = tmp_path / name
        shutil.copytree(bundle.root, copy)
        with (copy / name).open("a") as stream:
            stream.write("\n")
        with pytest.raises(MedlightError, match=rf"{name} was altered after the export"):
            Bundle.load(copy)


def test_the_bundle_describes_itself(bundle: Bundle) -> None:
    assert bundle.schema_version == 2
    assert bundle.task == "segmentation"
    assert bundle.run_id == "r"
    assert bundle.outputs == ["background", "one", "two"]
    assert bundle.models[0].dynamic_axes == ["batch", "i", "j", "k"]
    assert bundle.data["preparation"]["spacing"] == [1.5, 1.5, 1.5]
    assert bundle.tools["torch"].startswith("2.")


def test_the_label_map_lies_on_the_scans_own_grid(bundle: Bundle, trained: Trained) -> None:
    file = trained.cases[0].images["image"]
    prediction = Predictor(bundle.root, threads=1).predict(read(file))
    oracle = nib.load(file)
    assert prediction.label is not None
    assert prediction.label.shape == oracle.shape
    assert prediction.label.array.dtype == np.uint8
    np.testing.assert_allclose(prediction.label.affine, oracle.affine)
    assert set(np.unique(prediction.label.array)) <= {0, 1, 2}
    assert prediction.probabilities.shape[0] == 3
    np.testing.assert_allclose(prediction.probabilities.sum(0), 1, atol=1e-5)


def test_a_turned_scan_gets_the_turned_label_map(bundle: Bundle, trained: Trained) -> None:
    """The same voxels stored in another order are the same scan."""
    scan = read(trained.cases[0].images["image"])
    turned = nib.Nifti1Image(scan.array[0], scan.affine).as_reoriented(np.array([[1, 1], [2, -1], [0, -1]]))
    other = Volume(np.asarray(turned.dataobj)[None], turned.affine)
    predictor = Predictor(bundle, threads=1)
    one, two = predictor.predict(scan), predictor.predict(other)
    np.testing.assert_allclose(one.probabilities, two.probabilities, atol=1e-5)
    assert one.label is not None
    assert two.label is not None
    back = nib.as_closest_canonical(nib.Nifti1Image(two.label.array[0], two.label.affine))
    expected = nib.as_closest_canonical(nib.Nifti1Image(one.label.array[0], one.label.affine))
    assert np.mean(np.asarray(back.dataobj) == np.asarray(expected.dataobj)) > 0.999


def test_batches_and_repeats_change_nothing(bundle: Bundle, trained: Trained) -> None:
    scan = read(trained.cases[1].images["image"])
    one = Predictor(bundle, threads=1).predict(scan)
    again = Predictor(bundle, threads=1).predict(scan)
    many = Predictor(bundle, threads=1, batch=3).predict(scan)
    assert np.array_equal(one.probabilities, again.probabilities)
    np.testing.assert_allclose(many.probabilities, one.probabilities, atol=2e-6)
    assert one.label is not None
    assert many.label is not None
    assert np.mean(many.label.array == one.label.array) > 0.9999


def test_the_graph_takes_the_scanners_values_where_no_statistics_are_needed(tmp_path: Path) -> None:
    trained = segmentation(tmp_path, window=True, patch=[24, 24, 24], cases=3)  # scans smaller than the window
    made = export(trained.checkpoint, tmp_path / "bundle", cases=trained.cases, threads=1)
    assert made.normalise_in_graph
    assert made.parity["max_abs_diff"] < 1e-4


def test_several_channels_in_2d(tmp_path: Path) -> None:
    trained = segmentation(
        tmp_path, shape=(20, 26, 1), spacing=(1, 1, 1), codes="LPS", patch=[16, 16], channels=2, cases=3
    )
    made = export(trained.checkpoint, tmp_path / "bundle", cases=trained.cases, threads=1)
    assert made.models[0].dynamic_axes == ["batch", "i", "j"]
    scan = read_ref(trained.cases[0].images["image"])
    prediction = Predictor(made, threads=1).predict(scan)
    assert prediction.label is not None
    assert prediction.label.shape == scan.shape


@pytest.mark.parametrize("options", [{}, {"multilabel": True, "classes": 3}, {"colour": True}])
def test_classification(tmp_path: Path, options: dict) -> None:
    trained = classification(tmp_path, **options)
    made = export(trained.checkpoint, tmp_path / "bundle", cases=trained.cases, threads=1)
    assert made.parity["max_abs_diff"] < 1e-4
    assert made.parity["label_agreement"] == 1
    auroc = made.parity["auroc"]
    assert metrics(made.parity)["export/auroc_diff"] >= abs(auroc["torch"] - auroc["bundle"])
    prediction = Predictor(made, threads=1).predict(read_ref(trained.cases[0].images["image"]))
    assert prediction.label is None
    assert prediction.probabilities.shape == (len(made.outputs),)


def tampered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the exporter write weights that are not the network's."""
    real = export_module.export_onnx

    def export_onnx(module, channels, window, path):
        made = real(module, channels, window, path)
        model = onnx.load(path)
        weight = max(model.graph.initializer, key=lambda i: np.prod(i.dims))
        values = numpy_helper.to_array(weight)
        noise = np.random.default_rng(0).normal(0, 0.1 * values.std(), values.shape).astype(np.float32)
        weight.CopyFrom(numpy_helper.from_array(values + noise, weight.name))  # a factor would be normalised away
        onnx.save(model, path)
        return made

    monkeypatch.setattr(export_module, "export_onnx", export_onnx)


def zeroed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let INT8 graphs have no weights left (their scales are 0): they say the same everywhere.

    A small network that has hardly learned anything has a mean Dice near 0 either way, so that this is not told by it.
    """
    real = quantise.quantise_within

    def quantise_within(source, out, *given):
        done = real(source, out, *given)
        model = onnx.load(out)
        scales = {node.input[1] for node in model.graph.node if node.op_type == "DequantizeLinear"}
        weights = [i for i in model.graph.initializer if i.name in scales and np.prod(i.dims) > 1]
        assert weights
        for scale in weights:
            scale.CopyFrom(numpy_helper.from_array(0 * numpy_helper.to_array(scale), scale.name))
        onnx.save(model, out)
        return done

    monkeypatch.setattr(quantise, "quantise_within", quantise_within)


def noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let half-precision graphs have weights with noise as large as they are."""
    real, random = half.to_fp16, np.random.default_rng(0)

    def to_fp16(source, out, batches=()):
        done = real(source, out, batches)
        model = onnx.load(out)
        weights = [i for i in model.graph.initializer if i.data_type == onnx.TensorProto.FLOAT16 and len(i.dims) > 2]
        assert weights
        for weight in weights:
            values = numpy_helper.to_array(weight).astype(np.float32)
            values = values + random.normal(0, values.std(), values.shape)
            weight.CopyFrom(numpy_helper.from_array(values.astype(np.float16), weight.name))
        onnx.save(model, out)
        return done

    monkeypatch.setattr(half, "to_fp16", to_fp16)


BROKEN = {"int8": (zeroed, 0.005), "fp16": (noisy, 0.002)}


@pytest.mark.parametrize("precision", BROKEN)
def test_a_lower_precision_outside_its_tolerance_is_not_published(
    precision: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks, tolerance = BROKEN[precision]
    options = {"cases": trained.cases, "training": trained.data.prepared["train"], "threads": 1}
    breaks(monkeypatch)
    said = (
        rf"onnxruntime-{precision} differs .*the mean Dice by .*; tolerance {tolerance}, label maps at least 0.8; "
        rf".*leave {precision} out"
    )
    with pytest.raises(ParityError, match=said) as error:
        export(trained.checkpoint, tmp_path / "out", precision=[precision], **options)
    assert list(tmp_path.iterdir()) == []
    figures = error.value.figures
    assert figures["passed"]  # float32 is as it was
    broken = figures["models"][f"onnxruntime-{precision}"]
    assert not broken["passed"]
    assert broken["score_diff"] == abs(broken["dice"]["torch"] - broken["dice"]["bundle"])
    assert broken["overlap"] == pytest.approx(np.mean([case["dice_maps"] for case in broken["per_case"]]))
    assert broken["score_diff"] > tolerance or broken["overlap"] < OVERLAP


def test_another_network_is_not_published(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tampered(monkeypatch)
    said = r"differ by up to [\d.e-]+ .*Dice by up to .*worst case (case-[0-9a-f]{10}), of 2"
    options = {"cases": trained.cases, "recorded": trained.data.recorded, "threads": 1}
    with pytest.raises(ParityError, match=said) as error:
        export(trained.checkpoint, tmp_path / "bundle", **options)
    assert error.value.figures["worst_case"] in str(error.value)
    assert error.value.exit_code == 1
    assert error.value.figures["max_abs_diff"] > 1e-4
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("module", "name", "target", "precision", "what", "out"),
    [
        (half, "to_fp16", "onnx", "fp16", "onnxruntime-fp16", "fp16"),
        (quantise, "quantise_within", "onnx", "int8", "onnxruntime-int8", "int8"),
        (torch_program, "export_program", "torch", "fp32", "torch-fp32", "torch"),
    ],
)
def test_what_a_library_refuses_is_one_line(
    module, name, target, precision, what, out, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*given, **options):
        raise ValueError("no such operator\nand three pages more")

    monkeypatch.setattr(module, name, refuses)
    options = {"cases": None, "training": trained.data.prepared["train"], "to": ["onnx", target]}
    with pytest.raises(MedlightError) as error:
        export(trained.checkpoint, tmp_path / "out", precision=[precision], **options)
    said = f"{what} can't be made of this network: ValueError: no such operator; mend: leave {out} out"
    assert str(error.value) == said
    assert isinstance(error.value.__cause__, ValueError)  # shown by --debug
    assert list(tmp_path.iterdir()) == []


def test_an_older_bundle_stays_when_the_export_fails(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = export(trained.checkpoint, tmp_path / "bundle", cases=trained.cases[:1], threads=1)
    tampered(monkeypatch)
    with pytest.raises(ParityError):
        export(trained.checkpoint, tmp_path / "bundle", cases=trained.cases[:1], threads=1)
    assert Bundle.load(tmp_path / "bundle") == before


def test_a_wrong_normaliser_is_noticed(bundle: Bundle, trained: Trained) -> None:
    """The parity starts from the file: it sees more than the weights."""
    from medlight.deploy.parity import compare

    other = Bundle.load(bundle.root)
    other.data["normalise"] = [{"class_path": "medlight.prepare.Percentile", "init_args": {}}]
    models = {"onnxruntime-fp32": ("fp32", Predictor(other, threads=1))}
    figures = compare(tasks.load(trained.checkpoint), models, trained.cases[:1])
    assert not figures["onnxruntime-fp32"]["passed"]


def test_what_is_in_the_way_is_left_alone(trained: Trained, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match="is no bundle; mend"):
        export(trained.checkpoint, tmp_path / "out", cases=trained.cases)
    assert (tmp_path / "out" / "thesis.txt").is_file()


def test_no_cases_is_refused_and_unchecked_says_so(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--unchecked"):
        export(trained.checkpoint, tmp_path / "out", cases=[])
    assert export(trained.checkpoint, tmp_path / "out", cases=None).parity == {"checked": False}


def test_every_runtime_on_the_cpu_and_every_precision(trained: Trained, tmp_path: Path) -> None:
    made = export(
        trained.checkpoint,
        tmp_path / "out",
        cases=trained.cases,
        to=["onnx", "openvino", "torch"],
        precision=["fp16", "bf16", "int8"],
        training=trained.data.prepared["train"],
        threads=1,
    )
    names = ["onnxruntime-fp32", "onnxruntime-fp16", "onnxruntime-int8"]
    names += [f"openvino-{precision}" for precision in ("fp32", "bf16", "int8")] + ["torch-fp32", "torch-bf16"]
    assert [model.name for model in made.models] == names
    assert {model.file for model in made.models if model.runtime == "openvino"} == {"model.onnx", "model_int8.onnx"}
    with zipfile.ZipFile(made.root / "model.pt2") as program:
        assert not any(b"site-packages" in program.read(name) for name in program.namelist())
    others = json.loads((made.root / "parity.json").read_text())["models"]
    assert list(others) == names[1:]
    for name, figures in others.items():
        assert figures["passed"], name
        assert figures["score"] == "dice"
        assert (figures["max_abs_diff"] > 1e-4) == (figures["precision"] != "fp32"), name  # they are other sums
    scan = read(trained.cases[0].images["image"])
    reference = Predictor(made, threads=1, model="onnxruntime").predict(scan).probabilities
    for name in names[1:]:
        found = Predictor(made, threads=1, model=name)
        assert name.split("-")[0] in found.runtime
        np.testing.assert_allclose(found.predict(scan).probabilities, reference, atol=0.1)


def test_the_fastest_model_is_measured_once(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    made = export(trained.checkpoint, tmp_path / "out", cases=trained.cases, to=["onnx", "openvino"], threads=1)
    first = Predictor(made, threads=1).runtime
    (remembered,) = (tmp_path / "cache").rglob("*.json")
    paces = json.loads(remembered.read_text())
    assert set(paces) == {"onnxruntime-fp32", "openvino-fp32"}
    best = min(paces, key=lambda name: paces[name]["seconds"])
    assert first.startswith(best.split("-")[0])
    assert "fastest here" in first
    slow = {best: {"seconds": 1000.0, "batch": 1}}
    remembered.write_text(json.dumps(paces | slow))  # what is remembered decides, nothing is measured anew
    assert not Predictor(made, threads=1).runtime.startswith(best.split("-")[0])
    remembered.write_text("not JSON")
    assert "fastest here" in Predictor(made, threads=1).runtime
    assert set(json.loads(remembered.read_text())) == set(paces)


def test_layers_that_int8_costs_too_much_are_named(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All layers in INT8 are said to lose too much, so some stay in float32."""
    real, lost = export_module._distance, []

    def distance(graph, batches):
        measured = real(graph, batches)

        def counted(file: Path) -> float:
            lost.append(measured(file))
            return lost[-1] if len(lost) > 1 else 1.0  # all layers in INT8 are too much

        return counted

    monkeypatch.setattr(export_module, "_distance", distance)
    lines: list[str] = []
    made = export(
        trained.checkpoint,
        tmp_path / "out",
        cases=trained.cases[:1],
        to=["onnx", "openvino"],
        precision=["int8"],
        training=trained.data.prepared["train"],
        threads=1,
        say=lines.append,
    )
    kept = made.model("onnxruntime-int8").kept
    assert kept == made.model("openvino-int8").kept
    assert made.model("onnxruntime-fp32").kept == []
    graph = onnx.load(made.root / "model_int8.onnx").graph
    quantised = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    in_fp32 = [n.name for n in graph.node if n.op_type in LAYERS and n.input[1] not in quantised]
    assert in_fp32 == kept
    assert len(lines) == 1
    layers = quantise.layers(made.root / "model.onnx")
    assert f"model_int8.onnx: {len(kept)} of {len(layers)} layers stay in float32" in lines[0]
    assert lines[0].endswith(", ".join(kept))


@pytest.mark.gpu
@pytest.mark.skipif(tensorrt.unavailable() is not None, reason="needs tensorrt and a CUDA device")
def test_a_real_engine_is_compared_with_torch(trained: Trained, tmp_path: Path) -> None:
    made = export(trained.checkpoint, tmp_path / "out", cases=trained.cases, to=["onnx", "tensorrt"])
    assert made.parity["models"]["tensorrt-fp32"]["cases"] == 2
    assert made.parity["models"]["tensorrt-fp32"]["passed"]
    assert made.model("tensorrt").file == "model.engine"


def test_wrong_targets_are_refused() -> None:
    with pytest.raises(UsageError, match="no such target; mend: one of onnx, openvino, tensorrt, torch"):
        check_targets(["onnx", "coreml"])
    with pytest.raises(UsageError, match="every bundle has an ONNX model"):
        check_targets(["tensorrt"])
    with pytest.raises(UsageError, match=r"bf16: onnx can't run it; mend: add openvino or torch to --to"):
        check_targets(["onnx"], ["bf16"])
    with pytest.raises(UsageError, match="no such precision"):
        check_targets(["onnx"], ["fp8"])


def test_int8_needs_training_cases(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="int8 is calibrated on training patches"):
        export(trained.checkpoint, tmp_path / "out", cases=None, precision=["int8"])
    assert list(tmp_path.iterdir()) == []


def test_scans_that_do_not_fit_are_refused(bundle: Bundle, trained: Trained) -> None:
    predictor = Predictor(bundle, threads=1)
    scan = read(trained.cases[0].images["image"])
    with pytest.raises(MedlightError, match="has 2 channels, but the bundle was trained on 1"):
        predictor.predict(Volume(np.repeat(scan.array, 2, axis=0), scan.affine))
    broken = scan.array.copy()
    broken[0, 0, 0, 0] = np.nan
    with pytest.raises(MedlightError, match="not finite"):
        predictor.predict(Volume(broken, scan.affine))


def test_prediction_imports_no_torch(bundle: Bundle, trained: Trained) -> None:
    code = """
import sys
from pathlib import Path
from medlight.deploy.runtime import Predictor
from medlight.scans import read
Predictor(Path(sys.argv[1]), threads=1).predict(read(Path(sys.argv[2])))
sys.exit(", ".join({"torch", "monai", "lightning", "mlflow", "torchio"} & set(sys.modules)) or 0)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, bundle.root, trained.cases[0].images["image"]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_an_absent_runtime_names_its_extra(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"pip install 'medlight\[onnx\]'"):
        Predictor(bundle)
