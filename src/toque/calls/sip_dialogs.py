"""From SIP messages to signals.

A proxy mirrors every message once for each hop it takes. The hops of one INVITE form a tree by their Via branches: the caller's
own transaction is the root, the proxy's are its legs. What the root is told decides when the call ends; the legs say why.

A call is (Call-ID, From-tag of the caller). Requests inside a dialog may come from either party, so both tags are looked up.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime

import msgspec

from toque.calls.model import CallIdentity, Cause, Party, Signal, SignalKind
from toque.calls.sip import SipMessage

_IN_DIALOG = frozenset({"UPDATE", "INFO", "PRACK", "REFER", "NOTIFY", "MESSAGE"})
_DIALOG_GONE = frozenset({408, 481})  # an answer to BYE that ends the dialog as 200 does (RFC 3261, 12.2.1.2)


@dataclass(slots=True)
class Hop:
    """One INVITE transaction: who sent it to whom, and the Via branches below its own."""

    source: str
    destination: str
    number: str
    below: tuple[str, ...] = ()


@dataclass(slots=True)
class Dialog:
    """What must be remembered of one call's messages."""

    call_id: str
    tag: str  # the caller's
    callers: tuple[str, ...]
    dialled: str
    root: str = ""  # branch of the caller's own INVITE transaction; "" until one was seen
    cseq: int = 0
    is_refused: bool = False
    hops: dict[str, Hop] = field(default_factory=dict)
    answered_tags: set[str] = field(default_factory=set)  # dialogs that are up, by the called party's tag
    gone_tags: set[str] = field(default_factory=set)

    @property
    def is_over(self) -> bool:
        """Whether another INVITE must be another attempt."""
        return self.is_refused or (bool(self.gone_tags) and not self.answered_tags)


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Dialog)


def _branch_of(message: SipMessage, source: str) -> str:
    """The transaction's name; senders older than RFC 3261 give no branch, their address and CSeq must do."""
    return (message.branches[0] if message.branches else "") or f"{source}/{message.cseq}"


class SipDialogs:
    """The dialogs of one source, by Call-ID and tag."""

    def __init__(self, source: str) -> None:
        self.source = source
        self._dialogs: dict[tuple[str, str], Dialog] = {}

    def __len__(self) -> int:
        """How many dialogs are remembered."""
        return len(self._dialogs)

    def identity(self, dialog: Dialog) -> CallIdentity:
        """The call that a dialog is."""
        return CallIdentity(self.source, f"{dialog.call_id} {dialog.tag}")

    def forget(self, identity: CallIdentity) -> None:
        """Drop what is remembered of a call."""
        call_id, _, tag = identity.key.rpartition(" ")
        self._dialogs.pop((call_id, tag), None)

    def export(self, identity: CallIdentity) -> bytes:
        """What `restore` needs to go on with this call."""
        call_id, _, tag = identity.key.rpartition(" ")
        dialog = self._dialogs.get((call_id, tag))
        return _ENCODER.encode(dialog) if dialog is not None else b""

    def restore(self, state: bytes) -> None:
        """Go on with a dialog. Raises `msgspec.DecodeError` for bytes that `export` did not give."""
        if state:
            dialog = _DECODER.decode(state)
            self._dialogs[dialog.call_id, dialog.tag] = dialog

    def read(self, message: SipMessage, at: datetime, source: str, destination: str) -> Iterator[Signal]:
        """The signals that one message gives; most give none or one. Addresses are `host:port` texts."""
        match message.method:
            case "INVITE":
                if not message.is_request:
                    yield from self._invite_answered(message, at, source, destination)
                elif message.to_tag:
                    yield from self._invited_again(message, at)
                else:
                    yield from self._invited(message, at, source, destination)
            case "CANCEL":
                if message.is_request:
                    yield from self._cancelled(message, at, source)
            case "BYE":
                if message.is_request or 200 <= message.status < 300 or message.status in _DIALOG_GONE:
                    yield from self._hung_up(message, at)
            case method if method in _IN_DIALOG:
                dialog = self._find(message)
                if dialog is not None:
                    yield self._signal(dialog, SignalKind.SEEN, at)

    # Finding and beginning

    def _find(self, message: SipMessage) -> Dialog | None:
        return self._dialogs.get((message.call_id, message.from_tag)) or (
            self._dialogs.get((message.call_id, message.to_tag)) if message.to_tag else None
        )

    def _begin(self, message: SipMessage) -> Dialog:
        """Remember a call by the first message of it that we see, which need not be its first."""
        sent_by_callee = bool(message.route_tag) and message.route_tag == message.to_tag
        caller, dialled = message.from_user, message.to_user
        if sent_by_callee:
            caller, dialled = dialled, caller
        dialog = Dialog(
            call_id=message.call_id,
            tag=message.to_tag if sent_by_callee else message.from_tag,
            callers=(caller, *(user for user in message.asserted_users if user != caller)),
            dialled=dialled,
        )
        self._dialogs[dialog.call_id, dialog.tag] = dialog
        return dialog

    def _signal(
        self,
        dialog: Dialog,
        kind: SignalKind,
        at: datetime,
        *,
        leg: str | None = None,
        number: str = "",
        cause: Cause | None = None,
        by: Party | None = None,
    ) -> Signal:
        return Signal(
            identity=self.identity(dialog),
            kind=kind,
            at=at,
            leg=leg,
            callers=dialog.callers,
            dialled=dialog.dialled,
            number=number,
            cause=cause,
            by=by,
        )

    # INVITE

    def _invited(self, message: SipMessage, at: datetime, source: str, destination: str) -> Iterator[Signal]:
        dialog = self._find(message) or self._begin(message)
        branch = _branch_of(message, source)
        if branch in dialog.hops:
            return  # a retransmission
        number = message.request_user or message.to_user
        hop = Hop(source, destination, number, message.branches[1:])
        if dialog.root in hop.below and dialog.root:
            dialog.hops[branch] = hop
            yield self._signal(dialog, SignalKind.LEG_BEGAN, at, leg=branch, number=number)
            return
        if dialog.root and branch in dialog.hops[dialog.root].below:
            yield from self._found_above(dialog, branch, hop, at)
            return
        if dialog.root and not dialog.is_over and message.cseq <= dialog.cseq:
            if message.cseq == dialog.cseq:  # the same request on a path that shares no Via with the first
                dialog.hops[branch] = hop
                yield self._signal(dialog, SignalKind.LEG_BEGAN, at, leg=branch, number=number)
            return
        self._take_root(dialog, message, branch, hop)
        yield self._signal(dialog, SignalKind.BEGAN, at)

    def _take_root(self, dialog: Dialog, message: SipMessage, branch: str, hop: Hop) -> None:
        dialog.hops = {branch: hop}
        dialog.root, dialog.cseq = branch, message.cseq
        dialog.is_refused = False
        dialog.answered_tags.clear()
        dialog.gone_tags.clear()
        dialog.dialled = hop.number
        dialog.callers = (message.from_user, *(user for user in message.asserted_users if user != message.from_user))

    def _found_above(self, dialog: Dialog, branch: str, hop: Hop, at: datetime) -> Iterator[Signal]:
        """The hop nearer to the caller was mirrored late: what we took for the root is a leg."""
        old, dialog.root = dialog.root, branch
        dialog.hops[branch] = hop
        dialog.dialled = hop.number
        yield self._signal(dialog, SignalKind.BEGAN, at)
        yield self._signal(dialog, SignalKind.LEG_BEGAN, at, leg=old, number=dialog.hops[old].number)

    def _invited_again(self, message: SipMessage, at: datetime) -> Iterator[Signal]:
        """A re-INVITE: the call goes on. If we never saw it begin, it has been answered (RFC 3261, 14.1)."""
        dialog = self._find(message)
        if dialog is not None:
            yield self._signal(dialog, SignalKind.SEEN, at)
            return
        dialog = self._begin(message)
        dialog.answered_tags.add(message.to_tag if dialog.tag == message.from_tag else message.from_tag)
        yield self._signal(dialog, SignalKind.ANSWERED, at)

    def _invite_answered(self, message: SipMessage, at: datetime, source: str, destination: str) -> Iterator[Signal]:
        dialog = self._find(message) or self._begin(message)
        if dialog.answered_tags and not self._is_of_root_or_leg(dialog, message):
            yield self._signal(dialog, SignalKind.SEEN, at)  # an answer to a re-INVITE
            return
        branch = self._hop_of(dialog, message, source, destination)
        if branch is None:
            return
        leg = branch if branch != dialog.root else None
        hop = dialog.hops.get(branch)
        number = hop.number if hop is not None and leg is not None else ""
        status = message.status
        if status == 180 or (status == 183 and message.has_sdp):
            yield self._signal(dialog, SignalKind.RINGING, at, leg=leg, number=number)
        elif status < 200:
            yield self._signal(dialog, SignalKind.SEEN, at)
        elif status < 300:
            if message.to_tag not in dialog.gone_tags:
                dialog.answered_tags.add(message.to_tag)
            yield self._signal(dialog, SignalKind.ANSWERED, at, leg=leg, number=number)
        elif leg is not None:
            yield self._signal(dialog, SignalKind.LEG_ENDED, at, leg=leg, cause=_cause_of(message))
        else:
            dialog.is_refused = True
            yield self._signal(dialog, SignalKind.REFUSED, at, cause=_cause_of(message))

    @staticmethod
    def _is_of_root_or_leg(dialog: Dialog, message: SipMessage) -> bool:
        return not dialog.root or (message.cseq == dialog.cseq if not message.branches else message.branches[0] in dialog.hops)

    @staticmethod
    def _hop_of(dialog: Dialog, message: SipMessage, source: str, destination: str) -> str | None:
        """The transaction that a response belongs to; None for an earlier attempt's."""
        branch = message.branches[0] if message.branches else ""
        if branch in dialog.hops:
            return branch
        if not branch:  # some switches mirror a response after its last Via was taken off: the addresses must do
            for name, hop in dialog.hops.items():
                if hop.source == destination and hop.destination == source:
                    return name
            return dialog.root if message.cseq >= dialog.cseq else None
        if dialog.root and dialog.root in message.branches[1:]:
            dialog.hops[branch] = Hop(destination, source, "", message.branches[1:])
            return branch
        if message.cseq < dialog.cseq:
            return None
        # The request itself was lost on the way to us.
        dialog.root, dialog.cseq = branch, message.cseq
        dialog.hops[branch] = Hop(destination, source, dialog.dialled, message.branches[1:])
        return branch

    # CANCEL and BYE

    def _cancelled(self, message: SipMessage, at: datetime, source: str) -> Iterator[Signal]:
        """A CANCEL has the branch of the INVITE that it cancels, hop by hop (RFC 3261, 9.1)."""
        dialog = self._find(message) or self._begin(message)
        branch = _branch_of(message, source)
        if branch == dialog.root or not dialog.root:
            yield self._signal(dialog, SignalKind.GAVE_UP, at, by=Party.CALLER, cause=message.cause)
        elif branch in dialog.hops:
            yield self._signal(dialog, SignalKind.LEG_CANCELLED, at, leg=branch, cause=message.cause)
        elif source == dialog.hops[dialog.root].source and message.cseq == dialog.cseq:
            yield self._signal(dialog, SignalKind.GAVE_UP, at, by=Party.CALLER, cause=message.cause)

    def _hung_up(self, message: SipMessage, at: datetime) -> Iterator[Signal]:
        dialog = self._find(message) or self._begin(message)
        by_caller = message.from_tag == dialog.tag
        tag = message.to_tag if by_caller else message.from_tag
        dialog.gone_tags.add(tag)
        dialog.answered_tags.discard(tag)
        if dialog.answered_tags:  # another branch of a forked call is still up
            yield self._signal(dialog, SignalKind.SEEN, at)
            return
        by = Party.CALLER if by_caller else Party.CALLEE
        yield self._signal(dialog, SignalKind.HUNG_UP, at, by=by, cause=message.cause)


def _cause_of(message: SipMessage) -> Cause:
    """A response's own code and phrase; a Reason header adds the Q.850 cause (RFC 6432)."""
    q850 = message.cause.q850 if message.cause is not None else None
    return Cause(sip=message.status, q850=q850, text=message.phrase or None)
