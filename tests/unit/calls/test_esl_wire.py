import json

import pytest

from toque.calls.esl_wire import (
    API_RESPONSE,
    AUTH_REQUEST,
    COMMAND_REPLY,
    DISCONNECT_NOTICE,
    EVENT_JSON,
    MAX_HEADER_BYTES,
    RUDE_REJECTION,
    EslError,
    EslParser,
    Frame,
    parse_channel_list,
    parse_dump,
    parse_object,
)

EVENT = b'{"Event-Name":"HEARTBEAT"}'
STREAM = (
    b"Content-Type: auth/request\n\n"
    b"Content-Type: command/reply\nReply-Text: +OK accepted\n\n"
    b"Content-Length: 26\nContent-Type: text/event-json\n\n" + EVENT + b"\n"
    b"Content-Type: api/response\nContent-Length: 4\n\n\n\nab"
    b"Content-Type: text/disconnect-notice\nContent-Length: 5\n\nDisco"
)
KINDS = [AUTH_REQUEST, COMMAND_REPLY, EVENT_JSON, API_RESPONSE, DISCONNECT_NOTICE]


def frames(*pieces: bytes) -> list[Frame]:
    parser, found = EslParser(), []
    for piece in pieces:
        parser.receive(piece)
        while (frame := parser.next_frame()) is not None:
            found.append(frame)
    return found


def test_a_stream_is_cut_into_frames():
    found = frames(STREAM)
    assert [frame.kind for frame in found] == KINDS
    assert [frame.body for frame in found] == [b"", b"", EVENT, b"\n\nab", b"Disco"]


def test_pieces_of_any_size_give_the_same():
    whole = frames(STREAM)
    for size in range(1, len(STREAM)):
        assert frames(*(STREAM[at : at + size] for at in range(0, len(STREAM), size))) == whole


@pytest.mark.parametrize(("reply", "is_accepted"), [("+OK accepted", True), ("-ERR invalid", False), ("", False)])
def test_a_reply_says_whether_the_command_was_accepted(reply: str, is_accepted: bool):
    (frame,) = frames(b"Content-Type: command/reply\nReply-Text: " + reply.encode() + b"\n\n")
    assert (frame.reply, frame.is_accepted) == (reply, is_accepted)


def test_a_refusal_by_the_access_list_is_a_frame():
    (frame,) = frames(b"Content-Type: text/rude-rejection\nContent-Length: 24\n\nAccess Denied, go away.\n")
    assert frame.kind == RUDE_REJECTION


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2p1\n\n",
        b"HTTP/1.1 400 Bad Request\n\n",
        b"Content-Length: -1\n\n",
        b"Content-Length: 1e9\n\n",
        b"Content-Length: 99999999999\n\n",
        b"Content-Length: \xd9\xa3\n\n",
        b": nameless\n\n",
        b"A: " + b"a" * MAX_HEADER_BYTES,
        b"A: " + b"a" * MAX_HEADER_BYTES + b"\n\n",
    ],
)
def test_what_is_no_event_socket_is_refused(data: bytes):
    with pytest.raises(EslError):
        frames(data)


def test_a_body_is_no_longer_than_allowed():
    parser = EslParser(max_body_bytes=10)
    parser.receive(b"Content-Length: 11\n\n")
    with pytest.raises(EslError):
        parser.next_frame()


def test_many_frames_are_read_without_keeping_what_was_read():
    parser, count = EslParser(), 0
    frame = b"Content-Length: 26\nContent-Type: text/event-json\n\n" + EVENT
    for _ in range(200):
        parser.receive(frame * 100)
        while parser.next_frame() is not None:
            count += 1
    assert count == 20_000
    assert len(parser._buffer) < len(frame)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'"x"', b"null", b'{"a":}', b"[" * 100_000, b'{"a":' * 100_000])
def test_a_body_that_is_no_object_is_refused(body: bytes):
    with pytest.raises(EslError):
        parse_object(body)


def test_a_name_in_another_encoding_is_read_as_far_as_it_can_be():
    assert parse_object('{"Caller-Caller-ID-Name":"José"}'.encode("latin-1")) == {"Caller-Caller-ID-Name": "Jos\ufffd"}


def test_a_list_of_channels():
    rows = [{"uuid": "a"}, {"uuid": ""}, {"uuid": 5}, {}, "x", {"uuid": "b"}]
    assert parse_channel_list(json.dumps({"row_count": 6, "rows": rows}).encode()) == ["a", "b"]
    assert parse_channel_list(b'{"row_count":0}') == []


@pytest.mark.parametrize("body", [b'{"rows":5}', b"-ERR no"])
def test_what_is_no_list_of_channels(body: bytes):
    with pytest.raises(EslError):
        parse_channel_list(body)


def test_a_dump():
    assert parse_dump(b'{"Event-Name":"CHANNEL_DATA"}') == {"Event-Name": "CHANNEL_DATA"}
    assert parse_dump(b"-ERR No such channel!\n") is None
