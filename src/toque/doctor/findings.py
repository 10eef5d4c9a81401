"""What the checks are called, what each means, and what they find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

# One row for each check; docs/troubleshooting.md has the same rows, with what to do.
CHECKS: Mapping[str, str] = {
    "server.running": "a server uses this store and answers at the address `http`",
    "server.descriptors": "files and connections that the server may have open at once",
    "intake.waiting": "statuses that wait for the store",
    "source.connected": "a source has its link, or its sockets are open; without a server, the switch lets us in",
    "source.link": "how often a source's link has dropped",
    "source.silent": "when a source said something last",
    "source.clock": "the switch's clock against ours",
    "source.packets": "HEP packets that were refused or dropped",
    "calls.unmatched": "calls that match no line",
    "calls.inferred": "calls whose end was missed",
    "store.opens": "the store can be opened",
    "store.write": "how long a durable write takes",
    "store.file": "who may read the store's files, and how large they are",
    "store.place": "what kind of file system the store lies on",
    "store.space": "room on the store's disk",
    "store.clock": "our clock against what the store has accepted",
    "callback.health": "how posts to a URL have ended lately",
    "callback.backlog": "deliveries of a URL that wait or are dead",
    "callback.reach": "whether a connection to a URL's server can be opened now",
    "registry": "clients, lines and URLs fit together",
    "settings.secret_key": "the secrets in the store are encrypted",
    "settings.file": "who may read the settings' file",
    "settings.hep": "whom HEP packets are believed from",
    "settings.http": "the API is not offered in clear to the network",
    "settings.networks": "networks that are allowed, or trusted, are not too wide",
    "settings.authorities": "certificate authorities for callbacks over https",
    "settings.time_zone": "the zone of the times that customers read",
    "settings.log": "the log shows no whole telephone numbers",
    "machine.clock": "the machine's clock is synchronised",
}


class Level(StrEnum):
    """How bad it is: nothing to do; something to look at; something does not work."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. `advice` says what to do, `data` has the numbers behind it."""

    id: str
    level: Level
    text: str
    subject: str = ""
    advice: str = ""
    examples: tuple[str, ...] = ()
    data: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.id not in CHECKS:
            msg = f"there is no check {self.id}"
            raise ValueError(msg)

    def told(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "id": self.id,
            "subject": self.subject,
            "level": str(self.level),
            "text": self.text,
            "advice": self.advice,
            "examples": list(self.examples),
            "data": dict(self.data),
        }


def ok(check: str, text: str, subject: str = "", **data: Any) -> Finding:
    """Nothing to do."""
    return Finding(check, Level.OK, text, subject, data=data)


def warning(check: str, text: str, advice: str, subject: str = "", **data: Any) -> Finding:
    """Something to look at."""
    return Finding(check, Level.WARNING, text, subject, advice, data=data)


def problem(check: str, text: str, advice: str, subject: str = "", **data: Any) -> Finding:
    """Something does not work."""
    return Finding(check, Level.PROBLEM, text, subject, advice, data=data)


def counts_of(findings: Sequence[Finding]) -> dict[str, int]:
    """How many there are of each level."""
    found = Counter(finding.level for finding in findings)
    return {str(level): found[level] for level in Level}


def worst_of(findings: Sequence[Finding]) -> Level:
    """The level that counts."""
    counts = counts_of(findings)
    return next((level for level in (Level.PROBLEM, Level.WARNING) if counts[level]), Level.OK)
