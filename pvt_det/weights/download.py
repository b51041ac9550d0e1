"""Download weight files into a cache and verify them."""

from __future__ import annotations

import json
import logging
import re
import urllib.request
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pvt_det.errors import CheckpointError
from pvt_det.utils.digest import file_digest
from pvt_det.utils.files import write_atomically
from pvt_det.utils.paths import cache_folder, file_fault
from pvt_det.weights.catalog import Remote
from pvt_det.weights.transfer import DEADLINE, Opener, TransferError, transfer

logger = logging.getLogger(__name__)

# File in the cache folder that holds the SHA-256 of each file at its last download.
_RECORDS = "sha256.json"
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fetch(remote: Remote, opener: Opener | None = None) -> Path:
    """Download a remote file into the cache folder, unless it is already there, and verify it.

    Files on the Hugging Face Hub are downloaded by `huggingface_hub`, with its settings and login. Other downloads go
    to a temporary file, resume after an interruption if the file on the server has not changed, and are renamed once
    they are complete. The SHA-256 is compared with the published digits. If none are published, it is recorded at the
    download and compared from then on. Several processes may fetch the same file at the same time.

    Args:
        remote: The file.
        opener: Sends the requests. The default does not follow redirects from https to plain http.

    Returns:
        Path of the file in the cache folder.

    Raises:
        CheckpointError: If the file cannot be downloaded, or its hash is not the published or recorded one.
    """
    path = cache_folder() / remote.cache_path
    if file_fault(path):
        _refuse_plain_http(remote.url, remote.sha256)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _lock(path):
                # Another process may have downloaded it in the meantime.
                if file_fault(path):
                    _download(remote, path, opener)
        except Timeout as error:
            raise CheckpointError(
                f"{path}: another process has been downloading it for more than {DEADLINE / 60:.0f} minutes. End that "
                "process, then try again."
            ) from error
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written ({error.strerror or error}).") from error
    _verify(path, remote)
    return path


def _lock(path: Path) -> FileLock:
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=DEADLINE + 60)


def _refuse_plain_http(url: str, sha256: str) -> None:
    if not url.startswith("https://") and len(sha256) != 64:
        raise CheckpointError(
            f"{url}: plain http can be tampered with in transit. Use https, or append the file's hash as #sha256=…"
        )


def default_opener(remote: Remote) -> Opener:
    """Build an opener that refuses redirects to plain http unless the file's full hash is known.

    Args:
        remote: The file to download.
    """

    class Redirect(urllib.request.HTTPRedirectHandler):
        def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: str) -> Any:
            if not newurl.startswith("https://") and len(remote.sha256) != 64:
                raise TransferError("the server redirects to plain http, which can be tampered with in transit")
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    return urllib.request.build_opener(Redirect)


def _download(remote: Remote, path: Path, opener: Opener | None) -> None:
    """Download a file and record its SHA-256."""
    logger.info("Downloading %s to %s", remote.url, path)
    if remote.hub:
        digest = _download_from_hub(remote, path)
    else:
        part = path.with_name(path.name + ".part")
        try:
            transfer(remote.url, part, opener or default_opener(remote), has_hash=bool(remote.sha256))
        except TransferError as error:
            raise CheckpointError(_manual_download(remote, path, str(error))) from error
        digest = file_digest(part)
        _check_download(part, digest, remote.sha256, remote.url)
        part.replace(path)
    _record(remote, digest)


def _check_download(file: Path, digest: str, expected: str, url: str) -> None:
    if not digest.startswith(expected):
        file.unlink()
        raise CheckpointError(
            f"{url}: the download has SHA-256 {digest}, expected {expected}{_ellipsis(expected)}. It was deleted. Try "
            "again, or check the source."
        )


def _download_from_hub(remote: Remote, path: Path) -> str:
    """Download a file from the Hugging Face Hub, and return its SHA-256."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    assert remote.hub is not None
    repository, file = remote.hub
    # The path in the repository is the end of the path in the cache.
    folder = path.parents[file.count("/")]
    try:
        about = get_hf_file_metadata(hf_hub_url(repository, file))
        hf_hub_download(repository, file, revision=about.commit_hash, local_dir=folder, library_name="pvt_det")
    # Among others the errors of its HTTP library, which differs between versions.
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise CheckpointError(_manual_download(remote, path, reason[:300])) from error
    digest = file_digest(path)
    # The hub's ETag of a large file is its SHA-256.
    expected = about.etag or ""
    _check_download(path, digest, expected if _SHA256.fullmatch(expected) else "", remote.url)
    return digest


def _verify(path: Path, remote: Remote) -> None:
    """Compare a cached file with its published and recorded SHA-256, or record it if it was put there by hand."""
    digest = file_digest(path)
    records_file = cache_folder() / _RECORDS
    records, is_damaged = _read_records(records_file)
    recorded = records.get(remote.cache_path, "")
    for expected, origin in ((remote.sha256, "published"), (recorded, f"recorded in {records_file}")):
        if not digest.startswith(expected):
            raise CheckpointError(
                f"{path}: its SHA-256 is {digest}, {origin} is {expected}{_ellipsis(expected)}. The file is damaged or "
                f"has changed. Delete it to download {remote.url} again."
            )
    if is_damaged:
        logger.warning(
            "%s is damaged. It is written again, with the hashes that can still be read. Other files without a "
            "published hash are recorded as they are now. If in doubt, delete them to download them again.",
            records_file,
        )
    if is_damaged or not recorded:
        _record(remote, digest)


def _record(remote: Remote, digest: str) -> None:
    """Record the SHA-256 of a file, replacing an earlier one."""
    records_file = cache_folder() / _RECORDS
    try:
        with _lock(records_file):
            records, _ = _read_records(records_file)
            if records.get(remote.cache_path, digest) != digest:
                logger.warning("%s is not the same file as at its last download.", remote.url)
            records[remote.cache_path] = digest
            write_atomically(records_file, json.dumps(records, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        logger.warning("%s: cannot be written (%s). The file's hash is not recorded.", records_file, error.strerror)


def _read_records(path: Path) -> tuple[dict[str, str], bool]:
    """Return the recorded hashes by path in the cache, and whether any could not be read."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}, False
    except (ValueError, RecursionError):
        return {}, True
    if not isinstance(content, dict):
        return {}, True
    valid = {name: value for name, value in content.items() if isinstance(value, str) and _SHA256.fullmatch(value)}
    return valid, len(valid) < len(content)


def _ellipsis(digits: str) -> str:
    return "" if len(digits) in (0, 64) else "…"


def _manual_download(remote: Remote, path: Path, reason: str) -> str:
    return (
        f"{remote.url} cannot be downloaded ({reason}). Without a network, download it on another machine and put it "
        f"at {path}."
    )
