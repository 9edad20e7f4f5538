"""Several processes as one program: joined before anything runs, ended together.

    with together():                   # as JAX_COORDINATOR_ADDRESS and its like say; else nothing
        ...

Process 0 holds a connection to every other.  Where a process is killed or its program fails, its
connection breaks, and the others end within seconds with one line; a machine that is cut off is
noticed within 25.  (`jax.distributed` alone would wait for 100 seconds, in a collective that
nothing interrupts, and SIGTERM would end no process of it.)
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator

import numpy as np

DONE = b"."
PATIENCE = 25  # seconds until silence is taken for an end
GRACE = 3  # seconds in which a process may say itself what went wrong


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Joins the processes that the environment names, and ends with them.

    ``JAX_COORDINATOR_ADDRESS``, ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, as `jax.distributed`
    reads them.  Without the first of them, or within processes that are joined, nothing happens.
    """
    import jax

    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if not address or jax.distributed.is_initialized():
        yield
        return
    number = lambda key: int(os.environ[key]) if key in os.environ else None
    with contextlib.suppress(AttributeError):  # it would take SIGTERM as a notice, and go on
        jax.config.update("jax_enable_preemption_service", False)
    jax.distributed.initialize(
        num_processes=number("JAX_NUM_PROCESSES"),
        process_id=number("JAX_PROCESS_ID"),
        heartbeat_timeout_seconds=PATIENCE,
        shutdown_timeout_seconds=PATIENCE,
    )
    if jax.process_count() == 1:
        yield
        return
    watch = Watch(address.rpartition(":")[0] or address)
    try:
        yield
    except BaseException as error:
        watch.fail(error)
        raise
    watch.leave()


class Watch:
    """The connections of this process; a thread waits at each of them.

    Args:
        host: of process 0.
    """

    def __init__(self, host: str):
        import jax

        self.index, self.count = jax.process_index(), jax.process_count()
        self.over = False
        self.peers: dict[int, socket.socket] = self._listen() if not self.index else {}
        if self.index:
            port, token = _announced(0, bytes(16))
            self.peers[0] = self._call(host, port, token)
        for index, peer in self.peers.items():
            threading.Thread(target=self._wait, args=(index, peer), daemon=True).start()

    def _listen(self) -> dict[int, socket.socket]:
        token, peers = secrets.token_bytes(16), {}
        with socket.create_server(("", 0)) as server:
            server.settimeout(PATIENCE)
            _announced(server.getsockname()[1], token)
            while len(peers) < self.count - 1:
                peer, _ = server.accept()
                peer.settimeout(PATIENCE)
                greeting = peer.recv(20, socket.MSG_WAITALL)
                if greeting[:16] != token:  # a stranger
                    peer.close()
                    continue
                peers[int.from_bytes(greeting[16:], "big")] = _patient(peer)
        return peers

    def _call(self, host: str, port: int, token: bytes) -> socket.socket:
        peer = socket.create_connection((host, port), timeout=PATIENCE)
        peer.sendall(token + self.index.to_bytes(4, "big"))
        return _patient(peer)

    def _wait(self, index: int, peer: socket.socket) -> None:
        try:
            said = peer.recv(1)
        except OSError:
            said = b""
        if said == DONE or self.over:
            return
        time.sleep(GRACE)
        if not self.over:
            print(
                f"error: process {index} of {self.count} has ended before the others were done; "
                f"process {self.index} ends too. Start all of them again, with --resume.",
                file=sys.stderr, flush=True,
            )  # fmt: skip
            os._exit(2)

    def leave(self) -> None:
        """This process has done its part."""
        self.over = True
        for peer in self.peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(DONE)
                peer.close()

    def fail(self, error: BaseException) -> None:
        """This process will end with an error; the others hear of it."""
        self.over = True
        for peer in self.peers.values():
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)


def _announced(port: int, token: bytes) -> tuple[int, bytes]:
    """What process 0 has said to all others: its port, and what a caller must know."""
    from jax.experimental.multihost_utils import broadcast_one_to_all

    said = np.frombuffer(port.to_bytes(4, "little") + token, np.uint32)
    words = np.asarray(broadcast_one_to_all(said), np.uint32).tobytes()
    return int.from_bytes(words[:4], "little"), words[4:]


def _patient(peer: socket.socket) -> socket.socket:
    """The system asks now and then whether the other end is there."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
    return peer
