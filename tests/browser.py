"""A real browser for tests: Chromium by its WebDriver (https://www.w3.org/TR/webdriver2), without a library for it."""

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.request
from contextlib import contextmanager

import pytest

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
ENTER, ESCAPE = "\ue007", "\ue00c"


class Browser:
    """A page in a window, asked by commands of WebDriver."""

    def __init__(self, address):
        self._address = address
        chrome = {"args": FLAGS, "binary": _binary()}
        wanted = {"alwaysMatch": {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}}
        self._session = self._send("POST", "/session", capabilities=wanted)["sessionId"]

    def _send(self, method, path, **body):
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(
            self._address + path, data, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as response:
            return json.load(response)["value"]

    def do(self, path, method="POST", **body):
        return self._send(method, f"/session/{self._session}/{path}", **body)

    def open(self, url, width=1000, height=800, dark=False):
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.developer("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.developer("Emulation.setEmulatedMedia", features=[scheme])
        self.do("url", url=url)

    def developer(self, command, **parameters):
        return self.do("goog/cdp/execute", cmd=command, params=parameters)

    def run(self, script, *arguments):
        """What JavaScript returns."""
        return self.do("execute/sync", script=script, args=arguments)

    def until(self, script, seconds=20):
        """Wait until an expression is true, and return it."""
        end = time.monotonic() + seconds
        while not (value := self.run(f"return {script}")):
            assert time.monotonic() < end, f"never came: {script}\n{self.text('body')}\n{self.problems()}"
            time.sleep(0.02)
        return value

    def _find(self, selector):
        return self.do("element", using="css selector", value=selector)[ELEMENT]

    def click(self, selector):
        self.do(f"element/{self._find(selector)}/click")

    def type(self, selector, text):
        self.do(f"element/{self._find(selector)}/value", text=text)

    def text(self, selector):
        return self.run("return document.querySelector(arguments[0])?.innerText", selector)

    def problems(self):
        """What the browser has complained of since the last time."""
        return [entry["message"] for entry in self.do("se/log", type="browser") if entry["level"] == "SEVERE"]

    def picture(self, path):
        path.write_bytes(base64.b64decode(self.do("screenshot", method="GET")))

    def close(self):
        self._send("DELETE", f"/session/{self._session}")


def _binary():
    names = "chromium", "chromium-browser", "google-chrome", "google-chrome-stable"
    return next((path for name in names if (path := shutil.which(name))), None)


@contextmanager
def browser():
    """A browser of its own; the test is skipped where there is none."""
    if not (_binary() and shutil.which("chromedriver")):
        pytest.skip("needs chromium and chromedriver")
    driver = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert driver.stdout is not None
        port = next(found[1] for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
        opened = Browser(f"http://127.0.0.1:{port}")
        try:
            yield opened
        finally:
            opened.close()
    finally:
        driver.terminate()
        driver.wait(10)
