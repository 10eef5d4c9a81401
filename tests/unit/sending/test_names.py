"""Lookups: that they do not hold each other up, and for how long their answers are kept."""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from ipaddress import IPv4Address, ip_address

import pytest
from tests.support.clock import ManualClock
from tests.support.descriptors import no_descriptor_left

from toque.sending.guard import Address
from toque.sending.names import KEPT_S, MAX_LOOKUPS, MISSING_KEPT_S, Names, SystemResolver


class SystemNames:
    """Stands in for the system's resolver: names with answers, and names whose servers do not answer until released."""

    def __init__(self) -> None:
        self.asked: list[object] = []
        self.answers: dict[bytes, list[str]] = {}
        self.dead = threading.Event()
        self.threads: set[threading.Thread] = set()

    def getaddrinfo(self, host: bytes, port: int, **_: object) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        self.asked.append(host)
        self.threads.add(threading.current_thread())
        if host.startswith(b"dead"):
            self.dead.wait(30)
        if host not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(0, 0, 0, "", (address, port)) for address in self.answers[host]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Iterator[SystemNames]:
    names = SystemNames()
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    yield names
    names.dead.set()
    for thread in names.threads:
        thread.join(10)


async def test_addresses_come_in_order_and_once(names: SystemNames) -> None:
    names.answers[b"a.example"] = ["2606:4700::1", "8.8.8.8", "8.8.8.8", "fe80::1%lo"]
    found = await SystemResolver()("a.example", 80)
    assert [str(address) for address in found] == ["2606:4700::1", "8.8.8.8", "fe80::1%lo"]


async def test_a_name_without_addresses(names: SystemNames) -> None:
    with pytest.raises(socket.gaierror):
        await SystemResolver()("nothing.example", 80)


async def test_dead_names_do_not_hold_up_others(names: SystemNames) -> None:
    names.answers[b"alive.example"] = ["8.8.8.8"]
    resolver = SystemResolver()
    asking = [asyncio.create_task(resolver(f"dead{number}.example", 80)) for number in range(MAX_LOOKUPS - 1)]
    assert await resolver("alive.example", 80) == [IPv4Address("8.8.8.8")]
    names.dead.set()
    await asyncio.gather(*asking, return_exceptions=True)


async def test_lookups_at_once_are_bounded(names: SystemNames) -> None:
    resolver = SystemResolver()
    asking = [asyncio.create_task(resolver(f"dead{number}.example", 80)) for number in range(MAX_LOOKUPS + 10)]
    await until(lambda: len(names.asked) == MAX_LOOKUPS)
    assert len(names.asked) == MAX_LOOKUPS
    names.dead.set()
    await asyncio.gather(*asking, return_exceptions=True)
    assert len(names.asked) == MAX_LOOKUPS + 10


def test_a_lookup_that_outlives_its_loop(names: SystemNames) -> None:
    async def ask() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await SystemResolver()("dead.example", 80)

    asyncio.run(ask())
    names.dead.set()  # the thread finds the loop closed and says nothing


async def test_a_machine_without_a_thread_to_spare(monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", cannot)
    with pytest.raises(OSError, match="no thread") as caught:
        await SystemResolver()("a.example", 80)
    assert caught.value.errno == errno.ENOMEM


async def test_no_descriptor_for_a_lookup_is_no_missing_name() -> None:
    """The C library says that the name is not known where it could not even open a socket to ask."""
    with no_descriptor_left(), pytest.raises(OSError) as caught:
        await SystemResolver()("nothing.invalid", 80)
    assert caught.value.errno == errno.EMFILE


# What is kept.


class Register:
    """A resolver with answers that tests change, which counts how often it was asked."""

    def __init__(self, **answers: str | OSError) -> None:
        self.answers: dict[str, str | OSError] = answers
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        self.asked.append(host)
        await self.may_answer.wait()
        answer = self.answers.get(host, socket.gaierror(socket.EAI_NONAME, "Name or service not known"))
        if isinstance(answer, OSError):
            raise answer
        return [ip_address(answer)] if answer else []


class Bench:
    """Names that are kept, over a register, on a clock that stands still."""

    def __init__(self, max_names: int = 100, **answers: str | OSError) -> None:
        self.clock = ManualClock()
        self.register = Register(**answers)
        self.names = Names(self.register, clock=self.clock.time, max_names=max_names)

    async def ask(self, host: str) -> list[str]:
        return [str(address) for address in await self.names(host, 80)]

    async def miss(self, host: str) -> OSError:
        with pytest.raises(OSError) as caught:
            await self.names(host, 80)
        return caught.value


async def test_an_answer_is_kept_for_some_seconds() -> None:
    bench = Bench(moving="8.8.8.8")
    assert await bench.ask("moving") == ["8.8.8.8"]
    bench.register.answers["moving"] = "1.1.1.1"
    bench.clock.advance(KEPT_S - 0.001)
    assert await bench.ask("moving") == ["8.8.8.8"]
    bench.clock.advance(0.001)
    assert await bench.ask("moving") == ["1.1.1.1"]
    assert len(bench.register.asked) == 2


async def test_a_missing_name_is_kept_for_a_shorter_time() -> None:
    bench = Bench()
    errors = [await bench.miss("nobody") for _ in range(3)]
    assert len(bench.register.asked) == 1
    assert [(type(error), *error.args) for error in errors] == [
        (socket.gaierror, socket.EAI_NONAME, "Name or service not known")
    ] * 3
    assert len({id(error) for error in errors[1:]}) == 2, "each has its own traceback"
    bench.register.answers["nobody"] = "8.8.8.8"
    bench.clock.advance(MISSING_KEPT_S)
    assert await bench.ask("nobody") == ["8.8.8.8"]


async def test_a_name_without_addresses_is_kept_as_missing() -> None:
    bench = Bench(empty="")
    assert await bench.ask("empty") == []
    bench.register.answers["empty"] = "8.8.8.8"
    assert await bench.ask("empty") == []
    bench.clock.advance(MISSING_KEPT_S)
    assert await bench.ask("empty") == ["8.8.8.8"]


async def test_our_own_problems_are_not_kept() -> None:
    bench = Bench(a=OSError(errno.EMFILE, "Too many open files"))
    assert (await bench.miss("a")).errno == errno.EMFILE
    bench.register.answers["a"] = "8.8.8.8"
    assert await bench.ask("a") == ["8.8.8.8"]


async def test_a_name_that_was_forgotten_is_asked_for_anew() -> None:
    bench = Bench(moving="8.8.8.8")
    await bench.ask("moving")
    bench.register.answers["moving"] = "1.1.1.1"
    bench.names.forget("moving")
    bench.names.forget("unknown")
    assert await bench.ask("moving") == ["1.1.1.1"]


async def test_only_so_many_names_are_kept() -> None:
    bench = Bench(max_names=2, a="8.8.8.1", b="8.8.8.2", c="8.8.8.3")
    for host in ("a", "b", "c", "c", "b", "a"):
        await bench.ask(host)
    assert bench.register.asked == ["a", "b", "c", "a"], "the oldest goes first"


async def test_nothing_is_kept_for_no_time() -> None:
    register = Register(a="8.8.8.8")
    names = Names(register, kept_s=0)
    for _ in range(2):
        await names("a", 80)
    assert register.asked == ["a", "a"]


async def test_one_lookup_serves_all_who_ask_meanwhile() -> None:
    bench = Bench(a="8.8.8.8")
    bench.register.may_answer.clear()
    asking = [asyncio.create_task(bench.ask("a")) for _ in range(10)]
    await until(lambda: len(bench.register.asked) == 1)
    asking[0].cancel()
    bench.register.may_answer.set()
    found = await asyncio.gather(*asking, return_exceptions=True)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == [["8.8.8.8"]] * 9
    assert bench.register.asked == ["a"]


async def test_close_waits_for_no_lookup(names: SystemNames) -> None:
    kept = Names(SystemResolver())
    asking = asyncio.create_task(kept("dead.example", 80))
    await until(lambda: len(names.asked) == 1)
    await kept.close()
    await kept.close()
    with pytest.raises(asyncio.CancelledError):
        await asking
    names.dead.set()
    await asyncio.to_thread(names.threads.pop().join)  # the answer that comes after all disturbs nobody
    await asyncio.sleep(0)


async def until(is_so: Callable[[], bool]) -> None:
    """Let the loop run until something that another thread does has happened."""
    async with asyncio.timeout(20):
        while not is_so():
            await asyncio.sleep(0.001)
