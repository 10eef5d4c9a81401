"""Which streams there are, what their subjects are called, and how they are made."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec

from toque.errors import SettingsError, StoreError
from toque.store.nats_link import NOT_FOUND, Link, Refused, Unanswered
from toque.store.nats_stream import Stream

REPLICAS_ON_A_CLUSTER = 3
_MAKING_S = 15.0  # a cluster that has just started elects a leader first
_AGAIN_S = 0.25
_NO_PEERS = 10005
_NAME_IN_USE = 10058


@dataclass(frozen=True, slots=True)
class Names:
    """The subjects of one installation; several may share an engine under prefixes of their own."""

    prefix: str

    @property
    def log(self) -> str:
        """The chain of what was accepted."""
        return f"{self.prefix}.log.0"

    @property
    def done(self) -> str:
        """The chain of what became of deliveries."""
        return f"{self.prefix}.work.done.0"

    def waiting(self, callback_id: int | str) -> str:
        """What waits for a callback."""
        return f"{self.prefix}.work.waiting.{callback_id}"

    def dead(self, callback_id: int | str) -> str:
        """A callback's dead deliveries."""
        return f"{self.prefix}.work.dead.{callback_id}"

    @property
    def snapshots(self) -> str:
        """Snapshots on their way into their table."""
        return f"{self.prefix}.work.snapshots.0"

    def registry(self, key: str) -> str:
        """A document of the registry."""
        return f"$KV.{self.prefix}_registry.{key}"

    def state(self, key: str) -> str:
        """An entry of the table of everything else."""
        return f"$KV.{self.prefix}_state.{key}"


class Layout:
    """The four streams."""

    def __init__(self, link: Link, prefix: str, replicas: int | None) -> None:
        self.names = Names(prefix)
        self.link = link
        self._wanted_replicas = replicas
        self.log = Stream(link, f"{prefix}_log")
        self.work = Stream(link, f"{prefix}_work")
        self.registry = Stream(link, f"KV_{prefix}_registry")
        self.state = Stream(link, f"KV_{prefix}_state")
        self.replicas = 0

    async def make(self) -> None:
        """Make the streams that are not there. Raises `SettingsError` when the engine cannot be what it should be."""
        prefix = self.names.prefix
        common = {
            "storage": "file",
            "allow_direct": True,
            "allow_atomic": True,
            "discard": "new",
            "duplicate_window": 1_000_000_000,
        }
        table = {"max_msgs_per_subject": 1, "allow_rollup_hdrs": True, "deny_delete": False, "allow_msg_ttl": True}
        configs: list[tuple[Stream, dict[str, Any]]] = [
            (self.registry, common | table | {"subjects": [f"$KV.{prefix}_registry.>"]}),
            (self.state, common | table | {"subjects": [f"$KV.{prefix}_state.>"]}),
            (self.log, common | {"subjects": [f"{prefix}.log.>"]}),
            (self.work, common | {"subjects": [f"{prefix}.work.>"]}),
        ]
        await asyncio.gather(*(self._make(stream, config) for stream, config in configs))

    async def drop(self) -> None:
        """Throw the streams away, and all that is in them."""
        for stream in (self.registry, self.state, self.log, self.work):
            await self.link.answer(f"$JS.API.STREAM.DELETE.{stream.name}")

    async def _make(self, stream: Stream, config: dict[str, Any]) -> None:
        """Make a stream, unless it is there."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _MAKING_S
        while True:
            try:
                info = await self._found(stream)
                if info is not None:
                    self._check(stream, info)
                    return
                await self._create(stream, config)
            except (StoreError, TimeoutError) as error:
                if loop.time() > deadline_s:
                    raise StoreError(f"stream {stream.name} cannot be made: {error}") from None
                await asyncio.sleep(_AGAIN_S)

    async def _found(self, stream: Stream) -> dict[str, Any] | None:
        try:
            return (await stream.info()).config
        except Refused as refused:
            if refused.status == NOT_FOUND:
                return None
            raise

    async def _create(self, stream: Stream, config: dict[str, Any]) -> None:
        replicas = self._wanted_replicas or (REPLICAS_ON_A_CLUSTER if await self._is_cluster() else 1)
        body = msgspec.json.encode({"name": stream.name, "num_replicas": replicas, **config})
        try:
            await self.link.answer(f"$JS.API.STREAM.CREATE.{stream.name}", body)
        except Refused as refused:
            if refused.code == _NAME_IN_USE:
                return
            if refused.code == _NO_PEERS or self._wanted_replicas:
                raise SettingsError("nats_replicas", str(replicas), f"{replicas} replicas cannot be kept: {refused}") from None
            raise

    async def _is_cluster(self) -> bool:
        """Whether the engine is a cluster: its servers say so when a client connects."""
        return self.link.is_cluster

    def _check(self, stream: Stream, config: dict[str, Any]) -> None:
        self.replicas = replicas = int(config.get("num_replicas", 1))
        if self._wanted_replicas and replicas != self._wanted_replicas:
            problem = f"stream {stream.name} has {replicas} replicas; change it with `nats stream edit`, or leave the setting out"
            raise SettingsError("nats_replicas", str(self._wanted_replicas), problem)
        if not config.get("allow_atomic") or not config.get("allow_direct"):
            raise SettingsError("store", self.link.shown, f"stream {stream.name} is not toque's: give nats_prefix another name")


__all__ = ["Layout", "Names", "Unanswered"]
