"""Who takes whose place in an Asterisk's calls: transfers, pickups, parked calls that are fetched."""

from __future__ import annotations

from datetime import datetime

from toque.calls.ami_book import CallBook
from toque.calls.ami_calls import Leg
from toque.calls.ami_channels import Channel
from toque.calls.ami_names import endpoint, is_telephone
from toque.calls.ami_news import CallNews, Signals


class Transfers:
    """Changes the calls of a book."""

    def __init__(self, book: CallBook, news: CallNews) -> None:
        self.book = book
        self.news = news

    def left(self, transferer: Channel, transferee: Channel | None, at: datetime) -> Signals:
        """If it was the caller who transferred, the call goes on with the channel of the far end."""
        call = self.book.carried_by(transferer.uid)
        if call is None:
            return
        heir = transferee or self.book.board.channels.get(call.talks_to)
        if heir is None or not self.book.may_carry(heir) or not call.is_answered:
            call.has_left = True
            return
        self.book.carry(call, heir)
        call.is_swapped, call.asked_by, call.is_soft = not call.is_swapped, None, False
        if call.is_swapped and heir.shown_number != call.answered_by:  # whoever was consulted meanwhile
            yield self.news.connected(call, heir.shown_number, at)
        yield from self.news.advance(call, at)

    def taken_over(self, channel: Channel, by: Channel, at: datetime) -> Signals:
        """A channel takes another one's place in a bridge: half of a Local channel by a transfer, or another telephone."""
        call = self.book.carried_by(channel.uid) or self.book.call_of(channel)
        if call is None or not (channel.is_person and call.is_answered):
            return
        if by.is_local and call.principal == channel.uid:
            yield from self.left(channel, None, at)
        elif by.is_person and self.book.is_newcomer(by):
            self.book.absorb(by, call)
            if call.principal == channel.uid and self.book.may_carry(by):
                self.book.carry(call, by)

    def fetched(self, parked: Channel, retriever: Channel) -> None:
        """Somebody fetches a parked call: what was dialled for it is no call of its own."""
        call = self.book.carried_by(parked.uid) or self.book.call_of(parked)
        if call is not None:
            self.book.absorb(retriever, call)

    def picked_up(self, target: Channel, picker: Channel) -> bool:
        """Another telephone takes the call that rings at the target's; False for one that is not known."""
        call = self.book.call_of(target)
        if call is None:
            return False
        lost = call.legs.get(target.uid)
        if lost is not None:
            lost.is_lost = True
        self.book.absorb(picker, call)
        number = endpoint(picker.name) if is_telephone(picker.name) else picker.own_number
        picker.reaches = picker.reaches or number
        call.legs.setdefault(picker.uid, Leg(number=picker.shown_number, status="ANSWER", is_up=True, told=2))
        return True
