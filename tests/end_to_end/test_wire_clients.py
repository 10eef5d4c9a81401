"""The API as customers' own programs use it: shell scripts, Delphi's XPath, PHP's cURL arrays, the examples and the SDK.

All against `toque serve` in a process of its own.
"""

import json
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from tests.support.requirements import require
from tests.support.toque_process import PATIENCE_S, Account, ToqueProcess, clean_environment

from toque.client import AuthenticationFailed, Client, UnknownCode

EXAMPLES = Path(__file__).parents[2] / "examples"
CODE = re.compile(r"[0-9a-f]{40}")
SECRET = re.compile(r"whsec_[A-Za-z0-9+/]{43}=")
PIN = "1001"
SEEN_WITHIN_S = 1.0  # what a command changes


@pytest.fixture(scope="module")
def toque(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToqueProcess]:
    with ToqueProcess(tmp_path_factory.mktemp("toque")) as toque:
        yield toque


@pytest.fixture(scope="module")
def account(toque: ToqueProcess) -> Account:
    """A client for the tests that leave it as it was."""
    return toque.add_client("Escritório", **{PIN: ["554130600300"]})


_numbers = count(1)


@pytest.fixture
def url() -> str:
    """A callback URL of the test's own, on loopback, where nobody listens."""
    return f"http://127.0.0.1:9/chamadas/{next(_numbers)}"


def ask(
    toque: ToqueProcess, path: str, headers: Mapping[str, str] | None = None, /, **fields: str
) -> tuple[int, Mapping[str, str], dict[str, Any]]:
    """One POST by hand: HTTP status, headers and the JSON that came."""
    request = urllib.request.Request(toque.http + path, urllib.parse.urlencode(fields).encode(), dict(headers or {}))
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=PATIENCE_S) as response:
            return response.status, response.headers, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers, json.load(error)


def token_of(toque: ToqueProcess, account: Account) -> str:
    status, _, told = ask(toque, "/request_token", client_id=account.client_id, client_secret=account.client_secret)
    assert status == 200, told
    return str(told["access_token"])


# Shell


def shell(script: str, **variables: str) -> str:
    """What a script prints; it must succeed."""
    done = subprocess.run(
        ["sh", "-eu", "-c", script],
        env=clean_environment() | variables,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


ASK_TOKEN = 'curl -s -X POST "$API/request_token" --data "client_id=$ID&client_secret=$SECRET"'

# How scripts in the wild cut the token out of the answer, line by line.
CUTS = {
    "sed": """sed -n 's/.*"access_token": *"\\([^"]*\\)".*/\\1/p'""",
    "sed by line": """sed '/"access_token":/!d; s/^.*"access_token": "//; s/".*$//'""",
    "grep and cut": """grep '"access_token":' | cut -d '"' -f 4""",
    "grep and sed": """grep access_token | sed -e 's/.*: "//' -e 's/",*$//'""",
    "awk": """awk -F'"' '/access_token/ {print $4}'""",
}


@pytest.mark.shell
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_a_shell_script_registers_lists_and_removes(toque: ToqueProcess, account: Account, url: str, cut: str) -> None:
    require("curl", "sed")
    script = f"""
        field() {{ sed -n 's/^ *"'"$1"'": "\\(.*\\)",*$/\\1/p'; }}
        TOKEN=$({ASK_TOKEN} | {cut})
        ADDED=$(curl -s -X POST "$API/voz/add-callback" --data "access_token=$TOKEN&url=$URL&pin=1001&format=JSON")
        CODE=$(echo "$ADDED" | field code)
        echo "$ADDED" | field codigo
        echo "$ADDED" | field msg
        curl -s -X POST "$API/voz/list-callback" --data "access_token=$TOKEN" | grep -c "$CODE"
        curl -s "$API/voz/list-callback?access_token=$TOKEN" | grep -c "$URL"
        for try in 1 2; do
            curl -s -X POST "$API/voz/remove-callback" --data "access_token=$TOKEN&code=$CODE" | field codigo
        done
        curl -s -X POST "$API/voz/remove-callback" --data "access_token=$TOKEN&code=0" | field codigo
        curl -s -X POST "$API/voz/list-callback" --data "access_token=$TOKEN" | grep -c "$CODE" || true
    """
    told = shell(script, API=toque.http, ID=account.client_id, SECRET=account.client_secret, URL=url)
    codigo, msg, *rest = told.splitlines()
    assert (codigo, rest) == ("000", ["1", "1", "000", "010", "009", "0"])
    assert msg


@pytest.mark.shell
def test_a_script_that_tests_for_an_error_finds_it(toque: ToqueProcess, account: Account) -> None:
    require("curl", "sed")
    told = shell(
        f'{ASK_TOKEN} | sed -n \'s/^ *"error_description": "\\(.*\\)",*$/\\1/p\'',
        API=toque.http,
        ID=account.client_id,
        SECRET="x",
    )
    assert told.strip()


@pytest.mark.shell
def test_xml_is_read_by_its_paths(toque: ToqueProcess, account: Account, url: str) -> None:
    """`//oauth/access_token` and `//directcall/msg` are what Delphi programs ask for."""
    require("curl", "xmllint")
    script = """
        at() { xmllint --xpath "string($1)" -; }
        TOKEN=$(curl -s "$API/request_token" --data "client_id=$ID&client_secret=$SECRET&format=XML" | at //oauth/access_token)
        ADDED=$(curl -s "$API/voz/add-callback" --data "access_token=$TOKEN&format=xml" --data-urlencode "url=$URL?a=1&b=%3C2%3E+'")
        for path in //directcall/codigo //directcall/msg //directcall/code //directcall/segredo; do echo "$ADDED" | at $path; done
        LIST=$(curl -s "$API/voz/list-callback" --data "access_token=$TOKEN&formato=XmL")
        echo "$LIST" | at "count(//directcall/data/item) = //directcall/total"
        echo "$LIST" | at "//directcall/data/item[code='$(echo "$ADDED" | at //directcall/code)']/url"
        curl -s "$API/voz/list-callback" --data "access_token=wrong&format=xml" | at //directcall/error_description
        curl -s "$API/request_token" --data "client_id=$ID&client_secret=wrong&format=xml" | at //oauth/error_description
    """
    told = shell(script, API=toque.http, ID=account.client_id, SECRET=account.client_secret, URL=url).splitlines()
    codigo, msg, code, secret, counts_agree, listed, refused, wrong = told
    assert (codigo, counts_agree) == ("000", "true")
    assert msg
    assert CODE.fullmatch(code)
    assert SECRET.fullmatch(secret)
    assert listed == f"{url}?a=1&b=%3C2%3E+'"
    assert refused
    assert wrong


@pytest.mark.shell
@pytest.mark.parametrize("field", ["format", "formato"])
@pytest.mark.parametrize(
    ("word", "media_type"), [(w, f"application/{w.lower()}") for w in ("json", "JSON", "Json", "xml", "XML", "Xml")]
)
def test_the_format_is_asked_for_in_any_letter_case(
    toque: ToqueProcess, account: Account, field: str, word: str, media_type: str
) -> None:
    require("curl")
    script = f"{ASK_TOKEN.replace('curl', 'curl -o /dev/null -w %{content_type}')} --data {field}={word}"
    assert shell(script, API=toque.http, ID=account.client_id, SECRET=account.client_secret) == f"{media_type}; charset=utf-8"


@pytest.mark.shell
def test_phps_curl_sends_an_array_as_multipart(toque: ToqueProcess, account: Account, url: str) -> None:
    """`curl_setopt($curl, CURLOPT_POSTFIELDS, ['client_id' => …])` is what `curl -F` does."""
    require("curl")
    script = """
        TOKEN=$(curl -s "$API/request_token" -F "client_id=$ID" -F "client_secret=$SECRET" | awk -F'"' '/access_token/ {print $4}')
        curl -s "$API/voz/add-callback" -F "access_token=$TOKEN" -F "url=$URL?a=1&b=%20+'%22" -F pin=1001 -F format=JSON
    """
    told = json.loads(shell(script, API=toque.http, ID=account.client_id, SECRET=account.client_secret, URL=url))
    assert told["codigo"] == "000", told
    [listed] = [entry for entry in account.api().list_callbacks() if entry.code == told["code"]]
    assert (listed.url, listed.pin) == (f"{url}?a=1&b=%20+'%22", PIN)


# Other ways to log in


def test_credentials_may_come_as_oauth_has_them(toque: ToqueProcess, account: Account) -> None:
    basic = urllib.request.HTTPPasswordMgrWithPriorAuth()
    basic.add_password(None, toque.http, account.client_id, account.client_secret, is_authenticated=True)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPBasicAuthHandler(basic))
    with opener.open(f"{toque.http}/request_token", b"grant_type=client_credentials", timeout=PATIENCE_S) as response:
        token = json.load(response)
    assert (token["token_type"].lower(), token["expires_in"]) == ("bearer", 3600)
    status, _, told = ask(toque, "/voz/list-callback", {"Authorization": f"Bearer {token['access_token']}"})
    assert (status, told["codigo"]) == (200, "000")


def test_guessing_a_secret_is_slowed_down(toque: ToqueProcess) -> None:
    account = toque.add_client("Quem erra")
    answers = [ask(toque, "/request_token", client_id=account.client_id, client_secret=f"guess {n}") for n in range(6)]
    assert [status for status, _, _ in answers] == [401] * 5 + [429]
    assert {told["codigo"] for _, _, told in answers} == {"006"}
    assert 0 < int(answers[-1][1]["Retry-After"]) <= 60
    status, _, told = ask(toque, "/request_token", client_id=account.client_id, client_secret=account.client_secret)
    assert (status, told["codigo"]) == (429, "006")  # the right one too, or guessing would go on


# The examples


def register(example: str, account: Account, url: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = {".sh": ["sh"], ".php": ["php", "-d", "display_errors=1"], ".py": [sys.executable, "-W", "error"]}
    given = {
        "API_URL": account.server,
        "CLIENT_ID": account.client_id,
        "CLIENT_SECRET": account.client_secret,
        "CALLBACK_URL": url,
    }
    return subprocess.run(
        [*command[Path(example).suffix], example],
        cwd=EXAMPLES,
        env=clean_environment() | given | variables,
        capture_output=True,
        encoding="utf-8",
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize(
    ("example", "needs"),
    [
        pytest.param("register.sh", ("curl", "sed"), marks=pytest.mark.shell),
        pytest.param("register.php", ("php",), marks=pytest.mark.php),
        ("register.py", ()),
    ],
)
def test_the_examples_register(account: Account, url: str, example: str, needs: tuple[str, ...]) -> None:
    require(*needs)
    before = {entry.code for entry in account.api().list_callbacks()}
    first = register(example, account, f"{url}?a=1&b=%20+", CALLBACK_PIN=PIN)
    assert (first.returncode, first.stderr) == (0, "")
    [entry] = [entry for entry in account.api().list_callbacks() if entry.code not in before]
    assert (entry.url, entry.pin) == (f"{url}?a=1&b=%20+", PIN)
    assert entry.code in first.stdout
    assert SECRET.search(first.stdout)

    again = register(example, account, f"{url}?a=1&b=%20+", CALLBACK_PIN=PIN)
    assert (again.returncode, again.stderr) == (0, "")
    assert entry.code in again.stdout
    assert not SECRET.search(again.stdout)

    refused = register(example, account, url, CALLBACK_PIN="9999")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "001" in refused.stderr
    assert account.client_secret not in refused.stderr


# Tokens, codes and secrets over time


def test_tokens_and_codes_stay_valid_over_a_restart(tmp_path: Path, url: str) -> None:
    with ToqueProcess(tmp_path) as toque:
        account = toque.add_client("Escritório")
        token, api = token_of(toque, account), account.api()
        code = api.add_callback(url).code
        toque.restart()
        status, _, told = ask(toque, "/voz/list-callback", access_token=token)
        assert (status, told["total"], told["data"][0]["code"]) == (200, 1, code)
        assert api.add_callback(url).code == code
        toque.kill()
        toque.start()
        toque.wait_ready()
        assert ask(toque, "/voz/remove-callback", access_token=token, code=code)[0] == 200
        assert ask(toque, "/voz/remove-callback", access_token=token, code=code)[2]["codigo"] == "010"
        toque.restart()
        assert ask(toque, "/voz/remove-callback", access_token=token, code=code)[2]["codigo"] == "010"
        assert api.add_callback(url).code != code
        assert "token.granted" in toque.log
        for secret in (token, account.client_secret):
            assert secret not in toque.log


def test_a_token_expires_and_the_sdk_gets_another(tmp_path: Path) -> None:
    with ToqueProcess(tmp_path, token_lifetime="2s") as toque:
        account = toque.add_client("Escritório")
        granted = time.monotonic()
        status, _, told = ask(toque, "/request_token", client_id=account.client_id, client_secret=account.client_secret)
        assert (status, told["expires_in"]) == (200, 2)
        token = told["access_token"]
        timely = account.api()  # asks for another token in time
        late = Client(toque.http, account.client_id, account.client_secret, clock=lambda: 0.0)  # only when its own is refused
        assert timely.list_callbacks() == late.list_callbacks() == []
        while ask(toque, "/voz/list-callback", access_token=token)[0] == 200:
            assert time.monotonic() - granted < PATIENCE_S
            assert timely.list_callbacks() == late.list_callbacks() == []
        assert time.monotonic() - granted > 1  # whole seconds are counted
        status, headers, told = ask(toque, "/voz/list-callback", access_token=token)
        assert (status, told["status"], told["codigo"]) == (401, "erro", "006")
        assert told["error"] == "invalid_token"
        assert told["error_description"] == told["msg"] != ""
        assert headers["WWW-Authenticate"].startswith("Bearer")
        assert timely.list_callbacks() == late.list_callbacks() == []


def test_a_rotated_secret_ends_tokens_that_are_in_use(toque: ToqueProcess, url: str) -> None:
    account = toque.add_client("Quem troca de segredo")
    api, token = account.api(), token_of(toque, account)
    code = api.add_callback(url).code
    secret = toque.cli("client", "rotate", account.client_id)["client_secret"]
    wait_until_refused(lambda: ask(toque, "/voz/list-callback", access_token=token))
    with pytest.raises(AuthenticationFailed) as failure:  # the SDK asks for another token, with a secret that is no longer one
        api.list_callbacks()
    assert account.client_secret not in str(failure.value)

    renewed = Account(toque.http, account.client_id, secret).api()
    assert [entry.code for entry in renewed.list_callbacks()] == [code]
    assert renewed.add_callback(url).code == code


def test_a_disabled_client_is_refused_until_it_is_enabled_again(toque: ToqueProcess) -> None:
    account = toque.add_client("Quem não pagou")
    api, token = account.api(), token_of(toque, account)
    api.list_callbacks()
    assert toque.cli("client", "disable", account.client_id)["state"] == "disabled"
    wait_until_refused(lambda: ask(toque, "/voz/list-callback", access_token=token))
    with pytest.raises(AuthenticationFailed):
        api.list_callbacks()
    assert toque.cli("client", "disable", account.client_id, "--undo")["state"] == "enabled"
    deadline = time.monotonic() + SEEN_WITHIN_S
    while ask(toque, "/voz/list-callback", access_token=token)[0] != 200:
        assert time.monotonic() < deadline
    assert api.list_callbacks() == []


def wait_until_refused(asking: Callable[[], tuple[int, Mapping[str, str], dict[str, Any]]]) -> None:
    """A command has ended a token: the server sees it in time, and says so in OAuth's words."""
    deadline = time.monotonic() + SEEN_WITHIN_S
    while (answer := asking())[0] == 200:
        assert time.monotonic() < deadline, f"not seen within {SEEN_WITHIN_S} s"
    status, _, told = answer
    assert (status, told["codigo"], told["error"]) == (401, "006", "invalid_token")
    assert told["error_description"]


def test_one_client_does_not_see_anothers_codes(toque: ToqueProcess, account: Account, url: str) -> None:
    other = toque.add_client("O vizinho").api()
    code = account.api().add_callback(url).code
    assert other.list_callbacks() == []
    with pytest.raises(UnknownCode):
        other.remove_callback(code)
    assert other.add_callback(url).code != code
