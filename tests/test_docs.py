"""What the documents tell a person to type is typed here."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import safetensors.torch
import timm

from tests.conftest import CLASSES, ROOT, paint_folder, train_config
from tests.ports import free_port

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# These need a container engine or a cluster, or are the suite itself; scripts/container-check and CI run what they do,
# tests/test_deploy.py judges the files that they name.
ELSEWHERE = ("docker ", "kubectl ", "scripts/")


def commands(document: Path) -> list[str]:
    blocks = re.findall(r"```bash\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


# In these every command needs the photos only, in the others what those before them made.
ALONE = [ROOT / "docs/training.md", ROOT / "docs/scaling.md"]


def save_network(folder: Path) -> None:
    """Save what docs/export.md calls a network that was trained elsewhere, with the names of its classes."""
    safetensors.torch.save_file(
        timm.create_model("resnet18", num_classes=len(CLASSES)).state_dict(), folder / "net.safetensors"
    )
    (folder / "labels.txt").write_text("\n".join(CLASSES))


@pytest.mark.parametrize(
    "documents",
    [*([one] for one in ALONE), [one for one in DOCUMENTS if one not in ALONE]],
    ids=["training", "scaling", "others"],
)
def test_every_command_of_the_documents_works_as_it_stands(documents: list[Path], tmp_path: Path) -> None:
    paint_folder(tmp_path / "photos")
    save_network(tmp_path)
    port = str(free_port())
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    server: subprocess.Popen[bytes] | None = None
    try:
        for line in (line for document in documents for line in commands(document)):
            if line.startswith(ELSEWHERE):
                continue
            typed = line.replace("8000", port)
            if line.startswith("finetune serve"):
                # a person ends the one before, which has the port
                end(server)
                server = subprocess.Popen(shlex.split(typed), cwd=tmp_path, env=environment)
                scheme = "https" if "tls_cert=" in line else "http"
                wait_until_ready(f"{scheme}://localhost:{port}/readyz", server)
                continue
            done = subprocess.run(
                typed, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            if "curl" in line and "/predict" in line:
                assert '"model":"flowers"' in done.stdout
                assert '"label":"red"' in done.stdout
    finally:
        end(server)


def test_the_documents_have_every_command() -> None:
    typed = {tuple(shlex.split(line)[:2]) for document in DOCUMENTS for line in commands(document)}
    assert {
        ("finetune", name) for name in ("check", "train", "evaluate", "export", "predict", "serve", "models")
    } <= typed


def end(server: subprocess.Popen[bytes] | None) -> None:
    if server is not None:
        server.terminate()
        assert server.wait(timeout=30) == 0


def wait_until_ready(address: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(address, verify=False).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the server did not become ready")


def test_what_the_first_table_of_training_adds_is_taken_and_its_figures_were_measured() -> None:
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    table = text[text.index("| you have | add | expect |") :].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    added = [word for _, add, _ in rows for word in re.findall(r"`(.+?)`", add)]
    assert len(added) >= 3
    for word in added:
        train_config(word)
    figures = (ROOT / "docs/figures.md").read_text(encoding="utf-8")
    measured = [figure for _, _, expect in rows for figure in re.findall(r"\d+\.\d %", expect)]
    assert len(measured) >= 8
    assert [figure for figure in measured if figure not in figures] == []


def test_the_documents_tell_from_how_many_photos_on_layers_train_as_the_code_does() -> None:
    freeze = train_config().freeze
    for name in ("docs/training.md", "conf/freeze/lp_ft.yaml", "conf/recipe/lp_ft.yaml"):
        assert f"{freeze.head_below:,} photos or more" in (ROOT / name).read_text(encoding="utf-8"), name
    assert f"{freeze.full_from:,} photos or more" in (ROOT / "conf/freeze/full.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_stands_in_a_block_that_is_typed(document: Path) -> None:
    assert re.findall(r"^ {4,}(?:finetune|python|curl) .*", document.read_text(encoding="utf-8"), re.MULTILINE) == []


def anchors_of(document: Path) -> set[str]:
    """Return what GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.*)", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_scripts_that_documents_name_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for target, anchor in re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]*))?\)", text):
        named = document.parent / target if target else document
        assert named.exists(), target
        assert not anchor or anchor in anchors_of(named), f"{target}#{anchor}"
    for script in re.findall(r"(?:scripts|benchmarks)/[\w.-]+", text):
        assert (ROOT / script).exists(), script
