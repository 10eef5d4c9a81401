"""Posts calls to toque, a line of JSON each, and goes on until all of them are durable. Nothing but Python is needed.

    TOKEN=toque_intake_... python intake.py < calls.ndjson

`calls.ndjson` has the items of docs/intake.md, each with its own `at`. What toque refuses is printed, and the exit code is 1.
Posting the same file again adds nothing.
"""

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import islice

URL = os.environ.get("API_URL", "http://127.0.0.1:8080") + "/intake/events?answer=short"
HEADERS = {"Authorization": "Bearer " + os.environ["TOKEN"], "Content-Type": "application/x-ndjson"}
BATCH = 1000


def batches() -> Iterator[list[str]]:
    lines = (line for line in sys.stdin if line.strip())
    while batch := list(islice(lines, BATCH)):
        yield batch


def post(body: bytes) -> dict:
    """The answer, once there is one. Everything else than a 4xx passes by itself: the network, a restart, a full disk."""
    wait_s = 1.0
    while True:
        try:
            with urllib.request.urlopen(urllib.request.Request(URL, body, HEADERS), timeout=30) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            told = error.read().decode(errors="replace")
            if error.code == 422:  # nothing in it was right; what was wrong is told as always
                return json.loads(told)
            if error.code < 500:
                sys.exit(f"{error.code}: {told}")
            problem = f"{error.code}: {told}"
        except (OSError, http.client.HTTPException) as error:
            problem = str(error)
        print(f"{problem}; again in {wait_s:g} s", file=sys.stderr)
        time.sleep(wait_s)
        wait_s = min(wait_s * 2, 30.0)


def main() -> None:
    counts = {"accepted": 0, "repeated": 0, "unmatched": 0, "refused": 0}
    for batch in batches():
        answer = post("".join(batch).encode())
        for name in counts:
            counts[name] += answer[name]
        for item in answer["items"]:
            print(f"{item['reason']}: {batch[item['index']].strip()}", file=sys.stderr)
    print(json.dumps(counts))
    sys.exit(1 if counts["refused"] else 0)


if __name__ == "__main__":
    main()
