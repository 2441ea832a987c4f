"""The sockets of a loopback Hub: requests taken in whole or cut, and answers sent, in parts where a Range asks for them."""

import hashlib
import json
import re
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.loopback_hub.requests import Answer, Body

CHUNK_BYTES = 1 << 20


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    hub: Any  # The LoopbackHub that it serves.

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet where a client has gone; anything else is our bug."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def _serve(self) -> None:
        target = urlsplit(self.path)
        line = f"{self.command} {target.path}"
        hub = self.server.hub
        fault, path = hub.record(line, self.path, self.headers.get("User-Agent", ""))
        length = int(self.headers.get("Content-Length") or 0)
        chunked = "chunked" in self.headers.get("Transfer-Encoding", "").lower()
        if fault and fault.cut and (length or chunked or self.command != "GET"):
            left = length // 2
            while left > 0:
                left -= len(self.rfile.read(min(left, CHUNK_BYTES))) or left
            self._cut()
            return
        body = self._receive(path, length, chunked)
        is_blob = line.startswith("PUT /lfs-upload/")
        if not is_blob:
            hub.record_body(body)
        if fault and not fault.cut:
            message = f"The loopback hub was set to answer {fault.status}"
            answer = Answer(fault.status, {"error": message}, fault.headers)
        else:
            answer = hub.answer(line, target.query, self.headers.get("Authorization"), body)
        if is_blob:
            body.path.unlink(missing_ok=True)
        self._send(answer, cut=fault is not None and fault.cut)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = _serve

    def _cut(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _receive(self, path: Path, length: int, chunked: bool) -> Body:
        digest = hashlib.sha256()
        with path.open("wb") as file:
            for chunk in self._chunks() if chunked else self._pieces(length):
                digest.update(chunk)
                file.write(chunk)
        return Body(path, digest.hexdigest())

    def _pieces(self, length: int) -> Iterator[bytes]:
        while length > 0:
            piece = self.rfile.read(min(length, CHUNK_BYTES))
            if not piece:
                raise ConnectionResetError("The client went away in the middle of its body.")
            length -= len(piece)
            yield piece

    def _chunks(self) -> Iterator[bytes]:
        while size := int(self.rfile.readline().split(b";")[0] or b"0", 16):
            yield from self._pieces(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass

    def _send(self, answer: Answer, cut: bool) -> None:
        headers, status, (start, stop) = dict(answer.headers), answer.status, answer.span
        content = b"" if answer.file else json.dumps(answer.value).encode()
        if answer.file:
            status, start, stop, ranged = _ranged(self.headers.get("Range"), stop)
            headers |= ranged
        length = stop - start if answer.file else len(content)
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(length), **headers}.items():
            self.send_header(name, value.encode("latin-1", "replace").decode("latin-1").replace("\n", " "))
        self.end_headers()
        left = 0 if self.command == "HEAD" else length // 2 if cut else length
        if answer.file and left:
            with answer.file.open("rb") as file:
                file.seek(start)
                while left > 0:
                    piece = file.read(min(left, CHUNK_BYTES))
                    self.wfile.write(piece)
                    left -= len(piece)
        else:
            self.wfile.write(content[:left])
        if cut:
            self._cut()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Write no log: `requests` holds it."""


def _ranged(asked: str | None, size: int) -> tuple[int, int, int, dict[str, str]]:
    """Return status, start, stop and headers for a Range header over a file of `size` bytes."""
    match = re.fullmatch(r"\s*bytes\s*=\s*(\d*)\s*-\s*(\d*)\s*", asked or "")
    if not match or match.groups() == ("", ""):
        return 200, 0, size, {}
    first, last = match.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        return 416, 0, 0, {"Content-Range": f"bytes */{size}"}
    return 206, start, stop, {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
