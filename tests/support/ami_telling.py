"""What the owners of numbers are told of what a made-up Asterisk says."""

from datetime import timedelta

from tests.support.ami_recordings import AmiWatcher
from tests.support.ami_switch import Chan, Pbx

from toque.calls.ami_names import SwitchRules
from toque.calls.lines import LineBook, parse_line
from toque.calls.model import StatusChange

DID = "554130600300"
MOBILE = "5541999990001"
RULES = SwitchRules(trunks=("PJSIP/trunk*",), tenant_variable="TENANT")


def lines(*numbers: str) -> LineBook:
    return LineBook.of([parse_line("acme", number, number) for number in numbers])


def played(pbx: Pbx, *numbers: str, rules: SwitchRules = RULES) -> AmiWatcher:
    watcher = AmiWatcher(lines(*(numbers or (DID, "1001"))), rules=rules)
    for at, message in pbx.said:
        watcher.feed(message, at)
    watcher.pass_time(timedelta(minutes=1))
    assert watcher.ledger.refused == []
    return watcher


def calls(pbx: Pbx, *numbers: str, rules: SwitchRules = RULES) -> list[list[StatusChange]]:
    return [changes for changes in played(pbx, *numbers, rules=rules).ledger.told.values() if changes]


def call(pbx: Pbx, *numbers: str, rules: SwitchRules = RULES) -> list[StatusChange]:
    (changes,) = calls(pbx, *numbers, rules=rules)
    return changes


def words(changes: list[StatusChange]) -> list[str]:
    return [str(change.status) for change in changes]


def in_talk(pbx: Pbx) -> tuple[Chan, Chan]:
    """Somebody from outside talks to 1001."""
    a = pbx.inbound()
    b = pbx.dial(a, "PJSIP/1001")
    pbx.ring(a, b)
    pbx.wait(2).talk(a, b)
    pbx.wait(3)
    return a, b
