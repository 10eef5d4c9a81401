"""Receives status callbacks with Django, all in one file; in a project, take the view and its line in urlpatterns.

CALLBACK_SECRET=whsec_... python receiver_django.py      (PORT, by default 8000)
"""

import json
import os
import secrets
import sys
from pathlib import Path

from django.conf import settings
from django.core.management import execute_from_command_line
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

from toque.receiver import CallStatus, Receiver, ReceiverError, SeenInMemory

settings.configure(
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=secrets.token_urlsafe(),
)

# Two secrets with a space between them during a rotation. With several worker processes, keep the ids that were seen
# in a model with a unique key instead: the docstring of toque.receiver.SeenIds says how.
receiver = Receiver(os.environ["CALLBACK_SECRET"].split(), seen=SeenInMemory())


@csrf_exempt  # the sender has no cookie of ours: the signature is what proves the origin
@require_POST
def callback(request: HttpRequest) -> HttpResponse:
    try:
        with receiver.handling(request.headers, request.body) as status:
            handle(status)
    except ReceiverError as error:
        return HttpResponse(str(error), status=error.http_status, content_type="text/plain")
    return HttpResponse(status=204)


def handle(status: CallStatus) -> None:
    """Stands for your own work. If it raises, Django answers 500, and the status comes again."""
    line = json.dumps(status.raw, ensure_ascii=False)
    if file_name := os.environ.get("TOQUE_EXAMPLE_LOG"):
        with Path(file_name).open("a", encoding="utf-8") as log:
            print(line, file=log)
    else:
        print(line, flush=True)


urlpatterns = [path("callback", callback)]

if __name__ == "__main__":
    execute_from_command_line([sys.argv[0], "runserver", "--noreload", f"127.0.0.1:{os.environ.get('PORT', '8000')}"])
