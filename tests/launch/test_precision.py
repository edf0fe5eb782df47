from __future__ import annotations

import time

import pytest
import torch

from medlight.launch.precision import Choice, choose, pick, time_variants
from medlight.tasks import ClassificationTask, SegmentationTask
from tests.tasks.blobs import CNN, DYNUNET, Blobs, Pictures


@pytest.mark.parametrize("built", [False, True])
def test_the_probe_leaves_nothing_behind(built):
    task = SegmentationTask(network=DYNUNET, data=Blobs().signature())
    if built:
        task.configure_model()
        task.run_network(torch.randn(2, 1, 16, 16, 16))
    before = {name: value.clone() for name, value in task.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    begin = time.perf_counter()
    choice = choose(task, (2, 1, 16, 16, 16), "cpu")
    assert time.perf_counter() - begin < 20
    assert torch.equal(torch.rand(3), expected)
    assert isinstance(choice, Choice)
    assert choice.precision in ("32-true", "bf16-mixed")
    assert "32-true" in choice.reason
    assert (task.network is not None) is built
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert all(parameter.grad is None for parameter in task.parameters())


def test_batch_statistics_are_measured_on_a_copy():
    network = CNN | {"init_args": CNN["init_args"] | {"norm": "batch"}}
    task = ClassificationTask(network=network, data=Pictures().signature())
    task.configure_model()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    choose(task, (2, 1, 12, 12), "cpu")
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())


def test_only_a_clear_win_is_taken():
    usual, last = ("32-true", False), ("32-true", True)
    half, both = ("bf16-mixed", False), ("bf16-mixed", True)
    choice = pick({usual: 1.0, last: 0.95, half: 2.0, both: 3.0}, "cpu")
    assert (choice.precision, choice.channels_last) == usual
    choice = pick({usual: 1.0, last: 0.95, half: 0.6, both: 0.5}, "cpu")
    assert (choice.precision, choice.channels_last) == both
    assert "600.0 ms" in choice.reason


class Slow(torch.nn.Module):
    """Slow in bf16 and with channels last, as old processors are."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 1, 1)
        self.calls = 0

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        output = self.conv(image)
        time.sleep(0.05 if output.dtype == torch.bfloat16 else 0.002)
        return output


def test_a_much_slower_variant_is_not_measured_for_long():
    begin = time.perf_counter()
    found = time_variants(Slow(), torch.randn(2, 1, 4, 4), [("32-true", False), ("bf16-mixed", False)])
    assert found["bf16-mixed", False] > 5 * found["32-true", False]
    assert time.perf_counter() - begin < 3


def test_a_step_that_takes_too_long_is_not_compared(monkeypatch):
    monkeypatch.setattr("medlight.launch.precision.TOO_LONG_S", 0.001)
    found = time_variants(Slow(), torch.randn(1, 1, 4, 4), [("32-true", False), ("bf16-mixed", False)])
    assert list(found) == [("32-true", False)]
    assert "too long to compare" in pick(found, "cpu").reason


@pytest.mark.gpu
def test_cuda_takes_mixed_precision():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    task = SegmentationTask(network=DYNUNET, data=Blobs().signature())
    choice = choose(task, (2, 1, 16, 16, 16), "cuda")
    assert choice.precision == ("bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed")
