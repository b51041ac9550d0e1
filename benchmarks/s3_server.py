"""A small server that offers a folder as the buckets of S3, read-only, with a delay before every answer.

It knows what reading needs: HEAD and GET with ranges, and lists of objects.
"""

from __future__ import annotations

import argparse
import asyncio
import re
from email.utils import formatdate
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_RANGE = re.compile(r"bytes=(\d+)-(\d+)")


def _answer(root: Path, method: str, target: str, headers: dict[str, str]) -> bytes:
    """Return the whole answer to a request."""
    parts = urlsplit(target)
    path = root / unquote(parts.path).strip("/")
    if "list-type" in (query := parse_qs(parts.query)):
        return _response(200, _listing(path, query.get("prefix", [""])[0]))
    if not path.is_file():
        return _response(404, b"", method)
    size = path.stat().st_size
    about = {"ETag": f'"{size}-{path.stat().st_mtime_ns}"', "Last-Modified": _date(path)}
    found = _RANGE.match(headers.get("range", ""))
    start, end = (int(found[1]), min(int(found[2]) + 1, size)) if found else (0, size)
    if found:
        about["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    with path.open("rb") as file:
        file.seek(start)
        return _response(206 if found else 200, file.read(end - start), method, about)


def _date(path: Path) -> str:
    return formatdate(path.stat().st_mtime, usegmt=True)


def _listing(bucket: Path, prefix: str) -> bytes:
    files = sorted(path for path in (bucket / prefix).rglob("*") if path.is_file())
    entries = "".join(
        f"<Contents><Key>{escape(path.relative_to(bucket).as_posix())}</Key><Size>{path.stat().st_size}</Size>"
        f'<LastModified>2026-01-01T00:00:00.000Z</LastModified><ETag>"{path.stat().st_size}-{path.stat().st_mtime_ns}"'
        "</ETag></Contents>"
        for path in files
    )
    return f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()


def _response(status: int, content: bytes, method: str = "GET", about: dict[str, str] | None = None) -> bytes:
    headers = {"Content-Length": str(len(content)), "Connection": "keep-alive", **(about or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} -\r\n{head}\r\n".encode() + (content if method == "GET" else b"")


async def _serve(root: Path, delay: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while line := await reader.readline():
            method, target, _ = line.decode("latin-1").split()
            headers = {}
            while (header := await reader.readline()).strip():
                name, _, value = header.decode("latin-1").partition(":")
                headers[name.lower()] = value.strip()
            await asyncio.sleep(delay)
            writer.write(_answer(root, method, target, headers))
            await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()


async def _main(root: Path, delay: float) -> None:
    server = await asyncio.start_server(lambda reader, writer: _serve(root, delay, reader, writer), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path, help="folder with one subfolder per bucket")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before every answer")
    options = parser.parse_args()
    asyncio.run(_main(options.root, options.delay))
