"""Every error that the project raises on purpose.

A message says the rule, the value that broke it and the remedy, in that order. The classes exist so that callers can
tell kinds of failure apart (the server maps each to an HTTP status in one table); they carry no other logic.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_PROBLEMS = 100


class SparcomError(Exception):
    """Base of all errors whose message is meant for the user, without a traceback."""


class InvalidInputError(SparcomError):
    """Input that breaks one or more rules. `problems` lists the first 100 and says how many more there are.

    Args:
        problems: one sentence per problem, or the only one.
        total: how many problems there are, where `problems` holds only the first of them.
    """

    def __init__(self, problems: Sequence[str] | str, total: int | None = None) -> None:
        problems = [problems] if isinstance(problems, str) else problems
        self.problems = list(problems[:MAX_PROBLEMS])
        more = max(total or 0, len(problems)) - len(self.problems)
        if more:
            self.problems.append(f"… and {more:,} more")
        super().__init__("\n".join(self.problems))


class UnknownModelError(SparcomError):
    """A model that the operator did not list."""


class ModelUnavailableError(SparcomError):
    """A model could not be fetched, converted or made."""


class TrainingFailedError(SparcomError):
    """Training ran but made no usable model: the loss did not fall or is not a number, or memory did not suffice."""


class UnsupportedModelError(SparcomError):
    """A model, engine version or parallel layout whose neurons cannot be captured."""


class EngineError(SparcomError):
    """The engine failed to start or died."""


class JobNotFoundError(SparcomError):
    """No extraction job has this id."""


class JobStateError(SparcomError):
    """The job is in a state that does not allow the request."""


class ArchiveError(SparcomError):
    """Base of what can be wrong with an archive."""


class ArchiveNotFoundError(ArchiveError):
    """Nothing is at the archive's address."""


class ArchiveExistsError(ArchiveError):
    """An archive of that name exists already."""


class NotAnArchiveError(ArchiveError):
    """Something is there, but it is no SPARCOM archive."""


class NewerFormatError(ArchiveError):
    """The archive was written by a later version of the format."""


class DamagedArchiveError(ArchiveError):
    """A chunk is missing or its checksum does not match."""


class IncompleteArchiveError(ArchiveError):
    """The archive holds too few complete instructions for what was asked."""


class UnsupportedArchiveError(ArchiveError):
    """The archive is sound, but of a kind that this release cannot use for what was asked."""


class StorageError(SparcomError):
    """Writing failed: disk full, no permission, lost mount."""


class MissingExtraError(SparcomError):
    """A command needs an optional part of the installation."""
