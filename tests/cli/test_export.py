"""`medlight export`: from a recorded run to a recorded bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import medlight.deploy.half as half_module
from medlight.cli import machine
from medlight.cli.main import main
from medlight.deploy.bundle import Bundle
from medlight.deploy.parity import OVERLAP
from medlight.tracking import store
from tests.deploy.recorded import Recorded, recorded_fit


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    with recorded_fit(tmp_path_factory.mktemp("recorded")) as made:
        yield made


def run(*words: str | Path) -> int:
    return main(["export", *map(str, words), "--threads", "1"])


def test_a_run_is_exported_compared_and_recorded(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(recorded.run_id[:8], "--to", "onnx,tensorrt", "--json", "figures.json") == 0
    said = capsys.readouterr().out
    assert "TensorRT is skipped: " in said
    bundle = Bundle.load(recorded.root / "tiny-bundle")
    assert bundle.parity["cases"] == 2
    figures = json.loads(Path("figures.json").read_text())
    assert figures["parity"]["max_abs_diff"] == bundle.parity["max_abs_diff"] < 1e-4
    (model,) = figures["models"]
    assert (model["model"], model["dice"]) == ("onnxruntime-fp32", bundle.parity["dice"]["bundle"])
    assert "steps" not in figures
    assert model["mean_abs_diff"] == bundle.parity["mean_abs_diff"] < model["max_abs_diff"]
    recorded_ids = [
        line.split(",")[0] for line in store.artifact(recorded.run_id, "cases.csv").read_text().splitlines()
    ]
    assert model["worst_case"] == bundle.parity["worst_case"] in recorded_ids
    shown = [*said.partition("compared with torch")[2].partition("free sizes")[0].splitlines()]
    assert max(map(len, shown)) <= 100
    for cell in (f"{model['mean_abs_diff']:.1e}", model["worst_case"], "largest", "mean"):
        assert any(cell in line for line in shown)
    assert recorded.tags()["medlight.tensorrt"].startswith("skipped: ")
    assert recorded.tags()["medlight.model"].startswith("models:/exports-tiny/")
    assert "registered: models:/exports-tiny/" in said
    logged = json.loads(store.artifact(recorded.run_id, "bundle/parity.json").read_text())
    assert logged["cases"] == 2
    assert main(["predict", recorded.run_id, str(recorded.root / "images"), "out", "--threads", "1"]) == 0
    assert len(list(Path("out").glob("*.nii.gz"))) == 4


def test_an_export_that_differs_fails_with_figures_and_a_tag(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.deploy.test_export import tampered

    tampered(monkeypatch)
    assert run(recorded.run_id, "other") == 1
    assert "differ by up to" in capsys.readouterr().err
    assert not Path("other").exists()
    assert recorded.tags()["medlight.export"] == "failed"
    assert recorded.metrics()["export/max_abs_diff"] > 1e-4


@pytest.mark.parametrize("precision", ["int8", "fp16"])
def test_a_lower_precision_that_differs_fails_too(
    precision: str, recorded: Recorded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.deploy.test_export import BROKEN

    breaks, tolerance = BROKEN[precision]
    store.client().set_tag(recorded.run_id, "medlight.export", "complete")
    breaks(monkeypatch)
    assert run(recorded.run_id, "other", "--precision", precision) == 1
    said = capsys.readouterr().err
    assert f"the exported onnxruntime-{precision} differs from the trained network" in said
    assert f"leave {precision} out" in said
    assert not Path("other").exists()
    assert recorded.tags()["medlight.export"] == "failed"
    figures = {name: recorded.metrics()[f"export/onnxruntime-{precision}/{name}"] for name in ("score_diff", "overlap")}
    assert figures["score_diff"] > tolerance or figures["overlap"] < OVERLAP


def test_float16_is_looked_over_on_training_patches(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Layers whose values would be too large stay in float32, and only patches show which."""
    real, given = half_module.to_fp16, []

    def to_fp16(source: Path, out: Path, batches: Any = ()) -> int:
        given.append(list(batches))
        return real(source, out, batches)

    monkeypatch.setattr(half_module, "to_fp16", to_fp16)
    assert run(recorded.run_id, tmp_path / "half", "--precision", "fp16", "--cases", "1") == 0
    assert run(recorded.run_id, tmp_path / "unchecked", "--precision", "fp16", "--unchecked") == 0
    assert "are not looked for" not in capsys.readouterr().out
    checkpoint = store.artifact(recorded.run_id, "checkpoints/best.ckpt")
    assert run(checkpoint, tmp_path / "bare", "--precision", "fp16", "--unchecked") == 0
    said = "model_fp16.onnx: no training cases are known, so values beyond float16's range are not looked for"
    assert said in capsys.readouterr().out
    assert [len(batches) for batches in given] == [16, 16, 0]
    assert {batch.shape for batch in given[0]} == {(1, 1, 16, 16, 16)}


def test_an_error_of_a_library_is_tagged_and_one_line(
    recorded: Recorded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*given: Any, **options: Any) -> None:
        raise RuntimeError("no room\non this machine")

    store.client().set_tag(recorded.run_id, "medlight.export", "complete")
    monkeypatch.setattr("medlight.deploy.export.compare", broken)
    assert run(recorded.run_id, tmp_path / "out") == 1
    assert capsys.readouterr().err == "medlight export: RuntimeError: no room on this machine (--debug shows where)\n"
    assert recorded.tags()["medlight.export"] == "failed"


def test_both_kinds_of_onnxruntime_are_warned_of(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("absent.ckpt") == 2
    assert "overwrite" not in capsys.readouterr().err
    monkeypatch.setattr(machine, "version", {"onnxruntime": "1.32.0", "onnxruntime-gpu": "1.32.0"}.get)
    assert run("absent.ckpt") == 2
    first, _ = capsys.readouterr().err.splitlines()
    assert first == machine.clash()
    assert first.startswith("onnxruntime and onnxruntime-gpu overwrite each other; mend: pip uninstall both")


def test_a_sweep_means_its_best_trial(recorded: Recorded) -> None:
    parent = store.client().create_run(
        store.experiment_id("exports"),
        tags={"medlight.kind": "sweep", "medlight.best_run": recorded.run_id},
        run_name="search",
    )
    assert run(parent.info.run_id, "--cases", "1") == 0
    assert Bundle.load(Path("search-bundle")).run_id == recorded.run_id
    empty = store.client().create_run(store.experiment_id("exports"), tags={"medlight.kind": "sweep"})
    assert run(empty.info.run_id) == 2


def test_a_bare_checkpoint_needs_its_data(
    recorded: Recorded, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = store.artifact(recorded.run_id, "checkpoints/best.ckpt")
    assert run(checkpoint, tmp_path / "bundle") == 2
    assert "--data FIT.yaml, or --unchecked" in capsys.readouterr().err
    (tmp_path / "fit.yaml").write_text(yaml.safe_dump(recorded.config))
    assert run(checkpoint, tmp_path / "bundle", "--data", tmp_path / "fit.yaml") == 0
    assert Bundle.load(tmp_path / "bundle").parity["passed"]
    assert run(checkpoint, tmp_path / "unchecked", "--unchecked") == 0
    assert Bundle.load(tmp_path / "unchecked").parity == {"checked": False}
    assert "nothing (--unchecked)" in capsys.readouterr().out


def test_wrong_calls_are_refused(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("absent.ckpt") == 2
    assert run("tiney") == 2
    assert run(recorded.run_id, "--to", "coreml") == 2
    assert run(recorded.run_id, "--cases", "0") == 2
    assert main(["export", recorded.run_id, "--threads", "-4"]) == 2
    Path("junk.ckpt").write_text("not a checkpoint")
    assert run("junk.ckpt", "--unchecked") == 1
    said = capsys.readouterr().err
    targets = "one of onnx, openvino, tensorrt, torch"
    for text in ("did you mean 'tiny'", targets, "--threads -4: at least 1", "junk.ckpt: not a "):
        assert text in said
    assert "weights_only" not in said
