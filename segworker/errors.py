"""The error tree. Every message names the rule, the value and the remedy.

Errors cross process borders (Ray pickles what a worker raises), so each is built from one string and nothing else.
"""

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command; `ray job submit` turns each non-zero one into 1, run.json keeps the truth."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    INCOMPLETE = 3
    BUSY = 4


class SegworkerError(Exception):
    """Base of all errors that a user can act upon."""

    exit_code: ExitCode = ExitCode.FAILED


class ConfigError(SegworkerError):
    """A flag, a key of a job file or a combination of them is not usable."""

    exit_code = ExitCode.USAGE


class SceneError(SegworkerError):
    """One scene cannot be read or planned; the other scenes go on."""


class ReadError(SceneError):
    """A window of a scene cannot be read."""


class StorageError(SegworkerError):
    """A folder, bucket or object cannot be reached, read or written."""


class WeightsError(SegworkerError):
    """A weights file is not loadable into the chosen model."""

    exit_code = ExitCode.USAGE


class PredictionError(SegworkerError):
    """A model returned something that its contract forbids (NaN scores, unknown classes, masks of another size)."""


class TrainingError(SegworkerError):
    """A training cannot go on: a loss or gradients that are no numbers."""


class StoreError(SegworkerError):
    """A store is of a newer format, damaged, or not a store at all."""


class CommitConflict(StoreError):
    """Another run committed the same scenes first."""

    exit_code = ExitCode.BUSY


class LockedError(SegworkerError):
    """Somebody else is at the same work."""

    exit_code = ExitCode.BUSY
