"""Logs: one line per event, as JSON for machines or coloured for people. No secret and no whole telephone number reaches them."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, MutableMapping
from typing import Any, TextIO

import structlog

# Eight digits are a subscriber's number without its area code; what has fewer is an extension. People write separators.
_NUMBER = re.compile(r"\d(?:[ .()-]{0,2}\d){7,}")
_LAST_FOUR_DIGITS = re.compile(r"\d(?=(?:\D*\d){0,3}\Z)")


def set_up_logs(*, form: str, level: str, stream: TextIO | None = None) -> None:
    """Log to `stream` (stderr by default) in `form` `json` or `human`, from `level` on; libraries' logs go the same way."""
    stream = stream or sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _printable,
        structlog.processors.StackInfoRenderer(),
    ]
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if form == "json"
        else structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), pad_event_to=26, exception_formatter=structlog.dev.plain_traceback
        )
    )
    last = [structlog.processors.format_exc_info, renderer] if form == "json" else [renderer]
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last]
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # it repeats what server.started says
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _printable(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape what is not printable: strangers' texts may neither begin lines of their own nor steer a terminal."""
    for name, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[name] = printable(value)
    return event


def printable(text: str) -> str:
    """The text with everything else than printable characters escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def mask_number(number: str) -> str:
    """A telephone number as logs show it, `55413060****`, also inside an address; short extensions and names stay."""
    return _NUMBER.sub(lambda found: _LAST_FOUR_DIGITS.sub("*", found[0]), number)


class Sparingly:
    """Lets through a burst of events in each period and counts the rest, so that a flood of bad input floods no log."""

    def __init__(self, clock: Callable[[], float], *, period_s: float = 60.0, burst: int = 20) -> None:
        self._clock = clock
        self._period_s = period_s
        self._burst = burst
        self._began_s = clock()
        self._count = 0
        self._held_back = 0

    def admits(self) -> bool:
        """Whether this one may be logged."""
        now = self._clock()
        if now - self._began_s >= self._period_s:
            self._began_s, self._count = now, 0
        self._count += 1
        if self._count > self._burst:
            self._held_back += 1
            return False
        return True

    def take_held_back(self) -> int:
        """How many were not let through since the last call."""
        held_back, self._held_back = self._held_back, 0
        return held_back
