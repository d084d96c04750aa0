"""The models that the operator listed: load them in turn, and find the one that a client names.

If a model fails to start or its engine dies, the service ends. It never serves only some of the listed models, and a
supervisor can restart the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from sparcom_data.errors import EngineError, InvalidInputError, SparcomError, UnknownModelError
from sparcom_server.errors import NotReadyError
from sparcom_server.protocols import EngineStarter, ModelEngine
from sparcom_server.schemas.reports import ModelReport, ModelState

logger = logging.getLogger(__name__)

HEALTH_SECONDS = 1.0  # between two health checks of the engines
CLOSE_SECONDS = 1.0  # for an abandoned start


class ModelRegistry:
    """Served models by name. `on_failure` is called once, with the error, when a start fails or an engine dies."""

    def __init__(
        self, starters: Mapping[str, EngineStarter], on_failure: Callable[[SparcomError], None] | None = None
    ) -> None:
        if not starters:
            raise InvalidInputError("a server needs at least one model; give --model PATH")
        self._starters = dict(starters)
        self._on_failure = on_failure
        self._engines: dict[str, ModelEngine] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self.failure: SparcomError | None = None

    @property
    def states(self) -> dict[str, ModelState]:
        """The state of every listed model, in the operator's order."""
        return {name: self.state(name) for name in self._starters}

    @property
    def loading(self) -> bool:
        """Whether a model is being loaded."""
        return bool(self._tasks) and not self._tasks[0].done()

    def start(self) -> None:
        """Begin to load the models in order, and to watch the engines."""
        self._tasks = [asyncio.create_task(self._load()), asyncio.create_task(self._watch())]

    async def close(self) -> None:
        """Stop loading and close every engine. An engine that fails to close does not keep the others open."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_SECONDS)
        for name, engine in self._engines.items():
            try:
                await engine.close()
            except Exception:
                logger.exception("the engine of %s could not be closed", name)

    async def _load(self) -> None:
        for name, starter in self._starters.items():
            logger.info("loading %s", name)
            try:
                self._engines[name] = await starter()
            except SparcomError as error:
                self._fail(error)
                return
            except Exception as error:
                logger.exception("loading %s failed", name)
                self._fail(EngineError(f"the model {name} could not be started: {error}"))
                return
            logger.info("%s is ready", name)

    async def _watch(self) -> None:
        while self.failure is None:
            await asyncio.sleep(HEALTH_SECONDS)
            if dead := next((name for name, engine in self._engines.items() if not engine.healthy), None):
                message = (
                    f"the engine of model {dead!r} stopped. Complete instructions stay complete; see the engine's log "
                    "above, then start the server again"
                )
                self._fail(EngineError(message))

    def _fail(self, error: SparcomError) -> None:
        if self.failure is None:
            self.failure = error
            if self._on_failure is not None:
                self._on_failure(error)

    def state(self, name: str) -> ModelState:
        """Return "loading", "ready" or "failed". A model fails if it cannot be started or its engine dies."""
        if engine := self._engines.get(name):
            return "ready" if engine.healthy else "failed"
        return "failed" if self.failure else "loading"

    def choose(self, name: str | None) -> ModelEngine:
        """Return the engine of the named model; without a name, that of the only model.

        Raises:
            UnknownModelError: the model is not served.
            InvalidInputError: no name was given and several models are served.
            NotReadyError: the model is still loading.
            EngineError: its engine died, or could not be started.
        """
        served = ", ".join(self._starters)
        if name is None and len(self._starters) > 1:
            raise InvalidInputError(f"model: required if several are served; choose one of {served}")
        chosen = next(iter(self._starters)) if name is None else name
        if chosen not in self._starters:
            raise UnknownModelError(f"this server has no model {chosen!r}; choose one of {served}")
        state = self.state(chosen)
        if state == "loading":
            raise NotReadyError(f"the model {chosen} is still loading; try again when /ready answers 200")
        if state == "failed":
            raise EngineError(f"the engine of {chosen} is not running; the operator must restart the server")
        return self._engines[chosen]

    def report(self, name: str) -> ModelReport:
        """Return one listed model as clients see it."""
        engine = self._engines.get(name)
        report = ModelReport(name=name, state=self.state(name), healthy=engine is not None and engine.healthy)
        if engine is not None:
            report.max_prompt_tokens, report.model, report.engine = (
                engine.max_prompt_tokens,
                engine.model,
                engine.engine,
            )
        elif self.failure:
            report.error = str(self.failure)
        return report
