"""Logs: one line per event, as JSON for machines or coloured for people. No secret and no whole telephone number reaches them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from typing import TextIO

import structlog

_DIGITS_SHOWN = 8  # country, area code and the first digits of the subscriber
_DIGITS_HIDDEN = 4


def set_up_logs(*, form: str, level: str, stream: TextIO | None = None) -> None:
    """Log to `stream` (stderr by default) in `form` `json` or `human`, from `level` on; libraries' logs go the same way."""
    stream = stream or sys.stderr
    shared: list[structlog.typing.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
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


def mask_number(number: str) -> str:
    """A telephone number as logs show it: `55413060****`. Short extensions and names are not masked."""
    if not number.lstrip("+").isdecimal() or len(number) <= _DIGITS_SHOWN:
        return number
    kept = max(len(number) - _DIGITS_HIDDEN, 0)
    return number[:kept] + "*" * (len(number) - kept)


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
