"""A headless Chromium for tests, driven by its own protocol through two pipes."""

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run", "--mute-audio"]


class Browser:
    """One page of a browser. microphone: a WAV file that plays in its place, over and over; None: there is none.

    Unless `is_permitted`, the page may not use the microphone.
    """

    def __init__(self, page: Path, profile: Path, microphone: Path | None = None, is_permitted: bool = True):
        there, ours = os.pipe(), os.pipe()
        flags = [*FLAGS, f"--user-data-dir={profile}"]
        if microphone:
            flags += ["--use-fake-device-for-media-stream", f"--use-file-for-fake-audio-capture={microphone}"]
            flags += ["--use-fake-ui-for-media-stream"] if is_permitted else ["--deny-permission-prompts"]
        command = ["bash", "-c", f'exec "$@" 3<&{there[0]} 4>&{ours[1]}', "-", CHROMIUM, *flags, "about:blank"]
        self._process = subprocess.Popen(
            command, pass_fds=(there[0], ours[1]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(there[0])
        os.close(ours[1])
        self._to, self._from, self._heard, self._number = there[1], ours[0], b"", 0
        self._session, self.log = None, []
        try:
            self._open(page)
        except BaseException:
            self.__exit__()
            raise

    def _open(self, page: Path) -> None:
        target = self.call("Target.createTarget", url=page.as_uri())["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Runtime.enable")
        self.call("DOM.enable")
        self.until("document.readyState == 'complete' && typeof listeners != 'undefined' && listeners != null")

    def call(self, method: str, timeout_s: float = 600, **params) -> dict:
        """Call a method of the protocol and return its result."""
        self._number += 1
        said = {"id": self._number, "method": method, "params": params}
        if self._session:
            said["sessionId"] = self._session
        os.write(self._to, json.dumps(said).encode() + b"\0")
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            while b"\0" in self._heard:
                line, _, self._heard = self._heard.partition(b"\0")
                answer = json.loads(line)
                if answer.get("method") in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled"):
                    self.log.append(json.dumps(answer["params"])[:1000])
                if answer.get("id") == self._number:
                    assert "error" not in answer, answer
                    return answer["result"]
            if select.select([self._from], [], [], 1)[0]:
                self._heard += os.read(self._from, 2**20)
        raise AssertionError(f"{method}: no answer in {timeout_s} s; {self.log}")

    def run(self, script: str):
        """Evaluate JavaScript and return its value."""
        answer = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str, timeout_s: float = 600) -> None:
        """Wait until a condition in JavaScript holds."""
        end = time.monotonic() + timeout_s
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < end, f"{condition}: not in {timeout_s} s; {self.log}"
            time.sleep(0.1)

    def drop(self, *files: Path) -> None:
        """Drop files onto the page."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=100, y=100, data=data)

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_) -> None:
        self._process.terminate()
        self._process.wait(timeout=600)
        os.close(self._to)
        os.close(self._from)
