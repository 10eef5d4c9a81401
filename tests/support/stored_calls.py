"""What the store's tests are fed with: clients, and the status changes of calls, told in seconds since `BEGINNING`."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from toque.callbacks.callback import Client
from toque.callbacks.delivery import Delivery, DeliveryState, Settlement
from toque.calls.lines import Line, parse_line
from toque.calls.model import CallFacts, CallIdentity, Direction, Owner, Side, Snapshot, Status, StatusChange

BEGINNING = datetime(2026, 3, 1, 12, 5, 7, 123_000, tzinfo=UTC)
ZONE = ZoneInfo("America/Sao_Paulo")
URL = "https://example.com/status"
MADE, RECEIVED = Direction.MADE, Direction.RECEIVED


def seconds(count: float) -> datetime:
    """The moment so many seconds after the beginning."""
    return BEGINNING + timedelta(seconds=count)


def a_client(client_id: str = "acme") -> Client:
    """An account named like its client_id."""
    return Client(client_id, f"{client_id} ltda", f"hash of {client_id}", 1, BEGINNING)


def lines(client_id: str, pin: str, *texts: str) -> list[Line]:
    """Lines as people write them."""
    return [parse_line(client_id, pin, text) for text in texts]


def identity(call: str = "call-1", source: str = "sbc1") -> CallIdentity:
    """What a switch calls a call."""
    return CallIdentity(source, call)


def change(
    status: Status,
    at: float = 0,
    *,
    call: str = "call-1",
    began: float | None = 0,
    client: str = "acme",
    pin: str = "1001",
    direction: Direction = MADE,
    source: str = "sbc1",
) -> StatusChange:
    """One status of one side."""
    facts = CallFacts(
        caller="554130600300",
        dialled="5511988887777",
        began_at=None if began is None else seconds(began),
        ended_at=seconds(at) if status.is_final else None,
    )
    return StatusChange(identity(call, source), Side(Owner(client, pin), direction), status, seconds(at), facts)


def whole_call(call: str = "call-1", began: float = 0, **side: object) -> list[StatusChange]:
    """The four statuses of a call that was answered."""
    steps = (Status.INITIATED, Status.RINGING, Status.ANSWERED, Status.HUNG_UP)
    return [change(status, began + n, call=call, began=began, **side) for n, status in enumerate(steps)]  # type: ignore[arg-type]


def in_progress(call: str = "call-1", state: bytes = b"state") -> Snapshot:
    """A call that goes on."""
    return Snapshot(identity(call), state)


def over(call: str = "call-1", at: float = 3) -> Snapshot:
    """A call that has ended."""
    return Snapshot(identity(call), None, seconds(at))


def settled(
    delivery: Delivery, state: DeliveryState = DeliveryState.DELIVERED, attempts: int = 1, due_at: datetime | None = None
) -> Settlement:
    """How a delivery stands after an attempt."""
    delivery.attempts = attempts
    delivery.due_at = due_at
    return Settlement(delivery, state, "as the test says")


def left(*deliveries: Delivery) -> list[Settlement]:
    """Deliveries that are left to the store, as the dispatcher does when it has no room for them."""
    return [Settlement(delivery, DeliveryState.WAITING) for delivery in deliveries]


def told(deliveries: Iterable[Delivery]) -> list[tuple[str, int, str]]:
    """The statuses, their sequences, and the first characters of their callerids."""
    return [(d.event.status.value, d.event.sequence, d.event.callerid) for d in deliveries]
