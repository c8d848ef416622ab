from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from finetune.cli import run
from finetune.models.classifier import Classifier
from finetune.run import FinishedRun
from finetune.serving.predictor import Predictor
from tests.conftest import CLASSES, TINY, paint, paint_folder

WRITTEN = {"evaluation.json", "report.html", "predictions.csv", "confusion.csv", "confusion.png", "reliability.png"}


def figures(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "evaluation.json").read_text()))


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="session")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine new photos, four of them in folders of other classes: a model that answers by colour is wrong on those."""
    root = paint_folder(tmp_path_factory.mktemp("mixed") / "new", per_class=2)
    for index in range(3):
        paint(root / "red" / f"wrong{index}.png", "blue", seed=70 + index)
    paint(root / "green" / "wrong.png", "red", seed=80)
    (root / "blue" / "1.jpg").unlink()
    return root


def test_the_runs_own_split(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["evaluate", f"run={tiny_run}", f"output={tmp_path}", "split=val"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("accuracy 100.0 % on 7 photos (95 % interval 64.6 to 100.0 %), calibration error ")
    assert "\nbalanced accuracy 100.0 % (95 % interval " in said
    assert "class  photos  precision  recall     F1\nblue        2      1.000   1.000  1.000\n" in said
    # the head was refitted on the validation photos too
    assert "7 of these photos took part in training or in choosing" in said
    rows = table(tmp_path / "predictions.csv")
    assert list(rows[0]) == ["path", "label", "answer", "probability", *CLASSES]
    assert [row["answer"] for row in rows] == [row["label"] for row in rows]
    assert {path.name for path in tmp_path.iterdir()} == WRITTEN
    assert figures(tmp_path)["photos"]["split"] == "val"


def test_training_notes_what_the_temperature_is_worth_on_photos_that_were_not_learned(
    tiny_run: Path, photos: Path, tmp_path: Path
) -> None:
    layers = [*TINY, "freeze=partial", "trainer.max_epochs=1", "trainer.accelerator=cpu"]
    assert run(["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *layers]) == 0
    noted = json.loads((tmp_path / "run" / "result.json").read_text())["calibration"]
    assert noted["bins"] == 15
    assert noted["val"]["before"] != noted["val"]["after"]
    for split in ("val", "test"):
        assert run(["evaluate", f"run={tmp_path / 'run'}", f"split={split}", f"output={tmp_path / split}"]) == 0
        assert figures(tmp_path / split)["calibration_error"] == pytest.approx(noted[split]["after"], abs=1e-6)
    # after freeze=head the validation photos have been learned as well, so that the head answers them otherwise
    before_that = json.loads((tiny_run / "result.json").read_text())["calibration"]["val"]["after"]
    assert run(["evaluate", f"run={tiny_run}", "split=val", f"output={tmp_path / 'refitted'}"]) == 0
    assert figures(tmp_path / "refitted")["calibration_error"] != pytest.approx(before_that, abs=1e-9)


def test_every_figure_of_another_folder(tiny_run: Path, mixed: Path, tmp_path: Path) -> None:
    assert run(["evaluate", f"run={tiny_run}", f"data.root={mixed}", f"output={tmp_path / 'out'}", "top_k=[2]"]) == 0
    found = figures(tmp_path / "out")
    assert found["photos"] | {"fingerprint": ""} == {
        "root": str(mixed),
        "split": None,
        "count": 9,
        "skipped": 0,
        "seen_in_training": 0,
        "classes_shown": 3,
        "fingerprint": "",
    }
    assert found["accuracy"]["value"] == pytest.approx(5 / 9)
    assert found["accuracy"]["low"] < 5 / 9 < found["accuracy"]["high"]
    # recalls: blue 1 of 1, green 2 of 3, red 2 of 5
    assert found["balanced_accuracy"]["value"] == pytest.approx((1 + 2 / 3 + 2 / 5) / 3)
    assert set(found["top_k"]) == {"1", "2"}
    blue, green, red = found["by_class"]
    assert (blue["photos"], blue["answered"], blue["precision"]["value"]) == (1, 4, 0.25)
    assert (green["recall"]["value"], green["precision"]["value"]) == (pytest.approx(2 / 3), 1.0)
    assert (red["photos"], red["f1"]) == (5, pytest.approx(2 * 2 / (5 + 3)))
    assert found["macro"]["recall"] == pytest.approx(found["balanced_accuracy"]["value"])
    assert found["log_loss"] > 0.5
    assert found["reliability"]["bins"] == 15
    assert sum(one["photos"] for one in found["reliability"]["with_photos"]) == 9
    assert found["photos_per_second"] == pytest.approx(9 / found["seconds"], rel=0.05)
    rows = table(tmp_path / "out" / "confusion.csv")
    assert rows[2] == {"label": "red", "blue": "3", "green": "0", "red": "2"}
    with Image.open(tmp_path / "out" / "confusion.png") as picture:
        assert picture.mode == "RGB"


def test_a_run_and_its_bundle_have_the_same_figures(
    tiny_run: Path, tiny_models: Path, mixed: Path, tmp_path: Path
) -> None:
    for name, which in {"torch": [f"run={tiny_run}"], "onnx": [f"model={tiny_models / 'tiny'}"]}.items():
        assert run(["evaluate", *which, f"data.root={mixed}", f"output={tmp_path / name}"]) == 0
    ours, served = figures(tmp_path / "torch"), figures(tmp_path / "onnx")
    for key in ("accuracy", "balanced_accuracy", "macro", "top_k", "by_class"):
        assert served[key] == ours[key]
    for key in ("log_loss", "calibration_error"):
        assert served[key] == pytest.approx(ours[key], abs=1e-4)
    assert served["photos"]["fingerprint"] == ours["photos"]["fingerprint"]
    assert served["photos"]["seen_in_training"] is None
    assert (served["model"]["kind"], served["device"]) == ("bundle", "cpu")
    assert served["model"]["weights_sha256"] == ours["model"]["weights_sha256"]


def test_a_bundle_answers_for_the_test_photos_of_its_run_and_of_no_other(
    tiny_run: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", f"model={tiny_models / 'tiny'}"]
    assert run([*words, f"run={tiny_run}", f"output={tmp_path / 'out'}"]) == 0
    assert figures(tmp_path / "out")["accuracy"]["value"] == 1.0
    assert figures(tmp_path / "out")["photos"]["split"] == "test"
    other = Path(shutil.copytree(tiny_run, tmp_path / "other"))
    (other / "weights.safetensors").write_bytes((other / "weights.safetensors").read_bytes() + b" ")
    capsys.readouterr()
    assert run([*words, f"run={other}"]) == 2
    assert f"was not exported from run={other} as it is now" in capsys.readouterr().err
    assert run(words) == 2
    assert "a bundle does not know its photos: give data.root=FOLDER, or the run=RUN" in capsys.readouterr().err
    assert run(["evaluate"]) == 2
    assert "give run=RUN, a run folder of `finetune train`, or model=MODELS/NAME" in capsys.readouterr().err


def test_each_evaluation_has_its_own_folder_and_replaces_only_itself(
    tiny_run: Path, tiny_models: Path, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    assert run(["evaluate", f"run={own}"]) == 0
    assert run(["evaluate", f"run={own}", f"data.root={mixed}"]) == 0
    assert run(["evaluate", f"run={own}", f"model={tiny_models / 'tiny'}"]) == 0
    assert run(["evaluate", f"model={tiny_models / 'tiny'}", f"data.root={mixed}"]) == 0
    assert {path.name for path in (own / "evaluation").iterdir()} == {"test", "new", "test-onnx"}
    assert Path("evaluation/tiny-1/new/evaluation.json").is_file()
    capsys.readouterr()
    assert run(["evaluate", f"run={own}"]) == 0
    assert "replaces the evaluation of 20" in capsys.readouterr().out
    # neither another evaluation nor anything else is overwritten
    test = own / "evaluation" / "test"
    assert run(["evaluate", f"run={own}", "split=val", f"output={test}"]) == 2
    assert f"output={test} holds another evaluation, of the run {own} on " in capsys.readouterr().err
    assert run(["evaluate", f"run={own}", f"output={own}"]) == 2
    assert f"output={own} exists and holds no evaluation; choose another output=" in capsys.readouterr().err


def test_photos_that_the_run_has_seen_are_counted(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", f"run={tiny_run}", f"data.root={tiny_run.parent / 'photos'}", f"output={tmp_path / 'out'}"]
    assert run(words) == 0
    assert "17 of these photos took part in training or in choosing: the figures flatter" in capsys.readouterr().out
    assert figures(tmp_path / "out")["photos"]["seen_in_training"] == 17
    assert "17 of these photos took part" in (tmp_path / "out" / "report.html").read_text()


def test_a_split_of_another_folder_is_that_split(
    tiny_run: Path, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(mixed, tmp_path / "site" / "test")
    paint_folder(tmp_path / "site" / "train", per_class=2)
    words = ["evaluate", f"run={tiny_run}", f"data.root={tmp_path / 'site'}"]
    assert run([*words, "split=test", f"output={tmp_path / 'test'}"]) == 0
    assert (figures(tmp_path / "test")["photos"]["count"], figures(tmp_path / "test")["photos"]["split"]) == (9, "test")
    assert run([*words, f"output={tmp_path / 'all'}"]) == 0
    assert figures(tmp_path / "all")["photos"]["count"] == 15
    capsys.readouterr()
    assert run([*words, "split=val"]) == 2
    assert "has no photos for split=val: it has test, train" in capsys.readouterr().err


def test_a_single_photo_of_a_single_class(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paint(tmp_path / "one" / "red" / "0.png", "red", seed=1)
    assert run(["evaluate", f"run={tiny_run}", f"data.root={tmp_path / 'one'}", f"output={tmp_path / 'out'}"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("accuracy 100.0 % on 1 photos (95 % interval 20.7 to 100.0 %)")
    assert "these photos show 1 of the 3 classes; means are over those" in said
    assert "blue        0          -       -      -\n" in said
    assert figures(tmp_path / "out")["balanced_accuracy"]["value"] == 1.0


def test_another_folder_with_mistakes_and_damage(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(3):
        paint(tmp_path / "new" / "red" / f"{index}.png", "red", seed=50 + index)
    paint(tmp_path / "new" / "red" / "mislabelled<b>.png", "blue", seed=60)
    (tmp_path / "new" / "red" / "empty.png").touch()
    words = ["evaluate", f"run={tiny_run}", f"data.root={tmp_path / 'new'}", f"output={tmp_path / 'out'}"]
    assert run(words) == 0
    said = capsys.readouterr().out
    assert said.startswith("accuracy 75.0 % on 4 photos")
    assert "skipped 1 file:\n  red/empty.png: empty file (0 bytes)" in said
    report = (tmp_path / "out" / "report.html").read_text()
    assert "<b>red</b>, answered blue" in report
    assert "<td>red</td><td>blue</td><td>1 of 4</td>" in report
    # file names are text in the report, never markup
    assert "mislabelled&lt;b&gt;.png" in report
    assert "data:image/jpeg;base64," in report
    assert report.count("data:image/png;base64,") == 2


def test_a_bundle_is_measured_on_photos_in_any_format(
    tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index, suffix in enumerate(("png", "tga", "jp2")):
        paint(tmp_path / "new" / "red" / f"{index}.{suffix}", "red", seed=50 + index)
    words = ["evaluate", f"model={tiny_models / 'tiny'}", f"data.root={tmp_path / 'new'}"]
    assert run([*words, f"output={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().out.startswith("accuracy 100.0 % on 3 photos")


def test_a_photo_damaged_since_the_training_is_named(
    tiny_run: Path, tiny_models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = FinishedRun(tiny_run).manifest.of("test")[0].path
    shutil.copytree(tiny_run, tmp_path / "run")
    shutil.copytree(tiny_run.parent / "photos", tmp_path / "photos")
    for name in ("config.yaml", "manifest.csv"):
        file = tmp_path / "run" / name
        file.write_text(file.read_text().replace(str(tiny_run.parent / "photos"), str(tmp_path / "photos")))
    file = tmp_path / "photos" / photo
    file.write_bytes(file.read_bytes()[:-19])
    model = f"model={tiny_models / 'tiny'}"
    for words in (["evaluate"], ["evaluate", model], ["export", f"output={tmp_path / 'models'}", "name=tiny"]):
        assert run([*words, f"run={tmp_path / 'run'}"]) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith(
            f"finetune {words[0]}: {photo} in {tmp_path / 'photos'}: damaged: image file is truncated"
        )


def test_classes_the_model_does_not_know_are_named(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paint(tmp_path / "new" / "redd" / "0.png", "red", seed=1)
    assert run(["evaluate", f"run={tiny_run}", f"data.root={tmp_path / 'new'}"]) == 2
    assert capsys.readouterr().err.strip() == (
        f"finetune evaluate: data.root={tmp_path / 'new'} has a class that the model does not know: "
        "'redd'; did you mean 'red'? (it knows blue, green, red)"
    )
    for number in range(4):
        paint(tmp_path / "new" / f"other{number}" / "0.png", "red", seed=number)
    assert run(["evaluate", f"run={tiny_run}", f"data.root={tmp_path / 'new'}"]) == 2
    said = capsys.readouterr().err
    assert "has classes that the model does not know: 'other0', 'other1', 'other2' and 2 more" in said


def test_photos_without_labels_are_for_predict(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paint(tmp_path / "new" / "0.png", "red", seed=1)
    assert run(["evaluate", f"run={tiny_run}", f"data.root={tmp_path / 'new'}"]) == 2
    said = capsys.readouterr().err
    assert "has no photos in class folders" in said
    assert "photos without labels can be predicted: finetune predict" in said


def test_damaged_weights_are_named(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_folder = Path(shutil.copytree(tiny_run, tmp_path / "run"))
    weights = run_folder / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert run(["evaluate", f"run={run_folder}"]) == 2
    assert f"{weights} cannot be read:" in capsys.readouterr().err


@pytest.mark.parametrize("subject", ["run", "model"])
def test_what_is_done_once_is_no_part_of_the_speed(
    subject: str, tiny_run: Path, tiny_models: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds: list[float] = []

    def counted(answer: Callable[..., Any]) -> Callable[..., Any]:
        def slow_at_first(model: Any, images: Any) -> Any:
            # a second a photo, and more for the first batches of all workers
            seconds.append(len(images) + 100.0 * (len(seconds) < 3))
            return answer(model, images)

        return slow_at_first

    monkeypatch.setattr(Classifier, "forward", counted(Classifier.forward))
    monkeypatch.setattr(Predictor, "run", counted(Predictor.run))
    monkeypatch.setattr("finetune.evaluation.evaluate.time", SimpleNamespace(monotonic=lambda: sum(seconds)))
    asked = {"run": f"run={tiny_run}", "model": f"model={tiny_models / 'tiny'}"}[subject]
    assert run(["evaluate", asked, f"data.root={photos}", f"output={tmp_path / 'out'}", "device=cpu"]) == 0
    assert figures(tmp_path / "out")["photos_per_second"] == 1.0
