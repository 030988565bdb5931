"""A real browser for the tests: Debian's chromium without a screen, steered over DevTools."""

import base64
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.request
from itertools import count
from pathlib import Path

from websockets.sync.client import connect

WIDTH, HEIGHT = 1280, 900
SECONDS = 90.0
LOOK_SECONDS, REST_SECONDS, LOOKS = 0.2, 1.5, 6
LONGEST_MESSAGE = 50_000_000


def program():
    """Where the browser lies, or None."""
    return shutil.which("chromium")


class Page:
    """The browser's one page."""

    def __init__(self, socket):
        self._socket, self._numbers = socket, count(1)
        self._tell("Page.enable")

    def open(self, address, *texts):
        """Goes to an address and waits until all of these texts can be seen."""
        self._tell("Page.navigate", url=address)
        for text in texts:
            self.wait_for(text)

    def wait_for(self, text):
        """Waits until a text can be read."""
        self.until(lambda: text in self.text(), f"no '{text}'")

    def until(self, holds, otherwise="in vain"):
        """Waits until something holds."""
        deadline = time.monotonic() + SECONDS
        while not holds():
            assert time.monotonic() < deadline, f"{otherwise}: {self.text()}"
            time.sleep(LOOK_SECONDS)

    def rest(self):
        """Waits until it looks the same twice: what moves has come to rest."""
        before = None
        for _ in range(LOOKS):  # a clock on a page never rests
            now = self._shot()
            if now == before:
                return
            before = now
            time.sleep(REST_SECONDS)

    def text(self):
        """What can be read on it."""
        return self.run("document.body ? document.body.innerText : ''")

    def run(self, script):
        """What a line of JavaScript gives."""
        found = self._tell("Runtime.evaluate", expression=script, returnByValue=True)
        return found["result"].get("value")

    def click(self, text):
        """Clicks the first thing that bears exactly this text, or this label for the blind."""
        script = f"""(() => {{
            const is = one => one.getAttribute('aria-label') === {json.dumps(text)}
                || one.innerText?.trim() === {json.dumps(text)};
            const found = [...document.querySelectorAll('button,a,[role=tab],li,span')].find(is);
            found?.click(); return Boolean(found) }})()"""
        return self.run(script)

    def close_dialogs(self):
        """As a person does who was here before."""
        while self.click("Close"):
            time.sleep(LOOK_SECONDS)

    def picture(self, path):
        """Writes what is to be seen, once it has come to rest, into a PNG file."""
        self.rest()
        path.write_bytes(base64.b64decode(self._shot()))

    def _shot(self):
        return self._tell("Page.captureScreenshot", format="png")["data"]

    def _tell(self, method, **given):
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": given}))
        while (answer := json.loads(self._socket.recv(SECONDS))).get("id") != number:
            pass
        assert "error" not in answer, answer
        return answer["result"]


@contextlib.contextmanager
def browser():
    """Starts it; gives its page."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        words += ["--no-first-run", "--disable-dev-shm-usage", f"--user-data-dir={folder}"]
        words += ["--remote-debugging-port=0", f"--window-size={WIDTH},{HEIGHT}", "about:blank"]
        process = subprocess.Popen(
            [program(), *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            port = _port(Path(folder) / "DevToolsActivePort")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list") as answer:
                pages = [one for one in json.load(answer) if one["type"] == "page"]
            address = pages[0]["webSocketDebuggerUrl"]
            with connect(address, max_size=LONGEST_MESSAGE) as socket:
                yield Page(socket)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _port(file):
    until = time.monotonic() + SECONDS
    while not (file.exists() and file.read_text()):
        assert time.monotonic() < until, "the browser did not start"
        time.sleep(LOOK_SECONDS)
    return int(file.read_text().splitlines()[0])
