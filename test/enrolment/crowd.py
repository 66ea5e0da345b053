#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Many pods that are moved by one label of their namespace.

  crowd.py create NAMESPACE NODE      pods by the names on standard input; prints "NAME UID" of each
  crowd.py running NAMESPACE          kubelet's word of each: "NAME IPV4 IPV6" on standard input
  crowd.py delete NAMESPACE           all of its pods
  crowd.py move NAMESPACE LABELS      changes the namespace's labels and waits until as many pods as
         --run-dir DIR --pods N       were asked for are redirected; prints JSON: milliseconds from
         --pid PID --seconds S        the label's PATCH for the agent and for the annotation, and
                                      what the agent has used meanwhile

CLUSTER_DIR and CLUSTER_SERVER say which cluster, as for test/cluster/churn.py.
"""

import argparse
import http.client
import json
import os
import socket
import sys
import threading
import time
import urllib.parse

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cluster"))
from churn import MERGE_PATCH, Client, Workers  # noqa: E402

REDIRECTION = "ambient.istio.io/redirection"
PACKET = 1 << 20
POLL_S = 0.005
CONNECTIONS = 4


def pods_path(namespace):
    return f"/api/v1/namespaces/{namespace}/pods"


# ---- objects -------------------------------------------------------------------------------------


def create(arguments):
    uids = {}

    def make(name):
        body = {
            "metadata": {"name": name},
            "spec": {
                "nodeName": arguments.node,
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "app", "image": "app"}],
            },
        }

        def job(client):
            answer = client.ask("POST", pods_path(arguments.namespace), body)
            uids[name] = answer["metadata"]["uid"]

        return job

    for_each_line(lambda line: make(line.strip()))
    for name, uid in uids.items():
        print(name, uid)


def running(arguments):
    def make(line):
        name, *addresses = line.split()
        status = {
            "phase": "Running",
            "podIP": addresses[0],
            "podIPs": [{"ip": address} for address in addresses],
        }
        path = f"{pods_path(arguments.namespace)}/{name}/status"
        return lambda client: client.ask("PATCH", path, {"status": status}, MERGE_PATCH)

    for_each_line(make)


def delete(arguments):
    workers = Workers(CONNECTIONS)
    for pod in list(Client().list(pods_path(arguments.namespace))):
        path = f"{pods_path(arguments.namespace)}/{pod['metadata']['name']}?gracePeriodSeconds=0"
        workers.do(lambda client, path=path: client.ask("DELETE", path))
    workers.finish()


def for_each_line(make):
    workers = Workers(CONNECTIONS)
    for line in sys.stdin:
        workers.do(make(line))
    workers.finish()


# ---- the agent -----------------------------------------------------------------------------------


def agent_redirected(run_dir):
    """How many pods the agent says are redirected."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(10)
        sock.connect(os.path.join(run_dir, "agent.sock"))
        sock.send(b'{"v":1,"op":"status"}')
        return json.loads(sock.recv(PACKET))["pods"]["redirected"]


def usage(pid):
    with open(f"/proc/{pid}/stat") as file:
        fields = file.read().rpartition(")")[2].split()
    used = {"cpuMs": (int(fields[11]) + int(fields[12])) * 1000 // os.sysconf("SC_CLK_TCK")}
    with open(f"/proc/{pid}/status") as file:
        for line in file:
            if line.startswith(("VmRSS:", "VmHWM:")):
                used[line[:5]] = int(line.split()[1])
    used["fds"] = len(os.listdir(f"/proc/{pid}/fd"))
    return used


# ---- what the cluster sees -----------------------------------------------------------------------


class Annotations(threading.Thread):
    """Notes when each pod is said to be in the mesh, or not to be ("pending" is neither)."""

    def __init__(self, namespace, present):
        super().__init__(daemon=True)
        self.present = present
        self.times = {}
        client = Client(timeout=120)
        query = urllib.parse.urlencode({"limit": 1})
        version = client.ask("GET", f"{pods_path(namespace)}?{query}")["metadata"][
            "resourceVersion"
        ]
        query = urllib.parse.urlencode({"watch": 1, "resourceVersion": version})
        self.connection = http.client.HTTPSConnection(
            client.address, context=client.tls, timeout=120
        )
        self.connection.request("GET", f"{pods_path(namespace)}?{query}")
        self.answer = self.connection.getresponse()

    def run(self):
        for line in self.answer:
            metadata = json.loads(line)["object"]["metadata"]
            said = metadata.get("annotations", {}).get(REDIRECTION)
            if said == ("enabled" if self.present else None):
                self.times.setdefault(metadata["name"], time.monotonic())


def percentile(times, percent):
    ordered = sorted(times)
    return round(ordered[max(0, min(len(ordered), round(len(ordered) * percent / 100)) - 1)])


def summary(times):
    if not times:
        return None
    return {"p50": percentile(times, 50), "p99": percentile(times, 99), "last": round(max(times))}


def wait_for_agent(arguments, start, before):
    """Milliseconds at which each pod was moved, to the grain of the polling."""
    end = start + arguments.seconds
    step = 1 if arguments.pods > before else -1
    times, count = [], before
    while count != arguments.pods:
        if time.monotonic() > end:
            raise TimeoutError(f"{count} pods redirected, not {arguments.pods}")
        now = agent_redirected(arguments.run_dir)
        times += [(time.monotonic() - start) * 1000] * max(0, (now - count) * step)
        count = now
        time.sleep(POLL_S)
    return times


def move(arguments):
    before = agent_redirected(arguments.run_dir)
    annotations = Annotations(arguments.namespace, arguments.pods > before)
    annotations.start()
    used = usage(arguments.pid)
    start = time.monotonic()
    Client().ask(
        "PATCH",
        f"/api/v1/namespaces/{arguments.namespace}",
        {"metadata": {"labels": json.loads(arguments.labels)}},
        MERGE_PATCH,
    )
    patched = time.monotonic()
    times = wait_for_agent(arguments, start, before)
    moved = usage(arguments.pid)
    while len(annotations.times) < abs(arguments.pods - before):
        if time.monotonic() > start + arguments.seconds:
            raise TimeoutError(f"{len(annotations.times)} annotations changed")
        time.sleep(POLL_S)
    told = [(at - start) * 1000 for at in list(annotations.times.values())]
    after = usage(arguments.pid)
    print(
        json.dumps(
            {
                "pods": len(times),
                "patchMs": round((patched - start) * 1000),
                "movedMs": summary(times),
                "annotatedMs": summary(told),
                "cpuMs": moved["cpuMs"] - used["cpuMs"],
                "cpuAnnotatedMs": after["cpuMs"] - used["cpuMs"],
                "rssKb": [used["VmRSS"], after["VmRSS"]],
                "hwmKb": after["VmHWM"],
                "fds": [used["fds"], after["fds"]],
            }
        )
    )


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    for function in (create, running, delete, move):
        command = commands.add_parser(function.__name__)
        command.set_defaults(function=function)
        command.add_argument("namespace")
        if function is create:
            command.add_argument("node")
        if function is move:
            command.add_argument("labels")
            command.add_argument("--run-dir", required=True)
            command.add_argument("--pods", type=int, required=True)
            command.add_argument("--pid", type=int, required=True)
            command.add_argument("--seconds", type=int, default=120)
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
