"""A headless chromium, driven over a pipe by the DevTools protocol, and a report in one of its tabs."""

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_LAUNCH = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 20) for end in sys.argv[1:3]]
os.dup2(ends[0], 3), os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Browser:
    """A headless chromium; replies and events are JSON, each ended by a zero byte."""

    def __init__(self, folder: Path) -> None:
        there, self.sending = os.pipe()
        self.receiving, back = os.pipe()
        off = ("gpu", "quic", "background-networking", "component-update", "sync", "dev-shm-usage")
        flags = ["--headless", "--no-sandbox", "--no-first-run", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
        flags += [f"--disable-{name}" for name in off]
        command = [sys.executable, "-c", _LAUNCH, str(there), str(back), CHROMIUM, *flags]
        self.process = subprocess.Popen(
            command, pass_fds=(there, back), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(there), os.close(back)
        self.buffer, self.number, self.events = b"", 0, []

    def call(self, method: str, session: str | None = None, tries: int = 20, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | ({"sessionId": session} if session else {})
        os.write(self.sending, json.dumps(message).encode() + b"\0")
        while (reply := self.receive()).get("id") != self.number:
            self.events.append(reply)
        if "navigated" in reply.get("error", {}).get("message", "") and tries:
            # The call came while one page was replaced by the next.
            time.sleep(0.2)
            return self.call(method, session, tries - 1, **parameters)
        assert "error" not in reply, reply
        return reply["result"]

    def receive(self, seconds: float = 60) -> dict[str, Any]:
        while b"\0" not in self.buffer:
            assert select.select([self.receiving], [], [], seconds)[0], "chromium does not answer"
            data = os.read(self.receiving, 1 << 20)
            assert data, "chromium has ended"
            self.buffer += data
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def close(self) -> None:
        os.close(self.sending), os.close(self.receiving)
        self.process.terminate()
        self.process.wait(20)


class Page:
    """One tab with a report in it. `script` runs before the scripts of the report."""

    def __init__(
        self, browser: Browser, path: Path, width: int = 1280, height: int = 900, dark: bool = False, script: str = ""
    ) -> None:
        self.browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.call("Page.addScriptToEvaluateOnNewDocument", source=script)
        self.browser.events.clear()
        self.call("Page.navigate", url=path.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in browser.events):
            browser.events.append(browser.receive())

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **parameters)

    def resize(self, width: int, height: int) -> None:
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500)

    def run(self, script: str) -> Any:
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def click(self, selector: str) -> None:
        self.run(f"document.querySelector({selector!r}).click()")

    def text(self, selector: str) -> str:
        return self.run(f"document.querySelector({selector!r}).innerText")

    def count(self, selector: str) -> int:
        return self.run(f"document.querySelectorAll({selector!r}).length")

    def choose(self, selector: str, value: str) -> None:
        script = f"const box = document.querySelector({selector!r}); box.value = {value!r};"
        self.run(
            f"{{{script} for (const kind of ['input', 'change']) box.dispatchEvent(new Event(kind, {{bubbles: true}}))}}"
        )

    def listed(self) -> list[str]:
        return self.run("[...document.querySelectorAll('#items li:not([hidden])')].map((one) => one.textContent)")

    def complaints(self) -> list[Any]:
        """Return errors, warnings and violations of the policy, and requests for anything but the page itself."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        complaints: list[Any] = []
        for event in self.browser.events:
            details = event.get("params", {})
            if event.get("method") in ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                complaints.append(details)
            elif event.get("method") == "Network.requestWillBeSent" and not details["request"]["url"].startswith(
                ("file:", "data:")
            ):
                complaints.append(details["request"]["url"])
        return complaints

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if CHROMIUM is None:
        pytest.skip("no chromium here")
    running = Browser(tmp_path_factory.mktemp("chromium"))
    yield running
    running.close()
