"""The ranks of a run meet, rank 0 hands the others the job, and none outlives another.

Rank 0 alone composes, names, locks and prepares. Whatever has started the ranks, they meet alike: rank 0 serves a
store (under torchrun its agent may), writes there where its end of the lifelines is, and later what the job is.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from gengen.config.schema import plain
from gengen.config.train import TrainConfig
from gengen.errors import UserError
from gengen.training.launch import OwnRanks, end_with_leader
from gengen.training.lifeline import Hub, Lifeline, Lost, connect, listener
from gengen.training.monitor.console import last_words
from gengen.training.place import Place

if TYPE_CHECKING:
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.distributed_c10d import Store

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
"""Exit code of a run that a rank was lost to, or that is requeued: the same command goes on."""
TO_START = 600.0  # seconds within which all ranks must have started
TO_PREPARE = 24 * 3600.0  # and rank 0 must have handed over the job
TO_HEAR = 5.0  # what it takes at most to hear that another rank is lost, which an error may have come from
TO_END = 3.0  # what ranks that have heard so take to end
TO_LEAVE = 60.0  # what ranks take at most to end after rank 0 has, or to come only to hear that it has


@dataclass(frozen=True)
class Job:
    """What every rank needs to know: the settled config as plain data, the run, where to start from, on what data."""

    config: dict[str, Any]
    run: str
    checkpoint: str | None
    init_from: str | None
    data: str  # its fingerprint


def job(config: TrainConfig, run: Path, checkpoint: Path | None, init_from: Path | None, data: str) -> Job:
    """Make the job that rank 0, this process, hands to the others."""
    start, source = (str(path) if path else None for path in (checkpoint, init_from))
    return Job(plain(config), str(run), start, source, data)


ALONE = Place()


class Ranks:
    """This process and the other ranks of its run. Once they have met, it ends when one of them is lost.

    Inside `with`, an error is told to the others: they end with its exit code.
    """

    def __init__(self, place: Place = ALONE):
        self.place = place
        self.store: Store | None = None  # where they meet, and process groups are made; None for a rank alone
        self._line: Hub | Lifeline | None = None
        self._own: OwnRanks | None = None
        self._run: Path | None = None
        self._ends = threading.Lock()  # held by the thread that ends this process

    def __enter__(self) -> "Ranks":
        if self.place.rank > 0:
            if not self.place.is_launched:
                end_with_leader()
            with self._ending_with_store():
                self._join()
        elif self.place.is_launched:
            self._serve()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave(0 if error is None else getattr(error, "exit_code", 1))

    # --- meeting

    def _serve(self) -> int:
        """As rank 0, open the store and the lifelines; returns the store's port."""
        from torch.distributed.distributed_c10d import PrefixStore

        store = found_store(self.place) if self.place.agent_store else served_store(self.place)
        self._line = hub = Hub(self.place.address, self._lost)
        store.set("lifeline", f"{own_address(self.place)} {hub.port} {hub.token}")
        self.store = PrefixStore(hub.token, store)  # an agent's store knows what it was told before a restart
        return store.port

    def _join(self) -> None:
        """As another rank, find the store, and take a lifeline. Raises UserError where rank 0 does not come."""
        from torch.distributed.distributed_c10d import PrefixStore

        store = found_store(self.place)
        until = time.monotonic() + TO_START
        while time.monotonic() < until:
            address, port, token = store.get("lifeline").decode().split()
            connection = connect(address, int(port), token, self.place.rank, patience=10)
            if connection is not None:
                self._line, self.store = Lifeline(connection, self._lost), PrefixStore(token, store)
                return
            time.sleep(1)
        raise UserError(f"rank {self.place.rank}: rank 0 does not answer at {address}, port {port}")

    def hand(self, job: Job) -> None:
        """As rank 0, hand the job to the others, which are started first unless they were launched."""
        devices: int = job.config["trainer"]["devices"]
        self._run = Path(job.run)
        if not self.place.is_launched:
            self.place = replace(self.place, world=devices, local_world=devices)
        if self.place.world == 1:
            return
        if not self.place.is_launched:
            port = self._serve()
            assert isinstance(self._line, Hub)
            self._own = OwnRanks(self.place, port, self._line.lose)
        assert self.store is not None
        self.store.set("job", json.dumps(asdict(job)))

    def handed(self) -> Job | None:
        """As another rank, return the job, as soon as there is one; None where rank 0 has left, and needs nobody."""
        assert self.store is not None and isinstance(self._line, Lifeline)
        until = time.monotonic() + TO_PREPARE
        with self._ending_with_store():
            while not self.store.check(["job"]):  # `wait` would complain where rank 0 ends before
                if self._line.is_done:
                    return None
                if time.monotonic() > until:
                    hours = TO_PREPARE / 3600
                    raise UserError(f"rank {self.place.rank}: rank 0 has handed over no job in {hours:.0f} h")
                time.sleep(0.5)
            job = Job(**json.loads(self.store.get("job")))
        self._run = Path(job.run)
        return job

    # --- ending

    @contextmanager
    def _ending_with_store(self) -> Iterator[None]:
        """Inside, this process ends where the store does, which rank 0 serves: the news may come that way first."""
        from torch.distributed import DistError

        try:
            yield
        except DistError:
            self._lost(Lost(0))

    def await_news(self) -> None:
        """After an error that a lost rank may have caused: if one is lost, this does not return."""
        if self._line is not None:
            time.sleep(TO_HEAR)

    def fail(self, code: int) -> None:
        """End this process at once, and with it the others; it has said why."""
        if self._line is not None:
            self._line.leave(code)
        self._end(code)

    def _lost(self, lost: Lost) -> None:
        """End this process with one line, as another rank is lost."""
        self._ends.acquire()
        if lost.code is None:
            last_words(f"error: rank {lost.rank} is gone; {self._last_checkpoint()}; the same command goes on")
        elif lost.rank > 0:  # rank 0 has said why
            last_words(f"error: rank {lost.rank} ended with exit code {lost.code}, and the run with it")
        self._end(TRY_AGAIN if lost.code is None else lost.code)

    def _end(self, code: int) -> None:
        if self._own is not None:
            self._own.end(TO_END)
        os._exit(code)

    def _last_checkpoint(self) -> str:
        from gengen.checkpoints.store import all_steps, step_of

        steps = [step_of(path) for path in all_steps(self._run / "checkpoints")] if self._run else []
        return f"the last checkpoint is step {steps[0]}" if steps else "there is no checkpoint yet"

    def _leave(self, code: int) -> None:
        """Say goodbye. Rank 0, which serves the store, goes last."""
        if self._line is None:
            return
        if isinstance(self._line, Hub):
            if self.place.is_launched:
                self._line.wait_for(self.place.world - 1, TO_LEAVE)  # who comes later would wait for the job
            self._line.leave(code)
            self._line.wait_until_all_left(TO_END if code else TO_LEAVE)
        else:
            self._line.leave(code)
        if self._own is not None:
            self._own.end(TO_END if code else TO_LEAVE)
        self._line.close()


def served_store(place: Place) -> "TCPStore":
    """Open the store at the place's port, or at one that is free."""
    try:
        listening = listener(place.address, place.port)
    except OSError as error:
        raise UserError(
            f"rank 0 cannot listen at port {place.port} ({error.strerror}); MASTER_PORT=N names another"
        ) from None
    return tcp_store(place, listening.getsockname()[1], TO_LEAVE, listening.detach())


def found_store(place: Place) -> "TCPStore":
    """Find the store that rank 0 serves, or torchrun's agent."""
    return tcp_store(place, place.port, TO_START)


def tcp_store(place: Place, port: int, patience: float, descriptor: int | None = None) -> "TCPStore":
    """Connect to the store at a port; descriptor: the listening socket of one that this process serves."""
    from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

    serves, wait = descriptor is not None, timedelta(seconds=patience)
    try:
        return TCPStore(place.address, port, None, serves, wait, wait_for_workers=False, master_listen_fd=descriptor)
    except DistError as error:
        raise UserError(
            f"rank {place.rank} on {socket.gethostname()}: nobody answers at {place.address}:{port}, where ranks meet "
            f"({str(error).splitlines()[0]}); MASTER_ADDR=HOST names the machine of rank 0"
        ) from None


def own_address(place: Place) -> str:
    """Return the address of rank 0, this process, for the others; an agent's store may be on another node."""
    if not place.agent_store:
        return place.address
    family, kind, protocol, _, address = socket.getaddrinfo(place.address, place.port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as asked:
        asked.connect(address)  # sends nothing: the system says by which of its addresses it would
        own: str = asked.getsockname()[0]
    return place.address if ip_address(own).is_loopback else own
