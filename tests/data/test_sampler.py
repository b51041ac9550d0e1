"""Training sampler: every image once per epoch, in an order independent of processes and restarts."""

from itertools import chain, islice

import numpy as np
import pytest

from pvt_det.data.sampler import Mixture, ResumableBatchSampler

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


SIZES = [3, 50, 17]
WIDE = np.random.default_rng(1).integers(0, 2, sum(SIZES)).tolist()


def mixed(number, weights=(0.2, 0.5, 0.3), **settings):
    sampler = ResumableBatchSampler(sum(SIZES), 10, seed=5, mixture=Mixture(SIZES, weights), **settings)
    return list(islice(sampler, number))


def drawn(batches):
    """Return how often each image was drawn, by data set."""
    counts = np.bincount([index for batch in batches for _, index in batch], minlength=sum(SIZES))
    return np.split(counts, np.cumsum(SIZES)[:-1])


@pytest.mark.parametrize("weights", [(0.2, 0.5, 0.3), (1, 1, 1), (90, 9, 1), (0.001, 0.5, 0.7)])
def test_every_epoch_has_the_shares_of_the_weights(weights):
    batches = mixed(70, weights)  # 10 epochs of 70 samples
    shares = np.array(weights) / sum(weights)
    for first in range(0, 70, 7):
        found = [part.sum() for part in drawn(batches[first : first + 7])]
        # A number of samples is rounded up or down.
        assert np.abs(found - 70 * shares).max() < 1
    total = np.array([part.sum() for part in drawn(mixed(7 * 400, weights))])
    # Rounding is not biased: the sum of 400 errors of at most 1 stays within 4 standard deviations.
    assert np.abs(total - 400 * 70 * shares).max() < 4 * np.sqrt(400) / 2


def test_images_of_a_data_set_are_drawn_equally_often():
    for epochs in (1, 3, 40):
        assert all(np.ptp(part) <= 1 for part in drawn(mixed(7 * epochs)))


def test_an_epoch_mixes_the_data_sets_at_random():
    indices = np.array([index for batch in mixed(7 * 200) for _, index in batch]).reshape(200, 70)
    in_first_half = (indices[:, :35] < SIZES[0]).sum() / (indices < SIZES[0]).sum()
    assert in_first_half == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("groups", [None, WIDE])
def test_mixture_is_exact_after_a_restart_and_in_several_processes(groups):
    whole = mixed(60, groups=groups)
    for start in (1, 6, 7, 8, 33):
        assert mixed(60 - start, groups=groups, start_batch=start) == whole[start:]
    parts = [mixed(60, groups=groups, rank=rank, world_size=5) for rank in range(5)]
    assert [list(chain(*batch)) for batch in zip(*parts, strict=True)] == whole
    if groups:
        assert all(len({groups[index] for _, index in batch}) == 1 for batch in whole)


def test_mixture_with_repeat_factors():
    """Factors change how often the images of a data set are drawn, not the share of the data set."""
    factors = np.ones(sum(SIZES))
    factors[[1, 4]] = 3.5
    found = drawn(mixed(7 * 300, repeat_factors=factors))
    assert [part.sum() / 21_000 for part in found] == pytest.approx([0.2, 0.5, 0.3], abs=1e-3)
    assert found[0] / found[0][0] == pytest.approx([1, 3.5, 1], rel=0.03)
    assert found[1][1] / np.delete(found[1], 1).mean() == pytest.approx(3.5, rel=0.03)


def test_single_draws_follow_the_shares():
    mixture, generator = Mixture(SIZES, (2, 1, 1)), np.random.default_rng(0)
    counts = np.bincount([mixture.draw(generator) for _ in range(20_000)], minlength=sum(SIZES))
    expected = np.repeat([0.5 / 3, 0.25 / 50, 0.25 / 17], SIZES) * 20_000
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
