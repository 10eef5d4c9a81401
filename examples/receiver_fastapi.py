"""Receives status callbacks with FastAPI (Starlette alone works the same way).

CALLBACK_SECRET=whsec_... python receiver_fastapi.py      (PORT, by default 8000)
"""

import json
import os
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request, Response

from toque.receiver import CallStatus, Receiver, ReceiverError, SeenInMemory

app = FastAPI()
# Two secrets with a space between them during a rotation. With several worker processes, keep the ids that were seen
# in your database instead: the docstring of toque.receiver.SeenIds says how.
receiver = Receiver(os.environ["CALLBACK_SECRET"].split(), seen=SeenInMemory())


# The raw request instead of a Form(...) parameter: the signature is over the body as it came.
@app.post("/callback")
async def callback(request: Request) -> Response:
    body = await request.body()
    try:
        with receiver.handling(request.headers, body) as status:
            await handle(status)
    except ReceiverError as error:
        return Response(str(error), error.http_status, media_type="text/plain")
    return Response(status_code=204)


async def handle(status: CallStatus) -> None:
    """Stands for your own work. If it raises, FastAPI answers 500, and the status comes again."""
    line = json.dumps(status.raw, ensure_ascii=False)
    if path := os.environ.get("TOQUE_EXAMPLE_LOG"):
        with Path(path).open("a", encoding="utf-8") as log:  # noqa: ASYNC230 - a line in a file, to keep this short
            print(line, file=log)
    else:
        print(line, flush=True)


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
