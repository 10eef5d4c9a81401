"""The documentation says what the code does: nothing is missing from it, nothing in it is wrong, and what can be run is run."""

import base64
import hashlib
import hmac
import json
import os
import re
import socket
import subprocess
import sys
import time
import tomllib
import unicodedata
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, Self

import msgspec
import pytest
from tests.support.requirements import require
from tests.support.toque_process import PATIENCE_S, POLL_S, clean_environment, free_port

from toque import __version__
from toque.callbacks.delivery import DEADLINE, JITTER, RETRIES, UNWELCOME, UNWELCOME_TRIES
from toque.callbacks.payload import DIRECTION_WORDS, PARTY_WORDS, STATUS_WORDS, CallbackData, CauseData, encode_form
from toque.callbacks.url import MAX_URL_LENGTH
from toque.calls import causes, lines
from toque.calls.model import Cause, Status
from toque.cli import app
from toque.receiver import parse_body
from toque.sending.transport import MAX_BODY_BYTES as MAX_ANSWER_BYTES
from toque.settings import _SOURCE_KINDS, AMI_PORT, ENVIRONMENT_PREFIX, ESL_PORT, OPTIONS, flag_of, load_settings
from toque.sources.recording import read_recording
from toque.web.connection import MAX_HEAD_BYTES
from toque.web.directcall import METHODS
from toque.web.envelopes import RETURN_CODES
from toque.web.forms import MAX_BODY_BYTES, MAX_FIELDS
from toque.web.methods import Member, Method

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
README, API, OPERATION, GUARANTEES, DESIGN = (
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/api.md", "docs/operation.md", "docs/guarantees.md", "docs/design.md")
)
ENVELOPE = ["api", "modulo", "status", "codigo", "msg"]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


# Reading Markdown


def section(page: str, heading: str) -> str:
    """What stands under a heading, its subsections included."""
    found = re.search(rf"^(#+) {re.escape(heading)}$", page, re.MULTILINE)
    assert found is not None, f"there is no heading {heading!r}"
    rest = without_code(page)[found.end() :]
    end = re.search(rf"^#{{1,{len(found[1])}}} ", rest, re.MULTILINE)
    return page[found.end() : found.end() + end.start() if end else None]


def without_code(page: str) -> str:
    """The page with its code blocks blanked, at the same length: a comment in one is no heading."""
    return re.sub(r"^( *)```.*?^\1```$", lambda block: " " * len(block[0]), page, flags=re.MULTILINE | re.DOTALL)


def tables(text: str) -> list[list[list[str]]]:
    """The tables, each as its rows without the head, each row as its cells."""
    found: list[list[list[str]]] = []
    for block in re.findall(r"(?:^ *\|.*\n)+", text + "\n", re.MULTILINE):
        rows = [[cell.strip() for cell in row.strip().strip("|").split(" | ")] for row in block.strip().splitlines()]
        found.append([[cell.strip(" |") for cell in row] for row in rows[2:]])
    return found


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def examples(language: str) -> list[Any]:
    """The code blocks of a language on all pages, as parameters of a test."""
    found = [(page, blocks(page.read_text(encoding="utf-8"), language)) for page in PAGES]
    return [pytest.param(block, id=f"{page.stem}-{number}") for page, told in found for number, block in enumerate(told, 1)]


def bare(cell: str) -> str:
    """A cell without its code marks and the dagger that marks our own decisions."""
    return cell.replace("`", "").replace("†", "").strip()


def slug(heading: str) -> str:
    """The anchor that a heading gets on the usual hosts of repositories."""
    text = re.sub(r"[`*]|\[(.*?)\]\(.*?\)", r"\1", heading).strip().lower()
    kept = (c for c in text if c in "-_ " or unicodedata.category(c)[0] in "LN" or unicodedata.category(c)[0] == "M")
    return "".join(kept).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)}


# Links and names


@every_page
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    text = without_code(page.read_text(encoding="utf-8"))
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page if not path else page.parent / path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


@every_page
def test_every_file_that_is_named_exists(page: Path) -> None:
    named = set(re.findall(r"`((?:[\w-]+/)*[\w.-]+\.(?:py|php|sh|md))`", page.read_text(encoding="utf-8")))
    places = (ROOT, ROOT / "docs", ROOT / "src/toque", ROOT / "src/toque/calls", ROOT / "examples")
    assert {name for name in named if not any((place / name).is_file() for place in places)} == set()


@every_page
def test_every_folder_and_make_target_that_is_named_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z]+)\b", text, re.MULTILINE)) - targets == set()
    folders = set(re.findall(r"`((?:src|tests|docs|examples|tools)(?:/[\w-]+)*)/?`", text))
    assert {name for name in folders if not (ROOT / name).is_dir()} == set()


def test_the_changelog_has_this_version() -> None:
    assert f"## {__version__} - " in PAGES[1].read_text(encoding="utf-8")


def test_the_rooms_are_those_of_the_source() -> None:
    (drawn,) = (block for block in blocks(DESIGN, "") if block.startswith("src/toque/"))
    named = set(re.findall(r"^  ([\w/.]+(?:, [\w/.]+)*)(?: |$)", drawn, re.MULTILINE))
    told = {name.strip().rstrip("/") for names in named for name in names.split(",")}
    there = {path.name for path in (ROOT / "src/toque").iterdir() if path.name[0] not in "_." and path.suffix in ("", ".py")}
    assert there - told <= {"recordings", "bench"}
    assert told <= there


def test_the_dependencies_are_all_explained() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    told = {name.strip().lower() for row in tables(section(DESIGN, "What it is built on"))[0] for name in row[0].split(",")}
    assert {re.split(r"[>=<\[]", name)[0] for name in wanted} - {"tzdata"} == told


# Settings, commands, log


def test_the_settings_table_is_the_codes() -> None:
    (table, *_) = tables(section(OPERATION, "Settings"))
    told = {bare(name): (bare(default), bare(variable), bare(flag)) for name, default, variable, flag, _ in table}
    assert list(told) == list(OPTIONS)
    for name, option in OPTIONS.items():
        default = "none" if option.default in (None, []) else str(option.default)
        shown = default.lower() if isinstance(option.default, bool) else default
        flag = f"--{flag_of(name)}" if option.has_flag else "none"
        assert told[name] == (shown, ENVIRONMENT_PREFIX + name.upper(), flag)


@pytest.mark.parametrize(
    ("kind", "heading"), [("hep", "HEP"), ("ami", "Asterisk by its manager interface"), ("esl", "FreeSWITCH by its event socket")]
)
def test_the_keys_of_a_source_are_documented(kind: str, heading: str) -> None:
    keys = _SOURCE_KINDS[kind]
    told = {bare(key): bare(default) for key, default, _ in tables(section(OPERATION, heading))[0]}
    assert list(told) == list(keys)
    for name, key in keys.items():
        assert (told[name] == "must be given") == key.is_required, name
        if isinstance(key.default, bool):
            assert told[name] == str(key.default).lower()
        elif isinstance(key.default, str) and not key.is_required:
            assert told[name] == (key.default or "none"), name


def test_every_kind_of_source_has_its_keys_documented() -> None:
    assert set(_SOURCE_KINDS) == {"hep", "ami", "esl"}
    for kind, port in {"ami": AMI_PORT, "esl": ESL_PORT}.items():
        (said,) = re.findall(rf'kind = "{kind}".*?port (\d+) if none is written', OPERATION, re.DOTALL)
        assert int(said) == port


@pytest.mark.parametrize("example", examples("toml"))
def test_every_example_of_settings_can_be_used(example: str, tmp_path: Path) -> None:
    config = tmp_path / "toque.toml"
    config.write_text(example, encoding="utf-8")
    load_settings(config, {}, {})


def commands(group: Any = app, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command by its words."""
    for name in group:
        if not name.startswith("-"):
            yield from commands(group[name], (*path, name))
    if path and group.default_command is not None:
        yield path, group


def test_every_command_is_documented() -> None:
    (table, *_) = tables(section(OPERATION, "Commands"))
    told = {tuple(word for word in bare(name).split()[1:] if word.islower()) for name, _ in table}
    assert told == {path for path, _ in commands()}


def test_every_flag_of_a_command_is_documented() -> None:
    settings = {f"--{flag_of(name)}" for name in OPTIONS}
    told = set(re.findall(r"`(--[a-z-]+)", OPERATION))
    for path, command in commands():
        for argument in command.assemble_argument_collection():
            names = {name for name in argument.names if name.startswith("--")}
            is_positional = argument.field_info.is_positional
            if names and not is_positional:
                assert names & (told | settings), f"{' '.join(path)}: {names}"


LOGGED = re.compile(r'(?:log|bound\(\w+\))\.(debug|info|warning|error|critical|exception)\(\s*"([a-z_]+\.[a-z_]+)"')


def test_every_event_of_the_log_is_documented() -> None:
    found = Counter(
        (event, "error" if level == "exception" else level)
        for file in (ROOT / "src/toque").rglob("*.py")
        if "bench" not in file.parts
        for level, event in LOGGED.findall(file.read_text(encoding="utf-8"))
    )
    assert {(bare(event), level) for event, level, _ in tables(section(OPERATION, "Log"))[0]} == set(found)


def test_the_texts_in_troubleshooting_are_the_codes() -> None:
    source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "src/toque").rglob("*.py"))
    phrases = [
        phrase.removesuffix("…").removesuffix("15 s").strip()
        for table in tables(section(OPERATION, "Troubleshooting"))
        for row in table
        for phrase in re.findall(r"`([^`]+)`", row[0])
    ]
    phrases += re.findall(r"^\*\*`([^`…]+)", section(OPERATION, "Troubleshooting"), re.MULTILINE)
    assert len(phrases) > 15
    assert [phrase for phrase in phrases if phrase.strip() not in source] == []


# The wire API


def test_the_methods_are_documented() -> None:
    table = tables(section(API, "Regras comuns"))[0]
    told = {bare(path): (set(re.findall(r"GET|POST", verbs)), bare(module)) for _, path, verbs, module in table}
    assert told == {method.path: (set(method.http_methods), method.module) for method in METHODS}


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.path)
def test_the_fields_and_members_of_a_method_are_documented(method: Method) -> None:
    verbs = " ou ".join(sorted(method.http_methods, key="POST GET".index))
    (heading,) = re.findall(rf"^## (.*: `{verbs} {re.escape(method.path)}`)$", API, re.MULTILINE)
    text = section(API, heading)
    fields = {bare(name) for row in tables(text)[0] for name in row[0].split(",")}
    assert fields == {field.name for field in method.fields}
    required = {bare(row[0]) for row in tables(text)[0] if row[1] == "obrigatório"}
    assert required - {"access_token"} == {field.name for field in method.fields if field.is_required}
    assert {member.name for member in method.members if f"`{member.name}`" not in text} == set()
    example = next(told for told in map(json.loads, blocks(text, "json")) if told["codigo"] == "000")
    check_members(example, [*ENVELOPE, *(member.name for member in method.members)], method.members)
    assert example["modulo"] == method.module


def check_members(told: Mapping[str, Any], names: Sequence[str], members: Sequence[Member]) -> None:
    assert set(told) == set(names)
    for member in members:
        for entry in told[member.name] if member.items else ():
            assert list(entry) == [item.name for item in member.items]


def test_the_return_codes_are_documented() -> None:
    told = [
        (bare(codigo), int(status), bare(meaning)) for codigo, status, meaning in tables(section(API, "Códigos de retorno"))[0]
    ]
    assert told == [(row.codigo, row.http_status, bare(row.meaning)) for row in RETURN_CODES]


def test_the_limits_are_documented() -> None:
    told = {bare(name): bare(limit) for name, limit in tables(section(API, "Limites"))[0]}
    assert told["corpo da requisição, query string"] == f"{MAX_BODY_BYTES // 1024} KiB cada"
    assert told["linha e cabeçalhos da requisição"] == f"{MAX_HEAD_BYTES // 1024} KiB"
    assert told["campos por requisição"] == str(MAX_FIELDS)
    assert told["URL registrada"] == f"{MAX_URL_LENGTH} caracteres"
    assert told["resposta sua que é lida"].startswith(f"{MAX_ANSWER_BYTES // 1024} KiB")


def test_every_example_is_linked() -> None:
    intake = (ROOT / "docs/intake.md").read_text(encoding="utf-8")
    files = {file.name for file in (ROOT / "examples").iterdir() if file.is_file()}
    assert {name for name in files if f"(../examples/{name})" not in API + intake} == set()


# The status callback


def payloads() -> list[dict[str, Any]]:
    return [told for told in map(json.loads, blocks(API, "json")) if "sequencia" in told]


def test_every_json_example_is_an_answer_or_a_status() -> None:
    for told in map(json.loads, blocks(API, "json") + blocks(README, "json")):
        assert set(ENVELOPE) <= set(told) or "sequencia" in told


@pytest.mark.parametrize("payload", payloads(), ids=lambda payload: f"{payload['status']}-{payload['inferido']}")
def test_an_example_of_a_status_has_the_payloads_members(payload: dict[str, Any]) -> None:
    assert list(payload) == list(CallbackData.__struct_fields__)
    msgspec.convert(payload, CallbackData)
    if payload["causa"] is not None:
        assert list(payload["causa"]) == list(CauseData.__struct_fields__)
    status = parse_body(encode_form(json.dumps(payload)))
    assert status.raw == payload
    assert payload["tipo"] in DIRECTION_WORDS.values()
    assert payload["desligado_por"] in (None, *PARTY_WORDS.values())
    assert status.is_final or (payload["fim"], payload["duracao"], payload["desligado_por"], payload["causa"]) == (None,) * 4
    assert (payload["fim"] is None) == (not status.is_final or payload["inferido"])


def test_the_members_are_documented() -> None:
    table = tables(section(API, "O POST de status"))[0]
    assert [bare(row[0]) for row in table] == list(CallbackData.__struct_fields__)
    may_be_null = {
        field.name for field in msgspec.structs.fields(CallbackData) if type(None) in getattr(field.type, "__args__", ())
    }
    assert {bare(row[0]) for row in table if row[1].endswith("ou nulo")} == may_be_null


def test_the_statuses_are_documented() -> None:
    table = tables(section(API, "Quando cada status é enviado"))[0]
    finals = [STATUS_WORDS[status] for status in Status if status.is_final]
    assert [bare(word) for word, _ in table] == list(STATUS_WORDS.values())
    assert [bare(word) for word, text in table if text.startswith("final: ")] == finals
    assert {payload["status"] for payload in payloads()} >= {"iniciou", "chamando", "atendeu", "desligou", "ocupado"}


def codes(evidence: str) -> tuple[set[int], set[int]]:
    """SIP codes and Q.850 causes of a row. A SIP code has three digits; a cause may have them too, but stands behind Q.850."""
    sip, _, rest = evidence.replace("3xx", "300 a 399").partition("Q.850")
    q850, _, more_sip = rest.partition("; um ")
    return numbers(f"{sip} {more_sip}"), numbers(q850)


def numbers(text: str) -> set[int]:
    """All numbers in a text; `50 a 57` are eight."""
    ranges = [range(int(low), int(high) + 1) for low, high in re.findall(r"\b(\d+) a (\d+)\b", text)]
    return set(map(int, re.findall(r"\b\d+\b", text))).union(*ranges)


def test_the_ends_are_those_of_the_table() -> None:
    rows = {bare(word): evidence for evidence, word in tables(section(API, "Como cada chamada termina"))[0]}
    assert set(rows) == {STATUS_WORDS[status] for status in Status if status.is_final} - {"desligou"}
    for rang in (False, True):
        for status in Status:
            if not status.is_final or status in (Status.HUNG_UP, Status.CANCELLED, Status.FAILED):
                continue
            sip, q850 = codes(rows[STATUS_WORDS[status]])
            if status is (Status.NO_ANSWER if not rang else Status.UNREACHABLE):
                sip, q850 = set(), set()
            assert sip == {code for code in range(300, 700) if causes.word_for(Cause(sip=code), rang=rang) is status}
            assert q850 == {value for value in range(128) if causes.word_for(Cause(q850=value), rang=rang) is status}


def test_the_codes_that_speak_for_themselves_are_told() -> None:
    (listed,) = re.findall(r"Códigos que falam por si \(([\d, ]+)\)", " ".join(API.split()))
    assert {int(code) for code in re.findall(r"\d+", listed)} == {code for code in range(300, 700) if causes.is_plain(code)}


def test_the_retries_are_told() -> None:
    units = ((3600, "h"), (60, "min"), (1, "s"))
    waits = [next(f"{wait.seconds // size} {unit}" for size, unit in units if wait.seconds % size == 0) for wait in RETRIES]
    assert waits.pop() == "1 h"
    assert DEADLINE.total_seconds() == 24 * 3600
    for page in (section(API, "Entrega, tentativas e ordem"), section(GUARANTEES, "Delivery")):
        text = " ".join(page.split())
        assert ", ".join(waits) in text
        assert f"±{JITTER * 100:.0f} %" in text
        assert ", ".join(map(str, sorted(UNWELCOME))) in text
        assert "three tries" in text or "três tentativas" in text
    assert UNWELCOME_TRIES == 3


def test_numbers_are_compared_as_told() -> None:
    for dialled, compared, _ in tables(section(OPERATION, "Clients, lines and numbers"))[1]:
        for number in bare(dialled).split(", "):
            assert lines.normalise(number) == (number if bare(compared) == "as they stand" else bare(compared))


# What can be run


def signed_post(secret: str, payload: Mapping[str, Any], now: float) -> tuple[dict[str, str], bytes]:
    """Headers and body as the server sends them, written once more from the documentation alone."""
    body = encode_form(json.dumps(payload))
    content = f"{payload['id']}.{int(now)}.".encode() + body
    digest = hmac.new(base64.b64decode(secret.removeprefix("whsec_")), content, hashlib.sha256).digest()
    signature = "v1," + base64.b64encode(digest).decode()
    return {"webhook-id": payload["id"], "webhook-timestamp": str(int(now)), "webhook-signature": f"v1,x {signature}"}, body


SECRET = "whsec_" + base64.b64encode(b"0123456789abcdef0123456789abcdef").decode()


@pytest.mark.parametrize("example", examples("python"))
def test_every_python_example_compiles(example: str) -> None:
    compile(example, "example", "exec")


@pytest.mark.parametrize("example", [example for example in examples("python") if "Receiver(" in example.values[0]])
def test_the_receivers_of_the_docs_receive(
    example: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CALLBACK_SECRET", SECRET)
    names: dict[str, Any] = {}
    exec(compile(example, "example", "exec"), names)
    receive = names.get("callback") or names["receber"]
    headers, body = signed_post(SECRET, payloads()[0], time.time())
    assert receive(headers, body) == 204
    assert "iniciou" in capsys.readouterr().out
    assert receive(headers, body) == 200
    assert receive(headers, body + b"x") == 401


def test_the_reader_without_a_library_reads() -> None:
    (example,) = (block for block in blocks(API, "python") if "def ler(" in block)
    names: dict[str, Any] = {}
    exec(compile(example, "example", "exec"), names)
    headers, body = signed_post(SECRET, payloads()[0], time.time())
    assert names["ler"](headers, body, SECRET) == payloads()[0]
    with pytest.raises(ValueError, match="assinatura"):
        names["ler"](headers, body + b"x", SECRET)
    old_headers, body = signed_post(SECRET, payloads()[0], time.time() - 3600)
    with pytest.raises(ValueError, match="tempo"):
        names["ler"](old_headers, body, SECRET)


def post(url: str, headers: Mapping[str, str], body: bytes) -> int:
    """The HTTP status, once somebody answers."""
    until = time.monotonic() + PATIENCE_S
    while True:
        request = urllib.request.Request(url, body, dict(headers))
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            with error:
                return error.code
        except urllib.error.URLError:
            assert time.monotonic() < until
            time.sleep(POLL_S)


@pytest.mark.php
def test_the_php_of_the_docs_receives(tmp_path: Path) -> None:
    require("php")
    (example,) = blocks(API, "php")
    (tmp_path / "receiver.php").write_text(example, encoding="utf-8")
    port = free_port()
    environment = clean_environment() | {"CALLBACK_SECRET": SECRET}
    command = ["php", "-d", "error_log=log.txt", "-S", f"127.0.0.1:{port}", "receiver.php"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as php:
        try:
            headers, body = signed_post(SECRET, payloads()[0], time.time())
            assert post(f"http://127.0.0.1:{port}/", headers, body) == 204
            assert post(f"http://127.0.0.1:{port}/", headers, body + b"x") == 401
            old_headers, body = signed_post(SECRET, payloads()[0], time.time() - 3600)
            assert post(f"http://127.0.0.1:{port}/", old_headers, body) == 401
        finally:
            php.terminate()
    assert "1 iniciou" in (tmp_path / "log.txt").read_text(encoding="utf-8")


def test_the_transcript_of_the_demo_is_that_of_the_recording() -> None:
    (transcript,) = blocks(README, "console")
    truth = json.loads((ROOT / "src/toque/recordings/demo.truth.json").read_text(encoding="utf-8"))["calls"]
    packets = len(read_recording(ROOT / "src/toque/recordings/demo.pcap"))
    statuses = sum(len(call["statuses"]) for call in truth)
    ends = Counter(call["statuses"][-1] for call in truth)
    assert f"replaying {packets} mirrored SIP packets" in transcript
    assert f"{len(truth)} calls, {statuses} statuses, {statuses} of them delivered" in transcript
    assert (
        Counter({word: int(count) for count, word in re.findall(r"(\d+) (\w+)", transcript.split("ends: ")[1].split("\n")[0])})
        == ends
    )
    assert f"{packets} packets" in README
    assert f"SIPp made {len(truth)} calls" in README


def test_kamailio_is_set_up_as_in_the_tests() -> None:
    laboratory = dict(
        re.findall(
            r'^modparam\("siptrace", "(\w+)", (.+)\)$', (ROOT / "tests/support/sip_lab/kamailio.cfg").read_text(), re.MULTILINE
        )
    )
    for page in (section(README, "Quick start"), section(OPERATION, "Kamailio")):
        told = dict(re.findall(r'^modparam\("siptrace", "(\w+)", (.+?)\)', page, re.MULTILINE))
        assert told.pop("duplicate_uri").endswith(':9060"')
        assert told.pop("hep_version") == "3"
        assert told.items() <= laboratory.items()
        assert told.keys() >= {"trace_on", "trace_mode", "hep_mode_on", "trace_to_database"}


class Quickstart:
    """Does what the quick start says, line by line, in a folder and on ports of its own."""

    BACKGROUND = ("toque serve", "python examples/")
    SHOWN: ClassVar = {
        "CLIENT_ID": r"^client_id +(\S+)$",
        "CLIENT_SECRET": r"^client_secret +(\S+)$",
        "CODE": r'"code": "(\w+)"',
        "CALLBACK_SECRET": r'"segredo": "(\S+)"',
    }

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = {"8080": str(free_port()), "9060": str(free_port()), "8000": str(free_port())}
        own = Path(sys.executable).parent
        self.environment = clean_environment() | {"PATH": f"{own}:{os.environ['PATH']}", "PORT": self.ports["8000"]}
        self.output = ""
        self.processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        (self.folder / "examples").symlink_to(ROOT / "examples")
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            process.terminate()
            process.wait(PATIENCE_S)

    def placed(self, text: str) -> str:
        for port, own in self.ports.items():
            text = text.replace(f"127.0.0.1:{port}", f"127.0.0.1:{own}")
        return text

    def filled(self, name: str) -> str:
        return re.findall(self.SHOWN[name], self.output, re.MULTILINE)[-1]

    def follow(self, language: str, block: str) -> None:
        text = self.placed(block)
        if language == "toml":
            (self.folder / "toque.toml").write_text(text, encoding="utf-8")
            return
        text = re.sub(
            r"^export (\w+)=….*$", lambda export: f"export {export[1]}={self.filled(export[1])}", text, flags=re.MULTILINE
        )
        *lines, last = text.strip().split("\n")
        if last.startswith(self.BACKGROUND):
            self.run("\n".join(lines))
            self.start(last)
        else:
            self.run(text)

    def run(self, script: str) -> None:
        """Run it and keep what it prints and exports."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", f"{script}\nenv -0 > environment"],
            cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        self.output += done.stdout
        exported = (self.folder / "environment").read_text(encoding="utf-8").split("\0")
        self.environment = dict(line.split("=", 1) for line in exported if line)

    def start(self, command: str) -> None:
        with (self.folder / "log.txt").open("ab") as log:
            process = subprocess.Popen(command.split(), cwd=self.folder, env=self.environment, stdout=log, stderr=log)
        self.processes.append(process)
        self.wait_for("8080" if command.startswith("toque") else "8000")

    def wait_for(self, port: str) -> None:
        until = time.monotonic() + PATIENCE_S
        while True:
            with suppress(OSError), socket.create_connection(("127.0.0.1", int(self.ports[port])), timeout=PATIENCE_S):
                return
            assert time.monotonic() < until, (self.folder / "log.txt").read_text(encoding="utf-8")
            time.sleep(POLL_S)


@pytest.mark.shell
def test_the_quick_start_works(tmp_path: Path) -> None:
    require("bash", "curl", "sed")
    followed = []
    with Quickstart(tmp_path) as quickstart:
        for language, block in re.findall(r"^```(sh|toml)\n(.*?)^```$", section(README, "Quick start"), re.MULTILINE | re.DOTALL):
            if "pip install" not in block:  # `make smoke` does that
                quickstart.follow(language, block)
                followed.append(language)
        with urllib.request.urlopen(quickstart.placed("http://127.0.0.1:8080/health")) as response:
            health = json.load(response)
    assert Counter(followed) == {"toml": 1, "sh": 6}
    assert quickstart.output.endswith(" ms)\n")
    assert "/callback: 204" in quickstart.output
    assert '"status": "desligou"' in (tmp_path / "log.txt").read_text(encoding="utf-8")
    assert list(health) == [bare(row[0]) for row in tables(section(OPERATION, "Health"))[0]]
    (shown,) = map(json.loads, blocks(section(README, "Quick start"), "json"))
    assert list(shown) == [*ENVELOPE, "code", "segredo"]
