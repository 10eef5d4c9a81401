"""An Asterisk that says what it does, in its own order: scenarios that were not recorded are written with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from tests.support.ami_recordings import event

from toque.calls.ami_wire import AmiMessage

START = datetime(2026, 11, 23, 12, tzinfo=UTC)
STATES = {0: "Down", 4: "Ring", 5: "Ringing", 6: "Up"}


@dataclass
class Chan:
    """A channel as Asterisk sees it."""

    name: str
    uid: str
    linkedid: str
    number: str
    exten: str
    context: str
    state: int = 0
    bridge: str = ""
    application: str = ""

    def fields(self, prefix: str = "") -> dict[str, str]:
        values = {
            "Channel": self.name, "ChannelState": str(self.state), "ChannelStateDesc": STATES[self.state],
            "CallerIDNum": self.number or "<unknown>", "ConnectedLineNum": "<unknown>", "AccountCode": "", "Context": self.context,
            "Exten": self.exten, "Uniqueid": self.uid, "Linkedid": self.linkedid,
        }  # fmt: skip
        return {prefix + key: value for key, value in values.items()}


@dataclass
class Pbx:
    """Everything that was said so far, with its moments."""

    said: list[tuple[datetime, AmiMessage]] = field(default_factory=list)
    now: datetime = START
    numbers: int = 0

    def wait(self, seconds: float) -> Pbx:
        self.now += timedelta(seconds=seconds)
        return self

    def say(self, name: str, *parts: dict[str, str], **fields: str) -> None:
        merged = {key: value for part in parts for key, value in part.items()} | fields
        self.said.append((self.now, event(name, **merged)))
        self.now += timedelta(milliseconds=1)

    def chan(
        self, peer: str, exten: str = "s", *, context: str = "internal", number: str = "", of: Chan | None = None, state: int = 0
    ) -> Chan:
        """A new channel, of another one's call or of its own."""
        uid = f"1795400000.{self.numbers}"
        name = peer if ";" in peer else f"{peer}-{self.numbers:08x}"
        self.numbers += 1
        chan = Chan(name, uid, of.linkedid if of is not None else uid, number, exten, context, state)
        self.say("Newchannel", chan.fields())
        return chan

    def caller(self, peer: str, exten: str, *, number: str = "", context: str = "internal") -> Chan:
        """Somebody calls the switch."""
        return self.chan(peer, exten, context=context, number=number or peer.partition("/")[2], state=4)

    def inbound(self, exten: str = "554130600300") -> Chan:
        return self.caller("PJSIP/trunk", exten, number="5511988887777", context="from-trunk")

    def local(self, exten: str, *, of: Chan | None = None, context: str = "internal") -> tuple[Chan, Chan]:
        stem = f"Local/{exten}@{context}-{self.numbers:08x}"
        one = self.chan(f"{stem};1", exten, context=context, of=of)
        two = self.chan(f"{stem};2", exten, context=context, of=one, state=4)
        self.say("LocalBridge", one.fields("LocalOne"), two.fields("LocalTwo"))
        return one, two

    def set(self, chan: Chan, state: int) -> None:
        chan.state = state
        self.say("Newstate", chan.fields())

    def begin_dial(self, caller: Chan | None, called: Chan, string: str = "") -> Chan:
        string = string or called.name.partition("/")[2].rpartition("-")[0]
        self.say("DialBegin", caller.fields() if caller else {}, called.fields("Dest"), DialString=string)
        return called

    def dial(self, caller: Chan, peer: str, string: str = "", *, number: str = "") -> Chan:
        """Call somebody for somebody."""
        called = self.chan(peer, of=caller, number=number or peer.partition("/")[2])
        return self.begin_dial(caller, called, string)

    def dial_state(self, caller: Chan | None, called: Chan, status: str = "RINGING") -> None:
        self.say("DialState", caller.fields() if caller else {}, called.fields("Dest"), DialStatus=status)

    def ring(self, caller: Chan | None, called: Chan) -> None:
        self.set(called, 5)
        self.dial_state(caller, called)

    def end_dial(self, caller: Chan | None, called: Chan, status: str, **more: str) -> None:
        self.say("DialEnd", caller.fields() if caller else {}, called.fields("Dest"), DialStatus=status, **more)

    def answer(self, caller: Chan | None, called: Chan) -> None:
        self.set(called, 6)
        self.end_dial(caller, called, "ANSWER")

    def bridge(self, *chans: Chan) -> str:
        name = f"bridge-{len(self.said)}"
        for chan in chans:
            self.enter(chan, name)
        return name

    def enter(self, chan: Chan, bridge: str, **more: str) -> None:
        chan.bridge = bridge
        self.say("BridgeEnter", {"BridgeUniqueid": bridge, "BridgeTechnology": "simple_bridge"}, chan.fields(), **more)

    def leave(self, chan: Chan) -> None:
        if chan.bridge:
            self.say("BridgeLeave", {"BridgeUniqueid": chan.bridge}, chan.fields())
            chan.bridge = ""

    def talk(self, caller: Chan, called: Chan) -> None:
        """The called one answers, and both are connected."""
        self.answer(caller, called)
        if caller.state != 6:
            self.set(caller, 6)
        self.bridge(called, caller)

    def ask(self, chan: Chan, cause: int = 16, tech: int | None = None) -> None:
        """The far end of a channel hangs up, or refuses."""
        more = {"TechCause": str(tech)} if tech else {}
        self.say("HangupRequest", chan.fields(), Cause=str(cause), **more)

    def soft(self, chan: Chan) -> None:
        self.say("SoftHangupRequest", chan.fields(), Cause="16")

    def hang(self, chan: Chan, cause: int = 16, tech: int | None = None) -> None:
        self.leave(chan)
        more = {"TechCause": str(tech)} if tech else {}
        self.say("Hangup", chan.fields(), {"Cause": str(cause), "Cause-txt": f"cause {cause}"}, **more)

    def refuse(self, caller: Chan | None, called: Chan, cause: int, tech: int | None = None, status: str = "NOANSWER") -> None:
        """The called one refuses."""
        self.ask(called, cause, tech)
        self.end_dial(caller, called, status)
        self.hang(called, cause, tech)

    def give_up(self, caller: Chan, *called: Chan) -> None:
        """The caller hangs up before anybody answered."""
        self.ask(caller, 127, 487)
        for chan in called:
            self.end_dial(caller, chan, "CANCEL")
            self.hang(chan, 127, 500)
        self.hang(caller, 127, 487)

    def time_out(self, caller: Chan, *called: Chan) -> None:
        for chan in called:
            self.end_dial(caller, chan, "NOANSWER")
        for chan in called:
            self.hang(chan, 0)

    def end(self, first: Chan, *others: Chan) -> None:
        """Somebody hangs up, and so all do."""
        self.ask(first)
        self.hang(first)
        for chan in others:
            self.soft(chan)
            self.hang(chan)
