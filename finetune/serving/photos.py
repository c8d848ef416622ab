"""The photos of a request as people and scripts send them: one as the body, a form's files, or base64 in JSON."""

from __future__ import annotations

import asyncio
import base64
import binascii
from concurrent.futures import Executor
from typing import NamedTuple

from fastapi import Request
from pydantic_core import from_json
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from finetune.config import LimitsConfig
from finetune.errors import ImageError
from finetune.serving.bodies import Patience
from finetune.serving.refusal import Refusal, quoted

# Of brackets in a body, of which each would become an object of many times its size; base64 has none.
MAX_NESTS = 100
# Of quotes beside those of photos.
MAX_QUOTES = 100
BY_ADDRESS = "model, version and top stand in the address, as in /predict?top=3"


class Photo(NamedTuple):
    """name: empty where a photo is all of the body; raw: a file, or why it is none."""

    name: str
    raw: bytes | ImageError


async def read_photos(request: Request, limits: LimitsConfig, parsing: Executor) -> tuple[list[Photo], Patience]:
    """Return a request's photos, and its time, which begins when its body is there.

    parsing: threads for what takes long to parse. Raises Refusal.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind.startswith("multipart/"):
        photos = await _from_form(request, limits.photos)
        patience = Patience(request.receive, limits.deadline_s)
    else:
        body = await request.body()
        patience = Patience(request.receive, limits.deadline_s)
        if kind != "application/json":
            return [Photo("", body)], patience
        loop = asyncio.get_running_loop()
        photos = await patience.wait_for(loop.run_in_executor(parsing, _from_json, body, limits.photos))
    if len(photos) > limits.photos:
        raise _too_many(limits.photos)
    return photos, patience


async def _from_form(request: Request, most: int) -> list[Photo]:
    try:
        async with request.form(max_files=most, max_fields=most) as form:
            for name, part in form.multi_items():
                if not isinstance(part, UploadFile):
                    hint = f"send each photo as a part with a filename; {BY_ADDRESS}"
                    raise Refusal(422, f"the form's part {quoted(name)} is no file: {hint}")
            parts = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
            photos = [Photo(part.filename or f"photo {n}", await part.read()) for n, part in enumerate(parts, start=1)]
    except HTTPException as problem:
        if problem.detail.startswith("Too many files"):
            raise _too_many(most) from None
        if problem.detail.startswith("Too many fields"):
            hint = "send each photo as a part with a filename"
            raise Refusal(413, f"the form has more than {most} parts that are no files; {hint}") from None
        raise Refusal(problem.status_code, problem.detail) from None
    except ValueError:
        # names in what its charset= cannot decode
        raise Refusal(400, "the form cannot be read") from None
    if not photos:
        raise Refusal(422, "the form has no file; send each photo as a part with a filename")
    return photos


def _from_json(body: bytes, most: int) -> list[Photo]:
    # before each becomes an object; base64 has no quotes of its own
    if body.count(b'"') > 2 * most + MAX_QUOTES:
        raise _too_many(most)
    if body.count(b"[") + body.count(b"{") > MAX_NESTS:
        raise Refusal(422, 'the body must be {"photos": ["...", ...]}, with nothing else in it')
    try:
        document = from_json(body)
    except ValueError as error:
        raise Refusal(400, f"the body cannot be read as JSON: {error}") from None
    photos = document.get("photos") if isinstance(document, dict) else None
    if not isinstance(photos, list) or not photos or not all(isinstance(photo, str) for photo in photos):
        raise Refusal(422, 'the body must be {"photos": ["...", ...]}, each photo a file in base64')
    for name in document:
        if name != "photos":
            raise Refusal(422, f"unknown key {quoted(name)} beside photos: {BY_ADDRESS}")
    return [Photo(f"photo {n}", from_base64(photo)) for n, photo in enumerate(photos, start=1)]


def from_base64(text: str) -> bytes | ImageError:
    """Return a file from base64 in either alphabet, in lines or not, padded or not; or why there is none."""
    if text.startswith(("http://", "https://")):
        return ImageError("addresses of photos are not fetched; send the file in base64", "not_an_image")
    # browsers make data: addresses; what stands before the comma says what the bytes themselves say better
    encoded = text.partition(",")[2] if text.startswith("data:") else text
    encoded = "".join(encoded.split()).replace("-", "+").replace("_", "/").rstrip("=")
    try:
        return base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except (binascii.Error, ValueError):
        return ImageError("no base64", "not_an_image")


def _too_many(most: int) -> Refusal:
    return Refusal(413, f"too many photos in one request; at most {most} are taken")
