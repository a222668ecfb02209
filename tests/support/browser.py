"""A headless Chromium, driven through its DevTools protocol over a pipe, with no library between."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
_PATIENCE = 60.0
# Its messages come on the file descriptor 4, and it reads 3.
_START = 'read=$1 write=$2; shift 2; exec "$@" 3<&$read 4>&$write'
# Tab moves the focus by its number alone.
_KEYS = {"Tab": {"windowsVirtualKeyCode": 9}}


@contextmanager
def page(url, profile):
    """Open a page, and close the browser in the end."""
    to_browser, from_browser = _pipe(), _pipe()
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--remote-debugging-pipe", "--no-first-run", f"--user-data-dir={profile}"]
    given = (to_browser[0], from_browser[1])
    process = subprocess.Popen(
        ["bash", "-c", _START, "bash", *map(str, given), *command],
        pass_fds=given,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for end in given:
        os.close(end)
    try:
        yield Page(to_browser[1], from_browser[0], url)
    finally:
        os.close(to_browser[1])  # with its reader gone, it ends
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(from_browser[0])


class Page:
    """One page, and what it asked the network for."""

    def __init__(self, to_browser, from_browser, url):
        self._to, self._from = to_browser, from_browser
        self._buffer = b""
        self._count = 0
        self._session = None
        self.events = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.send(f"{domain}.enable")
        self.resize(1100, 900)
        self.send("Page.navigate", url=url)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._take(self._read())

    def send(self, method, **params):
        """Give a command, and return what it answers."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]
            self._take(answer)

    def value(self, expression):
        """Evaluate JavaScript in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def hover(self, x, y):
        """Move the mouse, as a hand would."""
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, x, y):
        at = {"x": x, "y": y, "button": "left", "clickCount": 1}
        self.send("Input.dispatchMouseEvent", type="mousePressed", **at)
        self.send("Input.dispatchMouseEvent", type="mouseReleased", **at)

    def key(self, name):
        """Press a key, by the name that events have for it."""
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=name, code=name, **_KEYS.get(name, {})
            )

    def resize(self, width, height, scheme="light"):
        """Show the page in a window of this size, on a light or a dark ground."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)
        media = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=media)

    def requests(self):
        sent = (e for e in self.events if e["method"] == "Network.requestWillBeSent")
        return [event["params"]["request"]["url"] for event in sent]

    def complaints(self):
        """What the console says: errors, and what the page's policy has stopped."""
        kinds = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return [event for event in self.events if event["method"] in kinds]

    def _take(self, message):
        if "method" in message:
            self.events.append(message)

    def _read(self):
        until = time.monotonic() + _PATIENCE
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], until - time.monotonic())
            assert ready, "the browser does not answer"
            chunk = os.read(self._from, 1 << 16)
            assert chunk, "the browser has ended"
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)


def _pipe():
    """A pipe whose ends are clear of the numbers that the browser wants."""
    ends = os.pipe()
    moved = tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return moved
