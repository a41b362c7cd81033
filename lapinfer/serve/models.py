"""The models that a server has: named, loaded when they are asked for, and let go when others need their memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from lapinfer.errors import DoesNotFitError
from lapinfer.options import LoadOptions
from lapinfer.serve.errors import ApiError
from lapinfer.serve.metrics import Counted
from lapinfer.serve.token_texts import TokenTexts
from lapinfer.text.language_model import LanguageModel
from lapinfer.text.scheduler import Scheduler

Open = Callable[[str, LoadOptions], LanguageModel]
Size = Callable[[str, LoadOptions], int]


@dataclass(eq=False, slots=True)
class Served:
    """A loaded model. name: what clients call it. users: requests that have it now; used: when one last had it."""

    name: str
    model: LanguageModel
    scheduler: Scheduler
    bytes: int = 0
    users: int = 0
    used: float = field(default_factory=time.monotonic)
    texts: TokenTexts = field(init=False)

    def __post_init__(self) -> None:
        self.texts = TokenTexts(self.model.tokenizer)


class Lease:
    """A model that stays loaded until `release`, or the end of the block: `with await models.lease(name) as m`."""

    def __init__(self, served: Served, changed: asyncio.Event) -> None:
        self.served, self._changed, self._held = served, changed, True
        served.users += 1

    def release(self) -> None:
        if self._held:
            self._held = False
            self.served.users -= 1
            self.served.used = time.monotonic()
            self._changed.set()

    def __enter__(self) -> Served:
        return self.served

    def __exit__(self, *error: object) -> None:
        self.release()


class Models:
    """Models by their names; `lease` loads one where it is not loaded yet.

    paths: what `lapinfer.load` takes, by names; the first one is asked where a request names none. memory: bytes that
    models may take together, as `size` foresees them; None for as many as can be loaded. Where there is no room, those
    leave that nobody has, the least used first; where somebody has all of them, a request waits for that, so many
    `seconds` at most (None: for as long as it takes).
    """

    def __init__(
        self, paths: Mapping[str, str], options: LoadOptions, *, open: Open, size: Size, memory: int | None, queue: int,
        seconds: float | None = None,
    ) -> None:  # fmt: skip
        self.paths = dict(paths)
        self.options, self.memory, self.queue, self._seconds = options, memory, queue, seconds
        self._open, self._size = open, size
        self._loaded: dict[str, Served] = {}
        self._loading, self._changed = asyncio.Lock(), asyncio.Event()
        self.created = int(time.time())

    def counted(self) -> dict[str, Counted]:
        """What loaded models have counted; waits for the end of a step of each."""
        counted: dict[str, Counted] = {}
        for each in self.loaded:
            usage = each.model.usage
            with each.model.model.lock:
                steps, parts = usage.steps, usage.parts()
            counted[each.name] = Counted(each.scheduler.stats(), steps, parts, each.model.prefixes.stats())
        return counted

    @property
    def loaded(self) -> Sequence[Served]:
        return tuple(self._loaded.values())

    def put(self, name: str, model: LanguageModel) -> None:
        """A model that is loaded already."""
        self._put(name, model, self._size(self.paths[name], self.options) if self.memory is not None else 0)

    def _put(self, name: str, model: LanguageModel, size: int) -> None:
        try:
            scheduler = Scheduler(model, most_waiting=self.queue)
        except BaseException:  # the system refuses one more thread
            model.close()
            raise
        self._loaded[name] = Served(name, model, scheduler, size)

    def known(self, name: str | None) -> str:
        """The name of a model; ApiError (404) for one that is not served. None is the first one."""
        if name is None:
            return next(iter(self.paths))
        if name not in self.paths:
            told = f"the model {name[:100]!r} does not exist here: GET /v1/models lists those that do"
            raise ApiError(404, told, param="model", code="model_not_found")
        return name

    async def lease(self, name: str | None) -> Lease:
        """The model, loaded, until the lease is released. ApiError (404) for an unknown one, DoesNotFitError for one
        that is too large, ApiError (503) where others are used for too long, and what `open` raises.
        """
        name = self.known(name)
        if (served := self._loaded.get(name)) is not None:
            return Lease(served, self._changed)
        end = None if self._seconds is None else asyncio.get_running_loop().time() + self._seconds
        async with _until(end):  # a load that has begun is not given up, so only waits end
            await self._loading.acquire()
        try:
            if name not in self._loaded:
                await self._load(name, end)
            return Lease(self._loaded[name], self._changed)
        finally:
            self._loading.release()

    async def _load(self, name: str, end: float | None) -> None:
        path, needed = self.paths[name], 0
        if self.memory is not None:
            needed = await asyncio.to_thread(self._size, path, self.options)
            if needed > self.memory:
                raise DoesNotFitError(f"{name}: needs {needed / 1e6:,.0f} MB, --memory is {self.memory / 1e9:g} GB")
            while sum(each.bytes for each in self._loaded.values()) + needed > self.memory:
                await self._let_go(end)
        while True:
            try:
                model = await asyncio.to_thread(self._open, path, self.options)
                break
            except DoesNotFitError:
                if not self._loaded:
                    raise
            await self._let_go(end)
        self._put(name, model, needed)

    async def _let_go(self, end: float | None) -> None:
        """Close the least used model that nobody has, after waiting for one until `end`."""
        while not (idle := [each for each in self._loaded.values() if not each.users]):
            self._changed.clear()
            async with _until(end):
                await self._changed.wait()
        await self._close(min(idle, key=lambda each: each.used))

    async def _close(self, served: Served) -> None:
        del self._loaded[served.name]
        await asyncio.to_thread(served.scheduler.close)
        await asyncio.to_thread(served.model.close)

    async def close(self) -> None:
        """Let everything go, after the requests that run."""
        for served in self.loaded:
            await self._close(served)


@asynccontextmanager
async def _until(end: float | None) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout_at(end):
            yield
    except TimeoutError:
        raise ApiError(503, "other models are in use, and have the memory", headers={"Retry-After": "30"}) from None


def named(paths: Sequence[str]) -> dict[str, str]:
    """Paths by what clients call them: names as they are, and of paths the last part; a number where two are alike."""
    names: dict[str, str] = {}
    for path in paths:
        name = Path(path).resolve().name.removesuffix(".gguf") or "model" if Path(path).exists() else path
        alike = sum(each == name or each.startswith(f"{name}#") for each in names)
        names[f"{name}#{alike + 1}" if alike else name] = path
    return names
