"""The bytes of an Asterisk manager connection: a banner line, then blocks of `Key: value` lines, each ended by an empty line.

Pure: the client feeds what it read and takes the messages. Whatever the bytes are, they give messages or `AmiError`, and memory
is bounded: a block that is too long is left out to its end, a value that is too long is cut.
"""

from __future__ import annotations

import msgspec

from toque.errors import InputError

BANNER = b"Asterisk Call Manager"
MAX_BANNER_BYTES = 1024  # it is one short line; more means that another protocol is spoken here
MAX_BLOCK_BYTES = 262_144  # Asterisk's longest are some 5 KB; variables may make them longer
MAX_VALUE_CHARACTERS = 1024  # what we read is a name or a number
_UNKNOWN = "<unknown>"  # what Asterisk writes for a name or number that is not known


class AmiError(InputError):
    """What answers there is not Asterisk's manager."""


class AmiMessage(msgspec.Struct, gc=False):
    """One event or response. Keys are in lower case; of a repeated key the first value counts, `variables` has them all."""

    event: str  # the event's name; "" for a response
    fields: dict[str, str]
    variables: tuple[str, ...] = ()  # `name=value`, of `channelvars=` in manager.conf

    def get(self, key: str) -> str:
        """The value of a key in lower case; empty where there is none, or none is known."""
        value = self.fields.get(key, "")
        return "" if value == _UNKNOWN else value

    @property
    def response(self) -> str:
        """`Success`, `Error` and the like; "" for an event that has no such field."""
        return self.fields.get("response", "")


class AmiReader:
    """What one connection has sent so far. Make a new one for every connection."""

    def __init__(self, wanted: frozenset[str] | None = None) -> None:
        """`wanted` are the names of the events to read; the others are left out unread. None reads all."""
        self._wanted = None if wanted is None else {name.encode() for name in wanted}
        self.banner = ""  # the first line, once it was read
        self.skipped = 0  # blocks that were too long
        self._buffer = bytearray()
        self._is_skipping = False
        self._ends_in_cr = False

    def feed(self, data: bytes) -> list[AmiMessage]:
        """The messages that are complete now. Raises `AmiError` if this is no manager connection."""
        self._buffer += self._with_plain_ends(data)
        if not self.banner and not self._read_banner():
            return []
        end = self._buffer.rfind(b"\n\n", max(len(self._buffer) - len(data) - 2, 0))
        if end < 0:
            self._shed()
            return []
        blocks = bytes(self._buffer[:end]).split(b"\n\n")
        del self._buffer[: end + 2]
        if self._is_skipping:
            self._is_skipping = False
            del blocks[0]
        messages = [message for block in blocks if (message := self._parse(block)) is not None]
        self._shed()
        return messages

    def _with_plain_ends(self, data: bytes) -> bytes:
        """With LF at line ends: half of a CR LF may come with the next read."""
        if self._ends_in_cr:
            data = b"\r" + data
        self._ends_in_cr = data.endswith(b"\r")
        if self._ends_in_cr:
            data = data[:-1]
        return data.replace(b"\r\n", b"\n")

    def _read_banner(self) -> bool:
        end = self._buffer.find(b"\n")
        start = bytes(self._buffer[: len(BANNER)])
        if not BANNER.startswith(start) or (end < 0 and len(self._buffer) > MAX_BANNER_BYTES) or end > MAX_BANNER_BYTES:
            raise AmiError("what answers there is not Asterisk's manager interface")
        if end < len(BANNER):
            if end >= 0:
                raise AmiError("what answers there is not Asterisk's manager interface")
            return False
        self.banner = self._buffer[:end].decode("latin-1").strip()
        self._buffer[: end + 1] = b"\n"  # blocks may then be looked for as ever
        return True

    def _shed(self) -> None:
        """Forget the beginning of a block that is too long; its end is still to come."""
        if len(self._buffer) > MAX_BLOCK_BYTES:
            self._count_skipped()
            self._is_skipping = True
            del self._buffer[:-1]

    def _count_skipped(self) -> None:
        if not self._is_skipping:
            self.skipped += 1

    def _parse(self, block: bytes) -> AmiMessage | None:
        if len(block) > MAX_BLOCK_BYTES:
            self.skipped += 1
            return None
        block = block.lstrip(b"\n")
        is_event = block.startswith(b"Event: ")
        if is_event and self._wanted is not None and block[7:].partition(b"\n")[0].strip() not in self._wanted:
            return None
        return parse_block(block)


def parse_block(block: bytes) -> AmiMessage | None:
    """One block without its empty line; None for one that is neither an event nor a response. Lines end in LF."""
    fields: dict[str, str] = {}
    variables: list[str] = []
    for line in _decoded(block).split("\n"):
        key, _, value = line.partition(": ")
        name = _NAMES.get(key)
        if name is None:  # a key's first time, an odd line, or none
            key, colon, value = line.partition(":")
            if not colon:
                continue
            name = _name_of(key)
        if len(value) > MAX_VALUE_CHARACTERS:
            value = value.strip()[:MAX_VALUE_CHARACTERS]
        if name == "chanvariable":
            variables.append(value.strip())
        if name not in fields:
            fields[name] = value.strip()
    if "event" not in fields and "response" not in fields:
        return None
    return AmiMessage(fields.get("event", ""), fields, tuple(variables))


_NAMES: dict[str, str] = {}  # keys as they are written, and as they are looked up: a switch has some hundred
_MAX_NAMES = 1000
_LONGEST_NAME = 64


def _name_of(key: str) -> str:
    name = key.strip().lower()
    if len(_NAMES) < _MAX_NAMES and len(key) <= _LONGEST_NAME:
        _NAMES[key] = name
    return name


def _decoded(block: bytes) -> str:
    try:
        return block.decode("utf-8")
    except UnicodeDecodeError:
        return block.decode("latin-1")  # what older telephones and trunks send in display names
