"""Settings: what each reads, which source wins, and errors that name setting, source and what is allowed."""

import contextlib
import re
from collections.abc import Callable, Mapping
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toque.errors import SettingsError
from toque.settings import OPTIONS, Address, AmiSource, EslSource, HepSource, NatsServers, Settings, flag_of, load_settings

KEY = "uma chave bem comprida"
Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load settings in an empty folder, from a file's text, environment and flags."""
    monkeypatch.chdir(tmp_path)

    def do(toml: str | None = None, /, environment: Mapping[str, str] | None = None, **flags: Any) -> Settings:
        config = None
        if toml is not None:
            config = tmp_path / "set.toml"
            config.write_text(toml, encoding="utf-8")
        return load_settings(config, environment or {}, flags)

    return do


def refusal(load: Load, *arguments: Any, **flags: Any) -> str:
    """The one line that tells the operator."""
    with pytest.raises(SettingsError) as caught:
        load(*arguments, **flags)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"{caught.value.option} ({caught.value.source}): ")
    return text


# The table


def test_the_table_has_a_row_for_every_setting_with_a_default_that_can_be_used(load: Load):
    assert set(OPTIONS) == set(Settings.__dataclass_fields__) - {"origins"}
    load()
    for name, option in OPTIONS.items():
        assert option.help, name
        assert not option.help.endswith("."), name
        assert option.has_flag != (option.is_secret or name == "sources")
    flags = [flag_of(name) for name in OPTIONS]
    assert len(set(flags)) == len(flags)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", flag) for flag in flags)


def test_the_defaults(load: Load):
    settings = load()
    assert settings.store == Path("toque.db")
    assert (settings.http, settings.hep) == (Address("127.0.0.1", 8080), Address("127.0.0.1", 9060))
    assert settings.sources == (HepSource("hep", "127.0.0.1", 9060),)
    assert settings.token_lifetime == timedelta(hours=1)
    assert (settings.login_failures, settings.login_window) == (5, timedelta(minutes=1))
    assert settings.max_callbacks == 100
    assert settings.time_zone == ZoneInfo("America/Sao_Paulo")
    assert settings.country == "55"
    assert settings.secret_key is settings.hep_key is settings.tls_certificate is settings.ca_file is None
    assert settings.allow_networks == settings.trusted_proxies == settings.hep_allow_from == ()
    assert (settings.log_format, settings.log_level, settings.log_numbers) == ("human", "info", False)


# Readers


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("store", "sqlite:toque.db", Path("toque.db")),
        ("store", "sqlite:///var/lib/toque/toque.db", Path("/var/lib/toque/toque.db")),
        ("store", "sqlite:/var/lib/toque.db", Path("/var/lib/toque.db")),
        ("store", "sqlite:pasta/ção.db", Path("pasta/ção.db")),
        ("store", "nats://a,b:4223,[::1]", NatsServers(("a:4222", "b:4223", "[::1]:4222"))),
        ("store", "nats://u:p%40:x@a", NatsServers(("a:4222",), "u", "p@:x")),
        ("http", "127.0.0.1:8080", Address("127.0.0.1", 8080)),
        ("http", "0.0.0.0:0", Address("0.0.0.0", 0)),
        ("http", "[::1]:80", Address("::1", 80)),
        ("http", "localhost:65535", Address("localhost", 65535)),
        ("http", "api_1.example.com.:443", Address("api_1.example.com.", 443)),
        ("http", "[fe80::1%eth0]:80", Address("fe80::1%eth0", 80)),
        ("token_lifetime", "90", timedelta(seconds=90)),
        ("token_lifetime", 90, timedelta(seconds=90)),
        ("token_lifetime", "90s", timedelta(seconds=90)),
        ("token_lifetime", " 1.5 m ", timedelta(seconds=90)),
        ("token_lifetime", "2min", timedelta(minutes=2)),
        ("token_lifetime", "24h", timedelta(days=1)),
        ("token_lifetime", "1d", timedelta(days=1)),
        ("connect_timeout", "500ms", timedelta(milliseconds=500)),
        ("connect_timeout", 0.5, timedelta(milliseconds=500)),
        ("rotation_overlap", "0", timedelta(0)),
        ("login_failures", 1, 1),
        ("login_failures", "1000", 1000),
        ("log_numbers", True, True),
        ("log_numbers", "Yes", True),
        ("log_numbers", 0, False),
        ("log_numbers", " off ", False),
        ("log_format", "json", "json"),
        ("log_level", "debug", "debug"),
        ("allow_networks", "10.0.0.0/8, 192.168.1.1,", (ip_network("10.0.0.0/8"), ip_network("192.168.1.1/32"))),
        ("allow_networks", ["fd00::/8"], (ip_network("fd00::/8"),)),
        ("allow_networks", "", ()),
        ("time_zone", "UTC", ZoneInfo("UTC")),
        ("country", "1", "1"),
        ("country", 351, "351"),
    ],
)
def test_a_value_that_can_be_used(load: Load, name: str, given: Any, value: Any):
    assert getattr(load(**{name: given}), name) == value


@pytest.mark.parametrize(
    ("name", "given", "allowed"),
    [
        *(
            ("store", given, "sqlite:///absolute/path")
            for given in ("toque.db", "sqlite:", "sqlite://", "sqlite:///", "sqlite://host/x", "sqlite:pasta/", "postgres://x")
        ),
        *(("store", given, "sqlite:///absolute/path") for given in ("sqlite::memory:", "sqlite:a\0b", "sqlite:////x", "SQLITE:x")),
        *(
            ("store", given, "must be nats://")
            for given in ("nats:a", "nats://", "nats://a,,b", "nats://a:0", "nats://a:x", "nats://a/b")
        ),
        ("store", 5, "must be a text"),
        ("store", "", "must be a text"),
        *(
            ("http", given, "an address and a port")
            for given in (
                "8080", ":8080", "localhost", "localhost:", "localhost:http", "localhost:65536", "localhost:-1", "localhost:٣", "[]:1",
                "localhost:" + "1" * 5000, "a b:1", "a\n:1", "a..b:1", "a" * 64 + ":1", "http://localhost:1", "ção:1", 8080,
            )
        ),
        *(("token_lifetime", given, "from 1 to 86400 seconds") for given in ("0", "25h", "1w", "h", "-5", "", "1e3", "٣", True, [5])),
        ("token_lifetime", float("inf"), "from 1 to 86400 seconds"),
        ("token_lifetime", float("nan"), "from 1 to 86400 seconds"),
        ("token_lifetime", "9" * 400, "from 1 to 86400 seconds"),
        *(("login_failures", given, "a whole number from 1 to 1000") for given in (0, 1001, "1.5", 1.5, "x", "", True, "9" * 5000)),
        *(("log_numbers", given, "true or false") for given in ("maybe", "", 2, [])),
        *(("log_level", given, "debug, info, warning, error") for given in ("INFO", "trace", "", 5, [])),
        ("log_format", "xml", "human, json"),
        ("allow_networks", "10.0.0.1/8", "host bits"),
        ("allow_networks", "vizinhos", "10.20.0.0/16"),
        ("allow_networks", [5], "a list of texts"),
        ("allow_networks", {"a": "b"}, "a list of texts"),
        *(("time_zone", given, "America/Sao_Paulo") for given in ("Marte/Base", "../etc/passwd", "America", "", 5, "a\0b")),
        *(("country", given, "a country's calling code") for given in ("0", "+55", "5555", "", "٣", "5\n", True)),
        *((name, "/nada/aqui.pem", "must be a file that exists") for name in ("tls_certificate", "tls_key", "ca_file")),
        ("ca_file", "/", "must be a file that exists"),
        ("ca_file", "a\0b", "must be a file that exists"),
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_used(load: Load, name: str, given: Any, allowed: str):
    told = refusal(load, **{name: given})
    assert told.startswith(f"{name} (flag --{flag_of(name)}): ")
    assert allowed in told
    if isinstance(given, str | int | float):
        assert repr(given) in told


@given(st.sampled_from(sorted(OPTIONS)), st.text() | st.integers() | st.floats() | st.booleans() | st.lists(st.text()))
def test_whatever_is_given_is_read_or_refused(name: str, given: Any):
    with contextlib.suppress(SettingsError):
        load_settings(None, {}, {name: given})


def test_an_address_as_people_write_it():
    assert str(Address("127.0.0.1", 80)) == "127.0.0.1:80"
    assert str(Address("::1", 80)) == "[::1]:80"


@pytest.mark.parametrize(
    ("host", "is_loopback"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False), ("x", False)]
)  # fmt: skip
def test_what_only_this_machine_reaches(host: str, is_loopback: bool):
    assert Address(host, 80).is_loopback is is_loopback


# Sources


def test_the_last_source_wins(load: Load):
    environment = {"TOQUE_MAX_CALLBACKS": "3"}
    assert load().max_callbacks == 100
    assert load("max_callbacks = 2").max_callbacks == 2
    assert load("max_callbacks = 2", environment=environment).max_callbacks == 3
    assert load("max_callbacks = 2", environment=environment, max_callbacks="4").max_callbacks == 4
    assert load("max_callbacks = 2", environment=environment, max_callbacks=None).max_callbacks == 3


def test_an_error_names_the_source_that_won(load: Load, tmp_path: Path):
    assert refusal(load, "max_callbacks = 0").startswith(f"max_callbacks ({tmp_path}/set.toml): 0 must be")
    environment = {"TOQUE_MAX_CALLBACKS": "x"}
    assert refusal(load, "max_callbacks = 0", environment).startswith("max_callbacks (environment TOQUE_MAX_CALLBACKS): 'x' must")
    assert refusal(load, None, environment, max_callbacks="y").startswith("max_callbacks (flag --max-callbacks): 'y' must be")
    assert load("max_callbacks = 0", max_callbacks="5").max_callbacks == 5  # what was overruled does not matter


def test_toque_toml_is_read_where_it_is(load: Load, tmp_path: Path):
    (tmp_path / "toque.toml").write_text("max_callbacks = 7")
    assert load().max_callbacks == 7
    assert load("").max_callbacks == 100  # another file was named
    (tmp_path / "toque.toml").write_text("max_callbacks = 0")
    assert refusal(load).startswith("max_callbacks (toque.toml): ")


def test_every_setting_has_its_variable_and_other_variables_are_none_of_ours(load: Load):
    assert load(None, {"TOQUE_TOKEN_LIFETIME": "5m", "PATH": "x", "TOQUE_NADA": "y"}).token_lifetime == timedelta(minutes=5)
    assert load(None, {"TOQUE_ALLOW_NETWORKS": "10.0.0.0/8"}).allow_networks == (ip_network("10.0.0.0/8"),)


def test_a_file_that_cannot_be_read(load: Load, tmp_path: Path):
    for path, told in ((tmp_path / "nada.toml", "cannot be read: No such file"), (tmp_path, "cannot be read: Is a directory")):
        with pytest.raises(SettingsError, match=re.escape(f"config ({path}): {told}")):
            load_settings(path, {}, {})


@pytest.mark.parametrize(
    "content", [b"max_callbacks = ", b"max_callbacks", b'store = "\xff"', b"a = 1\na = 2", b"x = " + b"9" * 5000]
)
def test_a_file_that_is_no_toml(tmp_path: Path, content: bytes):
    path = tmp_path / "set.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match="is not TOML"):
        load_settings(path, {}, {})


def test_an_unknown_name_is_refused_with_a_hint(load: Load):
    assert "max_callback " in (told := refusal(load, "max_callback = 5"))
    assert told.endswith("there is no such setting; did you mean max_callbacks?")
    told = refusal(load, "quux = 5")
    assert "allowed are store, http, hep" in told


# Secrets


def test_secrets_are_read_from_file_and_environment(load: Load):
    assert load(f'secret_key = "{KEY}"\nhep_key = "abc"').secret_key == KEY
    settings = load(None, {"TOQUE_SECRET_KEY": KEY, "TOQUE_HEP_KEY": "ção"})
    assert settings.secret_key == KEY
    assert settings.sources[0].key == settings.hep_key == "ção".encode()


def test_secrets_have_no_flag():
    assert [name for name, option in OPTIONS.items() if option.is_secret] == ["hep_key", "proxy", "secret_key", "nats_password"]
    assert not any(option.has_flag for option in OPTIONS.values() if option.is_secret)


@pytest.mark.parametrize("given", ["nats://senha@a", "nats://:senha@a", "nats://user:senha@a:x", "nats://user:senha@"])
def test_the_engines_credentials_are_shown_nowhere(load: Load, given: str):
    assert "senha" not in refusal(load, store=given)
    servers = load(store="nats://user:senha@a,b").store
    assert "senha" not in f"{servers} {servers!r}"
    assert str(servers) == "nats://a:4222,b:4222"


def test_secrets_are_in_no_error(load: Load):
    for told in (
        *(
            refusal(load, f'proxy = "{url}"')
            for url in ("http://u:1234@h/path", "https://u:1234@h", "u:1234@h", "http://u:1234@h:x")
        ),
        refusal(load, None, {"TOQUE_PROXY": "http://u:1234@[::1"}),
        refusal(load, "proxy = 1234"),
        refusal(load, 'secret_key = "curta demais"'),
        refusal(load, None, {"TOQUE_SECRET_KEY": "curta demais"}),
        refusal(load, "secret_key = 1234"),
        refusal(load, "hep_key = 1234"),
        refusal(load, None, {"TOQUE_SOURCES": '[{kind="hep", key="1234"}]'}),
        refusal(load, '[[sources]]\nkind = "hep"\nkey = 1234'),
        refusal(load, '[[sources]]\nkind = "hep"\nkey = "1234"\nlisten = "0.0.0.0"'),
        refusal(load, 'sources = ["1234"]'),
    ):
        assert "curta" not in told
        assert "1234" not in told
        assert "must" in told


def test_secrets_are_in_no_repr(load: Load):
    proxy = "http://user:senha%20do%20proxy@10.0.0.9:3128"
    shown = repr(load(f'secret_key = "{KEY}"\nproxy = "{proxy}"\n[[sources]]\nkind = "hep"\nkey = "chave do hep"'))
    assert KEY not in shown
    assert "chave do hep" not in shown
    assert "senha" not in shown + repr(load(f'proxy = "{proxy}"').proxy)


@pytest.mark.parametrize(
    ("given", "host", "port", "credentials"),
    [
        ("http://10.0.0.9:3128", "10.0.0.9", 3128, None),
        ("http://user:pw%40@Proxy.example:3128/", "proxy.example", 3128, "user:pw@"),
        ("http://[fd00::1]", "fd00::1", 80, None),
    ],
)
def test_a_proxy(load: Load, given: str, host: str, port: int, credentials: str | None):
    proxy = load(f'proxy = "{given}"').proxy
    assert proxy is not None
    assert (proxy.host, proxy.port, proxy.credentials) == (host, port, credentials)
    assert load(None, {"TOQUE_PROXY": given}).proxy == proxy
    assert load().proxy is None


# Switches


def test_the_simple_set_up_makes_one_source(load: Load):
    settings = load(None, {"TOQUE_HEP_KEY": "k"}, hep="0.0.0.0:9", hep_allow_from=["10.0.0.0/8"])
    assert settings.sources == (HepSource("hep", "0.0.0.0", 9, b"k", (ip_network("10.0.0.0/8"),)),)


def test_tables_make_sources(load: Load):
    settings = load(
        """
        [[sources]]
        kind = "hep"
        name = "matriz"
        listen = "0.0.0.0:9060"
        key = "segredo"

        [[sources]]
        kind = "hep"
        name = "filial"
        listen = "[::]:9061"
        allow_from = ["10.1.0.0/16", "10.2.0.1"]

        [[sources]]
        kind = "hep"
        """
    )
    assert settings.sources == (
        HepSource("matriz", "0.0.0.0", 9060, b"segredo"),
        HepSource("filial", "::", 9061, b"", (ip_network("10.1.0.0/16"), ip_network("10.2.0.1/32"))),
        HepSource("hep", "127.0.0.1", 9060),
    )


@pytest.mark.parametrize(
    ("toml", "option", "told"),
    [
        ("sources = 5", "sources", "must be tables, each under [[sources]]"),
        ("[sources]\nkind = 'hep'", "sources", "must be tables, each under [[sources]]"),
        ("[[sources]]\nname = 'x'", "sources[1].kind", "must be given; allowed is hep, ami or esl"),
        ("[[sources]]\nkind = 'sip'", "sources[1].kind", "'sip' must be hep, ami or esl"),
        ("[[sources]]\nkind = ['hep']", "sources[1].kind", "must be hep, ami or esl"),
        ("[[sources]]\nkind = 'hep'\nhost = 'x'", "sources[1].host", "no such setting; allowed are kind, name, listen"),
        ("[[sources]]\nkind = 'hep'\n[[sources]]\nkind = 'hep'", "sources.name", "two sources are named 'hep'"),
        ("[[sources]]\nkind = 'hep'\nname = 'http:dialer'", "sources.name", "must not begin with http:"),
        ("[[sources]]\nkind = 'hep'\nname = ''", "sources[1].name", "must be a text"),
        ("[[sources]]\nkind = 'hep'\nlisten = 'x'", "sources[1].listen", "an address and a port"),
        (
            "[[sources]]\nkind = 'hep'\nlisten = '0.0.0.0:1'",
            "sources[1].listen",
            "not loopback, so key or allow_from must be set",
        ),
        ("[[sources]]\nkind = 'hep'\nallow_from = ['x']", "sources[1].allow_from", "must be networks"),
        ("[[sources]]\nkind = 'hep'\nkey = ''", "sources[1].key", "must be a text"),
        ("hep = '127.0.0.1:1'\n[[sources]]\nkind = 'hep'", "hep", "is for set-ups without [[sources]]"),
        ("hep_key = 'x'\n[[sources]]\nkind = 'hep'", "hep_key", "is for set-ups without [[sources]]"),
        ("hep = '0.0.0.0:9060'", "hep", "not loopback, so hep_key or hep_allow_from must be set"),
        ("hep = '[::]:9060'", "hep", "not loopback, so hep_key or hep_allow_from must be set"),
    ],
)
def test_sources_that_cannot_be_used(load: Load, tmp_path: Path, toml: str, option: str, told: str):
    text = refusal(load, toml)
    assert text.startswith(f"{option} ({tmp_path}/set.toml): ")
    assert told in text


AMI = "[[sources]]\nkind = 'ami'\nname = 'pbx1'\naddress = '192.0.2.10'\nusername = 'toque'\nsecret = 'segredo bem guardado'\n"
ESL = "[[sources]]\nkind = 'esl'\nname = 'fs1'\naddress = '192.0.2.11'\npassword = 'senha bem guardada'\n"


def test_an_asterisk_and_a_freeswitch(load: Load):
    assert load(AMI + ESL).sources == (
        AmiSource("pbx1", "192.0.2.10", 5038, "toque", "segredo bem guardado"),
        EslSource("fs1", "192.0.2.11", 8021, "senha bem guardada"),
    )


def test_everything_that_can_be_said_of_a_switch(load: Load, tmp_path: Path):
    pem = tmp_path / "pbx.pem"
    pem.write_text("x")
    ami = f"trunks = ['PJSIP/trunk*']\noutside_contexts = []\ntenant_variable = 'CLIENTE'\ntls = true\ntls_ca_file = '{pem}'\n"
    esl = "trunks = ['sofia/external/*', 'sofia/gateway/*']\ntenant_variable = 'accountcode'\n"
    one, other = load(AMI + ami + ESL + esl).sources
    assert one == AmiSource(
        "pbx1", "192.0.2.10", 5038, "toque", "segredo bem guardado", ("PJSIP/trunk*",), (), "CLIENTE", tls=True, tls_ca_file=pem
    )
    assert other == EslSource(
        "fs1", "192.0.2.11", 8021, "senha bem guardada", ("sofia/external/*", "sofia/gateway/*"), "accountcode"
    )


@pytest.mark.parametrize(
    ("written", "host", "port"),
    [
        ("pbx.example", "pbx.example", 5038),
        ("pbx.example:5039", "pbx.example", 5039),
        ("[2001:db8::1]", "2001:db8::1", 5038),
        ("[2001:db8::1]:5039", "2001:db8::1", 5039),
    ],
)
def test_the_address_of_a_switch(load: Load, written: str, host: str, port: int):
    (source,) = load(AMI.replace("192.0.2.10", written)).sources
    assert (source.host, source.port) == (host, port)


@pytest.mark.parametrize(("table", "name"), [(AMI, "secret"), (ESL, "password")])
def test_a_switchs_secret_may_stand_in_a_file(load: Load, tmp_path: Path, table: str, name: str):
    file = tmp_path / "secret"
    file.write_text("de um arquivo\n")
    *others, _ = table.splitlines(keepends=True)
    (source,) = load("".join(others) + f"{name}_file = '{file}'\n").sources
    assert getattr(source, name) == "de um arquivo"
    for content in (b"", b"two\nlines\n", b"\xff"):
        file.write_bytes(content)
        told = refusal(load, "".join(others) + f"{name}_file = '{file}'\n")
        assert told.endswith(f"{name}_file ({tmp_path}/set.toml): {file}: must hold one line of text")
    assert "must be given, or else" in refusal(load, table + f"{name}_file = '{file}'\n")


def test_a_switchs_secrets_are_never_shown(load: Load):
    shown = repr(load(AMI + ESL))
    assert "guardad" not in shown
    for table in (AMI, ESL):
        assert "guardad" not in refusal(load, table.replace("guardad", "guardad\\n").replace("= 's", '= "s').replace("o'", 'o"'))
        assert "guardad" not in refusal(load, table + "senha = 'bem guardada'")


@pytest.mark.parametrize(
    ("toml", "option", "told"),
    [
        (AMI.replace("name = 'pbx1'", ""), "sources[1].name", "must be given"),
        (ESL.replace("address = '192.0.2.11'", ""), "sources[1].address", "must be given"),
        (AMI.replace("username = 'toque'", ""), "sources[1].username", "must be given"),
        (AMI.replace("toque", "a\\r\\nAction: Originate").replace("'", '"'), "sources[1].username", "of one line"),
        (AMI.replace("secret = 'segredo bem guardado'", ""), "sources[1].secret", "must be given, or else secret_file"),
        (ESL.replace("password = 'senha bem guardada'", ""), "sources[1].password", "must be given, or else password_file"),
        (AMI.replace("192.0.2.10", "192.0.2.10:0"), "sources[1].address", "the switch's address, such as 192.0.2.10 or"),
        (AMI.replace("192.0.2.10", "2001:db8::x"), "sources[1].address", "the switch's address, such as"),
        (AMI.replace("'192.0.2.10'", "5038"), "sources[1].address", "the switch's address, such as"),
        (AMI + "trunks = 5", "sources[1].trunks", "must be a list of texts"),
        (AMI + "tls = 'perhaps'", "sources[1].tls", "must be true or false"),
        (AMI + "tls_ca_file = 'nowhere.pem'", "sources[1].tls_ca_file", "must be a file that exists"),
        (AMI + "tls_ca_file = 'set.toml'", "sources[1].tls_ca_file", "needs tls = true as well"),
        (AMI + "secret_file = 'nowhere'", "sources[1].secret_file", "must be a file that exists"),
        (ESL + "username = 'x'", "sources[1].username", "no such setting; allowed are kind, name, address, password"),
        (AMI + "listen = '127.0.0.1:1'", "sources[1].listen", "no such setting; allowed are kind, name, address, username"),
        (AMI + ESL.replace("fs1", "pbx1"), "sources.name", "two sources are named 'pbx1'"),
    ],
)
def test_switches_that_cannot_be_used(load: Load, tmp_path: Path, toml: str, option: str, told: str):
    text = refusal(load, toml)
    assert text.startswith(f"{option} ({tmp_path}/set.toml): ")
    assert told in text


# Settings that need each other


@pytest.mark.parametrize(("one", "other"), [("tls_certificate", "tls_key"), ("tls_key", "tls_certificate")])
def test_tls_needs_certificate_and_key(load: Load, tmp_path: Path, one: str, other: str):
    pem = tmp_path / "x.pem"
    pem.write_text("x")
    assert refusal(load, **{one: str(pem)}).endswith(f"needs {other} as well")
    settings = load(tls_certificate=str(pem), tls_key=str(pem))
    assert settings.tls_certificate == settings.tls_key == pem


def test_an_error_in_use_says_where_the_setting_was_set(tmp_path: Path):
    flags = {"http": "127.0.0.1:1", "store": f"sqlite://{tmp_path}/a.db"}
    settings = load_settings(None, {"TOQUE_STORE": "sqlite:b.db", "TOQUE_HEP": "127.0.0.1:2"}, flags)
    for name, origin in (("http", "flag --http"), ("store", "flag --store"), ("hep", "environment TOQUE_HEP")):
        assert str(settings.located(SettingsError(name, "?", "is taken"))) == f"{name} ({origin}): is taken"
    assert str(settings.located(SettingsError("nothing", "here", "is wrong"))) == "nothing (here): is wrong"


def test_an_error_of_a_source_in_use_names_the_file(tmp_path: Path):
    config = tmp_path / "toque.toml"
    config.write_text('[[sources]]\nkind = "hep"\nlisten = "127.0.0.1:2"\n')
    settings = load_settings(config, {}, {})
    assert str(settings.located(SettingsError("hep", "?", "is taken"))) == f"sources ({config}): is taken"
