import pytest

from toque.calls.model import Cause
from toque.calls.sip import MAX_MESSAGE_BYTES, SipError, SipMessage, parse_sip, user_of

SDP = "v=0\r\n"


def request(*headers: str, start: str = "INVITE sip:1002@example.org SIP/2.0", body: str = "", end: str = "\r\n") -> bytes:
    """A request whose given headers come before the usual ones."""
    lines = [
        start,
        *headers,
        "Via: SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK1",
        "From: <sip:1001@example.org>;tag=a1",
        "To: <sip:1002@example.org>",
        "Call-ID: c1@192.0.2.1",
        "CSeq: 7 INVITE",
        "",
        body,
    ]
    return end.join(lines).encode()


def response(status: str, *headers: str) -> bytes:
    return request(*headers, start=f"SIP/2.0 {status}")


def test_request():
    assert parse_sip(request()) == SipMessage(
        method="INVITE",
        status=0,
        phrase="",
        call_id="c1@192.0.2.1",
        cseq=7,
        from_user="1001",
        from_tag="a1",
        to_user="1002",
        to_tag="",
        request_user="1002",
        branches=("z9hG4bK1",),
        asserted_users=(),
        has_sdp=False,
        cause=None,
        route_tag="",
    )


@pytest.mark.parametrize(
    ("line", "status", "phrase"),
    [
        ("486 Busy Here", 486, "Busy Here"),
        ("486", 486, ""),
        ("486 ", 486, ""),
        ("100 trying -- your call is important to us", 100, "trying -- your call is important to us"),
        ("480 Indisponível", 480, "Indisponível"),
    ],
)
def test_response(line: str, status: int, phrase: str):
    message = parse_sip(response(line))
    assert (message.status, message.phrase, message.method) == (status, phrase, "INVITE")
    assert not message.is_request


def test_method_of_a_response_is_that_of_its_request():
    assert parse_sip(response("200 OK").replace(b"7 INVITE", b"8 BYE")).method == "BYE"


@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_line_ends(end: str):
    message = parse_sip(request("Content-Type: application/sdp", body="v=0", end=end))
    assert (message.call_id, message.has_sdp) == ("c1@192.0.2.1", True)


def test_keep_alives_before_the_message_are_passed_over():
    assert parse_sip(b"\r\n\r\n" + request()) == parse_sip(request())


def test_compact_names():
    compact = request()
    for long, short in ((b"Via", b"v"), (b"From", b"f"), (b"To:", b"t:"), (b"Call-ID", b"i")):
        compact = compact.replace(long, short, 1)
    assert parse_sip(compact) == parse_sip(request())


@pytest.mark.parametrize("name", ["FROM", "from", "From ", "From\t"])
def test_names_in_any_spelling(name: str):
    assert parse_sip(request().replace(b"From:", f"{name}:".encode())) == parse_sip(request())


@pytest.mark.parametrize("fold", ["\r\n ", "\r\n\t", "\n  ", "\r\n \r\n "])
def test_folded_headers(fold: str):
    assert parse_sip(request().replace(b";tag=a1", f"{fold};tag=a1".encode())).from_tag == "a1"


def test_of_repeated_headers_the_first_counts():
    assert parse_sip(request("From: <sip:1003@example.org>;tag=b")).from_user == "1003"


def test_a_line_without_a_colon_is_no_header():
    assert parse_sip(request("From", "garbage")).from_user == "1001"


@pytest.mark.parametrize(
    ("vias", "branches"),
    [
        (["Via: SIP/2.0/UDP a;branch=z9hG4bKx", "Via: SIP/2.0/UDP b;branch=z9hG4bKy"], ("z9hG4bKx", "z9hG4bKy", "z9hG4bK1")),
        (["Via: SIP/2.0/UDP a;branch=z9hG4bKx, SIP/2.0/UDP b;branch=z9hG4bKy"], ("z9hG4bKx", "z9hG4bKy", "z9hG4bK1")),
        (["v: SIP/2.0/UDP a;rport ; Branch = z9hG4bKx ;received=b"], ("z9hG4bKx", "z9hG4bK1")),
        (["Via: SIP/2.0/UDP old.example.org"], ("", "z9hG4bK1")),
    ],
)
def test_branches_from_the_topmost_down(vias: list[str], branches: tuple[str, ...]):
    assert parse_sip(request(*vias)).branches == branches


def test_made_up_vias_are_cut():
    assert len(parse_sip(request("Via: " + ",".join(["SIP/2.0/UDP a;branch=z9hG4bKx"] * 500))).branches) == 70


def test_a_response_that_lost_its_vias():
    lost = b"\r\n".join(line for line in response("487 Request Terminated").split(b"\r\n") if not line.startswith(b"Via"))
    assert parse_sip(lost).branches == ()


@pytest.mark.parametrize(
    ("value", "user", "tag"),
    [
        ("<sip:1001@example.org>;tag=x", "1001", "x"),
        ("sip:1001@example.org;tag=x", "1001", "x"),
        ('"A <b> \\" c" <sip:1001@example.org;user=phone>;tag=x', "1001", "x"),
        ('"tag=no;tag=no" <sip:1001@example.org;tag=no>;TAG = x', "1001", "x"),
        ('"never closed <sip:1001@example.org>;tag=x', "", "x"),
        ("Zoë <sips:+5541%2030600300@example.org>;tag=x", "+5541 30600300", "x"),
        ("<sip:4130600300;phone-context=+55:secret@example.org>", "4130600300", ""),
        ("<tel:+55(41)3060-0300;phone-context=x>;tag=x", "+554130600300", "x"),
        ("<sip:example.org>;tag=x", "", "x"),
        ("<urn:service:sos>", "", ""),
        ("anonymous", "", ""),
        ("", "", ""),
        ("<sip:1001@example.org", "1001", ""),
    ],
)
def test_parties(value: str, user: str, tag: str):
    message = parse_sip(request(f"From: {value}", f"To: {value}"))
    assert (message.from_user, message.from_tag) == (message.to_user, message.to_tag) == (user, tag)


def test_a_very_long_party_is_read_all_the_same():
    assert parse_sip(request(f'From: "{"x" * 5000}" <sip:1001@example.org>;tag=a1')).from_tag == "a1"


@pytest.mark.parametrize(
    ("uri", "user"),
    [("sip:1002@h", "1002"), ("SIPS:1002@h", "1002"), ("tel:1.0-0(2)", "1002"), ("sip:h", ""), ("1002", ""), ("", "")],
)
def test_user_of(uri: str, user: str):
    assert user_of(uri) == user


@pytest.mark.parametrize(
    ("headers", "users"),
    [
        (["P-Asserted-Identity: <sip:4130600300@h>"], ("4130600300",)),
        (['P-Asserted-Identity: "Doe, J" <sip:1@h>, <tel:+2>'], ("1", "+2")),
        (["P-Asserted-Identity: <sip:1@h>", "P-Asserted-Identity: <tel:+2>"], ("1", "+2")),
        (["P-Asserted-Identity: <sip:h>"], ()),
        (["P-Asserted-Identity: " + ",".join(["<sip:1@h>"] * 50)], ("1", "1")),
    ],
)
def test_asserted_identities(headers: list[str], users: tuple[str, ...]):
    assert parse_sip(request(*headers)).asserted_users == users


@pytest.mark.parametrize(
    ("content_type", "body", "has_sdp"),
    [
        ("application/sdp", SDP, True),
        ("Application/SDP;charset=utf-8", SDP, True),
        ("application/sdp", "", False),
        ("application/isup", "x", False),
        ("multipart/mixed;boundary=b", "--b\r\nContent-Type: application/SDP\r\n\r\nv=0\r\n--b--", True),
        ("multipart/mixed;boundary=b", "--b\r\nContent-Type: application/isup\r\n\r\nx\r\n--b--", False),
    ],
)
def test_has_sdp(content_type: str, body: str, has_sdp: bool):
    assert parse_sip(request(f"Content-Type: {content_type}", body=body)).has_sdp is has_sdp


@pytest.mark.parametrize(
    ("headers", "cause"),
    [
        (['Reason: Q.850;cause=17;text="User busy"'], Cause(q850=17, text="User busy")),
        (["Reason: q.850 ; cause = 17"], Cause(q850=17)),
        (['Reason: Q.850;text="a, b";location=x;cause=16', "Reason: Q.850;cause=18"], Cause(q850=18, text="a, b")),
        (['Reason: SIP;cause=200;text="Call completed elsewhere"'], Cause(sip=200, text="Call completed elsewhere")),
        (["Reason: SIP;cause=600, Q.850;cause=21"], Cause(sip=600, q850=21)),
        (["Reason: SIP;cause=600", "Reason: Q.850;cause=21"], Cause(sip=600, q850=21)),
        (["Reason: Q.850;cause=128"], None),
        (["Reason: Q.850;cause=1234"], None),
        (["Reason: preemption;cause=1"], None),
        (["Reason: Q.850"], None),
        (["Reason: "], None),
        (["X-Reason: Q.850;cause=17"], None),
    ],
)
def test_reason(headers: list[str], cause: Cause | None):
    assert parse_sip(request(*headers)).cause == cause


@pytest.mark.parametrize(
    ("headers", "tag"),
    [
        (["Route: <sip:192.0.2.2;lr=on;ftag=a1>"], "a1"),
        (["Route: <sip:192.0.2.3;lr>, <sip:192.0.2.2;lr=on;ftag=a1;x>"], "a1"),
        (["Route: <sip:192.0.2.3;lr>", "Route: <sip:192.0.2.2;ftag=a1>"], "a1"),
        (["Route: <sip:192.0.2.3;lr>"], ""),
        (["Record-Route: <sip:192.0.2.2;ftag=a1>"], ""),
    ],
)
def test_route_tag(headers: list[str], tag: str):
    assert parse_sip(request(*headers)).route_tag == tag


def test_long_texts_are_cut():
    message = parse_sip(
        response(
            f"486 {'x' * 999}",
            f"From: <sip:{'1' * 999}@h>",
            f"Via: x;branch={'z' * 9999}",
            f'Reason: SIP;cause=1000;cause=600;text="{"y" * 999}"',
        )
    )
    assert [len(text) for text in (message.phrase, message.from_user, message.branches[0], message.cause.text)] == [
        300,
        300,
        1000,
        300,
    ]


def test_bad_bytes_are_replaced():
    assert parse_sip(request().replace(b"1001", b"10\xff01")).from_user == "10\ufffd01"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\r\n\r\n", id="keep-alive"),
        pytest.param(b"hello\r\n\r\n", id="no-sip"),
        pytest.param(request(start="INVITE sip:a@b HTTP/1.1"), id="another-protocol"),
        pytest.param(request(start="SIP/2.0 000 Nothing"), id="status-0"),
        pytest.param(request(start="SIP/2.0 700 Too high"), id="status-700"),
        pytest.param(request(start="SIP/2.0 ٤٨٦ Busy"), id="status-in-other-digits"),
        pytest.param(request().replace(b"Call-ID", b"X"), id="no-call-id"),
        pytest.param(request().replace(b"CSeq", b"X"), id="no-cseq"),
        pytest.param(request(f"Call-ID: {'x' * 1001}"), id="call-id-too-long"),
        pytest.param(request(f"From: <sip:1@h>;tag={'x' * 1001}"), id="tag-too-long"),
        pytest.param(request("CSeq: x INVITE"), id="cseq-no-number"),
        pytest.param(request("CSeq: ² INVITE"), id="cseq-superscript"),
        pytest.param(request("CSeq: 12345678901 INVITE"), id="cseq-too-long"),
        pytest.param(request("CSeq: 1"), id="cseq-no-method"),
        pytest.param(request() + b"x" * MAX_MESSAGE_BYTES, id="too-long"),
    ],
)
def test_refused(data: bytes):
    with pytest.raises(SipError):
        parse_sip(data)


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param("Reason: " + "Q.850;" * 9000, id="reason"),
        pytest.param("Reason: " + 'Q.850;text="' * 5000, id="reason-text"),
        pytest.param("Via: " + ";branch " * 7000, id="via"),
        pytest.param("From: " + '"\\' * 30000, id="quotes"),
        pytest.param("From: " + "; tag =" * 8000, id="tags"),
        pytest.param("Via: a" + "\r\n b" * 15000, id="folds"),
        pytest.param("\r\n".join(["v:a"] * 12000), id="vias"),
        pytest.param("Route: " + ";ftag=" * 10000, id="route"),
    ],
)
def test_hostile_messages_cost_no_more_than_their_length(hostile: str):
    """A regular expression that backtracks needs minutes for these; a run that hangs is the failure."""
    for _ in range(20):
        parse_sip(request(hostile))
