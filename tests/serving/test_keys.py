from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from starlette.datastructures import Headers

from finetune.errors import FinetuneError
from finetune.serving.keys import Keys, read_keys
from finetune.serving.refusal import Refusal

CLERK, CHIEF = "clerk-secret-0001", "chief-secret-0002"


def line(name: str, role: str, key: str) -> str:
    return f"{name} {role} {hashlib.sha256(key.encode()).hexdigest()}"


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    path = tmp_path / "keys"
    path.write_text(f"# who may\n\n{line('line-3', 'predict', CLERK)}\n{line('ops', 'admin', CHIEF)}\n")
    return read_keys(path)


@pytest.mark.parametrize("form", ["bearer", "x-api-key"])
def test_a_key_is_known_by_its_hash(keys: Keys, form: str) -> None:
    def carrying(key: str) -> Headers:
        return Headers({"authorization": f"Bearer {key}"} if form == "bearer" else {"x-api-key": key})

    assert keys.require(carrying(CLERK), "predict") == "line-3"
    assert keys.require(carrying(CHIEF), "predict") == "ops"
    assert keys.require(carrying(CHIEF), "admin") == "ops"
    for key, role, status in (("wrong", "predict", 401), (CLERK, "admin", 403), ("", "predict", 401)):
        with pytest.raises(Refusal) as refused:
            keys.require(carrying(key), role)  # type: ignore[arg-type]
        assert refused.value.status == status
        assert not key or key not in str(refused.value)


def test_no_key_at_all_is_told_what_to_send(keys: Keys) -> None:
    with pytest.raises(Refusal, match="Authorization: Bearer KEY") as refused:
        keys.require(Headers({}), "predict")
    assert refused.value.status == 401


def test_without_keys_anybody_predicts_and_nobody_administers() -> None:
    keys = read_keys(None, {})
    assert keys.require(Headers({}), "predict") is None
    with pytest.raises(Refusal) as refused:
        keys.require(Headers({"authorization": f"Bearer {CHIEF}"}), "admin")
    assert refused.value.status == 403


def test_they_may_stand_in_the_environment() -> None:
    keys = read_keys(None, {"FINETUNE_KEYS": f"{line('a', 'predict', CLERK)};{line('b', 'admin', CHIEF)}"})
    assert [key.name for key in keys.known] == ["a", "b"]


@pytest.mark.parametrize("text", [line("b", "admin", CHIEF), ""])
def test_a_file_and_the_variable_are_not_both_taken(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(line("a", "predict", CLERK))
    with pytest.raises(FinetuneError, match="and FINETUNE_KEYS are both given; leave one out"):
        read_keys(path, {"FINETUNE_KEYS": text})


@pytest.mark.parametrize("text", ["", " ; \n", "# nobody"])
def test_a_variable_that_was_not_filled_in_opens_nothing(text: str) -> None:
    with pytest.raises(FinetuneError, match="FINETUNE_KEYS holds no key; give keys, or unset it to ask for none"):
        read_keys(None, {"FINETUNE_KEYS": text})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a predict secret", "line 1: it is not of the form NAME predict|admin SHA256"),
        (f"\n{line('a', 'root', 'x')}", "line 2: it is not of the form"),
        (f"{line('a', 'predict', 'x')}\n{line('a', 'admin', 'y')}", "two keys are named a"),
        ("# nobody\n", "holds no key"),
    ],
)
def test_what_is_wrong_is_named_without_the_key(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(FinetuneError) as error:
        read_keys(path)
    assert reason in str(error.value)
    assert "secret" not in str(error.value)
