"""Fuzzing the wire API: whatever is sent, there is an answer in the envelope, as the OpenAPI document says, and never a 500.

The server is the real one, on real sockets, in a thread of its own.
"""

import asyncio
import http.client
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote_from_bytes, urlencode

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)
from tests.support.api import members, serving

from toque.web.directcall import METHODS
from toque.web.openapi import openapi_document

pytestmark = pytest.mark.slow

MODULES = {method.path: method.module for method in METHODS}
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
    ignored_auth,
)


@dataclass(frozen=True)
class Target:
    port: int
    token: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


class ServerThread(threading.Thread):
    """A server with one customer, until it is stopped."""

    def __init__(self, store: Path) -> None:
        super().__init__(name="fuzzed")
        self.store = store
        self.is_ready = threading.Event()
        self.target: Target | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_over = asyncio.Event()

    def run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with serving(self.store, max_callbacks="10000", token_lifetime="24h", login_failures="1000") as api:
            customer = await api.add_client("central")
            told = members(await customer.ask_token())
            self.target = Target(api.server.http_port, told["access_token"])
            self.is_ready.set()
            await self._is_over.wait()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._is_over.set)
        self.join()


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    thread = ServerThread(tmp_path_factory.mktemp("store") / "toque.db")
    thread.start()
    assert thread.is_ready.wait(20)
    yield thread.target
    thread.stop()


# As the document says


SCHEMA = schemathesis.openapi.from_dict(openapi_document())
OPERATIONS = [SCHEMA[method.path][verb] for method in METHODS for verb in method.http_methods]
PATIENT = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.label)
@PATIENT
@given(data=st.data())
def test_the_api_does_as_its_document_says(
    target: Target, operation: schemathesis.APIOperation, mode: GenerationMode, data: st.DataObject
):
    case = data.draw(operation.as_strategy(generation_mode=mode))
    response = case.call(base_url=target.url, headers={"authorization": f"Bearer {target.token}"})
    case.validate_response(response, checks=list(CHECKS))
    headers = [(name, value) for name, values in response.headers.items() for value in values]
    members(httpx.Response(response.status_code, headers=headers, content=response.content))


# As it does not say

PATHS = st.sampled_from([*(method.path for method in METHODS), "/", "/voz", "/voz/list-callback/", "//voz//add-callback", "/%ff"])
VERBS = st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "PATCH", "DELETE", "PROPFIND", "TRACE"])
NAMES = st.sampled_from(
    ["access_token", "url", "pin", "code", "format", "formato", "client_id", "client_secret", "grant_type", "", "x[]", "\x00"]
)
VALUES = st.one_of(
    st.sampled_from(["", "xml", "JSON", "https://a.example/", "http://[::1]/", "http://u:p@a.example/%zz", "0" * 40, "central"]),
    st.text(max_size=30),
)
PAIRS = st.lists(st.tuples(NAMES, VALUES), max_size=6)
GARBAGE = st.one_of(
    st.binary(max_size=100),
    st.lists(
        st.sampled_from([b"%", b"%ff", b"&", b"=", b"+", b"format=xml", b"url=", b"\r\n", b"--b", b"\xff"]), max_size=12
    ).map(b"".join),
)
FORMS = PAIRS.map(lambda pairs: urlencode(pairs, errors="surrogatepass").encode())
MULTIPARTS = PAIRS.map(
    lambda pairs: (
        b"".join(
            b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
            % (name.encode(), value.encode("utf-8", "surrogatepass"))
            for name, value in pairs
        )
        + b"--b--\r\n"
    )
)
CONTENT_TYPES = st.one_of(
    st.sampled_from(
        [
            "application/x-www-form-urlencoded",
            "application/x-www-form-urlencoded; charset=utf-8",
            "application/x-www-form-urlencoded; charset=latin-1",
            "multipart/form-data; boundary=b",
            "multipart/form-data",
            "application/json",
            "",
        ]
    ),
    st.text(alphabet=st.characters(min_codepoint=32, max_codepoint=126), max_size=40),
)
AUTHORIZATIONS = st.one_of(
    st.sampled_from(["", "Bearer", "Bearer x", "Basic", "Basic eDp5", "Basic ====", "Basic w7/Dvw=="]),
    st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), max_size=40),
)


@dataclass(frozen=True)
class Sent:
    verb: str
    path: str
    query: bytes
    content_type: str
    authorization: str
    has_token: bool
    body: bytes


SENT = st.builds(
    Sent,
    verb=VERBS,
    path=PATHS,
    query=GARBAGE | FORMS,
    content_type=CONTENT_TYPES,
    authorization=AUTHORIZATIONS,
    has_token=st.booleans(),
    body=GARBAGE | FORMS | MULTIPARTS,
)


@PATIENT
@given(SENT)
def test_whatever_is_sent_is_answered_in_the_envelope(target: Target, sent: Sent):
    authorization = f"Bearer {target.token}" if sent.has_token else sent.authorization
    headers = {"Content-Type": sent.content_type, "Authorization": authorization}
    address = f"{sent.path}?{quote_from_bytes(sent.query, safe='%=&+')}"
    connection = http.client.HTTPConnection("127.0.0.1", target.port, timeout=10)
    try:
        connection.request(sent.verb, address, sent.body, headers)
        response = connection.getresponse()
        answer = httpx.Response(response.status, headers=response.getheaders(), content=response.read())
    finally:
        connection.close()
    assert answer.status_code < 500
    told = members(answer)
    assert told["codigo"] != "000" or answer.status_code == 200
    assert told["modulo"] == MODULES.get(sent.path, told["modulo"])


HTTP_PIECES = st.sampled_from(
    [
        b"GET /health HTTP/1.1\r\n", b"POST /request_token HTTP/1.1\r\n", b"POST /voz/add-callback?format=xml HTTP/1.0\r\n",
        b"Host: x\r\n", b"Content-Length: 3\r\n", b"Content-Length: 70000\r\n", b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n", b"Connection: close\r\n", b"Connection: Upgrade\r\nUpgrade: h2c\r\n", b"\r\n", b"\r\n\r\n",
        b"a=b", b"3\r\na=b\r\n", b"0\r\n\r\n", b"ffffffffffffffffff\r\n", b" ", b"\x00", b"\xff",
    ]
)  # fmt: skip
RAW = st.one_of(st.binary(max_size=60), st.lists(HTTP_PIECES | st.binary(max_size=3), max_size=14).map(b"".join))


@PATIENT
@given(st.lists(RAW, max_size=3))
def test_any_bytes_on_a_connection_give_answers_or_its_end(target: Target, pieces: list[bytes]):
    with socket.create_connection(("127.0.0.1", target.port), timeout=10) as connection:
        answer = b""
        try:
            for piece in pieces:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
            while received := connection.recv(65_536):
                answer += received
        except OSError:
            pass  # it is as good an end as another
    assert not answer or answer.startswith(b"HTTP/1.1 ")
    assert b"HTTP/1.1 5" not in answer
    told = httpx.get(f"{target.url}/health", trust_env=False)
    assert told.status_code == 200  # and everybody else goes on
