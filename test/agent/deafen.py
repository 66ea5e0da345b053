#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Has a process hear no more of network namespaces that end, as if the kernel had lost each such
notice: its netlink sockets leave the group that these are sent to.

    deafen.py PID

Exit status: 0 when there was such a socket, 1 when there was none.
"""
import ctypes
import os
import socket
import sys

SYS_PIDFD_GETFD = 438  # on every architecture
SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, NETLINK_LIST_MEMBERSHIPS = 270, 2, 9
RTNLGRP_NSID = 28

libc = ctypes.CDLL(None, use_errno=True)


def sockets_of(pid):
    """Its sockets themselves: what is set on one is set for the process."""
    pidfd = os.pidfd_open(pid)
    for number in os.listdir(f"/proc/{pid}/fd"):
        if not os.readlink(f"/proc/{pid}/fd/{number}").startswith("socket:"):
            continue
        fd = libc.syscall(SYS_PIDFD_GETFD, pidfd, int(number), 0)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "pidfd_getfd")
        yield socket.socket(fileno=fd)


def is_member(sock):
    if sock.family != socket.AF_NETLINK or sock.proto != socket.NETLINK_ROUTE:
        return False
    groups = sock.getsockopt(SOL_NETLINK, NETLINK_LIST_MEMBERSHIPS, 4)
    return bool(int.from_bytes(groups, sys.byteorder) >> (RTNLGRP_NSID - 1) & 1)


members = [sock for sock in sockets_of(int(sys.argv[1])) if is_member(sock)]
for sock in members:
    sock.setsockopt(SOL_NETLINK, NETLINK_DROP_MEMBERSHIP, RTNLGRP_NSID)
sys.exit(0 if members else 1)
