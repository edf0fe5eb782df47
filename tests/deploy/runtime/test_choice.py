"""How many windows run at once: measured where windows are small, kept with the choice of the model."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medlight.deploy.bundle import Bundle, Model
from medlight.deploy.runtime import Predictor, choice, memory
from medlight.errors import MedlightError, UsageError
from medlight.scans import Volume
from tests.deploy.runtime.bundles import Fake, bands, bundle, written


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def made(tmp_path: Path) -> Bundle:
    return written(tmp_path / "bundle", bundle(3, [8, 8, 8]))


class Timed:
    """Stands for the opening of sessions; each run takes a time that depends on the number of windows."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.seconds = seconds
        self.sizes: list[int] = []

    def __call__(self, *_: object) -> Fake:
        def network(image: np.ndarray) -> np.ndarray:
            self.sizes.append(len(image))
            time.sleep(self.seconds(len(image)))
            return bands(3)(image)

        return Fake(network)


def refuses_four(count: int) -> float:
    if count > 1:
        raise RuntimeError("out of memory")
    return 0.001


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(lambda count: 0.004, 4), (lambda count: 0.004 * count, 1), (refuses_four, 1)],
    ids=["cheaper together", "as dear together", "refused together"],
)
def test_the_better_number_of_windows_is_taken_and_kept(
    made: Bundle, kept: Path, monkeypatch: pytest.MonkeyPatch, seconds: Callable[[int], float], expected: int
) -> None:
    timed = Timed(seconds)
    monkeypatch.setattr(choice, "open_session", timed)
    assert choice.fastest(made, 1).batch == expected
    assert set(timed.sizes) == {1, 4}
    (file,) = kept.rglob("*.json")
    assert json.loads(file.read_text())["onnxruntime-fp32"]["batch"] == expected
    timed.sizes.clear()
    predictor = Predictor(made, threads=1)
    assert (predictor.batch, predictor.runtime.endswith("4 windows at once")) == (expected, expected == 4)
    assert choice.chosen(made, "onnxruntime-fp32", 1).batch == expected
    assert timed.sizes == []


@pytest.mark.parametrize("reason", ["slow", "memory", "fixed", "classes"])
def test_four_are_not_tried_in_vain(tmp_path: Path, made: Bundle, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    timed = Timed(lambda count: 0.06 if reason == "slow" else 0.001)
    monkeypatch.setattr(choice, "open_session", timed)
    if reason == "memory":
        monkeypatch.setattr(memory, "free", lambda: 2 * memory.network(made, [8, 8, 8], 4))
    elif reason == "fixed":
        made.models[0].dynamic_axes.remove("batch")
    elif reason == "classes":
        made = written(tmp_path / "classes", bundle(3, [8, 8, 8], task="classification"))
    assert choice.fastest(made, 1).batch == 1
    assert 4 not in timed.sizes


def test_times_of_another_form_are_measured_anew(made: Bundle, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed = Timed(lambda count: 0.004)
    monkeypatch.setattr(choice, "open_session", timed)
    choice.fastest(made, 1)
    (file,) = kept.rglob("*.json")
    for old in ('{"onnxruntime-fp32": 0.001}', '{"onnxruntime-fp32": {"seconds": 1}}', "[]", "not JSON", "{}"):
        file.write_text(old)
        timed.sizes.clear()
        assert choice.fastest(made, 1).batch == 4
        assert timed.sizes


def test_each_runtime_has_its_own_number(made: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pace that counts is the better one of each."""
    alone, together = Timed(lambda count: 0.008 * count), Timed(lambda count: 0.012)
    models = [made.models[0], dataclasses.replace(made.models[0], precision="int8")]
    several = dataclasses.replace(made, models=models)
    monkeypatch.setattr(choice, "open_session", lambda b, m, t: (alone if m.precision == "fp32" else together)())
    found = choice.fastest(several, 1)
    assert found.batch == 4
    assert found.session.reason.startswith("numpy; int8, fastest here: 3.")
    assert "(onnxruntime-fp32 8." in found.session.reason


@pytest.mark.parametrize("broken", ["loading", "running"])
def test_a_remembered_model_that_runs_no_more_gives_way_to_the_next(
    made: Bundle, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """As an engine on a GPU that others fill: it does not load, or loads and has no memory to run in."""
    engine, graph = dataclasses.replace(made.models[0], runtime="tensorrt", precision="fp16"), made.models[0]
    several = dataclasses.replace(made, models=[graph, engine])
    fast, slow = Timed(lambda count: 0.001 * count), Timed(lambda count: 0.004 * count)
    full = False

    def filled(image: np.ndarray) -> np.ndarray:
        raise RuntimeError("CUDA error:\n out of memory")

    def opened(_: Bundle, model: Model, threads: int) -> Fake:
        if model.runtime == "tensorrt" and full:
            return Fake(filled) if broken == "running" else Fake(filled(np.empty(0)))  # type: ignore[arg-type]
        return (fast if model.runtime == "tensorrt" else slow)()

    monkeypatch.setattr(choice, "installed", lambda runtime: runtime in ("tensorrt", "onnxruntime"))
    monkeypatch.setattr(choice, "open_session", opened)
    assert choice.fastest(several, 1).session.reason.startswith("numpy; fp16, fastest here: 1.")
    full = True
    slow.sizes.clear()
    found = choice.fastest(several, 1)
    assert found.session.reason.startswith("numpy; fp32")
    assert found.session.reason.endswith("; does not run now: tensorrt-fp16: CUDA error: out of memory")
    assert slow.sizes == []  # nothing is measured again
    full = False
    assert choice.fastest(several, 1).session.reason.startswith("numpy; fp16")


def test_where_nothing_runs_any_more_each_reason_is_told(made: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    several = dataclasses.replace(made, models=[made.models[0], dataclasses.replace(made.models[0], precision="int8")])
    monkeypatch.setattr(choice, "open_session", Timed(lambda count: 0.001))
    choice.fastest(several, 1)

    def gone(*_: object) -> Fake:
        raise OSError("no such library")

    monkeypatch.setattr(choice, "open_session", gone)
    with pytest.raises(MedlightError, match="none of its models runs here") as refused:
        choice.fastest(several, 1)
    assert str(refused.value).count("no such library") == 2


def test_what_is_fastest_depends_on_the_gpus_that_may_be_used(
    made: Bundle, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choice, "open_session", Timed(lambda count: 0.001))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    for number, visible in enumerate((None, "", "0", "1"), start=1):
        if visible is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        choice.fastest(made, 1)
        choice.fastest(made, 1)
        assert len(list(kept.rglob("*.json"))) == number


def test_onnxruntimes_tensorrt_is_one_of_the_models(made: Bundle) -> None:
    for name in ("onnxruntime-tensorrt", "onnxruntime-tensorrt-fp32"):
        assert choice.asked_for(made, name).name == "onnxruntime-tensorrt-fp32"
    assert choice.asked_for(made, "onnxruntime").name == "onnxruntime-fp32"
    with pytest.raises(UsageError, match=r"no model 'onnxruntime-tensorrt-int8' \(there: onnxruntime-fp32\)"):
        choice.asked_for(made, "onnxruntime-tensorrt-int8")


def test_four_at_once_say_what_one_says(made: Bundle) -> None:
    array = np.random.default_rng(0).uniform(0, 100, (1, 19, 21, 23)).astype(np.float32)
    one, four = (Predictor(made, threads=1, batch=batch).predict(Volume(array, np.eye(4))) for batch in (1, 4))
    np.testing.assert_allclose(four.probabilities, one.probabilities, atol=2e-6)
    assert one.label is not None
    assert four.label is not None
    assert np.mean(one.label.array == four.label.array) > 0.9999


def test_windows_left_over_run_one_by_one(made: Bundle) -> None:
    """Some runtimes compile the network for each size they meet."""
    timed = Timed(lambda count: 0)
    calls: list[tuple[int, int]] = []
    array = np.zeros((1, 12, 12, 20), np.float32)  # 2 x 2 x 4 windows, less overlap
    array[0, 3:9] = 50
    Predictor(made, session=timed(), batch=3).predict(Volume(array, np.eye(4)), lambda *call: calls.append(call))
    assert set(timed.sizes) == {3, 1}
    assert sum(timed.sizes) == calls[-1][0] == calls[-1][1]
    assert timed.sizes.count(1) == sum(timed.sizes) % 3
