"""The Ray cluster that a command uses: joined or started."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator

import ray

from latentsync_ray.cluster.ray_internals import cluster_started_here
from latentsync_ray.config.errors import Terminated, UserError

_ANSWER_SECONDS = 10.0
_HTTP2_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
"""What every client of a gRPC server says first, as the cluster's head is one (RFC 9113, 3.4 and 6.5)."""


@contextlib.contextmanager
def cluster() -> Iterator[str]:
    """Joins the cluster that there is, or starts one on this machine. Gives the dashboard's address.

    Raises:
        UserError: There can be none.
    """
    connected_before = ray.is_initialized()
    if not connected_before:
        _check_address(os.environ.get("RAY_ADDRESS", ""))
    try:
        yield _connected()
    finally:
        if not connected_before:
            ray.shutdown()


def _connected() -> str:
    """Connects this process; Ray answers SIGTERM in its own way from here on, which is undone.

    A terminal that closes sends SIGHUP to Ray's processes too, which are to live until this one has cleaned up: they
    inherit that it is blocked.
    """
    on_sigterm = signal.getsignal(signal.SIGTERM)
    blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        context = ray.init(
            include_dashboard=True, log_to_driver=False, logging_level=logging.ERROR, ignore_reinit_error=True
        )
    except SystemExit:  # Ray's way, while it starts
        raise Terminated from None
    except Exception as error:  # Ray raises this very class where a node is slow to start
        reason = " ".join(str(error).split())
        raise UserError(
            f"Ray: cannot be started or joined here ({reason}); see RAY_TMPDIR, RAY_ADDRESS and the free memory"
        ) from None
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)
        if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)
    return f"http://{context.dashboard_url}" if context.dashboard_url else "not running"


def _check_address(address: str) -> None:
    """Refuses the address of a cluster where nobody answers, for which Ray would wait for minutes.

    Args:
        address: What `ray.init` is to join; nothing, `auto` and `local` are for Ray to find.

    Raises:
        UserError: It is no address, or nobody is there.
    """
    if address in ("", "auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if "/" in address or not host or not port.isdigit():
        rule = "must be host:port of a cluster's head node, auto or local"
        raise UserError(f"RAY_ADDRESS: {rule}, got {address}; run the command on a node of the cluster")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_SECONDS) as connection:
            connection.sendall(_HTTP2_PREFACE)
            connection.recv(1)
    except (OSError, OverflowError, UnicodeError) as error:
        remedy = "start that cluster, or unset RAY_ADDRESS to start one here"
        raise UserError(f"RAY_ADDRESS: nobody answers at {address} ({error}); {remedy}") from None


def outlives_this_process() -> bool:
    """Whether the cluster that this process is connected to was started by somebody else."""
    return not cluster_started_here()
