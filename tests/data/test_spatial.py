"""RandomSpatial against TorchIO's and scipy's own resampling, and what must hold of any movement."""

import numpy as np
import pytest
import torch
import torchio as tio
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from medlight.data.augment import RandomSpatial
from medlight.data.augment.movement import Movement
from medlight.data.augment.resampling import Source, move
from medlight.data.patches import Window

SHAPE = (30, 36, 26)


def move_image(image, movement, window, pad):
    return move([Source(image, pad=pad)], movement, window)[0]


def move_label(label, movement, window):
    return move([Source(label, is_label=True)], movement, window)[0]


def smooth(shape=SHAPE, seed=0, channels=1):
    noise = np.random.default_rng(seed).normal(size=(channels, *shape))
    image = np.stack([ndimage.gaussian_filter(channel, 2) for channel in noise])
    return torch.from_numpy(((image - image.min()) / np.ptp(image)).astype(np.float32))


def oblique():
    angle = 0.2
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag([1.0, 1.25, 0.8])
    affine[:3, 3] = 20, -30, 7
    return affine


def subject(image=None, affine=None):
    image = smooth() if image is None else image
    affine = np.eye(4) if affine is None else affine
    label = (image[:1] > image.mean()).to(torch.uint8)
    scan = tio.ScalarImage(tensor=image, affine=affine)
    return tio.Subject(image=scan, label=tio.LabelMap(tensor=label, affine=affine))


def fixed(*values):
    """The six numbers that leave a TorchIO range no choice."""
    return tuple(v for value in values for v in (value, value))


FIXED = [
    {"scales": (1.1, 0.9, 1.2), "degrees": (0, 0, 0), "translation": (0, 0, 0)},
    {"scales": (1, 1, 1), "degrees": (12, 0, 0), "translation": (0, 0, 0)},
    {"scales": (1, 1, 1), "degrees": (0, -15, 0), "translation": (0, 0, 0)},
    {"scales": (1, 1, 1), "degrees": (10, 20, 30), "translation": (0, 0, 0)},
    {"scales": (1, 1, 1), "degrees": (0, 0, 0), "translation": (3, -2, 4.5)},
    {"scales": (1.1, 0.9, 1.2), "degrees": (10, -20, 30), "translation": (3, -2, 4)},
]


@pytest.mark.parametrize("affine", [np.eye(4), np.diag([1.0, 1.25, 0.8, 1]), np.diag([-1.0, 1, 1, 1]), oblique()])
@pytest.mark.parametrize("values", FIXED)
def test_affine_equals_torchio(values, affine):
    before = subject(affine=affine)
    theirs = tio.Affine(**values, default_pad_value=0)(before)
    ours = RandomSpatial(**{name: fixed(*three) for name, three in values.items()})(before)
    inside = tio.Affine(**values, default_pad_value=0)(subject(torch.ones(1, *SHAPE), affine)).image.data > 0
    inside = ndimage.binary_erosion(inside[0].numpy(), iterations=2)  # ours blend with 0 at the border
    inside = torch.from_numpy(inside)[None]
    assert inside.float().mean() > 0.3
    assert torch.allclose(ours.image.data[inside], theirs.image.data[inside], atol=2e-5)
    # a source halfway between two voxels may fall to either
    assert (ours.label.data != theirs.label.data).float().mean() < 0.01


def test_elastic_equals_torchio_inside():
    before = subject()
    points = tio.RandomElasticDeformation.get_params((7, 7, 7), (3.0, 3.0, 3.0), 0)
    theirs = tio.ElasticDeformation(points, (3.0, 3.0, 3.0))(before)
    # ITK's points and displacements run along LPS axes, and its grid is an eighth of a millimetre wider on each side
    control = points[::-1, ::-1].astype(np.float64) * [-1, -1, 1]
    ours = move_image(before.image.data, Movement(np.eye(3), np.zeros(3), control), Window((0, 0, 0), SHAPE), 0)
    inside = (slice(None), *[slice(4, -4)] * 3)
    apart = (ours - theirs.image.data)[inside].abs()
    untouched = (before.image.data - theirs.image.data)[inside].abs()
    assert apart.mean() < 0.02 * untouched.mean()


def test_matrix_field_and_flip_equal_scipy():
    rng = np.random.default_rng(1)
    matrix = np.eye(3) + rng.normal(0, 0.1, (3, 3))
    shift = rng.normal(0, 2, 3)
    control = rng.normal(0, 1.5, (5, 6, 4, 3))
    window = Window((2, -3, 1), (20, 31, 18))
    image = smooth(channels=2)
    source = []
    middle = np.array(window.low) + (np.array(window.size) - 1) / 2
    at = [(np.arange(n) + 0.5) / n * (p - 3) + 1 for n, p in zip(window.size, control.shape, strict=False)]
    where = np.stack(np.meshgrid(*at, indexing="ij"))
    for axis in range(3):
        voxel = np.stack(np.meshgrid(*[np.arange(n) - (n - 1) / 2 for n in window.size], indexing="ij"))
        field = ndimage.map_coordinates(control[..., axis], where, order=3, prefilter=False, mode="constant")
        source.append(np.tensordot(matrix[axis], voxel, 1) + shift[axis] + middle[axis] + field)
    padded = np.pad(image.numpy(), [(0, 0), *[(1, 1)] * 3])
    expected = [ndimage.map_coordinates(c, np.stack(source) + 1, order=1, mode="constant") for c in padded]
    moved = move_image(image, Movement(matrix, shift, control), window, 0)
    assert np.abs(moved.numpy() - np.stack(expected)).max() < 1e-4


@pytest.mark.parametrize("flips", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
def test_quick_ways_equal_the_general_one(flips):
    """Flips alone and scalings alone go other ways than rotations do."""
    window = Window((-2, 3, 0), (33, 20, 26))
    for exact in (np.diag(np.array([1.13, 0.83, 1.0]) * flips), np.diag(np.array(flips, float))):
        image, label = smooth(channels=2), (smooth() > 0.5).to(torch.uint8)
        almost = exact + 1e-12
        for shift in (np.zeros(3), np.array([0.31, 0, -1.23])):
            quick, slow = Movement(exact, shift), Movement(almost, shift)
            assert quick.is_separable
            assert not slow.is_separable
            for pad in (0.0, 0.7, torch.tensor([0.2, 0.4]).view(2, 1, 1, 1)):
                apart = move_image(image, quick, window, pad) - move_image(image, slow, window, pad)
                assert apart.abs().max() < 1e-4
            assert (move_label(label, quick, window) != move_label(label, slow, window)).float().mean() < 0.02


def test_labels_move_with_images():
    torch.manual_seed(0)
    grid = np.stack(np.meshgrid(*[np.arange(n) for n in SHAPE], indexing="ij"))
    middle, squares = (np.array(three).reshape(3, 1, 1, 1) for three in ([14, 20, 12], [64, 36, 25]))
    blob = ((grid - middle) ** 2 / squares).sum(0)
    image = torch.from_numpy(np.clip(2 - blob, 0, None).astype(np.float32))[None]
    both = tio.Subject(image=tio.ScalarImage(tensor=image), label=tio.LabelMap(tensor=(image > 1).to(torch.uint8)))
    transform = RandomSpatial(0.2, 25, 3, max_displacement=3, num_control_points=6, axes=(0, 1, 2))
    for _ in range(10):
        moved = transform(both)
        guess, label = moved.image.data > 1, moved.label.data > 0
        dice = 2 * (guess & label).sum() / (guess.sum() + label.sum())
        assert dice > 0.93
        assert moved.label.data.dtype == torch.uint8
        assert not torch.equal(moved.label.data, both.label.data)


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 0.4), st.floats(0, 60), st.floats(0, 9), st.floats(0, 5), st.integers(0, 10**6), st.booleans())
def test_movements_keep_to_their_ranges(scale, degrees, translation, displacement, seed, isotropic):
    torch.manual_seed(seed)
    transform = RandomSpatial(
        scale, degrees, translation, isotropic, max_displacement=displacement, num_control_points=5, axes=(0, 2)
    )
    movement = transform.get_params((12, 16, 20), np.eye(4))
    scales = 1 / np.linalg.norm(movement.matrix, axis=0)
    assert (scales >= 1 - scale - 1e-9).all()
    assert (scales <= 1 + scale + 1e-9).all()
    assert not isotropic or np.allclose(scales, scales[0])
    if not degrees:
        assert (np.sign(np.diag(movement.matrix))[[1]] == 1).all()  # axis 1 is never flipped
        assert np.allclose(np.abs(movement.shift * scales), np.abs(movement.shift) * scales)
    if displacement and movement.control is not None:
        assert movement.control.shape == (5, 5, 5, 3)
        forward = np.linalg.inv(movement.matrix * np.sign(np.linalg.det(movement.matrix)))
        assert np.abs(movement.control @ forward.T).max() <= displacement * np.sqrt(3) * (1 + 1e-9)


def test_probabilities_are_those_asked_for():
    torch.manual_seed(0)
    transform = RandomSpatial(
        0.1, 10, max_displacement=2, axes=(0,), flip_probability=0.7,
        scale_probability=0.2, rotation_probability=0.5, elastic_probability=0.3,
    )  # fmt: skip
    drawn = [transform.get_params((8, 8, 8), np.eye(4)) for _ in range(2000)]
    sizes = np.array([np.linalg.norm(m.matrix, axis=0) for m in drawn])
    rotated = np.mean([np.count_nonzero(m.matrix) > 3 for m in drawn])
    flipped = np.mean([np.linalg.det(m.matrix) < 0 for m in drawn])
    assert np.mean(np.abs(sizes - 1).max(axis=1) > 1e-6) == pytest.approx(0.2, abs=0.03)
    assert rotated == pytest.approx(0.5, abs=0.04)
    assert flipped == pytest.approx(0.7, abs=0.04)
    assert np.mean([m.control is not None for m in drawn]) == pytest.approx(0.3, abs=0.04)


def test_a_plane_stays_a_plane():
    torch.manual_seed(3)
    image = smooth((40, 30, 4))[..., :1]
    transform = RandomSpatial((1.2, 1.2), (25, 25), 5, max_displacement=3, axes=(2,), flip_probability=1)
    movement = transform.get_params((40, 30, 1), np.eye(4))
    assert movement.matrix[2].tolist() == [0, 0, 1]
    assert movement.matrix[:, 2].tolist() == [0, 0, 1]
    assert movement.shift[2] == 0
    assert not movement.control[..., 2].any()
    rotated = RandomSpatial(fixed(1.2, 1.1, 1.3), fixed(20, 30, 25))(subject(image))
    theirs = tio.Affine((1.2, 1.1, 1.3), (20, 30, 25), (0, 0, 0), default_pad_value=0)(subject(image))
    inside = (slice(None), slice(11, -11), slice(9, -9))
    assert torch.allclose(rotated.image.data[inside], theirs.image.data[inside], atol=1e-5)


def test_padding_is_the_value_asked_for():
    image = smooth() + 3
    far = {"scales": (1, 1), "degrees": (0, 0), "translation": fixed(100, 0, 0)}
    assert (RandomSpatial(**far)(subject(image)).image.data == 0).all()
    assert RandomSpatial(**far, default_pad_value=-2)(subject(image)).image.data.allclose(torch.tensor(-2.0))
    lowest = RandomSpatial(**far, default_pad_value="minimum")(subject(image)).image.data
    assert lowest.allclose(image.min())
    assert (RandomSpatial(**far)(subject(image)).label.data == 0).all()


def test_it_is_a_torchio_transform():
    torch.manual_seed(0)
    before = subject()
    kept = before.image.data.clone()
    chain = tio.Compose([RandomSpatial(degrees=20, exclude=["label"]), tio.RandomNoise(), RandomSpatial(p=0)])
    after = chain(before)
    assert torch.equal(before.image.data, kept)
    assert not torch.equal(after.image.data, kept)
    assert torch.equal(after.label.data, before.label.data)
    assert RandomSpatial()(smooth()).shape == (1, *SHAPE)  # a bare tensor, as TorchIO takes it


@pytest.mark.parametrize(
    "arguments",
    [{"scales": (1.2, 0.8)}, {"num_control_points": 3}, {"axes": (3,)}, {"axes": ("LR",)}, {"flip_probability": 2},
     {"max_displacement": -1}, {"rotation_probability": 1.5}, {"default_pad_value": "mean"}, {"p": 2}],
)  # fmt: skip
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises((ValueError, TypeError)):
        RandomSpatial(**arguments)
