"""Runs on shards in an object store that fails end with the same state as an undisturbed run on a disk, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pvt_det.data.sharding.run import shard_coco
from pvt_det.data.sharding.writer import Settings
from pvt_det.data.storage import remote
from pvt_det.data.storage.places import forget_remote
from pvt_det.errors import StorageError
from tests.data.storage.s3 import Fault, LocalStore, start_proxy
from tests.drills.outcome import Outcome
from tests.drills.resume import CUTS, differences, saved_state, train_or_stop
from tests.drills.tiny import shapes_keys, tiny_config

_SETTINGS: dict[str, Any] = {"SOLVER.MAX_ITER": CUTS[-1] + 1, "SOLVER.CHECKPOINT_PERIOD": 1}
# Of the requests for images, this share fails for each of the reasons.
_SHARE = 0.15
_DENIED_IN = 3


def run_storage(folder: Path, config_file: str, seeds: Iterable[int]) -> Outcome:
    """Compare runs on a disk with runs on an object store.

    Many requests fail, are cut short or take seconds. The runs are stopped and resumed after each of five iterations,
    before which every entry of the cache is damaged. In one of them, the credentials expire. The cache is too small for
    the data.

    Args:
        folder: Folder for the data and the runs.
        config_file: Config of the detector, of which a tiny version is used.
        seeds: Seeds of the runs.
    """
    from moto.server import ThreadedMotoServer

    outcome = Outcome("storage")
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    proxy, store = start_proxy(moto.get_host_and_port()[1])
    os.environ.update(
        AWS_ENDPOINT_URL=store.endpoint,
        AWS_ACCESS_KEY_ID="key",
        AWS_SECRET_ACCESS_KEY="secret",
        AWS_REGION="us-east-1",
        PVT_DET_CACHE=str(folder / "cache"),
        PVT_DET_DATA_CACHE_GIB="0.00002",
        PVT_DET_RETRY_SECONDS="20",
    )
    local = shapes_keys(folder, "TRAIN")
    shard_coco(local["DATASETS.TRAIN_JSON"], local["DATASETS.TRAIN_IMAGES"], folder / "shards", Settings(10_000))
    url = store.upload(folder / "shards", "shards")
    data = {"DATASETS.TRAIN_JSON": url, "DATASETS.TRAIN_IMAGES": url, "DATALOADER.NUM_WORKERS": 2}
    denied = 0
    for seed in seeds:
        settings = _SETTINGS | {"SEED": seed}
        whole, parts = folder / f"{seed}-whole", folder / f"{seed}-parts"
        train_or_stop(tiny_config(config_file, folder, whole, settings))
        for cut in (*CUTS, None):
            _damage_cache(folder / "cache/objects")
            forget_remote()
            remote.renew()
            store.faults[:] = [Fault(r"shard-", kind, share=_SHARE) for kind in ("500", "cut", "slow")]
            if cut == _DENIED_IN:
                denied += _is_denied(config_file, folder, parts, settings | data, store)
            train_or_stop(tiny_config(config_file, folder, parts, settings | data), cut)
        outcome.tried += 1
        if different := list(differences(saved_state(whole), saved_state(parts))):
            outcome.failures.append(f"seed {seed}: {len(different)} differ, such as {different[0]}")
    proxy.shutdown()
    moto.stop()
    gets = sum(path.find("shard-") >= 0 for _, path in store.requests)
    if denied != outcome.tried:
        outcome.failures.append(f"expired credentials ended {denied} of {outcome.tried} runs")
    outcome.facts = {"requests for images": str(gets), "runs ended by expired credentials, and resumed": str(denied)}
    return outcome


def _is_denied(config_file: str, folder: Path, output: Path, settings: dict[str, Any], store: LocalStore) -> bool:
    """Resume the run with expired credentials, and return whether that is the error that ends it."""
    faults, store.faults[:] = list(store.faults), [Fault(r"shard-.*", "expired")]
    try:
        train_or_stop(tiny_config(config_file, folder, output, settings))
    except StorageError as error:
        return "Renew them" in str(error)
    finally:
        store.faults[:] = faults
    return False


def _damage_cache(folder: Path) -> None:
    for path in folder.glob("*/*"):
        path.write_bytes(path.read_bytes()[:-3])
