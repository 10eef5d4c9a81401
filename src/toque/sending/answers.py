"""Reading answers: httptools reads them, and what was read once is known when it comes again, byte for byte."""

from __future__ import annotations

import re

import httptools

from toque.sending.outcomes import Answered

MAX_EXCERPT = 500
"""Characters of an unsuccessful answer's body that are kept."""

MAX_RETRY_AFTER = 64
"""Characters kept of a `Retry-After`: an HTTP date has 29."""

MAX_KNOWN = 512
"""Answers known by heart: of many receivers, a second's worth, as most answers carry the time in seconds."""

MAX_KNOWN_BYTES = 1024
"""Longer ones are not learnt: what a receiver has so much to say about differs each time."""

EXCERPT_BYTES = 4 * MAX_EXCERPT  # UTF-8 has at most four to a character
_OK, _MULTIPLE_CHOICES = 200, 300
_SWITCHING_PROTOCOLS = 101
# The receiver counts from when it wrote, so we are to be done before it is.
_HINT_MARGIN_S = 1.0
_LETTER_K = b"Kk"
_IDLE_HINT = re.compile(rb"(?:^|[\s,;])timeout\s*=\s*\"?([0-9]{1,9})", re.IGNORECASE)

# Successes have nothing but a status to tell them apart, and there are very many of them.
SUCCESSES = {status: Answered(status) for status in range(_OK, _MULTIPLE_CHOICES)}


KnownAnswer = tuple[Answered, float | None]
"""What a whole answer, after which the connection goes on, means: the outcome, and for how many seconds the receiver lets
the connection be idle, less a margin; None when it does not say.
"""


class KnownAnswers(dict[bytes, KnownAnswer]):
    """Answers read before, by their bytes.

    A reader is in the same state before each answer of a connection that goes on, and it is deterministic, so the same
    bytes mean the same. Most answers of a busy second are equal, and looking them up costs a fraction of reading them.
    """

    def learn(self, data: bytes, answer: KnownAnswer) -> None:
        """Know this answer, which came in whole and alone, from now on."""
        if len(data) <= MAX_KNOWN_BYTES:
            if len(self) >= MAX_KNOWN:
                self.clear()
            self[data] = answer


class _Excess(Exception):  # noqa: N818 - it stops the parser and is never seen outside
    """More came than the answer."""


class AnswerReader:
    """Reads the answers of one connection, one after the other. It does no I/O; limits are others' business.

    `Connection` is one, instead of having one, as every call counts there.
    """

    __slots__ = ("_feed", "_parser", "body", "body_bytes", "has_ended", "idle_s", "keeps_alive", "retry_after", "status")

    def __init__(self) -> None:
        self.clear()

    def begin_reading(self) -> None:
        """Make the parser, which refers back to this until `end_reading`."""
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data

    def clear(self) -> None:
        """Forget the answer that was read; what is fed next begins another one."""
        self.status: int | None = None
        """Of the final answer, once its head is complete."""
        self.retry_after: str | None = None
        self.idle_s: float | None = None
        self.body = b""
        """How it begins."""
        self.body_bytes = 0
        self.has_ended = False
        self.keeps_alive = False

    def feed(self, data: bytes) -> bool:
        """Read on; False when it is no answer, or no longer one."""
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return False
        return True

    def end_reading(self) -> None:
        """Let go of the parser."""
        del self._parser, self._feed

    def answered(self, status: int) -> Answered:
        """The outcome, of which `status` is the one that was read."""
        success = SUCCESSES.get(status)
        if success is None:
            return Answered(status, self.retry_after, _excerpt(self.body))
        return success if self.retry_after is None else Answered(status, self.retry_after)

    # What the parser tells.

    def on_message_begin(self) -> None:
        """Nothing may follow an answer: nobody asked for it."""
        if self.has_ended:
            raise _Excess

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the fields that matter."""
        # Compared by length first: this is called for every field of every answer. `Connection` is as long as `Keep-Alive`.
        length = len(name)
        if length == 11:
            if self.status is None and name.lower() == b"retry-after":
                self.retry_after = value.decode("latin-1").strip()[:MAX_RETRY_AFTER]
        elif length == 10 and name[0] in _LETTER_K and self.status is None and name.lower() == b"keep-alive":
            self.idle_s = _idle_hint(value)

    def on_headers_complete(self) -> None:
        """The head is there; it counts unless it is an interim answer's (RFC 9110 §15.2)."""
        status = self._parser.get_status_code()
        if status >= _OK or status == _SWITCHING_PROTOCOLS:
            self.status = status
        else:
            self.retry_after = self.idle_s = None

    def on_body(self, data: bytes) -> None:
        """Count it, and keep its beginning."""
        self.body_bytes += len(data)
        if len(self.body) < EXCERPT_BYTES:
            self.body += data[:EXCERPT_BYTES]

    def on_message_complete(self) -> None:
        """The answer is over, unless it was an interim one."""
        if self.status is not None:
            self.has_ended = True
            self.keeps_alive = self._parser.should_keep_alive()


def _idle_hint(value: bytes) -> float | None:
    """Seconds from `Keep-Alive: timeout=5, max=99` (RFC 2068 §19.7.1.1, as servers go on saying it), less the margin."""
    found = _IDLE_HINT.search(value)
    if found is None:
        return None
    seconds = int(found[1])
    return seconds - min(_HINT_MARGIN_S, seconds / 2)


def _excerpt(body: bytes) -> str:
    """What a person can read of it, on one line and without anything that a terminal or log would act on."""
    text = body.decode("utf-8", "replace")
    printable = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(printable.split())[:MAX_EXCERPT]
