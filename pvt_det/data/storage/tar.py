"""Read the headers of tar files that a user made, with limits on what they may claim."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

from pvt_det.errors import DataError
from pvt_det.utils.text import UNPRINTABLE

# Limits of a shard. Without them, a file of a few bytes could make the index or an image take all memory.
MAX_IMAGE_BYTES = 2**28
MAX_NAME_BYTES = 255
_MAX_HEADER_BYTES = 2**20
_MAX_MEMBERS = 10_000_000


class ShardFile(io.FileIO):
    """A shard whose headers are limited in size, because `tarfile` reads as much as a header claims.

    Args:
        path: The tar file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.size = os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        """Read as `FileIO` does, but at most as much as a header may have.

        Args:
            size: Number of bytes.

        Raises:
            OSError: The size is larger.
        """
        if size is None or not 0 <= size <= _MAX_HEADER_BYTES:
            raise OSError(f"a header claims {size:,} bytes")
        return super().read(size) or b""


def open_shard(shard: Path) -> ShardFile:
    """Open a shard for reading.

    Args:
        shard: The tar file.

    Raises:
        DataError: It cannot be read.
    """
    try:
        return ShardFile(shard)
    except OSError as error:
        raise DataError(f"{shard}: cannot be read ({error.strerror}).") from error


def members(shard: Path, file: ShardFile) -> Iterator[tarfile.TarInfo]:
    """Yield the members of a shard, with checked names and sizes that are not negative.

    Args:
        shard: Path of the shard, for messages.
        file: The open shard.

    Raises:
        DataError: The shard is not a tar file, is damaged, or has too many members.
    """
    last, count = "the first member", 0
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile keeps every member
                count += 1
                if count > _MAX_MEMBERS:
                    raise DataError(f"{shard}: has more than {_MAX_MEMBERS:,} members. Split it into several shards.")
                if UNPRINTABLE.search(member.name) or len(member.name.encode()) > MAX_NAME_BYTES:
                    raise DataError(
                        f"{shard}: the member name {member.name[:100]!r} is not valid. Expected printable characters, "
                        f"at most {MAX_NAME_BYTES} bytes in UTF-8. Rename it."
                    )
                # tarfile would go backward and read the same members forever.
                if member.size < 0:
                    raise DataError(f"{shard}: {member.name} has a negative size. Write the shard again.")
                yield member
                last = f"the member after {member.name}"
            # tarfile takes a damaged header for the end, which would drop the remaining images.
            if os.pread(file.fileno(), tarfile.BLOCKSIZE, tar.offset) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("a damaged header or a missing end-of-archive block")
    except DataError:
        raise
    # On a broken file, tarfile can raise nearly any exception.
    except Exception as error:
        raise DataError(f"{shard}: cannot be read as a tar file, at {last} ({error}). Copy it again.") from error


def member_problem(member: tarfile.TarInfo, most: int, shard_size: int) -> str:
    """Say why the content of a member cannot be read.

    Args:
        member: The member.
        most: Largest size in bytes that it may have.
        shard_size: Size of the shard in bytes.

    Returns:
        A phrase that follows the name in a message, or "" if it can be read.
    """
    if member.issparse():
        return "is a sparse file, which may expand to any size"
    if member.size > most:
        return f"has {member.size:,} bytes. Expected at most {most:,}"
    return "is cut short" if member.offset_data + member.size > shard_size else ""
