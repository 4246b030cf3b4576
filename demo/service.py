"""A slow HTTP service on loopback that notices when its client leaves."""

import queue
import select
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class SlowService(ThreadingHTTPServer):
    """Answers every request after `seconds`, on a free port, until the block ends."""

    daemon_threads = True

    def __init__(self, seconds: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seconds = seconds
        self.visits: queue.Queue[str] = queue.Queue()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/quota"

    def last_visit(self) -> str:
        """Wait for the end of the oldest untold request; say how it ended."""
        return self.visits.get(timeout=2 * self.seconds)

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: SlowService

    def do_GET(self) -> None:
        started = time.monotonic()
        ends = started + self.server.seconds
        while (left := ends - time.monotonic()) > 0:
            if _client_left(self.connection, left):
                spent = time.monotonic() - started
                self.server.visits.put(f"its client left after {spent:.2f} s")
                return
        body = b"4182 of 10000 calls are left today"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.server.visits.put(f"it answered after {self.server.seconds:.2f} s")

    def log_message(self, *_: object) -> None:
        """Stay silent: the demo prints what matters."""


def _client_left(connection: socket.socket, seconds: float) -> bool:
    readable, _, _ = select.select([connection], [], [], seconds)
    return bool(readable) and not connection.recv(1, socket.MSG_PEEK)
