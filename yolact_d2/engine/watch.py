"""No process of a run is left waiting for one that is gone."""

import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from detectron2.utils import comm

logger = logging.getLogger(__name__)

RUNNING, DONE, FAILED = "running", "done", "failed"
_MAX_TEXT = 2000  # characters of an error that the others are told
_HANDSHAKE_SECONDS = 60.0


@contextmanager
def watch_ranks(
    host: str = "127.0.0.1",
    interval: float = 1.0,
    vanished: float = 40.0,
    silent: float = 600.0,
    grace: float = 5.0,
) -> Iterator[None]:
    """End every process of a run soon after one of them has failed.

    To be entered by all processes together, once their process group is there. NCCL and gloo alone
    would wait for half an hour, and a launcher looks after its own machine only. Every process
    has a thread that is connected to rank 0 by a socket of its own:

    * A process that leaves by an exception tells the others, and the exception goes on.
    * A process that is killed is known by its closed connection, a machine that is gone by what its
      kernel leaves unanswered. A long call that holds Python's lock is not taken for either.
    * The others log which rank it was and why, and end with exit status 1 wherever they are.

    Leaving it normally waits for all, who are watched until then.

    Args:
        host: name or address of the machine of rank 0, as the others reach it.
        interval: seconds between two messages.
        vanished: seconds without an answer from the other's machine before it counts as gone
            (Linux only).
        silent: seconds without a message before a process counts as hanging, though its machine
            answers.
        grace: seconds between the message in the log and the end, for the launcher of this machine
            to see first the process that failed.
    """
    if comm.get_world_size() == 1:
        yield
        return
    watch = _Watch(_connect(host, vanished), interval, silent, grace)
    try:
        yield
        watch.finish()
    except BaseException as error:
        if isinstance(error, SystemExit) and not error.code:
            watch.finish()
        else:
            watch.fail(error)
        raise


class _Link:
    """The connection to another process: a line of JSON for each message."""

    def __init__(self, rank: int, connection: socket.socket, vanished: float):
        self.rank = rank
        self.last_heard = time.monotonic()
        self.message = {"state": RUNNING}
        self._connection = connection
        self._received = b""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(vanished * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        connection.setblocking(False)
        # A worker of the data loader that outlives this process must not hold the connection.
        os.register_at_fork(after_in_child=connection.close)

    def send(self, message: dict[str, str]) -> None:
        # So few bytes, so seldom, that they always fit into the kernel's buffer: if not, the other
        # has read nothing for long, and `silent` ends it.
        try:
            self._connection.send(json.dumps(message).encode() + b"\n")
        except BlockingIOError:
            pass

    def receive(self) -> None:
        """Take what has come; `message` is the last of it.

        Raises:
            ConnectionError, OSError: if the other is gone, and has left nothing to read.
        """
        while True:
            try:
                data = self._connection.recv(65536)
            except BlockingIOError:
                return
            if not data:
                raise ConnectionError("it closed the connection")
            self.last_heard = time.monotonic()
            *lines, self._received = (self._received + data).split(b"\n")
            if lines:
                self.message = json.loads(lines[-1])

    def close(self) -> None:
        self._connection.close()


class _Watch:
    """The thread of :func:`watch_ranks`."""

    def __init__(self, links: list[_Link], interval: float, silent: float, grace: float):
        self._links = links  # of rank 0, to all others; of the others, to rank 0
        self._interval = interval
        self._silent = silent
        self._grace = grace
        self._message = {"state": RUNNING}
        self._told = threading.Event()  # all know how the run ends, if they can
        self._thread = threading.Thread(target=self._run, name="watch_ranks", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for the others."""
        self._message = {"state": DONE}
        self._thread.join()

    def fail(self, error: BaseException) -> None:
        """Tell the others, without waiting for long."""
        if isinstance(error, SystemExit):  # for what it ends
            error = error.__context__ or error
        text = "".join(traceback.format_exception_only(type(error), error)).strip()
        self._message = {"state": FAILED, "text": f"rank {comm.get_rank()}: {text[:_MAX_TEXT]}"}
        self._told.wait(10 * self._interval)

    def _run(self) -> None:
        look = self._look_at_all if comm.get_rank() == 0 else self._look_at_first
        while True:
            slept = time.monotonic()
            time.sleep(self._interval)
            if time.monotonic() - slept > 10 * self._interval:
                # This process was stopped, and so perhaps the others, which are silent for that.
                for link in self._links:
                    link.last_heard = time.monotonic()
            # Read once: the main thread may change it.
            mine = self._message
            run = look(mine)
            if run["state"] != RUNNING:
                break
        if run["state"] == DONE:
            for link in self._links:
                link.close()
            return
        if run["text"] != mine.get("text"):
            _log(run["text"])
        self._told.set()
        if mine["state"] != FAILED:  # else the main thread is on its way out
            time.sleep(self._grace)
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)

    def _look_at_all(self, mine: dict[str, str]) -> dict[str, str]:
        """Rank 0: collect what all say, tell them how the run stands, and return it."""
        lost = self._lost()
        messages = [mine] + [link.message for link in self._links]
        errors = [message["text"] for message in messages if message["state"] == FAILED]
        errors += lost.values()
        if errors:
            run = {"state": FAILED, "text": "; ".join(errors)[: 4 * _MAX_TEXT]}
        elif all(message["state"] == DONE for message in messages):
            run = {"state": DONE}
        else:
            run = {"state": RUNNING}
        for link in self._links:
            try:
                link.send(run)
            except OSError:
                pass  # the next look finds it gone
        return run

    def _look_at_first(self, mine: dict[str, str]) -> dict[str, str]:
        """The other ranks: tell rank 0 about this one; return how rank 0 says that the run
        stands."""
        (link,) = self._links
        lost = self._lost()
        if link.message["state"] != RUNNING:  # what it said last, before it left
            return link.message
        if lost:
            return {"state": FAILED, "text": lost[0]}
        try:
            link.send(mine)
        except OSError:
            pass  # likewise
        return {"state": RUNNING}

    def _lost(self) -> dict[int, str]:
        """Hear what the others say; which of them are gone, and how that shows."""
        lost = {}
        for link in self._links:
            try:
                link.receive()
            except OSError as error:
                if link.message["state"] != FAILED:  # else it has said why
                    lost[link.rank] = f"rank {link.rank} is gone: {error}"
            if time.monotonic() - link.last_heard > self._silent:
                lost[link.rank] = f"rank {link.rank} has said nothing for {self._silent:g} s"
        return lost


def _log(text: str) -> None:
    text = f"This run has failed: {text}"
    logger.error(text)
    if comm.get_rank() > 0:  # of which Detectron2 logs to a file only
        print(text, file=sys.stderr)


def _connect(host: str, vanished: float) -> list[_Link]:
    """Of rank 0, the connections from all others, by rank; of the others, the one to rank 0."""
    rank, world_size = comm.get_rank(), comm.get_world_size()
    listener = _listen(world_size) if rank == 0 else None
    address = (listener.getsockname()[1], secrets.token_hex(16)) if listener else None
    port, token = comm.all_gather(address)[0]
    if listener is None:
        try:
            connection = socket.create_connection((host, port), timeout=_HANDSHAKE_SECONDS)
        except OSError as error:
            raise ConnectionError(
                f"rank {rank} cannot reach rank 0 at {host!r}, port {port}: {error}"
            ) from error
        connection.sendall(json.dumps({"token": token, "rank": rank}).encode() + b"\n")
        return [_Link(0, connection, vanished)]
    with listener:
        return _accept(listener, token, world_size, vanished)


def _listen(backlog: int) -> socket.socket:
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=backlog
        )
    return socket.create_server(("", 0), backlog=backlog)


def _accept(listener: socket.socket, token: str, world_size: int, vanished: float) -> list[_Link]:
    links: dict[int, _Link] = {}
    end = time.monotonic() + _HANDSHAKE_SECONDS
    while len(links) < world_size - 1:
        listener.settimeout(max(end - time.monotonic(), 0.01))
        try:
            connection, _ = listener.accept()
        except TimeoutError:
            missing = sorted(set(range(1, world_size)) - set(links))
            raise ConnectionError(f"ranks {missing} have not connected to rank 0") from None
        rank = _greeting(connection, token)
        if rank is None:
            connection.close()
        else:
            links[rank] = _Link(rank, connection, vanished)
    return [links[rank] for rank in sorted(links)]


def _greeting(connection: socket.socket, token: str) -> int | None:
    """The rank that has connected; None if it is a stranger."""
    connection.settimeout(5.0)
    try:
        line = b""
        while not line.endswith(b"\n") and len(line) < 200:
            data = connection.recv(1)
            if not data:
                return None
            line += data
        greeting = json.loads(line)
        return int(greeting["rank"]) if greeting["token"] == token else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
