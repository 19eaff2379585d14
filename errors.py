"""What sedaq raises on purpose. The message is one line that names what is wrong, where, and the remedy.

A message names an argument in backticks, as Python knows it: "`batch_size`: …". The command line turns that into its flag.
"""

from __future__ import annotations


class SedaqError(Exception):
    """The work failed (exit code 1)."""

    exit_code = 1


class InputError(SedaqError):
    """What the user gave is wrong (exit code 2)."""

    exit_code = 2


class DamagedError(InputError):
    """A stored file is not what was written; whoever can make it again does."""


class UntrustedError(InputError):
    """A model that only a file names, and that is code or would be downloaded."""


class WorkerError(SedaqError):
    """A worker process died."""
