from __future__ import annotations

from typing import Annotated

import pytest
from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response
from fastapi.testclient import TestClient
from pydantic import BaseModel, Field

from finetune.serving.direct import DirectRoute
from finetune.serving.refusal import Refusal


class Asked(BaseModel):
    many: int = Field(2, ge=1, le=9, description="how many")


def described_and_asked() -> TestClient:
    router = APIRouter(route_class=DirectRoute)

    @router.post("/things/{name}")
    async def with_query(request: Request, name: str, query: Annotated[Asked, Query()]) -> Response:
        return JSONResponse({"name": name, "many": query.many})

    @router.get("/things/{name}")
    async def without(request: Request, name: str) -> Response:
        return JSONResponse({"name": name, "path": request.url.path})

    app = FastAPI()
    app.include_router(router, prefix="/v1")
    return TestClient(app)


def test_a_function_gets_its_path_and_its_query() -> None:
    client = described_and_asked()
    assert client.get("/v1/things/a%20b").json() == {"name": "a b", "path": "/v1/things/a b"}
    assert client.post("/v1/things/7").json() == {"name": "7", "many": 2}
    assert client.post("/v1/things/7?many=3").json() == {"name": "7", "many": 3}


def test_a_query_that_its_model_refuses_is_told_as_fastapi_tells_it() -> None:
    client = described_and_asked()
    for wrong in ("many=0", "many=x", "many="):
        answer = client.post(f"/v1/things/7?{wrong}")
        assert answer.status_code == 422
        assert answer.json()["detail"][0]["loc"][-1] == "many"


def test_a_parameter_that_its_model_does_not_know_is_refused_with_the_nearest() -> None:
    client = described_and_asked()
    with pytest.raises(
        Refusal, match=r"unknown parameter 'mnay'; did you mean 'many'\? \(there are: many\)"
    ) as refused:
        client.post("/v1/things/7?many=3&mnay=1")
    assert refused.value.status == 422


def test_it_is_described_as_any_route() -> None:
    operations = described_and_asked().app.openapi()["paths"]["/v1/things/{name}"]  # type: ignore[attr-defined]
    (many,) = (one for one in operations["post"]["parameters"] if one["in"] == "query")
    assert (many["name"], many["description"]) == ("many", "how many")
    assert (many["schema"]["maximum"], many["required"]) == (9, False)
    assert [one["name"] for one in operations["get"]["parameters"]] == ["name"]
