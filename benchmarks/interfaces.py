"""Every way to ask a server about photos, and whether it says of each what it says of that photo alone."""

from __future__ import annotations

import base64
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from numpy.typing import ArrayLike

TIMEOUT_S = 60
# Between two answers to one photo, of each probability: batches on a GPU round in another order. A share, as it is the
# small ones that tell photos apart of which a model is sure.
TOLERANCE, LEAST = 0.05, 1e-12
PHOTOS, OTHERS = ("raw", "form", "json", "infer", "grpc"), ("bad", "metrics")


@dataclass(frozen=True)
class Known:
    """What a model says of one photo alone. by_label: every class's probability; row: the same in the model's order."""

    by_label: dict[str, float]
    row: np.ndarray

    def same_prediction(self, prediction: dict[str, Any]) -> bool:
        """Whether an entry of /predict says this; it may name either of two classes that are as probable."""
        labels = [score["label"] for score in prediction.get("top", ())]
        if prediction.get("label") not in labels or not self.by_label.keys() >= set(labels):
            return False
        known, best = [self.by_label[label] for label in labels], self.by_label[prediction["label"]]
        told = [score["probability"] for score in prediction["top"]]
        return _close(best, max(self.by_label.values())) and _close(told, known)

    def same_row(self, row: np.ndarray) -> bool:
        return row.shape == self.row.shape and _close(row, self.row)


def _close(one: ArrayLike, other: ArrayLike) -> bool:
    logs = [np.log(np.maximum(probabilities, LEAST)) for probabilities in (one, other)]
    return bool(np.abs(logs[0] - logs[1]).max() <= TOLERANCE)


class Client:
    """One connection of each interface."""

    def __init__(self, http: str, grpc: str, photos: list[bytes]) -> None:
        self.photos = photos
        with ExitStack() as stack:
            self.http = stack.enter_context(httpx.Client(base_url=http, timeout=TIMEOUT_S, trust_env=False))
            address = http.removeprefix("http://")
            self.infer = stack.enter_context(
                triton.InferenceServerClient(address, connection_timeout=TIMEOUT_S, network_timeout=TIMEOUT_S)
            )
            self.grpc = stack.enter_context(triton_grpc.InferenceServerClient(grpc))
            self._stack = stack.pop_all()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stack.close()

    def models(self) -> list[str]:
        return sorted({entry["name"] for entry in self.http.get("/models").raise_for_status().json()["models"]})

    def known(self, model: str) -> list[Known]:
        """Ask about each photo alone; raises where two interfaces differ about one."""
        return [self._known(model, number) for number in range(len(self.photos))]

    def _known(self, model: str, number: int) -> Known:
        address = f"/predict?model={model}&top=1000"
        (prediction,) = self.http.post(address, content=self.photos[number]).raise_for_status().json()["predictions"]
        by_label = {score["label"]: score["probability"] for score in prediction["top"]}
        (row,) = self.rows("infer", model, [number])
        best = np.sort(row)[::-1][: len(by_label)]
        if not _close(best, sorted(by_label.values(), reverse=True)):
            raise SystemExit(f"{model}: /predict and /v2 differ about photo {number}")
        return Known(by_label, row)

    def right(self, kind: str, model: str, numbers: list[int], known: list[Known]) -> bool:
        """Send photos by one of PHOTOS; returns whether each has its own answer, in order."""
        if kind in ("infer", "grpc"):
            rows = self.rows(kind, model, numbers)
            return len(rows) == len(numbers) and all(
                known[number].same_row(row) for number, row in zip(numbers, rows, strict=True)
            )
        response = self._posted(kind, f"/predict?model={model}", [self.photos[number] for number in numbers])
        if response.status_code != 200:
            return False
        predictions = response.json()["predictions"]
        return len(predictions) == len(numbers) and all(
            known[number].same_prediction(prediction) for number, prediction in zip(numbers, predictions, strict=True)
        )

    def rows(self, kind: str, model: str, numbers: list[int]) -> np.ndarray:
        protocol, client = (triton, self.infer) if kind == "infer" else (triton_grpc, self.grpc)
        array = np.array([self.photos[number] for number in numbers], dtype=object)
        tensor = protocol.InferInput("encoded_images", array.shape, "BYTES").set_data_from_numpy(array)
        limit = {} if kind == "infer" else {"client_timeout": TIMEOUT_S}
        rows: np.ndarray = client.infer(model, [tensor], **limit).as_numpy("probabilities")
        return rows

    def _posted(self, kind: str, address: str, batch: list[bytes]) -> httpx.Response:
        if kind == "raw":
            return self.http.post(address, content=batch[0])
        if kind == "form":
            return self.http.post(address, files=[("photo", ("photo", raw)) for raw in batch])
        return self.http.post(address, json={"photos": [base64.b64encode(raw).decode() for raw in batch]})

    def right_without_photos(self, kind: str, model: str) -> bool:
        """Ask one of OTHERS: half a photo, or the metrics."""
        if kind == "metrics":
            return self.http.get("/metrics").status_code == 200
        return self.http.post(f"/predict?model={model}", content=self.photos[0][:200]).status_code == 422
