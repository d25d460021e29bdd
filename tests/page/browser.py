"""A headless Chromium driven through its debugging port: enough of WebSockets (RFC 6455) and of its protocol."""

import base64
import http.client
import json
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from pathlib import Path


def chromium():
    """Return the path of a Chromium, None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One page. `run(expression)` evaluates JavaScript, also promises, and returns its value."""

    def __init__(self, url, size=(1200, 800)):
        self._folder = tempfile.mkdtemp()
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-port=0",
        ]
        flags += [f"--user-data-dir={self._folder}", f"--window-size={size[0]},{size[1]}", "about:blank"]
        self._process = subprocess.Popen([chromium(), *flags], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        port_file = Path(self._folder, "DevToolsActivePort")
        self._wait(lambda: port_file.exists() and "\n" in port_file.read_text(), 30)
        port = int(port_file.read_text().splitlines()[0])
        self._wait(lambda: self._pages(port), 30)
        path = next(page for page in self._pages(port) if page["type"] == "page")["webSocketDebuggerUrl"]
        self._socket = self._connect(port, "/" + path.split("/", 3)[3])
        self._n, self.errors = 0, []
        for domain in ("Runtime", "Page", "Log"):
            self.call(f"{domain}.enable")
        self.open(url)

    @staticmethod
    def _wait(condition, seconds):
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            time.sleep(0.05)

    @staticmethod
    def _pages(port):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", "/json")
        found = json.loads(connection.getresponse().read())
        connection.close()
        return [page for page in found if page["type"] == "page"]

    @staticmethod
    def _connect(port, path):
        connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        key = base64.b64encode(os.urandom(16)).decode()
        head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        connection.sendall(f"{head}Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode())
        received = b""
        while b"\r\n\r\n" not in received:
            received += connection.recv(1)
        assert b" 101 " in received
        return connection

    def _send(self, text):
        data, mask = text.encode(), os.urandom(4)
        size = bytes([0x80 | len(data)]) if len(data) < 126 else b"\xfe" + struct.pack(">H", len(data))
        if len(data) >= 1 << 16:
            size = b"\xff" + struct.pack(">Q", len(data))
        self._socket.sendall(b"\x81" + size + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(data)))

    def _exactly(self, n):
        received = b""
        while len(received) < n:
            part = self._socket.recv(n - len(received))
            assert part, "the browser is gone"
            received += part
        return received

    def _receive(self):
        text = b""
        while True:
            first, size = self._exactly(2)
            if size & 127 > 125:
                (size,) = struct.unpack(">H" if size == 126 else ">Q", self._exactly(2 if size == 126 else 8))
            text += self._exactly(size)
            if first & 0x80:
                return json.loads(text)

    def call(self, method, **params):
        """Ask for something of the protocol; return its result."""
        self._n += 1
        self._send(json.dumps({"id": self._n, "method": method, "params": params}))
        while True:
            message = self._receive()
            entry = message.get("params", {}).get("entry", {})
            is_broken = entry.get("level") == "error" and entry.get("source") in ("javascript", "security")
            if message.get("method") == "Runtime.exceptionThrown" or is_broken:
                self.errors.append(json.dumps(message["params"])[:500])
            if message.get("id") == self._n:
                assert "error" not in message, message
                return message["result"]

    def open(self, url):
        self.call("Page.navigate", url=url)
        self._wait(lambda: self.run("document.readyState") == "complete", 20)

    def run(self, expression):
        found = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, expression, seconds=20):
        """Wait until an expression is true."""
        self._wait(lambda: self.run(f"Boolean({expression})"), seconds)

    def picture(self, path):
        """Write a screenshot as PNG."""
        with open(path, "wb") as file:
            file.write(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self):
        self._process.terminate()
        self._process.wait(10)
        self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)
