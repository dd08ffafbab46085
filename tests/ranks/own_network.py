"""Brings up lo of a new network (``unshare -n python own_network.py command``), runs a command."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import sys

_SIOCSIFFLAGS = 0x8914
_IFF_UP_RUNNING = 0x41

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    fcntl.ioctl(s, _SIOCSIFFLAGS, struct.pack("16sh", b"lo", _IFF_UP_RUNNING).ljust(40, b"\0"))
os.execvp(sys.argv[1], sys.argv[1:])
