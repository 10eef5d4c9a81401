"""Registers a URL for status callbacks, and lists what is registered.

API_URL=https://api.example.com CLIENT_ID=... CLIENT_SECRET=... CALLBACK_URL=https://crm.example.com/callback \
CALLBACK_PIN=1001 python register.py      (CALLBACK_PIN is optional: without it, the statuses of all calls come)
"""

import os
import sys

from toque.client import Client
from toque.errors import ClientError


def main() -> None:
    client = Client(os.environ["API_URL"], os.environ["CLIENT_ID"], os.environ["CLIENT_SECRET"])
    registration = client.add_callback(os.environ["CALLBACK_URL"], pin=os.environ.get("CALLBACK_PIN") or None)
    print("code:  ", registration.code)
    if registration.secret is None:
        print("This URL was registered before. Its secret was shown then, and is not shown again.")
    else:
        print("secret:", registration.secret)
        print("Keep it for your receiver: it is not shown again.")
    for callback in client.list_callbacks():
        print(f"{callback.code}  {callback.created}  {callback.health}  {callback.pin or '*'}  {callback.url}")


if __name__ == "__main__":
    try:
        main()
    except ClientError as error:
        sys.exit(f"not registered: {error}")
