"""All errors that the project raises on purpose.

Each message states the rule, the value that broke it and the remedy, in that order. The classes let callers tell
failures apart; one table in the server maps each to an HTTP status. They carry no other logic.
"""

from __future__ import annotations

from collections.abc import Sequence

MAX_PROBLEMS = 100


class SparcomError(Exception):
    """Base class of errors whose message is shown to the user without a traceback."""


class InvalidInputError(SparcomError):
    """The input breaks one or more rules. `problems` lists the first 100, then the number of those left out.

    Args:
        problems: one sentence per problem, or a single sentence.
        total: number of all problems, if `problems` holds only the first of them.
    """

    def __init__(self, problems: Sequence[str] | str, total: int | None = None) -> None:
        problems = [problems] if isinstance(problems, str) else problems
        self.problems = list(problems[:MAX_PROBLEMS])
        more = max(total or 0, len(problems)) - len(self.problems)
        if more:
            self.problems.append(f"… and {more:,} more")
        super().__init__("\n".join(self.problems))


class UnknownModelError(SparcomError):
    """The operator did not list this model."""


class ModelUnavailableError(SparcomError):
    """A model could not be fetched, converted or created."""


class TrainingFailedError(SparcomError):
    """Training gave no usable model: the loss did not fall or is not a number, or memory ran out."""


class UnsupportedModelError(SparcomError):
    """Neurons cannot be captured with this model, engine version or parallel layout."""


class EngineError(SparcomError):
    """The engine failed to start or died."""


class JobNotFoundError(SparcomError):
    """No extraction job has this id."""


class JobStateError(SparcomError):
    """The job is in a state that does not allow the request."""


class ArchiveError(SparcomError):
    """Base class of archive errors."""


class ArchiveNotFoundError(ArchiveError):
    """No archive exists at this path or address."""


class ArchiveExistsError(ArchiveError):
    """An archive of this name already exists."""


class NotAnArchiveError(ArchiveError):
    """The path or address holds something other than a SPARCOM archive."""


class NewerFormatError(ArchiveError):
    """The archive has a later format version than this release reads."""


class DamagedArchiveError(ArchiveError):
    """A chunk is missing or its checksum does not match."""


class IncompleteArchiveError(ArchiveError):
    """The archive holds too few complete instructions for the request."""


class UnsupportedArchiveError(ArchiveError):
    """The archive is valid, but its kind does not support the request."""


class StorageError(SparcomError):
    """Writing failed: disk full, no permission, lost mount."""


class DiskFullError(StorageError):
    """Writing failed because the disk or the quota is full; the same write can succeed later."""


class MissingExtraError(SparcomError):
    """A command needs an optional part of the installation."""
