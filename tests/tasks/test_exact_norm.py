"""The written-out normalisation against torch's own, and against float64 where onnxruntime's operator goes wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from medlight.tasks.exact_norm import write_out_norms


def _norm(kind: str, channels: int) -> nn.Module:
    torch.manual_seed(0)
    made = {
        "instance": lambda: nn.InstanceNorm3d(channels),
        "affine": lambda: nn.InstanceNorm3d(channels, affine=True),
        "group": lambda: nn.GroupNorm(2, channels),
    }[kind]()
    for parameter in made.parameters():
        nn.init.uniform_(parameter, 0.5, 1.5)
    return made


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(["instance", "affine", "group"]), st.tuples(*[st.integers(2, 9)] * 3), st.integers(0, 99))
def test_equal_to_torch(kind: str, shape: tuple[int, int, int], seed: int) -> None:
    norm = _norm(kind, 4)
    written = nn.Sequential(norm)
    write_out_norms(written)
    assert type(written[0]) is not type(norm)
    image = torch.randn(2, 4, *shape, generator=torch.Generator().manual_seed(seed)) * 3 + 5
    torch.testing.assert_close(written(image), norm(image), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["affine", "group"])
def test_exact_in_onnxruntime_on_a_constant_background(kind: str, tmp_path: Path) -> None:
    norm = _norm(kind, 4)
    written = nn.Sequential(norm).eval()
    write_out_norms(written)
    image = torch.full((2, 4, 32, 32, 32), 0.317)
    image[:, :, :3] = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    torch.onnx.export(written, (image,), str(tmp_path / "norm.onnx"), dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "norm.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    reference = norm.double()(image.double()).detach().numpy()
    assert np.abs(found - reference).max() < 2e-6 * np.abs(reference).max()


def test_batch_normalisation_is_left_alone() -> None:
    network = nn.Sequential(nn.BatchNorm3d(3), nn.InstanceNorm3d(3, track_running_stats=True))
    write_out_norms(network)
    assert isinstance(network[0], nn.BatchNorm3d)
    assert isinstance(network[1], nn.InstanceNorm3d)
