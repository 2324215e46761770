"""The connection to a Ray cluster."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import socket
from collections.abc import Iterator

from ldm.util import to_install


@contextlib.contextmanager
def cluster(address: str, module: str = "ray") -> Iterator[None]:
    """Connects this process to a Ray cluster until the block ends; for arguments and errors see :func:`connect`."""
    own = connect(address, module)
    import ray

    try:
        yield
    finally:
        if own:
            ray.shutdown()


def connect(address: str, module: str = "ray") -> bool:
    """Connects this process to a Ray cluster, unless it is connected to one; returns whether it was not.

    Args:
        address: ``local`` for a cluster on this machine that ends with this process, ``auto`` for the running cluster
            of this machine, or ``HOST:PORT``.
        module: the part of Ray that is needed.

    Raises:
        ValueError: ray is not installed, or the address has another form.
        OSError: no cluster answers at the address.
    """
    remedy = "start one with 'ray start', or use --ray local for one on this machine alone"
    try:
        import ray

        importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"ray '{address}' needs {error.name}: {to_install('ray')}") from error
    if ray.is_initialized():
        return False
    host, colon, port = address.rpartition(":")
    if address not in ("local", "auto") and not (colon and port.isdigit() and "/" not in host):
        expected = "local, auto, or HOST:PORT of a cluster that this machine is part of"
        raise ValueError(f"ray: got '{address}', expected {expected}")
    if colon:
        try:
            socket.create_connection((host, int(port)), timeout=10).close()  # Ray itself would keep trying for minutes
        except (OSError, OverflowError) as error:
            raise ConnectionError(f"no Ray cluster answers at {address} ({error}); {remedy}") from error
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    dashboard = False if address == "local" else None
    try:
        ray.init(address, logging_level=logging.WARNING, log_to_driver=False, include_dashboard=dashboard)
    except Exception as error:  # Ray raises no narrower type when a node does not start
        message = " ".join(str(error).split())
        raise ConnectionError(f"no Ray cluster answers at '{address}' ({message}); {remedy}") from error
    return True
