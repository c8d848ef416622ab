"""The models that answer: opened at the start, exchanged while requests go on, never replaced by what does not work."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.config import ServeConfig
from finetune.errors import FinetuneError
from finetune.serving.catalogue import Catalogue, listed
from finetune.serving.live import LiveModel
from finetune.serving.looks import Looks, Wanted
from finetune.serving.metrics import Metrics
from finetune.serving.missing import Missing
from finetune.serving.refusal import Refusal
from finetune.serving.routes import Route, Target
from finetune.serving.shelf import Signature

log = logging.getLogger(__name__)

# A copy may pause for less; files that stay for so long, and cannot be opened, are a failure.
QUIET_S = 5
# Opens a version's folder as the target it is served as; takes seconds, raises what goes wrong.
Open = Callable[[Path, Target], LiveModel]


@dataclass
class Failure:
    """What kept files from being opened; told: whether the log and the metrics say so."""

    signature: Signature
    reason: str
    told: bool = False


class Repository(Catalogue):
    """Holds every version that answers, by name; all of it is used from one event loop."""

    def __init__(self, config: ServeConfig, open_model: Open, metrics: Metrics) -> None:
        """Raises FinetuneError where there is no bundle."""
        super().__init__()
        self._config, self._open, self._metrics = config, open_model, metrics
        self._looks = Looks(config)
        self._opened: dict[Target, Signature] = {}
        self._failed: dict[Target, Failure] = {}
        self._missing = Missing()
        self._unloaded: set[str] = set()
        self._complaint = ""
        self._lock = asyncio.Lock()
        self._thread = ThreadPoolExecutor(1, "load-models")

    async def start(self) -> None:
        """Open and warm up all models; raises where a route leads to nothing that works.

        So it does where no version of a model works, unless a route asked for the one that failed and has another.
        """
        async with self._lock:
            wanted = await self._in_thread(self._looks.look, frozenset(self._unloaded))
            failures = {
                target: error
                for target, signature in wanted.signatures.items()
                if (error := await self._exchange(target, signature)) is not None
            }
            pinned = {target for route in wanted.routes.values() for target in route.weights}
            for target, error in failures.items():
                self._tell(target)
                if not (target.model in self.models or await self._fall_back(target) or target in pinned):
                    raise error
            self._routes = {name: self._followable(name, route) for name, route in wanted.routes.items()}
        self._started = True
        self._metrics.ready(self.ready)

    async def watch(self) -> None:
        """Look for what has changed every `reload_s`, for as long as the server runs."""
        while self._config.reload_s:
            await asyncio.sleep(self._config.reload_s)
            try:
                await self.refresh()
            except Exception:
                log.exception("the repository could not be looked through; what is open goes on")

    async def refresh(self, now: str | None = None) -> None:
        """Open what is new, let go what it replaces, keep what nothing works in place of.

        now: a model whose versions are opened at once, those too that failed before; any other is opened when two looks
        in turn have found the same files, as a copy may still be written. One that has paused for longer is tried again
        when it goes on, and is not told as broken before its files stay as they are.
        """
        async with self._lock:
            try:
                wanted = await self._in_thread(self._looks.look, frozenset(self._unloaded))
            except FinetuneError as error:
                self._complain(str(error))
                await self._miss(now)
                return
            for target, signature in wanted.signatures.items():
                same_s, at_once = self._looks.same_for_s(target, signature), target.model == now
                if at_once:
                    # what kept it from being opened may be gone, though its files are the same
                    self._failed.pop(target, None)
                changed = (same_s or at_once) and self._differs(target, signature)
                if changed or (at_once and self._fails(target)):
                    await self._exchange(target, signature)
                if same_s >= QUIET_S or at_once:
                    self._tell(target)
            try:
                self._require_targets(wanted.routes)
            except FinetuneError as error:
                self._complain(str(error))
            else:
                # a route that is as it was goes on where it was: its next turn may be the tenth of a tenth
                known = self._routes
                self._routes = {
                    name: known[name] if known.get(name) == route else route for name, route in wanted.routes.items()
                }
                self._complaint = ""
            self._let_go(wanted)
            await self._miss(now)

    async def load(self, name: str) -> None:
        """Open a model's versions as they are on disk now; raises Refusal where that does not work."""
        self._unloaded.discard(name)
        await self.refresh(now=name)
        failures = [failure.reason for target, failure in self._failed.items() if target.model == name]
        failures += self._missing.of(name)
        if failures:
            raise Refusal(400, f"{name} cannot be loaded: {'; '.join(failures)}")
        if self._complaint:
            raise Refusal(400, f"{name} is not routed as it is asked for: {self._complaint}")
        if name not in self.models:
            raise Refusal(404, f"no model '{name[:100]}' in the repository")

    async def unload(self, name: str) -> None:
        """Let a model go until it is loaded by request; raises Refusal where there is none, or a route needs it."""
        async with self._lock:
            if name not in self.models:
                raise self._unknown(name)
            users = [route for route, shares in self._routes.items() if any(t.model == name for t in shares.weights)]
            if users:
                raise Refusal(409, f"the routes {', '.join(users)} lead to {name}: change them first")
            self._unloaded.add(name)
            for version in list(self.models[name]):
                self._drop(Target(name, version))

    def drain(self) -> None:
        """Say that it is not ready from now on; what comes nevertheless is answered."""
        self.draining = True
        self._metrics.ready(False)
        self._metrics.draining(True)

    def hinder(self, obstacle: str | None) -> None:
        """Be not ready for what keeps an interface from answering; None: nothing does any more."""
        self._obstacle = obstacle
        self._metrics.ready(self.ready)

    def index(self) -> list[dict[str, str]]:
        """Return each version's state in the protocol's words, and what keeps it or its new files from being ready."""
        rows = [{"name": model.name, "version": model.version, **self._state(model)} for model in self.everything]
        rows += [
            {"name": target.model, "version": str(target.version), "state": "UNAVAILABLE", "reason": "cannot be opened"}
            for target in self._failed
            if not self._serves(target)
        ]
        gone = {"version": "", "state": "UNAVAILABLE", "reason": "unloaded"}
        return rows + [{"name": name, **gone} for name in sorted(self._unloaded)]

    def _state(self, model: LiveModel) -> dict[str, str]:
        # why exactly is for the log and an admin: it names files of this machine
        if not model.health.well:
            return {"state": "UNAVAILABLE", "reason": "it fails on its device"}
        target = Target(model.name, int(model.version))
        if target in self._failed:
            return {"state": "READY", "reason": "its files have changed and cannot be opened; what was open goes on"}
        if target in self._missing.reasons:
            return {"state": "READY", "reason": "its files cannot be read any more; what was open goes on"}
        return {"state": "READY", "reason": ""}

    def close(self) -> None:
        """Look and open no more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)

    def _differs(self, target: Target, signature: Signature) -> bool:
        """Whether these are other files than those that were opened last, or could not be."""
        failed = self._failed.get(target)
        return signature != (failed.signature if failed else self._opened.get(target))

    async def _fall_back(self, target: Target) -> bool:
        """Open the newest version before one that cannot be, which a server that had not ended would serve by now."""
        older = [Target(target.model, version) for version in self._looks.shelf.versions().get(target.model, ())]
        for candidate in sorted(older, reverse=True):
            if candidate < target:
                if await self._exchange(candidate, self._looks.shelf.signature(candidate)) is None:
                    return True
                self._tell(candidate)
        return False

    async def _exchange(self, target: Target, signature: Signature) -> Exception | None:
        """Open a version; returns what kept it from being opened, which `_tell` logs and counts."""
        try:
            model = await self._in_thread(self._open, self._looks.shelf.folder(target), target)
        except Exception as error:
            reason = str(error) if isinstance(error, FinetuneError) else f"{type(error).__name__}: {error}"
            self._failed[target] = Failure(signature, reason)
            # its frames would hold the session, and a GPU's memory, while another version is opened
            return error.with_traceback(None)
        self._put(target, signature, model)
        return None

    def _tell(self, target: Target) -> None:
        """Log and count, once, that a version could not be opened."""
        failure = self._failed.get(target)
        if failure is None or failure.told:
            return
        failure.told = True
        kept = "; what was open goes on" if target.model in self.models else ""
        log.error("%s version %d cannot be opened: %s%s", target.model, target.version, failure.reason, kept)
        self._metrics.load_failed(target.model)

    def _put(self, target: Target, signature: Signature, model: LiveModel) -> None:
        self.models.setdefault(target.model, {})[target.version] = model
        self._opened[target] = signature
        self._failed.pop(target, None)
        session = model.predictor.session
        log.info("%s version %s is warm on %s (%s)", model.name, model.version, session.provider, session.why)
        self._metrics.ready(self.ready)

    def _let_go(self, wanted: Wanted) -> None:
        """Drop versions that neither disk nor routes ask for, where all that are wanted of the model answer."""
        routed = {target for route in self._routes.values() for target in route.weights}
        for name in list(self.models):
            asked = {target for target in (*wanted.signatures, *routed) if target.model == name}
            if asked and all(target.version in self.models[name] for target in asked):
                for version in [version for version in self.models[name] if Target(name, version) not in asked]:
                    self._drop(Target(name, version))
                    log.info("%s version %d was let go", name, version)
        self._failed = {target: known for target, known in self._failed.items() if target in wanted.signatures}

    async def _miss(self, now: str | None) -> None:
        self._missing.note(await self._in_thread(self._looks.shelf.missing, sorted(self._opened)), now)

    def _drop(self, target: Target) -> None:
        del self.models[target.model][target.version]
        if not self.models[target.model]:
            del self.models[target.model]
        del self._opened[target]
        self._looks.forget(target)
        self._metrics.unloaded(target.model, str(target.version))
        self._metrics.ready(self.ready)

    def _require_targets(self, routes: dict[str, Route]) -> None:
        for name, route in routes.items():
            for target in route.weights:
                if not self._serves(target):
                    raise FinetuneError(self._leads_nowhere(name, target))

    def _followable(self, name: str, route: Route) -> Route:
        """Return a route without what does not answer, as a canary keeps no server from its start.

        Raises FinetuneError where nothing is left.
        """
        left = {target: share for target, share in route.weights.items() if self._serves(target)}
        for target in route.weights:
            if target in left:
                continue
            complaint = self._leads_nowhere(name, target)
            if not left:
                raise FinetuneError(complaint)
            log.error("%s; the others have its share", complaint)
            # what the next look finds is nothing new
            self._complaint = self._complaint or complaint
            if target not in self._failed:
                self._metrics.load_failed(target.model)
        return Route(left)

    def _leads_nowhere(self, name: str, target: Target) -> str:
        failure = self._failed.get(target)
        if target.model in self._unloaded:
            why = "was unloaded: load it first"
        elif failure is not None and failure.told:
            why = f"cannot be opened: {failure.reason}"
        else:
            why = f"is not served (served: {listed(f'{m.name}/{m.version}' for m in self.everything)})"
        return f"routes={self._config.routes}: {name} leads to {target}, which {why}"

    def _fails(self, target: Target) -> bool:
        return self._serves(target) and not self.models[target.model][target.version].health.well

    def _serves(self, target: Target) -> bool:
        return target.version in self.models.get(target.model, {})

    def _complain(self, complaint: str) -> None:
        """Log once for each new complaint, not at every look."""
        if complaint != self._complaint:
            log.error("%s; the routes stay as they were", complaint)
        self._complaint = complaint
