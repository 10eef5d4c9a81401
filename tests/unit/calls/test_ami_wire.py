import pytest

from toque.calls.ami_wire import MAX_BANNER_BYTES, MAX_BLOCK_BYTES, MAX_VALUE_CHARACTERS, AmiError, AmiMessage, AmiReader

BANNER = b"Asterisk Call Manager/11.0.0\r\n"
HANGUP = b"Event: Hangup\r\nUniqueid: 1.1\r\nCause: 16\r\n\r\n"


def read(*pieces: bytes) -> list[AmiMessage]:
    reader = AmiReader()
    return [message for piece in (BANNER, *pieces) for message in reader.feed(piece)]


def test_an_event():
    (message,) = read(HANGUP)
    assert message.event == "Hangup"
    assert message.get("cause") == "16"
    assert message.get("nothing") == ""


def test_a_response():
    (message,) = read(b"Response: Error\r\nActionID: a1\r\nMessage: Authentication failed\r\n\r\n")
    assert (message.event, message.response, message.get("message")) == ("", "Error", "Authentication failed")


def test_the_banner_names_the_version():
    reader = AmiReader()
    assert reader.feed(BANNER[:10]) == []
    assert reader.banner == ""
    reader.feed(BANNER[10:])
    assert reader.banner == "Asterisk Call Manager/11.0.0"


def test_keys_in_any_case_and_values_with_colons():
    (message,) = read(b"EVENT: Newchannel\r\nCALLERIDNAME:  a: b \r\n\r\n")
    assert message.get("calleridname") == "a: b"


def test_what_is_not_known_is_empty():
    (message,) = read(b"Event: Newchannel\r\nCallerIDNum: <unknown>\r\n\r\n")
    assert message.get("calleridnum") == ""


def test_repeated_keys():
    (message,) = read(b"Event: Newstate\r\nChanVariable: A=1\r\nChanVariable: B=2\r\nCause: 1\r\nCause: 2\r\n\r\n")
    assert message.variables == ("A=1", "B=2")
    assert message.get("cause") == "1"


def test_names_in_latin_1():
    (message,) = read("Event: Newchannel\r\nCallerIDName: José\r\n\r\n".encode("latin-1"))
    assert message.get("calleridname") == "José"


def test_half_messages_wait():
    reader = AmiReader()
    for byte in BANNER + HANGUP[:-1]:
        assert reader.feed(bytes([byte])) == []
    assert len(reader.feed(HANGUP[-1:])) == 1


def test_bare_line_feeds_and_empty_lines():
    assert [message.event for message in read(b"\r\n\r\n", HANGUP.replace(b"\r\n", b"\n"), b"\r\n", HANGUP)] == [
        "Hangup",
        "Hangup",
    ]


def test_blocks_that_are_neither_event_nor_response_are_left_out():
    assert [message.event for message in read(b"Output: something\r\nno colon\r\n\r\n", HANGUP)] == ["Hangup"]


def test_a_long_value_is_cut():
    (message,) = read(b"Event: CEL\r\nExtra: " + b"x" * 5000 + b"\r\n\r\n")
    assert len(message.get("extra")) == MAX_VALUE_CHARACTERS


@pytest.mark.parametrize("size", [1, 4096, 10 * MAX_BLOCK_BYTES])
def test_a_block_that_never_ends_costs_no_memory(size: int):
    reader = AmiReader()
    reader.feed(BANNER)
    flood = b"Event: VarSet\r\nValue: " + b"x" * (2 * MAX_BLOCK_BYTES if size == 1 else 10 * MAX_BLOCK_BYTES)
    if size == 1:
        reader.feed(flood)
    for start in range(0, len(flood), size) if size > 1 else ():
        reader.feed(flood[start : start + size])
        assert len(reader._buffer) <= MAX_BLOCK_BYTES
    assert [message.event for message in reader.feed(b"\r\n\r\n" + HANGUP)] == ["Hangup"]
    assert reader.skipped == 1


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\r\n", b"Asterisk\r\n", b"\x16\x03\x01"]
)
def test_a_port_that_is_not_the_managers(answer: bytes):
    with pytest.raises(AmiError):
        AmiReader().feed(answer)


def test_a_banner_that_never_ends():
    reader = AmiReader()
    with pytest.raises(AmiError):
        reader.feed(BANNER.rstrip() + b"x" * (MAX_BANNER_BYTES + 1))
