"""Versions that go on being served though their files cannot be read any more."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from finetune.serving.routes import Target

log = logging.getLogger(__name__)


class Missing:
    """Knows what kept the files of each from being read at the last look; says so in the log once, until they are back.

    reasons: by version; another look makes others.
    """

    def __init__(self) -> None:
        self.reasons: Mapping[Target, str] = {}
        self._told: set[Target] = set()

    def note(self, reasons: Mapping[Target, str], now: str | None) -> None:
        """Take in a look. A version is told of when two looks in turn miss it, as it may just be renamed.

        now: a model that is told of at once.
        """
        new = [target for target in reasons if target in self.reasons or target.model == now]
        self._tell([target for target in new if target not in self._told], reasons)
        self._told = (self._told | {*new}) & reasons.keys()
        self.reasons = reasons

    def of(self, model: str) -> list[str]:
        """Return the reasons of a model's versions, each once."""
        return list(dict.fromkeys(reason for target, reason in self.reasons.items() if target.model == model))

    def _tell(self, targets: list[Target], reasons: Mapping[Target, str]) -> None:
        if targets:
            names, why = ", ".join(map(str, targets)), reasons[targets[0]]
            log.warning("the files of %s cannot be read any more (%s); what was open goes on", names, why)
