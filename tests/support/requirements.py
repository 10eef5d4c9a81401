"""What a test needs from the system: it skips where that is missing, and fails where everything is promised."""

import os
import shutil

import pytest

# program -> Debian package, where the two differ
PACKAGES = {
    "sipp": "sip-tester",
    "php": "php-cli",
    "xmllint": "libxml2-utils",
}


def require(*programs: str) -> None:
    """Go on only if all programs are installed.

    A missing one skips the test, with the Debian package to install. With `TOQUE_REQUIRE_ALL=1`, as in CI, it fails it:
    there a skipped test would be a hole that nobody sees.
    """
    for program in programs:
        if shutil.which(program) is None:
            package = PACKAGES.get(program, program)
            _go_without(f"needs {program}: apt install {package}")


def _go_without(reason: str) -> None:
    if os.environ.get("TOQUE_REQUIRE_ALL") == "1":
        pytest.fail(f"{reason} (TOQUE_REQUIRE_ALL=1)", pytrace=False)
    pytest.skip(reason)
