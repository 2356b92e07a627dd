"""A real Chromium for the tests of the page, and axe-core, which tells what people with disabilities would stumble over."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nodes import eventually
from selenium import webdriver
from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

AXE = "axe-core@4.10.2"
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # as root, which CI machines run tests as
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--autoplay-policy=no-user-gesture-required",
)


def chromium() -> tuple[str, str]:
    """Return the paths of browser and driver; skips the test where they are not installed."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("no browser: install chromium and chromium-driver to test the page")
    return browser, driver


def axe_source(directory: Path) -> str:
    """Return the script axe.min.js of the npm package; skips the test where there is no npm."""
    if shutil.which("npm") is None:
        pytest.skip("no npm: install it to check the page's accessibility with axe-core")
    subprocess.run(["npm", "pack", AXE, "--silent", "--pack-destination", str(directory)], check=True, timeout=120, capture_output=True)
    (archive,) = directory.glob("axe-core-*.tgz")
    with tarfile.open(archive) as files:
        member = files.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()


class Page:
    """The page in a browser. Every wait has a deadline."""

    def __init__(self, url: str) -> None:
        self.url = url
        browser, driver = chromium()
        self.profile = tempfile.mkdtemp(prefix="keyva-chromium-")
        self.downloads = Path(self.profile) / "downloads"
        options = Options()
        options.binary_location = browser
        for flag in (*FLAGS, f"--user-data-dir={self.profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(driver))
        self.driver.set_page_load_timeout(30)
        self.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(self.downloads))

    def command(self, name: str, **arguments: Any) -> Any:
        return self.driver.execute_cdp_cmd(name, arguments)

    def resize(self, width: int, height: int, *, dark: bool = False) -> None:
        self.command("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, place: str = "#/") -> None:
        """Load the page anew at a place, and wait until it has connected."""
        self.driver.get("about:blank")
        self.driver.get(f"{self.url}/{place}")
        self.wait(lambda: self.script("return document.querySelector('#health.good') !== null"), "the page is connected")

    def go(self, place: str) -> None:
        self.script("location.hash = arguments[0]", place)

    def script(self, source: str, *arguments: Any) -> Any:
        return self.driver.execute_script(source, *arguments)

    def find(self, selector: str) -> WebElement:
        """Wait for a visible element."""

        def look() -> WebElement | None:
            try:
                found = self.driver.find_element(By.CSS_SELECTOR, selector)
                return found if found.is_displayed() else None
            except (NoSuchElementException, StaleElementReferenceException):
                return None

        element: WebElement = self.wait(look, f"{selector} is there")
        return element

    def has(self, selector: str) -> bool:
        try:
            return self.driver.find_element(By.CSS_SELECTOR, selector).is_displayed()
        except (NoSuchElementException, StaleElementReferenceException):
            return False

    def inside(self, selector: str) -> bool:
        """Whether all of an element is within the window, as far as it is not covered."""
        return bool(
            self.script(
                """const found = document.querySelector(arguments[0]);
                if (!found) return false;
                const { top, bottom, left, right } = found.getBoundingClientRect();
                const there = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
                const seen = found.contains(there) || there?.contains(found);
                return seen && top >= 0 && left >= 0 && bottom <= innerHeight && right <= innerWidth;""",
                selector,
            )
        )

    def focused(self, selector: str) -> bool:
        return bool(self.script("return document.activeElement.matches(arguments[0])", selector))

    def mouse(self, x: float, y: float) -> None:
        """Press and release the mouse at a point, whatever is there: the browser sends focus and click where they belong."""
        for kind, pressed in (("mouseMoved", 0), ("mousePressed", 1), ("mouseReleased", 0)):
            button = "none" if kind == "mouseMoved" else "left"
            self.command("Input.dispatchMouseEvent", type=kind, x=x, y=y, button=button, buttons=pressed, clickCount=int(button == "left"))

    def click(self, selector: str) -> None:
        def press() -> bool:
            self.find(selector).click()
            return True

        self.wait(press, f"{selector} is pressed")

    def fill(self, selector: str, text: str) -> None:
        """Replace what a field holds, as typing does."""
        field = self.find(selector)
        self.script("arguments[0].select()", field)
        if text:
            field.send_keys(text)
        else:
            self.script("arguments[0].value = ''; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))", field)

    def text(self, selector: str) -> str:
        return str(self.script("return document.querySelector(arguments[0])?.textContent ?? ''", selector))

    def value(self, selector: str) -> str:
        return str(self.script("return document.querySelector(arguments[0])?.value ?? ''", selector))

    def wait(self, condition: Any, what: str) -> Any:

        def seen() -> Any:
            try:
                return condition()
            except StaleElementReferenceException:  # the page has just put another element in its place: look again
                return None

        return eventually(seen, what)

    def wait_text(self, selector: str, part: str) -> None:
        self.wait(lambda: part in self.text(selector), f"{selector} says {part!r}, not {self.text(selector)!r}")

    def keys(self) -> list[str]:
        """Return the names in the list, as shown."""
        return list(self.script("return [...document.querySelectorAll('#list .name')].map((name) => name.textContent)"))

    def choose(self, name: str) -> None:
        """Click a key of the list and wait until it is open."""
        self.wait(lambda: name in self.keys(), f"{name!r} is in the list")
        rows = "[...document.querySelectorAll('#list li')]"
        row = self.script(f"return {rows}.find((row) => row.querySelector('.name').textContent === arguments[0])", name)
        row.click()
        self.wait(lambda: self.text("#open-key") == name and self.has("#type"), f"{name!r} is open")

    def dialog(self, action: str) -> None:
        """Press a button of the open dialog."""
        self.click(f"dialog [data-action={action}]")

    def wait_no_dialog(self) -> None:
        self.wait(lambda: not self.has("dialog"), "the dialog has closed")

    def drop(self, files: dict[str, tuple[str, str]]) -> None:
        """Drop files ({name: (type, text)}) on the page."""
        self.script(
            """const carried = new DataTransfer();
            for (const [name, [type, text]] of Object.entries(arguments[0])) carried.items.add(new File([text], name, { type }));
            for (const kind of ["dragenter", "dragover", "drop"])
              document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true }));""",
            files,
        )

    def complaints(self) -> list[str]:
        """Return what the browser's console holds of errors and violations of the policy, and forget it."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]  # type: ignore[no-untyped-call]

    def origins(self) -> set[str]:
        """Return the origins of all that the page has loaded."""
        return set(self.script("return performance.getEntriesByType('resource').map((entry) => new URL(entry.name).origin)"))

    def axe(self, source: str) -> list[str]:
        """Run axe-core on what is shown; returns its serious and critical findings."""
        # by the protocol, for the page's policy lets no script in that the server does not serve
        self.command("Runtime.evaluate", expression=source)
        run = f"axe.run(document, {json.dumps({'resultTypes': ['violations']})}).then(JSON.stringify)"
        answer = self.command("Runtime.evaluate", expression=run, awaitPromise=True, returnByValue=True)
        found = json.loads(answer["result"]["value"])["violations"]
        return [
            f"{violation['id']} ({violation['impact']}): {node['target']} {node['failureSummary']}"
            for violation in found
            for node in violation["nodes"]
            if violation["impact"] in ("serious", "critical")
        ]

    def close(self) -> None:
        self.driver.quit()
        shutil.rmtree(self.profile, ignore_errors=True)


def opened(url: str) -> Iterator[Page]:
    """Give a page for a fixture, and close its browser afterwards."""
    os.environ.setdefault("SE_OFFLINE", "true")  # selenium's manager must not look for drivers elsewhere
    page = Page(url)
    try:
        page.resize(1280, 800)
        yield page
    finally:
        page.close()
