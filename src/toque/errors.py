"""Errors, named by who can mend them.

Nothing here depends on the rest of toque or on any library, so the SDK may raise these as well.
"""

from __future__ import annotations


class ToqueError(Exception):
    """Whatever toque raises on purpose."""


class InputError(ToqueError):
    """The caller sent something that cannot be read or is not allowed; the text says what and is fit to be shown."""


class SettingsError(ToqueError):
    """The operator set something that cannot be used."""

    def __init__(self, option: str, source: str, problem: str) -> None:
        super().__init__(option, source, problem)
        self.option = option
        self.source = source
        self.problem = problem

    def __str__(self) -> str:
        """One line: the setting, where it was set, what is allowed."""
        return f"{self.option} ({self.source}): {self.problem}"


class StoreError(ToqueError):
    """The store could not do its part now; nothing was acknowledged, trying again is right."""


class IllegalStep(ToqueError):  # noqa: N818 - it names the deed, not the error class
    """Our own bug: a state machine was asked for a step that its table does not have."""


class ClientError(ToqueError):
    """Raised by the SDK (`toque.client`, `toque.receiver`)."""
