# SPDX-License-Identifier: Apache-2.0
"""sockmesh-cni as a runtime sees it: inputs, versions and verbs, and an agent that misbehaves.

Arguments select tests by a part of their name.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

from fake_agent import DIE, HANG, FakeAgent, ok, refuse

PLUGIN = os.path.join(os.environ["BUILD_DIR"], "bin", "sockmesh-cni")
CNI_BIN = os.environ.get("CNI_PLUGIN_DIR", "/usr/lib/cni")
VERSIONS = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]
ANNOTATIONS = "io.kubernetes.cri.pod-annotations"
ID = "0123456789abcdef"
UID = "11112222-3333-4444-5555-666677778888"
SIDECAR = {"sidecar.istio.io/status": '{"initContainers":[]}'}

TESTS = []


class Skip(Exception):
    pass


def test(fn):
    TESTS.append(fn)
    return fn


def equal(got, want, what=""):
    assert got == want, f"{what}: got {got!r}, want {want!r}"


# ---- the runtime's side -------------------------------------------------------------------------


class Outcome:
    def __init__(self, status, stdout, stderr, seconds):
        self.status, self.stdout, self.stderr, self.seconds = status, stdout, stderr, seconds

    def __repr__(self):
        return f"status {self.status}, stdout {self.stdout!r}, stderr {self.stderr!r}"

    @property
    def error(self):
        """The error object, checked as the specification describes it."""
        assert self.status != 0, f"no error: {self}"
        body = json.loads(self.stdout)
        assert body["cniVersion"] in VERSIONS, self
        assert isinstance(body["code"], int) and isinstance(body["msg"], str) and body["msg"], self
        assert "\n" not in body["msg"], self
        return body

    def expect_code(self, code, *parts):
        body = self.error
        assert body["code"] == code, f"code is not {code}: {self}"
        text = body["msg"] + " " + body.get("details", "")
        for part in parts:
            assert part in text, f"{part!r} is not in the message: {self}"
        return body

    def expect_success(self):
        assert self.status == 0, str(self)
        return json.loads(self.stdout) if self.stdout else None


def run_raw(environment, stdin, timeout=30):
    start = time.monotonic()
    done = subprocess.run(
        [PLUGIN], env=environment, input=stdin, capture_output=True, timeout=timeout, check=False
    )
    return Outcome(
        done.returncode,
        done.stdout.decode(),
        done.stderr.decode(errors="replace"),
        time.monotonic() - start,
    )


def pod_args(namespace="default", name="web-1", uid=UID, container=ID):
    return (
        f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};"
        f"K8S_POD_INFRA_CONTAINER_ID={container};K8S_POD_UID={uid}"
    )


def prev_result(version="1.0.0", netns="/run/netns/x"):
    ip4 = {"address": "10.88.0.5/16", "gateway": "10.88.0.1", "interface": 2}
    ip6 = {"address": "fd88::5/64", "interface": 2}
    if version < "1.0.0":
        ip4["version"], ip6["version"] = "4", "6"
    return {
        "cniVersion": version,
        "interfaces": [
            {"name": "cni0", "mac": "00:11:22:33:44:55"},
            {"name": "veth1", "mac": "00:11:22:33:44:56"},
            {"name": "eth0", "mac": "00:11:22:33:44:57", "sandbox": netns},
        ],
        "ips": [ip4, ip6],
        "routes": [{"dst": "0.0.0.0/0"}],
        "dns": {},
    }


def conf(agent=None, version="1.0.0", annotations=None, **keys):
    """A configuration; annotations None: the runtime does not pass any; key=None removes it."""
    body = {
        "cniVersion": version,
        "name": "net",
        "type": "sockmesh-cni",
        "prevResult": prev_result(version),
        "runDir": agent.run_dir if agent else "/nonexistent/sockmesh",
    }
    if annotations is not None:
        body["runtimeConfig"] = {ANNOTATIONS: annotations}
    body.update(keys)
    return {key: value for key, value in body.items() if value is not None}


def run(verb, body, netns=None, args=None, timeout=30, **environment):
    variables = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": ID,
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": netns or NETNS.path,
        "CNI_ARGS": pod_args() if args is None else args,
        "CNI_PATH": CNI_BIN,
    }
    variables.update(environment)
    variables = {key: value for key, value in variables.items() if value is not None}
    if not isinstance(body, bytes):
        body = json.dumps(body).encode()
    return run_raw(variables, body, timeout)


class Namespace:
    """A network namespace that lives as long as a process of ours."""

    def __init__(self):
        self.process = subprocess.Popen(
            ["unshare", "--net", "sh", "-c", "echo ready; exec sleep infinity"],
            stdout=subprocess.PIPE,
        )
        self.process.stdout.readline()
        self.path = f"/proc/{self.process.pid}/ns/net"
        self.inode = os.stat(self.path).st_ino

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


# ---- versions and verbs -------------------------------------------------------------------------


@test
def version_lists_all_and_echoes_the_one_asked_with():
    for asked in VERSIONS:
        body = run("VERSION", {"cniVersion": asked}).expect_success()
        equal(body, {"cniVersion": asked, "supportedVersions": VERSIONS})
    for odd in (b"", b"{", b'{"cniVersion":"9.9.9"}', b'{"cniVersion":3}'):
        equal(run("VERSION", odd).expect_success()["cniVersion"], "1.1.0", odd)


@test
def version_does_not_wait_for_a_stdin_that_stays_open():
    reader, writer = os.pipe()
    try:
        done = subprocess.run(
            [PLUGIN],
            env={"CNI_COMMAND": "VERSION"},
            stdin=reader,
            capture_output=True,
            timeout=20,
            check=True,
        )
    finally:
        os.close(reader)
        os.close(writer)
    equal(json.loads(done.stdout)["supportedVersions"], VERSIONS)


@test
def every_verb_in_every_version():
    first = {"ADD": 0, "DEL": 0, "CHECK": 2, "GC": 4, "STATUS": 4}
    with FakeAgent() as agent:
        for verb, since in first.items():
            for i, version in enumerate(VERSIONS):
                body = conf(agent, version, SIDECAR, **{"cni.dev/valid-attachments": []})
                outcome = run(verb, body)
                if i < since:
                    error = outcome.expect_code(1, version, verb)
                    equal(error["cniVersion"], version)
                elif verb == "ADD":
                    equal(outcome.expect_success(), prev_result(version), version)
                else:
                    equal(outcome.expect_success(), None, f"{verb} {version}")


@test
def versions_that_are_not_ours_are_error_1():
    for version in ("0.1.0", "0.2.0", "1.2.0", "2.0.0", "", "1.0", "one"):
        for verb in ("ADD", "DEL", "CHECK", "GC", "STATUS"):
            run(verb, conf(cniVersion=version)).expect_code(1, f'"{version}"', "0.3.0 to 1.1.0")
    body = conf()
    del body["cniVersion"]
    run("ADD", body).expect_code(1, "0.1.0")
    run("ADD", conf(cniVersion=1)).expect_code(7, "cniVersion", "1")


@test
def missing_and_invalid_environment_is_error_4_and_named():
    needs = {
        "ADD": ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"],
        "CHECK": ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_NETNS"],
        "DEL": ["CNI_CONTAINERID", "CNI_IFNAME"],
    }
    for verb, names in needs.items():
        for name in names:
            for value in (None, ""):
                run(verb, conf(), **{name: value}).expect_code(4, name)
        run(verb, conf(), **{name: None for name in names}).expect_code(4, ", ".join(names))
        for bad in ("-x", "../x", "a/b", "a b", "x" * 300, "_", "é"):
            run(verb, conf(), CNI_CONTAINERID=bad).expect_code(4, "CNI_CONTAINERID")
        for bad in (".", "..", "a/b", "a:b", "a b", "a\tb", "x" * 16):
            run(verb, conf(), CNI_IFNAME=bad).expect_code(4, "CNI_IFNAME")
    for bad in (None, ""):
        run(bad, conf()).expect_code(4, "CNI_COMMAND")
    for bad in ("add", "UPDATE", "A" * 5000):
        run(bad, conf()).expect_code(4, "CNI_COMMAND", bad[:60])


@test
def gc_and_status_need_no_attachment():
    none = dict(CNI_CONTAINERID=None, CNI_IFNAME=None, CNI_NETNS=None, CNI_ARGS=None)
    with FakeAgent() as agent:
        body = conf(agent, "1.1.0", **{"cni.dev/valid-attachments": None, "prevResult": None})
        run("STATUS", body, **none).expect_success()
        body["cni.dev/valid-attachments"] = [{"containerID": "a1", "ifname": "eth0"}]
        run("GC", body, **none).expect_success()
        equal(agent.requests[1]["valid"], [{"containerId": "a1", "ifName": "eth0"}])
        equal([r["op"] for r in agent.requests], ["status", "gc"])


@test
def gc_takes_both_names_of_the_list_and_refuses_to_guess():
    with FakeAgent() as agent:
        base = conf(agent, "1.1.0")
        run("GC", base).expect_code(7, "cni.dev/valid-attachments is missing")
        equal(agent.requests, [])
        for value, want in ((None, []), ([], [])):
            base["cni.dev/valid-attachments"] = value
            run("GC", base).expect_success()
            equal(agent.requests[-1]["valid"], want)
        del base["cni.dev/valid-attachments"]
        base["cni.dev/attachments"] = [{"containerID": "b", "ifname": "net1"}]
        run("GC", base).expect_success()
        equal(agent.requests[-1]["valid"], [{"containerId": "b", "ifName": "net1"}])
        asked = len(agent.requests)
        for bad, part in (
            ({}, "not an array"),
            ([3], "[0] is not an object"),
            ([{"containerID": "a"}], "ifname is missing"),
            ([{"containerID": "a", "ifname": "eth0"}, {"ifname": "x"}], "[1].containerID"),
            ([{"containerID": 5, "ifname": "x"}], "not a string"),
        ):
            base["cni.dev/attachments"] = bad
            run("GC", base).expect_code(7, part)
        equal(len(agent.requests), asked)


# ---- prevResult ---------------------------------------------------------------------------------


@test
def prev_result_is_handed_on_byte_for_byte():
    text = (
        '{ "zeta" : 1.10, "cniVersion":"%s" ,"ips":[],\n\t"big": 9007199254740993, "e": 1E+2,'
        ' "u":"\\u00e9\\/", "cniVersion2":{"cniVersion":"0"}, "dns":{}, "a":[ ] }'
    )
    with FakeAgent() as agent:
        for version in VERSIONS:
            result = text % version
            body = (
                '{"x":{"prevResult":1},"prev\\u0052esult":  %s ,"cniVersion":"%s","name":"n",'
                '"type":"sockmesh-cni","runDir":"%s"}' % (result, version, agent.run_dir)
            )
            outcome = run("ADD", body.encode())
            outcome.expect_success()
            equal(outcome.stdout, result + "\n", version)


@test
def a_result_has_the_configurations_version():
    with FakeAgent() as agent:
        for version in VERSIONS:
            for said in VERSIONS + [None]:
                result = prev_result(version)
                result["cniVersion"] = said
                if said is None:
                    del result["cniVersion"]
                got = run("ADD", conf(agent, version, prevResult=result)).expect_success()
                equal(got, {**result, "cniVersion": version}, f"{said} to {version}")
        old = conf(agent, "0.4.0", prevResult=prev_result("1.0.0"))
        run("ADD", old).expect_code(7, "prevResult.ips[0]", "version")
        bad = prev_result()
        bad["cniVersion"] = "7.0.0"
        run("ADD", conf(agent, prevResult=bad)).expect_code(7, "7.0.0")


@test
def an_absent_prev_result_is_error_7_unless_not_chained():
    with FakeAgent() as agent:
        for version in VERSIONS:
            run("ADD", conf(agent, version, prevResult=None)).expect_code(7, "prevResult")
            free = conf(agent, version, prevResult=None, chained=False)
            equal(run("ADD", free).expect_success(), {"cniVersion": version})
            free["prevResult"] = prev_result(version)
            equal(run("ADD", free).expect_success(), prev_result(version))
        run("CHECK", conf(agent, prevResult=None)).expect_code(7, "prevResult")
        equal({r["op"] for r in agent.requests}, {"add"})


@test
def a_malformed_prev_result_is_error_7_and_named():
    def changed(**keys):
        return {**prev_result(), **keys}

    cases = [
        ("text", "prevResult"),
        ([], "prevResult"),
        (3, "prevResult"),
        (changed(ips={}), "prevResult.ips"),
        (changed(ips=[3]), "prevResult.ips[0]"),
        (changed(ips=[{}]), "prevResult.ips[0].address"),
        (changed(ips=[{"address": 1}]), "prevResult.ips[0].address"),
        (changed(ips=[{"address": "10.0.0.1"}]), "prevResult.ips[0].address"),
        (changed(ips=[{"address": "10.0.0.1/33"}]), "prevResult.ips[0].address"),
        (changed(ips=[{"address": "10.0.0.1/-1"}]), "prevResult.ips[0].address"),
        (changed(ips=[{"address": "10.0.0.1/8x"}]), "prevResult.ips[0].address"),
        (changed(ips=[{"address": "x/8"}]), "prevResult.ips[0].address"),
        (changed(ips=[{"address": "fd00::1/129"}]), "prevResult.ips[0].address"),
        (changed(ips=[{"address": "10.0.0.1/8", "interface": 3}]), "there are 3 interfaces"),
        (changed(ips=[{"address": "10.0.0.1/8", "interface": "0"}]), "ips[0].interface"),
        (changed(interfaces={}), "prevResult.interfaces"),
        (changed(interfaces=[1, 2, 3]), "interfaces[2]"),
        (changed(cniVersion=1), "prevResult.cniVersion"),
        (changed(ips=[{"address": "10.0.0.1/8"}] * 65), "more than 64"),
    ]
    with FakeAgent() as agent:
        for result, part in cases:
            run("ADD", conf(agent, prevResult=result)).expect_code(7, part)
        equal(agent.requests, [])


# ---- configuration ------------------------------------------------------------------------------


@test
def wrong_types_and_values_are_error_7_and_named():
    cases = {
        "name": [3, "", "a b", "-x"],
        "onAgentDown": [True, "maybe", ["deny"], {}],
        "ambientEnabled": ["true", 1],
        "excludeNamespaces": ["kube-system", [1], {}],
        "ownPods": ["a/b", ["a"], ["/b"], ["a/"], ["a/b/c"], [None]],
        "chained": ["yes", 0],
        "logLevel": [1, "loud"],
        "runDir": [1, "relative", "/" + "x" * 96, ""],
        "timeoutMs": ["10", 0, -1, 1.5, 600001, 10**15],
        "runtimeConfig": [1, [], "x"],
    }
    for key, values in cases.items():
        for value in values:
            for verb in ("ADD", "CHECK", "STATUS"):
                run(verb, conf(version="1.1.0", **{key: value})).expect_code(7, key)
    body = conf()
    del body["name"]
    run("ADD", body).expect_code(7, "name")
    for value in (3, {"a": 1}, {"a": None}, ["x"]):
        run("ADD", conf(annotations=value)).expect_code(7, ANNOTATIONS)
    run("ADD", conf(runtimeConfig={"cgroupPath": 3})).expect_code(7, "cgroupPath")


@test
def unknown_keys_and_nulls_are_tolerated():
    with FakeAgent() as agent:
        body = conf(agent, annotations={}, ipam={}, dns={"x": 1}, args=[], futureKey={"a": [1.5]})
        for key in ("onAgentDown", "ambientEnabled", "excludeNamespaces", "ownPods", "logLevel"):
            body[key] = None
        body["runtimeConfig"]["portMappings"] = 7
        equal(run("ADD", body).expect_success(), prev_result())


@test
def what_is_not_json_is_error_6():
    big = b'{"cniVersion":"1.0.0","name":"n","x":"' + b"a" * (4 << 20) + b'"}'
    for verb in ("ADD", "DEL", "CHECK", "GC", "STATUS"):
        for text in (
            b"",
            b"{",
            b"[]",
            b"null",
            b"3",
            b'"x"',
            b'{"cniVersion":"1.0.0"',
            b'{"cniVersion":"1.0.0"} x',
            b'{"cniVersion":"1.0.0","cniVersion":"1.0.0"}',
            b"\xff\xfe{}",
            b'{"name":"\xc3("}',
            b'{"a":"\x00"}',
            b'{"cniVersion":"1.0.0","name":"n","a":1\x00}',
            b"[" * 100000,
            b'{"a":' * 100000,
        ):
            run(verb, text).expect_code(6)
        run(verb, big).expect_code(5, "larger than")


@test
def hostile_cni_args_are_error_4_and_reach_nobody():
    cases = [
        ("K8S_POD_NAME", "KEY=VALUE"),
        ("=x", "KEY=VALUE"),
        ("K8S_POD_NAME=a/../b", "K8S_POD_NAME"),
        ("K8S_POD_NAMESPACE=" + "n" * 254, "K8S_POD_NAMESPACE"),
        ("K8S_POD_UID=../../etc", "K8S_POD_UID"),
        ("K8S_POD_UID=x\n", "K8S_POD_UID"),
        ("K8S_POD_NAME=a;K8S_POD_NAME=b", "K8S_POD_NAME"),
        ("K8S_POD_NAME=\x1b[31m", "K8S_POD_NAME"),
        ('K8S_POD_NAME="a"', "K8S_POD_NAME"),
        ("IgnoreUnknown=perhaps", "IgnoreUnknown"),
        ("K8S_POD_NAMESPCE=x", "K8S_POD_NAMESPCE"),
        ("K8S_POD_INFRA_CONTAINER_ID=;X=Y;IgnoreUnknown=0", "X"),
        ("A" * 100000 + "=1", "AAAA"),
    ]
    with FakeAgent() as agent:
        for text, part in cases:
            run("ADD", conf(agent), args=text).expect_code(4, "CNI_ARGS", part)
            run("CHECK", conf(agent), args=text).expect_code(4, "CNI_ARGS", part)
        equal(agent.requests, [])
        run("ADD", conf(agent), args="FOO=BAR=;" + pod_args() + ";;").expect_success()
        equal(agent.requests[0]["pod"]["name"], "web-1")
        run("DEL", conf(agent), args="K8S_POD_NAME=a/../b").expect_success()
        equal(agent.requests[1]["containerId"], ID)


# ---- what the agent is told ---------------------------------------------------------------------


@test
def add_tells_the_agent_everything_and_hands_over_the_namespace():
    annotations = {
        "sidecar.istio.io/status": "{}",
        "traffic.sidecar.istio.io/excludeOutboundPorts": "1,2",
        "istio.io/rev": "x",
        "ambient.istio.io/redirection": "enabled",
        "status.sidecar.istio.io/port": "0",
        "sockmesh.io/accelerate": "off",
        "linkerd.io/inject": "a",
        "config.linkerd.io/skip-inbound-ports": "b",
        "kuma.io/mesh": "c",
    }
    others = {
        "prometheus.io/scrape": "true",
        "xsidecar.istio.io/status": "no",
        "kubernetes.io/config.seen": "now",
        "big": "x" * 200000,
    }
    with FakeAgent() as agent:
        run("ADD", conf(agent, annotations={**annotations, **others})).expect_success()
        (request,) = agent.requests
        equal(agent.namespaces, [NETNS.inode])
        assert request.pop("size") < 2048
        request.pop("cgroup", None)
        equal(
            request,
            {
                "v": 1,
                "op": "add",
                "containerId": ID,
                "ifName": "eth0",
                "network": "net",
                "netns": NETNS.path,
                "pod": {"namespace": "default", "name": "web-1", "uid": UID},
                "ips": ["10.88.0.5/16", "fd88::5/64"],
                "annotations": annotations,
                "fds": 1,
            },
        )


@test
def annotations_are_unknown_empty_or_known():
    with FakeAgent() as agent:
        run("ADD", conf(agent)).expect_success()
        run("ADD", conf(agent, annotations={})).expect_success()
        run("ADD", conf(agent, runtimeConfig={ANNOTATIONS: None})).expect_success()
        run("ADD", conf(agent, runtimeConfig={})).expect_success()
        equal([r.get("annotations") for r in agent.requests], [None, {}, {}, None])


@test
def annotations_that_fit_no_packet_are_refused_not_cut():
    with FakeAgent() as agent:
        many = {**SIDECAR, "istio.io/x": "y" * 70000}
        run("ADD", conf(agent, annotations=many)).expect_code(110, "too large")
        equal(agent.requests, [])


@test
def addresses_of_the_host_are_not_the_pods():
    result = prev_result()
    result["ips"] += [
        {"address": "10.88.0.1/16", "interface": 0},
        {"address": "::ffff:10.1.2.3/24"},
        {"address": "2001:db8::1/128", "interface": -1},
    ]
    with FakeAgent() as agent:
        run("ADD", conf(agent, prevResult=result)).expect_success()
        equal(
            agent.requests[0]["ips"],
            ["10.88.0.5/16", "fd88::5/64", "10.1.2.3/24", "2001:db8::1/128"],
        )


@test
def a_namespace_that_is_none_is_error_4():
    with FakeAgent() as agent, tempfile.TemporaryDirectory() as directory:
        fifo = os.path.join(directory, "fifo")
        os.mkfifo(fifo)
        for path in ("/nonexistent", "/etc/passwd", "/dev/null", fifo, "/proc/self/ns/mnt", "/"):
            run("ADD", conf(agent), netns=path).expect_code(4, "CNI_NETNS", path)
            run("CHECK", conf(agent), netns=path).expect_code(4, "CNI_NETNS", path)
        equal(agent.requests, [])


@contextlib.contextmanager
def cgroup_directory(*names):
    """A cgroup below the cgroup2 root: yields its absolute and its relative path."""
    root = None
    with open("/proc/self/mountinfo", encoding="ascii") as mounts:
        for line in mounts:
            if " - cgroup2 " in line:
                root = line.split()[4]
                break
    if root is None:
        raise Skip("no cgroup2 is mounted")
    relative = ""
    made = []
    try:
        for name in names:
            relative += "/" + name
            os.mkdir(root + relative)
            made.append(root + relative)
        yield relative
    finally:
        for path in reversed(made):
            os.rmdir(path)


@test
def the_cgroup_is_found_by_path_slice_uid_and_container():
    uid = f"{os.getpid():08x}-0000-4000-8000-000000000001"
    args = pod_args(uid=uid)
    mine = f"sockmeshtest{os.getpid()}"
    with FakeAgent() as agent:
        with cgroup_directory(mine, "kubepods", "burstable", f"pod{uid}") as path:
            run("ADD", conf(agent), args=args).expect_success()
            run("ADD", conf(agent, runtimeConfig={"cgroupPath": path + "/"})).expect_success()
            run("ADD", conf(agent, runtimeConfig={"cgroupPath": "/gone"})).expect_success()
            up = f"{path}/../.."
            run("ADD", conf(agent, runtimeConfig={"cgroupPath": up})).expect_success()
            run("ADD", conf(agent, runtimeConfig={"cgroupPath": "/"})).expect_success()
            equal([r.get("cgroup") for r in agent.requests], [path, path, None, None, None])
        agent.requests.clear()
        slices = (f"{mine}.slice", f"{mine}-pod{uid.replace('-', '_')}.slice")
        with cgroup_directory(*slices, f"cri-containerd-{mine}x.scope") as path:
            pod = os.path.dirname(path)
            run("ADD", conf(agent, runtimeConfig={"cgroupPath": slices[-1]})).expect_success()
            run("ADD", conf(agent), args=args).expect_success()
            no_uid = pod_args(uid="", container=f"{mine}x")
            run("ADD", conf(agent), args=no_uid, CNI_CONTAINERID=f"{mine}x").expect_success()
            equal([r.get("cgroup") for r in agent.requests], [pod, pod, pod])


# ---- who may start without the agent ------------------------------------------------------------


@test
def an_agent_that_is_down_holds_up_only_what_may_be_in_the_mesh():
    none = {**SIDECAR, "sockmesh.io/redirection": "none"}
    held = [
        ("status", dict(annotations=SIDECAR)),
        ("sidecar", dict(annotations={"sockmesh.io/redirection": "sidecar"})),
        ("ambient", dict(annotations={"sockmesh.io/redirection": "ambient"})),
        ("misspelt", dict(annotations={"sockmesh.io/redirection": "sidecars"})),
        ("ambient enabled", dict(annotations={}, ambientEnabled=True)),
        ("annotations unknown", {}),
        ("annotations not passed", dict(runtimeConfig={"cgroupPath": "/x"})),
        ("other namespace", dict(annotations=SIDECAR, excludeNamespaces=["kube-system"])),
        ("other own pod", dict(annotations=SIDECAR, ownPods=["default/webs", "x/web"])),
    ]
    free = [
        ("no annotation", dict(annotations={})),
        ("annotations null", dict(runtimeConfig={ANNOTATIONS: None})),
        ("empty status", dict(annotations={"sidecar.istio.io/status": ""})),
        ("other annotation", dict(annotations={"a/b": "c"})),
        ("none", dict(annotations=none)),
        ("none, ambient enabled", dict(annotations=none, ambientEnabled=True)),
        ("excluded", dict(annotations=SIDECAR, excludeNamespaces=["x", "default"])),
        ("own pod", dict(annotations=SIDECAR, ownPods=["default/web-"], ambientEnabled=True)),
        ("allow", dict(annotations=SIDECAR, onAgentDown="allow")),
        ("allow, unknown", dict(onAgentDown="allow")),
    ]
    for name, keys in held:
        error = run("ADD", conf(**keys)).expect_code(11, "/nonexistent/sockmesh", "onAgentDown")
        assert "Traceback" not in error["msg"], name
        run("CHECK", conf(**keys)).expect_code(11)
    for name, keys in free:
        equal(run("ADD", conf(**keys)).expect_success(), prev_result(), name)
        run("CHECK", conf(**keys)).expect_success()


@test
def exempt_pods_never_wait_for_the_agent():
    keys = [
        dict(annotations={"sockmesh.io/redirection": "none"}),
        dict(annotations=SIDECAR, excludeNamespaces=["default"]),
        dict(annotations=SIDECAR, ownPods=["default/web-1"]),
    ]
    with FakeAgent(lambda request: HANG) as agent:
        for key in keys:
            run("ADD", conf(agent, **key), timeout=5).expect_success()
        for args in ("", None, "IgnoreUnknown=1;FOO=bar", pod_args(name=""), pod_args(namespace="")):
            variables = {} if args is not None else {"CNI_ARGS": None}
            body = conf(agent, annotations=SIDECAR)
            equal(run("ADD", body, args=args, **variables, timeout=5).expect_success(), prev_result())
        equal(agent.requests, [])


@test
def del_always_succeeds():
    base = {"annotations": SIDECAR}
    run("DEL", conf(**base)).expect_success()
    run("DEL", conf(**base), netns="/nonexistent").expect_success()
    run("DEL", conf(**base), CNI_NETNS=None).expect_success()
    run("DEL", conf(prevResult=None)).expect_success()
    run("DEL", conf(prevResult=[3], timeoutMs="x", onAgentDown=3)).expect_success()
    run("DEL", conf(annotations={"a": 3})).expect_success()
    for behaviour in (
        lambda request: DIE,
        lambda request: b"garbage",
        lambda request: refuse("not-found"),
        lambda request: refuse("kernel"),
        lambda request: refuse("version", v=9),
    ):
        with FakeAgent(behaviour) as agent:
            outcome = run("DEL", conf(agent, **base))
            equal((outcome.status, outcome.stdout), (0, ""))
            equal(agent.requests[0]["op"], "del")
    with FakeAgent(lambda request: HANG) as agent:
        run("DEL", conf(agent, timeoutMs=300, **base), timeout=5).expect_success()
    with FakeAgent() as agent:
        run("DEL", conf(agent), CNI_NETNS=None).expect_success()
        run("DEL", conf(agent)).expect_success()
        equal([r["fds"] for r in agent.requests], [0, 1])


# ---- an agent that misbehaves -------------------------------------------------------------------


@test
def refusals_become_the_codes_that_are_documented():
    table = [
        (refuse("bad-annotation"), 110, 110),
        (refuse("unsupported"), 111, 111),
        (refuse("kernel"), 112, 113),
        (refuse("not-found"), 100, 113),
        (refuse("bad-request"), 100, 100),
        (refuse("limit"), 100, 100),
        (refuse("busy"), 100, 100),
        (refuse("of-the-future"), 100, 100),
        (refuse("version", v=7), 100, 100),
        (refuse("busy", retry=True), 11, 11),
        (refuse("not-ready", retry=True), 11, 11),
        (refuse("kernel", retry=True), 11, 11),
    ]
    for answer, add_code, check_code in table:
        with FakeAgent(lambda request, answer=answer: answer) as agent:
            body = conf(agent, annotations=SIDECAR)
            run("ADD", body).expect_code(add_code, "said by the test")
            run("CHECK", body).expect_code(check_code, "said by the test")


@test
def check_asks_about_this_attachment_and_prints_nothing():
    with FakeAgent() as agent:
        outcome = run("CHECK", conf(agent, annotations=SIDECAR), CNI_IFNAME="net1")
        equal((outcome.status, outcome.stdout), (0, ""))
        (request,) = agent.requests
        equal((request["op"], request["containerId"], request["ifName"]), ("check", ID, "net1"))
        equal(agent.namespaces, [NETNS.inode])


@test
def check_of_a_pod_that_nothing_puts_in_the_mesh_may_find_nothing():
    with FakeAgent(lambda request: refuse("not-found")) as agent:
        run("CHECK", conf(agent, annotations={})).expect_success()
        run("CHECK", conf(agent)).expect_code(113)
    with FakeAgent(lambda request: refuse("kernel")) as agent:
        run("CHECK", conf(agent, annotations={})).expect_code(113)


@test
def status_says_whether_add_would_work():
    with FakeAgent() as agent:
        equal(run("STATUS", conf(agent, "1.1.0")).stdout, "")
    run("STATUS", conf(version="1.1.0")).expect_code(50)
    run("STATUS", conf(version="1.1.0", onAgentDown="allow")).expect_success()
    with FakeAgent(lambda request: refuse("not-ready", retry=True)) as agent:
        run("STATUS", conf(agent, "1.1.0")).expect_code(50, "said by the test")
    run("GC", conf(version="1.1.0", **{"cni.dev/valid-attachments": []})).expect_code(11)


@test
def a_hanging_agent_costs_timeout_ms_and_no_more():
    with FakeAgent(lambda request: HANG) as agent:
        body = conf(agent, annotations=SIDECAR, timeoutMs=500)
        outcome = run("ADD", body, timeout=10)
        outcome.expect_code(11)
        assert 0.4 < outcome.seconds < 5, outcome.seconds
        body["onAgentDown"] = "allow"
        equal(run("ADD", body, timeout=10).expect_success(), prev_result())


@test
def an_agent_whose_queue_is_full_costs_timeout_ms_and_no_more():
    with contextlib.ExitStack() as cleanup:
        run_dir = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="sockmesh-plugin-"))
        path = os.path.join(run_dir, "agent.sock")
        listener = cleanup.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        listener.bind(path)
        listener.listen(0)
        # Nobody accepts, so from some connection on connecting itself blocks.
        with contextlib.suppress(BlockingIOError):
            for _ in range(16):
                one = cleanup.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
                one.setblocking(False)
                one.connect(path)
        body = conf(annotations=SIDECAR, runDir=run_dir, timeoutMs=500)
        outcome = run("ADD", body, timeout=10)
        outcome.expect_code(11)
        assert 0.4 < outcome.seconds < 5, outcome.seconds


@test
def an_agent_that_dies_or_talks_nonsense_is_an_absent_one():
    answers = [
        DIE,
        b"garbage",
        b"{}",
        b"[]",
        b"\xff\xfe",
        b'{"v":1}',
        b'{"v":1,"ok":"yes"}',
        b'{"v":1,"ok":true',
        b"[" * 60000,
        {"v": 1, "more": True, "part": "{"},
        [{"v": 1, "more": True, "part": "{"}, b"x"],
        [{"v": 1, "more": True, "part": '{"v":1,'}, {"v": 1, "more": False, "part": "]"}],
    ]
    for answer in answers:
        with FakeAgent(lambda request, answer=answer: answer) as agent:
            body = conf(agent, annotations=SIDECAR, timeoutMs=3000)
            run("ADD", body).expect_code(11, "does not answer")
            equal(run("ADD", {**body, "onAgentDown": "allow"}).expect_success(), prev_result())
            plain = conf(agent, annotations={}, timeoutMs=3000)
            equal(run("ADD", plain).expect_success(), prev_result())


@test
def an_answer_in_parts_is_joined():
    text = json.dumps(ok(reason="r" * 100000))
    parts = [text[i : i + 30000] for i in range(0, len(text), 30000)]
    packets = [{"v": 1, "more": i + 1 < len(parts), "part": p} for i, p in enumerate(parts)]
    with FakeAgent(lambda request: packets) as agent:
        run("ADD", conf(agent, annotations=SIDECAR)).expect_success()


@test
def versions_are_negotiated_downwards_only():
    newer = {**ok(), "v": 1, "unheardOf": {"x": 1}}
    with FakeAgent(lambda request: newer) as agent:
        run("ADD", conf(agent, annotations=SIDECAR)).expect_success()
    for v in (0, 1, 2, 9):
        with FakeAgent(lambda request, v=v: refuse("version", v=v)) as agent:
            body = conf(agent, annotations=SIDECAR, timeoutMs=2000)
            assert run("ADD", body).error["code"] in (11, 100)
            equal(len(agent.requests), 1, "the same version asked twice")
            run("ADD", conf(agent, annotations={})).expect_success()
            run("ADD", {**body, "onAgentDown": "allow"}).expect_success()


@test
def messages_of_the_agent_cannot_break_the_error_object():
    nasty = 'a"b\\c\u0001\n{"code":0}\u202e' + "é" * 400
    with FakeAgent(lambda request: refuse("kernel", message=nasty)) as agent:
        body = run("ADD", conf(agent, annotations=SIDECAR)).expect_code(112)
        assert all(ord(c) >= 32 for c in body["msg"]), body


@test
def sixty_four_at_once():
    outcomes = []

    def one(i):
        args = pod_args(name=f"web-{i}", container=f"c{i}")
        body = conf(agent, annotations=SIDECAR)
        outcomes.append(run("ADD", body, args=args, CNI_CONTAINERID=f"c{i}", timeout=60))

    with FakeAgent() as agent:
        threads = [threading.Thread(target=one, args=(i,)) for i in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for outcome in outcomes:
            equal(outcome.expect_success(), prev_result())
        equal(len(outcomes), 64)
        equal({r["containerId"] for r in agent.requests}, {f"c{i}" for i in range(64)})
        equal(set(agent.namespaces), {NETNS.inode})


# ---- the process --------------------------------------------------------------------------------


@test
def logs_go_to_stderr_at_the_level_asked_for():
    with FakeAgent() as agent:
        for level, logged in (("error", False), ("warn", False), ("debug", True)):
            outcome = run("ADD", conf(agent, annotations=SIDECAR, logLevel=level))
            equal(outcome.expect_success(), prev_result())
            equal("pod registered" in outcome.stderr, logged, level)
    outcome = run("ADD", conf(annotations=SIDECAR, onAgentDown="allow"))
    assert "pod admitted without the agent" in outcome.stderr, outcome


@test
def a_reader_that_is_gone_and_closed_descriptors_do_no_harm():
    with FakeAgent() as agent:
        body = json.dumps(conf(agent, annotations=SIDECAR)).encode()
        environment = {
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": ID,
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": NETNS.path,
            "CNI_ARGS": pod_args(),
        }
        reader, writer = os.pipe()
        os.close(reader)
        process = subprocess.Popen(
            [PLUGIN], env=environment, stdin=subprocess.PIPE, stdout=writer, stderr=subprocess.PIPE
        )
        process.communicate(body)
        os.close(writer)
        equal(process.returncode, 1)
        shell = ["sh", "-c", 'exec "$0" >&- 2>&-', PLUGIN]
        done = subprocess.run(shell, env=environment, input=body, check=False)
        assert done.returncode in (0, 1), done.returncode
        done = subprocess.run(["sh", "-c", 'exec "$0" <&-', PLUGIN], env=environment, check=False,
                              capture_output=True)
        equal(json.loads(done.stdout)["code"], 6)
        for request in agent.requests:
            equal(request["op"], "add")


@test
def run_by_hand_it_explains_itself():
    done = subprocess.run([PLUGIN, "--version"], env={}, capture_output=True, check=True)
    with open("VERSION", encoding="ascii") as version:
        equal(done.stdout.decode(), f"sockmesh-cni {version.read().strip()}\n")
    done = subprocess.run([PLUGIN, "--help"], env={}, capture_output=True, check=True)
    assert b"CNI_COMMAND" in done.stdout and not done.stderr
    done = subprocess.run([PLUGIN, "--bogus"], env={}, capture_output=True, check=False)
    equal((done.returncode, json.loads(done.stdout)["code"]), (1, 4))


def it_is_static_and_small():
    headers = subprocess.run(["readelf", "-lW", PLUGIN], capture_output=True, check=True).stdout
    assert b"LOAD" in headers and b"INTERP" not in headers, "has an interpreter"
    size = os.path.getsize(PLUGIN)
    print(f"# sockmesh-cni: {size} bytes")
    assert size < 1000000, size


# A sanitizer build is neither and is not installed anywhere.
if "sanitize" not in os.environ["BUILD_DIR"]:
    test(it_is_static_and_small)


# ---- a real chain -------------------------------------------------------------------------------


@test
def behind_the_real_bridge_and_host_local():
    if not os.path.exists(f"{CNI_BIN}/bridge"):
        raise Skip(f"no bridge plugin in {CNI_BIN}")
    pod = Namespace()
    try:
        with FakeAgent() as agent, tempfile.TemporaryDirectory() as data:
            for i, version in enumerate(VERSIONS[:4]):
                chain_once(agent, data, pod, version, f"chain{i}")
    finally:
        pod.close()


def chain_once(agent, data, pod, version, container):
    bridge = {
        "cniVersion": version,
        "name": "net",
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "dataDir": data,
            "ranges": [[{"subnet": "10.89.0.0/24"}], [{"subnet": "fd89::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        },
    }
    environment = {
        "CNI_CONTAINERID": container,
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": pod.path,
        "CNI_ARGS": pod_args(container=container),
        "CNI_PATH": CNI_BIN,
    }

    def call_bridge(verb, body):
        done = subprocess.run(
            [f"{CNI_BIN}/bridge"],
            env={**environment, "PATH": os.environ["PATH"], "CNI_COMMAND": verb},
            input=json.dumps(body).encode(),
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done
        return done.stdout.decode()

    first = call_bridge("ADD", bridge)
    ours = conf(agent, version, SIDECAR, prevResult=json.loads(first))
    outcome = run("ADD", ours, **environment)
    final = outcome.expect_success()
    equal(final, json.loads(first), version)
    request = agent.requests[-1]
    equal(request["ips"], [ip["address"] for ip in final["ips"]])
    equal(agent.namespaces[-1], pod.inode)
    ours["prevResult"] = final
    if version >= "0.4.0":
        call_bridge("CHECK", {**bridge, "prevResult": final})
        run("CHECK", ours, **environment).expect_success()
    run("DEL", ours, **environment).expect_success()
    call_bridge("DEL", {**bridge, "prevResult": final})
    run("DEL", ours, **environment).expect_success()


# ---- TAP ----------------------------------------------------------------------------------------


def main():
    chosen = [t for t in TESTS if not sys.argv[1:] or any(a in t.__name__ for a in sys.argv[1:])]
    failed = 0
    print(f"1..{len(chosen)}", flush=True)
    for number, each in enumerate(chosen, 1):
        claim = each.__name__.replace("_", " ")
        try:
            each()
            print(f"ok {number} - {claim}", flush=True)
        except Skip as reason:
            print(f"ok {number} - {claim} # SKIP {reason}", flush=True)
        except Exception:  # pylint: disable=broad-except
            failed += 1
            print(f"not ok {number} - {claim}")
            for line in traceback.format_exc().splitlines():
                print(f"# {line}", flush=True)
    return 1 if failed or not chosen else 0


if __name__ == "__main__":
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    NETNS = Namespace()
    try:
        STATUS = main()
    finally:
        NETNS.close()
    sys.exit(STATUS)
