from __future__ import annotations

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.networks.nets import DynUNet

from medlight.networks import plan_dynunet


def test_hippocampus_patch():
    plan = plan_dynunet([40, 56, 40])
    assert plan["strides"] == [[1, 1, 1], [2, 2, 2], [2, 2, 2], [2, 2, 2]]
    assert plan["kernel_size"] == [[3, 3, 3]] * 4
    assert plan["upsample_kernel_size"] == plan["strides"][1:]


def test_large_patch_stops_at_six_resolutions():
    assert len(plan_dynunet([256, 256])["strides"]) == 6


def test_thick_slices_wait_until_the_others_have_caught_up():
    plan = plan_dynunet([64, 64, 16], spacing=[1, 1, 5])
    assert plan["kernel_size"][:3] == [[3, 3, 1], [3, 3, 1], [3, 3, 3]]
    assert plan["strides"][:4] == [[1, 1, 1], [2, 2, 1], [2, 2, 1], [2, 2, 2]]


def test_as_many_levels_as_asked_for():
    assert len(plan_dynunet([8, 8, 8], levels=5)["strides"]) == 5


@settings(max_examples=60, deadline=None)
@given(
    size=st.lists(st.integers(1, 96), min_size=2, max_size=3),
    spacing=st.lists(st.floats(0.3, 8), min_size=3, max_size=3),
)
def test_every_patch_divides_by_its_strides_and_keeps_four_voxels(size, spacing):
    plan = plan_dynunet(size, spacing)
    assert 3 <= len(plan["strides"]) == len(plan["kernel_size"]) <= 6
    for axis, voxels in enumerate(size):
        total = math.prod(step[axis] for step in plan["strides"])
        assert voxels % total == 0
        assert total == 1 or voxels // total >= 4


@settings(max_examples=8, deadline=None)
@given(size=st.lists(st.integers(4, 18), min_size=2, max_size=2), thick=st.sampled_from([1.0, 4.0]))
def test_a_planned_network_gives_its_patch_back(size, thick):
    plan = plan_dynunet([*size, 8], [1, 1, thick])
    network = DynUNet(3, 1, 2, filters=[2] * len(plan["strides"]), **plan).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 1, *size, 8)).shape == (1, 2, *size, 8)
