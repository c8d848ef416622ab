from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from finetune.files import digest, replacing, sha256, write_json, write_text


def test_a_finished_block_replaces_the_old_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    with replacing(path) as beside:
        beside.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def write_half(path: Path, failure: BaseException) -> None:
    with replacing(path) as beside:
        beside.write_text("ne")
        raise failure


def test_an_exception_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half way"):
        write_half(path, RuntimeError("half way"))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_leaves_the_old_file_and_no_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write_half(path, KeyboardInterrupt())
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_exception_before_anything_is_written_is_the_one_that_is_raised(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="at once"), replacing(tmp_path / "result.json"):
        raise RuntimeError("at once")
    assert list(tmp_path.iterdir()) == []


def test_a_block_that_wrote_nothing_is_an_error_and_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path):
        pass
    assert path.read_text() == "old"


def test_the_temporary_file_is_hidden_beside_the_final_one_with_its_suffix(tmp_path: Path) -> None:
    with replacing(tmp_path / "model.v1.onnx") as beside:
        assert (beside.parent, beside.suffix, beside.name[0]) == (tmp_path, ".onnx", ".")
        beside.touch()


def test_two_writers_of_one_file_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # its block ended last
    assert list(tmp_path.iterdir()) == [path]


def test_missing_folders_are_made(tmp_path: Path) -> None:
    write_text(tmp_path / "a" / "b" / "note.txt", "text")
    assert (tmp_path / "a" / "b" / "note.txt").read_text() == "text"


WRITER = """
import sys
from pathlib import Path
from finetune.files import replacing

with replacing(Path(sys.argv[1])) as beside, beside.open("w") as file:
    file.write("new" * 100_000)
    file.flush()
    print("writing", flush=True)
    sys.stdin.read()
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGKILL")
def test_a_process_killed_while_it_writes_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_text("old" * 1000)
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "writing\n"
        assert len(list(tmp_path.iterdir())) == 2
        writer.send_signal(signal.SIGKILL)
        assert writer.wait(timeout=60) == -signal.SIGKILL
    assert path.read_text() == "old" * 1000


def test_json_is_indented_readable_and_ends_with_a_newline(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {"class": "Äpfel", "count": 2})
    assert (tmp_path / "result.json").read_text(encoding="utf-8") == '{\n  "class": "Äpfel",\n  "count": 2\n}\n'


def test_a_value_that_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, [1])
    with pytest.raises(TypeError):
        write_json(path, {1, 2})
    assert json.loads(path.read_text()) == [1]
    assert list(tmp_path.iterdir()) == [path]


def test_sha256_of_a_file_is_the_known_one(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_digest_keeps_its_parts_apart() -> None:
    different = [("ab", "c"), ("a", "bc"), ("abc",), ("abc", ""), ("", "abc"), ("ab", "", "c"), ("c", "ab"), (), ("",)]
    assert len({digest(*parts) for parts in different}) == len(different)


def test_digest_of_a_text_is_that_of_its_bytes() -> None:
    assert digest("Äpfel", b"x") == digest("Äpfel".encode(), "x")
