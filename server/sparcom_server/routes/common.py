"""Dependencies of the routes: the app's service, the client's addresses, and the paging parameters."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Query, Request

from sparcom_server.jobs.reports import Addresses
from sparcom_server.service import Service


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceDep = Annotated[Service, Depends(_service)]
AddressesDep = Annotated[Addresses, Depends(Addresses)]
Limit = Annotated[int, Query(ge=1, le=1000, description="Maximum number of entries.")]
Offset = Annotated[int, Query(ge=0, description="Number of newest entries to skip.")]
