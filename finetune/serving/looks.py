"""Looks at the disk: which versions and routes it asks for, and for how long their files have been the same."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import NamedTuple

from finetune.config import ServeConfig
from finetune.serving.routes import Route, Target, read_routes
from finetune.serving.shelf import Shelf, Signature


class Wanted(NamedTuple):
    """What the disk asks for at one moment."""

    signatures: dict[Target, Signature]
    routes: dict[str, Route]


class Looks:
    """Takes one look after another."""

    def __init__(self, config: ServeConfig) -> None:
        """Raises FinetuneError where there is no bundle."""
        self.shelf = Shelf(config.models)
        self._config = config
        # the files of the last look, and when they were first seen so
        self._seen: dict[Target, tuple[Signature, float]] = {}

    def look(self, unloaded: Collection[str]) -> Wanted:
        """Return what is asked for, but for models that were unloaded; raises FinetuneError for the routes' file."""
        routes = read_routes(self._config.routes) if self._config.routes else {}
        wanted = {target for route in routes.values() for target in route.weights}
        for name, versions in self.shelf.versions().items():
            if self._config.versions == "all":
                wanted |= {Target(name, version) for version in versions}
            elif name not in routes:
                wanted.add(Target(name, max(versions)))
        signatures = {target: self.shelf.signature(target) for target in sorted(wanted) if target.model not in unloaded}
        return Wanted({target: files for target, files in signatures.items() if files}, routes)

    def same_for_s(self, target: Target, signature: Signature) -> float:
        """Return for how long looks in turn have found the same files; 0 where this is the first that does."""
        now = time.monotonic()
        known, since = self._seen.get(target, (signature, now))
        if known != signature:
            since = now
        self._seen[target] = (signature, since)
        return now - since

    def forget(self, target: Target) -> None:
        """Begin anew with a version that is no longer served."""
        self._seen.pop(target, None)
