"""Why no connection was made: system errors translated, once, into outcomes, by whose fault each is."""

from __future__ import annotations

import errno
import socket
import ssl

from toque.sending.outcomes import Forbidden, Unreachable, Unsent

NO_DESCRIPTOR = Unsent("too many open files")
_NO_MEMORY = Unsent("no memory for a connection")

# X509_V_ERR_* numbers (openssl-verification-options(1)).
_CERTIFICATE_PROBLEMS = {
    9: "not valid yet",
    10: "expired",
    18: "self-signed",
    19: "self-signed root",
    20: "unknown issuer",
    21: "unknown issuer",
    23: "revoked",
    62: "hostname mismatch",
    64: "address mismatch",
}

_PROBLEMS: dict[int, Unreachable | Unsent] = {
    errno.ECONNREFUSED: Unreachable("connection refused"),
    errno.ECONNRESET: Unreachable("connection reset"),
    errno.EPIPE: Unreachable("connection reset"),
    errno.ETIMEDOUT: Unreachable("connect timed out"),
    errno.ENETUNREACH: Unreachable("network unreachable"),
    errno.EHOSTUNREACH: Unreachable("host unreachable"),
    errno.EADDRNOTAVAIL: Unsent("no local address or port free"),
    errno.EMFILE: NO_DESCRIPTOR,
    errno.ENFILE: NO_DESCRIPTOR,
    errno.ENOBUFS: _NO_MEMORY,
    errno.ENOMEM: _NO_MEMORY,
}


class NotConnected(Exception):  # noqa: N818 - what it carries is the news
    """No connection was made; `outcome` is how the attempt ends."""

    def __init__(self, outcome: Unreachable | Forbidden | Unsent) -> None:
        super().__init__(outcome)
        self.outcome = outcome


def problem_of(error: OSError) -> Unreachable | Unsent:
    """The outcome of a try to connect that failed; the error's own text may hold more than may be shown."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return Unreachable(f"certificate: {_CERTIFICATE_PROBLEMS.get(error.verify_code, 'not valid')}")
    if isinstance(error, ssl.SSLError):
        return Unreachable("tls: handshake failed")
    if isinstance(error, TimeoutError):
        return Unreachable("connect timed out")
    if isinstance(error, ConnectionError) and error.errno is None:
        return Unreachable("connection reset")
    return _PROBLEMS.get(error.errno or 0, Unreachable("connect failed"))


def lookup_problem_of(error: OSError | UnicodeError) -> Unreachable | Unsent:
    """The outcome of a lookup that failed: the name's fault, unless the machine itself could not ask."""
    if isinstance(error, socket.gaierror):
        return _NO_MEMORY if error.errno == socket.EAI_MEMORY else Unreachable("name not found")
    if isinstance(error, OSError) and isinstance(own := problem_of(error), Unsent):
        return own
    return Unreachable("name not found")


def most_telling(errors: list[OSError]) -> OSError:
    """Of the errors of several addresses the one to report: our own, then the first of an address that has a route."""
    return min(errors, key=_rank)


def _rank(error: OSError) -> int:
    if isinstance(problem_of(error), Unsent):
        return 0
    return 2 if error.errno == errno.ENETUNREACH else 1  # as IPv6 without a route, beside an IPv4 address
