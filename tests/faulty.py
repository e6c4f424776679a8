"""A proxy before an S3 server that does to requests what networks and object stores do, by a seed.

It speaks HTTP/1.1 and passes on what it gets, the Host header included, so that signatures stay valid.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal, Self
from urllib.parse import urlsplit

Fault = Literal["slow-down", "internal", "reset", "lost-answer", "stall", "truncated"]
FAULTS: tuple[Fault, ...] = ("slow-down", "internal", "reset", "lost-answer", "stall", "truncated")
_TOLD = {
    "slow-down": (503, "Slow Down", "SlowDown", "Please reduce your request rate."),
    "internal": (500, "Internal Server Error", "InternalError", "We encountered an internal error."),
    "expired": (400, "Bad Request", "ExpiredToken", "The provided token has expired."),
    "denied": (403, "Forbidden", "AccessDenied", "Access Denied."),
}


@dataclass
class Request:
    """One request, whole."""

    method: str
    path: str
    head: bytes
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class FaultyProxy:
    """Listens on a port of this machine while it is used as a context manager; counts what it did."""

    endpoint_url: str
    "Of the server behind it."
    rate: float = 0.05
    "Share of requests that something happens to."
    seed: int = 0
    faults: Sequence[Fault] = FAULTS
    stall_s: float = 2.0
    refuse: Callable[[Request], str | None] = lambda _request: None
    "Names the answer ('expired', 'denied') to a request that is refused, or None."
    counts: Counter[str] = field(default_factory=Counter)
    "Requests, and faults by name."
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._random = random.Random(self.seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="faulty proxy", daemon=True)
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(self._listen(), self._loop).result()
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_exception: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _close(self) -> None:
        self._server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError, TimeoutError):
            while (request := await _read_request(reader, writer)) is not None and await self._answer(request, writer):
                pass
        writer.close()

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; False where the connection is done with."""
        self.counts["requests"] += 1
        refused = self.refuse(request)
        if refused is not None:
            self.counts[refused] += 1
            return await _send(writer, _error(refused, request))
        fault = self._random.choice(self.faults) if self._random.random() < self.rate else None
        if fault is not None:
            self.counts[fault] += 1
        if fault in ("slow-down", "internal"):
            return await _send(writer, _error(fault, request))
        if fault == "reset":
            return _reset(writer)
        if fault == "stall":
            await asyncio.sleep(self.stall_s)
        answer = await self._forward(request)
        if fault == "lost-answer":
            return _reset(writer) if self._random.random() < 0.5 else await _send(writer, _error("internal", request))
        if fault == "truncated":
            body_at = answer.index(b"\r\n\r\n") + 4
            await _send(writer, answer[: body_at + (len(answer) - body_at) // 2])
            return _reset(writer) if self._random.random() < 0.5 else False
        return await _send(writer, answer)

    async def _forward(self, request: Request) -> bytes:
        where = urlsplit(self.endpoint_url)
        reader, writer = await asyncio.open_connection(where.hostname, where.port)
        try:
            writer.write(request.head + request.body)
            await writer.drain()
            return await _read_answer(reader, request.method)
        finally:
            writer.close()


def _reset(writer: asyncio.StreamWriter) -> bool:
    """End a connection as a machine does that goes away."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


async def _send(writer: asyncio.StreamWriter, answer: bytes) -> bool:
    writer.write(answer)
    await writer.drain()
    return True


def _error(name: str, request: Request) -> bytes:
    status, reason, code, message = _TOLD[name]
    text = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    body = b"" if request.method == "HEAD" else text.encode()
    head = f"HTTP/1.1 {status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(text)}\r\n\r\n"
    return head.encode() + body


async def _read_request(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    first, headers = _parse(head)
    method, path = first.split(" ")[:2]
    if "expect" in headers:
        await _send(writer, b"HTTP/1.1 100 Continue\r\n\r\n")
        head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:"))
    return Request(method, path, head, await _read_body(reader, headers), headers)


async def _read_answer(reader: asyncio.StreamReader, method: str) -> bytes:
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        first, headers = _parse(head)
        status = int(first.split(" ")[1])
        if status >= 200:
            break
    if method == "HEAD" or status in (204, 304):
        return head
    return head + await _read_body(reader, headers)


async def _read_body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """Return a body as it is on the wire: of a stated length, or in chunks."""
    if "chunked" not in headers.get("transfer-encoding", ""):
        return await reader.readexactly(int(headers.get("content-length", 0)))
    body = b""
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.split(b";")[0], 16)
        body += line + await reader.readexactly(size + 2 if size else 0)
        if not size:
            while (line := await reader.readuntil(b"\r\n")) != b"\r\n":
                body += line
            return body + line


def _parse(head: bytes) -> tuple[str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return first, {name.strip().lower(): value.strip() for name, _, value in pairs}
