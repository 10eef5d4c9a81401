"""From SIP messages to signals.

A proxy mirrors every message once for each hop it takes. The hops of one INVITE form a tree by their Via branches: the caller's
own transaction is the root, the proxy's are its legs. What the root is told decides when the call ends; the legs say why.

A call is (Call-ID, From-tag of the caller). Requests inside a dialog may come from either party, so both tags are looked up.

Messages are lost, repeated, and overtake each other on their way to us: whatever comes first makes its place in the tree, and the
INVITE that comes after its own responses still begins the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from toque.calls.model import CallIdentity, Cause, Party, Signal, SignalKind
from toque.calls.sip import SipMessage
from toque.calls.sip_tree import MAX_HOPS, Dialog, Hop, Place, place_of, transaction_of

_IN_DIALOG = frozenset({"UPDATE", "INFO", "PRACK", "REFER", "NOTIFY", "MESSAGE", "OPTIONS"})
_DIALOG_GONE = frozenset({408, 481})  # an answer to BYE that ends the dialog as 200 does (RFC 3261, 12.2.1.2)
_NOTHING: tuple[Signal, ...] = ()

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(Dialog)


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

    def restore(self, state: bytes) -> str:
        """Go on with a dialog; gives its key, or ''. Raises `msgspec.DecodeError` for bytes that `export` did not give."""
        if not state:
            return ""
        dialog = _DECODER.decode(state)
        self._dialogs[dialog.call_id, dialog.tag] = dialog
        return self.identity(dialog).key

    def read(self, message: SipMessage, at: datetime, source: str, destination: str) -> Sequence[Signal]:
        """The signals that one message gives; most give none or one. Addresses are `host:port` texts."""
        signals: Sequence[Signal] = _NOTHING
        match message.method:
            case "INVITE" if not message.is_request:
                signals = self._invite_answered(message, at, destination)
            case "INVITE" if message.to_tag:
                signals = self._invited_again(message, at)
            case "INVITE":
                signals = self._invited(message, at, source)
            case "ACK":
                signals = self._acknowledged(message, at, source)
            case "CANCEL" if message.is_request or message.is_success:
                signals = self._cancelled(message, at, source if message.is_request else destination)
            case "BYE" if message.is_request or message.is_success or message.status in _DIALOG_GONE:
                signals = self._hung_up(message, at)
            case method if method in _IN_DIALOG:
                signals = self._seen(message, at)
        return signals

    # Finding and beginning

    def _find(self, message: SipMessage) -> Dialog | None:
        return self._dialogs.get((message.call_id, message.from_tag)) or (
            self._dialogs.get((message.call_id, message.to_tag)) if message.to_tag else None
        )

    def _begin(self, message: SipMessage) -> Dialog:
        """Remember a call by the first message of it that we see, which need not be its first."""
        sent_by_callee = message.is_request and bool(message.route_tag) and message.route_tag == message.to_tag
        caller, dialled = message.from_user, message.to_user
        if sent_by_callee:
            caller, dialled = dialled, caller
        dialog = Dialog(
            call_id=message.call_id,
            tag=message.to_tag if sent_by_callee else message.from_tag,
            callers=_callers(caller, message),
            dialled=dialled,
        )
        self._dialogs[dialog.call_id, dialog.tag] = dialog
        return dialog

    def _find_or_join(self, message: SipMessage) -> Dialog | None:
        """The dialog that an in-dialog request belongs to, begun in its middle if need be.

        Who called whom, only the sender's own copy says: it has the caller's tag in its Route, the copy that a proxy sends on
        has not. A response says nothing that its request did not.
        """
        dialog = self._find(message)
        if dialog is None and message.is_request and (message.route_tag or len(message.branches) < 2):
            dialog = self._begin(message)
        return dialog

    def _seen(self, message: SipMessage, at: datetime) -> Sequence[Signal]:
        dialog = self._find(message)
        return _NOTHING if dialog is None else (self._signal(dialog, SignalKind.SEEN, at),)

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

    def _invited(self, message: SipMessage, at: datetime, source: str) -> Sequence[Signal]:
        dialog = self._find(message) or self._begin(message)
        branch = transaction_of(message, source)
        place = place_of(dialog, branch, message)
        if place is Place.PASSED or (place is Place.KNOWN and dialog.hops[branch].is_invited):
            return _NOTHING  # a retransmission, or too late to matter
        old_root = self._join(dialog, place, branch, message)
        number = message.request_user or message.to_user
        dialog.hops[branch] = Hop(source, number)
        if branch != dialog.root:
            return (self._signal(dialog, SignalKind.LEG_BEGAN, at, leg=branch, number=number),)
        dialog.cseq = message.cseq
        dialog.dialled = number
        dialog.callers = _callers(message.from_user, message)
        began = self._signal(dialog, SignalKind.BEGAN_AGAIN if place is Place.AGAIN else SignalKind.BEGAN, at)
        return (began, *self._demoted(dialog, old_root, at))

    @staticmethod
    def _join(dialog: Dialog, place: Place, branch: str, message: SipMessage) -> str:
        """Make the transaction the root if that is its place; gives the root that became a leg by that, or ''."""
        if place not in (Place.FIRST, Place.NEARER, Place.AGAIN):
            return ""
        old_root, dialog.root, dialog.cseq = dialog.root, branch, message.cseq
        dialog.above = message.branches[1:]
        if place is Place.NEARER:
            return old_root
        if place is Place.AGAIN:
            dialog.passed = frozenset(dialog.hops)
            dialog.hops.clear()
            dialog.answered_tags = dialog.gone_tags = frozenset()
        dialog.is_refused = False
        return ""

    def _demoted(self, dialog: Dialog, branch: str, at: datetime) -> Sequence[Signal]:
        if not branch:
            return _NOTHING
        return (self._signal(dialog, SignalKind.LEG_BEGAN, at, leg=branch, number=dialog.hops[branch].number),)

    def _invited_again(self, message: SipMessage, at: datetime) -> Sequence[Signal]:
        """A re-INVITE: the call goes on. If we never saw it answered, it has been (RFC 3261, 14.1)."""
        dialog = self._find_or_join(message)
        if dialog is None:
            return _NOTHING
        tag = message.to_tag if dialog.tag == message.from_tag else message.from_tag
        if dialog.is_refused or dialog.was_answered:
            return (self._signal(dialog, SignalKind.SEEN, at),)
        dialog.answered_tags |= {tag}
        return (self._signal(dialog, SignalKind.ANSWERED, at),)

    def _invite_answered(self, message: SipMessage, at: datetime, client: str) -> Sequence[Signal]:
        kind = _kind_of(message)
        dialog = self._find(message)
        if dialog is None:
            if kind is SignalKind.SEEN and not _is_at_once(message):
                return _NOTHING
            dialog = self._begin(message)
        branch = _answered_transaction(dialog, message, client)
        place = place_of(dialog, branch, message)
        if _is_of_reinvite(dialog, message, place):
            return (self._signal(dialog, SignalKind.SEEN, at),)
        if place is Place.PASSED:
            return _NOTHING
        if place is Place.KNOWN:
            return (self._said(dialog, branch, kind, message, at),)
        # Its request was lost on the way to us, or comes later.
        old_root = self._join(dialog, place, branch, message)
        dialog.hops[branch] = Hop(client, "", is_invited=False)
        before = [*self._demoted(dialog, old_root, at)]
        if place is Place.AGAIN:
            before.append(self._signal(dialog, SignalKind.BEGAN_AGAIN, at))
        elif place is Place.FIRST and _is_at_once(message):
            before.append(self._signal(dialog, SignalKind.BEGAN, at))
        return (*before, self._said(dialog, branch, kind, message, at))

    def _said(self, dialog: Dialog, branch: str, kind: SignalKind, message: SipMessage, at: datetime) -> Signal:
        """What a response says to the caller, or to the proxy that called a leg."""
        leg = branch if branch != dialog.root else None
        number = dialog.hops[branch].number if leg is not None else ""
        if kind is SignalKind.REFUSED:
            if leg is not None:
                return self._signal(dialog, SignalKind.LEG_ENDED, at, leg=leg, cause=_cause_of(message))
            dialog.is_refused = True
            return self._signal(dialog, SignalKind.REFUSED, at, cause=_cause_of(message))
        if kind is SignalKind.ANSWERED:
            dialog.is_refused = False
            if message.to_tag not in dialog.gone_tags and len(dialog.answered_tags) < MAX_HOPS:
                dialog.answered_tags |= {message.to_tag}
        return self._signal(dialog, kind, at, leg=leg, number=number)

    def _acknowledged(self, message: SipMessage, at: datetime, source: str) -> Sequence[Signal]:
        """The ACK of a refusal has the INVITE's branch (RFC 3261, 17.1.1.3): it tells of one that we missed."""
        dialog = self._find(message)
        branch = transaction_of(message, source)
        if dialog is None or branch not in dialog.hops or dialog.is_refused or dialog.was_answered:
            return _NOTHING
        if branch != dialog.root:
            return (self._signal(dialog, SignalKind.LEG_ENDED, at, leg=branch),)
        dialog.is_refused = True
        return (self._signal(dialog, SignalKind.REFUSED, at),)

    # CANCEL and BYE

    def _cancelled(self, message: SipMessage, at: datetime, client: str) -> Sequence[Signal]:
        """A CANCEL and its answer have the branch of the INVITE that it cancels, hop by hop (RFC 3261, 9.1)."""
        dialog = self._find(message)
        if dialog is None:
            if message.to_tag:
                return _NOTHING  # of a re-INVITE, or a response
            dialog = self._begin(message)
        branch = transaction_of(message, client)
        if branch in dialog.hops and branch != dialog.root:
            return (self._signal(dialog, SignalKind.LEG_CANCELLED, at, leg=branch, cause=message.cause),)
        if not dialog.root or branch == dialog.root or _is_from_above(dialog, message, branch, client):
            return (self._signal(dialog, SignalKind.GAVE_UP, at, by=Party.CALLER, cause=message.cause),)
        return _NOTHING

    def _hung_up(self, message: SipMessage, at: datetime) -> Sequence[Signal]:
        dialog = self._find_or_join(message)
        if dialog is None:
            return _NOTHING
        by_caller = message.from_tag == dialog.tag
        tag = message.to_tag if by_caller else message.from_tag
        if len(dialog.gone_tags) < MAX_HOPS:
            dialog.gone_tags |= {tag}
        dialog.answered_tags -= {tag}
        if dialog.answered_tags:  # another branch of a forked call is still up
            return (self._signal(dialog, SignalKind.LEG_HUNG_UP, at),)
        by = Party.CALLER if by_caller else Party.CALLEE
        return (self._signal(dialog, SignalKind.HUNG_UP, at, by=by, cause=message.cause),)


def _callers(shown: str, message: SipMessage) -> tuple[str, ...]:
    return (shown, *(user for user in message.asserted_users if user != shown))


def _kind_of(response: SipMessage) -> SignalKind:
    """What a response to an INVITE says to whom it is sent."""
    status = response.status
    if status == 180 or (status == 183 and response.has_sdp):
        return SignalKind.RINGING
    if status < 200:
        return SignalKind.SEEN
    return SignalKind.ANSWERED if status < 300 else SignalKind.REFUSED


def _is_at_once(response: SipMessage) -> bool:
    """Whether the INVITE that this answers was sent just now, outside any dialog: we missed it, or it is late."""
    return response.status == 100 and not response.to_tag


def _answered_transaction(dialog: Dialog, message: SipMessage, client: str) -> str:
    """The transaction that a response belongs to.

    Some switches mirror a response after its last Via was taken off: whom it is sent to must do.
    """
    branch = transaction_of(message, client)
    if message.branches or message.cseq != dialog.cseq:
        return branch
    return next((name for name, hop in dialog.hops.items() if hop.client == client), dialog.root or branch)


def _is_of_reinvite(dialog: Dialog, message: SipMessage, place: Place) -> bool:
    """Whether a response answers an INVITE inside the dialog; that one's failure ends nothing (RFC 3261, 14.1)."""
    if message.from_tag != dialog.tag:  # the called party asked
        return True
    return (place is Place.AGAIN and dialog.was_answered) or (place is Place.FIRST and bool(dialog.answered_tags))


def _is_from_above(dialog: Dialog, message: SipMessage, branch: str, client: str) -> bool:
    """Whether a CANCEL was sent by the caller or on the caller's side of what we took for the root."""
    return branch in dialog.above or (client == dialog.hops[dialog.root].client and message.cseq == dialog.cseq)


def _cause_of(message: SipMessage) -> Cause:
    """A response's own code and phrase; a Reason header adds the Q.850 cause (RFC 6432)."""
    q850 = message.cause.q850 if message.cause is not None else None
    return Cause(sip=message.status, q850=q850, text=message.phrase or None)
