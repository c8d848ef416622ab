"""The page in a real browser: a photo is picked, its classes appear as bars."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.serving.conftest import Server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=15000",
]
# Runs in the page before its own script: hands it one good photo and one that is none, as a person's drop would.
DROP = """
<script>
addEventListener("load", async () => {
  const photo = new File([Uint8Array.from(%s)], "red.jpg", { type: "image/jpeg" });
  const words = new File(["no photo"], "notes.jpg", { type: "image/jpeg" });
  const dropped = new DataTransfer();
  dropped.items.add(photo);
  dropped.items.add(words);
  const input = document.querySelector('input[type="file"]');
  input.files = dropped.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
});
</script>
"""


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")
def test_a_picked_photo_is_answered_with_bars(
    server: Server, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw = (tiny_models.parent / "photos" / "red" / "0.jpg").read_bytes()
    done = browse(server.address, DROP % json.dumps(list(raw)), tmp_path)
    page = done.stdout
    for wanted in ("red.jpg", "notes.jpg", "tiny", "blue", "green"):
        assert wanted in page
    assert "not an image in a format that can be read" in page.replace("Not an image", "not an image")
    assert "Content Security Policy" not in done.stderr
    assert "Uncaught" not in done.stderr


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")
def test_the_interactive_docs_show_the_interface(server: Server, tmp_path: Path) -> None:
    command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"{server.address}/docs"]
    page = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    for route in ("/predict", "/models", "/healthz", "/readyz"):
        assert f'data-path="{route}"' in page
    assert "Unable to render this definition" not in page


def browse(address: str, script: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """Open the server's page with a script added, on a proxy of its own that adds it; return what the page became."""
    import http.server
    import threading
    import urllib.request

    class WithScript(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.forward(None)

        def do_POST(self) -> None:
            self.forward(self.rfile.read(int(self.headers["content-length"])))

        def forward(self, body: bytes | None) -> None:
            request = urllib.request.Request(address + self.path, body, method=self.command)
            try:
                response = urllib.request.urlopen(request)
            except urllib.error.HTTPError as error:
                response = error
            with response:
                content = response.read()
                if self.path == "/":
                    content = content.replace(b"</body>", script.encode() + b"</body>", 1)
                self.send_response(response.status)
                for name in ("content-type", "content-security-policy"):
                    if name in response.headers:
                        self.send_header(name, response.headers[name])
                self.send_header("content-length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), WithScript) as proxy:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        page = f"http://127.0.0.1:{proxy.server_port}/"
        command = [str(CHROMIUM), *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        proxy.shutdown()
    return done
