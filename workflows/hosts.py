"""Hosts and ports as the network's names have them."""

from __future__ import annotations

from ipaddress import ip_address


def is_loopback(host: str) -> bool:
    """Whether an address or name is this machine's own, which others don't reach."""
    try:
        return ip_address(host).is_loopback
    except ValueError:  # a name
        return host == "localhost"


def address_of(host: str, port: int) -> str:
    """HOST:PORT, and of IPv6 [HOST]:PORT (RFC 3986, section 3.2.2)."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
