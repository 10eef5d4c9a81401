"""Where measured posts go: nginx with one worker answering 204 where it is installed, else a small server of our own."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

_NGINX_CONFIG = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log crit;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    keepalive_requests 1000000000;
    keepalive_timeout 600s;
    client_body_buffer_size 64k;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{ listen 127.0.0.1:{port} reuseport backlog=4096; {tls} location / {{ return 204; }} }}
}}
"""
_STARTS_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Sink:
    """A server that takes posts. `kind` is nginx or built-in."""

    url: str
    kind: str


def find_nginx() -> str | None:
    """The program, also where it is not on everybody's PATH."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """A TCP port on loopback that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def nginx_sink(program: str, *, certificate: Path | None = None, key: Path | None = None) -> Iterator[Sink]:
    """An nginx on a free port, with a configuration and folders of its own."""
    port = free_port()
    tls = "" if certificate is None else f"ssl_certificate {certificate}; ssl_certificate_key {key};"
    with tempfile.TemporaryDirectory(prefix="toque-sink-") as folder:
        config = _NGINX_CONFIG.format(folder=folder, port=port, tls=tls)
        if certificate is not None:
            config = config.replace("reuseport", "ssl reuseport")
        path = Path(folder, "nginx.conf")
        path.write_text(config, encoding="utf-8")
        process = subprocess.Popen([program, "-p", folder, "-c", str(path)], stderr=subprocess.DEVNULL)  # noqa: S603 - our own
        try:
            _wait_for(port)
            yield Sink(f"{'http' if certificate is None else 'https'}://127.0.0.1:{port}/", "nginx")
        finally:
            process.terminate()
            process.wait()


def _wait_for(port: int) -> None:
    until = time.monotonic() + _STARTS_WITHIN_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.02)
        else:
            return


class _NoContent(asyncio.Protocol):
    """Answers 204 to every request whose head announces its length; as little as a sink can do."""

    _ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"

    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no instances of asyncio's

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            self._transport.write(self._ANSWER)


@contextlib.asynccontextmanager
async def builtin_sink() -> AsyncIterator[Sink]:
    """The sink of our own, in this process: its work counts as ours."""
    server = await asyncio.get_running_loop().create_server(_NoContent, "127.0.0.1", 0)
    try:
        yield Sink(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", "built-in")
    finally:
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def any_sink() -> AsyncIterator[Sink]:
    """An nginx where it is there, else our own."""
    program = find_nginx()
    if program is None:
        async with builtin_sink() as sink:
            yield sink
    else:
        with nginx_sink(program) as sink:
            yield sink
