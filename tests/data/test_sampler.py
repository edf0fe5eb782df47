"""Draw numbers: the same for any ranks, each case as often as any other."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medlight.data.sampler import DrawSampler, ShareSampler, case_of


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 2, 4]), st.integers(0, 7), st.integers(0, 3))
def test_ranks_share_the_batches_of_one_process(steps, batch, world, epoch, seed):
    whole = DrawSampler(steps, batch * world)
    whole.set_epoch(epoch)
    batches = [list(whole)[s * batch * world : (s + 1) * batch * world] for s in range(steps)]
    shares = [DrawSampler(steps, batch, rank, world) for rank in range(world)]
    for share in shares:
        share.set_epoch(epoch)
    for step in range(steps):
        together = [d for share in shares for d in list(share)[step * batch : (step + 1) * batch]]
        assert together == batches[step]


def test_epochs_follow_each_other_without_gap_or_overlap():
    sampler, seen = DrawSampler(3, 4), []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        seen += list(sampler)
    assert seen == list(range(48))
    assert len(sampler) == 12


@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(0, 50))
def test_every_case_comes_once_a_turn(seed, count, turn):
    drawn = [case_of(seed, draw, count) for draw in range(turn * count, (turn + 1) * count)]
    assert sorted(drawn) == list(range(count))


def test_the_order_changes_with_turn_and_seed():
    def turn(seed, number):
        return [case_of(seed, draw, 20) for draw in range(20 * number, 20 * number + 20)]

    assert turn(0, 0) != turn(0, 1)
    assert turn(0, 0) != turn(1, 0)
    assert turn(0, 3) == turn(0, 3)


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_every_case_is_evaluated_by_exactly_one_rank(world):
    shares = [list(ShareSampler(range(7), rank, world)) for rank in range(world)]
    assert sorted(index for share in shares for index in share) == list(range(7))
