#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""userns_netns.py NAME INSIDE OUTSIDE COUNT: /run/netns/NAME becomes a network namespace that is
owned by a user namespace with this id map, as the pods of `hostUsers: false` have."""
import ctypes
import os
import sys

CLONE_NEWUSER, CLONE_NEWNET, MS_BIND = 0x10000000, 0x40000000, 4096
libc = ctypes.CDLL(None, use_errno=True)


def checked(result, what):
    if result < 0:
        raise OSError(ctypes.get_errno(), what)


def main():
    name, id_map = sys.argv[1], " ".join(sys.argv[2:5])
    ready, tell_ready = os.pipe()
    done, tell_done = os.pipe()
    pid = os.fork()
    if pid == 0:
        checked(libc.unshare(CLONE_NEWUSER | CLONE_NEWNET), "unshare")
        os.write(tell_ready, b"x")
        os.close(tell_done)
        os.read(done, 1)
        os._exit(0)
    os.close(tell_ready)
    if os.read(ready, 1) != b"x":
        sys.exit("no user namespace")
    for kind in "uid_map", "gid_map":
        with open(f"/proc/{pid}/{kind}", "w", encoding="ascii") as file:
            file.write(id_map)
    path = f"/run/netns/{name}"
    with open(path, "x", encoding="ascii"):
        pass
    checked(libc.mount(f"/proc/{pid}/ns/net".encode(), path.encode(), None, MS_BIND, None), "mount")
    os.close(tell_done)
    os.waitpid(pid, 0)


if __name__ == "__main__":
    main()
