"""What `parse_url` accepts, what it makes of it, and that it gives away no password."""

from __future__ import annotations

import base64
import copy
from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from toque.callbacks.url import MAX_URL_LENGTH, Origin, TargetUrl, UrlError, parse_url
from toque.errors import InputError

NORMAL_FORMS = {
    "http://example.com": "http://example.com/",
    "HTTP://EXAMPLE.com/A": "http://example.com/A",
    "http://example.com.": "http://example.com/",
    "http://example.com.:8080/": "http://example.com:8080/",
    "http://example.com:80/": "http://example.com/",
    "https://example.com:443/": "https://example.com/",
    "http://example.com:443/": "http://example.com:443/",
    "http://example.com:/x": "http://example.com/x",
    "http://example.com:0080/x": "http://example.com/x",
    "http://example.com?a=1": "http://example.com/?a=1",
    "http://example.com/?": "http://example.com/?",
    "http://example.com/a/../b": "http://example.com/a/../b",
    "http://example.com/%7Euser/%c3%a7": "http://example.com/%7Euser/%c3%a7",
    "http://example.com/ção?q=ã&a[]=1": "http://example.com/%C3%A7%C3%A3o?q=%C3%A3&a[]=1",
    'http://example.com/a|b?{"c"}': "http://example.com/a%7Cb?%7B%22c%22%7D",
    "http://example.com/?u=http://other.example/?x": "http://example.com/?u=http://other.example/?x",
    "https://Ação.com.br/": "https://xn--ao-siap.com.br/",
    "https://XN--AO-SIAP.com.br/": "https://xn--ao-siap.com.br/",
    "http://faß.de/": "http://xn--fa-hia.de/",
    "http://example。com/": "http://example.com/",
    "http://ｅｘａｍｐｌｅ.com/": "http://example.com/",
    "http://my_app:8000/": "http://my_app:8000/",
    "http://r3---sn-x.example/": "http://r3---sn-x.example/",
    "http://localhost:5000/x": "http://localhost:5000/x",
    "http://192.0.2.1/": "http://192.0.2.1/",
    "http://192.0.2.1./": "http://192.0.2.1/",
    "http://１９２．0.2.1/": "http://192.0.2.1/",
    "http://[2001:DB8:0::1]:8080/": "http://[2001:db8::1]:8080/",
    "http://[::ffff:192.0.2.1]/": "http://[::ffff:192.0.2.1]/",
    "http://[::ffff:c000:201]/": "http://[::ffff:192.0.2.1]/",
    "http://user:secret@example.com/": "http://example.com/",
    "http://@example.com/": "http://example.com/",
    "http://:@example.com/": "http://example.com/",
}


@pytest.mark.parametrize(("given_text", "normal"), NORMAL_FORMS.items())
def test_normal_form(given_text: str, normal: str) -> None:
    url = parse_url(given_text)
    assert url.text == normal
    assert parse_url(normal).text == normal


REFUSED = {
    "": "vazia",
    "example.com/x": "absoluta",
    "/x": "absoluta",
    "//example.com/": "absoluta",
    "http:example.com": "absoluta",
    "http:/example.com": "absoluta",
    "ftp://example.com/": "http://",
    "javascript://example.com/": "http://",
    "file:///etc/passwd": "http://",
    "http://": "host",
    "http:///x": "host",
    "http://:80/": "host",
    "http://user:secret@/": "host",
    "http://example.com/#": "fragmento",
    "http://example.com/#top": "fragmento",
    "http://user:se#cret@example.com/": "fragmento",
    "http://example.com/a b": "espaço",
    " http://example.com/": "espaço",
    "http://example.com/\n": "espaço",
    "http://example.com/\tx": "espaço",
    "http://example.com/\x00": "controle",
    "http://example.com/\x7f": "controle",
    "http://example.com/\x85": "controle",
    "http://example.com/\u2028": "espaço",
    "http://example.com/\u00a0": "espaço",
    "http://example.com/\ud800": "controle",
    "http://example.com\\@evil.example/": "barra invertida",
    "http://example.com/%": "hexadecimais",
    "http://example.com/%4": "hexadecimais",
    "http://example.com/?%zz": "hexadecimais",
    "http://us%er@example.com/": "hexadecimais",
    "http://example.com:0/": "porta",
    "http://example.com:65536/": "porta",
    "http://example.com:123456/": "porta",
    "http://example.com:http/": "porta",
    "http://example.com:-1/": "porta",
    "http://example.com:+80/": "porta",
    "http://example.com:٨٠/": "porta",
    "http://example.com:80:80/": "IPv6",
    "http://2001:db8::1/": "IPv6",
    "http://a]b/": "IPv6",
    "http://user:se/cret@example.com/": "porta",
    "http://exa mple.com/": "espaço",
    "http://example..com/": "nome válido",
    "http://.example.com/": "nome válido",
    "http://./": "nome válido",
    "http://example.com../": "nome válido",
    "http://-a.example/": "nome válido",
    "http://a-.example/": "nome válido",
    "http://a,b.example/": "nome válido",
    "http://%65xample.com/": "nome válido",
    "http://℀.com/": "nome válido",
    "http://xn--a.com/": "nome válido",
    "http://xn--.com/": "nome válido",
    "http://☃.com/": "nome válido",
    "http://\u00ad/": "nome válido",
    "http://\ufffd.com/": "nome válido",
    "http://\u3164\ufffe.com/": "nome válido",
    "http://xn--abc-.com/": "nome válido",
    "http://xn--Faß-hia.de/": "nome válido",
    f"http://{'a' * 64}.com/": "nome válido",
    f"http://{'a.' * 127}com/": "longo",
    "http://2130706433/": "IPv4",
    "http://0x7f000001/": "IPv4",
    "http://0x7f.1/": "IPv4",
    "http://0177.0.0.1/": "IPv4",
    "http://127.1/": "IPv4",
    "http://127.0.0.1.1/": "IPv4",
    "http://256.0.0.1/": "IPv4",
    "http://example.1/": "IPv4",
    "http://[::1/": "IPv6",
    "http://::1/": "IPv6",
    "http://[::1]x/": "IPv6",
    "http://[]/": "IPv6",
    "http://[fe80::1%25eth0]/": "IPv6",
    "http://[v1.a]/": "IPv6",
    "http://[127.0.0.1]/": "IPv6",
    "http://a%3Ab:secret@example.com/": "dois-pontos",
    "http://user:%0Asecret@example.com/": "controle",
    "http://us%00er:secret@example.com/": "controle",
    "http://user:%C2%85secret@example.com/": "controle",
    "http://user:%FFsecret@example.com/": "UTF-8",
    "http://example.com/" + "a" * MAX_URL_LENGTH: "2048",
    "http://example.com/" + "ç" * 1000: "codificada",
}


@pytest.mark.parametrize(("given_text", "says"), REFUSED.items())
def test_refused(given_text: str, says: str) -> None:
    with pytest.raises(UrlError) as refusal:
        parse_url(given_text)
    assert says in str(refusal.value)
    assert "secret" not in str(refusal.value)
    assert refusal.value.__cause__ is None, "a cause would be shown with what it quotes"


def test_a_refusal_is_the_callers_to_mend() -> None:
    assert issubclass(UrlError, InputError)


def test_the_longest_url_is_accepted() -> None:
    text = "http://example.com/".ljust(MAX_URL_LENGTH, "a")
    assert parse_url(text).text == text


def test_parts() -> None:
    url = parse_url("https://Example.com:8443/call?a=1&b=ç")
    assert url == TargetUrl("https", "example.com", 8443, "/call?a=1&b=%C3%A7")
    assert url.origin == Origin("https", "example.com", 8443)
    assert url.host_header == "example.com:8443"
    assert url.authorization is None
    assert url.masked == url.text == "https://example.com:8443/call?a=1&b=%C3%A7"


def test_ipv6_parts() -> None:
    url = parse_url("http://[2001:db8::1]/")
    assert (url.host, url.host_header, url.origin.port) == ("2001:db8::1", "[2001:db8::1]", 80)
    assert parse_url("https://[2001:db8::1]:80/").host_header == "[2001:db8::1]:80"


@pytest.mark.parametrize(
    ("userinfo", "credentials", "shown"),
    [
        ("user:password", "user:password", "user:***"),
        ("user", "user:", "***"),
        ("user:", "user:", "***"),
        (":password", ":password", ":***"),
        ("a%40b.example:p%3Aw%2F", "a@b.example:p:w/", "a%40b.example:***"),
        ("a@b.example:password", "a@b.example:password", "a%40b.example:***"),
        ("user:pass:word", "user:pass:word", "user:***"),
        ("usuário:señha", "usuário:señha", "usu%C3%A1rio:***"),
    ],
)
def test_credentials(userinfo: str, credentials: str, shown: str) -> None:
    url = parse_url(f"https://{userinfo}@example.com/x")
    assert url.credentials == credentials
    assert url.authorization is not None
    scheme, _, value = url.authorization.partition(" ")
    assert (scheme, base64.b64decode(value).decode()) == ("Basic", credentials)
    assert url.masked == f"https://{shown}@example.com/x"
    assert url.text == "https://example.com/x"


def test_credentials_do_not_change_the_identity() -> None:
    first, second = parse_url("https://u:one@example.com/"), parse_url("https://u:two@example.com/")
    assert first.text == second.text
    assert first != second


def test_credentials_can_be_put_in_and_the_value_copied() -> None:
    url = replace(parse_url("https://example.com/x"), credentials="user:secret")
    assert url == parse_url("https://user:secret@example.com/x")
    assert copy.deepcopy(url) == url
    assert hash(copy.copy(url)) == hash(url)


def test_repr_shows_only_where_it_leads() -> None:
    url = parse_url("https://user:hunter2@example.com/hook/t0ken?key=abc")
    assert repr(url) == "<TargetUrl https://example.com/…>"


HOST_CHARACTERS = st.sampled_from("abcxn-._:[]0129@%éßЖ。１\u00ad☃א")
SPELT = st.builds(
    "{}://{}{}{}{}".format,
    st.sampled_from(["http", "https", "HTTP", "ftp"]),
    st.sampled_from(["", "user:secret@", "%41:@", "@", "ü@"]),
    st.text(HOST_CHARACTERS, max_size=20) | st.ip_addresses().map(str) | st.ip_addresses(v=6).map("[{}]".format),
    st.sampled_from(["", ":", ":80", ":443", ":08080"]),
    st.text(max_size=30).map("/{}".format) | st.text(st.characters(codec="utf-8"), max_size=30).map("?{}".format),
)


@given(SPELT | st.text())
@example("http://xn--zca.example/")
@example("http://[::ffff:0:1]/")
def test_any_text_is_a_stable_value_or_a_refusal(text: str) -> None:
    """The normal form of a URL is its own normal form, in ASCII, and without credentials."""
    try:
        url = parse_url(text)
    except UrlError:
        return
    again = parse_url(url.text)
    assert again.text == url.text
    assert again == replace(url, credentials=None)
    assert url.text.isascii()
    assert len(url.text) <= MAX_URL_LENGTH
    assert url.target.startswith("/")
    assert "secret@" not in url.masked
    assert not set(url.host_header + url.target) & set(" \t\r\n\0#\\")
    assert url.authorization is None or url.authorization.isascii()


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters=":"), max_size=20), st.text())
def test_percent_encoded_credentials_come_back(user: str, tail: str) -> None:
    password = "".join(f"%{byte:02x}" for byte in tail.encode(errors="ignore") if byte >= 0x20 and byte < 0x7F)
    escaped = "".join(f"%{byte:02X}" for byte in user.encode())
    url = parse_url(f"http://{escaped}:{password}@example.com/")
    wanted = f"{user}:{bytes.fromhex(password.replace('%', '')).decode()}"
    assert (url.credentials or ":") == wanted
