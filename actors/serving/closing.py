"""The one port of a replica that Serve binds to every interface: closed, where only this machine needs it.

Each replica takes calls from other deployments over gRPC, at a port of `[::]` for which Serve has no option.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.serve._private import replica

from ...workflows.hosts import is_loopback

ANYWHERE = "[::]:"


def close_to_other_machines() -> None:
    """Let this process's replica listen on loopback, if that is its node's address; before it is up."""
    address = ray.util.get_node_ip_address()
    if not is_loopback(address):
        return
    module: Any = replica
    bind: Any = module.add_port_to_grpc_server

    def bind_here(server: object, wanted: str) -> int:
        return bind(server, wanted.replace(ANYWHERE, f"[{address}]:" if ":" in address else f"{address}:"))

    module.add_port_to_grpc_server = bind_here
