"""Whatever bytes come, a parser gives a value or its one error; and what is valid SIP, it reads as sipmessage does."""

import string
import struct
from urllib.parse import quote

import sipmessage
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.support.sip_messages import ProxiedCall

from toque.calls.hep_packet import HepError, HepPacket, packet_length, parse_hep
from toque.calls.lines import Line, LineBook, LineKind, normalise, parse_line
from toque.calls.model import Owner
from toque.calls.sip import SipError, SipMessage, parse_sip
from toque.errors import InputError

# HEP

chunks = st.lists(
    st.tuples(
        st.sampled_from([0, 0, 0, 2, 0xFFFF]),
        st.integers(0, 0x13),
        st.binary(max_size=40) | st.binary(min_size=2000, max_size=2100),
    )
)


@st.composite
def hep3_packets(draw: st.DrawFn) -> bytes:
    body = b"".join(struct.pack("!HHH", vendor, kind, len(data) + 6) + data for vendor, kind, data in draw(chunks))
    length = draw(st.just(len(body) + 6) | st.integers(0, 0xFFFF)) & 0xFFFF
    return b"HEP3" + length.to_bytes(2, "big") + body


@st.composite
def damaged(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    data = bytearray(draw(whole))
    for place, value in draw(st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=5)):
        if data:
            data[place % len(data)] = value
    return bytes(data[: draw(st.integers(0, len(data)))]) if draw(st.booleans()) else bytes(data)


old_heps = st.builds(lambda version, rest: bytes([version]) + rest, st.sampled_from([1, 2]), st.binary(max_size=80))


@given(st.binary(max_size=200) | hep3_packets() | damaged(hep3_packets()) | old_heps)
@example(b"HEP3")
def test_any_bytes_are_a_hep_packet_or_a_hep_error(data: bytes):
    try:
        packet = parse_hep(data)
    except HepError:
        return
    assert isinstance(packet, HepPacket)
    assert isinstance(packet.payload, bytes)
    assert packet.at is None or packet.at.tzinfo is not None
    hash((packet.source, packet.destination, packet.protocol, packet.capture_id))


@given(st.binary(max_size=10) | hep3_packets().map(lambda packet: packet[:6]))
def test_any_head_has_a_length_or_a_hep_error(head: bytes):
    try:
        assert 6 <= packet_length(head) <= 0xFFFF
    except HepError:
        return


# SIP

lines_of_headers = st.lists(
    st.sampled_from(
        ["Via", "v", "From", "f", "To", "Call-ID", "i", "CSeq", "Reason", "Route", "P-Asserted-Identity", "c", "", " "]
    ).flatmap(lambda name: st.text(max_size=40).map(lambda value: f"{name}:{value}"))
    | st.text(max_size=40)
    | st.sampled_from(
        ["Call-ID: x", "CSeq: 1 INVITE", 'From: "a', "Via: ;branch=x, ;branch=y", "Reason: Q.850;cause=17", " folded"]
    )
)
start_lines = st.sampled_from(["INVITE sip:a@b SIP/2.0", "SIP/2.0 200 OK", "SIP/2.0 486", "BYE : SIP/2.0", ""]) | st.text(
    max_size=30
)


@st.composite
def sip_like(draw: st.DrawFn) -> bytes:
    end = draw(st.sampled_from(["\r\n", "\n", "\r"]))
    text = end.join([draw(start_lines), *draw(lines_of_headers), "", draw(st.text(max_size=20))])
    return text.encode("utf-8", "surrogatepass")


@settings(
    suppress_health_check=[HealthCheck.too_slow]
)  # the first draw compiles a pattern; on a busy machine that takes a second
@given(st.binary(max_size=300) | sip_like() | damaged(st.builds(lambda: ProxiedCall().up("INVITE").payload)))
def test_any_bytes_are_a_sip_message_or_a_sip_error(data: bytes):
    try:
        message = parse_sip(data)
    except SipError:
        return
    assert isinstance(message, SipMessage)
    assert message.call_id
    assert message.status == 0 or 100 <= message.status < 700
    assert message.cseq >= 0
    assert len(message.branches) <= 70


TOKEN = string.ascii_letters + string.digits + "-.!*_+`'~"  # and %, which sipmessage takes for an escape
tokens = st.text(TOKEN, min_size=1, max_size=12)
users = st.text(string.ascii_letters + string.digits + "-_.!~*'()&=+$,/", min_size=1, max_size=12)
hosts = st.sampled_from(["example.org", "192.0.2.1", "[2001:db8::1]", "a-b.example"])
ports = st.sampled_from(["", ":5060"])
parameters = st.lists(st.sampled_from([";transport=udp", ";lr", ";user=phone", ";x=y"]), max_size=2).map("".join)
names = st.sampled_from(["", "Alice ", "Alice B. "]) | st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters='"\\'), max_size=12
).map(lambda name: f'"{name}" ')


@st.composite
def uris(draw: st.DrawFn) -> str:
    user = draw(users) + draw(st.just("") | st.text("é 0", max_size=3).map(quote))
    return f"sip:{user}@{draw(hosts)}{draw(ports)}{draw(parameters)}"


@st.composite
def parties(draw: st.DrawFn) -> str:
    spaces = draw(st.sampled_from(["", " "]))
    tag = draw(st.none() | tokens)
    tail = f"{spaces};{spaces}tag{spaces}={spaces}{tag}" if tag else ""
    other = draw(st.sampled_from(["", ";x=1", ";lr"]))
    return f"{draw(names)}<{draw(uris())}>" + draw(st.sampled_from([other + tail, tail + other]))


@st.composite
def vias(draw: st.DrawFn) -> str:
    branch = f";branch=z9hG4bK{draw(tokens)}" if draw(st.integers(0, 9)) else ""
    other = draw(st.sampled_from(["", ";rport", ";received=192.0.2.9;rport=5062", ";alias"]))
    return f"SIP/2.0/{draw(st.sampled_from(['UDP', 'TCP', 'TLS']))} {draw(hosts)}{draw(ports)}" + draw(
        st.sampled_from([branch + other, other + branch])
    )


@st.composite
def header_names(draw: st.DrawFn, long: str, *short: str) -> str:
    return draw(st.sampled_from([long, long.upper(), long.lower(), *short]))


@st.composite
def valid_messages(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from(["INVITE", "ACK", "BYE", "CANCEL", "UPDATE", "PRACK", "INFO"]))
    is_request = draw(st.booleans())
    phrase = draw(st.text(string.ascii_letters + " ", max_size=12)).strip()
    start = f"{method} {draw(uris())} SIP/2.0" if is_request else f"SIP/2.0 {draw(st.integers(100, 699))} {phrase}"
    headers = [
        f"{draw(header_names('From', 'f'))}: {draw(parties())}",
        f"{draw(header_names('To', 't'))}: {draw(parties())}",
        f"{draw(header_names('Call-ID', 'i'))}: {draw(tokens)}@{draw(hosts)}",
        f"{draw(header_names('CSeq'))}: {draw(st.integers(0, 2**31 - 1))} {method}",
        "Max-Forwards: 70",
        f"Content-Length:{draw(st.sampled_from(['', ' ', '   ']))}0",
    ]
    path = draw(st.lists(st.lists(vias(), min_size=1, max_size=2), min_size=1, max_size=3))
    headers += [f"{draw(header_names('Via', 'v'))}:{draw(st.sampled_from(['', ' ']))}{', '.join(hops)}" for hops in path]
    # The Vias' own order matters, that of the others does not.
    order = draw(st.permutations(range(len(headers))))
    ordered = [headers[number] for number in order if number < 6] + headers[6:]
    return "\r\n".join([start, *ordered, "", ""]).encode()


@settings(deadline=None)
@given(valid_messages())
def test_a_valid_message_reads_as_it_does_to_sipmessage(data: bytes):
    ours, theirs = parse_sip(data), sipmessage.Message.parse(data)
    assert ours.call_id == theirs.call_id
    assert (ours.cseq, ours.method) == (theirs.cseq.sequence, theirs.cseq.method)
    assert (ours.from_user, ours.from_tag) == (theirs.from_address.uri.user, theirs.from_address.parameters.get("tag") or "")
    assert (ours.to_user, ours.to_tag) == (theirs.to_address.uri.user, theirs.to_address.parameters.get("tag") or "")
    assert ours.branches == (tuple(via.parameters.get("branch") or "" for via in theirs.via))
    if isinstance(theirs, sipmessage.Request):
        assert (ours.status, ours.request_user) == (0, theirs.uri.user)
    else:
        assert (ours.status, ours.phrase) == (theirs.code, theirs.phrase)


# Lines

numbers = st.text(max_size=30) | st.text("0123456789+-.() ", max_size=25) | st.from_regex(r"\A(\+|00|0|0\d\d)?\d{8,13}\Z")
line_texts = (
    numbers
    | st.builds(str.__add__, st.sampled_from(["~", "~(", "~[", "~\\", "*", "+"]), st.text(max_size=10))
    | numbers.map(lambda n: n + "*")
)


@given(line_texts)
def test_any_text_is_a_line_or_an_input_error(text: str):
    try:
        line = parse_line("acme", "vendas", text)
    except InputError:
        return
    assert isinstance(line, Line)
    assert line.number
    assert parse_line("acme", "vendas", line.text) == line
    LineBook.of([line]).owner(text)


@given(numbers)
def test_a_number_is_owned_by_its_own_line(number: str):
    try:
        line = parse_line("acme", "vendas", number)
    except InputError:
        return
    if line.kind is LineKind.EXACT:
        assert LineBook.of([line]).owner(number.strip()) == Owner("acme", "vendas")


@given(numbers, st.text(max_size=4))
def test_any_text_has_a_form_in_any_country(number: str, country: str):
    assert isinstance(normalise(number, country), str)
