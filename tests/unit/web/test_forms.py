"""Form fields, read from the query and the body; anything that cannot be read is one error, whatever it is."""

from time import perf_counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from toque.web.forms import MAX_BODY_BYTES, MAX_FIELDS, FormError, glimpse_format, read_fields

URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data; boundary=b"


def why(query: bytes = b"", content_type: str = URLENCODED, body: bytes = b"") -> str:
    with pytest.raises(FormError) as caught:
        read_fields(query, content_type, body)
    return str(caught.value)


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"", {}),
        (b"a=1&b=2", {"a": "1", "b": "2"}),
        (b"a=&b", {"a": "", "b": ""}),
        (b"a=1;b=2", {"a": "1;b=2"}),
        (b"a=%C3%A7%C3%A3o+%26+%2B", {"a": "ção & +"}),
        ("a=ção 📞".encode(), {"a": "ção 📞"}),
        (b"a=%zz%", {"a": "%zz%"}),
        (b"a=b=c", {"a": "b=c"}),
        (b"&&a=1&", {"a": "1"}),
        (b"a=+1%09%0d%0a", {"a": "1"}),
        (b"a=%00", {"a": "\x00"}),
        (b"a[]=1&a=2", {"a[]": "1", "a": "2"}),
    ],
)
def test_urlencoded_fields(body: bytes, fields: dict[str, str]):
    assert read_fields(b"", URLENCODED, body) == fields
    assert read_fields(b"", "", body) == fields
    assert read_fields(body, "", b"") == fields


def test_query_and_body_are_read_together():
    assert read_fields(b"a=1", URLENCODED, b"b=2") == {"a": "1", "b": "2"}


@pytest.mark.parametrize("content_type", ["Application/X-WWW-Form-URLEncoded", f"{URLENCODED};", f"{URLENCODED}; charset=UTF-8"])
def test_the_content_type_in_other_spellings(content_type: str):
    assert read_fields(b"", content_type, b"a=1") == {"a": "1"}


def test_an_empty_body_needs_no_content_type():
    assert read_fields(b"a=1", "application/json", b"") == {"a": "1"}


@pytest.mark.parametrize("body", [b"a=1&a=2", b"a=1&b=2&a=1", b"a&a"])
def test_a_repeated_field(body: bytes):
    assert why(body=body) == "campo repetido: 'a'"
    assert why(query=b"a=1", body=b"a=2") == "campo repetido: 'a'"


def test_a_long_name_is_not_repeated_whole():
    assert len(why(body=b"&".join([b"a" * 1000] * 2))) < 100


@pytest.mark.parametrize("bad", [b"\xe7", b"%e7", b"%C3%28", b"%ED%A0%80", b"%F4%90%80%80"])
def test_what_is_not_utf8(bad: bytes):
    told = "os campos não estão codificados em UTF-8"
    assert why(body=b"a=" + bad) == told
    assert why(body=bad + b"=a") == told
    assert why(query=b"a=" + bad) == told


@pytest.mark.parametrize("charset", ["latin-1", "ISO-8859-1", "utf-7", "x", '"windows-1252"'])
def test_another_charset(charset: str):
    for kind in (URLENCODED, MULTIPART, "application/json"):
        assert why(content_type=f"{kind}; charset={charset}", body=b"a=1") == "charset não suportado: use UTF-8"


@pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/mixed; boundary=b", "*/*"])
def test_another_content_type(kind: str):
    assert why(content_type=kind, body=b"a=1") == f"Content-Type não suportado: use {URLENCODED}"


def test_a_long_content_type_is_not_read():
    assert why(content_type=f"{MULTIPART}{'b' * 2000}", body=b"a=1") == "Content-Type longo demais"


def test_too_many_fields():
    assert len(read_fields(b"", URLENCODED, b"&".join(b"%d=" % n for n in range(MAX_FIELDS)))) == MAX_FIELDS
    told = f"campos demais: o máximo é {MAX_FIELDS}"
    assert why(body=b"&".join(b"%d=" % n for n in range(MAX_FIELDS + 1))) == told
    assert why(body=b"&" * MAX_BODY_BYTES) == told
    assert why(content_type=MULTIPART, body=b"".join(part(f"{n}", b"") for n in range(MAX_FIELDS + 1)) + b"--b--") == told


# Multipart


def part(name: str, value: bytes, *headers: str) -> bytes:
    head = "\r\n".join([f'Content-Disposition: form-data; name="{name}"', *headers])
    return b"--b\r\n" + head.encode() + b"\r\n\r\n" + value + b"\r\n"


def test_multipart_fields():
    parts = (
        part("a", b" 1 "),
        part("b", "ção\r\n--x".encode(), "Content-Type: text/plain; charset=UTF-8"),
        part("c", b""),
        part("format", b"xml"),
    )
    assert read_fields(b"q=1", MULTIPART, b"".join(parts) + b"--b--\r\nepilogue") == {
        "q": "1",
        "a": "1",
        "b": "ção\r\n--x",
        "c": "",
        "format": "xml",
    }


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", None),
        (b"a=1", "multipart/form-data malformado"),
        (part("a", b"1"), "multipart/form-data malformado"),
        (part("a", b"1")[:-3], "multipart/form-data malformado"),
        (b"--b\n\n--b--", "multipart/form-data malformado"),
        (b"--b\r\nContent-Disposition: attachment; name=a\r\n\r\n\r\n--b--", "multipart/form-data malformado"),
        (
            b"--b\r\nContent-Length: 5\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--b--",
            "multipart/form-data malformado",
        ),
        (part("a", b"1") + part("a", b"2") + b"--b--", "campo repetido: 'a'"),
        (part("a", b"\xe7") + b"--b--", "os campos não estão codificados em UTF-8"),
        (part("a", b"1", "Content-Type: text/plain; charset=latin1") + b"--b--", "charset não suportado: use UTF-8"),
        (part('a"; filename="x', b"1") + b"--b--", "o campo 'a' não pode ser um arquivo"),
        (part('a"; filename="', b"") + b"--b--", "o campo 'a' não pode ser um arquivo"),
        (part("a", b"1", *["X: y"] * 20) + b"--b--", "multipart/form-data malformado"),
        (part("a" * 10_000, b"1") + b"--b--", "multipart/form-data malformado"),
    ],
)
def test_multipart_that_cannot_be_read(body: bytes, told: str | None):
    if told is None:
        assert read_fields(b"", MULTIPART, body) == {}
    else:
        assert why(content_type=MULTIPART, body=body) == told


@pytest.mark.parametrize("boundary", ["", "; boundary=", '; boundary=""'])
def test_multipart_needs_a_boundary(boundary: str):
    assert why(content_type=f"multipart/form-data{boundary}", body=b"x") == "multipart/form-data sem boundary"


# The format of an answer to what cannot be read


@pytest.mark.parametrize(
    ("query", "body", "form"),
    [
        (b"", b"", "json"),
        (b"format=xml", b"", "xml"),
        (b"formato=XML", b"", "xml"),
        (b"", b"a=%ff&format=Xml&b=c", "xml"),
        (b"", b"a=\xff&formato=xml", "xml"),
        (b"format=json", b"format=xml", "json"),
        (b"format=xml&format=json", b"", "xml"),
        (b"xformat=xml", b"aformat=xml", "json"),
        (b"format=xmlx", b"format=yaml", "json"),
        (b"FORMAT=xml", b"", "json"),
        (b"", part("format", b"xml") + part("a", b"\xff"), "xml"),
        (b"", part("a", b"\xff") + part("formato", b"XML"), "xml"),
        (b"", part("format", b"xml", "Content-Type: text/plain", "Content-Transfer-Encoding: 8bit"), "xml"),
        (b"", part("a", b"format=xml"), "json"),
        (b"", b"--b\r\nContent-Disposition: form-data; name=format\r\n\r\nxml\r\n--b--", "xml"),
    ],
)
def test_the_format_is_glimpsed(query: bytes, body: bytes, form: str):
    assert glimpse_format(query, body) == form


@pytest.mark.parametrize(
    "unit",
    [b"name=format\r\n", b'name="format"\r\nx\r\n', b"&format=", b"&formato=xm", b"\r\n", b"name=", b"\x00", b"&format=xml;"],
)
def test_reading_takes_no_longer_than_it_must(unit: bytes):
    body = unit * (MAX_BODY_BYTES // len(unit))
    began = perf_counter()
    glimpse_format(b"", body)
    for kind in (URLENCODED, MULTIPART, f"{MULTIPART}{';a=' * 300}", f"""{MULTIPART}{';a="' * 240}"""):
        try:
            read_fields(b"", kind, body)
        except FormError:
            continue
    assert perf_counter() - began < 0.5


# Anything gives fields or the one error


CONTENT_TYPES = st.one_of(
    st.sampled_from(["", URLENCODED, MULTIPART, "application/json", f"{URLENCODED}; charset=latin-1"]),
    st.text(max_size=60).map(lambda text: f"multipart/form-data; boundary={text}"),
    st.text(max_size=60),
)
PIECES = st.sampled_from(
    [
        b"--b",
        b"--",
        b"\r\n",
        b'Content-Disposition: form-data; name="a"',
        b"Content-Type: x; charset=y",
        b"\n",
        b"=",
        b"&",
        b"%ff",
    ]
)
BODIES = st.one_of(st.binary(max_size=200), st.lists(PIECES | st.binary(max_size=4), max_size=20).map(b"".join))


@given(BODIES, CONTENT_TYPES, BODIES)
@example(b"", MULTIPART, b"--b\r\n\r\n\r\n--b--")
@example(b"", "multipart/form-data; boundary=\n", b"x")
@example(b"", "multipart/form-data; boundary=\udc80", b"x")
def test_any_bytes_give_fields_or_the_error(query: bytes, content_type: str, body: bytes):
    try:
        fields = read_fields(query, content_type, body)
    except FormError as error:
        assert str(error).encode()  # noqa: PT017 - it can be sent
    else:
        for name, value in fields.items():
            assert name.encode() is not None
            assert value == value.strip()
            assert value.encode() is not None
    assert glimpse_format(query, body) in ("json", "xml")
