"""Models that come, change and go under a server that goes on answering."""

from __future__ import annotations

import asyncio
import logging
import shutil
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from finetune.cores import CpuSession
from finetune.errors import FinetuneError
from finetune.serving import repository as looking
from finetune.serving.refusal import Refusal
from finetune.serving.repository import Repository
from tests.conftest import rewrite_bundle
from tests.serving.conftest import assembled

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def models(tiny_models: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_models, tmp_path / "models"))


@pytest.fixture
def photo(tiny_models: Path) -> bytes:
    return (tiny_models.parent / "photos" / "red" / "0.jpg").read_bytes()


def add_version(models: Path, number: int) -> Path:
    return Path(shutil.copytree(models / "tiny" / "1", models / "tiny" / str(number)))


def damage(version: Path) -> None:
    content = bytearray((version / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (version / "model.onnx").write_bytes(bytes(content))


async def opened(models: Path, **changed: object) -> Repository:
    repository = assembled(models, **changed).repository
    await repository.start()
    return repository


async def settled(repository: Repository) -> None:
    """Look twice: what is new is opened when it has not changed between two looks."""
    await repository.refresh()
    await repository.refresh()


def versions(repository: Repository) -> list[str]:
    return [model.version for model in repository.everything]


async def test_a_new_version_is_opened_and_the_old_one_let_go(models: Path, photo: bytes) -> None:
    repository = await opened(models)
    before = repository.choose("tiny")
    add_version(models, 2)
    await repository.refresh()
    assert versions(repository) == ["1"], "its files might still be written"
    await repository.refresh()
    assert versions(repository) == ["2"]
    assert repository.choose("tiny").version == "2"
    (row,) = await repository.choose("tiny").classify([photo])
    assert not isinstance(row, FinetuneError)
    forgotten = weakref.ref(before)
    del before
    assert forgotten() is None, "its session and its memory are gone"


async def test_requests_in_hand_are_answered_by_the_version_that_is_let_go(models: Path, photo: bytes) -> None:
    repository = await opened(models)
    asked = [asyncio.ensure_future(repository.choose("tiny").classify([photo] * 20)) for _ in range(3)]
    add_version(models, 2)
    await settled(repository)
    assert versions(repository) == ["2"]
    assert [len(rows) for rows in await asyncio.gather(*asked)] == [20, 20, 20]


async def test_a_damaged_version_changes_nothing(
    models: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "QUIET_S", 0)
    service = assembled(models)
    repository = service.repository
    await repository.start()
    damage(add_version(models, 2))
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            await repository.refresh()
    assert versions(repository) == ["1"]
    said = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(said) == 1, "it is tried and complained of once"
    assert "tiny version 2 cannot be opened" in said[0]
    assert "sha256 differs" in said[0]
    (failed,) = [row for row in repository.index() if row["state"] == "UNAVAILABLE"]
    assert failed["version"] == "2"
    assert b'finetune_model_load_failures_total{model="tiny"} 1.0' in service.metrics.text()[0]
    shutil.rmtree(models / "tiny" / "2")
    add_version(models, 2)
    await settled(repository)
    assert versions(repository) == ["2"], "mended, it is taken"
    assert all(row["state"] == "READY" for row in repository.index())


async def test_a_model_that_nobody_could_ask_for_is_not_served(models: Path) -> None:
    repository = await opened(models)
    shutil.copytree(models / "tiny", models / "stats")
    await settled(repository)
    assert repository.names == ["tiny"]
    with pytest.raises(Refusal, match="counts what all models did: give the model stats another name"):
        await repository.load("stats")
    with pytest.raises(FinetuneError, match="give the model stats another name"):
        await opened(models)


async def test_a_slow_copy_in_place_is_no_failure(
    models: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "QUIET_S", 3600)
    service = assembled(models)
    repository = service.repository
    await repository.start()
    whole = (models / "tiny" / "1" / "model.onnx").read_bytes()
    coming = add_version(models, 2) / "model.onnx"
    for part in (1000, 2000):
        coming.write_bytes(whole[:part])
        # it pauses for many looks, but not for long
        for _ in range(40):
            await repository.refresh()
    assert versions(repository) == ["1"]
    coming.write_bytes(whole)
    await settled(repository)
    assert versions(repository) == ["2"]
    assert b'load_failures_total{model="tiny"} 0.0' in service.metrics.text()[0]
    damage(models / "tiny" / "2")
    for _ in range(40):
        await repository.refresh()
    assert b'load_failures_total{model="tiny"} 0.0' in service.metrics.text()[0]
    monkeypatch.setattr(looking, "QUIET_S", 0)
    await settled(repository)
    assert b'load_failures_total{model="tiny"} 1.0' in service.metrics.text()[0]
    assert [record.levelno for record in caplog.records if "cannot be opened" in record.message] == [logging.ERROR]


async def test_what_is_damaged_at_the_start_is_not_served_at_all(models: Path) -> None:
    damage(models / "tiny" / "1")
    with pytest.raises(FinetuneError, match="sha256 differs"):
        await opened(models)


@pytest.mark.parametrize("policy", ["latest", "all"])
async def test_a_restart_serves_what_a_server_that_goes_on_would(
    models: Path, policy: str, caplog: pytest.LogCaptureFixture
) -> None:
    damage(add_version(models, 2))
    damage(add_version(models, 3))
    repository = await opened(models, versions=policy)
    assert repository.ready
    assert versions(repository) == ["1"]
    assert any("tiny version 3 cannot be opened" in message for message in caplog.messages)
    assert {row["version"] for row in repository.index() if row["state"] == "UNAVAILABLE"} == {"2", "3"}
    await settled(repository)
    assert versions(repository) == ["1"]
    add_version(models, 4)
    await settled(repository)
    assert "4" in versions(repository)


async def test_a_model_without_any_version_that_works_is_no_start(models: Path) -> None:
    shutil.copytree(models / "tiny", models / "second")
    damage(models / "second" / "1")
    with pytest.raises(FinetuneError, match="sha256 differs"):
        await opened(models)


async def test_a_route_to_what_cannot_be_opened_is_no_start(models: Path, tmp_path: Path) -> None:
    damage(add_version(models, 2))
    (tmp_path / "routes.yaml").write_text("best: tiny/2\n")
    with pytest.raises(FinetuneError, match="sha256 differs"):
        await opened(models, routes=str(tmp_path / "routes.yaml"))


async def test_a_part_of_a_route_that_cannot_be_opened_leaves_its_share_to_the_others(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damage(add_version(models, 2))
    routes = tmp_path / "routes.yaml"
    routes.write_text("tiny: {tiny/1: 80, tiny/2: 10, tiny/3: 10}\n")
    service = assembled(models, routes=str(routes))
    repository = service.repository
    await repository.start()
    assert repository.ready
    assert {repository.choose("tiny").version for _ in range(20)} == {"1"}
    said = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    await repository.refresh()
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == len(said) == 3
    assert "sha256 differs" in said[0]
    assert "tiny leads to tiny/2, which cannot be opened" in said[1]
    assert "tiny leads to tiny/3, which is not served (served: tiny/1); the others have its share" in said[2]
    assert b'load_failures_total{model="tiny"} 2.0' in service.metrics.text()[0]
    shutil.rmtree(models / "tiny" / "2")
    add_version(models, 2)
    add_version(models, 3)
    await settled(repository)
    drawn = Counter(repository.choose("tiny").version for _ in range(10))
    assert drawn == {"1": 8, "2": 1, "3": 1}, "mended, the route is as its file has it"


async def test_a_load_past_routes_that_cannot_be_followed_is_told(models: Path, tmp_path: Path) -> None:
    routes = tmp_path / "routes.yaml"
    routes.write_text("best: tiny/1\n")
    repository = await opened(models, routes=str(routes), reload_s=0)
    for wrong, reason in (("best: tiny/9\n", "leads to tiny/9"), ("best: {tiny/1: [\n", "routes")):
        routes.write_text(wrong)
        with pytest.raises(Refusal, match=reason) as refused:
            await repository.load("tiny")
        assert refused.value.status == 400
    routes.write_text("best: tiny/1\n")
    await repository.load("tiny")


async def test_files_exchanged_in_place_are_opened_anew(models: Path, photo: bytes) -> None:
    repository = await opened(models)
    before = repository.choose("tiny")
    rewrite_bundle(models / "tiny" / "1", temperature=2.0)
    await settled(repository)
    after = repository.choose("tiny")
    assert after is not before
    assert after.bundle.info.model.temperature == 2.0


async def test_a_file_damaged_or_deleted_under_the_server_changes_nothing(models: Path, photo: bytes) -> None:
    repository = await opened(models)
    before = repository.choose("tiny")
    damage(models / "tiny" / "1")
    await settled(repository)
    (row,) = repository.index()
    assert (row["version"], row["state"]) == ("1", "READY")
    assert row["reason"] == "its files have changed and cannot be opened; what was open goes on"
    shutil.rmtree(models / "tiny")
    await settled(repository)
    shutil.rmtree(models)
    await settled(repository)
    assert repository.choose("tiny") is before
    await before.classify([photo])
    reason = "its files cannot be read any more; what was open goes on"
    assert [(row["state"], row["reason"]) for row in repository.index()] == [("READY", reason)]


async def test_files_that_go_away_under_what_is_served_are_told_of_once(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_version(models, 2)
    routes = tmp_path / "routes.yaml"
    routes.write_text("tiny: {tiny/1: 90, tiny/2: 10}\n")
    repository = await opened(models, routes=str(routes))

    def told() -> list[str]:
        return [record.message for record in caplog.records if record.levelno == logging.WARNING]

    for _ in range(2):
        caplog.clear()
        (models / "tiny" / "2").rename(tmp_path / "2")
        await repository.refresh()
        assert not told(), "it may just be renamed"
        await settled(repository)
        (said,) = told()
        assert "the files of tiny/2 cannot be read any more" in said
        assert "No such file or directory" in said
        assert versions(repository) == ["1", "2"]
        assert [bool(row["reason"]) for row in repository.index()] == [False, True]
        (tmp_path / "2").rename(models / "tiny" / "2")
        await settled(repository)
        assert not any(row["reason"] for row in repository.index())
    caplog.clear()
    models.rename(tmp_path / "away")
    await settled(repository)
    (said,) = told()
    assert "the files of tiny/1, tiny/2 cannot be read any more" in said
    caplog.clear()
    (tmp_path / "away").rename(models)
    await settled(repository)
    models.rename(tmp_path / "away")
    routes.rename(tmp_path / "away" / "routes.yaml")
    await settled(repository)
    (said,) = told()
    assert "the files of tiny/1, tiny/2 cannot be read any more" in said, "though the routes cannot be read either"


@pytest.mark.parametrize("gone", ["tiny/1", "tiny", "."])
async def test_a_load_of_what_is_not_there_any_more_is_refused(
    models: Path, gone: str, caplog: pytest.LogCaptureFixture
) -> None:
    repository = await opened(models, reload_s=0)
    shutil.rmtree(models / gone)
    for _ in range(2):
        with pytest.raises(Refusal, match=r"tiny cannot be loaded: .*No such file or directory") as refused:
            await repository.load("tiny")
        assert refused.value.status == 400
    assert repository.choose("tiny").version == "1"
    (said,) = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert "the files of tiny/1 cannot be read any more" in said


async def test_a_version_that_another_takes_the_place_of_is_not_missed(
    models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    add_version(models, 2)
    repository = await opened(models)
    shutil.rmtree(models / "tiny" / "2")
    await settled(repository)
    assert versions(repository) == ["1"]
    assert not [record for record in caplog.records if record.levelno == logging.WARNING]


async def test_deleting_the_newest_version_goes_back_to_the_one_before(models: Path) -> None:
    add_version(models, 2)
    repository = await opened(models)
    assert versions(repository) == ["2"]
    shutil.rmtree(models / "tiny" / "2")
    await settled(repository)
    assert versions(repository) == ["1"]


async def test_a_new_model_is_opened(models: Path) -> None:
    repository = await opened(models)
    shutil.copytree(models / "tiny", models / "second")
    await settled(repository)
    assert repository.names == ["second", "tiny"]
    assert repository.choose("second").name == "second"


async def test_what_has_a_hidden_name_is_still_being_copied(models: Path) -> None:
    repository = await opened(models)
    shutil.copytree(models / "tiny", models / ".second")
    shutil.copytree(models / "tiny" / "1", models / "tiny" / ".2")
    await settled(repository)
    assert (repository.names, versions(repository)) == (["tiny"], ["1"])
    (models / ".second").rename(models / "second")
    (models / "tiny" / ".2").rename(models / "tiny" / "2")
    await settled(repository)
    assert (repository.names, versions(repository)) == (["second", "tiny"], ["1", "2"])
    shutil.rmtree(models / "tiny")
    (models / "second").rename(models / ".second")
    with pytest.raises(FinetuneError, match="holds no bundle"):
        await opened(models)


async def test_all_versions_answer_by_number(models: Path) -> None:
    add_version(models, 2)
    repository = await opened(models, versions="all")
    assert repository.choose("tiny", "1").version == "1"
    assert repository.choose("tiny").version == "2"
    for wrong in ("3", "01", "latest", "-1", "1/../2", "9" * 5000, "²"):
        with pytest.raises(Refusal) as refused:
            repository.choose("tiny", wrong)
        assert refused.value.status == 404
    with pytest.raises(Refusal, match="did you mean 'tiny'"):
        repository.choose("tinny", "1")


async def test_a_request_that_has_chosen_a_version_is_answered_by_it(models: Path, photo: bytes) -> None:
    repository = await opened(models)
    chosen = repository.choose("tiny")
    answering = asyncio.ensure_future(chosen.classify([photo]))
    # before the request's photos are in its hands
    await repository.unload("tiny")
    (row,) = await answering
    assert not isinstance(row, FinetuneError)


async def test_numbers_that_are_none_are_no_answer(models: Path, photo: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = await opened(models)
    nothing = np.full((1, 3), np.nan, np.float32)
    monkeypatch.setattr(CpuSession, "run", lambda *_: [nothing])
    with pytest.raises(ArithmeticError, match="tiny version 1 answers with numbers that are none"):
        await repository.choose("tiny").classify([photo])
    monkeypatch.setattr(CpuSession, "run_each", lambda *_: [[nothing[:0]], [nothing]])
    with pytest.raises(FinetuneError, match="answers blank photos with numbers that are none"):
        await opened(models)


async def test_a_look_at_a_route_takes_no_turn(models: Path, tmp_path: Path) -> None:
    add_version(models, 2)
    routes = tmp_path / "routes.yaml"
    routes.write_text("tiny: {tiny/1: 50, tiny/2: 50}\n")
    repository = await opened(models, routes=str(routes))
    drawn: Counter[str] = Counter()
    for _ in range(10):
        assert repository.find("tiny").name == "tiny"
        drawn[repository.choose("tiny").version] += 1
    assert drawn == {"1": 5, "2": 5}


async def test_routes_share_out_a_name_and_follow_their_file(models: Path, tmp_path: Path) -> None:
    add_version(models, 2)
    add_version(models, 3)
    routes = tmp_path / "routes.yaml"
    routes.write_text("tiny: {tiny/1: 90, tiny/2: 10}\nnext: tiny/3\n")
    repository = await opened(models, routes=str(routes))
    assert Counter(repository.choose("tiny").version for _ in range(100)) == {"1": 90, "2": 10}
    assert repository.choose("next").version == "3"
    assert repository.choose("tiny", "3").version == "3"
    assert repository.names == ["next", "tiny"]

    drawn: Counter[str] = Counter()
    for _ in range(20):
        drawn.update(repository.choose("tiny").version for _ in range(5))
        await repository.refresh()
    assert drawn == {"1": 90, "2": 10}, "between two looks there may be fewer requests than a share takes"

    routes.write_text("tiny: tiny/2\n")
    await settled(repository)
    assert versions(repository) == ["2"], "pinned: newer ones are not even opened"
    routes.write_text("tiny: tiny/9\n")
    await settled(repository)
    assert repository.choose("tiny").version == "2", "a route that leads nowhere is not taken"
    routes.unlink()
    await settled(repository)
    assert repository.choose("tiny").version == "2"


async def test_one_model_needs_no_name_whatever_routes_lead_to_it(models: Path, tmp_path: Path) -> None:
    add_version(models, 2)
    routes = tmp_path / "routes.yaml"
    routes.write_text("stable: tiny/1\n")
    repository = await opened(models, routes=str(routes))
    assert repository.choose(None).version == "2"
    routes.write_text("stable: tiny/2\ntiny: {tiny/1: 50, tiny/2: 50}\n")
    await settled(repository)
    assert Counter(repository.choose(None).version for _ in range(10)) == {"1": 5, "2": 5}
    shutil.copytree(models / "tiny", models / "second")
    await settled(repository)
    with pytest.raises(Refusal, match="several models are served; name one of second, stable, tiny"):
        repository.choose(None)


async def test_a_route_answers_the_versions_that_it_leads_to(models: Path, tmp_path: Path) -> None:
    for name in ("bad name", "second"):
        shutil.copytree(models / "tiny", models / name)
    add_version(models, 2)
    routes = tmp_path / "routes.yaml"
    routes.write_text("stable: tiny/1\nboth: {second/1: 50, bad name/1: 50}\nsecond: {second/1: 90, tiny/2: 10}\n")
    repository = await opened(models, routes=str(routes))
    assert repository.choose("stable", "1") is repository.choose("tiny", "1")
    assert repository.choose("second", "2") is repository.choose("tiny", "2")
    for name, version, reason in (
        ("stable", "2", "stable is a route to tiny/1; ask that"),
        ("both", "1", "both is a route to second/1, bad name/1; ask that"),
        ("second", "3", r"no version 3 of second \(served: 1\)"),
    ):
        with pytest.raises(Refusal, match=reason) as refused:
            repository.choose(name, version)
        assert refused.value.status == 404
    with pytest.raises(Refusal, match="stable is a route to tiny/1; ask that"):
        await repository.unload("stable")

    def answering(name: str) -> list[str]:
        return [f"{model.name}/{model.version}" for model in repository.find_all(name)]

    assert answering("tiny") == ["tiny/1", "tiny/2"]
    assert answering("stable") == ["tiny/1"]
    assert answering("both") == ["bad name/1", "second/1"]
    assert answering("second") == ["second/1", "tiny/2"]
    with pytest.raises(Refusal, match="did you mean 'stable'"):
        answering("stabel")


async def test_a_route_to_nowhere_is_refused_at_the_start(models: Path, tmp_path: Path) -> None:
    routes = tmp_path / "routes.yaml"
    routes.write_text("best: tiny/4\n")
    with pytest.raises(FinetuneError, match=r"best leads to tiny/4, which is not served \(served: tiny/1\)"):
        await opened(models, routes=str(routes))


async def test_a_model_is_unloaded_and_loaded_on_demand(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "tiny", models / "second")
    repository = await opened(models, reload_s=0)
    await repository.unload("second")
    await settled(repository)
    assert repository.names == ["tiny"], "nobody asked for it since"
    assert {"name": "second", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"} in repository.index()
    with pytest.raises(Refusal) as refused:
        await repository.unload("second")
    assert refused.value.status == 404
    await repository.load("second")
    assert repository.names == ["second", "tiny"]
    with pytest.raises(Refusal, match="no model 'third'"):
        await repository.load("third")
    damage(add_version(models, 2))
    with pytest.raises(Refusal, match="tiny cannot be loaded"):
        await repository.load("tiny")
    assert versions(repository) == ["1", "1"]


async def test_a_route_does_not_bring_an_unloaded_model_back(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(models / "tiny", models / "second")
    routes = tmp_path / "routes.yaml"
    routes.write_text("best: tiny/1\n")
    repository = await opened(models, routes=str(routes))
    await repository.unload("second")
    routes.write_text("best: second/1\n")
    await settled(repository)
    assert repository.names == ["best", "tiny"]
    assert repository.choose("best").name == "tiny", "the routes stay as they were"
    (said,) = [record.message for record in caplog.records if record.levelno == logging.ERROR]
    assert "best leads to second/1, which was unloaded: load it first; the routes stay" in said
    states = [(row["name"], row["state"]) for row in repository.index()]
    assert states == [("tiny", "READY"), ("second", "UNAVAILABLE")]
    await repository.load("second")
    assert repository.choose("best").name == "second"


async def test_a_model_that_a_route_needs_is_not_unloaded(models: Path, tmp_path: Path) -> None:
    routes = tmp_path / "routes.yaml"
    routes.write_text("best: tiny/1\n")
    repository = await opened(models, routes=str(routes))
    with pytest.raises(Refusal, match="the routes best lead to tiny") as refused:
        await repository.unload("tiny")
    assert refused.value.status == 409
    assert repository.choose("best").version == "1"


async def test_the_folder_of_one_model_is_served_by_the_name_in_it(models: Path, tmp_path: Path) -> None:
    mounted = Path(shutil.move(models / "tiny", tmp_path / "mounted"))
    repository = await opened(mounted)
    assert repository.names == ["tiny"]
    shutil.copytree(mounted / "1", mounted / "2")
    await settled(repository)
    assert repository.choose(None).version == "2"


async def test_a_server_without_any_model_is_not_ready(models: Path) -> None:
    service = assembled(models, reload_s=0)
    await service.repository.start()
    assert service.repository.ready
    await service.repository.unload("tiny")
    assert not service.repository.ready
    assert b"finetune_ready 0.0" in service.metrics.text()[0]
    with pytest.raises(Refusal, match="no model is loaded") as refused:
        service.repository.choose(None)
    assert refused.value.status == 503
    await service.repository.load("tiny")
    assert service.repository.ready


async def test_told_to_end_while_it_loads_it_never_says_that_it_is_ready(models: Path) -> None:
    service = assembled(models)
    service.repository.drain()
    with pytest.raises(Refusal, match="still loading"):
        service.repository.choose(None)
    await service.repository.start()
    assert not service.repository.ready
    assert b"finetune_ready 0.0" in service.metrics.text()[0]
    assert service.repository.choose(None).name == "tiny", "what comes until it ends is answered"
