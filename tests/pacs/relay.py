"""A connection between a server and its PACS that can be slow, cut, or lose responses."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


def answer(status: str, content_type: str, body: bytes) -> bytes:
    """Return an HTTP/1.1 response."""
    head = (
        f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


NOT_FOUND = answer("404 Not Found", "text/plain", b"gone")
NO_PART = answer(
    "200 OK", 'multipart/related; type="application/dicom"; boundary=x', b"\r\n--x--\r\n"
)
NO_ITEM = answer("200 OK", "application/dicom+json", b"[]")


@dataclass
class Relay:
    """Forwards connections to a port of this machine.

    Attributes:
        port: TCP port that the relay listens on.
        target: TCP port that it forwards to.
        delay_s: Delay in s of each part of a response.
        is_cut: Whether no data is forwarded.
        loses_answers: Whether requests are forwarded, but responses are dropped.
        refuses: The relay itself answers requests whose path contains this text; empty to forward all.
        refusal: Response to these requests, by default 404.
        held: Number of response parts that were delayed or dropped.
    """

    port: int
    target: int
    delay_s: float = 0.0
    is_cut: bool = False
    loses_answers: bool = False
    refuses: str = ""
    refusal: bytes = NOT_FOUND
    held: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def dicomweb_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/dicom-web"

    def serve(self, listening: socket.socket) -> None:
        while True:
            try:
                client, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.target)) as pacs:
            if self.is_cut:
                return
            sender = threading.Thread(target=self._pump, args=(client, pacs), daemon=True)
            sender.start()
            with suppress(OSError):
                self._answer(pacs, client)
            # `close` alone does not wake the other thread, which waits in `recv`.
            for end in (client, pacs):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            sender.join()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while (data := source.recv(65536)) and not self.is_cut:
                if self.refuses and self.refuses.encode() in data.split(b"\r\n", 1)[0]:
                    source.sendall(self.refusal)
                else:
                    sink.sendall(data)
        with suppress(OSError):
            # The client has closed its connection: end the connection to the PACS too.
            sink.shutdown(socket.SHUT_RDWR)

    def _answer(self, pacs: socket.socket, client: socket.socket) -> None:
        while data := pacs.recv(65536):
            if self.delay_s or self.loses_answers:
                with self._lock:
                    self.held += 1
            time.sleep(self.delay_s)
            if self.is_cut or self.loses_answers:
                return
            client.sendall(data)


@contextmanager
def relay(target: int) -> Iterator[Relay]:
    """Yield a relay that forwards to port `target`."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        running = Relay(listening.getsockname()[1], target)
        threading.Thread(target=running.serve, args=(listening,), daemon=True).start()
        yield running
