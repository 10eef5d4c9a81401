"""Record the package's demo: a busy quarter of a minute at a small call centre, as a real Kamailio mirrors it by HEP.

    python tools/record_demo.py src/toque/recordings/demo.pcap

Needs Debian's kamailio and sip-tester. Beside the pcap goes its truth (demo.truth.json): what the phones did in each call.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.support.hep_capture import HepCapture  # noqa: E402 - the laboratory is not an installed package
from tests.support.sip_lab.lab import Run, SipLab  # noqa: E402
from tests.support.sip_lab.messages import SipMessage, decode_hep3  # noqa: E402
from tests.support.sip_lab.scenarios import SCENARIOS, Scenario  # noqa: E402

MAX_BYTES = 300_000
# How far a recorded ring or talk time may be from the planned one: the phones' timers, and a busy machine.
TOLERANCE_S = 0.3

FINALS = {
    "desligou": "hung_up",
    "ocupado": "busy",
    "nao_atendeu": "no_answer",
    "cancelou": "cancelled",
    "recusou": "rejected",
    "congestionado": "congestion",
    "numero_invalido": "invalid_number",
    "indisponivel": "unreachable",
    "falhou": "failed",
}
SIDES = {"origem": "caller", "destino": "callee"}


@dataclass(frozen=True)
class DemoCall:
    """One call of the plan. `ring_s` is also the caller's patience and the proxy's ring timer, where those end it."""

    at_s: float
    direction: str
    caller: str
    callee: str
    scenario: str
    ring_s: float = 0
    talk_s: float = 0

    @property
    def row(self) -> Scenario:
        row = SCENARIOS[self.scenario]
        ring = {"patience_ms": _ms(self.ring_s), "timeout_ms": _ms(self.ring_s)}
        return replace(
            row, caller=self.caller, callee=self.callee, ring_ms=round(self.ring_s * 1000), talk_ms=round(self.talk_s * 1000),
            params={**row.params, **ring},
        )  # fmt: skip


# The client's own numbers are 554130600300 to 554130600309 and the SIP user auth1.
PLAN = (
    DemoCall(0.0, "made", "554130600301", "5511977770001", "answered_caller_hangs_up", 2.0, 6.5),
    DemoCall(0.6, "received", "5541988880001", "554130600300", "answered_callee_hangs_up", 1.5, 8.0),
    DemoCall(1.4, "made", "554130600302", "5511977770002", "busy_486"),
    DemoCall(2.1, "made", "auth1", "5511977770003", "auth_407_answered", 1.8, 5.0),
    DemoCall(2.9, "received", "5541988880002", "554130600304", "no_answer_480", 5.0),
    DemoCall(3.5, "made", "554130600303", "5511977770004", "ring_timeout", 4.0),
    DemoCall(4.2, "made", "554130600302", "5511977770099", "not_found_404"),
    DemoCall(4.9, "made", "554130600305", "5511977770005", "cancelled", 2.5),
    DemoCall(5.6, "received", "5541988880003", "554130600306", "rejected_603", 1.2),
    DemoCall(6.3, "made", "554130600302", "5511977770006", "early_media_183_answered", 1.6, 4.2),
    DemoCall(7.0, "made", "554130600307", "5511977770007", "congestion_503"),
    DemoCall(7.5, "received", "5541988880004", "554130600300", "fork_parallel_second_answers", 2.2, 5.5),
    DemoCall(8.2, "made", "554130600308", "5511977770008", "unreachable_480"),
    DemoCall(8.8, "received", "5541988880005", "554130600309", "cancelled", 3.0),
    DemoCall(9.5, "made", "554130600305", "5511977770009", "answered_callee_hangs_up", 1.0, 4.0),
    DemoCall(10.4, "received", "5541988880002", "554130600304", "answered_caller_hangs_up", 1.5, 3.5),
    DemoCall(11.1, "made", "554130600307", "5511977770010", "failed_500"),
    DemoCall(11.8, "received", "5541988880006", "554130600301", "busy_486"),
    DemoCall(12.4, "made", "554130600303", "5511977770004", "answered_caller_hangs_up", 1.2, 2.5),
)


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__)
        return 2
    pcap = Path(arguments[0])
    with HepCapture() as collector:
        with SipLab(collector.port) as lab:
            runs = _make_calls(lab)
        collector.stop()
    calls = [_truth(call, run) for call, run in zip(PLAN, runs, strict=True)]
    complaints = _complaints(calls, runs, [decode_hep3(datagram.payload) for datagram in collector.datagrams])
    if complaints:
        print(*complaints, sep="\n", file=sys.stderr)
        return 1
    collector.write_pcap(pcap)
    if pcap.stat().st_size > MAX_BYTES:
        print(f"{pcap} is larger than {MAX_BYTES} bytes", file=sys.stderr)
        return 1
    about = "A small call centre for a quarter of a minute: its own numbers are 554130600300 to 554130600309 and auth1."
    truth = {"switch": "Kamailio 5.6.3", "scenario": "demo", "about": about, "calls": calls}
    pcap.with_suffix(".truth.json").write_text(json.dumps(truth, indent=1) + "\n")
    print(f"{pcap}: {len(calls)} calls, {len(collector.datagrams)} packets, {pcap.stat().st_size} bytes")
    return 0


def _make_calls(lab: SipLab) -> list[Run]:
    begin = time.monotonic()

    def make(call: DemoCall) -> Run:
        time.sleep(max(0.0, begin + call.at_s - time.monotonic()))
        return lab.run(call.row)

    with ThreadPoolExecutor(len(PLAN)) as pool:
        return list(pool.map(make, PLAN))


def _truth(call: DemoCall, run: Run) -> dict[str, Any]:
    truth = run.scenario.truth
    answered = "atendeu" in truth.statuses
    told = {
        "call_id": run.call_ids[0],
        "direction": call.direction,
        "caller": call.caller,
        "callee": call.callee,
        "final": FINALS[truth.statuses[-1]],
        "statuses": truth.statuses,
        "ring_s": call.ring_s,
        "talk_s": call.talk_s,
        "sip_final": truth.sip,
    }
    if answered:
        told["hung_up_by"] = SIDES[truth.ended_by]
    if truth.reached is not None:
        told["reached"] = truth.reached
    return told


def _complaints(calls: list[dict[str, Any]], runs: list[Run], messages: Iterable[SipMessage]) -> list[str]:
    """Where the recording does not show what the truth claims."""
    recorded: dict[str, list[SipMessage]] = defaultdict(list)
    for message in sorted(messages, key=lambda message: message.at):
        recorded[message.call_id].append(message)
    strangers = recorded.keys() - {call["call_id"] for call in calls}
    return [f"{call_id} belongs to no call" for call_id in strangers] + [
        f"{call['call_id']}: {name} is {seen}, not {wanted}"
        for call, run in zip(calls, runs, strict=True)
        for name, seen, wanted in _compared(call, run, recorded[call["call_id"]])
        if not _alike(seen, wanted)
    ]


def _compared(call: dict[str, Any], run: Run, messages: list[SipMessage]) -> list[tuple[str, Any, Any]]:
    at: dict[str, float] = {}
    codes = set()
    for message in messages:
        at.setdefault(message.word, message.at)
        if message.method == "INVITE" and message.status is not None:
            codes.add(message.status)
    ringing = at.get("180", at.get("183"))
    answered = at["200"] if call["final"] == "hung_up" else None
    ended = at.get("BYE") or at.get("CANCEL") or at[str(run.scenario.truth.told_caller)]
    byes = [message.source[1] == run.caller_port for message in messages if message.word == "BYE"]
    return [
        ("ring_s", (answered or ended) - ringing if ringing else 0, call["ring_s"]),
        ("talk_s", at["BYE"] - answered if answered else 0, call["talk_s"]),
        ("sip_final", call["sip_final"] in codes, True),
        ("chamando", ringing is not None, "chamando" in call["statuses"]),
        ("hung_up_by", ("caller" if byes[0] else "callee") if byes else None, call.get("hung_up_by")),
    ]


def _alike(seen: Any, wanted: Any) -> bool:
    if isinstance(wanted, float | int) and not isinstance(wanted, bool):
        return bool(abs(seen - wanted) <= TOLERANCE_S)
    return bool(seen == wanted)


def _ms(seconds: float) -> str:
    return str(round(seconds * 1000))


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
