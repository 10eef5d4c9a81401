"""The dispatcher over the real transport, against a real receiver. Waits between tries are moved by hand, sockets are not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_network

from standardwebhooks import Webhook
from tests.support.clock import ManualClock
from tests.support.dispatching import SECRET, make_call, make_callback, make_calls, registry_of
from tests.support.scripted_receiver import ScriptedReceiver, answer, reset, silence
from tests.support.store_double import StoreDouble

from toque.callbacks.delivery import Delivery, DeliveryState
from toque.sending.dispatcher import Dispatcher
from toque.sending.guard import Guard
from toque.sending.transport import Transport

LOOPBACK = Guard([ip_network("127.0.0.0/8")])


class RealDesk:
    """A dispatcher over the real transport. Waits between tries are moved by hand, sockets are not."""

    def __init__(self, transport: Transport) -> None:
        self.clock, self.store = ManualClock(), StoreDouble()
        self.dispatcher = Dispatcher(transport, self.store, clock=self.clock, chance=lambda: 0.5, timers=self.clock)

    def offer(self, deliveries: Iterable[Delivery]) -> None:
        self.dispatcher.offer(self.store.append(deliveries))

    async def settled(self) -> None:
        async with asyncio.timeout(10):
            await self.dispatcher.settled()


@asynccontextmanager
async def real_desk(guard: Guard = LOOPBACK) -> AsyncIterator[RealDesk]:
    async with Transport(guard) as transport:
        made = RealDesk(transport)
        settling = asyncio.create_task(made.dispatcher.run())
        try:
            yield made
        finally:
            made.dispatcher.stop()
            settling.cancel()
            await asyncio.gather(settling, return_exceptions=True)


def targets(receiver: ScriptedReceiver) -> list[str]:
    return [request.headers["webhook-id"] for request in receiver.requests]


async def test_real_posts_arrive_in_order_and_verify() -> None:
    async with (
        ScriptedReceiver(answer(204), answer(500, closes=True), reset(), answer(302, {"Location": "/elsewhere"})) as receiver,
        real_desk() as at,
    ):
        at.dispatcher.apply(registry_of(make_callback(url=receiver.url("/here?a=1"))))
        at.offer(make_call(events=3))
        await at.settled()
        for seconds in (1, 2, 5):
            at.clock.advance(seconds)
            await at.settled()
        assert targets(receiver) == ["call.1", "call.2", "call.2", "call.2", "call.2", "call.3"]
        assert {request.target for request in receiver.requests} == {"/here?a=1"}
        assert [told.outcome for told in at.store.history] == ["", "500", "connection reset", "302", "", ""]
        for request in receiver.requests:
            sent_at = datetime.fromtimestamp(int(request.headers["webhook-timestamp"]), UTC)
            signature = Webhook(SECRET).sign(request.headers["webhook-id"], sent_at, request.body.decode())
            assert request.headers["webhook-signature"] == signature
            assert request.headers["content-type"] == "application/x-www-form-urlencoded"


async def test_real_posts_to_a_forbidden_address_are_never_dialled() -> None:
    async with ScriptedReceiver() as receiver, real_desk(Guard()) as at:
        at.dispatcher.apply(registry_of(make_callback(url=receiver.url())))
        at.offer(make_call(events=2))
        await at.settled()
        assert at.store.last.state is DeliveryState.WAITING
        assert at.store.last.outcome == "loopback address"
        at.clock.advance(1)
        await at.settled()
        assert at.store.last.attempts == 2
        assert receiver.connections == []


async def test_real_lanes_go_in_parallel_over_connections_of_their_own() -> None:
    everyone = asyncio.Event()
    async with ScriptedReceiver(*[answer(204)] * 10, otherwise=answer(204, after=everyone)) as receiver, real_desk() as at:
        at.dispatcher.apply(registry_of(make_callback(url=receiver.url())))
        at.offer(make_calls(10, prefix="warm"))
        await at.settled()
        at.offer(delivery for number in range(20) for delivery in make_call(f"call{number}", 2))
        await receiver.has_received(20)
        assert len(receiver.connections) == 10
        everyone.set()
        await at.settled()
        assert len(receiver.requests) == 50
        assert len(receiver.connections) == 10


async def test_a_real_stop_in_the_middle_of_a_post_does_not_count_it() -> None:
    async with ScriptedReceiver(otherwise=silence()) as receiver, Transport(LOOPBACK) as transport:
        at = RealDesk(transport)
        settling = asyncio.create_task(at.dispatcher.run())
        at.dispatcher.apply(registry_of(make_callback(url=receiver.url())))
        at.offer(make_call(events=2))
        await receiver.has_received(1)
        assert not await at.dispatcher.drain(timedelta())
        await transport.close()
        assert await at.dispatcher.drain(timedelta(seconds=10))
        assert at.store.history == []
        settling.cancel()
        await asyncio.gather(settling, return_exceptions=True)
