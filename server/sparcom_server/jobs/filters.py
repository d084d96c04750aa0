"""Conditions on the list of jobs."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Select, and_, or_

from sparcom_server.database.tables import JobRow, MetadataRow


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs to list. Times in milliseconds since 1970. metadata: pairs that must all match."""

    states: tuple[str, ...] = ()
    model: str | None = None
    created_after: int | None = None
    created_before: int | None = None
    metadata: tuple[tuple[str, str], ...] = ()

    def apply(self, query: Select[tuple[JobRow]]) -> Select[tuple[JobRow]]:
        """Return a query of jobs, restricted to those that match."""
        if self.states:
            query = query.where(JobRow.state.in_(self.states))
        if self.model is not None:
            query = query.where(or_(JobRow.model == self.model, JobRow.tuned == self.model))
        if self.created_after is not None:
            query = query.where(JobRow.created > self.created_after)
        if self.created_before is not None:
            query = query.where(JobRow.created < self.created_before)
        for key, value in self.metadata:
            query = query.where(JobRow.tags.any(and_(MetadataRow.key == key, MetadataRow.value == value)))
        return query
