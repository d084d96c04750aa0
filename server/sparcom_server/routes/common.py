"""What every route needs: the service behind the app, and the paging parameters."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request

from sparcom_server.jobs.reports import Addresses
from sparcom_server.service import Service


def _service(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)  # noqa: S101  (create_app puts it there)
    return service


ServiceDep = Annotated[Service, Depends(_service)]
AddressesDep = Annotated[Addresses, Depends(Addresses)]
Limit = Annotated[int, Query(ge=1, le=1000, description="At most so many entries.")]
Offset = Annotated[int, Query(ge=0, description="Skip so many of the newest.")]
