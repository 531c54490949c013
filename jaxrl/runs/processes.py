"""Several processes that train one run: the identity of this process, and agreement between them.

Members are independent, so every process trains its own members on its own devices, and compiled
programs contain no communication. Processes agree on three things: how many updates to launch next,
when to save, and when to stop. Messages travel through the coordination service of
`jax.distributed`, which also notices the death of a process and then ends the others.
"""

from __future__ import annotations

import functools
import json
import os
import socket
from typing import Any

import jax

from jaxrl.errors import UserError
from jaxrl.runs.folders import difference

FOR_EVER = 2**31 - 1  # milliseconds; the death of a process ends the wait much earlier


class Processes:
    """Process `index` of `count`; process 0 is the leader.

    Every process makes the same calls in the same order, `request_stop` and `stop_requested`
    excepted. A single process never waits.
    """

    def __init__(self, index: int = 0, count: int = 1, client: Any = None) -> None:
        self.index, self.count, self._client, self._calls = index, count, client, 0

    @property
    def leads(self) -> bool:
        """Whether this process is the leader."""
        return self.index == 0

    def broadcast(self, text: str) -> str:
        """Returns the leader's text in every process; the texts of the others are ignored."""
        if self.count == 1:
            return text
        key = self._key("broadcast")
        if self.leads:
            self._client.key_value_set(key, text)
            return text
        return self._client.blocking_key_value_get(key, FOR_EVER)

    def broadcast_int(self, number: int) -> int:
        """Returns the leader's number in every process."""
        return int(self.broadcast(str(number)))

    def all_true(self, true: bool) -> bool:
        """Whether `true` holds in every process. Waits until every process has called."""
        if self.count == 1:
            return true
        key = self._key("all_true")
        self._client.key_value_set(f"{key}/{self.index}", str(int(true)))
        if self.leads:
            votes = [
                self._client.blocking_key_value_get(f"{key}/{i}", FOR_EVER)
                for i in range(self.count)
            ]
            true = "0" not in votes
        return self.broadcast_int(int(true)) == 1

    def raise_first(self, problem: str) -> None:
        """Raises a UserError in every process if any process has a problem: the first one's."""
        if problem := next(filter(None, self.gather(problem)), ""):
            raise UserError(problem)

    def check_same(self, request: Any) -> None:
        """Raises a UserError in every process unless all processes have equal requests.

        Args:
          request: JSON; the message names the first difference.
        """
        first, *others = map(json.loads, self.gather(json.dumps(request)))
        for index, other in enumerate(others, 1):
            if found := difference(first, other):
                raise UserError(
                    f"process {index} was started with another request than process 0: {found}; "
                    "start all processes with the same command and versions"
                )

    def gather(self, text: str) -> list[str]:
        """Returns the texts of all processes, in the order of the processes, in every process."""
        if self.count == 1:
            return [text]
        key = self._key("gather")
        self._client.key_value_set(f"{key}/{self.index}", text)
        return [
            self._client.blocking_key_value_get(f"{key}/{i}", FOR_EVER) for i in range(self.count)
        ]

    def request_stop(self, number: int) -> None:
        """Asks the leader to stop with a signal number; any process may call this at any time."""
        if self.count > 1:
            self._client.key_value_set("jaxrl/stop", str(number), allow_overwrite=True)

    def stop_requested(self) -> int:
        """The signal number of the last `request_stop`; 0 if there is none."""
        if self.count == 1:
            return 0
        try:
            return int(self._client.key_value_try_get("jaxrl/stop"))
        except jax.errors.JaxRuntimeError:  # there is none
            return 0

    def _key(self, what: str) -> str:
        self._calls += 1
        return f"jaxrl/{what}/{self._calls}"


ALONE = Processes()


def join(
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    heartbeat: int = 100,
) -> Processes:
    """Joins the other processes of a cluster; returns `ALONE` outside a cluster.

    The first call must come before the first computation. Later calls return the same object.

    Args:
      coordinator: "host:port" of process 0; None if the cluster is detected (see `in_cluster`).
      processes: number of processes, given together with `coordinator`.
      process_id: index of this process, given together with `coordinator`.
      heartbeat: seconds without a heartbeat after which a process counts as dead.

    Raises:
      UserError: only some of the three are given, or the processes do not find each other.
    """
    check(coordinator, processes, process_id)
    if processes is None and not in_cluster():
        return ALONE
    return _joined(coordinator, processes, process_id, heartbeat)


def check(coordinator: str | None, processes: int | None, process_id: int | None) -> None:
    """Raises UserError for arguments of `join` that do not fit each other."""
    if (coordinator, processes, process_id) == (None, None, None):
        return
    if coordinator is None or processes is None or process_id is None:
        raise UserError("--coordinator, --processes and --process-id belong together")
    if not 0 <= process_id < processes:
        raise UserError(f"--process-id must be between 0 and {processes - 1}, got {process_id}")


@functools.cache
def _joined(*args: Any) -> Processes:
    from jax._src import distributed  # no public module has the client

    *who, heartbeat = args
    jax.config.update("jax_cpu_collectives_implementation", None)  # not needed
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", who[0])  # JAX's default: all interfaces
    if bind is not None and who[2] == 0:
        check_bindable(bind)
    try:
        jax.distributed.initialize(
            *who,
            coordinator_bind_address=bind,
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=heartbeat,
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes do not find each other: {error}") from error
    state = distributed.global_state
    return Processes(state.process_id or 0, state.num_processes or 1, state.client)


def check_bindable(address: str) -> None:
    """Checks that process 0 can listen at "host:port", which JAX reports in many lines.

    Raises:
      UserError: not an address of this machine, or the port is in use.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise UserError(f"--coordinator takes HOST:PORT, as in 10.0.0.1:1234, not {address}")
    try:
        family, _, _, _, where = socket.getaddrinfo(host.strip("[]"), int(port))[0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(where)
    except OSError as error:
        raise UserError(
            f"process 0 cannot listen at {address}: {error.strerror}; pass an address of its "
            "machine to --coordinator, or set JAX_COORDINATOR_BIND_ADDRESS"
        ) from None


def in_cluster(env: Any = os.environ) -> bool:
    """Whether the environment variables describe a cluster of several processes.

    Recognised are Slurm steps, Open MPI, indexed Kubernetes jobs, and Cloud TPU slices with several
    hosts.
    """
    more = lambda name: env.get(name, "").isdecimal() and int(env[name]) > 1
    return (
        more("SLURM_STEP_NUM_TASKS")
        or more("OMPI_COMM_WORLD_SIZE")
        or ("KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env)
        or "," in env.get("TPU_WORKER_HOSTNAMES", "")
    )
