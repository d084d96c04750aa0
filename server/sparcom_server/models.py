"""The engines of the models that the operator listed: load, swap, watch, restart.

At most `max_loaded` engines are in memory. A dead engine is closed and started again after a pause that doubles with
each death. After `max_restarts` deaths in a row the service gives up: it ends, and a supervisor can act.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from sparcom_data.errors import EngineError, InvalidInputError, SparcomError, UnknownModelError, UnsupportedModelError
from sparcom_server.protocols import ModelEngine, ModelSource
from sparcom_server.schemas.reports import ModelReport, ModelState

logger = logging.getLogger(__name__)

HEALTH_SECONDS = 1.0  # between two health checks of the engines
CLOSE_SECONDS = 30.0  # for one engine to close
FIRST_STARTS = 1  # failed first starts of a model before it counts as failed
FIRST_PAUSE_SECONDS, MAX_PAUSE_SECONDS = 1.0, 60.0  # before a restart
STABLE_SECONDS = 600.0  # an engine that lived longer did not die in a row


@dataclass(slots=True)
class _Model:
    """One listed model. deaths: in a row. facts: of the engine that was loaded last. broken: that one died, or the
    next did not start."""

    source: ModelSource
    engine: ModelEngine | None = None
    loading: bool = False
    error: SparcomError | None = None
    deaths: int = 0
    broken: bool = False
    started: float = 0.0
    used: float = 0.0
    facts: ModelReport | None = None


class ModelPool:
    """Engines by model name.

    on_failure: called once, with the error, when the pool gives up. on_restart: called with the model's name.
    """

    def __init__(
        self,
        sources: Mapping[str, ModelSource],
        *,
        max_loaded: int = 1,
        max_restarts: int = 5,
        on_failure: Callable[[SparcomError], None] | None = None,
        on_restart: Callable[[str], None] | None = None,
    ) -> None:
        if not sources:
            raise InvalidInputError("a server needs at least one model; give --model PATH")
        self._models = {name: _Model(source) for name, source in sources.items()}
        self._max_loaded, self._max_restarts = max_loaded, max_restarts
        self._on_failure, self._on_restart = on_failure, on_restart
        self._lock = asyncio.Lock()  # one engine starts or stops at a time
        self._tasks: list[asyncio.Task[None]] = []
        self._busy: str | None = None  # the model whose engine runs a job
        self.failure: SparcomError | None = None

    @property
    def states(self) -> dict[str, ModelState]:
        """The state of every listed model, in the operator's order."""
        return {name: self._state(model) for name, model in self._models.items()}

    @property
    def loading(self) -> bool:
        """Whether an engine is being started."""
        return any(model.loading for model in self._models.values())

    @property
    def loaded(self) -> frozenset[str]:
        """Models with a running engine."""
        return frozenset(name for name, state in self.states.items() if state == "ready")

    @property
    def available(self) -> bool:
        """Whether an engine runs, or a job can have one soon: it ran until another model needed its place."""
        return self.failure is None and any(
            model.facts is not None
            and not (model.error or model.broken)
            and (model.engine is None or model.engine.healthy)
            for model in self._models.values()
        )

    def start(self) -> None:
        """Begin to load the first models, as many as fit, and to watch the engines."""
        self._tasks = [asyncio.create_task(self._load_first()), asyncio.create_task(self._watch())]

    async def close(self) -> None:
        """Stop loading and close every engine. An engine that fails to close does not keep the others open."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        for name in self._models:
            await self._unload(name)

    def source(self, name: str) -> ModelSource:
        """Return a listed model."""
        return self._models[name].source

    def choose(self, name: str | None) -> str:
        """Return the name of a model that can run; without a name, that of the only model.

        Raises:
            UnknownModelError: the model is not served.
            InvalidInputError: no name was given and several models are served.
            EngineError: it could not be started.
        """
        served = ", ".join(self._models)
        if name is None and len(self._models) > 1:
            raise InvalidInputError(f"model: required if several are served; choose one of {served}")
        chosen = next(iter(self._models)) if name is None else name
        if chosen not in self._models:
            raise UnknownModelError(f"this server has no model {chosen[:140]!r}; choose one of {served}")
        if self.failure or self._models[chosen].error:
            raise EngineError(f"the engine of {chosen} is not running; the operator must restart the server")
        return chosen

    async def acquire(self, name: str) -> ModelEngine:
        """Return the running engine of a model; load it, or start it again, if needed. Call `release` after use.

        Raises:
            InvalidInputError, UnsupportedModelError: this model can never be served like this.
            EngineError: it did not start; try again.
        """
        async with self._lock:
            model = self._models[name]
            if error := self.failure or model.error:
                raise error
            await self._bury_dead(name)
            if model.engine is None:
                await self._make_room(name)
                await self._load(name)
            assert model.engine is not None  # noqa: S101  (loaded above)
            model.used, self._busy = time.monotonic(), name
            return model.engine

    def release(self, name: str) -> None:
        """The job on this engine has ended."""
        if self._busy == name:
            self._busy = None
        self._models[name].used = time.monotonic()

    def succeeded(self, name: str) -> None:
        """Instructions became complete: earlier deaths no longer count."""
        self._models[name].deaths = 0

    def report(self, name: str) -> ModelReport:
        """Return one listed model as clients see it."""
        model = self._models[name]
        facts = model.facts or ModelReport(name=name, state="unloaded", healthy=False)
        error = model.error or self.failure
        return facts.model_copy(
            update={
                "state": self._state(model),
                "healthy": model.engine is not None and model.engine.healthy,
                "error": str(error) if error else None,
            }
        )

    def _state(self, model: _Model) -> ModelState:
        if model.error or self.failure:
            return "failed"
        if model.loading:
            return "loading"
        if model.engine is None:
            return "unloaded"
        return "ready" if model.engine.healthy else "loading"  # a dead one is started again

    async def _load_first(self) -> None:
        for name in list(self._models)[: self._max_loaded]:
            self._models[name].loading = True
        for name in list(self._models)[: self._max_loaded]:
            try:
                await self.acquire(name)
                self.release(name)
            except SparcomError as error:
                self._fail(error)
                return

    async def _watch(self) -> None:
        while self.failure is None:
            await asyncio.sleep(HEALTH_SECONDS)
            for name, model in self._models.items():
                if model.engine is None or model.engine.healthy or self._busy == name or self._lock.locked():
                    continue
                try:
                    await self.acquire(name)
                    self.release(name)
                except SparcomError as error:
                    logger.warning("%s", error)

    async def _load(self, name: str) -> None:
        model = self._models[name]
        model.loading = True
        logger.info("loading %s", name)
        try:
            model.engine = await model.source.start()
        except (InvalidInputError, UnsupportedModelError) as error:
            model.error = error
            raise
        except SparcomError as error:
            await self._count_death(name, error)
            raise
        except Exception as error:
            logger.exception("loading %s failed", name)
            failure = EngineError(f"the model {name} could not be started: {error}")
            await self._count_death(name, failure)
            raise failure from error
        finally:
            model.loading = False
        model.started, model.broken = time.monotonic(), False
        engine = model.engine
        model.facts = ModelReport(
            name=name,
            state="ready",
            healthy=True,
            max_prompt_tokens=engine.max_prompt_tokens,
            model=engine.model,
            engine=engine.engine,
        )
        logger.info("%s is ready", name)

    async def _bury_dead(self, name: str) -> None:
        """Close a dead engine, and wait before the next start."""
        model = self._models[name]
        if model.engine is None or model.engine.healthy:
            return
        if time.monotonic() - model.started > STABLE_SECONDS:
            model.deaths = 0
        model.loading = model.broken = True
        await self._unload(name)
        await self._count_death(name, EngineError(f"the engine of model {name!r} stopped"))
        if self._on_restart:
            self._on_restart(name)

    async def _count_death(self, name: str, error: SparcomError) -> None:
        """Pause before the next start, or give up: on a later model if it never ran, else on the service."""
        model = self._models[name]
        model.deaths, model.broken = model.deaths + 1, True
        if model.facts is None and name in list(self._models)[: self._max_loaded]:
            self._fail(error)  # jobs wait for the next start of the service
            raise error
        if model.facts is None:  # it never ran
            model.error = error if model.deaths > FIRST_STARTS else None
            return
        if model.deaths > self._max_restarts:
            model.loading = False
            self._fail(
                EngineError(
                    f"{str(error).rstrip('.')} {model.deaths} times in a row. See the engine's log above, then start "
                    "the server again; its jobs continue"
                )
            )
            raise self.failure or error
        pause = min(FIRST_PAUSE_SECONDS * 2 ** (model.deaths - 1), MAX_PAUSE_SECONDS)
        logger.error("%s; start %d of %d in %g s", error, model.deaths, self._max_restarts, pause)
        await asyncio.sleep(pause)

    async def _make_room(self, name: str) -> None:
        """Close the engines that were used least recently until one more fits."""
        loaded = [other for other, model in self._models.items() if model.engine is not None and other != name]
        loaded.sort(key=lambda other: self._models[other].used)
        for other in loaded[: max(0, len(loaded) + 1 - self._max_loaded)]:
            logger.info("closing %s to make room for %s", other, name)
            await self._unload(other)

    async def _unload(self, name: str) -> None:
        model = self._models[name]
        engine, model.engine = model.engine, None
        if engine is None:
            return
        try:
            await asyncio.wait_for(engine.close(), CLOSE_SECONDS)
        except Exception:
            logger.exception("the engine of %s could not be closed", name)

    def _fail(self, error: SparcomError) -> None:
        if self.failure is None:
            self.failure = error
            if self._on_failure is not None:
                self._on_failure(error)
