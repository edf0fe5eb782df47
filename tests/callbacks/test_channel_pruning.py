"""A network loses channels, is fitted once more, and loads, resumes and exports as others do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import medlight.deploy.export as export_module
from medlight import tasks
from medlight.callbacks import ChannelPruning
from medlight.cli.main import main
from medlight.config import Config, set_path
from medlight.deploy.bundle import Bundle
from medlight.deploy.export import export
from medlight.deploy.parity import ParityError
from medlight.deploy.runtime import Predictor
from medlight.errors import MedlightError, UsageError
from medlight.launch.fit import FitResult, Launch, fit
from medlight.networks.prune import flops
from medlight.scans import read
from medlight.tracking import store
from tests.deploy.recorded import Recorded, recorded_fit

FILTERS = "model.init_args.network.init_args.filters"
PRUNING = {"class_path": "medlight.callbacks.ChannelPruning", "init_args": {"ratio": 0.5}}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    with recorded_fit(tmp_path_factory.mktemp("recorded")) as made:
        config = set_path({**made.config, "name": "wide"}, FILTERS, [16, 32, 32])
        made.config = set_path(config, "trainer.callbacks", [])
        made.run_id = fit(made.config, Launch()).run_id
        yield made


def test_a_fit_of_the_pruned_network(recorded: Recorded) -> None:
    average = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.9}}
    config = set_path({**recorded.config, "name": "narrow"}, "trainer.callbacks", [PRUNING, average])
    config = set_path(config, "model.init_args.pretrained", f"run:{recorded.run_id}")
    found = fit(config, Launch())
    assert found.best_checkpoint is not None
    task = tasks.load(found.best_checkpoint)
    assert task.pruned == 0.5
    metrics = store.client().get_run(found.run_id).data.metrics
    assert metrics["pruning/flops"] < 0.4
    wide = tasks.load(store.artifact(recorded.run_id, "checkpoints/best.ckpt"))
    narrow, full = (sum(p.numel() for p in t.network.parameters()) for t in (task, wide))
    assert narrow == pytest.approx(metrics["pruning/parameters"] * full)
    image = torch.randn(1, 1, 16, 16, 16)
    deployed = task.deployable()
    torch.testing.assert_close(deployed(image), task(image).softmax(1), atol=1e-5, rtol=0)


def test_a_stopped_fit_goes_on(recorded: Recorded) -> None:
    def stop(step: int, metrics: dict[str, float]) -> bool:
        raise KeyboardInterrupt

    config = set_path({**recorded.config, "name": "stopped"}, "trainer.callbacks", [PRUNING])
    config = set_path(config, "trainer.max_epochs", 2)
    with pytest.raises(MedlightError, match="interrupted"):
        fit(config, Launch(report=stop))
    found = fit(config, Launch(resume=True))
    assert found.best_checkpoint is not None
    assert tasks.load(found.best_checkpoint).pruned == 0.5
    history = store.client().get_metric_history(found.run_id, "pruning/flops")
    assert len(history) == 1


def test_a_stopped_export_goes_on_with_its_fit(
    recorded: Recorded, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(config: Config, launch: Launch) -> FitResult:
        def stop(step: int, metrics: dict[str, float]) -> bool:
            raise KeyboardInterrupt

        return fit(config, replace(launch, report=stop))

    config = set_path({**recorded.config, "name": "long"}, "trainer.max_epochs", 2)
    run_id = fit(config, Launch()).run_id
    words = ["export", run_id, "out", "--prune", "0.5", "--to", "onnx", "--precision", "fp32", "--threads", "1"]
    with monkeypatch.context() as patched:
        patched.setattr("medlight.launch.fit.fit", stopped)
        assert main(words) == 1
    assert capsys.readouterr().err.endswith("long-pruned: interrupted; the same command goes on with it\n")
    assert main(words) == 0
    bundle = Bundle.load(Path("out"))
    assert f"run {bundle.run_id} was cut, and goes on" in capsys.readouterr().out
    history = store.client().get_metric_history(bundle.run_id, "val/dice")
    assert len({m.step for m in history}) == len(history) == 2


def test_export_prunes_and_shows_both(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--prune", "0.5", "--to", "onnx,openvino", "--precision", "int8", "--threads", "1"]
    assert main(["export", recorded.run_id, "out", *words, "--json", "figures.json"]) == 0
    said, told = capsys.readouterr()
    assert len([line for line in told.splitlines() if line.startswith("pruned    ") and "are left" in line]) == 1
    assert "before pruning: onnxruntime-fp32" in said
    assert "before fine-tuning: onnxruntime-fp32" in said
    assert "openvino-int8" in said
    bundle = Bundle.load(Path("out"))
    figures = json.loads(Path("figures.json").read_text())
    check_steps(figures, bundle, recorded, said)
    assert bundle.network["pruned"] == 0.5
    assert bundle.run_id != recorded.run_id
    assert store.client().get_run(bundle.run_id).info.run_name == "wide-pruned"
    assert [model.name for model in bundle.models] == [
        "onnxruntime-fp32",
        "onnxruntime-int8",
        "openvino-fp32",
        "openvino-int8",
    ]
    scan = next((recorded.root / "images").glob("*"))
    assert Predictor(bundle, threads=1, model="openvino-int8").predict(read(scan)).label is not None
    assert bundle.run_id is not None
    check_refused(bundle.run_id, capsys)


def check_refused(run_id: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What was pruned is not pruned again: its recipe would begin with weights that don't fit. Nothing is trained."""
    before = len(store.runs())
    assert main(["export", run_id, "again", "--prune", "0.5", "--threads", "1"]) == 2
    said = capsys.readouterr()
    assert said.err == (
        "medlight export: --prune 0.5: wide-pruned is pruned already, by 0.5; mend: name the run that it was made of, "
        "with a higher ratio, or leave --prune out\n"
    )
    assert said.out == ""
    assert len(store.runs()) == before
    assert not Path("again").exists()


@pytest.mark.parametrize("step", [1, 2], ids=["before pruning", "before fine-tuning"])
def test_a_step_that_fails_is_recorded_too(
    step: int, recorded: Recorded, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, calls = export_module._checked, []

    def checked(task: Any, bundle: Bundle, *given: Any) -> dict[str, Any]:
        found = real(task, bundle, *given)
        calls.append(bundle)
        if len(calls) == step:
            raise ParityError("the exported model differs", {**found, "max_abs_diff": 0.5 + step})
        return found

    store.client().set_tag(recorded.run_id, "medlight.export", "complete")
    monkeypatch.setattr(export_module, "_checked", checked)
    assert main(["export", recorded.run_id, "failing", "--prune", "0.5", "--threads", "1"]) == 1
    assert capsys.readouterr().err == "medlight export: the exported model differs\n"
    assert recorded.tags()["medlight.export"] == "failed"
    differs = recorded.metrics().get("export/max_abs_diff")
    assert differs == 1.5, "of this run's own network, and not of the one without channels"


def check_steps(figures: dict[str, Any], bundle: Bundle, recorded: Recorded, said: str) -> None:
    """What each step costs and scores is that of networks built and measured here."""
    (whole,), (narrow,), models = *figures["steps"].values(), figures["models"]
    assert list(figures["steps"]) == ["before_pruning", "before_fine_tuning"]
    wide = tasks.load(store.artifact(recorded.run_id, "checkpoints/best.ckpt"))
    parameters, operations = weights_and_flops(wide)
    assert (whole["parameters"], whole["flops"]) == (parameters, operations)
    options = {"cases": None, "threads": 1}
    exported = export(store.artifact(recorded.run_id, "checkpoints/best.ckpt"), Path("whole"), **options)
    assert whole["bytes"] == (exported.root / "model.onnx").stat().st_size
    wide.prune(0.5)
    parameters, operations = weights_and_flops(wide)
    assert (narrow["parameters"], narrow["flops"]) == (parameters, operations)
    assert narrow["bytes"] < 0.6 * whole["bytes"]
    assert [model["model"] for model in models] == [model.name for model in bundle.models]
    assert {model["flops"] for model in models} == {operations}
    assert [m["bytes"] for m in models] == [(bundle.root / m.file).stat().st_size for m in bundle.models]
    score = {row["dice"] for row in (whole, narrow, models[0])}
    assert len(score) == 3  # three networks
    assert models[0]["dice"] == bundle.parity["dice"]["bundle"]
    assert models[0]["difference"] == bundle.parity["max_abs_diff"] < 1e-4
    assert whole["difference"] < 1e-4
    assert min(row["ms"] for row in (whole, narrow, *models)) > 0
    lines = {title: next(line for line in said.splitlines() if f"{title}: onnx" in line) for title in TITLES}
    for title, row in zip(TITLES, (whole, narrow), strict=True):
        assert any(title in line and f" {row['worst_case']} " in line for line in said.splitlines())
        assert f" {row['dice']:.4f} " in lines[title]
        assert f" {row['flops'] / 1e9:.2f} " in lines[title]
    assert bundle.run_id is not None
    kept = json.loads(store.artifact(bundle.run_id, "pruning.json").read_text())
    assert kept == {**figures["steps"], "pruned": models}
    metrics = store.client().get_run(bundle.run_id).data.metrics
    for step, (first, *_) in kept.items():
        assert metrics[f"export/{step}/dice"] == first["dice"]


def test_the_steps_are_kept_where_the_export_fails(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export_module._checked

    def checked(task: Any, bundle: Bundle, *given: Any) -> dict[str, Any]:
        found = real(task, bundle, *given)
        if bundle.run_id:  # the steps towards the bundle have none
            raise ParityError("the exported model differs", found)
        return found

    monkeypatch.setattr(export_module, "_checked", checked)
    assert main(["export", recorded.run_id, "failing", "--prune", "0.5", "--threads", "1"]) == 1
    assert not Path("failing").exists()
    (run,) = store.runs("attributes.run_name = 'wide-pruned' AND tags.`medlight.export` = 'failed'")
    kept = json.loads(store.artifact(run.info.run_id, "pruning.json").read_text())
    assert list(kept) == ["before_pruning", "before_fine_tuning"]
    assert run.data.metrics["export/before_pruning/dice"] == kept["before_pruning"][0]["dice"]


TITLES = ["before pruning", "before fine-tuning"]


def weights_and_flops(task: Any) -> tuple[int, int]:
    """Parameters of what is deployed, and operations of one window."""
    module = task.deployable()
    return sum(p.numel() for p in module.parameters()), flops(module, torch.zeros(1, 1, 16, 16, 16))


def test_wrong_uses_are_refused(recorded: Recorded, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (0.0, 1.0, True, "half"):
        with pytest.raises(UsageError, match=r"ChannelPruning\.ratio"):
            ChannelPruning(wrong)  # type: ignore[arg-type]
    assert main(["export", recorded.run_id, "wrong", "--prune", "1.5"]) == 2
    assert "--prune 1.5: " in capsys.readouterr().err
    config = set_path({**recorded.config, "name": "slim"}, FILTERS, [4, 8, 8])
    config = set_path(config, "trainer.callbacks", [PRUNING])
    with pytest.raises(UsageError, match="no channels to spare"):
        fit(config, Launch())
    checkpoint = store.artifact(recorded.run_id, "checkpoints/best.ckpt")
    assert main(["export", str(checkpoint), "wrong", "--prune", "0.5", "--unchecked"]) == 2
    assert "name its run" in capsys.readouterr().err
