"""Position embeddings are resized once per size, and the cache is never stale."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

from pvt_det.layers.cpu import position, set_fast_cpu
from pvt_det.layers.cpu.position import PositionCache
from pvt_det.layers.position import resize_position


@pytest.fixture
def table():
    return nn.Parameter(torch.randn(1, 4, 2))


@pytest.fixture
def resizes(monkeypatch):
    """Return the list of sizes that were computed."""
    computed = []

    def recorded_resize(table, old, new):
        computed.append(new)
        return resize_position(table, old, new)

    monkeypatch.setattr(position, "resize_position", recorded_resize)
    return computed


def fresh(table: Tensor, new: tuple[int, int] = (4, 4)) -> Tensor:
    return resize_position(table.detach(), (2, 2), new)


def test_each_size_is_computed_once(table, resizes):
    cache = PositionCache()
    with torch.no_grad():
        first = cache.get(table, (2, 2), (4, 4))
        assert cache.get(table, (2, 2), (4, 4)) is first
        cache.get(table, (2, 2), (4, 6))
        assert cache.get(table, (2, 2), (4, 4)) is first
    assert resizes == [(4, 4), (4, 6)]


def test_nothing_is_cached_if_fast_cpu_is_disabled(table):
    cache = PositionCache()
    with torch.no_grad(), set_fast_cpu(False):
        assert torch.equal(cache.get(table, (2, 2), (4, 4)), fresh(table))
    assert len(cache) == 0


def test_gradients_flow_through_the_resize_in_training(table):
    cache = PositionCache()
    with torch.no_grad():
        cache.get(table, (2, 2), (4, 4))
    cache.get(table, (2, 2), (4, 4)).sum().backward()
    # Each of the 16 positions is a weighted average of the table, with 2 channels.
    assert float(table.grad.sum()) == pytest.approx(32)


def changed_by_optimizer(table: nn.Parameter) -> None:
    table.grad = torch.ones_like(table)
    torch.optim.AdamW([table], lr=0.1, fused=True).step()


def changed_by_average(table: nn.Parameter) -> None:
    table.data.lerp_(torch.zeros_like(table), 0.5)


def changed_by_loading(table: nn.Parameter) -> None:
    holder = nn.Module()
    holder.table = table
    holder.load_state_dict({"table": torch.full_like(table, 3.0)})


def changed_by_replacing_data(table: nn.Parameter) -> None:
    table.data = table.data + 1


def changed_by_dtype(table: nn.Parameter) -> None:
    table.data = table.data.bfloat16()


@pytest.mark.parametrize(
    "change",
    [changed_by_optimizer, changed_by_average, changed_by_loading, changed_by_replacing_data, changed_by_dtype],
)
def test_changed_table_is_resized_again(table, change):
    cache = PositionCache()
    with torch.no_grad():
        old = cache.get(table, (2, 2), (4, 4))
        change(table)
        new = cache.get(table, (2, 2), (4, 4))
    assert new.dtype == table.dtype
    assert torch.equal(new, fresh(table))
    assert not torch.equal(new.float(), old)
    assert len(cache) == 1


def test_new_table_at_a_reused_address_is_resized():
    cache = PositionCache()
    with torch.no_grad():
        for value in range(20):
            table = torch.full((1, 4, 2), float(value))
            assert torch.equal(cache.get(table, (2, 2), (3, 3)), fresh(table, (3, 3)))


def test_cache_keeps_at_most_capacity_sizes(table):
    cache = PositionCache(capacity=3)
    with torch.no_grad():
        for width in range(3, 20):
            assert torch.equal(cache.get(table, (2, 2), (3, width)), fresh(table, (3, width)))
            assert len(cache) <= 3


def test_entry_cached_in_inference_mode_works_for_a_frozen_table_in_training(table):
    cache = PositionCache()
    table.requires_grad_(False)
    with torch.inference_mode():
        cache.get(table, (2, 2), (4, 4))
    x = torch.randn(1, 16, 2, requires_grad=True)
    (x * cache.get(table, (2, 2), (4, 4))).sum().backward()
    assert torch.equal(x.grad, fresh(table))


def test_copies_are_empty(table):
    cache = PositionCache(capacity=7)
    with torch.no_grad():
        cache.get(table, (2, 2), (4, 4))
    for copied in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert len(copied) == 0
        assert copied.capacity == 7


def test_threads_share_a_cache(table):
    cache = PositionCache(capacity=2)

    def look_up(n: int) -> bool:
        new = (3, 3 + n % 5)
        with torch.no_grad():
            return torch.equal(cache.get(table, (2, 2), new), fresh(table, new))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(look_up, range(400)))
