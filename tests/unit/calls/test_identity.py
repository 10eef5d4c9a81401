from uuid import UUID

import pytest

from toque.calls.identity import callerid, event_id
from toque.calls.model import CallIdentity, Direction, Owner, Side, Status

CALL = CallIdentity("proxy", "c1 a")
SIDE = Side(Owner("acme", "vendas"), Direction.MADE)


def test_identities_are_the_same_wherever_and_whenever_they_are_derived():
    assert callerid(CALL, 0) == "26bb1203-4b56-566c-9cb1-e9fd16a17b71"
    assert event_id(SIDE, callerid(CALL, 0), Status.BUSY) == "2d01957f-b4b0-55a2-a53b-a19c163eb291"


@pytest.mark.parametrize(
    "other",
    [callerid(CallIdentity("proxy2", "c1 a"), 0), callerid(CallIdentity("proxy", "c1 b"), 0), callerid(CALL, 1)],
)
def test_another_call_has_another_callerid(other: str):
    assert UUID(other)
    assert other != callerid(CALL, 0)


@pytest.mark.parametrize(
    "other",
    [
        event_id(Side(Owner("zeta", "vendas"), Direction.MADE), "call", Status.BUSY),
        event_id(Side(Owner("acme", "suporte"), Direction.MADE), "call", Status.BUSY),
        event_id(Side(Owner("acme", "vendas"), Direction.RECEIVED), "call", Status.BUSY),
        event_id(SIDE, "call2", Status.BUSY),
        event_id(SIDE, "call", Status.FAILED),
    ],
)
def test_another_event_has_another_id(other: str):
    assert UUID(other)
    assert other != event_id(SIDE, "call", Status.BUSY)
