"""A small RTSP server for tests. It sends a video as MPEG-TS over RTP, in the TCP connection of the requests."""

from __future__ import annotations

import io
import socketserver
import struct
import time
from collections.abc import Sequence

import numpy as np

_PACKET, _PER_MESSAGE = 188, 7


def transport_stream(pictures: Sequence[np.ndarray], rate: int) -> bytes:
    """Encode pictures as H.264 in an MPEG transport stream."""
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=rate, options={"tune": "zerolatency", "g": "1"})
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


class RtspHandler(socketserver.StreamRequestHandler):
    """Answers OPTIONS, DESCRIBE, SETUP and PLAY, sends `content` within `seconds`, and closes the connection."""

    content: bytes
    seconds: float

    def handle(self) -> None:
        while line := self.rfile.readline():
            method = line.decode().split(" ")[0]
            headers = {}
            while (text := self.rfile.readline().decode().strip()) and ":" in text:
                name, _, value = text.partition(":")
                headers[name.lower()] = value.strip()
            if method == "DESCRIBE":
                body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\na=control:track\r\n"
                self.answer(headers, body, "Content-Type: application/sdp")
            elif method == "SETUP":
                self.answer(headers, "", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1")
            else:
                self.answer(headers, "", "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN", "Session: 1")
            if method == "PLAY":
                self.play()
                return

    def answer(self, headers: dict[str, str], body: str, *lines: str) -> None:
        first = ["RTSP/1.0 200 OK", f"CSeq: {headers.get('cseq', '0')}", f"Content-Length: {len(body)}", *lines]
        self.wfile.write(("\r\n".join(first) + "\r\n\r\n" + body).encode())

    def play(self) -> None:
        step = _PACKET * _PER_MESSAGE
        starts = range(0, len(self.content), step)
        for number, start in enumerate(starts):
            clock = int(90_000 * self.seconds * number / len(starts))
            payload = struct.pack(">BBHII", 0x80, 33, number, clock, 1) + self.content[start : start + step]
            self.wfile.write(b"$" + struct.pack(">BH", 0, len(payload)) + payload)
            time.sleep(self.seconds / len(starts))
