"""Looking ahead changes neither the batches nor their order, and names every later sample once."""

from __future__ import annotations

import itertools
import pickle

import pytest

from pvt_det.data.ahead import LookAhead


@pytest.mark.parametrize("workers", [0, 40])
def test_batches_are_the_same(workers):
    batches = [list(range(start, start + 2)) for start in range(0, 300, 2)]
    found = list(LookAhead(batches, 2, workers))
    assert found == batches
    named = [*found[0], *itertools.chain.from_iterable(batch.later for batch in found)]
    assert named == list(range(300))
    ahead = found[0].later[-1]
    assert ahead == (64 if not workers else 160) + 1
    assert pickle.loads(pickle.dumps(found[5])).later == found[5].later  # as sent to a worker


def test_endless_sampler():
    endless = LookAhead(([number] for number in itertools.count()), 1, 1)
    assert list(itertools.islice(endless, 3)) == [[0], [1], [2]]
