"""A small, real HTTP server that speaks the wire API from a thread, and misbehaves on demand.

Left alone it keeps tokens and callbacks in memory and answers as the API does. `on(path, *steps)` puts scripted
answers before that, one per request; a step is an `Answer`, or a function of the `Request` that gives one.
"""

import json
import ssl
import sys
import threading
import urllib.parse
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

CLIENT_ID = "cliente-1"
CLIENT_SECRET = "segredo-do-cliente+&="
CALLBACK_SECRET = "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]  # lower-case names
    fields: dict[str, str]


@dataclass(frozen=True)
class Answer:
    """What goes back. With `raw`, exactly these bytes and nothing else."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    raw: bytes | None = None


Step = Answer | Callable[[Request], Answer]


def answer(http_status: int = 200, /, **members: Any) -> Answer:
    """The members as JSON in the wire's layout, one key a line."""
    return Answer(http_status, json.dumps(members, indent=4, ensure_ascii=False).encode())


def ok(**members: Any) -> Answer:
    return answer(200, api="voz", modulo="teste", status="ok", codigo="000", msg="ok", **members)


def refusal(http_status: int, codigo: str, msg: str = "recusado", **headers: str) -> Answer:
    given = answer(http_status, api="voz", modulo="teste", status="erro", codigo=codigo, msg=msg)
    return Answer(given.status, given.body, {name.replace("_", "-"): value for name, value in headers.items()})


class WireServer:
    """Serves on a free loopback port while the `with` block lasts."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._lock = threading.Lock()
        self._steps: dict[str, deque[Step]] = {}
        self._requests: list[Request] = []
        self._tokens_issued = 0
        self.valid_tokens: set[str] = set()
        self.callbacks: dict[str, dict[str, str | None]] = {}
        self.removed: set[str] = set()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.answer_for = self._answer_for
        self._scheme = "http"
        if tls is not None:
            self._scheme = "https"
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()  # waits for the threads of requests as well
        self._thread.join()
        assert self._server.errors == []  # a failing step must not pass for a failing network

    def on(self, path: str, *steps: Step) -> None:
        with self._lock:
            self._steps.setdefault(path, deque()).extend(steps)

    def requests(self, path: str) -> list[Request]:
        with self._lock:
            return [request for request in self._requests if request.path == path]

    def revoke_tokens(self) -> None:
        with self._lock:
            self.valid_tokens.clear()

    def _answer_for(self, request: Request) -> Answer:
        with self._lock:
            self._requests.append(request)
            steps = self._steps.get(request.path)
            step = steps.popleft() if steps else self._behave
        if isinstance(step, Answer):
            return step
        return step(request)  # outside the lock: steps may wait for each other

    def _behave(self, request: Request) -> Answer:
        with self._lock:
            if request.path == "/request_token":
                return self._token(request.fields)
            if request.fields.get("access_token") not in self.valid_tokens:
                return refusal(401, "006", "token inválido")
            match request.path:
                case "/voz/add-callback":
                    return self._add(request.fields)
                case "/voz/remove-callback":
                    return self._remove(request.fields.get("code", ""))
                case "/voz/list-callback":
                    return self._list()
        return refusal(404, "001", "método desconhecido")

    def _token(self, fields: dict[str, str]) -> Answer:
        if (fields.get("client_id"), fields.get("client_secret")) != (CLIENT_ID, CLIENT_SECRET):
            return refusal(401, "006", "credenciais inválidas")
        self._tokens_issued += 1
        token = f"token-{self._tokens_issued}"
        self.valid_tokens.add(token)
        return answer(access_token=token, token_type="Bearer", expires_in=3600)

    def _add(self, fields: dict[str, str]) -> Answer:
        if not fields.get("url", "").startswith(("http://", "https://")):
            return refusal(400, "001", "url inválida")
        entry = {"url": fields["url"], "pin": fields.get("pin")}
        for code, known in self.callbacks.items():
            if known == entry and code not in self.removed:
                return ok(code=code)
        code = f"{len(self.callbacks) + 1:040x}"
        self.callbacks[code] = entry
        return ok(code=code, segredo=CALLBACK_SECRET)

    def _remove(self, code: str) -> Answer:
        if code not in self.callbacks:
            return refusal(404, "009", f'campo code "{code}" não existe')
        if code in self.removed:
            return refusal(404, "010", "já removido")
        self.removed.add(code)
        return ok()

    def _list(self) -> Answer:
        data = [
            {"code": code, **entry, "criado": "2026-03-01 09:05:07", "saude": "saudavel"}
            for code, entry in self.callbacks.items()
            if code not in self.removed
        ]
        return ok(total=len(data), data=data)


class _Server(ThreadingHTTPServer):
    daemon_threads = False  # so that closing waits for them and none outlives the fixture
    request_queue_size = 64  # tests connect in crowds
    answer_for: Callable[[Request], Answer]

    def __init__(self, address: tuple[str, int], handler: type[BaseHTTPRequestHandler]) -> None:
        self.errors: list[BaseException | None] = []
        super().__init__(address, handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        self.errors.append(sys.exception())


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_POST(self) -> None:
        form = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode("ascii")
        fields = dict(urllib.parse.parse_qsl(form, keep_blank_values=True, errors="surrogatepass"))
        headers = {name.lower(): value for name, value in self.headers.items()}
        given = self.server.answer_for(Request(self.command, self.path, headers, fields))
        with suppress(ConnectionError):  # the client had enough, which some tests are about
            self._send(given)

    def _send(self, given: Answer) -> None:
        if given.raw is not None:
            self.wfile.write(given.raw)
            return
        self.send_response(given.status)
        for name, value in {"Content-Type": "application/json; charset=utf-8", **given.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(given.body)))
        self.end_headers()
        self.wfile.write(given.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing: the requests are kept."""
