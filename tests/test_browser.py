"""The page in a real browser: it asks nothing of the network, runs no script but its own, and what can be clicked works."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pipeline.report.findings import Findings
from pipeline.report.page import page_html
from tests.test_page import SCRIPT, whole, with_pictures

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SWITCHES = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--hide-scrollbars", "--window-size=1240,1000", "--remote-debugging-pipe"),
]
PATIENCE = 90.0
"""Seconds that anything may take on a busy machine."""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium")


class Browser:
    """Chromium, spoken to in its DevTools protocol through a pair of pipes."""

    def __init__(self, folder: Path) -> None:
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        theirs = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (theirs_in, theirs_out)]
        command = ["bash", "-c", f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}', "bash", str(CHROMIUM), *SWITCHES]
        self._process = subprocess.Popen(
            [*command, f"--user-data-dir={folder}", "about:blank"],
            pass_fds=theirs,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (theirs_in, theirs_out, *theirs):
            os.close(fd)
        self._in, self._out, self._unread, self._calls = ours_in, ours_out, b"", 0
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Network", "Runtime", "Log", "Page"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to one message; what else happens until then is kept in `events`."""
        self._calls += 1
        message: dict[str, Any] = {"id": self._calls, "method": method, "params": parameters}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._calls:
            self.events.append(answer)
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, path: Path) -> None:
        """Show a page, and wait until all of it is there."""
        self.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        until = time.monotonic() + PATIENCE
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            assert time.monotonic() < until, "the page was not loaded"
            self.events.append(self._next())

    def run(self, script: str) -> Any:
        """The value of an expression, or of what its promise comes to."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    @property
    def requested(self) -> list[str]:
        """What was asked for since the page was opened."""
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    @property
    def complaints(self) -> list[Any]:
        """Errors and warnings of the console, and exceptions."""
        kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Page.javascriptDialogOpening")
        return [event for event in self.events if event.get("method") in kinds]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._in)
        os.close(self._out)

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._in], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"the browser has not answered for {PATIENCE:g} s"
            read = os.read(self._in, 1 << 20)
            assert read, "the browser has ended"
            self._unread += read
        message, _, self._unread = self._unread.partition(b"\0")
        answer: dict[str, Any] = json.loads(message)
        return answer


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium = Browser(tmp_path_factory.mktemp("profile"))
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every section, 30 images, more pictures than the page can hold."""
    folder = tmp_path_factory.mktemp("run")
    report, past = whole(30, 4, 6)
    report = with_pictures(report, folder, 320)
    path = folder / "report.html"
    path.write_text(page_html(Findings(report), folder, past), encoding="utf-8")
    return path


def test_nothing_is_asked_of_the_network_and_nothing_complained_of(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    browser.run("Promise.all([...document.images].map((image) => { image.loading = 'eager'; return image.decode() }))")

    schemes = {url.partition(":")[0] for url in browser.requested}
    assert schemes == {"file", "data"}, "pictures are within the page, or beside it"
    assert browser.run("[...document.images].every((image) => image.naturalWidth > 0)")
    assert browser.complaints == []


def test_the_policy_lets_nothing_out(browser: Browser, page: Path) -> None:
    heard: list[str] = []

    class Listener(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Listener)
    Thread(target=server.serve_forever, daemon=True).start()
    tries = """(async (address) => {
      const image = new Image();
      const script = document.createElement("script");
      image.src = script.src = address;
      document.body.append(image, script);
      const inline = document.createElement("script");
      inline.textContent = "window.broken = true";
      document.body.append(inline);
      const answer = await fetch(address).then(() => "heard", () => "refused");
      await new Promise((done) => setTimeout(done, 500));
      return [answer, window.broken ?? false];
    })"""
    address = f"http://127.0.0.1:{server.server_port}/"
    blank = page.with_name("blank.html")
    blank.write_text("<!doctype html><body></body>")
    browser.open(blank)
    browser.run(f"{tries}('{address}')")
    assert heard, "without a policy the same tries do get out"
    heard.clear()

    browser.open(page)
    assert browser.run(f"{tries}('{address}')") == ["refused", False]
    server.shutdown()
    server.server_close()
    assert heard == []


def test_a_class_named_like_a_script_stays_text(browser: Browser, page: Path) -> None:
    browser.open(page)

    assert browser.run("document.querySelector('#classes tbody th').textContent.trim()") == SCRIPT
    assert browser.run("document.scripts.length") == 1
    assert browser.run("document.querySelectorAll('em, th b, td i').length") == 0
    assert not any(event.get("method") == "Page.javascriptDialogOpening" for event in browser.events)


def test_tables_are_sorted_by_a_click(browser: Browser, page: Path) -> None:
    browser.open(page)
    values = "[...document.querySelectorAll('#images tbody tr')].map((row) => row.cells[3].dataset.v)"
    button = "document.querySelector('#images thead tr').cells[3].querySelector('button')"
    before = browser.run(values)
    browser.run(f"{button}.click()")
    rising = browser.run(values)
    browser.run(f"{button}.click()")
    falling = browser.run(values)

    numbers = [float(v) for v in rising if v]
    assert len(set(numbers)) > 20
    assert numbers == sorted(numbers)
    assert [float(v) for v in falling if v] == numbers[::-1]
    assert rising[-1] == falling[-1] == "", "what has no score comes last either way"
    assert sorted(rising) == sorted(before)
    assert browser.run("document.querySelector('#images th[aria-sort]').ariaSort") == "descending"


def test_images_are_found_by_name_group_and_state(browser: Browser, page: Path) -> None:
    browser.open(page)
    shown = "[...document.querySelectorAll('#images tbody tr:not([hidden]) th')].map((cell) => cell.textContent)"
    type_in = "(text) => { const i = document.querySelector('[data-filter] input[type=search]'); i.value = text;" \
        " i.dispatchEvent(new Event('input', {bubbles: true})) }"  # fmt: skip
    assert len(browser.run(shown)) == 30

    browser.run(f"({type_in})('SCENE_01')")
    assert browser.run(shown) == sorted(browser.run(shown), key=browser.run(shown).index)
    assert set(browser.run(shown)) == {f"scene_01{n}.tif" for n in range(10)}
    assert browser.run("document.querySelector('[data-filter] output').textContent") == "10 of 30 images"
    visible = "[...document.querySelectorAll('.shots, .maps figure')].filter((f) => f.checkVisibility()).length"
    assert browser.run(visible) == 20, "pictures and error maps follow, those that were folded away too"
    browser.run(f"({type_in})('site wet 13')")
    assert browser.run(shown) == ["scene_013.tif"]

    browser.run(f"({type_in})('')")
    browser.run("document.querySelector('[data-filter] input[value=complete]').click()")
    assert browser.run(shown) == ["scene_029.tif", "scene_028.tif"]


def test_the_slider_shows_the_image_beneath(browser: Browser, page: Path) -> None:
    browser.open(page)
    slide = "(to) => { const i = document.querySelector('[data-opacity] input'); i.value = to;" \
        " i.dispatchEvent(new Event('input', {bubbles: true})) }"  # fmt: skip
    opacity = "(kind) => getComputedStyle(document.querySelector(`.shots img[data-kind=${kind}]`)).opacity"
    assert browser.run("document.querySelectorAll('.shots .under').length") == 0

    browser.run(f"({slide})(40)")
    assert [browser.run(f"({opacity})('{kind}')") for kind in ("image", "truth", "mask", "errors")] == ["1", "0.4", "0.4", "0.4"]
    assert browser.run("document.querySelector('.shots').querySelectorAll('.under').length") == 3
    pair = "[...document.querySelector('.shots .under').parentElement.children]"
    browser.run("document.querySelector('.shots').scrollIntoView()")  # pictures are loaded when they come near
    until = time.monotonic() + 30
    while not browser.run(f"{pair}.every((image) => image.complete && image.naturalHeight > 0)") and time.monotonic() < until:
        time.sleep(0.05)
    places = browser.run(f"{pair}.map((image) => JSON.stringify(image.getBoundingClientRect()))")
    assert places[0] == places[1], "the image lies exactly beneath"
    browser.run(f"({slide})(70)")
    assert browser.run("document.querySelector('.shots').querySelectorAll('.under').length") == 3
    assert browser.complaints == []


def test_a_click_makes_the_pictures_of_an_image_large(browser: Browser, page: Path) -> None:
    browser.open(page)
    width = "document.querySelector('.shots .frame').getBoundingClientRect().width"
    small = browser.run(width)
    browser.run("document.querySelector('.shots .frame').click()")

    assert browser.run(width) > 1.9 * small


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_stand_out_in_light_and_dark(scheme: str, browser: Browser, page: Path) -> None:
    browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    browser.open(page)
    contrasts = browser.run(
        """(() => {
          const channels = (color) => color.match(/[\\d.]+/g).map(Number);
          const linear = (v) => v <= 0.04 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
          const light = (color) => color.slice(0, 3).map((v) => linear(v / 255))
            .reduce((sum, v, n) => sum + v * [0.2126, 0.7152, 0.0722][n], 0);
          const behind = (node) => {
            const found = channels(getComputedStyle(node).backgroundColor);
            return found.length === 4 && found[3] === 0 ? behind(node.parentElement) : found;
          };
          return ["h1", ".sentence", ".todo li", ".soft", ".chip.fail", ".chip.pass", ".chip.inconclusive", "td", "pre", "small"]
            .map((name) => document.querySelector(name))
            .map((node) => [light(channels(getComputedStyle(node).color)), light(behind(node))])
            .map(([a, b]) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05));
        })()"""
    )
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    browser.call("Emulation.setEmulatedMedia", features=[])

    assert min(contrasts) >= 4.5, "WCAG 2 AA"
    assert (int(background[4:].split(",")[0]) < 128) == (scheme == "dark")


@pytest.mark.parametrize("width", [360, 820, 1600])
def test_the_page_is_never_wider_than_the_screen(width: int, browser: Browser, page: Path) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
    browser.open(page)
    browser.run("document.querySelectorAll('details').forEach((part) => (part.open = true))")
    found = browser.run("document.documentElement.scrollWidth")
    browser.call("Emulation.clearDeviceMetricsOverride")

    assert found <= width


def test_it_prints_with_everything_that_says_something(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run("dispatchEvent(new Event('beforeprint'))")
    browser.call("Emulation.setEmulatedMedia", media="print")
    folded = browser.run("[...document.querySelectorAll('#again details')].filter((part) => !part.open).length")
    tools = browser.run("[...document.querySelectorAll('.tools, nav')].filter((part) => part.checkVisibility()).length")
    cut = browser.run(
        "document.querySelector('#images .scroll table').closest('.scroll').scrollHeight > document.body.scrollHeight"
    )
    browser.call("Emulation.setEmulatedMedia", media="")
    pdf = browser.call("Page.printToPDF", preferCSSPageSize=True)["data"]

    assert (folded, tools, cut) == (0, 0, False)
    assert len(pdf) > 10_000
