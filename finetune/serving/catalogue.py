"""The models that answer at this moment, and how a request finds its own."""

from __future__ import annotations

from collections.abc import Iterable

from finetune.errors import nearest
from finetune.serving.live import LiveModel
from finetune.serving.refusal import Refusal
from finetune.serving.routes import Route, Target


class Catalogue:
    """Versions by the names of their models, and names that lead to them; used from one event loop."""

    def __init__(self) -> None:
        self.models: dict[str, dict[int, LiveModel]] = {}
        self.draining = False
        # what keeps an interface from answering
        self._obstacle: str | None = None
        self._started = False
        self._routes: dict[str, Route] = {}

    @property
    def ready(self) -> bool:
        """Whether every model answers, and there is one, at each interface, and the server is not about to end."""
        answering = bool(self.models) and all(model.health.well for model in self.everything)
        return self._started and answering and not self.draining and self._obstacle is None

    def require_ready(self) -> None:
        """Raise Refusal 503, with the reason, where it is not."""
        if self.draining:
            raise Refusal(503, "this server is about to end", retry_after_s=1)
        if self._obstacle is not None:
            raise Refusal(503, self._obstacle, retry_after_s=1)
        self._require_models()
        for model in self.everything:
            model.health.require_well()

    @property
    def names(self) -> list[str]:
        """All names that a client may ask for: models, and the routes that lead to them."""
        return sorted({*self.models, *self._routes})

    @property
    def everything(self) -> list[LiveModel]:
        return [model for _, versions in sorted(self.models.items()) for _, model in sorted(versions.items())]

    def require(self, name: str | None, version: str | None = None) -> None:
        """Raise Refusal 400, 404 or 503 where `choose` would surely: before photos are uploaded for nothing."""
        found = self._find(name, version)
        if isinstance(found, LiveModel):
            found.health.require_well()
        else:
            # `choose` still refuses the shares of those that fail: the others may not be made for as much
            best = max((self._at(target) for target in found.weights), key=lambda model: model.health.well)
            best.health.require_well()

    def hold(self, name: str | None, version: str | None) -> LiveModel | None:
        """Return the version asked for, which a newer one may take the place of while photos are uploaded.

        None where no version is asked for: `choose` once they are there. Raises as `require` does.
        """
        if version is not None:
            return self.choose(name, version)
        self.require(name)
        return None

    def choose(self, name: str | None, version: str | None = None) -> LiveModel:
        """Return the model that answers a name: the version asked for, a route's draw, or else the latest.

        Raises Refusal 400, 404 or 503.
        """
        found = self._find(name, version)
        model = found if isinstance(found, LiveModel) else self._at(found.draw())
        model.health.require_well()
        return model

    def find(self, name: str | None, version: str | None = None) -> LiveModel:
        """Return what `choose` would, for a look at it: of a route the largest share, and no turn is taken from any."""
        found = self._find(name, version)
        if isinstance(found, LiveModel):
            return found
        return self._at(max(found.weights, key=found.weights.__getitem__))

    def _at(self, target: Target) -> LiveModel:
        return self.models[target.model][target.version]

    def find_all(self, name: str) -> list[LiveModel]:
        """Return all that a name may be answered by: a model's versions, and those that a route leads to."""
        self._find(name, None)
        return self._answering(name)

    def _answering(self, name: str) -> list[LiveModel]:
        targets = {Target(name, version) for version in self.models.get(name, ())}
        if name in self._routes:
            targets |= self._routes[name].weights.keys()
        return [self.models[target.model][target.version] for target in sorted(targets)]

    def _require_models(self) -> None:
        if not self._started:
            raise Refusal(503, "the models are still loading", retry_after_s=1)
        if not self.models:
            raise Refusal(503, "no model is loaded", retry_after_s=1)

    def _find(self, name: str | None, version: str | None) -> LiveModel | Route:
        self._require_models()
        if name is None:
            if len(self.models) != 1:
                raise Refusal(400, f"several models are served; name one of {', '.join(self.names)}")
            # a route is another name of it, unless it has the same
            (name,) = self.models
        if version is None and name in self._routes:
            return self._routes[name]
        versions = self.models.get(name, {})
        if version is None:
            if not versions:
                raise self._unknown(name)
            return versions[max(versions)]
        asked = [model for model in self._answering(name) if model.version == version]
        # a route may lead to versions of one number of several models
        found = [model for model in asked if model.name == name] or asked
        if len(found) == 1:
            return found[0]
        if not versions:
            raise self._unknown(name)
        raise Refusal(404, f"no version {version[:20]} of {name} (served: {listed(sorted(versions))})")

    def _unknown(self, name: str) -> Refusal:
        if name in self._routes:
            return Refusal(404, f"{name} is a route to {listed(self._routes[name].weights)}; ask that")
        return Refusal(404, f"no model '{name[:100]}'{nearest(name[:100], self.names)} (served: {listed(self.names)})")


def listed(things: Iterable[object]) -> str:
    return ", ".join(map(str, things))
