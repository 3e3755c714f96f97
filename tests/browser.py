"""A headless Chromium that tests talk to through two pipes, by the DevTools protocol.

`python -m tests.browser report.html docs/pictures` takes the pictures of the documents.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

PROGRAM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
ABSENT = "no Chromium on the path; Debian's package is called chromium"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--remote-debugging-pipe",
)


class Browser:
    """A browser with one page; a context that closes it."""

    def __init__(self) -> None:
        assert PROGRAM is not None, ABSENT
        self._home = tempfile.TemporaryDirectory(prefix="chromium-")
        to_read, self._out = os.pipe()
        self._in, to_write = os.pipe()
        # Chromium reads file 3 and writes file 4; the shell moves ours there.
        script = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        command = ["bash", "-c", script, PROGRAM, *FLAGS, f"--user-data-dir={self._home.name}"]
        self._process = subprocess.Popen(
            command, pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self._next, self._session, self._rest = 0, "", b""
        self.events: list[dict[str, Any]] = []
        """What the page told unasked: its log, its requests."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        found = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.terminate()
        self._process.wait(30)
        os.close(self._in)
        os.close(self._out)
        shutil.rmtree(self._home.name, ignore_errors=True)
        self._home._finalizer.detach()  # type: ignore[attr-defined]

    def ask(self, method: str, **parameters: object) -> dict[str, Any]:
        """Send a command and wait for its answer; events that come meanwhile are kept."""
        self._next += 1
        message: dict[str, object] = {"id": self._next, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._next:
                assert "error" not in answer, answer["error"]
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._in, 1 << 16)
            assert part, "the browser is gone"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(text)
        return message

    def show(self, page: Path, width: int, *, dark: bool = False, height: int = 900) -> None:
        """Load a file in a window of this width, in one of the two themes."""
        self.events.clear()
        self.resize(width, height)
        self.media("screen", dark=dark)
        self.ask("Page.navigate", url=page.resolve().as_uri())
        while not self.value(
            "document.readyState === 'complete' && location.href !== 'about:blank'"
        ):
            pass

    def resize(self, width: int, height: int = 900) -> None:
        """Give the window this size, in CSS pixels."""
        self.ask(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def media(self, kind: str, *, dark: bool) -> None:
        """Show the page on a `screen` or in `print`, or on what it is shown on, in a theme."""
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media=kind, features=[theme])

    def value(self, expression: str) -> Any:
        """What an expression gives in the page."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key."""
        codes = {"Tab": 9, "Enter": 13}
        for kind in ("keyDown", "keyUp"):
            self.ask(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                code=key,
                windowsVirtualKeyCode=codes[key],
            )

    def picture(
        self, *, whole: bool = True, form: str = "png", quality: int | None = None
    ) -> bytes:
        """The page as an image file."""
        extra = {} if quality is None else {"quality": quality}
        found = self.ask(
            "Page.captureScreenshot", format=form, captureBeyondViewport=whole, **extra
        )
        return base64.b64decode(found["data"])

    def printed(self) -> bytes:
        """The page as a PDF on A4, by someone whose theme is dark."""
        self.media("", dark=True)
        found = self.ask("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
        return base64.b64decode(found["data"])

    def complaints(self) -> list[str]:
        """What the console was told, and what was fetched from anywhere but the page's own file."""
        self.value("1")  # Whatever was said before this answer has arrived by then.
        said = []
        for event in self.events:
            found = event.get("params", {})
            if event["method"] in (
                "Log.entryAdded",
                "Runtime.exceptionThrown",
                "Runtime.consoleAPICalled",
            ):
                said.append(json.dumps(found))
            if event["method"] == "Network.requestWillBeSent":
                url = found["request"]["url"]
                if not url.startswith(("file:", "data:", "about:")):
                    said.append(url)
        return said


def take_pictures(page: Path, folder: Path) -> None:
    """Take a report's pictures: the top of the page on a screen in both themes, and on a phone."""
    with Browser() as browser:
        browser.ask("Emulation.setScrollbarsHidden", hidden=True)
        for width, height in ((1440, 1560), (768, 1400), (360, 1280)):
            for theme in ("light", "dark"):
                browser.show(page, width, dark=theme == "dark", height=height)
                found = browser.picture(whole=False, form="webp", quality=80)
                (folder / f"report-{width}-{theme}.webp").write_bytes(found)


if __name__ == "__main__":
    take_pictures(Path(sys.argv[1]), Path(sys.argv[2]))
