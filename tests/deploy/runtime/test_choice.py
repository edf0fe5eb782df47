"""How many windows run at once: measured where windows are small, kept with the choice of the model."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from medlight.deploy.bundle import Bundle
from medlight.deploy.runtime import Predictor, choice, memory
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
