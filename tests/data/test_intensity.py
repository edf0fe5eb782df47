"""Quick intensity transforms against TorchIO's own and scipy's."""

import numpy as np
import pytest
import torch
import torchio as tio
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torchio.transforms.augmentation.intensity.random_bias_field import BiasField

from medlight.data.augment import RandomAnisotropy, RandomBiasField, RandomBlur, RandomNoise
from tests.data.test_spatial import smooth, subject

SPACING = np.diag([1.0, 1.5, 0.5, 1.0])


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 4), st.tuples(*[st.integers(2, 21)] * 3), st.integers(0, 10**6))
def test_bias_field_equals_torchio(order, shape, seed):
    image = torch.rand(2, *shape) + 1
    torch.manual_seed(seed)
    ours = RandomBiasField(0.7, order)(image)
    torch.manual_seed(seed)
    torch.rand(1)  # whether the transform is applied
    coefficients = RandomBiasField(0.7, order).get_params(order, (-0.7, 0.7))
    field = BiasField.generate_bias_field(image, order, coefficients)
    assert torch.allclose(ours, image * torch.from_numpy(field), rtol=1e-4)


def test_bias_field_of_a_plane_is_flat_across_it():
    torch.manual_seed(0)
    field = RandomBiasField(0.5)(torch.ones(1, 12, 9, 1))
    assert torch.isfinite(field).all()
    assert field.std() > 0.01


@settings(max_examples=20, deadline=None)
@given(st.tuples(*[st.floats(0, 4)] * 3), st.tuples(*[st.integers(1, 30)] * 3))
def test_blur_equals_scipy(widths, shape):
    image = torch.rand(2, *shape)
    both = tio.ScalarImage(tensor=image, affine=SPACING)
    ours = RandomBlur(tuple(v for w in widths for v in (w, w)))(both).data
    sigma = np.array(widths) / np.diag(SPACING)[:3]
    expected = np.stack([ndimage.gaussian_filter(channel.numpy(), sigma) for channel in image])
    assert np.allclose(ours.numpy(), expected, atol=1e-4)


def test_blur_of_a_long_axis_goes_another_way_to_the_same_end():
    image = torch.rand(1, 200, 5, 4)
    ours = RandomBlur((1.5, 1.5))(image)
    assert np.allclose(ours[0].numpy(), ndimage.gaussian_filter(image[0].numpy(), 1.5), atol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("factor", [1.7, 2.3, 3.1, 4.9])
def test_low_resolution_equals_torchio_inside(axis, factor):
    image = tio.ScalarImage(tensor=smooth((31, 43, 37), channels=2))
    theirs = tio.RandomAnisotropy(axis, (factor, factor))(image).data
    ours = RandomAnisotropy(axis, (factor, factor))(image).data
    edge = int(np.ceil(factor))  # beyond the last coarse sample TorchIO has zeros
    inside = [slice(None)] * 4
    inside[axis + 1] = slice(edge, -edge)
    assert torch.allclose(ours[inside], theirs[inside], atol=1e-5)
    assert not torch.allclose(ours[inside], image.data[inside], atol=1e-3)


@pytest.mark.parametrize("transform", [RandomBiasField(), RandomBlur(), RandomNoise(), RandomAnisotropy()])
def test_labels_and_inputs_are_left_alone(transform):
    before = subject(smooth(channels=3))
    kept = before.image.data.clone()
    after = tio.Compose([transform])(before)
    assert torch.equal(before.image.data, kept)
    assert not torch.equal(after.image.data, kept)
    assert torch.equal(after.label.data, before.label.data)
    assert after.image.data.dtype == torch.float32
    assert after.image.data.shape == kept.shape


def test_noise_has_the_moments_asked_for():
    torch.manual_seed(0)
    flat = torch.full((1, 60, 60, 60), 7.0)
    noisy = RandomNoise(mean=(2, 2), std=(0.5, 0.5))(flat) - flat
    assert noisy.mean().item() == pytest.approx(2, abs=0.01)
    assert noisy.std().item() == pytest.approx(0.5, abs=0.01)
    spread = [RandomNoise(std=(0.1, 0.3))(flat[..., :20]).std().item() for _ in range(50)]
    assert 0.095 < min(spread) < 0.15
    assert 0.25 < max(spread) < 0.305


def test_a_plane_keeps_its_only_slice():
    image = smooth((20, 24, 3))[..., :1]
    assert torch.isfinite(RandomBlur(3)(image)).all()
    for seed in range(5):
        torch.manual_seed(seed)
        assert not torch.equal(RandomAnisotropy()(image), image)  # never along the axis that isn't there
