"""Network namespaces of a tree's nodes, each with one TUN device.

They have no names: a namespace is there as long as a process is in it or has it open, so that
none outlives the run, however that ends. The same goes for the devices. Linux only.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from hffm_flower.errors import ConfigError, HffmError

log = logging.getLogger(__name__)

CLONE_NEWNET: Final = 0x40000000
TUNSETIFF: Final = 0x400454CA
IFF_TUN: Final = 0x0001
IFF_NO_PI: Final = 0x1000
TUN: Final = "/dev/net/tun"
OWN: Final = "/proc/thread-self/ns/net"
CONTROLS: Final = Path("/proc/sys/net/ipv4/tcp_available_congestion_control")
CUBIC: Final = "cubic"
MTU: Final = 1500
INTERFACE: Final = "hffm0"
TOOLS: Final = {"ip": "iproute2", "nsenter": "util-linux"}
PATIENCE_S: Final = 20.0


def check_allowed() -> None:
    """Make a namespace with a device, and let it go.

    Raises:
        ConfigError: That is not possible here; the message says what is missing.
    """
    wanted = "hffm testbed joins network namespaces by TUN devices"
    for tool, package in TOOLS.items():
        if shutil.which(tool) is None:
            raise ConfigError(f"{wanted}; there is no program {tool!r}: install {package}")
    if not os.path.exists(TUN):
        raise ConfigError(
            f"{wanted}; there is no {TUN}: load the module 'tun', or hand the device on to this "
            "container (--device /dev/net/tun)"
        )
    try:
        with Namespace() as here:
            os.close(here.open_tun())
            here.ip(["link set lo up"])
    except HffmError as error:
        raise ConfigError(
            f"{wanted}; the program 'ip' is not that of iproute2, or is not allowed to: {error}"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{wanted}, which this user (id {os.geteuid()}) may not: {error}; be root, with "
            "CAP_NET_ADMIN and CAP_SYS_ADMIN"
        ) from error


class Namespace:
    """A network namespace: a new one, or that of a process.

    Args:
        process: Whose; None: a new one.

    Raises:
        OSError: It may not be made, or there is no such process.
    """

    def __init__(self, process: int | None = None) -> None:
        if process is not None:
            self.handle = os.open(f"/proc/{process}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            return
        with _going_home():
            _call("unshare", CLONE_NEWNET)
            self.handle = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)

    def __enter__(self) -> Namespace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes in front of a command that is to run in it."""
        return ("nsenter", f"--net=/proc/{os.getpid()}/fd/{self.handle}", "--")

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Meanwhile this thread is in it: sockets and devices that it opens belong there."""
        with _going_home():
            _call("setns", self.handle, CLONE_NEWNET)
            yield

    def open_tun(self) -> int:
        """A new TUN device in it, which is there as long as the descriptor is open.

        Raises:
            OSError: It may not be made.
        """
        with self.inside():
            device = os.open(TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                wanted = struct.pack("16sH22x", INTERFACE.encode(), IFF_TUN | IFF_NO_PI)
                fcntl.ioctl(device, TUNSETIFF, wanted)
            except OSError:
                os.close(device)
                raise
        return device

    def ip(self, lines: Sequence[str]) -> None:
        """Commands of ``ip``, one a line.

        Raises:
            HffmError: One of them failed, or took too long.
        """
        asked = f"ip {'; '.join(lines)}"
        try:
            done = subprocess.run(
                [*self.prefix, "ip", "-batch", "-"], input="\n".join(lines) + "\n", text=True,
                capture_output=True, timeout=PATIENCE_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise HffmError(f"{asked}: no answer for {PATIENCE_S:.0f} s") from error
        if done.returncode:
            raise HffmError(f"{asked}: {done.stderr.strip()}")

    def close(self) -> None:
        """Let it go; it stays while processes are in it."""
        os.close(self.handle)


def tcp_of_routes() -> str:
    """Words of a route over which TCP is CUBIC; none where the kernel has no CUBIC.

    Some kernels' default is BBR, which takes little notice of losses. A default cannot be set
    for a namespace, but a route can say.
    """
    if CUBIC in CONTROLS.read_text(encoding="ascii").split():
        return f"congctl {CUBIC}"
    log.warning("this kernel has no TCP %s: its default is used", CUBIC)
    return ""


@contextlib.contextmanager
def _going_home() -> Iterator[None]:
    """Afterwards this thread is in the namespace where it was."""
    home = os.open(OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        _call("setns", home, CLONE_NEWNET)
        os.close(home)


def _call(name: str, *numbers: int) -> None:
    library = ctypes.CDLL(None, use_errno=True)
    if getattr(library, name)(*numbers):
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
