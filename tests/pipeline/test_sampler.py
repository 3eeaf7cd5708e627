import numpy as np
import pytest

from pipeline.sampler import Draws, Plan, clip_keys, epoch_order

KEYS = clip_keys([f"clip_{number}" for number in range(4000)])


def test_draws_are_uniform_in_every_slot_and_count():
    for slot, epoch, count in (("flip", 0, 1), ("random_resized_crop/size", 3, 20), ("x", 1000, 4)):
        uniform = Draws(0, epoch, KEYS).uniform(slot, count)
        assert uniform.shape == (4000, count) and uniform.dtype == np.float64
        assert uniform.min() >= 0 and uniform.max() < 1
        for column in uniform.T:
            # Kolmogorov-Smirnov at about 1e-5 for 4000 numbers, over 25 columns.
            distance = np.abs(np.sort(column) - (np.arange(4000) + 0.5) / 4000).max()
            assert distance < 2.4 / np.sqrt(4000)


def test_draws_do_not_hang_together():
    draws = Draws(5, 2, KEYS)
    columns = [*draws.uniform("a", 3).T, *draws.uniform("b", 2).T]
    columns += [Draws(6, 2, KEYS).uniform("a")[:, 0], Draws(5, 3, KEYS).uniform("a")[:, 0]]
    columns += [Draws(5, 2, KEYS, view=1).uniform("a")[:, 0], np.roll(columns[0], 1)]
    correlation = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlation).max() < 5 / np.sqrt(4000)


def test_a_draw_depends_on_its_clip_and_slot_alone():
    whole = Draws(3, 1, KEYS)
    whole.uniform("another slot", 7)
    wanted = whole.uniform("slot", 4)
    rows = np.array([7, 3999, 0, 7])
    assert np.array_equal(Draws(3, 1, KEYS[rows]).uniform("slot", 4), wanted[rows])
    assert np.array_equal(Draws(3, 1, KEYS).uniform("slot", 2), wanted[:, :2])


def test_the_numbers_are_those_of_every_machine():
    draws = Draws(1, 2, clip_keys(["a", "b"]))
    pinned = [[0.7365648256905698, 0.13071625512640883], [0.3072573251903825, 0.8651243079283991]]
    assert draws.uniform("flip", 2).tolist() == pinned


def test_epoch_order_is_a_permutation_of_its_own_in_each_epoch():
    orders = [epoch_order(0, epoch, 100, shuffle=True) for epoch in range(3)]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert not np.array_equal(orders[0], orders[1])
    assert np.array_equal(orders[1], epoch_order(0, 1, 100, shuffle=True))
    assert epoch_order(0, 5, 4, shuffle=False).tolist() == [0, 1, 2, 3]
    # NumPy does not promise these numbers for ever, and stopped runs go on by them.
    assert epoch_order(3, 2, 10, shuffle=True).tolist() == [7, 4, 1, 8, 6, 0, 2, 9, 3, 5]


@pytest.mark.parametrize("first", [0, 5, 12])
def test_a_step_does_not_depend_on_how_many_ranks_share_it(first: int):
    order = epoch_order(0, 0, 53, shuffle=True)
    one = Plan(53, 12, drop_last=True)
    for world_size in (2, 3, 4):
        ranks = [Plan(53, 12 // world_size, True, rank, world_size) for rank in range(world_size)]
        assert {plan.steps(first) for plan in ranks} == {one.steps(first)} == {(53 - first) // 12}
        for step in range(one.steps(first)):
            joined = np.concatenate([plan.take(order, first, step)[0] for plan in ranks])
            assert np.array_equal(joined, one.take(order, first, step)[0])


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 7, 8, 24, 25])
def test_evaluation_takes_every_clip_once(count: int, world_size: int):
    order = np.arange(count)
    plans = [Plan(count, 4, False, rank, world_size) for rank in range(world_size)]
    taken = []
    for plan in plans:
        for step in range(plan.steps()):
            clips, valid = plan.take(order, 0, step)
            assert clips.shape == valid.shape == (4,)
            taken += clips[valid].tolist()
    assert sorted(taken) == list(range(count))
    assert len({plan.steps() for plan in plans}) == 1
