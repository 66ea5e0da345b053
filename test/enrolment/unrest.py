#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Unrest among the pods of one node: labels and annotations that change, pods that come and go,
other clients that write and remove what the agent has written; and how long it takes until the
kernel and the pod's annotations are what is wanted.

  unrest.py --node NODE --cgroup DIR --seconds S --rate N --pods N ...

Pods are network namespaces (/run/netns), a process in a cgroup below DIR, and objects in the API.
Prints JSON; fails when the end is not what is wanted. CLUSTER_DIR and CLUSTER_SERVER say which
cluster, as for test/cluster/churn.py; times are of CLOCK_MONOTONIC.

What the kernel does with a pod is asked by connecting: a socket in the pod's namespace, made by a
process below the agent's cgroup, to an address that nobody has. Captured, it is refused at once,
for no ztunnel listens there; else it gets no answer.
"""

import argparse
import ctypes
import errno
import http.client
import json
import os
import queue
import random
import select
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "cluster"))
from churn import CONFLICT, MERGE_PATCH, ApiError, Client, Workers, percentile  # noqa: E402

MODE_LABEL = "istio.io/dataplane-mode"
ASKED = "sockmesh.io/redirection"
REDIRECTION = "ambient.istio.io/redirection"
STATUS = "sockmesh.io/status"
CLONE_NEWNET = 0x40000000
NOT_FOUND = 404
NOBODY = ("10.99.0.1", 80)
PROBE_PAUSE_S = 0.005
NAMESPACES = 5
# Pods whose annotations another controller removes whenever it sees them.
CONTESTED = 3
# Of what is done to pods of the node, in how many of a hundred cases.
SHARES = {"flip": 40, "noise": 24, "rob": 14, "put": 14, "come": 4, "go": 4}


def run(*command, **options):
    subprocess.run(command, check=True, **options)


# ---- what the kernel does ------------------------------------------------------------------------


def is_captured(libc, name):
    """None: there is no such namespace."""
    try:
        netns = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        if libc.setns(netns, CLONE_NEWNET):
            return None  # a name whose namespace is not bound to it yet, or not any more
    finally:
        os.close(netns)
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as sock:
        code = sock.connect_ex(NOBODY)
        if code == errno.EINPROGRESS:
            poll = select.poll()
            poll.register(sock, select.POLLOUT)
            if poll.poll(0):
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return code == errno.ECONNREFUSED


class Prober:
    """A process of its own, in a cgroup that the agent redirects. It is told what is expected of
    which pod, and says when that has come true."""

    def __init__(self, cgroup):
        self.told, tell_end = os.pipe()
        read_end, self.tell = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.told)
            os.close(self.tell)
            try:
                own = os.path.join(cgroup, "prober")
                os.makedirs(own, exist_ok=True)
                with open(os.path.join(own, "cgroup.procs"), "w") as procs:
                    procs.write(str(os.getpid()))
                self.serve(read_end, tell_end)
            finally:
                os._exit(1)
        os.close(read_end)
        os.close(tell_end)
        self.lock = threading.Lock()

    def say(self, *words):
        with self.lock:
            os.write(self.tell, (" ".join(map(str, words)) + "\n").encode())

    def answers(self):
        with os.fdopen(self.told) as lines:
            for line in lines:
                yield line.split()

    @staticmethod
    def serve(read_end, tell_end):
        libc = ctypes.CDLL(None, use_errno=True)
        expected, rest = {}, b""
        while True:
            if select.select([read_end], [], [], PROBE_PAUSE_S if expected else None)[0]:
                data = os.read(read_end, 1 << 16)
                if not data:
                    os._exit(0)
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    verb, name, *words = line.decode().split()
                    if verb == "expect":
                        expected[name] = words
                    elif verb == "forget":
                        expected.pop(name, None)
                    else:
                        os.write(tell_end, f"is {name} {is_captured(libc, name)}\n".encode())
            for name, (number, wanted) in list(expected.items()):
                if str(is_captured(libc, name)) == wanted:
                    del expected[name]
                    os.write(tell_end, f"met {number} {time.monotonic()}\n".encode())


# ---- pods ----------------------------------------------------------------------------------------


class Pod:
    def __init__(self, number, namespace, cgroup):
        self.name = f"unrest-{number}"
        self.namespace = namespace
        self.addresses = [f"10.{90 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}"]
        self.addresses.append(f"fd90::{number + 1:x}")
        self.label = self.asked = None
        self.uid = None
        self.cgroup_root = cgroup
        self.process = None
        self.runs = False
        self.busy = False

    @property
    def path(self):
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"

    @property
    def cgroup(self):
        return os.path.join(self.cgroup_root, f"pod{self.uid}")

    def labels(self):
        return {} if self.label is None else {MODE_LABEL: self.label}

    def create(self, client, node):
        body = {
            "metadata": {"name": self.name, "labels": self.labels()},
            "spec": {
                "nodeName": node,
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "app", "image": "app"}],
            },
        }
        path = f"/api/v1/namespaces/{self.namespace}/pods"
        self.uid = client.ask("POST", path, body)["metadata"]["uid"]

    def sandbox(self):
        run("ip", "netns", "add", self.name)
        # Not through lo: what leaves there stays in the pod, and no netfilter engine captures it.
        commands = ["link set lo up", "link add eth0 type veth peer name wire"]
        commands += ["link set wire up", "link set eth0 up"]
        commands += [f"addr add {self.addresses[0]}/32 dev eth0"]
        commands += [f"addr add {self.addresses[1]}/128 dev eth0 nodad"]
        commands += ["route add default dev eth0"]
        run("ip", "-n", self.name, "-batch", "-", input="\n".join(commands), text=True)
        os.makedirs(os.path.join(self.cgroup, "app"))
        script = 'echo $$ >"$1"; exec nsenter --net="/run/netns/$2" -- sleep infinity'
        self.process = subprocess.Popen(
            ["sh", "-c", script, "sh", self.cgroup + "/app/cgroup.procs", self.name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def sandbox_end(self):
        run("ip", "netns", "delete", self.name)
        self.process.kill()
        self.process.wait()
        os.rmdir(os.path.join(self.cgroup, "app"))
        os.rmdir(self.cgroup)

    def running(self, client):
        """Kubelet's word. Returns the version."""
        status = {
            "phase": "Running",
            "podIP": self.addresses[0],
            "podIPs": [{"ip": address} for address in self.addresses],
        }
        answer = client.ask("PATCH", self.path + "/status", {"status": status}, MERGE_PATCH)
        return int(answer["metadata"]["resourceVersion"])


def says(annotations, wanted):
    """Are the agent's annotations those of a pod that is, or is not, in the mesh?"""
    if not wanted:
        return REDIRECTION not in annotations and STATUS not in annotations
    try:
        mode = json.loads(annotations.get(STATUS, "{}")).get("mode")
    except ValueError:
        return False
    return annotations.get(REDIRECTION) == "enabled" and mode == "ambient"


class Settling:
    """What was changed, and whether kernel and annotations have followed. A change of a pod takes
    the place of the one before; only what began from rest is measured."""

    def __init__(self, prober):
        self.prober = prober
        self.lock = threading.Lock()
        self.number = 0
        self.kernel = {}  # number: (name, kind, since, measured)
        self.kernel_of = {}  # name: number
        self.annotated = {}  # key: (wanted, version, kind, since, measured)
        self.last = {}  # key: (version, annotations, when)
        self.lags = {}
        self.superseded = 0

    def changed(self, pod, wanted, version, kind, since, kernel=True):
        key = (pod.namespace, pod.name)
        with self.lock:
            at_rest = key not in self.annotated and pod.name not in self.kernel_of
            self.superseded += not at_rest
            if kernel:
                self.number += 1
                self.kernel.pop(self.kernel_of.get(pod.name), None)
                self.kernel[self.number] = (pod.name, kind, since, at_rest)
                self.kernel_of[pod.name] = self.number
                self.prober.say("expect", pod.name, self.number, wanted)
            self.annotated[key] = (wanted, version, kind, since, at_rest)
            self.look(key)

    def gone(self, pod):
        key = (pod.namespace, pod.name)
        with self.lock:
            self.prober.say("forget", pod.name)
            self.kernel.pop(self.kernel_of.pop(pod.name, None), None)
            self.annotated.pop(key, None)
            self.last.pop(key, None)

    def note(self, what, kind, since, at, measured):
        if measured and at > since:  # else there was nothing to do
            self.lags.setdefault(kind, {}).setdefault(what, []).append(at - since)

    def met(self, number, at):
        with self.lock:
            if number in self.kernel:
                name, kind, since, measured = self.kernel.pop(number)
                del self.kernel_of[name]
                self.note("kernel", kind, since, at, measured)

    def look(self, key):
        wanted, version, kind, since, measured = self.annotated[key]
        seen, annotations, at = self.last.get(key, (0, {}, 0))
        if seen >= version and says(annotations, wanted):
            del self.annotated[key]
            self.note("annotation", kind, since, at, measured)

    def event(self, change, metadata):
        key = (metadata["namespace"], metadata["name"])
        at = time.monotonic()
        if change == "DELETED":
            return
        with self.lock:
            version = int(metadata["resourceVersion"])
            self.last[key] = (version, metadata.get("annotations", {}), at)
            if key in self.annotated:
                self.look(key)

    def unsettled(self):
        with self.lock:
            kernel = [name for name, *_ in self.kernel.values()]
            return kernel, ["/".join(key) for key in self.annotated]


def watch(node, hear):
    """Every pod of the node, whenever it changes, in a thread of its own."""
    selector = urllib.parse.quote(f"spec.nodeName={node}")
    path = f"/api/v1/pods?fieldSelector={selector}"
    client = Client(timeout=600)
    version = client.ask("GET", path)["metadata"]["resourceVersion"]
    connection = http.client.HTTPSConnection(client.address, context=client.tls, timeout=600)
    connection.request("GET", f"{path}&watch=1&resourceVersion={version}")
    answer = connection.getresponse()

    def follow():
        for line in answer:
            event = json.loads(line)
            hear(event["type"], event["object"]["metadata"])

    threading.Thread(target=follow, daemon=True).start()


# ---- the agent -----------------------------------------------------------------------------------


class Agent:
    def __init__(self, pid, run_dir):
        self.pid = pid
        self.run_dir = run_dir
        self.peak = {}

    def memory(self):
        """Resident kilobytes: of the program, and of its heap."""
        with open(f"/proc/{self.pid}/status") as file:
            found = {line[:5]: int(line.split()[1]) for line in file if line.startswith("VmRSS")}
        in_heap, heap = False, 0
        with open(f"/proc/{self.pid}/smaps") as file:
            for line in file:
                if "-" in line.split()[0]:
                    in_heap = line.rstrip().endswith("[heap]")
                elif in_heap and line.startswith("Rss:"):
                    heap += int(line.split()[1])
        now = {"rssKb": found["VmRSS"], "heapKb": heap}
        for name, value in now.items():
            self.peak[name] = max(value, self.peak.get(name, 0))
        return now

    def cpu_s(self):
        with open(f"/proc/{self.pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ask(self, operation):
        """The answer, which comes in parts where it is long."""
        text = ""
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            sock.settimeout(10)
            sock.connect(os.path.join(self.run_dir, "agent.sock"))
            sock.send(json.dumps({"v": 1, "op": operation}).encode())
            while True:
                answer = json.loads(sock.recv(1 << 20))
                if "part" not in answer:
                    return answer
                text += answer["part"]
                if not answer["more"]:
                    return json.loads(text)

    def status(self):
        return self.ask("status")

    def counts(self):
        status = self.status()
        kubernetes = status["enrolment"]["kubernetes"]
        written = kubernetes["written"]
        return {
            "requests": kubernetes["client"]["requests"],
            "written": written["written"],
            "failedWrites": written["failed"],
            "joined": status["enrolment"]["joined"],
            "left": status["enrolment"]["left"],
        }

    def ambient(self):
        pods = self.ask("pods")["pods"]
        return {pod["name"] for pod in pods if pod["mode"] == "ambient"}


# ---- unrest --------------------------------------------------------------------------------------


class Unrest:
    def __init__(self, options):
        self.options = options
        self.random = random.Random(options.seed)
        self.lock = threading.RLock()
        self.prober = Prober(options.cgroup)
        self.settling = Settling(self.prober)
        self.agent = Agent(options.agent, options.run_dir)
        self.namespaces = {f"unrest-{i}": False for i in range(NAMESPACES)}
        self.pods = []
        self.made = 0
        self.conflicts = 0
        self.done = dict.fromkeys(SHARES, 0) | {"namespace": 0, "contest": 0}
        self.contested = queue.Queue()
        self.is_contesting = False
        self.probed = {}
        self.probed_event = threading.Event()

    def wanted(self, pod):
        if pod.asked:
            return pod.asked == "ambient"
        if pod.label:
            return pod.label == "ambient"
        return self.namespaces[pod.namespace]

    def take(self, skip=0):
        """A pod that nobody else is at, or None."""
        with self.lock:
            free = [pod for pod in self.pods[skip:] if pod.runs and not pod.busy]
            if not free:
                return None
            pod = self.random.choice(free)
            pod.busy = True
            return pod

    def patch(self, client, pod, metadata):
        answer = client.ask("PATCH", pod.path, {"metadata": metadata}, MERGE_PATCH)
        return int(answer["metadata"]["resourceVersion"])

    def changed(self, pod, version, kind, since, kernel=True):
        with self.lock:
            self.settling.changed(pod, self.wanted(pod), version, kind, since, kernel)

    # Each of them with the pod held, but for put, whose conflicts are meant.

    def flip(self, client, pod):
        since, to = time.monotonic(), not self.wanted(pod)
        if pod.asked or self.random.random() < 0.3:
            pod.asked = None if pod.asked else "ambient" if to else "none"
            version = self.patch(client, pod, {"annotations": {ASKED: pod.asked}})
        else:
            pod.label = "ambient" if to else "none"
            version = self.patch(client, pod, {"labels": {MODE_LABEL: pod.label}})
        self.changed(pod, version, "flip", since)

    def noise(self, client, pod):
        kind = self.random.choice(["labels", "annotations"])
        self.patch(client, pod, {kind: {"test/noise": str(self.random.random())}})

    def rob(self, client, pod):
        """A controller that removes what it does not know, or one that writes it itself."""
        key = self.random.choice([REDIRECTION, STATUS])
        value = self.random.choice([None, "garbage"])
        since = time.monotonic()
        version = self.patch(client, pod, {"annotations": {key: value}})
        self.changed(pod, version, "robbed", since, kernel=False)

    def put(self, client, _):
        """Reads all of a pod that the agent is about to write, if there is one, and some time
        later writes all of it back."""
        _, settling = self.settling.unsettled()
        with self.lock:
            pods = [pod for pod in self.pods if pod.runs]
            near = [pod for pod in pods if f"{pod.namespace}/{pod.name}" in settling]
            pod = self.random.choice(near or pods)
        for _ in range(10):
            try:
                body = client.ask("GET", pod.path)
                body["metadata"].setdefault("annotations", {})["test/put"] = str(time.monotonic())
                time.sleep(0.02)
                client.ask("PUT", pod.path, body)
                return
            except ApiError as error:
                if error.code == NOT_FOUND:
                    return
                if error.code != CONFLICT:
                    raise
                with self.lock:
                    self.conflicts += 1

    def come(self, client, _):
        with self.lock:
            number = self.made
            self.made += 1
            namespace = self.random.choice(list(self.namespaces))
            pod = Pod(number, namespace, self.options.cgroup)
            pod.label = self.random.choice([None, "ambient", "none"])
            pod.busy = True
            self.pods.append(pod)
        pod.create(client, self.options.node)
        pod.sandbox()
        since = time.monotonic()
        version = pod.running(client)
        with self.lock:
            pod.runs = True
            pod.busy = False
            self.changed(pod, version, "come", since)

    def go(self, client, pod):
        """In one order or the other; the pod is still held when it is no more."""
        with self.lock:
            self.pods.remove(pod)
        self.settling.gone(pod)
        ends = [pod.sandbox_end, lambda: client.ask("DELETE", pod.path + "?gracePeriodSeconds=0")]
        self.random.shuffle(ends)
        for end in ends:
            end()
        self.settling.gone(pod)

    def flip_namespace(self, client):
        """All of its pods that say nothing themselves. Nobody touches them meanwhile."""
        name = self.random.choice(list(self.namespaces))
        with self.lock:
            held = [pod for pod in self.pods if pod.namespace == name and not pod.busy]
            for pod in held:
                pod.busy = True
            self.namespaces[name] = not self.namespaces[name]
        label = "ambient" if self.namespaces[name] else None
        since = time.monotonic()
        body = {"metadata": {"labels": {MODE_LABEL: label}}}
        client.ask("PATCH", f"/api/v1/namespaces/{name}", body, MERGE_PATCH)
        with self.lock:
            for pod in self.pods:
                if pod.namespace == name and pod.runs and not pod.label and not pod.asked:
                    self.changed(pod, 0, "namespace", since)
            for pod in held:
                pod.busy = False
        self.done["namespace"] += 1

    def job(self, kind):
        holds = kind not in ("come", "put")
        pod = self.take(CONTESTED if kind == "go" else 0) if holds else None
        if holds and pod is None:
            return None

        def do(client):
            getattr(self, kind)(client, pod)
            with self.lock:
                self.done[kind] += 1
                if pod and kind != "go":
                    pod.busy = False

        return do

    def contest(self):
        """Removes what the agent has written, each time that it has."""
        client = Client()
        while (pod := self.contested.get()) is not None:
            since = time.monotonic()
            try:
                removed = {"annotations": {REDIRECTION: None, STATUS: None}}
                version = self.patch(client, pod, removed)
            except ApiError as error:
                if error.code != NOT_FOUND:
                    raise
                continue
            self.changed(pod, version, "contested", since, kernel=False)
            self.done["contest"] += 1

    def hear(self, change, metadata):
        self.settling.event(change, metadata)
        if self.is_contesting and STATUS in metadata.get("annotations", {}):
            for pod in self.pods[:CONTESTED]:
                if pod.name == metadata["name"]:
                    self.contested.put(pod)

    # ---- all of it

    def setup(self):
        client = Client()
        for name in self.namespaces:
            client.ask("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
        watch(self.options.node, self.hear)
        threading.Thread(target=self.listen, daemon=True).start()
        workers = Workers(4)
        for _ in range(self.options.pods):
            workers.do(lambda client: self.come(client, None))
        workers.finish()
        self.settle(self.options.patience)

    def listen(self):
        for verb, *words in self.prober.answers():
            if verb == "met":
                self.settling.met(int(words[0]), float(words[1]))
            else:
                self.probed[words[0]] = words[1]
                if len(self.probed) == len(self.pods):
                    self.probed_event.set()

    def settle(self, seconds):
        start = time.monotonic()
        while any(self.settling.unsettled()):
            if time.monotonic() > start + seconds:
                kernel, annotated = self.settling.unsettled()
                raise SystemExit(
                    f"unrest.py: after {seconds} s the kernel does not do what is wanted of "
                    f"{len(kernel)} pods ({', '.join(kernel[:5])}), and {len(annotated)} do not "
                    f"say it ({', '.join(annotated[:5])})"
                )
            time.sleep(0.05)
        return time.monotonic() - start

    def disturb(self):
        workers = Workers(8)
        kinds, weights = list(SHARES), list(SHARES.values())
        start = time.monotonic()
        every = max(1, int(self.options.rate * self.options.namespace_every))
        contester = threading.Thread(target=self.contest, daemon=True)
        contester.start()
        self.is_contesting = True
        for number in range(int(self.options.rate * self.options.seconds)):
            pause = start + number / self.options.rate - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            if number % every == every - 1:
                workers.do(self.flip_namespace)
            job = self.job(self.random.choices(kinds, weights)[0])
            if job:
                workers.do(job)
            if number % 50 == 0:
                self.agent.memory()
        workers.finish()
        self.is_contesting = False
        self.contested.put(None)
        contester.join()
        return sum(self.done.values()) / (time.monotonic() - start)

    def captured(self):
        """Which of the pods the kernel redirects."""
        self.probed.clear()
        self.probed_event.clear()
        for pod in self.pods:
            self.prober.say("ask", pod.name)
        if not self.probed_event.wait(30):
            raise SystemExit("unrest.py: the kernel was not asked about every pod")
        return {name for name, answer in self.probed.items() if answer == "True"}

    def annotated(self):
        """Which of them say that they are; those that say something in between are "unclear"."""
        says_so, unclear = set(), set()
        for namespace in self.namespaces:
            for item in Client().list(f"/api/v1/namespaces/{namespace}/pods"):
                annotations = item["metadata"].get("annotations", {})
                if says(annotations, True):
                    says_so.add(item["metadata"]["name"])
                elif not says(annotations, False):
                    unclear.add(item["metadata"]["name"])
        return says_so, unclear

    def differences(self):
        """Nothing is taken from what was heard on the way."""
        living = {pod.name for pod in self.pods}
        wanted = {pod.name for pod in self.pods if self.wanted(pod)}
        says_so, unclear = self.annotated()
        # An ended namespace that no plugin tells of stays in the agent until the next sweep.
        found = {
            "captured by the kernel": self.captured() ^ wanted,
            "ambient in the agent": (self.agent.ambient() & living) ^ wanted,
            "annotated": says_so ^ wanted,
            "unclear": unclear,
        }
        told = self.agent.status()["enrolment"]["ztunnel"]["pods"]
        found["in ztunnel"] = {told - len(wanted)} - {0}
        return {what: sorted(names) for what, names in found.items() if names}

    def converge(self):
        """Until all agree, and the agent does nothing any more: what is wanted may by chance be
        what there was before an earlier change, which the agent has still to act upon."""
        start = time.monotonic()
        while True:
            counts = self.agent.counts()
            differ = self.differences()
            if not differ and counts == self.agent.counts():
                return time.monotonic() - start
            if time.monotonic() > start + self.options.patience:
                raise SystemExit(f"unrest.py: not as wanted: {differ}")
            time.sleep(0.05)

    def result(self, per_second, before, settled):
        after = self.agent.counts()
        lags = {}
        for kind, of_kind in self.settling.lags.items():
            for what, values in of_kind.items():
                values = sorted(round(1000 * value) for value in values)
                lags.setdefault(kind, {})[what] = {
                    "n": len(values),
                    "p50Ms": percentile(values, 0.5),
                    "p99Ms": percentile(values, 0.99),
                    "maxMs": values[-1],
                }
        return {
            "pods": len(self.pods),
            "ambient": sum(self.wanted(pod) for pod in self.pods),
            "perSecond": round(per_second, 1),
            "done": self.done,
            "conflictsOfOthers": self.conflicts,
            "fromUnrest": self.settling.superseded,
            "settledAfterS": round(settled, 2),
            "lags": lags,
            "agent": {name: after[name] - before[name] for name in after},
        }

    def end(self):
        for pod in self.pods:
            if pod.process:
                pod.process.kill()
                pod.process.wait()

    def run(self):
        self.setup()
        self.settling.lags.clear()
        self.settling.superseded = 0
        self.done = dict.fromkeys(self.done, 0)
        memory, cpu, counts = self.agent.memory(), self.agent.cpu_s(), self.agent.counts()
        per_second = self.disturb()
        settled = self.settle(self.options.patience) + self.converge()
        result = self.result(per_second, counts, settled)
        result["cpuS"] = round(self.agent.cpu_s() - cpu, 2)
        result["memory"] = {"start": memory, "end": self.agent.memory(), "peak": self.agent.peak}
        print(json.dumps(result))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--node", required=True)
    parser.add_argument("--cgroup", required=True, help="where pods' cgroups are, and the prober's")
    parser.add_argument("--agent", type=int, required=True, help="its pid")
    parser.add_argument("--run-dir", required=True, help="the agent's")
    parser.add_argument("--pods", type=int, default=250)
    parser.add_argument("--rate", type=float, default=25, help="changes a second")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--namespace-every", type=float, default=10, help="seconds")
    parser.add_argument("--patience", type=float, default=60, help="seconds until all is settled")
    parser.add_argument("--seed", type=int, default=1)
    unrest = Unrest(parser.parse_args())
    try:
        unrest.run()
    finally:
        unrest.end()


if __name__ == "__main__":
    main()
