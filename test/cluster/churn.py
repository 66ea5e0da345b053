#!/usr/bin/python3
# SPDX-License-Identifier: Apache-2.0
"""Load for a test cluster: many namespaces and pods, and changes to the pods at a steady rate.

  churn.py fill      makes namespaces and pods; some of the pods are on the node that matters
  churn.py change    changes labels and annotations, and writes down when
  churn.py conflict  several writers of one pod, none of whom may lose a write
  churn.py stamp     notes when each line of watch_rig's output came
  churn.py lag       how long after each change somebody who watches had seen it

It is the cluster's administrator: CLUSTER_DIR has the keys, CLUSTER_SERVER is the address. Times
are of CLOCK_MONOTONIC, in seconds, so that any process of this machine can compare its own.
"""

import argparse
import http.client
import json
import os
import queue
import random
import ssl
import sys
import threading
import time
import urllib.parse

MERGE_PATCH = "application/merge-patch+json"
CONFLICT = 409
# What a client does about these is ask again.
PASSING = (429, 500, 502, 503, 504)


class ApiError(Exception):
    def __init__(self, code, text):
        super().__init__(f"{code}: {text[:300]}")
        self.code = code


class Client:
    """One connection, kept open; made again after whatever breaks it."""

    def __init__(self, timeout=10):
        pki = os.path.join(os.environ["CLUSTER_DIR"], "pki")
        self.tls = ssl.create_default_context(cafile=os.path.join(pki, "ca.crt"))
        self.tls.load_cert_chain(os.path.join(pki, "admin.crt"), os.path.join(pki, "admin.key"))
        self.address = urllib.parse.urlparse(os.environ["CLUSTER_SERVER"]).netloc
        self.timeout = timeout
        self.connection = None
        self.repeats = 0

    def once(self, method, path, body=None, content_type="application/json"):
        if self.connection is None:
            self.connection = http.client.HTTPSConnection(
                self.address, context=self.tls, timeout=self.timeout
            )
        data = None if body is None else json.dumps(body).encode()
        try:
            self.connection.request(method, path, data, {"Content-Type": content_type})
            answer = self.connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            self.connection = None
            raise
        if answer.status >= 400:
            raise ApiError(answer.status, text.decode(errors="replace"))
        return json.loads(text)

    def ask(self, method, path, body=None, content_type="application/json", patience=30):
        """Asks until there is an answer: the API server may be killed and started meanwhile."""
        end = time.monotonic() + patience
        while True:
            try:
                return self.once(method, path, body, content_type)
            except (OSError, http.client.HTTPException, ApiError) as error:
                passing = not isinstance(error, ApiError) or error.code in PASSING
                if not passing or time.monotonic() > end:
                    raise
            self.repeats += 1
            time.sleep(0.1)

    def list(self, path, page=500):
        token = ""
        while True:
            query = urllib.parse.urlencode({"limit": page, "continue": token})
            answer = self.ask("GET", f"{path}?{query}")
            yield from answer["items"]
            token = answer["metadata"].get("continue", "")
            if not token:
                return


class Workers:
    """Does jobs over several connections. The first failure ends all of it."""

    def __init__(self, count):
        self.jobs = queue.Queue(maxsize=10 * count)
        self.failure = None
        self.repeats = 0
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.work, daemon=True) for _ in range(count)]
        for thread in self.threads:
            thread.start()

    def work(self):
        client = Client()
        while (job := self.jobs.get()) is not None:
            if self.failure:
                continue
            try:
                job(client)
            except Exception as error:  # whatever it is, finish() raises it
                self.failure = error
        with self.lock:
            self.repeats += client.repeats

    def do(self, job):
        self.jobs.put(job)

    def finish(self):
        for _ in self.threads:
            self.jobs.put(None)
        for thread in self.threads:
            thread.join()
        if self.failure:
            raise self.failure


def pod_path(pod):
    return f"/api/v1/namespaces/{pod['namespace']}/pods/{pod['name']}"


def create_if_new(client, path, body):
    try:
        client.ask("POST", path, body)
    except ApiError as error:
        # Also after a request whose answer was lost.
        if error.code != CONFLICT:
            raise


def namespace_name(number):
    return f"load-{number:05d}"


def create_pod(client, number, options):
    namespace = namespace_name(number % options.namespaces)
    # The node that matters gets its pods evenly spread over the namespaces.
    here = number * options.on_node // options.pods != (number + 1) * options.on_node // options.pods
    pod = {"namespace": namespace, "name": f"pod-{number:05d}"}
    create_if_new(
        client,
        f"/api/v1/namespaces/{namespace}/pods",
        {
            "metadata": {"name": pod["name"], "labels": {"app": "load"}},
            "spec": {
                "nodeName": options.node if here else f"other-{number % options.other_nodes}",
                "terminationGracePeriodSeconds": 0,
                "containers": [{"name": "app", "image": "app"}],
            },
        },
    )
    if here:
        address = f"10.{64 + number // 65536}.{number // 256 % 256}.{number % 256}"
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}]}
        client.ask("PATCH", pod_path(pod) + "/status", {"status": status}, MERGE_PATCH)


def fill(options):
    start = time.monotonic()
    labels = json.loads(options.namespace_labels)
    workers = Workers(options.connections)
    for number in range(options.namespaces):
        body = {"metadata": {"name": namespace_name(number), "labels": labels}}
        workers.do(lambda client, body=body: create_if_new(client, "/api/v1/namespaces", body))
    workers.finish()
    middle = time.monotonic()
    workers = Workers(options.connections)
    for number in range(options.pods):
        workers.do(lambda client, number=number: create_pod(client, number, options))
    workers.finish()
    return {
        "namespaces": options.namespaces,
        "namespaces_seconds": round(middle - start, 1),
        "pods": options.pods,
        "pods_seconds": round(time.monotonic() - middle, 1),
    }


def pods_of_load():
    pods = []
    for item in Client().list("/api/v1/pods"):
        if item["metadata"]["namespace"].startswith("load-"):
            pods.append(
                {
                    "namespace": item["metadata"]["namespace"],
                    "name": item["metadata"]["name"],
                    "uid": item["metadata"]["uid"],
                    "node": item["spec"].get("nodeName", ""),
                }
            )
    return pods


def parse_change(text):
    """label:KEY=VALUE,VALUE or annotation:KEY=VALUE,...: each change takes the next value, and an
    empty one removes the key. Without values it is the number of the change."""
    kind, _, rest = text.partition(":")
    key, _, values = rest.partition("=")
    if kind not in ("label", "annotation") or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not label:KEY=VALUES or annotation:KEY=VALUES")
    return kind + "s", key, values.split(",") if values else None


class Changes:
    """The changes of one run, and the file that they are written to."""

    def __init__(self, options, log):
        self.options = options
        self.log = log
        self.lock = threading.Lock()
        self.made = 0
        # Two changes of one pod at a time would leave open which came first.
        self.busy = set()

    def patch(self, number, pod):
        kind, key, values = self.options.what[number % len(self.options.what)]
        if values is None:
            return kind, key, str(number)
        round_of_pod = pod["changes"] = pod.get("changes", -1) + 1
        return kind, key, values[round_of_pod % len(values)] or None

    def make(self, client, number, pod, due):
        kind, key, value = self.patch(number, pod)
        sent = time.monotonic()
        body = {"metadata": {kind: {key: value}}}
        answer = client.ask("PATCH", pod_path(pod), body, MERGE_PATCH)
        line = {
            "due": due,
            "sent": sent,
            "answered": time.monotonic(),
            "node": pod["node"],
            "namespace": pod["namespace"],
            "name": pod["name"],
            "uid": pod["uid"],
            "resourceVersion": answer["metadata"]["resourceVersion"],
            kind: {key: value},
        }
        with self.lock:
            self.log.write(json.dumps(line) + "\n")
            self.made += 1
            self.busy.discard(pod["uid"])

    def take(self, random_numbers, pods, workers):
        while not workers.failure:
            pod = random_numbers.choice(pods)
            with self.lock:
                if pod["uid"] not in self.busy:
                    self.busy.add(pod["uid"])
                    return pod
            time.sleep(0.001)
        return None


def change(options):
    pods = pods_of_load()
    if options.only_node:
        pods = [pod for pod in pods if pod["node"] == options.only_node]
    if not pods:
        raise SystemExit("churn.py: there are no pods to change")
    random_numbers = random.Random(options.seed)
    workers = Workers(options.connections)
    with open(options.log, "w", encoding="utf-8", buffering=1) as log:
        changes = Changes(options, log)
        start = time.monotonic()
        late = 0.0
        for number in range(int(options.rate * options.seconds)):
            due = start + number / options.rate
            pause = due - time.monotonic()
            if pause > 0:
                time.sleep(pause)
            late = max(late, -pause)
            pod = changes.take(random_numbers, pods, workers)
            if pod is None:
                break
            workers.do(
                lambda client, number=number, pod=pod, due=due: changes.make(client, number, pod, due)
            )
        workers.finish()
        seconds = time.monotonic() - start
    return {
        "changes": changes.made,
        "per_second": round(changes.made / seconds, 1),
        "worst_delay_seconds": round(late, 3),
        "requests_repeated": workers.repeats,
        "pods": len(pods),
    }


def replace_with_version(client, pod, writer, count):
    """Reads, changes and writes back: the API server refuses what is based on an old version."""
    conflicts = 0
    for number in range(1, count + 1):
        while True:
            body = client.ask("GET", pod_path(pod))
            body["metadata"].setdefault("annotations", {})[f"test/{writer}"] = str(number)
            try:
                client.ask("PUT", pod_path(pod), body)
                break
            except ApiError as error:
                if error.code != CONFLICT:
                    raise
                conflicts += 1
    return conflicts


def patch_status(client, pod, writer, count):
    """As the agent writes: a merge patch without a version, of the status subresource."""
    conflicts = 0
    for number in range(1, count + 1):
        body = {"metadata": {"annotations": {f"test/{writer}": str(number)}}}
        while True:
            try:
                client.ask("PATCH", pod_path(pod) + "/status", body, MERGE_PATCH)
                break
            except ApiError as error:
                if error.code != CONFLICT:
                    raise
                conflicts += 1
    return conflicts


def conflict(options):
    namespace, _, name = options.pod.partition("/")
    pod = {"namespace": namespace, "name": name}
    conflicts = {}
    failures = []

    def run(writer, write):
        try:
            conflicts[writer] = write(Client(), pod, writer, options.count)
        except Exception as error:  # shown below, with the other writers' results
            failures.append(f"{writer}: {error!r}")

    writers = {f"put-{i}": replace_with_version for i in range(options.writers)}
    writers |= {f"patch-{i}": patch_status for i in range(options.writers)}
    threads = [threading.Thread(target=run, args=item, daemon=True) for item in writers.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    annotations = Client().ask("GET", pod_path(pod))["metadata"].get("annotations", {})
    for writer in writers:
        got = annotations.get(f"test/{writer}")
        if got != str(options.count):
            failures.append(f"{writer}: wrote {options.count} last, and the pod has {got}")
    if failures:
        raise SystemExit("churn.py: " + "; ".join(failures))
    return {"writers": len(writers), "writes_each": options.count, "conflicts": conflicts}


def read_lines(path):
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            line = line.strip()
            if line.startswith("{"):
                yield json.loads(line)


def stamp(options):
    with open(options.lines, "w", encoding="utf-8", buffering=1) as lines:
        with open(options.seen, "w", encoding="utf-8", buffering=1) as stamps:
            for line in sys.stdin:
                now = time.monotonic()
                lines.write(line)
                words = line.split()
                if len(words) == 3 and words[0] in ("seen", "changed"):
                    stamp_line = {"seen": now, "pod": words[1], "resourceVersion": words[2]}
                    stamps.write(json.dumps(stamp_line) + "\n")


def percentile(values, share):
    """The nearest-rank percentile of sorted values."""
    rank = -int(-share * len(values) // 1)
    return values[max(0, rank - 1)]


def lag(options):
    """A change has been seen when its version, or a later one of the same pod, has been."""
    seen = {}
    for line in read_lines(options.seen):
        key = line.get("uid") or line["pod"]
        seen.setdefault(key, []).append((line["seen"], int(line["resourceVersion"])))
    lags = []
    unseen = []
    for line in read_lines(options.changes):
        if options.only_node and line["node"] != options.only_node:
            continue
        version = int(line["resourceVersion"])
        pod = f"{line['namespace']}/{line['name']}"
        times = [at for key in (line["uid"], pod) for at, got in seen.get(key, []) if got >= version]
        if times:
            lags.append(min(times) - line["sent"])
        else:
            unseen.append(f"{pod} {version}")
    lags.sort()
    result = {"changes": len(lags) + len(unseen), "unseen": len(unseen)}
    if lags:
        for name, value in (("p50", percentile(lags, 0.5)), ("p99", percentile(lags, 0.99)), ("max", lags[-1])):
            result[name + "_ms"] = round(1000 * value, 1)
    if unseen:
        result["first_unseen"] = unseen[:5]
    return result


def parser():
    top = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = top.add_subparsers(dest="verb", required=True)

    verb = verbs.add_parser("fill")
    verb.set_defaults(run=fill)
    verb.add_argument("--namespaces", type=int, default=5000)
    verb.add_argument("--namespace-labels", default="{}", help="a JSON object")
    verb.add_argument("--pods", type=int, default=5000)
    verb.add_argument("--node", required=True, help="the node that matters")
    verb.add_argument("--on-node", type=int, default=250, help="pods on it")
    verb.add_argument("--other-nodes", type=int, default=19)
    verb.add_argument("--connections", type=int, default=8)

    verb = verbs.add_parser("change")
    verb.set_defaults(run=change)
    verb.add_argument("--rate", type=float, default=50, help="changes a second")
    verb.add_argument("--seconds", type=float, default=30)
    verb.add_argument("--log", required=True, help="a JSON line for each change")
    verb.add_argument("--only-node", default="", help="leave the pods of other nodes alone")
    verb.add_argument("--what", type=parse_change, nargs="+", default=[("labels", "test/change", None)])
    verb.add_argument("--connections", type=int, default=8)
    verb.add_argument("--seed", type=int, default=1)

    verb = verbs.add_parser("conflict")
    verb.set_defaults(run=conflict)
    verb.add_argument("--pod", required=True, help="NAMESPACE/NAME")
    verb.add_argument("--writers", type=int, default=2, help="of each kind")
    verb.add_argument("--count", type=int, default=50, help="writes of each")

    verb = verbs.add_parser("stamp")
    verb.set_defaults(run=stamp)
    verb.add_argument("--lines", required=True, help="where standard input is copied to")
    verb.add_argument("--seen", required=True, help="what `lag` reads")

    verb = verbs.add_parser("lag")
    verb.set_defaults(run=lag)
    verb.add_argument("--changes", required=True, help="what `change --log` wrote")
    verb.add_argument("--seen", required=True, help='JSON lines with "seen", "resourceVersion", and "uid" or "pod" (NAMESPACE/NAME)')
    verb.add_argument("--only-node", default="")
    return top


def main():
    options = parser().parse_args()
    result = options.run(options)
    if result is not None:
        print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
