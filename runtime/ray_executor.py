"""Actors of a Ray cluster as workers (https://docs.ray.io).

An actor has a GPU where the cluster has any, else a CPU slot and one thread. The function is sent once and opened once by each actor, so that
what it opens, such as a model, stays loaded. Nodes may leave, and nodes that join are used.
"""

from __future__ import annotations

import importlib
import logging
import os
import re
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import torch

from ..errors import InputError, WorkerError
from .workers import MAX_TRIES, DiedError, Pool, Worker, answer_of, opened, unsendable

log = logging.getLogger("sedaq")
PATIENCE = 60.0  # seconds without any worker, after which a line says that the cluster is full
HOST_PORT = r"(?P<host>\[[\da-fA-F:]+\]|[\w.-]+):(?P<port>\d{1,5})"
# Nobody is told of the use of a cluster that is started here, and nothing is said of what Ray will change.
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
REACHED_WITHIN = 5.0  # seconds, by which a cluster's port must answer
T = TypeVar("T")
R = TypeVar("R")
_address: str | None = None  # of the cluster that this process joined here


@dataclass(frozen=True)
class Ray:
    """Actors of a Ray cluster: one for each GPU, or for each CPU slot of a cluster without GPUs.

    Args:
        address: "ray://HOST:PORT" of a cluster's client server. None: the cluster that this machine or RAY_ADDRESS belongs to, or a local one that
            is started where there is none.
    """

    address: str | None = None

    @property
    def n(self) -> int:
        """How many actors the cluster has room for as it is now."""
        return _share(joined(self.address)).slots

    @contextmanager
    def workers(
        self, function: Callable[[T], R], *, name: Callable[[T], str] = str
    ) -> Iterator[Callable[[Sequence[T]], Iterator[tuple[T, R]]]]:
        with _ActorPool(function, self.address, name) as pool:
            yield pool.run


def parse_ray(text: str) -> Ray | None:
    """The executor that "ray:auto" or "ray://HOST:PORT" names; None for other texts.

    Raises:
        InputError: the package ray is not installed, or nothing answers at the address.
    """
    if text != "ray:auto" and not re.fullmatch(rf"ray://{HOST_PORT}", text):
        return None
    _imported(text)
    if text == "ray:auto":
        return Ray()
    if (why_not := _unreachable(text)) is not None:
        raise InputError(
            f"executor {text!r}: nothing answers there ({why_not}); give the host of the cluster's head and the port of its client server, 10001 by default"
        )
    return Ray(text)


def joined(address: str | None) -> Any:
    """The module ray, when this process has joined the cluster. Raises InputError where it cannot be joined."""
    global _address
    text = address or "ray:auto"
    ray = _imported(text)
    if ray.is_initialized():
        if address is not None and _address != address:
            raise InputError(f"executor {text!r}: this process has joined another Ray cluster; call ray.shutdown() first")
        return ray
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings(action="ignore"):  # what goes wrong is raised, too
            ray.init(address or _running_cluster(), log_to_driver=False, logging_level=logging.ERROR)
    except InputError:
        raise
    except Exception as error:  # of many kinds: no connection, other versions of Python or Ray
        raise InputError(
            f"executor {text!r}: the cluster cannot be joined ({_line(error)}); see `ray status` on its head, and set RAY_AUTH_MODE=token here if it wants a token"
        ) from error
    finally:
        if in_main:  # Ray's own handler would leave with another exit code
            signal.signal(signal.SIGTERM, before)
    _address = address
    return ray


def _running_cluster() -> str:
    """What Ray is to join: "auto", the cluster that RAY_ADDRESS or the last `ray start` on this machine names, or "local", a new one, where there is none.

    Ray itself would wait minutes for one that is no more. It takes this machine's token along only for "auto".
    """
    if named := os.environ.get("RAY_ADDRESS"):
        if (why_not := _unreachable(named)) is not None:
            raise InputError(
                f"executor 'ray:auto': nothing answers at RAY_ADDRESS {named} ({why_not}); start that cluster, or unset the variable"
            )
        return "auto"
    note = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), "ray", "ray_current_cluster")
    noted = note.read_text().strip() if note.exists() else ""
    return "auto" if noted and _unreachable(noted) is None else "local"


def _unreachable(address: str) -> str | None:
    """Why nothing answers at an address; None where something does, or where it names no host and port."""
    found = re.fullmatch(rf"(?:ray://)?{HOST_PORT}", address)
    try:
        if found is not None:
            socket.create_connection((found["host"].strip("[]"), int(found["port"])), REACHED_WITHIN).close()
    except (OSError, OverflowError) as error:
        return str(error)
    return None


def _imported(text: str) -> Any:
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise InputError(f"executor {text!r} needs the package ray ({error}); pip install 'sedaq[ray]'") from error


@dataclass(frozen=True)
class _Share:
    """What an actor has of the cluster, and how many such there are room for."""

    num_cpus: int
    num_gpus: int
    threads: int
    slots: int


def _share(ray: Any) -> _Share:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpus = [node for node in nodes if node.get("GPU", 0) >= 1]
    if with_gpus:
        cpus = int(min(node.get("CPU", 0) / node["GPU"] for node in with_gpus))
        return _Share(cpus, 1, max(1, cpus), int(sum(node["GPU"] for node in with_gpus)))
    return _Share(1, 0, 1, max(1, int(sum(node.get("CPU", 0) for node in nodes))))


class _ActorPool(Pool[T, R]):
    """Actors that are up, and those that were asked for.

    While items wait and no actor is on its way, as many more are asked for as there are. Those that the cluster has no room for start when a node joins; an
    autoscaler sees them and adds nodes.
    """

    def __init__(self, function: Callable[[T], R], address: str | None, name: Callable[[T], str]) -> None:
        super().__init__(name)
        self._function, self._address = function, address
        self._start: Callable[[], _Actor] | None = None
        self._n_first = 1
        self._starting: dict[Any, _Actor] = {}  # by the handle that says when they are up
        self._n_failed = 0  # actors in a row that could not be started

    def _take(self, n_waiting: int) -> Worker | None:
        if self._idle:
            return self._idle.pop()
        if not self._starting:
            self._ask_for(n_waiting)
        return None

    def _ask_for(self, n_waiting: int) -> None:
        self._ray = joined(self._address)
        if self._start is None:
            ray, share = self._ray, _share(self._ray)
            server = ray.remote(_Server).options(num_cpus=share.num_cpus, num_gpus=share.num_gpus)
            function = ray.put(ray.cloudpickle.dumps(self._function))  # as bytes, so that an error of opening it is the actor's own
            self._n_first = share.slots
            self._start = lambda: _Actor(ray, server.remote(function, share.threads))
        for _ in range(min(n_waiting, len(self._workers) or self._n_first)):
            actor = self._start()
            self._starting[actor.handle] = actor

    def _wait(self, busy: Sequence[Any]) -> Sequence[Any]:
        found, _ = self._ray.wait([*busy, *self._starting], timeout=None if self._workers else PATIENCE)
        if not found:
            log.warning("the Ray cluster has no room for a worker yet; waiting")
        for handle in found:
            if handle in self._starting:
                self._admit(self._starting.pop(handle))
        return [handle for handle in found if handle in set(busy)]

    def _admit(self, actor: _Actor) -> None:
        try:
            actor.answer()
        except DiedError as error:
            self._n_failed += 1
            if self._n_failed == MAX_TRIES:
                raise WorkerError(
                    f"no worker can be started on the Ray cluster, the last one {error}; every node needs the same sedaq"
                ) from error
            return
        self._n_failed = 0
        self._workers.append(actor)
        self._idle.append(actor)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for actor in self._starting.values():
            actor.stop(at_once=True)
        self._starting.clear()
        super().__exit__(kind, error, trace)


class _Actor:
    """One actor, as its pool sees it."""

    def __init__(self, ray: Any, actor: Any) -> None:
        self._ray, self._actor = ray, actor
        self._is_busy = False
        self.handle = actor.is_up.remote()

    def start(self, item: Any) -> None:
        self.handle = self._actor.answer.remote(item)
        self._is_busy = True

    def answer(self) -> Any:
        errors = self._ray.exceptions
        try:
            done, result = self._ray.get(self.handle)
        except errors.RayTaskError as error:  # not the function's own: that is an answer
            raise unsendable(_line(error), error) from error
        except errors.RayError as error:
            self.stop(at_once=True)  # it may be out of reach and alive
            raise DiedError(f"died ({_line(error)})") from error
        finally:
            self._is_busy = False
        if not done:
            raise result
        return result

    def finish(self) -> bool:
        try:
            if self._is_busy:
                self.answer()
        except DiedError:
            return False
        except Exception:
            log.debug("an answer that nobody waits for is an error", exc_info=True)
        return True

    def stop(self, *, at_once: bool) -> None:
        if at_once:
            self._is_busy = False
            with suppress(Exception):  # the cluster may be gone
                self._ray.kill(self._actor)

    def join(self) -> None:
        self.finish()
        self.stop(at_once=True)


class _Server:
    """What an actor does: answer items."""

    def __init__(self, function: bytes, threads: int) -> None:
        torch.set_num_threads(threads)
        cloudpickle = importlib.import_module("ray").cloudpickle
        self._function = opened(lambda: cloudpickle.loads(function))

    def is_up(self) -> tuple[bool, None]:
        return True, None

    def answer(self, item: Any) -> tuple[bool, Any]:
        return answer_of(self._function, item)


def _line(error: Exception) -> str:
    """What an error says in one line: Ray's texts have many, the last of which tell most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
