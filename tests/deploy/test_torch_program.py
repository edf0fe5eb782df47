"""Programs of torch: as exact as the other runtimes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from medlight.deploy.onnx_export import Exported
from medlight.deploy.torch_program import TorchSession, export_program

SWITCHES = (torch.backends.cudnn.conv, torch.backends.cudnn.rnn)


@pytest.fixture
def session(tmp_path: Path) -> TorchSession:
    module = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Softmax(1))
    export_program(module, 1, [16, 16], Exported(["batch"], 1, "dynamo"), tmp_path / "model.pt2")
    return TorchSession(tmp_path / "model.pt2", "fp32", torch.get_num_threads())


@pytest.fixture(params=[True, False])
def allowed(request: pytest.FixtureRequest) -> Iterator[bool]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = request.param
    yield request.param
    torch.backends.cudnn.allow_tf32 = before


def test_tf32_is_off_while_a_program_runs_and_then_as_it_was(session: TorchSession, allowed: bool) -> None:
    """By default cuDNN computes float32 in TF32, which moves probabilities by 1e-3."""
    real, seen = session._module, []

    def watched(batch: torch.Tensor) -> torch.Tensor:
        seen.append([switch.fp32_precision for switch in SWITCHES])
        return real(batch)

    session._module = watched  # type: ignore[assignment]
    found = session(np.zeros((1, 1, 16, 16), np.float32))
    assert found.shape == (1, 2, 16, 16)
    assert seen == [["ieee", "ieee"]]
    assert torch.backends.cudnn.allow_tf32 is allowed


def test_tf32_is_as_it_was_after_an_error(session: TorchSession, allowed: bool) -> None:
    def broken(batch: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no room")

    session._module = broken  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="no room"):
        session(np.zeros((1, 1, 16, 16), np.float32))
    assert torch.backends.cudnn.allow_tf32 is allowed
