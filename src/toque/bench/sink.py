"""Where measured posts go: nginx with one worker answering 204 where it is installed, else a small server of our own."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

from toque.bench.receivers import Group, receiving

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
        process = subprocess.Popen(  # noqa: S603 - our own
            [program, "-p", folder, "-c", str(path)], stderr=subprocess.DEVNULL, start_new_session=True
        )
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


@contextlib.asynccontextmanager
async def builtin_sink(certificate: Path | None = None, key: Path | None = None) -> AsyncIterator[Sink]:
    """The sink of our own."""
    group = Group("at once", certificate=None if certificate is None else str(certificate), key=None if key is None else str(key))
    async with receiving(group) as receivers:
        yield Sink(receivers.urls[0][0], "built-in")


@contextlib.asynccontextmanager
async def any_sink(certificate: Path | None = None, key: Path | None = None) -> AsyncIterator[Sink]:
    """An nginx where it is there, else our own; over TLS when there is a certificate."""
    program = find_nginx()
    if program is None:
        async with builtin_sink(certificate, key) as sink:
            yield sink
    else:
        with nginx_sink(program, certificate=certificate, key=key) as sink:
            yield sink
