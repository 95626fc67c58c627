"""Which of this machine's addresses and interfaces the other machines can reach."""

import fcntl
import socket
import struct
import time

from hasten.core.console import say
from hasten.core.errors import ConfigError

SIOCGIFADDR = 0x8915
"""Linux's question for the address of an interface (netdevice(7))."""
AGAIN_SECONDS = 2.0
LOOPBACK = "127.0.0.1"


def address_towards(meet: str, patience_seconds: float = 0.0) -> str:
    """This machine's own IPv4 address on the way to HOST:PORT; nothing is sent.

    Waits until the name of a machine that has just been started is known.  Raises ConfigError where it has no
    address after that, or there is no way.
    """
    host, _, port = meet.rpartition(":")
    until, told = time.monotonic() + patience_seconds, False
    while True:
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
                way.connect((host, int(port)))
                return str(way.getsockname()[0])
        except OSError as error:
            reason = error.strerror or str(error)
        if time.monotonic() >= until:
            raise ConfigError(
                f"meet: {host} cannot be reached from here ({reason}); write the name or address of one of"
                " the machines, as the others see it"
            )
        if not told:
            say(f"waiting for {host} ({reason})")
        told = True
        time.sleep(AGAIN_SECONDS)


def is_here(meet: str) -> bool:
    """Whether HOST is this machine: what it sends to itself comes from the address that it goes to."""
    return address_towards(meet) == socket.gethostbyname(meet.rpartition(":")[0])


def interface_with(address: str) -> str | None:
    """The name of the network interface that has an IPv4 address, None where none is found."""
    for _, name in socket.if_nameindex():
        if interface_address(name) == address:
            return name
    return None


def interface_address(name: str) -> str | None:
    """The first IPv4 address of an interface."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        question = struct.pack("256s", name.encode()[:15])
        try:
            answer = fcntl.ioctl(any_socket.fileno(), SIOCGIFADDR, question)
        except OSError:  # it has none
            return None
    return socket.inet_ntoa(answer[20:24])
