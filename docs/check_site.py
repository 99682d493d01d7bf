"""Check every page of the built site in a browser, at desktop and phone width, light and dark.

    python docs/check_site.py site --axe node_modules/axe-core/axe.min.js

Report requests to other servers, console errors, pages wider than the window, lines of code that do
not fit at desktop width, images without alternative text, and with `--axe` (from `npm install axe-
core`) serious and critical accessibility problems. Exit with 1 if there are any. Needs playwright
and Chromium; a Chromium on the path is preferred.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal

WIDTHS = (1280, 390)
SCHEMES: tuple[Literal["light", "dark"], ...] = ("light", "dark")
SERIOUS = ("serious", "critical")
# the longest line of each code block that is wider than its box
CUT_LINES = """blocks => blocks
    .filter(block => block.scrollWidth > block.clientWidth)
    .map(block => block.innerText.split("\\n").reduce((a, b) => a.length > b.length ? a : b))"""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("site", type=Path, help="folder built by `make docs`")
    parser.add_argument("--axe", type=Path, help="axe.min.js")
    parser.add_argument("--screenshots", type=Path, help="folder for screenshots of every page")
    args = parser.parse_args()

    from playwright.sync_api import sync_playwright

    pages = sorted(page for page in args.site.rglob("*.html") if page.name != "404.html")
    if not pages:
        parser.error(f"{args.site} does not contain a page; build the site with `make docs`")
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    count = 0
    with served(args.site) as address, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for width in WIDTHS:
            for scheme in SCHEMES:
                page = browser.new_page(
                    viewport={"width": width, "height": 900}, color_scheme=scheme
                )
                for path in pages:
                    name = path.relative_to(args.site).as_posix()
                    for problem in look(page, address, name, args.axe):
                        count += 1
                        print(f"{name} ({width}, {scheme}): {problem}")
                    if args.screenshots and scheme == "light":
                        stem = name.removesuffix(".html").replace("/", "-")
                        picture = args.screenshots / f"{stem}-{width}.png"
                        page.screenshot(path=picture, full_page=True)
                page.close()
        browser.close()
    print(f"{len(pages)} pages, {count} problems.")
    sys.exit(count > 0)


class Quiet(SimpleHTTPRequestHandler):
    """Serve files without logging requests."""

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def served(site: Path) -> Iterator[str]:
    """Serve the site on a free local port, since search does not work from disk."""
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def look(page: Any, address: str, name: str, axe: Path | None) -> Iterator[str]:
    """Yield the problems of one page."""
    noticed: list[str] = []

    def request(sent: Any) -> None:
        if not sent.url.startswith((address, "data:", "blob:")):
            noticed.append(f"loads {sent.url}")

    def console(message: Any) -> None:
        if message.type == "error":
            noticed.append(f"console: {message.text}")

    page.on("request", request)
    page.on("console", console)
    page.goto(address + name)
    page.wait_for_load_state("networkidle")
    page.remove_listener("request", request)
    page.remove_listener("console", console)
    yield from noticed
    wide = page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
    if wide > 0:
        yield f"{wide} pixels wider than the window"
    if page.viewport_size["width"] == max(WIDTHS):
        for line in page.eval_on_selector_all("pre > code", CUT_LINES):
            yield f"code scrolls sideways: {line}"
    for source in page.eval_on_selector_all(
        "img:not([alt]), img[alt='']", "e => e.map(i => i.src)"
    ):
        yield f"no alternative text: {source}"
    if axe is None:
        return
    page.add_script_tag(path=axe)
    result = page.evaluate("axe.run(document, {resultTypes: ['violations']})")
    for violation in result["violations"]:
        if violation["impact"] in SERIOUS:
            nodes = violation["nodes"]
            first = " ".join(nodes[0]["html"].split())[:150]
            yield f"{violation['id']}, {len(nodes)} elements: {first}"


if __name__ == "__main__":
    main()
