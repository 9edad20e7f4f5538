"""Several processes as one program: joined before anything runs, ended together.

    with together():                   # as JAX_COORDINATOR_ADDRESS and its like say; else nothing
        ...

Process 0 holds a connection to every other, at the port behind the coordinator's.  Where a process
is killed or its program fails, its connection breaks, and the others end within seconds with one
line; a machine that is cut off is noticed within half a minute.  (`jax.distributed` alone waits for
100 seconds, in a collective that nothing interrupts, and SIGTERM ends no process of it.)
"""

from __future__ import annotations

import atexit
import contextlib
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator

DONE, FAILED, HELLO = b".", b"!", b"jaxmerge"
PATIENCE = 25  # seconds until silence is taken for an end
GRACE = 3  # seconds in which a process may say itself what went wrong
START = 300  # seconds in which all processes must have started


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Joins the processes that the environment names, and ends with them.

    ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, as `jax.distributed`
    reads them.  Without the first of them, or within processes that are joined, nothing happens.

    >>> with together():  # nothing to join here
    ...     pass
    """
    import jax

    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if not address or jax.distributed.is_initialized():
        yield
        return
    number = lambda key: int(os.environ[key]) if key in os.environ else None
    count, index = number("JAX_NUM_PROCESSES"), number("JAX_PROCESS_ID")
    with contextlib.suppress(AttributeError):  # it would take SIGTERM as a notice, and go on
        jax.config.update("jax_enable_preemption_service", False)
    watch = None
    host, _, port = address.rpartition(":")
    if index is not None and (count or 0) > 1 and port.isdigit() and int(port) < 65535:
        watch = Watch(host.strip("[]"), int(port) + 1, index, count or 0)
    try:
        jax.distributed.initialize(
            num_processes=count,
            process_id=index,
            heartbeat_timeout_seconds=PATIENCE,
            shutdown_timeout_seconds=PATIENCE,
        )
        yield
    except BaseException:
        if watch is not None:
            watch.fail()
        raise
    if watch is not None:
        watch.leave()


class Watch:
    """The connections of this process; a thread waits at each of them.

    Args:
        host, port: of process 0.
        index, count: this process among how many.
    """

    def __init__(self, host: str, port: int, index: int, count: int):
        self.index, self.count, self.over, self.lost = index, count, False, False
        self.peers: dict[int, socket.socket] = {}
        if index:
            self._start(self._call, host, port)
            return
        try:
            self.server = socket.create_server(("", port))
        except OSError:  # the port is taken: what JAX notices must do
            return
        self._start(self._listen)

    def _start(self, run, *args) -> None:
        threading.Thread(target=run, args=args, daemon=True).start()

    def _listen(self) -> None:
        with self.server as server, contextlib.suppress(OSError):
            while len(self.peers) < self.count - 1:
                peer, _ = server.accept()
                peer.settimeout(PATIENCE)
                greeting = peer.recv(len(HELLO) + 4, socket.MSG_WAITALL)
                if greeting[: len(HELLO)] != HELLO:
                    peer.close()
                    continue
                index = int.from_bytes(greeting[len(HELLO) :], "big")
                self.peers[index] = _patient(peer)
                self._start(self._wait, index, peer)

    def _call(self, host: str, port: int) -> None:
        until = time.monotonic() + START
        while time.monotonic() < until:
            try:
                peer = socket.create_connection((host, port), timeout=PATIENCE)
                peer.sendall(HELLO + self.index.to_bytes(4, "big"))
            except OSError:  # it has not started yet
                time.sleep(0.2)
                continue
            self.peers[0] = _patient(peer)
            self._wait(0, peer)
            return

    def _wait(self, index: int, peer: socket.socket) -> None:
        try:
            said = peer.recv(1)
        except OSError:
            said = b""
        if said == DONE or self.over:
            return
        self.lost = True
        if said == FAILED:
            time.sleep(GRACE)
            if self.over:
                return
        self.over = True
        for other in self.peers.values():
            with contextlib.suppress(OSError):
                other.shutdown(socket.SHUT_RDWR)
        sys.stderr.write(
            f"error: process {index} of {self.count} has ended before the others were done; "
            f"process {self.index} ends too. Start all of them again, with --resume.\n"
        )
        sys.stderr.flush()
        os._exit(2)

    def leave(self) -> None:
        """This process has done its part."""
        self._say(DONE)

    def fail(self) -> None:
        """This process ends with an error; the others hear of it."""
        time.sleep(0.3)
        if self.lost:  # the error is but the end of another process, which `_wait` tells of
            time.sleep(2 * GRACE)
        self._say(FAILED)
        if not self.index:  # the others would fail without the coordinator, in many lines
            until = time.monotonic() + 2 * GRACE
            for peer in self.peers.values():
                peer.settimeout(max(0.1, until - time.monotonic()))
                with contextlib.suppress(OSError):
                    peer.recv(1)
        atexit.register(_now)  # JAX would wait for the others

    def _say(self, word: bytes) -> None:
        self.over = True
        for peer in self.peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(word)


def _now() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(2)


def _patient(peer: socket.socket) -> socket.socket:
    """The system asks now and then whether the other end is there."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return peer
