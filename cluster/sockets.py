"""Processes, what they have open and where they listen, by what the system tells in /proc."""

from __future__ import annotations

import os
import socket
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path

LISTENS = "0A"  # include/net/tcp_states.h of Linux


@dataclass(frozen=True)
class Listener:
    """A socket that takes connections.

    Attributes:
        pid: of its process; the first, of several that share it.
        command: line of that process.
        host: address it is bound to; `0.0.0.0` and `::` are every interface.
        port: TCP port.
    """

    pid: int
    command: str
    host: str
    port: int

    @property
    def is_local(self) -> bool:
        """Whether other machines can't reach it."""
        return ip_address(self.host).is_loopback

    @property
    def reached_at(self) -> tuple[str, ...]:
        """Addresses at which this machine reaches it; the first that answers."""
        if self.host == "::":
            return "::1", "127.0.0.1"  # one for IPv6 alone is not at the second, which another may have
        return ("127.0.0.1",) if self.host == "0.0.0.0" else (self.host,)


def listeners(pids: Collection[int]) -> list[Listener]:
    """What these processes listen on, by port; processes that have ended, or are another's, have nothing."""
    found: dict[tuple[str, int], Listener] = {}
    for pid in sorted(pids):
        inodes = set(_sockets(pid))
        for host, port, inode in _listening(pid) if inodes else ():
            if inode in inodes:
                found.setdefault((host, port), Listener(pid, command_of(pid), host, port))
    return sorted(found.values(), key=lambda one: (one.port, one.host))


def command_of(pid: int) -> str:
    """A process's command line; empty if it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return ""


def may_look_into(pid: int) -> bool:
    """Whether this user can see what a process has open."""
    return os.access(f"/proc/{pid}/fd", os.R_OK)


def processes() -> list[int]:
    """Numbers of all processes there are."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def opened_by(pid: int) -> Iterator[str]:
    """What a process has open: a file's path, or `socket:[INODE]`; nothing of another user's."""
    with suppress(OSError):
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                yield os.readlink(descriptor.path)


def _sockets(pid: int) -> Iterator[str]:
    return (target[8:-1] for target in opened_by(pid) if target.startswith("socket:["))


def _listening(pid: int) -> Iterator[tuple[str, int, str]]:
    """Address, port and inode of what anyone listens on in a process's network."""
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                _, local, _, state, *_, inode = line.split()[:10]
                host, _, port = local.partition(":")
                if state == LISTENS:
                    yield _address(host), int(port, 16), inode


def _address(text: str) -> str:
    """An address as /proc has it: hexadecimal words of four bytes, each the wrong way round."""
    words = bytes.fromhex(text)
    if len(words) == 4:
        return socket.inet_ntoa(words[::-1])
    address = IPv6Address(b"".join(words[i : i + 4][::-1] for i in range(0, 16, 4)))
    return str(address.ipv4_mapped or address)
