"""What is read around a patch is enough, and not much more."""

import numpy as np
import pytest
import torch
import torchio as tio
from hypothesis import given, settings
from hypothesis import strategies as st
from monai import transforms as mt

from medlight.data.augment import RandomBlur, RandomSpatial
from medlight.data.patches import Window
from medlight.data.pipeline import Pipeline
from medlight.data.reach import reach_of
from medlight.errors import UsageError
from tests.data.test_spatial import smooth

SIZE = (12, 16, 10)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 45), st.floats(0, 0.3), st.floats(0, 4))
def test_a_drawn_movement_needs_no_more_than_it_says(seed, degrees, scale, displacement):
    """A patch made from what was read equals the one made from the whole scan."""
    scan = smooth((50, 60, 48))
    lead = RandomSpatial(scale, degrees, 3.0, max_displacement=displacement, axes=(0, 1, 2))
    pipeline = Pipeline([lead])
    window = Window((20, 22, 18), SIZE)
    with pipeline.seeded(seed):
        plan = pipeline.plan(window, np.eye(4))
    slab = plan.needed.inside((50, 60, 48))
    part = tio.Subject(image=tio.ScalarImage(tensor=scan[:, *slab.slices].clone()))
    from_part = pipeline.run(part, slab, plan).image.data
    whole = Window((0, 0, 0), (50, 60, 48))
    from_whole = pipeline.run(tio.Subject(image=tio.ScalarImage(tensor=scan)), whole, plan).image.data
    assert from_part.shape == (1, *SIZE)
    assert torch.allclose(from_part, from_whole, atol=1e-4)


CHAINS = {
    "torchio": lambda mm: [
        tio.RandomAffine(0.2, 25, 2 * mm, default_pad_value=-1),
        tio.RandomElasticDeformation(6, 2.0 * mm, locked_borders=0),
    ],
    "ours, inside another": lambda mm: [
        tio.Compose([RandomSpatial(0.2, 25, 2 * mm, max_displacement=2 * mm, default_pad_value=-1, axes=(0, 1, 2))])
    ],
}


@pytest.mark.parametrize("spacing", [1.0, 2.0])
@pytest.mark.parametrize("chain", CHAINS)
def test_transforms_get_enough_around_the_patch(chain, spacing):
    """Where too little is read, a transform's padding value comes into the patch."""
    affine = np.diag([spacing, spacing, spacing, 1])
    pipeline = Pipeline(CHAINS[chain](spacing))
    assert pipeline.plan(Window((0, 0, 0), SIZE), affine).movement is None
    for seed in range(10):
        with pipeline.seeded(seed):
            plan = pipeline.plan(Window((30, 30, 30), SIZE), affine)
            ones = torch.ones(1, *plan.needed.size)
            part = tio.Subject(image=tio.ScalarImage(tensor=ones, affine=affine))
            patch = pipeline.run(part, plan.needed, plan).image.data
        assert patch.shape == (1, *SIZE)
        assert torch.allclose(patch, torch.ones_like(patch), atol=1e-4)


def test_reach_by_kind():
    def of(transform, size=SIZE):
        return reach_of(transform, size, np.eye(4))

    assert of(tio.RandomNoise()) == (0, 0, 0)
    assert of(tio.RandomFlip((0, 1))) == (0, 0, 0)
    assert of(tio.RandomAffine(0, 0, 3)) == (3, 3, 3)
    assert of(tio.RandomElasticDeformation(7, (1, 2.5, 0))) == (1, 3, 0)
    assert of(tio.Compose([tio.RandomAffine(0, 0, 3), tio.RandomElasticDeformation(7, 2.0)])) == (5, 5, 5)
    assert of(tio.OneOf([tio.RandomAffine(0, 0, 3), tio.RandomElasticDeformation(7, 2.0)])) == (3, 3, 3)
    assert of(tio.MonaiAdapter(mt.RandAffined(["image"], rotate_range=0.1))) == (3, 4, 3)
    assert of(tio.MonaiAdapter(mt.RandGaussianNoised(["image"]))) == (0, 0, 0)
    assert of(tio.RandomAffine(0, (0, 0, 0, 0, 90, 90)), (20, 20, 1))[2] == 0

    class Shifts(tio.RandomFlip):
        def reach(self, size, affine):
            return (7, 0, 1)

    assert of(Shifts()) == (7, 0, 1)


def test_the_users_transforms_are_not_touched():
    mine = RandomBlur()
    Pipeline([tio.Compose([mine])])
    assert mine.copy


def test_a_transform_that_changes_the_shape_is_refused():
    pipeline = Pipeline([tio.CropOrPad(6)])
    plan = pipeline.plan(Window((0, 0, 0), SIZE), np.eye(4))
    with pytest.raises(UsageError, match="change the shape"):
        pipeline.run(tio.Subject(image=tio.ScalarImage(tensor=torch.rand(1, *SIZE))), plan.needed, plan)
