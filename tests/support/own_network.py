"""Runs a function of a test module in a process with its own network namespace, in which all ports are free.

This needs Linux with user namespaces or root.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support import processes
from support.forked import Program

_CANNOT_UNSHARE = 77
_CLONE_NEWNET, _CLONE_NEWUSER = 0x40000000, 0x10000000  # linux/sched.h
_SET_FLAGS = 0x8914  # SIOCSIFFLAGS, netdevice(7)
_UP_AND_RUNNING = 0x1 | 0x40


def run_in_own_network(module_file: str, call: str) -> subprocess.CompletedProcess[Any]:
    """Call a function of a test module in a process whose network has only a loopback interface.

    Args:
        module_file: The module's ``__file__``.
        call: The call as Python text, such as ``measure(3)``.
    """
    if sys.platform != "linux":
        pytest.skip("needs Linux")
    (_, option, program), environment = processes.function(module_file, call)
    arguments = [option, f"from support.own_network import set_up; set_up(); {program}"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with Program(arguments, env=environment, **pipes) as process:
        out, error = process.communicate()
    if process.returncode == _CANNOT_UNSHARE:
        pytest.skip("this user cannot create a network namespace")
    return subprocess.CompletedProcess(process.args, process.returncode, out, error)


def set_up() -> None:
    """Move this process into a new network, and enable its loopback interface."""
    user, group = os.getuid(), os.getgid()
    # root needs no user namespace, and containers may not allow one
    if ctypes.CDLL(None).unshare(_CLONE_NEWNET | (_CLONE_NEWUSER if user else 0)):
        sys.exit(_CANNOT_UNSHARE)
    if user:  # in its own namespace, it is root: user_namespaces(7)
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {user} 1"), ("gid_map", f"0 {group} 1")):
            Path("/proc/self", name).write_text(text, encoding="utf-8")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", _UP_AND_RUNNING))
