"""Receivers in a process of their own."""

import asyncio
from pathlib import Path
from ssl import create_default_context
from urllib.parse import urlsplit

import pytest

from toque.bench.certificates import make_certificates
from toque.bench.posts import NO_CONTENT
from toque.bench.receivers import Group, receiving

BODY = b"data=%7B%22callerid%22%3A%220b1c6f0a-0000-5000-8000-000000000001%22%2C%22sequencia%22%3A1%2C%22"
POST = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


async def posted(url: str, times: int = 1, authority: Path | None = None) -> bytes:
    """What is answered to this many posts that come in one piece, as over a connection that is kept."""
    tls = None if authority is None else create_default_context(cafile=authority)
    reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(url).port, ssl=tls)
    try:
        writer.write(POST * times)
        return await reader.readexactly(len(NO_CONTENT) * times)
    finally:
        writer.close()
        await writer.wait_closed()


async def test_counting_receivers_refuse_until_they_listen_and_tell_what_came():
    async with receiving(Group("counted", 2, is_listening=False), Group("counted")) as receivers:
        (first, second), (other,) = receivers.urls
        with pytest.raises(ConnectionRefusedError):
            await posted(first)
        await receivers.listen(0)
        assert await posted(first) == NO_CONTENT
        assert await posted(second, times=2) == NO_CONTENT * 2
        assert await posted(other) == NO_CONTENT
        told = await receivers.report(0)
        assert (told["arrived"], told["duplicates"]) == (3, 2)
        assert told["first_s"] < told["woken_s"] <= told["last_s"]
        assert (await receivers.report(1))["arrived"] == 1


async def test_who_never_answers_takes_what_comes():
    async with receiving(Group("never"), Group("at once")) as receivers:
        (silent,), (quick,) = receivers.urls
        waiting = asyncio.create_task(posted(silent))
        assert await posted(quick) == NO_CONTENT
        assert not waiting.done()
    with pytest.raises(asyncio.IncompleteReadError):  # its process has ended
        await waiting


async def test_over_tls_the_made_authority_is_to_be_trusted(tmp_path: Path):
    made = make_certificates(tmp_path)
    group = Group("at once", certificate=str(made.certificate), key=str(made.key))
    async with receiving(group) as receivers:
        ((url,),) = receivers.urls
        assert url.startswith("https://")
        assert await posted(url, authority=made.authority) == NO_CONTENT


async def test_what_is_asked_of_receivers_that_are_gone_is_an_error():
    async with receiving(Group("counted")) as receivers:
        receivers._process.kill()
        await receivers._process.wait()
        with pytest.raises(RuntimeError, match="gone"):
            await receivers.report(0)
