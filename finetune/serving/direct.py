"""Routes that FastAPI describes but does not prepare, which would cost as much as all our own layers together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Coroutine
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from finetune.errors import nearest
from finetune.serving.refusal import LONGEST_QUOTE, Refusal, quoted


class DirectRoute(APIRoute):
    """Calls its function with the request, the path's parameters and, where it takes `query`, that model of the query.

    The function's signature says it all, as for any route of FastAPI; but parameters of a path are text, one that is
    declared otherwise than by a model stays as it is, and one of a query that its model does not know is refused.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        function = self.endpoint
        asked = next((param for param in self.dependant.query_params if param.name == "query"), None)
        if asked is None:

            async def answer(request: Request) -> Response:
                response: Response = await function(request, **request.path_params)
                return response

            return answer
        model: type[BaseModel] = asked.field_info.annotation  # type: ignore[assignment]

        async def answer_query(request: Request) -> Response:
            _require_known(request.query_params, model.model_fields)
            try:
                query = model.model_validate(dict(request.query_params))
            except ValidationError as problem:
                raise RequestValidationError(problem.errors()) from None
            response: Response = await function(request, query=query, **request.path_params)
            return response

        return answer_query


def _require_known(given: Collection[str], known: Collection[str]) -> None:
    """Raise Refusal 422 for a parameter that would be passed over, as one that is misspelt would."""
    for name in given:
        if name not in known:
            guess = nearest(name[:LONGEST_QUOTE], known)
            raise Refusal(422, f"unknown parameter {quoted(name)}{guess} (there are: {', '.join(known)})")
