#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Kills a process at the moment when it puts a file into its place, before it does or after.

    kill_at_rename.py PID before|after NAME

Says "watching" when it does, on standard output, and ends when the process has. Exit status: 0 when it
was killed there, 1 when it has ended otherwise.
"""
import ctypes
import os
import signal
import sys

PTRACE_CONT_TO_SYSCALL = 24
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_GET_SYSCALL_INFO = 0x4206, 0x4207, 0x420E
PTRACE_O_TRACESYSGOOD = 1
WALL = 0x40000000
ENTRY, EXIT = 1, 2

# System call: which of its arguments is the new path.
RENAMES = {
    "x86_64": {82: 1, 264: 3, 316: 3},
    "aarch64": {38: 3, 276: 3},
}[os.uname().machine]


class SyscallInfo(ctypes.Structure):
    _fields_ = [
        ("op", ctypes.c_uint8),
        ("pad", ctypes.c_uint8 * 3),
        ("arch", ctypes.c_uint32),
        ("ip", ctypes.c_uint64),
        ("sp", ctypes.c_uint64),
        ("nr", ctypes.c_uint64),
        ("args", ctypes.c_uint64 * 6),
    ]


libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
libc.ptrace.restype = ctypes.c_long


def ptrace(request, pid, addr=None, data=None):
    if libc.ptrace(request, pid, addr, data) < 0:
        raise OSError(ctypes.get_errno(), f"ptrace {request:#x}")


def text_at(pid, address):
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(256).partition(b"\0")[0].decode(errors="replace")


def syscall_info(pid):
    info = SyscallInfo()
    ptrace(PTRACE_GET_SYSCALL_INFO, pid, ctypes.sizeof(info), ctypes.addressof(info))
    return info


def is_rename(pid, info, name):
    path = RENAMES.get(info.nr)
    return path is not None and os.path.basename(text_at(pid, info.args[path])) == name


def kill_at_rename(pid, moment, name):
    """Whether it was killed there."""
    renames = killed = False
    while True:
        _, status = os.waitpid(pid, WALL)
        if not os.WIFSTOPPED(status):
            return killed
        stop = os.WSTOPSIG(status)
        deliver = 0
        if stop == signal.SIGTRAP | 0x80:
            info = syscall_info(pid)
            killed = renames and info.op == EXIT
            renames = info.op == ENTRY and is_rename(pid, info, name)
            killed |= renames and moment == "before"
            if killed:
                os.kill(pid, signal.SIGKILL)
        elif status >> 16 == 0:
            deliver = stop
        if not killed:
            ptrace(PTRACE_CONT_TO_SYSCALL, pid, None, deliver)


pid, moment, name = int(sys.argv[1]), sys.argv[2], sys.argv[3]
ptrace(PTRACE_SEIZE, pid, None, PTRACE_O_TRACESYSGOOD)
ptrace(PTRACE_INTERRUPT, pid)
print("watching", flush=True)
sys.exit(0 if kill_at_rename(pid, moment, name) else 1)
