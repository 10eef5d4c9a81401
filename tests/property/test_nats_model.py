"""The same dictionaries beside the distributed engine: see `test_store_model`."""

import itertools
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from tests.property.test_store_model import StoreMachine
from tests.support.nats_servers import NatsServers, drop_streams
from tests.support.stored_calls import ZONE

from toque.callbacks.payload import PayloadWriter
from toque.store.nats import NatsStore
from toque.store.nats_link import Access

pytestmark = pytest.mark.nats

EXAMPLES, STEPS = 8, 30


class NatsMachine(StoreMachine):
    """The store on the engine beside its model."""

    servers: ClassVar[NatsServers]
    numbers: ClassVar[Any] = itertools.count()

    def __init__(self) -> None:
        self.prefix = f"model-{next(self.numbers)}"
        super().__init__()

    def open(self) -> Any:
        return NatsStore(Access(self.servers.addresses), PayloadWriter(ZONE), prefix=self.prefix)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.run(drop_streams(self.servers, self.prefix))
        self.runner.close()
        self.folder.cleanup()


def test_the_engine_says_what_a_few_dictionaries_say(tmp_path_factory: pytest.TempPathFactory) -> None:
    with NatsServers(tmp_path_factory.mktemp("nats")) as servers:
        NatsMachine.servers = servers
        shape = settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            database=None,
        )
        run_state_machine_as_test(NatsMachine, settings=shape)
