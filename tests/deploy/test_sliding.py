"""The predictor's sliding window against MONAI's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.inferers.utils import sliding_window_inference

from medlight.deploy.runtime.sliding import blended, gaussian_weights, joined, window_starts


def sliding_window(image, window, model, **options):
    """The whole of what comes slab by slab."""
    return joined(blended(image, window, model, **options), image.shape[1:])


def monai_windows(image: np.ndarray, window: list[int], network, batch: int, overlap: float = 0.5) -> np.ndarray:
    result = sliding_window_inference(
        torch.from_numpy(image)[None], window, batch, network, overlap=overlap, mode="gaussian", sigma_scale=0.125
    )
    return result[0].numpy()


def shift_dependent(channels: int, dims: int):
    """A network whose output depends on the place in the window, so that a wrong position or weight shows."""
    torch.manual_seed(0)
    conv = (torch.nn.Conv3d if dims == 3 else torch.nn.Conv2d)(channels, 3, 3, padding=1)

    def network(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            ramp = torch.linspace(-1, 1, x[0, 0].numel()).reshape(x.shape[2:])
            return torch.softmax(conv(x) + ramp, 1)

    return network


@st.composite
def images(draw) -> tuple[np.ndarray, list[int], int]:
    dims = draw(st.sampled_from([2, 3]))
    shape = draw(st.lists(st.integers(1, 23), min_size=dims, max_size=dims))
    window = draw(st.lists(st.integers(2, 11), min_size=dims, max_size=dims))
    channels = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 1000)))
    return rng.normal(size=(channels, *shape)).astype(np.float32), window, draw(st.integers(1, 5))


@settings(max_examples=60, deadline=None)
@given(images())
def test_equals_monai_for_any_size_and_window(drawn) -> None:
    image, window, batch = drawn
    network = shift_dependent(image.shape[0], image.ndim - 1)
    ours = sliding_window(image, window, lambda x: network(torch.from_numpy(x)).numpy(), batch=batch)
    np.testing.assert_allclose(ours, monai_windows(image, window, network, batch), atol=2e-6)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.9])
def test_equals_monai_for_other_overlaps(overlap: float) -> None:
    image = np.random.default_rng(0).normal(size=(1, 19, 14, 9)).astype(np.float32)
    network = shift_dependent(1, 3)
    ours = sliding_window(image, [8, 6, 9], lambda x: network(torch.from_numpy(x)).numpy(), overlap=overlap)
    np.testing.assert_allclose(ours, monai_windows(image, [8, 6, 9], network, 2, overlap), atol=2e-6)


@given(st.integers(1, 200), st.integers(1, 64), st.floats(0, 0.95))
def test_windows_cover_the_axis_and_stay_inside(size: int, window: int, overlap: float) -> None:
    starts = window_starts(size, window, overlap)
    covered = {p for start in starts for p in range(start, start + window)}
    assert covered >= set(range(size))
    assert size <= window or max(starts) + window == size
    assert starts == sorted(set(starts))


def test_weights_are_monais() -> None:
    from monai.data.utils import compute_importance_map

    for window in ([40, 56, 40], [7, 5], [3, 64, 2]):
        theirs = compute_importance_map(tuple(window), mode="gaussian", sigma_scale=0.125).numpy()
        np.testing.assert_allclose(gaussian_weights(window), theirs, rtol=1e-5)


def test_an_image_smaller_than_the_window_is_padded_with_each_channels_value() -> None:
    seen = []

    def model(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        return x

    image = np.ones((2, 2, 3), np.float32)
    result = sliding_window(image, [4, 4], model, pad_value=[-1000.0, 5.0])
    assert result.shape == image.shape
    assert (seen[0][0, 0, 0] == -1000).all()
    assert (seen[0][0, 1, 0] == 5).all()
    np.testing.assert_allclose(result, image)


def test_batches_change_nothing_and_progress_counts_windows() -> None:
    image = np.random.default_rng(1).normal(size=(1, 20, 20)).astype(np.float32)
    calls: list[tuple[int, int]] = []
    one = sliding_window(image, [8, 8], lambda x: np.tanh(x), batch=1, progress=lambda *c: calls.append(c))
    many = sliding_window(image, [8, 8], lambda x: np.tanh(x), batch=7)
    assert np.array_equal(one, many)
    assert calls[-1] == (16, 16)
