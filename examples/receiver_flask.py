"""Receives status callbacks with Flask.

CALLBACK_SECRET=whsec_... python receiver_flask.py      (PORT, by default 8000)
"""

import json
import os
from pathlib import Path

from flask import Flask, request

from toque.receiver import CallStatus, Receiver, ReceiverError, SeenInMemory

app = Flask(__name__)
# Two secrets with a space between them during a rotation. With several worker processes, keep the ids that were seen
# in your database instead: the docstring of toque.receiver.SeenIds says how.
receiver = Receiver(os.environ["CALLBACK_SECRET"].split(), seen=SeenInMemory())


@app.post("/callback")
def callback() -> tuple[str, int]:
    try:
        # get_data before form: once Flask has parsed the form, the raw body is gone.
        with receiver.handling(request.headers, request.get_data()) as status:
            handle(status)
    except ReceiverError as error:
        return str(error), error.http_status
    return "", 204


def handle(status: CallStatus) -> None:
    """Stands for your own work. If it raises, Flask answers 500, and the status comes again."""
    line = json.dumps(status.raw, ensure_ascii=False)
    if path := os.environ.get("TOQUE_EXAMPLE_LOG"):
        with Path(path).open("a", encoding="utf-8") as log:
            print(line, file=log)
    else:
        print(line, flush=True)


if __name__ == "__main__":
    app.run(port=int(os.environ.get("PORT", "8000")))
