"""The models that the operator listed: loading them one after the other, and finding the one a client asks for.

It knows nothing of jobs. The first model that fails to start, or whose engine dies, ends the service: it refuses rather
than serve some of what it was asked to, and whoever supervises the process can start it again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from sparcom_data.errors import EngineError, InvalidInputError, SparcomError, UnknownModelError
from sparcom_server.errors import NotReadyError
from sparcom_server.protocols import EngineStarter, ModelEngine
from sparcom_server.schemas import ModelReport, ModelState

log = logging.getLogger(__name__)

HEALTH_SECONDS = 1.0  # how often the engines are asked whether they live
CLOSE_SECONDS = 1.0  # for a start that is given up


class ModelRegistry:
    """Served models by name. `on_failure` is called once, with the error, when a start fails or an engine dies."""

    def __init__(
        self, starters: Mapping[str, EngineStarter], on_failure: Callable[[SparcomError], None] | None = None
    ) -> None:
        if not starters:
            raise InvalidInputError(["a server needs at least one model: give --model PATH"])
        self._starters = dict(starters)
        self._on_failure = on_failure
        self._engines: dict[str, ModelEngine] = {}
        self._loading: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self.failure: SparcomError | None = None

    @property
    def names(self) -> list[str]:
        """Every model that was listed, loaded or not."""
        return list(self._starters)

    @property
    def ready(self) -> bool:
        """Whether every model is loaded and its engine lives."""
        return all(self.state(name) == "ready" for name in self._starters)

    @property
    def loading(self) -> bool:
        """Whether a model is being loaded."""
        return self._loading is not None and not self._loading.done()

    def start(self) -> None:
        """Begin to load the models, in the order they were listed, and to watch those that are loaded."""
        self._loading = asyncio.create_task(self._load(), name="sparcom-models")
        self._watching = asyncio.create_task(self._watch(), name="sparcom-engines")

    async def close(self) -> None:
        """Stop loading and close every engine; one that cannot be closed does not keep the others open."""
        tasks = [task for task in (self._loading, self._watching) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_SECONDS)
        for name, engine in self._engines.items():
            try:
                await engine.close()
            except Exception:
                log.exception("the engine of %s could not be closed", name)

    async def _load(self) -> None:
        for name, starter in self._starters.items():
            log.info("loading %s", name)
            try:
                self._engines[name] = await starter()
            except SparcomError as error:
                self._fail(error)
                return
            except Exception as error:
                log.exception("loading %s failed", name)
                self._fail(EngineError(f"the model {name} could not be started: {error}"))
                return
            log.info("%s is ready", name)

    async def _watch(self) -> None:
        while self.failure is None:
            await asyncio.sleep(HEALTH_SECONDS)
            if dead := next((name for name, engine in self._engines.items() if not engine.healthy), None):
                self._fail(
                    EngineError(
                        f"the engine of model {dead!r} stopped. What was complete stays complete; see the engine's log "
                        "above, then start the server again"
                    )
                )

    def _fail(self, error: SparcomError) -> None:
        if self.failure is not None:
            return
        self.failure = error
        if self._on_failure is not None:
            self._on_failure(error)

    def state(self, name: str) -> ModelState:
        """loading, ready, or failed: it could not be started, or its engine died."""
        if engine := self._engines.get(name):
            return "ready" if engine.healthy else "failed"
        return "failed" if self.failure else "loading"

    def choose(self, name: str | None) -> ModelEngine:
        """The engine of the model a client names; without a name, the only one.

        Raises:
            UnknownModelError: it is not served.
            InvalidInputError: no name was given and several are served.
            NotReadyError: it is still loading.
            EngineError: its engine died, or could not be started.
        """
        served = ", ".join(self._starters)
        if name is None and len(self._starters) > 1:
            raise InvalidInputError([f"model: must be given where several are served; choose one of {served}"])
        chosen = next(iter(self._starters)) if name is None else name
        if chosen not in self._starters:
            raise UnknownModelError(f"a model must be one that this server serves: {served}. It is {chosen!r}")
        state = self.state(chosen)
        if state == "loading":
            raise NotReadyError(f"the model {chosen} is still loading; try again when /ready answers 200")
        if state == "failed":
            raise EngineError(f"the engine of {chosen} does not run; the operator must restart the server")
        return self._engines[chosen]

    def report(self, name: str) -> ModelReport:
        """What clients are told of one listed model."""
        state, engine = self.state(name), self._engines.get(name)
        if engine is None:
            return ModelReport(name=name, state=state, healthy=False, error=str(self.failure) if self.failure else None)
        return ModelReport(
            name=name,
            state=state,
            healthy=engine.healthy,
            max_prompt_tokens=engine.max_prompt_tokens,
            model=engine.model,
            engine=engine.engine,
        )
