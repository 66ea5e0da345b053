# SPDX-License-Identifier: Apache-2.0
"""What registering a pod costs: time of a CNI chain with and without sockmesh-cni, interleaved;
the agent's memory and answering time with growing numbers of pods. Prints one JSON object."""

import argparse
import array
import ctypes
import json
import os
import socket
import statistics
import subprocess
import sys
import time
import uuid

CLONE_NEWNET = 0x40000000
NETNS_DIR = "/run/netns"


def summary(values):
    """The form that figures have everywhere in the report."""
    return {
        "n": len(values),
        "min": round(min(values), 4),
        "median": round(statistics.median(values), 4),
        "p90": round(sorted(values)[int(0.9 * (len(values) - 1))], 4),
        "p99": round(sorted(values)[int(0.99 * (len(values) - 1))], 4),
        "max": round(max(values), 4),
    }


# ---- the chain ---------------------------------------------------------------------------------


def find(plugin, path):
    for directory in path.split(":"):
        if os.access(os.path.join(directory, plugin), os.X_OK):
            return os.path.join(directory, plugin)
    sys.exit(f"no CNI plugin {plugin} in {path}")


def call(verb, conflist, plugin, previous, container, netns, options):
    """One plugin as a runtime executes it; returns its result and the seconds that it took."""
    conf = {k: v for k, v in plugin.items() if k != "capabilities"}
    conf |= {"name": conflist["name"], "cniVersion": conflist["cniVersion"]}
    if "io.kubernetes.cri.pod-annotations" in plugin.get("capabilities", {}):
        conf["runtimeConfig"] = {
            "io.kubernetes.cri.pod-annotations": json.loads(options.annotations)
        }
    if previous is not None:
        conf["prevResult"] = previous
    environment = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container,
        "CNI_NETNS": netns,
        "CNI_IFNAME": "eth0",
        "CNI_PATH": options.path,
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=bench;K8S_POD_NAME={container[:12]};"
        f"K8S_POD_INFRA_CONTAINER_ID={container};K8S_POD_UID={uuid.uuid4()}",
    }
    program = find(plugin["type"], options.path)
    text = json.dumps(conf).encode()
    start = time.perf_counter()
    done = subprocess.run(
        [program], input=text, env=environment, capture_output=True, check=False
    )
    took = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{verb} of {plugin['type']}: {done.stdout.decode()}{done.stderr.decode()}")
    return (json.loads(done.stdout) if done.stdout.strip() else None), took


def one_add(conflist, options):
    """ADD and DEL in a new namespace; milliseconds of the whole ADD and of its last plugin."""
    container = uuid.uuid4().hex * 2
    name = "bench-" + container[:8]
    netns = f"{NETNS_DIR}/{name}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    result, times = None, []
    for plugin in conflist["plugins"]:
        result, took = call("ADD", conflist, plugin, result, container, netns, options)
        times.append(took * 1000)
    for plugin in reversed(conflist["plugins"]):
        call("DEL", conflist, plugin, result, container, netns, options)
    subprocess.run(["ip", "netns", "delete", name], check=True)
    return sum(times), times[-1]


def measure_add(options):
    chains = {}
    for name in ("plain", "chained"):
        with open(getattr(options, name), encoding="utf-8") as file:
            chains[name] = json.load(file)
    totals = {"plain": [], "chained": []}
    own = []
    for i in range(options.adds + 1):
        order = list(totals) if i % 2 else list(reversed(totals))
        for name in order:
            total, last = one_add(chains[name], options)
            if i == 0:
                continue  # the first makes the bridge and warms the caches
            totals[name].append(total)
            if name == "chained":
                own.append(last)
    growth = [with_us - without for with_us, without in zip(totals["chained"], totals["plain"])]
    return {
        "chain_ms": summary(totals["plain"]),
        "chain_with_sockmesh_ms": summary(totals["chained"]),
        "growth_ms": summary(growth),
        "sockmesh_add_ms": summary(own),
    }


# ---- the agent ---------------------------------------------------------------------------------


def memory_kb(pid):
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        fields = {
            line.split(":")[0]: int(line.split()[1]) for line in file if line.rstrip().endswith("kB")
        }
    private = fields["Private_Clean"] + fields["Private_Dirty"]
    return {"rss_kb": fields["Rss"], "private_kb": private}


class Netns:
    """New network namespaces, held by descriptors only."""

    def __init__(self):
        self.libc = ctypes.CDLL(None, use_errno=True)
        self.own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def new(self):
        if self.libc.unshare(CLONE_NEWNET):
            sys.exit(f"unshare: {os.strerror(ctypes.get_errno())}")
        fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        if self.libc.setns(self.own, CLONE_NEWNET):
            sys.exit(f"setns: {os.strerror(ctypes.get_errno())}")
        return fd


def ask(path, request, fd=None):
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(30)
        connection.connect(path)
        rights = []
        if fd is not None:
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))]
        connection.sendmsg([json.dumps(request).encode()], rights)
        reply = json.loads(connection.recv(65536))
    if not reply.get("ok"):
        sys.exit(f"{request['op']}: {reply}")
    return reply


def pod_request(operation, number, annotations):
    return {
        "v": 1,
        "op": operation,
        "containerId": f"bench{number:06d}",
        "ifName": "eth0",
        "netns": f"{NETNS_DIR}/bench{number:06d}",
        "pod": {"namespace": "bench", "name": f"pod-{number}", "uid": str(uuid.UUID(int=number))},
        "ips": [f"10.99.{number // 250}.{number % 250 + 1}/16", f"fd99::{number + 1:x}/64"],
        "annotations": annotations,
        "labels": {},
        "cgroup": None,
    }


def measure_memory(options):
    annotations = json.loads(options.annotations)
    namespaces = Netns()
    points = [{"pods": 0} | memory_kb(options.pid)]
    held, times = [], []
    for target in sorted(options.pods):
        while len(held) < target:
            number = len(held)
            fd = namespaces.new()
            held.append(fd)
            start = time.perf_counter()
            ask(options.socket, pod_request("add", number, annotations), fd)
            times.append((time.perf_counter() - start) * 1000)
        points.append({"pods": target} | memory_kb(options.pid))
    removals = []
    for number, fd in enumerate(held):
        start = time.perf_counter()
        ask(options.socket, pod_request("del", number, annotations), fd)
        removals.append((time.perf_counter() - start) * 1000)
        os.close(fd)
    points.append({"pods": 0, "after": "all were removed"} | memory_kb(options.pid))
    return {
        "memory": points,
        "agent_add_ms": summary(times),
        "agent_add_last_tenth_ms": summary(times[-max(1, len(times) // 10) :]),
        "agent_del_ms": summary(removals),
    }


def timed(path, request, fd):
    start = time.perf_counter()
    ask(path, request, fd)
    return (time.perf_counter() - start) * 1000


def measure_engines(options):
    """What one add and one del take, engine after engine, on the same namespaces."""
    annotations = json.loads(options.annotations)
    namespaces = Netns()
    times = {directory: ([], []) for directory in options.run_dirs}
    for number in range(options.pods):
        for directory, (adds, removals) in times.items():
            fd = namespaces.new()
            path = f"{directory}/agent.sock"
            adds.append(timed(path, pod_request("add", number, annotations), fd))
            removals.append(timed(path, pod_request("del", number, annotations), fd))
            os.close(fd)
    return {
        os.path.basename(directory).removeprefix("run-"): {
            "agent_add_ms": summary(adds),
            "agent_del_ms": summary(removals),
        }
        for directory, (adds, removals) in times.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    add = verbs.add_parser("add")
    add.add_argument("--adds", type=int, required=True)
    add.add_argument("--plain", required=True)
    add.add_argument("--chained", required=True)
    add.add_argument("--path", required=True)
    add.add_argument("--annotations", required=True)
    memory = verbs.add_parser("memory")
    memory.add_argument("--pid", type=int, required=True)
    memory.add_argument("--socket", required=True)
    memory.add_argument("--annotations", required=True)
    memory.add_argument("--pods", type=int, nargs="+", required=True)
    engines = verbs.add_parser("engines")
    engines.add_argument("--annotations", required=True)
    engines.add_argument("--pods", type=int, required=True)
    engines.add_argument("--run-dir", dest="run_dirs", nargs="+", required=True)
    options = parser.parse_args()
    measure = {"add": measure_add, "memory": measure_memory, "engines": measure_engines}
    json.dump(measure[options.verb](options), sys.stdout)


if __name__ == "__main__":
    main()
