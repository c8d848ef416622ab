"""A headless Chromium, driven over the pipe that its DevTools protocol offers: no port, no websocket, no driver."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--no-first-run",
    "--use-fake-device-for-media-stream",
    "--remote-debugging-pipe",
)
WITHIN_S = 60
# Virtual key codes, and what a press types.
KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), " ": (32, " "), "Escape": (27, "")}

Json = dict[str, Any]


class Browser:
    """One Chromium; every page is in a profile of its own."""

    def __init__(self, profile: Path) -> None:
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        # Chromium reads commands from file 3 and writes answers to file 4; 10 and above cannot be in the shell's way
        high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (commands, answers)]
        shell = ["bash", "-c", f'exec "$@" 3<&{high[0]} 4>&{high[1]}', "bash"]
        self._process = subprocess.Popen(
            [*shell, str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=high,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for end in (commands, answers, *high):
            os.close(end)
        self._number, self._rest = 0, b""
        self._answers: dict[int, Json] = {}
        self.pages: dict[str, Page] = {}

    def open(self, address: str, width: int = 1280, height: int = 800, **media: str) -> Page:
        """Return a page of a profile of its own; media: CSS media features, with _ for -."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, session, context)
        for domain in ("Page", "Runtime", "Log"):
            page.call(f"{domain}.enable")
        page.resize(width, height)
        page.emulate(**media)
        page.go(address)
        return page

    def close(self) -> None:
        os.close(self._write)
        os.close(self._read)
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Json:
        """Return what a method of the protocol answers; raises RuntimeError with what it refuses."""
        number = self.send(method, session, **parameters)
        while number not in self._answers:
            self._receive()
        answer = self._answers.pop(number)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: Json = answer["result"]
        return result

    def send(self, method: str, session: str | None = None, **parameters: Any) -> int:
        """Call a method without waiting for what it answers; returns the call's number."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if session:
            message["sessionId"] = session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._write, data) :]
        return self._number

    def _receive(self) -> None:
        ready, _, _ = select.select([self._read], [], [], WITHIN_S)
        data = os.read(self._read, 1 << 20) if ready else b""
        if not data:
            raise RuntimeError(f"Chromium {'has ended' if ready else f'says nothing for {WITHIN_S} s'}")
        *messages, self._rest = (self._rest + data).split(b"\0")
        for message in map(json.loads, messages):
            if "id" in message:
                self._answers[message["id"]] = message
            elif message.get("sessionId") in self.pages:
                self.pages[message["sessionId"]].hear(message["method"], message["params"])


class Page:
    """One page. problems: what its scripts threw and its console complained of."""

    def __init__(self, browser: Browser, session: str, context: str) -> None:
        self._browser, self._session, self._context = browser, session, context
        self.problems: list[str] = []
        self.events: list[str] = []
        self._answering: Callable[[Json], Json | None] = lambda _: None

    def call(self, method: str, **parameters: Any) -> Json:
        return self._browser.call(method, self._session, **parameters)

    def hear(self, event: str, facts: Json) -> None:
        self.events.append(event)
        if event == "Runtime.exceptionThrown":
            details = facts["exceptionDetails"]
            self.problems.append(details.get("exception", details).get("description", details["text"]))
        elif event == "Log.entryAdded" and facts["entry"]["source"] != "network":
            self.problems.append(facts["entry"]["text"])
        elif event == "Fetch.requestPaused":
            answer = self._answering(facts["request"])
            method = "Fetch.fulfillRequest" if answer else "Fetch.continueRequest"
            self._browser.send(method, self._session, requestId=facts["requestId"], **(answer or {}))

    def answer(self, answering: Callable[[Json], Json | None]) -> None:
        """Answer requests in the server's place; `answering` gets each, and returns None for what is the server's."""
        self._answering = answering
        self.call("Fetch.enable")

    def go(self, address: str) -> None:
        self.events.clear()
        self.call("Page.navigate", url=address)
        while "Page.loadEventFired" not in self.events:
            self.do("0")

    def do(self, script: str) -> Any:
        """Return the value of a JavaScript expression, awaited; raises RuntimeError with what it throws."""
        found = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']['exception'].get('description')}")
        return found["result"].get("value")

    def until(self, condition: str) -> Any:
        """Wait until an expression is true, as JSON says it; returns its value."""
        deadline = time.monotonic() + WITHIN_S
        look = f"""new Promise((resolve) => {{
          let looks = 0;
          const look = () => {{
            const found = {condition};
            if (found || ++looks > 60) resolve(found); else setTimeout(look, 16);
          }};
          look();
        }})"""
        while not (found := self.do(look)):
            if time.monotonic() > deadline:
                raise AssertionError(f"never true: {condition}\n{self.text}\n{self.problems}")
        return found

    @property
    def text(self) -> str:
        """What a person reads."""
        found: str = self.do("document.body.innerText")
        return found

    def resize(self, width: int, height: int, scale: float = 1, mobile: bool = False) -> None:
        """mobile: as a phone, which is touched and has no mouse."""
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def emulate(self, **media: str) -> None:
        """media: CSS media features, with _ for -."""
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.call("Emulation.setEmulatedMedia", features=features)

    def choose(self, selector: str, *files: Path) -> None:
        """Give files to an input, as a person's choice in the dialog would."""
        found = self.call("Runtime.evaluate", expression=f"document.querySelector({json.dumps(selector)})")
        files_given = [str(file) for file in files]
        self.call("DOM.setFileInputFiles", objectId=found["result"]["objectId"], files=files_given)

    def drop(self, *files: Path) -> None:
        """Drag files over the middle of the page and let go."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=300, y=300, data=data)

    def press(self, *keys: str) -> None:
        for pressed in keys:
            key = pressed.removeprefix("Shift+")
            code, text = KEYS[key]
            facts = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": code}
            facts["modifiers"] = 8 if pressed != key else 0
            self.call("Input.dispatchKeyEvent", type="keyDown" if text else "rawKeyDown", text=text, **facts)
            self.call("Input.dispatchKeyEvent", type="keyUp", **facts)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def permit(self, name: str, setting: str) -> None:
        """setting: granted, denied or prompt."""
        context = self._context
        self._browser.call(
            "Browser.setPermission", permission={"name": name}, setting=setting, browserContextId=context
        )

    def picture(self) -> bytes:
        """Return what the window shows once nothing moves any more, as a PNG."""
        self.do("Promise.all(document.getAnimations().map(({ finished }) => finished)).then(() => 0)")
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def accessible(self, *awaited: tuple[str, str]) -> list[Json]:
        """Return what assistive technology is told: a role, a name and the properties of each thing.

        awaited: roles and names that are there before it returns, since Chromium tells what changed some time later.
        """
        deadline = time.monotonic() + WITHIN_S
        while True:
            told = self._tree()
            missing = set(awaited) - {(node["role"], node["name"]) for node in told}
            if not missing:
                return told
            if time.monotonic() > deadline:
                raise AssertionError(f"never told: {missing}\n{told}")

    def _tree(self) -> list[Json]:
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            {
                "role": node.get("role", {}).get("value"),
                "name": node.get("name", {}).get("value", ""),
                **{one["name"]: one["value"].get("value") for one in node.get("properties", [])},
            }
            for node in nodes
            if not node["ignored"]
        ]


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    browser = Browser(profile)
    try:
        yield browser
    finally:
        browser.close()
