"""Training sampler: every image once per epoch, in an order independent of processes and restarts."""

from itertools import chain, islice

import numpy as np
import pytest

from pvt_det.data.sampler import ResumableBatchSampler

GROUPS = [0, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0]


def take(number, **settings):
    return list(islice(ResumableBatchSampler(len(GROUPS), 4, seed=3, **settings), number))


@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("start", [1, 2, 7, 30])
def test_restart_continues_exactly(groups, start):
    assert take(40, groups=groups)[start:] == take(40 - start, groups=groups, start_batch=start)


@pytest.mark.parametrize("groups", [None, GROUPS])
@pytest.mark.parametrize("world_size", [2, 4])
def test_processes_split_the_batch_of_a_single_process(groups, world_size):
    parts = [take(20, groups=groups, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [list(chain(*batch)) for batch in zip(*parts, strict=True)] == take(20, groups=groups)


def test_epochs_are_permutations():
    indices = [index for batch in take(33) for _, index in batch]  # 12 epochs of 11
    epochs = [tuple(indices[start : start + 11]) for start in range(0, 132, 11)]
    assert all(sorted(epoch) == list(range(11)) for epoch in epochs)
    assert len(set(epochs)) == 12


def test_positions_are_consecutive():
    assert [position for batch in take(5, groups=GROUPS) for position, _ in batch] == list(range(20))


def test_batches_have_one_group_and_every_image_appears():
    batches = take(300, groups=GROUPS)
    assert all(len({GROUPS[index] for _, index in batch}) == 1 for batch in batches)
    seen = np.bincount([index for batch in batches for _, index in batch])
    assert seen.max() - seen.min() <= 2


def test_different_seeds_give_different_orders():
    other = list(islice(ResumableBatchSampler(len(GROUPS), 4, seed=4), 5))
    assert other != take(5)


def test_repeat_factors():
    factors = np.array([1.0] * 10 + [2.5])
    indices = [index for batch in take(1250, repeat_factors=factors) for _, index in batch]
    seen = np.bincount(indices) / np.bincount(indices)[:10].mean()
    assert seen[10] == pytest.approx(2.5, abs=0.1)
    assert take(9, repeat_factors=factors)[5:] == take(4, repeat_factors=factors, start_batch=5)
