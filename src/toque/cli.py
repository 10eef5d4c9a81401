"""The command line: the commands, and how they end.

Each command is a function in `commands/`; what it does is done by the rooms below. Exit codes: 0 done, 1 not done (no such
client, no answer), 2 used wrongly or set wrongly. Whatever prints a result takes `--json`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import cyclopts
from cyclopts import App

from toque import __version__
from toque.commands import callbacks, clients, doctor, intake, lines, measurements, replays, serving, storage, trace
from toque.commands.terminal import NotDone
from toque.errors import InputError, SettingsError, StoreError
from toque.telemetry import printable

app = App(
    name="toque",
    version=f"toque {__version__}",
    help="Tells software what happens to telephone calls.",
    version_flags=["--version"],
    result_action="return_value",
)
app.command(serving.serve)
app.command(serving.demo)
app.command(doctor.doctor)
app.command(trace.trace)
for _group in (clients, lines, callbacks, intake, replays, storage, measurements):
    app.command(_group.app)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command that the arguments name, and end the process with its exit code."""
    try:
        app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()
    except (cyclopts.CycloptsError, SettingsError, InputError) as error:
        _fail(error, 2)
    except (NotDone, StoreError) as error:
        _fail(error, 1)
    except BrokenPipeError:  # whoever read the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except asyncio.CancelledError:
        sys.exit(1)
    sys.exit(0)


def _fail(error: Exception, code: int) -> NoReturn:
    print(f"toque: {printable(' '.join(str(error).split()))}", file=sys.stderr)  # noqa: T201 - the operator reads it
    sys.exit(code)
