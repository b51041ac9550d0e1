"""Pieces of work are done by one process at a time, and those of dead processes are taken over."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time

import pytest

from pvt_det.utils.claims import CLAIM_NAME, Claim, ClaimLost, Claims, Holder, create_folder


@pytest.fixture
def claims(tmp_path):
    """Pieces of work with a short lease."""
    return Claims(tmp_path, lease=0.4, heartbeat=0.05)


def on_another_machine(claim: Claim) -> None:
    """Make the claim look like that of a process on another machine, of which only signs of life are known."""
    file = claim.folder / CLAIM_NAME
    file.write_text(json.dumps({"host": "other", "pid": 7, "process": "other 7 1"}))


def test_work_that_is_claimed_or_finished_cannot_be_claimed(claims, tmp_path):
    first = claims.claim("a")
    with first:
        (first.folder / "result").write_text("done")
        holder = claims.claim("a")
        assert isinstance(holder, Holder)
        assert (holder.pid, holder.is_alive) == (os.getpid(), True)
        assert str(claims.wait("a")) == f"process {os.getpid()} on {holder.host}"
        first.finish()
    assert claims.claim("a") is None
    assert claims.is_finished("a")
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["a", "a/result"]


def test_work_that_was_stopped_is_continued_at_once(claims):
    with claims.claim("a") as first:
        (first.folder / "journal").write_text("half")
    with claims.claim("a") as second:
        assert [folder.name for folder in second.earlier()] == ["a.attempt-1"]
        assert (second.earlier()[0] / "journal").read_text() == "half"
        second.finish()
    assert [path.name for path in claims.folder.iterdir()] == ["a"]


def test_work_of_a_killed_process_of_this_machine_is_taken_over_at_once(tmp_path):
    claims = Claims(tmp_path)  # with a lease of minutes

    def work():
        with claims.claim("a"):
            time.sleep(60)

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    while not (tmp_path / "a.attempt-1" / CLAIM_NAME).exists():
        time.sleep(0.01)
    assert claims.claim("a").pid == child.pid
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert isinstance(claims.claim("a"), Claim)


def test_work_on_another_machine_is_taken_over_after_the_lease(claims):
    with claims.claim("a") as first:
        on_another_machine(first)
        holder = claims.wait("a")
        assert (str(holder), holder.is_alive) == ("process 7 on other", False), "it gives signs of life"
        first._stop()
        start = time.monotonic()
        second = claims.wait("a")
        assert isinstance(second, Claim)
        assert 0.2 < time.monotonic() - start < 2
        with pytest.raises(ClaimLost, match="a was taken over"):
            first.check()
        with pytest.raises(ClaimLost):
            first.finish()
        with second:
            second.finish()
        with pytest.raises(ClaimLost):
            first.check()
    assert [path.name for path in claims.folder.iterdir()] == ["a"]


def test_folder_without_a_claim_counts_as_claimed_during_the_lease(claims):
    (claims.folder / "a.attempt-1").mkdir()
    assert str(claims.claim("a")) == "another process"
    assert isinstance(claims.wait("a"), Claim)


def test_one_of_many_processes_gets_the_work(claims):
    found = []
    barrier = threading.Barrier(8)

    def work():
        barrier.wait()
        found.append(claims.claim("a"))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(each) for each in found].count(Claim) == 1
    assert [type(each) for each in found].count(Holder) == 7


def test_folder_is_created_once(tmp_path):
    create_folder(tmp_path / "parts", "plan.json", "first")
    create_folder(tmp_path / "parts", "plan.json", "second")
    assert (tmp_path / "parts/plan.json").read_text() == "first"
    assert [path.name for path in tmp_path.iterdir()] == ["parts"]
