"""Errors that are the user's to mend: each is shown as one or two lines, never as a traceback."""

from __future__ import annotations


class AblateError(Exception):
    """Base of all errors with a message for people; `exit_code` is what the command line returns."""

    exit_code = 1


class SpecError(AblateError):
    """A study, recipe or flag that can't be used: names file, field, what it got and what it takes."""

    exit_code = 2


class CapacityError(AblateError):
    """A trial that the cluster can never fit."""

    exit_code = 4
