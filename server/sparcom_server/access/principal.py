"""The client of one request, and the names of archives as each client sees them."""

from __future__ import annotations

from dataclasses import dataclass, field

from sparcom_server.schemas.requests import ARCHIVE_NAME, OWNER_NAME, Limits, Role

SEPARATOR = "~"  # between owner and name; neither may hold it


@dataclass(frozen=True, slots=True)
class Principal:
    """The client of a request. owner: name of its key; "" without keys. key_id: "" without keys."""

    owner: str
    role: Role
    key_id: str = ""
    limits: Limits = field(default_factory=Limits, compare=False)

    @property
    def is_admin(self) -> bool:
        """Whether it sees the jobs and archives of everyone."""
        return self.role == "admin"

    def may_see(self, owner: str) -> bool:
        """Return whether it sees what belongs to `owner`."""
        return self.is_admin or owner == self.owner

    def stored_name(self, name: str) -> str:
        """Return the name in the folder of archives of what this client calls `name`; "" if it may not see it.

        Archives of a key are stored as OWNER~NAME. So keys share no names, and cannot find out those of others. An
        admin may give any stored name; ~NAME is an archive without owner.
        """
        if SEPARATOR in name:
            return name.removeprefix(SEPARATOR) if self.is_admin else ""
        return f"{self.owner}{SEPARATOR}{name}" if self.owner else name

    def shown_name(self, stored: str) -> str:
        """Return what this client calls an archive; the inverse of `stored_name`."""
        owner, _, name = stored.rpartition(SEPARATOR)
        return name if owner == self.owner else f"{owner}{SEPARATOR}{name}"


ANONYMOUS = Principal(owner="", role="admin")
"""Every client of a server without keys."""


def is_stored_name(name: str) -> bool:
    """Return whether an archive may be stored under this name: NAME, or OWNER~NAME."""
    owner, separator, rest = name.rpartition(SEPARATOR)
    return bool(ARCHIVE_NAME.fullmatch(rest)) and (not separator or bool(OWNER_NAME.fullmatch(owner)))
