"""A browser driven through chromedriver's W3C WebDriver interface, for tests of pages."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the standard's name of an element's id

needs_browser = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="chromium and chromedriver are not here"
)


class Browser:
    """One window."""

    def __init__(self, address: str, downloads: Path) -> None:
        self._opener = build_opener(ProxyHandler({}))
        self._address = address
        options = {
            "binary": CHROMIUM,
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
            "prefs": {"download.default_directory": str(downloads)},
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        made = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{made['sessionId']}"

    def open(self, page: Path) -> None:
        self._post("url", {"url": page.resolve().as_uri()})

    def resize(self, width: int, height: int) -> None:
        self._post("window/rect", {"width": width, "height": height})

    def press(self, keys: str) -> None:
        """Press keys one after another, as a person does."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._post("actions", {"actions": [{"type": "key", "id": "k", "actions": actions}]})

    def click(self, selector: str) -> None:
        found = self._post("element", {"using": "css selector", "value": selector})
        self._post(f"element/{found[_ELEMENT]}/click", {})

    def run(self, script: str, *arguments: Any) -> Any:
        return self._post("execute/sync", {"script": script, "args": list(arguments)})

    def log(self) -> list[dict[str, Any]]:
        """Return what the browser's console says."""
        found: list[dict[str, Any]] = self._post("se/log", {"type": "browser"})
        return found

    def close(self) -> None:
        self._ask("DELETE", self._session, None)

    def _post(self, what: str, body: dict[str, Any]) -> Any:
        return self._ask("POST", f"{self._session}/{what}", body)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = Request(self._address + path, data=data, method=method)
        with self._opener.open(request, timeout=120) as reply:
            return json.load(reply)["value"]


@contextmanager
def open_browser(downloads: Path) -> Iterator[Browser]:
    """Open a browser that saves into a folder."""
    assert DRIVER is not None
    with subprocess.Popen(
        [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as driver:
        try:
            window = Browser(_read_driver_address(driver), downloads)
            try:
                yield window
            finally:
                window.close()
        finally:
            driver.terminate()


def wait_for(files: Path, pattern: str, seconds: float = 20) -> Sequence[Path]:
    """Return the files of a name, once they are there."""
    until = time.monotonic() + seconds
    while not (found := sorted(files.glob(pattern))):
        assert time.monotonic() < until, f"no {pattern} in {files}"
        time.sleep(0.1)
    return found


def _read_driver_address(driver: subprocess.Popen[str]) -> str:
    assert driver.stdout is not None
    for line in driver.stdout:
        started = re.search(r"started successfully on port (\d+)", line)
        if started:
            return f"http://127.0.0.1:{started[1]}"
    raise AssertionError("chromedriver ended")
