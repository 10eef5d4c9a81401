"""From Asterisk's manager events to signals.

Events only change what is known: channels and bridges (`ami_channels.py`), legs and calls (`ami_book.py`). After each one,
whatever has become true of the calls concerned is said, once (`ami_news.py`). So it does not matter much which of two events
comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import ClassVar

from toque.calls.ami_book import CallBook
from toque.calls.ami_calls import AmiCall, End, Origin, evidence, is_trying, q850_of, sip_of, word_of_reason
from toque.calls.ami_channels import Channel
from toque.calls.ami_names import SwitchRules, is_outside_number, named_number, reached_number
from toque.calls.ami_news import CallNews, Signals
from toque.calls.ami_transfers import Transfers
from toque.calls.ami_wire import AmiMessage
from toque.calls.model import Direction, Party, Signal, SignalKind

_VOICEMAIL = frozenset({"voicemail"})
_HOLDING = "holding_bridge"  # parking lots and the like: who is in one hears music
_OWN_REFUSAL = range(400, 700)
# Events that change who is connected, or what an end means: calls are stored again, also where nothing is told.
_TELLING = frozenset(
    {
        "DialBegin", "DialEnd", "OriginateResponse", "BridgeEnter", "BridgeLeave", "BlindTransfer", "AttendedTransfer", "Pickup",
        "QueueCallerJoin", "QueueCallerLeave", "AgentConnect", "Newstate", "BridgeMerge", "HangupRequest", "SoftHangupRequest",
        "Hangup", "Rename",
    }
)  # fmt: skip


class AmiEvents:
    """The calls of one Asterisk. Give it events, take signals."""

    def __init__(self, source: str, rules: SwitchRules | None = None) -> None:
        self.source = source
        self.book = CallBook(rules or SwitchRules())
        self.news = CallNews(source, self.book)
        self.transfers = Transfers(self.book, self.news)

    def read(self, message: AmiMessage, at: datetime, now: datetime) -> Iterable[Signal]:
        """The signals that one event gives. `at` is the switch's time if it says one, else ours; `now` is ours."""
        self.book.now = now
        handle = self._HANDLERS.get(message.event)
        self.news.is_telling = message.event in _TELLING
        return () if handle is None else handle(self, message, at)

    # Channels

    def _channel(self, message: AmiMessage, prefix: str = "") -> Channel | None:
        """The channel that an event speaks of, with what the event says of it; None for one that is not known."""
        channel = self.book.board.channels.get(message.get(prefix + "uniqueid"))
        if channel is not None:
            channel.learn(message, prefix)
            if message.variables and not prefix:
                self.book.learn_variables(channel, message.variables)
        return channel

    def _newchannel(self, message: AmiMessage, at: datetime) -> Signals:
        uid, name = message.get("uniqueid"), message.get("channel")
        known = self.book.board.channels.get(uid)
        if known is None and uid and name:
            linkedid = message.get("linkedid") or uid
            channel = Channel(uid=uid, name=name, linkedid=linkedid, made_at=at, own_number=message.get("calleridnum"))
            channel.learn(message)
            if self.book.board.add(channel):
                self.book.join(channel, message)
            known = channel
        yield from self.news.say(known, at)

    def _newstate(self, message: AmiMessage, at: datetime) -> Signals:
        channel = self._channel(message)
        if channel is not None:
            self.book.note_state(channel, at)
        yield from self.news.say(channel, at)

    def _newcallerid(self, message: AmiMessage, at: datetime) -> Signals:
        channel = self._channel(message)
        call = self.book.call_of(channel)
        if channel is not None and call is not None and channel.uid in (call.principal, call.hub) and not call.is_answered:
            is_callers = call.origin is Origin.CALLER or (call.origin is Origin.CLICK and call.is_caller_ready)
            if is_callers and channel.number not in (call.dialled, channel.connected):
                self.book.learn_callers(call, channel.number)
        yield from self.news.say(channel, at)

    def _rename(self, message: AmiMessage, at: datetime) -> Signals:
        channel = self._channel(message)
        name = message.get("newname")
        if channel is not None and name:
            self.book.board.rename(channel, name)
        yield from self.news.say(channel, at)

    def _touched(self, message: AmiMessage, at: datetime) -> Signals:
        """An event that says no more than what it says of its channel."""
        yield from self.news.say(self._channel(message), at)

    # Dialling

    def _dial_begin(self, message: AmiMessage, at: datetime) -> Signals:
        dialler, called = self._channel(message), self._channel(message, "dest")
        if called is None:
            return
        dial_string = message.get("dialstring")
        called.reaches = reached_number(dial_string, called.name, called.own_number)
        if dialler is None:
            call = self.book.carried_by(called.uid)
            if call is not None and not message.get("uniqueid") and call.origin is Origin.UNKNOWN:
                self.book.originate(call, called, dial_string)
            elif call is None:
                self.book.called_for(called, at)
        else:
            self.book.dialled(dialler, called, dial_string, at)
        yield from self.news.say(called, at)

    def _dial_state(self, message: AmiMessage, at: datetime) -> Signals:
        self._channel(message)
        called = self._channel(message, "dest")
        call = self.book.call_of(called)
        if called is None or call is None:
            return
        leg = call.legs.get(called.uid)
        if leg is not None and message.get("dialstatus") in ("RINGING", "PROGRESS"):  # 183 with media is ringing
            leg.rang_at = leg.rang_at or at
        yield from self.news.say(called, at)

    def _dial_end(self, message: AmiMessage, at: datetime) -> Signals:
        self._channel(message)
        called = self._channel(message, "dest")
        call = self.book.call_of(called)
        if called is None or call is None:
            return
        status = message.get("dialstatus").partition(":")[0]
        leg = call.legs.get(called.uid)
        if leg is not None:
            leg.status = leg.status or status
            leg.is_lost = leg.is_lost or bool(message.get("forward"))
            leg.is_up = leg.is_up or status == "ANSWER"
        if status == "ANSWER":
            self.book.taken_up(call, called)
        yield from self.news.say(called, at)

    def _originate_response(self, message: AmiMessage, at: datetime) -> Signals:
        channel = self._channel(message) if message.get("uniqueid") else None
        call = self.book.call_of(channel) if channel is not None else self.book.called_first(message.get("channel"))
        if call is not None:
            call.has_response, call.reason = True, message.get("reason")
            if call.origin is not Origin.DIALER:
                self.book.learn_dialled(call, message.get("exten"))
            yield from self.news.advance(call, at)
        elif message.get("response") == "Failure" and not self.book.is_recent(message.get("channel")):
            yield from self._came_to_nothing(message, at)

    def _came_to_nothing(self, message: AmiMessage, at: datetime) -> Signals:
        """An Originate that made no channel: all that there is of the call is this one event."""
        channel, extension, reason = message.get("channel"), message.get("exten"), message.get("reason")
        key = " ".join(("originate", message.get("actionid"), channel, extension))
        call = AmiCall(key=key, principal="", began_at=at, origin=Origin.CLICK, dialled=extension, direction=Direction.MADE)
        number = named_number(channel)
        if is_outside_number(channel):  # the far end was to be called first
            call.dialled, number = number, message.get("calleridnum")
        call.callers = (number,) if number else ()
        yield self.news.signal(call, SignalKind.BEGAN_AGAIN, at)
        if self.book.now < self.book.whole_from:  # it may have made one that nobody saw
            yield self.news.signal(call, SignalKind.VANISHED, at)
            return
        signal = self.news.signal(call, SignalKind.REFUSED, at)
        signal.cause, signal.word = evidence(0, None, "OriginateResponse " + reason), word_of_reason(reason)
        signal.by = Party.NETWORK
        yield signal

    # Bridges

    def _bridge_enter(self, message: AmiMessage, at: datetime) -> Signals:
        channel = self._channel(message)
        if channel is None:
            return
        swapped = self.book.board.channels.get(message.get("swapuniqueid"))
        bridge = message.get("bridgeuniqueid")
        if swapped is not None:
            yield from self.transfers.taken_over(swapped, channel, at)
            self.book.board.leave(swapped, bridge)
        self.book.board.enter(channel, "" if message.get("bridgetechnology") == _HOLDING else bridge)
        call = self.book.carried_by(channel.uid)
        if call is not None:
            call.asked_by, call.is_soft = None, False
        yield from self.news.say(channel, at)

    def _bridge_leave(self, message: AmiMessage, at: datetime) -> Signals:
        channel = self._channel(message)
        if channel is not None:
            self.book.board.leave(channel, message.get("bridgeuniqueid"))
        yield from self.news.say(channel, at)

    def _bridge_merge(self, message: AmiMessage, at: datetime) -> Signals:
        into = message.get("tobridgeuniqueid")
        self.book.board.merge(into, message.get("frombridgeuniqueid"))
        for uid in sorted(self.book.board.bridges.get(into, ())):
            yield from self.news.say(self.book.board.channels[uid], at)

    # Transfers, pickups, queues, applications

    def _blind_transfer(self, message: AmiMessage, at: datetime) -> Signals:
        transferer, transferee = self._channel(message, "transferer"), self._channel(message, "transferee")
        if transferer is not None and message.get("result") in ("Success", ""):
            yield from self.transfers.left(transferer, transferee, at)

    def _attended_transfer(self, message: AmiMessage, at: datetime) -> Signals:
        first, second = self._channel(message, "origtransferer"), self._channel(message, "secondtransferer")
        transferee = self._channel(message, "transferee")
        if message.get("result") not in ("Success", "") or message.get("desttype") == "Threeway":  # then nobody leaves
            return
        if first is not None:
            yield from self.transfers.left(first, transferee, at)
        consultation = self.book.carried_by(second.uid) if second is not None and second is not first else None
        if consultation is not None:
            consultation.has_left = True  # that call is over when its caller's channel is

    def _unparked(self, message: AmiMessage, at: datetime) -> Signals:
        parked, retriever = self._channel(message, "parkee"), self._channel(message, "retriever")
        if parked is not None and retriever is not None:
            self.transfers.fetched(parked, retriever)
        yield from self.news.say(parked, at)

    def _pickup(self, message: AmiMessage, at: datetime) -> Signals:
        picker, target = self._channel(message), self._channel(message, "target")
        if picker is not None and target is not None and self.transfers.picked_up(target, picker):
            yield from self.news.say(target, at)

    def _queue_join(self, message: AmiMessage, at: datetime) -> Signals:
        channel = self._channel(message)
        call = self.book.carried_by(channel.uid) if channel is not None else None
        if call is not None:
            call.is_queued = call.was_queued = True
            call.is_doubtful = call.is_held = False
        yield from self.news.say(channel, at)

    def _queue_leave(self, message: AmiMessage, at: datetime) -> Signals:
        channel = self._channel(message)
        call = self.book.carried_by(channel.uid) if channel is not None else None
        if call is not None:
            call.is_queued = False
        yield from self.news.say(channel, at)

    def _agent_connect(self, message: AmiMessage, at: datetime) -> Signals:
        channel, agent = self._channel(message), self._channel(message, "dest")
        call = self.book.call_of(channel)
        if call is not None and agent is not None and agent.is_person:
            call.agent = agent.uid
        yield from self.news.say(channel, at)

    def _application(self, message: AmiMessage, at: datetime) -> Signals:
        """Newexten, or CEL's APP_START: where the switch says so, a voicemail box is the destination."""
        if message.event == "CEL" and message.get("eventname") != "APP_START":
            return
        if message.get("application").lower() not in _VOICEMAIL:
            return
        channel = self.book.board.channels.get(message.get("uniqueid"))
        call = self.book.carried_by(channel.uid) if channel is not None else None
        if call is not None and not call.is_answered:
            call.voicemail = message.get("appdata").partition(",")[0].partition("@")[0]
            yield from self.news.say(channel, at)

    def _variable_set(self, message: AmiMessage, _: datetime) -> Signals:
        channel = self.book.board.channels.get(message.get("uniqueid"))
        if channel is not None:
            self.book.learn_variable(channel, message.get("variable"), message.get("value"))
        yield from ()

    # Ends

    def _hangup_request(self, message: AmiMessage, at: datetime) -> Signals:
        """The far end of a channel asks for its end: so it is known who hung up, and why a called leg failed."""
        channel = self._channel(message)
        if channel is None or not channel.is_person:
            return
        channel.hangup_asked = self.book.hears_requests = True
        sip = sip_of(message.get("techcause"))
        call = self.book.call_of(channel)
        leg = call.legs.get(channel.uid) if call is not None else None
        if leg is not None:
            self.book.note_leg(leg, channel, at)
            leg.hangup_asked, leg.q850, leg.sip = True, q850_of(message.get("cause")), sip
        for near in (channel, *self.book.board.connected(channel)):
            carried = self.book.carried_by(near.uid)
            if carried is not None and carried.asked_by is None:
                is_principal = near is channel
                carried.asked_by = Party.CALLER if is_principal is not carried.is_swapped else Party.CALLEE
                carried.is_giving_up = is_principal and is_trying(carried)
                carried.own_refusal = is_principal and sip in _OWN_REFUSAL and sip != 487
        yield from self.news.say(channel, at)

    def _soft_hangup(self, message: AmiMessage, at: datetime) -> Signals:
        channel = self._channel(message)
        call = self.book.carried_by(channel.uid) if channel is not None else None
        if call is not None:
            call.is_soft = True
        yield from self.news.say(channel, at)

    def _hangup(self, message: AmiMessage, at: datetime) -> Signals:
        channel = self._channel(message)
        if channel is None:
            return
        q850, sip = q850_of(message.get("cause")), sip_of(message.get("techcause"))
        call = self.book.call_of(channel)
        leg = call.legs.get(channel.uid) if call is not None else None
        if leg is not None:
            self.book.note_leg(leg, channel, at)
            leg.is_over, leg.q850, leg.sip = True, q850 or leg.q850, sip or leg.sip
        carried = self.book.carried_by(channel.uid)
        if carried is not None:
            yield from self.news.over(carried, End(at, q850, sip, message.get("cause-txt")))
        elif call is not None:
            yield from self.news.advance(call, at)
        self.book.board.remove(channel.uid)

    # Which event is read by what.
    _HANDLERS: ClassVar[Mapping[str, Callable[[AmiEvents, AmiMessage, datetime], Signals]]] = {
        "Newchannel": _newchannel,
        "Newstate": _newstate,
        "NewCallerid": _newcallerid,
        "NewConnectedLine": _touched,
        "Rename": _rename,
        "Hold": _touched,
        "Unhold": _touched,
        "DialBegin": _dial_begin,
        "DialState": _dial_state,
        "DialEnd": _dial_end,
        "OriginateResponse": _originate_response,
        "BridgeEnter": _bridge_enter,
        "BridgeLeave": _bridge_leave,
        "BridgeMerge": _bridge_merge,
        "BlindTransfer": _blind_transfer,
        "AttendedTransfer": _attended_transfer,
        "Pickup": _pickup,
        "UnParkedCall": _unparked,
        "QueueCallerJoin": _queue_join,
        "QueueCallerLeave": _queue_leave,
        "QueueCallerAbandon": _touched,
        "AgentCalled": _touched,
        "AgentConnect": _agent_connect,
        "Newexten": _application,
        "CEL": _application,
        "VarSet": _variable_set,
        "HangupRequest": _hangup_request,
        "SoftHangupRequest": _soft_hangup,
        "Hangup": _hangup,
    }
    HANDLED: ClassVar[frozenset[str]] = frozenset(_HANDLERS)
