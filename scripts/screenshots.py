"""Draw the pictures of the page that the README shows. Run by scripts/screenshots."""

from __future__ import annotations

import argparse
import io
import tempfile
from pathlib import Path

from PIL import Image

from tests.serving.browser import CHROMIUM, Page, browsing
from tests.serving.conftest import start

DOCS = Path("docs")
QUICKSTART = Path("runs/quickstart")
WINDOW, PHONE = (1280, 800), (390, 844)
COLOURS = 256
MAX_BYTES = 300_000
READY = "$('state').className === 'ready'"
DONE = "photos.size && [...photos].every(({ result }) => result?.label)"


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/screenshots", description=__doc__)
    parser.add_argument("models", type=Path, nargs="?", default=QUICKSTART / "models")
    parser.add_argument("photos", type=Path, nargs="*")
    given = parser.parse_args()
    photos = given.photos or [min(folder.glob("*.jpg")) for folder in sorted(QUICKSTART.glob("photos/test/*"))]
    if CHROMIUM is None:
        parser.error("no Chromium here (Debian: apt-get install chromium)")
    if not given.models.is_dir() or not photos:
        parser.error("nothing to show: run scripts/quickstart first, or name MODELS and PHOTO...")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        server = start(given.models, Path(folder, "log"))
        try:
            with browsing(Path(folder, "profile")) as browser:
                page = browser.open(server.address, *WINDOW)
                show(page, photos)
                save(page, "page.png")
                page.emulate(prefers_color_scheme="dark")
                save(page, "page-dark.png")
                page.emulate(prefers_color_scheme="light")
                page.resize(*PHONE, mobile=True)
                save(page, "page-phone.png")
        finally:
            server.process.kill()
            server.process.wait()


def show(page: Page, photos: list[Path]) -> None:
    """Give the page some photos; twice, as the first answers of a server take longer than those that follow."""
    for _ in range(2):
        page.until(READY)
        page.do("$('clear').click(), document.activeElement.blur()")
        page.choose("#files", *(photo.resolve() for photo in photos))
        page.until(DONE)


def save(page: Page, name: str) -> None:
    """Write what the page shows, with few colours, as a small file."""
    with Image.open(io.BytesIO(page.picture())) as image:
        image.convert("RGB").quantize(COLOURS, kmeans=1).save(DOCS / name, optimize=True)
    size = (DOCS / name).stat().st_size
    print(f"{DOCS / name}: {size / 1000:.0f} kB")
    if size > MAX_BYTES:
        raise SystemExit(f"{name} is larger than {MAX_BYTES / 1000:.0f} kB")


if __name__ == "__main__":
    main()
