"""The main job on real input, through the commands a person would type. Run by scripts/quickstart."""

from __future__ import annotations

import argparse
import csv
import http.client
import json
import re
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from sample_data import write_sample

HERE = Path("runs/quickstart")
PHOTOS, RUN, MODELS, ANSWERS, SERVER_LOG = (
    HERE / name for name in ("photos", "textile", "models", "answers.csv", "server.log")
)
SHOWN_PER_CLASS = 4
READY_WITHIN_S = 60
PROMISED_ACCURACY = 0.94


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/quickstart", description=__doc__)
    parser.add_argument("--serve", action="store_true", help="leave the server running")
    arguments = parser.parse_args()
    started = time.monotonic()
    say("sample photos: simulated textile, three classes, 200 to train and 200 to test of each")
    write_sample(PHOTOS)
    command("train", f"data.root={PHOTOS}", f"output={RUN}")
    command("export", f"run={RUN}", f"output={MODELS}")
    server, address = start_server()
    try:
        say(f"posting all test photos to http://{address}/predict")
        answers = ask(address, [Path(row["path"]) for row in torch_answers()])
        same = compare(answers)
    except BaseException:
        server.terminate()
        raise
    if not arguments.serve:
        server.terminate()
        server.wait(timeout=30)
    say("where everything lies")
    for path in (PHOTOS, RUN / "report.html", RUN / "result.json", MODELS / "textile", ANSWERS):
        print(f"  {path}")
    print(f"\ndone in {time.monotonic() - started:.0f} s", end="")
    if arguments.serve:
        print(f"; the server goes on at http://{address}/ (kill {server.pid} stops it)", end="")
    print()
    return 0 if same else 1


def say(text: str) -> None:
    print(f"\n== {text}", flush=True)


def command(*words: str) -> None:
    """Run a finetune command, shown as a person would type it; ends with its exit code if it fails."""
    say(shlex.join(("finetune", *words)))
    code = subprocess.run([sys.executable, "-m", "finetune", *words], check=False).returncode
    if code != 0:
        sys.exit(code)


def start_server() -> tuple[subprocess.Popen[bytes], str]:
    """Start `finetune serve` on a free port and wait until it is ready; returns it and its address."""
    words = ("serve", f"models={MODELS}", "port=0")
    say(shlex.join(("finetune", *words)))
    with SERVER_LOG.open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "finetune", *words], stdout=log, stderr=log, start_new_session=True
        )
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and server.poll() is None:
        found = re.search(r"http://([\d.]+:\d+)", SERVER_LOG.read_text())
        if found and is_ready(found[1]):
            print(f"ready at http://{found[1]}")
            return server, found[1]
        time.sleep(0.1)
    server.kill()
    sys.exit(f"the server did not become ready:\n{SERVER_LOG.read_text()}")


def is_ready(address: str) -> bool:
    connection = http.client.HTTPConnection(address, timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def torch_answers() -> list[dict[str, str]]:
    """What the trained model answered in torch when the export was verified, photo by photo."""
    with (RUN / "parity.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def ask(address: str, photos: list[Path]) -> list[dict[str, Any]]:
    """Post every photo, two at a time; returns the first prediction of each answer."""

    def post(photo: Path) -> dict[str, Any]:
        connection = http.client.HTTPConnection(address, timeout=60)
        try:
            connection.request("POST", "/predict", (PHOTOS / photo).read_bytes(), {"Content-Type": "image/jpeg"})
            response = connection.getresponse()
            body = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            sys.exit(f"{photo}: the server answered {response.status}: {body}")
        prediction: dict[str, Any] = body["predictions"][0]
        return prediction

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(post, photos))


def compare(answers: list[dict[str, Any]]) -> bool:
    """Print some answers and the accuracies, keep all of them in a file; returns whether the promises hold."""
    rows = torch_answers()
    shown: dict[str, int] = {}
    print(f"  {'photo':<32}{'true label':<12}{'answer':<12}probability")
    with ANSWERS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "served", "served_probability", "torch", "torch_probability"])
        for row, answer in zip(rows, answers, strict=True):
            torch = (row["torch"], row["torch_probability"])
            writer.writerow([row["path"], row["label"], answer["label"], answer["probability"], *torch])
            shown[row["label"]] = shown.get(row["label"], 0) + 1
            if shown[row["label"]] <= SHOWN_PER_CLASS:
                name = Path(row["path"]).name
                print(f"  {name:<32}{row['label']:<12}{answer['label']:<12}{answer['probability']:.4f}")
    print(f"  ... all {len(rows)} in {ANSWERS}")
    pairs = list(zip(rows, answers, strict=True))
    same = sum(row["torch"] == answer["label"] for row, answer in pairs)
    apart = max(abs(float(row["torch_probability"]) - answer["probability"]) for row, answer in pairs)
    say(f"accuracy on the {len(rows)} test photos")
    print(f"  trained model in torch   {percent(sum(row['torch'] == row['label'] for row in rows), len(rows))}")
    print(f"  served model over HTTP   {percent(sum(row['label'] == a['label'] for row, a in pairs), len(rows))}")
    print(f"  same answer              {same} of {len(rows)}, probabilities at most {apart:.1g} apart")
    served = sum(row["label"] == answer["label"] for row, answer in pairs) / len(rows)
    if served < PROMISED_ACCURACY:
        print(f"  that is less than the {percent(PROMISED_ACCURACY, 1)} it should be")
    return same == len(rows) and served >= PROMISED_ACCURACY


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


if __name__ == "__main__":
    sys.exit(main())
