"""Runs a function of a test module in a process with its own network namespace, in which all ports are free.

This needs Linux with user namespaces or root, and `unshare` of util-linux.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from typing import Any

import pytest

from support import processes

_SET_FLAGS = 0x8914  # SIOCSIFFLAGS, netdevice(7)
_UP_AND_RUNNING = 0x1 | 0x40


def run_in_own_network(module_file: str, call: str) -> subprocess.CompletedProcess[Any]:
    """Call a function of a test module in a process whose network has only a loopback interface.

    Args:
        module_file: The module's ``__file__``.
        call: The call as Python text, such as ``measure(3)``.
    """
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("needs Linux with unshare, of util-linux")
    command, environment = processes.function(module_file, call)
    command[-1] = f"from support.own_network import set_up; set_up(); {command[-1]}"
    # root needs no user namespace, and containers may not allow one
    namespaces = ["--net"] if os.geteuid() == 0 else ["--net", "--map-root-user"]
    if subprocess.run(["unshare", *namespaces, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user cannot create a network namespace")
    return processes.run(["unshare", *namespaces, *command], env=environment, capture_output=True, text=True)


def set_up() -> None:
    """Enable the loopback interface of this process's network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", _UP_AND_RUNNING))
