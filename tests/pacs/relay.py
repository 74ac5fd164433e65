"""A network between a server and its PACS that can be slow, cut, or lose answers."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


def answer(status: str, content_type: str, body: bytes) -> bytes:
    """Return an answer of HTTP/1.1."""
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
    """Passes connections on to a port of this machine.

    Attributes:
        port: Where it listens.
        target: Where it passes on to.
        delay_s: How long each answer is held back.
        is_cut: Whether nothing comes through.
        loses_answers: Whether requests come through, but their answers do not.
        refuses: What is in its path is answered in place of the target; empty to pass on all.
        refusal: With what, by default 404.
        held: How many answers were held back or lost.
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
            there = threading.Thread(target=self._pump, args=(client, pacs), daemon=True)
            there.start()
            with suppress(OSError):
                self._answer(pacs, client)
            # Closing alone would wait for the other thread, which reads from it.
            for end in (client, pacs):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            there.join()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while (data := source.recv(65536)) and not self.is_cut:
                if self.refuses and self.refuses.encode() in data.split(b"\r\n", 1)[0]:
                    source.sendall(self.refusal)
                else:
                    sink.sendall(data)
        with suppress(OSError):
            # Whoever asked is gone: the answer has nowhere to go.
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
    """Yield a relay to a port."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(16)
        found = Relay(listening.getsockname()[1], target)
        threading.Thread(target=found.serve, args=(listening,), daemon=True).start()
        yield found
