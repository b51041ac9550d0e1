"""Options shared by several suites."""

from __future__ import annotations

import argparse
import os

from benchmarks.options import add_run_options


def test_threads_default_to_all_cores_on_systems_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    parser = argparse.ArgumentParser()
    add_run_options(parser)
    assert parser.parse_args([]).threads == 6
