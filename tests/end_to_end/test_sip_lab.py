"""The laboratory itself: each scenario puts the SIP on the wire that its row in the table promises."""

import os
import socket
import struct
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from tests.support.hep_capture import HepCapture
from tests.support.requirements import require
from tests.support.sip_lab.lab import Run, SipLab
from tests.support.sip_lab.messages import SipMessage, decode_hep3, hep3_chunks
from tests.support.sip_lab.programs import ProgramError, free_udp_port
from tests.support.sip_lab.scenarios import MOVED_TO, SCENARIOS

pytestmark = pytest.mark.sip

# As many scenarios at once as a small machine can serve without repeating itself.
AT_ONCE = 6

ANSWERED = "INVITE 180 200 ACK BYE 200/BYE"

# What each hop carries, repeats apart: the caller's hop, then one for each phone. A question mark: may be lost.
LADDERS = {
    "answered_caller_hangs_up": (f"100 {ANSWERED}", ANSWERED),
    "answered_callee_hangs_up": (f"100 {ANSWERED}", ANSWERED),
    "early_media_183_answered": ("INVITE 100 183 200 ACK BYE 200/BYE", "INVITE 183 200 ACK BYE 200/BYE"),
    "bye_with_reason_q850": (f"100 {ANSWERED}", ANSWERED),
    "reinvite_and_update": (f"100 {ANSWERED} UPDATE 200/UPDATE", f"100 {ANSWERED} UPDATE 200/UPDATE"),
    "reinvite_refused_488": (f"100 {ANSWERED} 488", f"{ANSWERED} 488"),
    "auth_407_answered": (f"407 100 {ANSWERED}", ANSWERED),
    "auth_407_refused": ("INVITE 407 ACK",),
    "busy_486": ("INVITE 100 486 ACK", "INVITE 486 ACK"),
    "busy_480_reason_q850_17": ("INVITE 100 480 ACK", "INVITE 480 ACK"),
    "no_answer_480": ("INVITE 100 180 480 ACK", "INVITE 180 480 ACK"),
    "unreachable_480": ("INVITE 100 480 ACK", "INVITE 480 ACK"),
    "rejected_603": ("INVITE 100 180 603 ACK", "INVITE 180 603 ACK"),
    "congestion_503": ("INVITE 100 500 ACK", "INVITE 503 ACK"),
    "failed_500": ("INVITE 100 500 ACK", "INVITE 500 ACK"),
    "not_found_404": ("INVITE 404 ACK",),
    "unreachable_408": ("INVITE 100 408 ACK", "INVITE"),
    "ring_timeout": ("INVITE 100 180 408 ACK", "INVITE 180 CANCEL 200/CANCEL 487 ACK"),
    "cancelled": ("INVITE 100 180 CANCEL 200/CANCEL 487 ACK", "INVITE 180 CANCEL 200/CANCEL 487 ACK"),
    "cancel_race_200": (f"100 {ANSWERED} CANCEL 200/CANCEL", f"{ANSWERED} CANCEL 200/CANCEL"),
    "fork_parallel_second_answers": (f"100 {ANSWERED}", "INVITE 180 CANCEL 200/CANCEL 487 ACK", ANSWERED),
    "fork_parallel_nobody_answers": ("INVITE 100 180 480 ACK", "INVITE 486 ACK", "INVITE 180 480 ACK"),
    "fork_serial_busy_then_answers": (f"100 {ANSWERED}", "INVITE 486 ACK", ANSWERED),
    "fork_serial_timeout_then_answers": (f"100 {ANSWERED}", "INVITE 180 CANCEL 200/CANCEL 487 ACK", ANSWERED),
    "redirect_302_followed": (f"100 302 {ANSWERED}", "INVITE 302 ACK", ANSWERED),
    "redirect_302_not_followed": ("INVITE 100 302 ACK", "INVITE 302 ACK"),
    "lossy": ("INVITE 100 180 200 ACK? BYE 200/BYE?", "INVITE 180 200 ACK? BYE 200/BYE?"),
    "load": (f"100 {ANSWERED}", ANSWERED),
}


@dataclass(repr=False)
class Trace:
    """A scenario's run, and what the proxy mirrored of each of its calls, in the order of the proxy's clock."""

    run: Run
    calls: list[list[SipMessage]]

    @property
    def messages(self) -> list[SipMessage]:
        return [message for call in self.calls for message in call]

    @staticmethod
    def hop(call: list[SipMessage], port: int) -> list[SipMessage]:
        return [message for message in call if port in (message.source[1], message.destination[1])]

    def told_caller(self, call: list[SipMessage]) -> list[SipMessage]:
        """The final replies to the caller's own INVITEs outside a dialogue."""
        opening = [m.branch for m in call if m.method == "INVITE" and m.status is None and not m.in_dialogue]
        return [
            message
            for message in self.hop(call, self.run.caller_port)
            if message.method == "INVITE" and (message.status or 0) >= 200 and message.branch in opening
        ]


@pytest.fixture(scope="module")
def traces() -> dict[str, Trace | ProgramError]:
    """All scenarios, run once through one proxy, several at a time."""
    require("kamailio", "sipp")
    names = sorted(SCENARIOS, key=lambda name: -SCENARIOS[name].calls)
    with HepCapture() as collector:
        with SipLab(collector.port) as lab, ThreadPoolExecutor(AT_ONCE) as pool:
            runs = dict(zip(names, pool.map(lambda name: _run(lab, name), names), strict=True))
            proxy_log = lab.proxy_log
        collector.stop()
        messages = [decode_hep3(datagram.payload) for datagram in collector.datagrams]
    assert not [line for line in proxy_log.splitlines() if " ERROR: " in line or " CRITICAL: " in line]
    calls: dict[str, list[SipMessage]] = defaultdict(list)
    for message in sorted(messages, key=lambda message: message.at):
        calls[message.call_id].append(message)
    return {
        name: run if isinstance(run, ProgramError) else Trace(run, [calls[call_id] for call_id in run.call_ids])
        for name, run in runs.items()
    }


def _run(lab: SipLab, name: str) -> Run | ProgramError:
    try:
        return lab.run(name)
    except ProgramError as error:
        return error


@pytest.fixture(params=SCENARIOS)
def trace(request: pytest.FixtureRequest, traces: dict[str, Trace | ProgramError]) -> Trace:
    found = traces[request.param]
    if isinstance(found, ProgramError):
        raise found
    return found


def only(traces: dict[str, Trace | ProgramError], name: str) -> list[SipMessage]:
    """The messages of a scenario's one call."""
    found = traces[name]
    assert isinstance(found, Trace), found
    return found.messages


def test_each_hop_carries_what_the_table_says(trace: Trace) -> None:
    ports = (trace.run.caller_port, *trace.run.phone_ports)
    for port, ladder in zip(ports, LADDERS[trace.run.scenario.name], strict=True):
        may = {word.removesuffix("?") for word in ladder.split()}
        must = {word for word in ladder.split() if not word.endswith("?")}
        for call in trace.calls:
            assert must <= {message.word for message in trace.hop(call, port)} <= may


def test_the_caller_is_told_what_the_truth_says(trace: Trace) -> None:
    for call in trace.calls:
        assert trace.told_caller(call)[-1].status == trace.run.scenario.truth.told_caller


def test_the_side_that_hangs_up_sends_the_bye(trace: Trace) -> None:
    ports = {"origem": trace.run.caller_port, "destino": next(iter(trace.run.phone_ports), None)}
    for call in trace.calls:
        byes = [message for message in call if message.word == "BYE"]
        assert bool(byes) == ("atendeu" in trace.run.scenario.truth.statuses)
        if byes:
            assert byes[0].source[1] == ports[trace.run.scenario.truth.ended_by]


def test_the_reached_phone_is_the_one_that_answers(trace: Trace) -> None:
    row = trace.run.scenario
    for call in trace.calls:
        answers = [m for m in call if m.word == "200" and m.source[1] in trace.run.phone_ports]
        assert bool(answers) == ("atendeu" in row.truth.statuses)
        for answer in answers:
            assert f"<sip:{row.truth.reached or row.callee}@127.0.0.1:{answer.source[1]}>" == answer.header("Contact")


def test_no_lab_header_reaches_a_phone(trace: Trace) -> None:
    for message in trace.messages:
        if message.destination[1] in trace.run.phone_ports:
            assert not [name for name, _ in message.headers if name.startswith("X-Lab-")]


def test_a_lossy_line_makes_them_repeat_themselves(traces: dict[str, Trace | ProgramError]) -> None:
    sent = [(m.call_id, m.branch, m.word, m.source, m.destination) for m in only(traces, "lossy") if m.word != "ACK"]
    assert len(sent) > len(set(sent))


def test_reason_headers_arrive(traces: dict[str, Trace | ProgramError]) -> None:
    busy = [m.header("Reason") for m in only(traces, "busy_480_reason_q850_17") if m.word == "480"]
    bye = [m.header("Reason") for m in only(traces, "bye_with_reason_q850") if m.word == "BYE"]
    assert busy == ['Q.850;cause=17;text="User busy"'] * 2
    assert bye == ['Q.850;cause=16;text="Normal call clearing"'] * 2


def test_a_lost_fork_is_cancelled_as_completed_elsewhere(traces: dict[str, Trace | ProgramError]) -> None:
    reasons = {
        name: {m.header("Reason") for m in only(traces, name) if m.word == "CANCEL"}
        for name in ("fork_parallel_second_answers", "ring_timeout", "cancelled")
    }
    assert reasons == {
        "fork_parallel_second_answers": {'SIP;cause=200;text="Call completed elsewhere"'},
        "ring_timeout": {""},
        "cancelled": {""},
    }


@pytest.mark.parametrize(
    "name", ["fork_parallel_second_answers", "fork_serial_busy_then_answers", "fork_serial_timeout_then_answers"]
)
def test_branches_of_a_fork_differ_in_their_last_digit_only(name: str, traces: dict[str, Trace | ProgramError]) -> None:
    found = traces[name]
    assert isinstance(found, Trace)
    invites = [m for m in found.messages if m.word == "INVITE" and m.destination[1] in found.run.phone_ports]
    branches = {m.branch for m in invites}
    assert {branch[-2:] for branch in branches} == {".0", ".1"}
    assert len({branch[:-2] for branch in branches}) == 1
    assert {m.header("CSeq") for m in invites} == {"1 INVITE"}


def test_a_redirect_names_the_new_number(traces: dict[str, Trace | ProgramError]) -> None:
    for name in ("redirect_302_followed", "redirect_302_not_followed"):
        contacts = {m.header("Contact") for m in only(traces, name) if m.word == "302"}
        assert len(contacts) == 1
        assert f"sip:{MOVED_TO}@" in contacts.pop()


def test_call_ids_are_unique(traces: dict[str, Trace | ProgramError]) -> None:
    ids = [call_id for trace in traces.values() if isinstance(trace, Trace) for call_id in trace.run.call_ids]
    assert len(ids) == len(set(ids)) == sum(row.calls for row in SCENARIOS.values())


def test_what_is_given_replaces_the_rows_own() -> None:
    require("kamailio", "sipp")
    with HepCapture() as collector, SipLab(collector.port) as lab:
        run = lab.run("answered_caller_hangs_up", caller="554130600301", callee="5511977770009", calls=2, ring_ms=50, talk_ms=50)
        wanted = len(run.call_ids) * 13
        messages = [decode_hep3(d.payload) for d in collector.wait_for(lambda datagrams: len(datagrams) >= wanted)]
    assert {message.call_id for message in messages} == set(run.call_ids)
    assert all("<sip:554130600301@127.0.0.1>" in message.header("From") for message in messages)
    assert all("<sip:5511977770009@127.0.0.1>" in message.header("To") for message in messages)


def test_the_auth_key_goes_with_each_packet() -> None:
    require("kamailio", "sipp")
    with HepCapture() as collector:
        with SipLab(collector.port, auth_key="open sesame") as lab:
            lab.run("not_found_404")
        collector.stop()
        keys = {hep3_chunks(datagram.payload)[14] for datagram in collector.datagrams}
    assert keys == {b"open sesame"}


@pytest.mark.parametrize("version", [1, 2])
def test_older_hep_versions_can_be_asked_for(version: int) -> None:
    require("kamailio", "sipp")
    with HepCapture() as collector:
        with SipLab(collector.port, hep_version=version) as lab:
            lab.run("not_found_404")
        collector.stop()
        versions = {datagram.payload[0] for datagram in collector.datagrams}
    assert versions == {version}


def test_the_proxy_does_not_mind_a_collector_that_is_away() -> None:
    require("kamailio", "sipp")
    with SipLab(free_udp_port()) as lab:
        lab.run("busy_486")


def test_a_phone_that_sees_something_else_is_an_error_and_nothing_stays_behind() -> None:
    require("kamailio", "sipp")
    # The caller waits for a 603, and the phone is busy; a second phone waits for a call that never comes.
    busy = SCENARIOS["busy_486"]
    wrong = replace(busy, params={**busy.params, "code": "603"}, phones=(*busy.phones, *busy.phones))
    with HepCapture() as collector:
        with SipLab(collector.port) as lab:
            with pytest.raises(ProgramError, match=r"(?s)exit status 1.*received 'SIP/2.0 486 Busy Here"):
                lab.run(wrong)
            groups = lab.process_groups
            assert len(groups) == 1
        assert lab.process_groups == []
    with pytest.raises(ProcessLookupError):
        os.killpg(groups[0], 0)


def test_a_capture_is_written_as_a_pcap_that_others_can_read(tmp_path: Path) -> None:
    with HepCapture() as collector:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.bind(("127.0.0.1", 0))
            port = sender.getsockname()[1]
            for payload in (b"first", b"second one"):
                sender.sendto(payload, ("127.0.0.1", collector.port))
        collector.stop()
        collector.write_pcap(tmp_path / "some.pcap")
    content = (tmp_path / "some.pcap").read_bytes()
    assert struct.unpack_from("<IHHiIII", content) == (0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    offset, payloads = 24, []
    while offset < len(content):
        seconds, microseconds, captured, length = struct.unpack_from("<IIII", content, offset)
        frame = content[offset + 16 : offset + 16 + captured]
        assert captured == length == len(frame)
        assert abs(seconds + microseconds / 1e6 - time.time()) < 60
        assert frame[12:14] == b"\x08\x00"
        ip, udp = frame[14:34], frame[34:42]
        # The words of an intact IPv4 header add up to all ones.
        total = sum(struct.unpack(">10H", ip))
        assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
        assert struct.unpack_from(">H", ip, 2)[0] == len(frame) - 14
        assert struct.unpack_from(">HHH", udp) == (port, collector.port, len(frame) - 34)
        payloads.append(frame[42:])
        offset += 16 + captured
    assert payloads == [b"first", b"second one"]


def test_a_missing_program_skips_here_and_fails_where_all_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("TOQUE_REQUIRE_ALL", raising=False)
    with pytest.raises(pytest.skip.Exception, match="needs sipp: apt install sip-tester"):
        require("sipp")
    monkeypatch.setenv("TOQUE_REQUIRE_ALL", "1")
    with pytest.raises(pytest.fail.Exception, match="needs php: apt install php-cli"):
        require("php")
