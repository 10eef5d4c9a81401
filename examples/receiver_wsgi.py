"""Receives status callbacks with nothing but Python's own WSGI server; `application` runs under any other as well.

CALLBACK_SECRET=whsec_... python receiver_wsgi.py      (PORT, by default 8000)
"""

import json
import os
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any
from wsgiref.simple_server import make_server

from toque.receiver import CallStatus, Receiver, ReceiverError, SeenInMemory, headers_from_environ

# A status is about a kilobyte. Whoever sends much more has something else in mind.
MAX_BODY_BYTES = 64 * 1024

# Two secrets with a space between them during a rotation. With several worker processes, keep the ids that were seen
# in your database instead: the docstring of toque.receiver.SeenIds says how.
receiver = Receiver(os.environ["CALLBACK_SECRET"].split(), seen=SeenInMemory())


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    http_status, text = callback(environ)
    headers = [("Content-Type", "text/plain; charset=utf-8")] if text else []
    start_response(f"{http_status} {HTTPStatus(http_status).phrase}", headers)
    return [text.encode()]


def callback(environ: dict[str, Any]) -> tuple[int, str]:
    if environ["REQUEST_METHOD"] != "POST":
        return 405, "POST only"
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length > MAX_BODY_BYTES:
        return 413, "too long for a status"
    try:
        with receiver.handling(headers_from_environ(environ), environ["wsgi.input"].read(length)) as status:
            handle(status)
    except ReceiverError as error:
        return error.http_status, str(error)
    return 204, ""


def handle(status: CallStatus) -> None:
    """Stands for your own work. If it raises, the server answers 500, and the status comes again."""
    line = json.dumps(status.raw, ensure_ascii=False)
    if path := os.environ.get("TOQUE_EXAMPLE_LOG"):
        with Path(path).open("a", encoding="utf-8") as log:
            print(line, file=log)
    else:
        print(line, flush=True)


if __name__ == "__main__":
    with make_server("127.0.0.1", int(os.environ.get("PORT", "8000")), application) as server:
        server.serve_forever()
