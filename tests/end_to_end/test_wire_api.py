"""The wire API as its customers meet it: every sentence of the contract, over real sockets."""

from tests.support.api import Api, members, serving
import pytest, time
@pytest.fixture
async def api(tmp_path):
    async with serving(tmp_path / "toque.db") as running:
        yield running

@pytest.mark.parametrize("n", range(10))
async def test_a(api, n):
    c = await api.add_client({"central": ["5541306003*"]})
    print(await c.add("https://u:p@example.com/x", pin="central"))
    print(await c.listed())
