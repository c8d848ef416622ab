"""The page in a real browser: what a person does with photos, keys and versions, with and without a mouse or eyes."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import ROOT
from tests.serving.browser import CHROMIUM, Browser, Page, browsing
from tests.serving.conftest import Server, Start

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")

READY = "$('state').className === 'ready'"
DONE = "$('cards').children.length && [...photos].every(({ result }) => result)"
CARDS = "Array.from($('cards').children, (card) => card.textContent)"
FOCUSED = "document.activeElement.ariaLabel || document.activeElement.innerText.trim() || document.activeElement.id"
BUSY = base64.b64encode(b'{"error": "too much to do"}').decode()
# Keeps count of the object URLs that are not revoked.
COUNT_URLS = """{
  window.urls = new Set();
  const { createObjectURL, revokeObjectURL } = URL;
  URL.createObjectURL = (file) => (urls.add(createObjectURL(file)), [...urls].at(-1));
  URL.revokeObjectURL = (url) => (urls.delete(url), revokeObjectURL(url));
}"""
# The page's clock runs 20 times as fast.
HASTE = "{ const wait = setTimeout; window.setTimeout = (then, ms) => wait(then, ms / 20); }"
# What assistive technology must have a name for.
NAMED = {"button", "link", "textbox", "combobox", "DisclosureTriangle", "heading", "form", "region", "dialog"}
# Texts whose contrast with what is painted behind them is less than WCAG's level AA asks for.
PALE = """(() => {
  const context = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = context.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const behind = (node) =>
    node ? over(rgba(getComputedStyle(node).backgroundColor), behind(node.parentElement)) : [255, 255, 255, 1];
  const light = ([...color]) => color.slice(0, 3)
    .map((one) => (one / 255 <= 0.04045 ? one / 255 / 12.92 : ((one / 255 + 0.055) / 1.055) ** 2.4))
    .reduce((sum, one, i) => sum + one * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  let looked = 0;
  for (const node of document.querySelectorAll("body *")) {
    const words = [...node.childNodes].filter((one) => one.nodeType === 3).map((one) => one.data.trim()).join("");
    if (!words || !node.checkVisibility() || node.closest("script, style, .unseen")) continue;
    const style = getComputedStyle(node), back = behind(node), text = over(rgba(style.color), back);
    const [dark, bright] = [light(text), light(back)].sort((one, other) => one - other);
    const ratio = (bright + 0.05) / (dark + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    looked += 1;
    if (ratio < (large ? 3 : 4.5)) found.push(`${words}: ${ratio.toFixed(2)}`);
  }
  return { looked, found };
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browsing(tmp_path_factory.mktemp("browser")) as started:
        yield started


@pytest.fixture(scope="module")
def photo(tiny_models: Path) -> Callable[[str], Path]:
    """Return a photo of a class."""
    return lambda label: tiny_models.parent / "photos" / label / "0.jpg"


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """The page of a server that is ready; what its scripts throw or its policy refuses fails the test."""
    opened = browser.open(server.address)
    opened.until(READY)
    yield opened
    assert opened.problems == []


Photo = Callable[[str], Path]


def test_picked_photos_are_shown_in_order_with_bars_or_with_the_reason(
    page: Page, photo: Photo, tmp_path: Path
) -> None:
    words, large = tmp_path / 'notes, "mine".jpg', tmp_path / "large.jpg"
    words.write_text("no photo")
    large.write_bytes(photo("red").read_bytes() + bytes(1_100_000))
    page.do(COUNT_URLS)
    page.permit("clipboard-read", "granted")

    page.choose("#files", photo("red"), words, large, photo("blue"))
    page.until(DONE)

    red, notes, big, blue = page.do(CARDS)
    predicted = page.do("[...photos].map(({ result }) => result.label)")
    assert predicted[0] in red
    for shown in (red, blue):
        assert shown.count("%") == 3
        assert "tiny, version 1" in shown
        assert " ms, " in shown
        assert "in the server" in shown
    assert "Not classifiedNot an image in a format that can be read" in notes
    assert "1.1 MB in one request; 1 MB are taken" in big
    assert page.do("$('count').textContent") == "4 photos"
    widths = page.do("Array.from(document.querySelectorAll('.bars i'), (bar) => bar.style.getPropertyValue('--part'))")
    assert sum(map(float, widths)) == pytest.approx(2, abs=1e-4)
    said = page.until("$('spoken').textContent.includes('done') && $('spoken').textContent")
    assert said.startswith("4 photos done: ")
    assert said.endswith("2 not classified.")

    page.do("$('csv').click()")
    page.until("$('csv').textContent === 'Copied'")
    copied = page.do("navigator.clipboard.readText()")
    rows = list(csv.DictReader(io.StringIO(copied)))
    assert copied.startswith("path,label,probability,error,model,version\n")
    assert [row["path"] for row in rows] == ["0.jpg", words.name, "large.jpg", "0.jpg"]
    assert [row["label"] for row in rows] == [predicted[0], "", "", predicted[3]]
    assert 0 < float(rows[0]["probability"]) <= 1
    assert rows[1]["error"].startswith("not an image")

    page.do("document.querySelector('.remove').click()")
    assert page.do(FOCUSED) == f"Remove {words.name}"
    page.do("$('clear').click()")
    assert page.do("photos.size + $('cards').children.length") == 0
    assert page.do("$('results').hidden")
    assert page.do(FOCUSED) == "Choose photos"
    assert page.do("urls.size") == 0


def test_photos_are_dropped_and_pasted(page: Page, photo: Photo, tmp_path: Path) -> None:
    shutil.copytree(photo("red").parent, tmp_path / "folder" / "red")
    (tmp_path / "folder" / "notes.txt").write_text("no photo")
    page.drop(photo("green"))
    page.until(DONE)
    raw = json.dumps(list(photo("blue").read_bytes()))
    page.do(f"""{{
      const clipboardData = new DataTransfer();
      clipboardData.items.add(new File([Uint8Array.from({raw})], "image.png", {{ type: "image/png" }}));
      document.dispatchEvent(new ClipboardEvent("paste", {{ clipboardData, bubbles: true }}));
    }}""")
    page.until(f"photos.size === 2 && {DONE}")
    page.drop(tmp_path / "folder")
    page.until(f"photos.size > 2 && {DONE}")
    names = page.do("[...photos].map(({ path }) => path)")
    assert names == ["0.jpg", "pasted-2.png", *(f"folder/red/{number}.jpg" for number in range(8))]
    assert page.do("[...photos].every(({ result }) => result.label)")


def test_of_several_names_and_versions_the_chosen_one_answers(
    browser: Browser, start_server: Start, tiny_models: Path, photo: Photo, tmp_path: Path
) -> None:
    models = shutil.copytree(tiny_models, tmp_path / "models")
    shutil.copytree(models / "tiny" / "1", models / "tiny" / "2")
    routes = tmp_path / "routes.yaml"
    routes.write_text("production: tiny/1\n")
    served = start_server(models, "versions=all", f"routes={routes}")
    page = browser.open(served.address)
    page.until(READY)
    options = "Array.from($('%s').options, ({ text }) => text)"
    pick = "{ $('%s').value = '%s'; $('%s').dispatchEvent(new Event('change')); }"

    assert page.do(options % "name") == ["production", "tiny"]
    assert page.do("$('version')") is None
    assert "picked by the server" in page.text
    page.choose("#files", photo("red"))
    page.until(DONE)
    assert "tiny, version 1" in page.do(CARDS)[0]

    page.do(pick % ("name", "tiny", "name"))
    assert page.do(options % "version") == ["picked by the server", "2", "1"]
    page.do(pick % ("version", "2", "version"))
    assert "model=tiny&version=2" in page.do("$('curl').textContent")
    page.do("$('again').click()")
    page.until(DONE)
    assert "tiny, version 2" in page.do(CARDS)[0]
    assert page.do("$('again').hidden")

    # a version that goes while it is chosen
    shutil.rmtree(models / "tiny" / "2")
    page.until("served.models.length === 1")
    assert page.do("$('version')") is None
    assert page.problems == []


def test_what_the_server_serves_is_looked_at_again_while_a_person_looks(
    browser: Browser, start_server: Start, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_KEYS", f"me admin {hashlib.sha256(b'open-sesame').hexdigest()}")
    models = shutil.copytree(tiny_models, tmp_path / "models")
    shutil.copytree(models / "tiny" / "1", models / "tiny" / "2")
    served = start_server(models, "versions=all", "reload_s=0.1")
    key = {"X-API-Key": "open-sesame"}
    asked = Counter[str]()

    def counting(request: dict[str, Any]) -> None:
        asked[request["url"].removeprefix(served.address)] += 1

    page = browser.open("about:blank")
    page.call("Page.addScriptToEvaluateOnNewDocument", source=HASTE)
    page.answer(counting)
    page.go(served.address)
    page.until("!$('gate').hidden")
    page.type("open-sesame")
    page.press("Enter")
    page.until(READY)
    page.do("{ $('version').value = '1'; $('version').dispatchEvent(new Event('change')); }")

    # a new one stands in the picker, and what was picked stays picked
    shutil.copytree(models / "tiny" / "1", tmp_path / "3")
    (tmp_path / "3").rename(models / "tiny" / "3")
    page.until("$('version').options.length === 4")
    assert page.do("$('version').value") == "1"

    unload = f"{served.address}/v2/repository/models/tiny/unload"
    assert httpx.post(unload, headers=key).status_code == 200
    page.until("$('state').textContent === 'No model is served'")
    assert page.do("$('model').hidden")
    assert httpx.post(unload.replace("unload", "load"), headers=key).status_code == 200
    page.until(f"{READY} && !$('model').hidden")
    assert page.do("$('version').value") == "1"

    # timers end in order: this one after that of the next look
    later = "new Promise((then) => setTimeout(then, 15000))"
    page.do("Object.defineProperty(document, 'hidden', { value: true, configurable: true }), 0")
    page.do(later)
    asked.clear()
    page.do(later)
    assert not asked, "nobody sees it"
    page.do("delete document.hidden, document.dispatchEvent(new Event('visibilitychange')), 0")
    page.do(later)
    assert asked["/models"] >= 2
    assert page.problems == []


def test_a_server_with_keys_asks_for_one_and_says_when_it_is_wrong(
    browser: Browser, start_server: Start, tiny_models: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_KEYS", f"me predict {hashlib.sha256(b'open-sesame').hexdigest()}")
    served = start_server(tiny_models)
    page = browser.open(served.address)
    page.until("!$('gate').hidden")
    assert page.do("document.activeElement.id") == "key"
    assert page.do("$('refused').textContent") == ""
    page.choose("#files", photo("red"))

    page.type("a guess")
    page.press("Enter")
    assert page.do("$('refused').textContent") == "A key has no spaces, and no letters beyond English ones."
    page.do("$('key').select()")
    page.type("guess")
    page.press("Enter")
    assert page.until("$('refused').textContent.startsWith('This') && $('refused').textContent") == (
        "This key is not known."
    )
    assert page.do("sessionStorage.length + localStorage.length") == 0
    page.type("open-sesame")
    page.press("Enter")
    # what was added before goes on
    page.until(DONE)
    assert page.do("$('gate').hidden")
    assert "Bearer $KEY" in page.do("$('curl').textContent")
    assert "open-sesame" not in page.do("document.documentElement.outerHTML")
    assert page.do("document.cookie.length + localStorage.length") == 0

    page.go(served.address)
    page.until(READY)
    page.do("$('forget').click()")
    page.until("!$('gate').hidden")
    assert page.do("sessionStorage.length") == 0
    assert page.problems == []


def test_what_is_loading_or_busy_is_waited_for_and_told(browser: Browser, server: Server, photo: Photo) -> None:
    refusing, asked = {"/readyz", "/predict"}, Counter[str]()
    not_ready = {"error": "tiny version 1 fails on its device"}

    def answering(request: dict[str, Any]) -> dict[str, Any] | None:
        route = request["url"].removeprefix(server.address).partition("?")[0]
        asked[route] += 1
        if route not in refusing:
            return None
        headers = [{"name": "Retry-After", "value": "1"}]
        body = base64.b64encode(json.dumps(not_ready).encode()).decode() if route == "/readyz" else BUSY
        return {"responseCode": 503, "responseHeaders": headers, "body": body}

    page = browser.open("about:blank")
    page.answer(answering)
    page.go(server.address)
    page.until("$('state').className === 'failing'")
    assert page.do("$('state').textContent") == "Not ready: tiny version 1 fails on its device"
    not_ready["error"] = "the models are still loading"
    page.until("$('state').className === 'loading'")
    assert page.do("$('state').textContent + $('hint').textContent").startswith("The models are loading…The models are")
    page.choose("#files", photo("red"))
    assert "Waiting" in page.do(CARDS)[0]
    assert not asked["/predict"]
    refusing.discard("/readyz")
    page.until("$('cards').textContent.includes('The server is busy; asking again in 1 s')")
    refusing.discard("/predict")
    page.until(DONE)
    assert page.do("[...photos][0].result.label")

    # for ever: told after a few tries, and asked again when the person wants that
    page.do("$('clear').click(), (pause = async () => {}), 0")
    refusing.add("/predict")
    asked.clear()
    page.choose("#files", photo("red"))
    page.until(DONE)
    assert asked["/predict"] == 4
    assert "Too much to do (asked 4 times)" in page.do(CARDS)[0]
    refusing.clear()
    page.do("document.querySelector('.problem button').click()")
    page.until("[...photos].every(({ result }) => result?.label)")
    assert page.problems == []


def test_everything_is_reached_and_used_with_the_keyboard(page: Page, photo: Photo, tmp_path: Path) -> None:
    page.choose("#files", *(Path(shutil.copy(photo(name), tmp_path / f"{name}.jpg")) for name in ("red", "green")))
    page.until(DONE)

    def walk(steps: int) -> list[str]:
        found = []
        for _ in range(steps):
            page.press("Tab")
            found.append(page.do(FOCUSED))
            outline = page.do("getComputedStyle(document.activeElement).outlineWidth")
            assert outline == "3px", f"{found[-1]} has no visible focus"
        return found

    page.do("document.activeElement.blur(); scrollTo(0, 0)")
    assert walk(8) == [
        "3 classes",
        "Choose photos",
        "Use camera",
        "Copy CSV",
        "Clear all",
        "Remove red.jpg",
        "Remove green.jpg",
        "the interactive API",
    ]
    for _ in range(2):
        page.press("Shift+Tab")
    assert page.do(FOCUSED) == "Remove red.jpg"
    page.press(" ")
    assert page.do("[...photos].map(({ path }) => path)") == ["green.jpg"]
    assert page.do(FOCUSED) == "Remove green.jpg"

    page.call("Page.setInterceptFileChooserDialog", enabled=True)
    for key in ("Enter", " "):
        page.events.clear()
        page.do("$('choose').focus()")
        page.press(key)
        page.until("true")
        assert "Page.fileChooserOpened" in page.events
    page.do("$('more').querySelector('summary').focus()")
    page.press("Enter")
    assert page.do("$('more').open")


def test_assistive_technology_is_told_all_and_every_text_can_be_read(page: Page, photo: Photo, tmp_path: Path) -> None:
    words = tmp_path / "notes.jpg"
    words.write_text("no photo")
    page.do("$('more').open = true")
    page.choose("#files", photo("red"), words)
    page.until(DONE)
    told = page.accessible(
        ("button", "Choose photos"),
        ("button", "Remove 0.jpg"),
        ("heading", "Results"),
        ("list", "Classes, likeliest first"),
    )
    assert [node for node in told if node["role"] in NAMED and not node["name"]] == []
    headings = page.do(
        "[...document.querySelectorAll('h1, h2, h3')].flatMap((one) => (one.checkVisibility() ? one.localName : []))"
    )
    assert headings == ["h1", "h2", "h2", "h3", "h3", "h2"]
    assert [node["live"] for node in told if node["role"] == "status"] == ["polite", "polite"]
    for scheme in ("light", "dark"):
        page.emulate(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
        pale = page.do(PALE)
        assert pale["looked"] > 25
        assert pale["found"] == [], scheme
    assert page.do("document.getAnimations().length") == 0
    # a narrow phone, and a window of 1280 pixels at 200 %
    for width, mobile in ((320, True), (640, False)):
        page.resize(width, 700, mobile=mobile)
        assert page.do("document.documentElement.scrollWidth") <= width
        small = page.do(
            "[...document.querySelectorAll('button, summary')].filter((one) => one.checkVisibility())"
            ".filter((one) => one.getBoundingClientRect().height < 24).map((one) => one.innerText)"
        )
        assert small == []


def test_the_camera_takes_photos_or_says_why_not(browser: Browser, page: Page, server: Server) -> None:
    page.permit("camera", "denied")
    page.do("$('camera').click()")
    page.until("$('seen').textContent.startsWith('The camera is not allowed')")
    page.press("Escape")
    assert not page.do("$('booth').open")

    page.permit("camera", "granted")
    page.do("$('camera').click()")
    page.until("$('view').videoWidth && !$('shoot').hidden")
    assert page.do(FOCUSED) == "Take photo"
    page.press("Enter")
    page.until(DONE)
    assert "camera-1.jpg" in page.do(CARDS)[0]
    colours = """createImageBitmap([...photos][0].file).then((image) => {
      const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
      context.drawImage(image, 0, 0);
      return new Set(new Uint32Array(context.getImageData(0, 0, image.width, image.height).data.buffer)).size;
    })"""
    assert page.do(colours) > 10
    assert page.do("[...photos][0].result.label")
    track = "window.track = stream.getTracks()[0], track.readyState"
    assert page.do(track) == "live"
    page.press("Escape")
    page.until("track.readyState === 'ended' && !stream")
    assert page.do(FOCUSED) == "Use camera"

    page.do("navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('', 'NotFoundError'); }")
    page.do("$('camera').click()")
    page.until("$('seen').textContent.startsWith('No camera was found')")
    page.press("Escape")

    # as on a page that neither comes over https nor from localhost
    page.do("Object.defineProperty(navigator, 'mediaDevices', { value: undefined }), 0")
    page.do("$('camera').click()")
    assert "only to pages over https" in page.do("$('seen').textContent")


@pytest.mark.parametrize("name", ["page", "page-dark", "page-phone"])
def test_the_pictures_in_the_readme_are_small(name: str) -> None:
    assert f"docs/{name}.png" in (ROOT / "README.md").read_text()
    assert (ROOT / "docs" / f"{name}.png").stat().st_size < 300_000


def test_the_interactive_docs_show_the_interface(browser: Browser, server: Server) -> None:
    page = browser.open(f"{server.address}/docs")
    for route in ("/predict", "/models", "/healthz", "/readyz"):
        page.until(f"document.querySelector('[data-path=\"{route}\"]') !== null")
    assert "Unable to render this definition" not in page.text
    assert page.problems == []
