"""The machine: its clock, and how much a process may have open."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterator
from typing import Any

from toque.doctor.findings import Finding, ok, problem, warning

_FEW_DESCRIPTORS = 4096
_NEARLY_ALL = 0.8
_STA_UNSYNC = 0x0040  # adjtimex(2)
_TIME_ERROR = 5
_TIMEX_BYTES = 256  # the structure has 208 on 64-bit systems
_STATUS_AT = 40  # behind an int, padded, and four longs


def check_machine_clock() -> Finding:
    """Whether something keeps the machine's clock right."""
    is_synchronised = _asked_kernel()
    if is_synchronised is None:
        return ok("machine.clock", "the kernel does not say whether the clock is synchronised")
    if is_synchronised:
        return ok("machine.clock", "the clock is synchronised")
    advice = "run chrony or systemd-timesyncd: signatures carry our time, and receivers refuse what is minutes off"
    return warning("machine.clock", "the kernel says that the clock is not synchronised", advice)


def _asked_kernel() -> bool | None:
    """What adjtimex(2) says; None where it cannot be asked."""
    if struct.calcsize("l") != 8:
        return None
    state = ctypes.create_string_buffer(_TIMEX_BYTES)
    try:
        result = ctypes.CDLL(None, use_errno=True).adjtimex(state)
    except (OSError, AttributeError):
        return None
    if result < 0:
        return None
    (status,) = struct.unpack_from("i", state, _STATUS_AT)
    return result != _TIME_ERROR and not status & _STA_UNSYNC


def check_descriptors(used: dict[str, int]) -> Iterator[Finding]:
    """Of the server: each kept connection to a receiver is a descriptor."""
    numbers: dict[str, Any] = {"used": used["used"], "limit": used["limit"]}
    text = f"{used['used']} of {used['limit']} in use"
    advice = "raise the limit: LimitNOFILE=16384 in the unit"
    if used["used"] > used["limit"] * _NEARLY_ALL:
        yield problem("server.descriptors", text, advice, **numbers)
    elif used["limit"] < _FEW_DESCRIPTORS:
        yield warning("server.descriptors", f"{text}, which is enough for few customers", advice, **numbers)
    else:
        yield ok("server.descriptors", text, **numbers)
