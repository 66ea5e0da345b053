# SPDX-License-Identifier: Apache-2.0
"""A small CRI client, as kubelet is one: pod sandboxes and containers of containerd.

	cri.py --socket PATH status
	cri.py --socket PATH run POD.json         prints {"id", "ips", "netns", "pid"}
	cri.py --socket PATH start POD.json ID NAME UID COMMAND...   a container in the sandbox
	cri.py --socket PATH stop ID
	cri.py --socket PATH remove ID

POD.json: {"namespace", "name", "uid", "annotations", "cgroupParent", "logDirectory"}."""

import argparse
import json
import os
import sys

import grpc

IMAGE = "sockmesh.test/programs:1"
TIMEOUT_S = 60

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
cri, services = grpc.protos_and_services("cri.proto")


def sandbox_config(path):
    with open(path, encoding="utf-8") as file:
        pod = json.load(file)
    return cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(
            name=pod["name"], uid=pod["uid"], namespace=pod["namespace"], attempt=0
        ),
        hostname=pod["name"],
        log_directory=pod["logDirectory"],
        annotations=pod["annotations"],
        linux=cri.LinuxPodSandboxConfig(cgroup_parent=pod["cgroupParent"]),
    )


def status(runtime, _options):
    """Fails unless runtime and network are ready, as kubelet would wait."""
    answer = runtime.Status(cri.StatusRequest(), timeout=TIMEOUT_S)
    conditions = {c.type: [c.status, c.message] for c in answer.status.conditions}
    print(json.dumps(conditions))
    return 0 if all(ready for ready, _ in conditions.values()) else 1


def run(runtime, options):
    config = sandbox_config(options.pod)
    made = runtime.RunPodSandbox(cri.RunPodSandboxRequest(config=config), timeout=TIMEOUT_S)
    answer = runtime.PodSandboxStatus(
        cri.PodSandboxStatusRequest(pod_sandbox_id=made.pod_sandbox_id, verbose=True),
        timeout=TIMEOUT_S,
    )
    info = json.loads(answer.info["info"])
    namespaces = info["runtimeSpec"]["linux"]["namespaces"]
    network = answer.status.network
    print(
        json.dumps(
            {
                "id": made.pod_sandbox_id,
                "ips": [network.ip] + [more.ip for more in network.additional_ips],
                "netns": next(n["path"] for n in namespaces if n["type"] == "network"),
                "pid": info["pid"],
            }
        )
    )
    return 0


def start(runtime, options):
    identity = cri.LinuxContainerSecurityContext(
        run_as_user=cri.Int64Value(value=options.uid),
        run_as_group=cri.Int64Value(value=options.uid),
    )
    made = runtime.CreateContainer(
        cri.CreateContainerRequest(
            pod_sandbox_id=options.id,
            sandbox_config=sandbox_config(options.pod),
            config=cri.ContainerConfig(
                metadata=cri.ContainerMetadata(name=options.name),
                image=cri.ImageSpec(image=IMAGE),
                command=options.command,
                log_path=options.name + ".log",
                linux=cri.LinuxContainerConfig(security_context=identity),
            ),
        ),
        timeout=TIMEOUT_S,
    )
    runtime.StartContainer(
        cri.StartContainerRequest(container_id=made.container_id), timeout=TIMEOUT_S
    )
    print(made.container_id)
    return 0


def stop(runtime, options):
    runtime.StopPodSandbox(cri.StopPodSandboxRequest(pod_sandbox_id=options.id), timeout=TIMEOUT_S)
    return 0


def remove(runtime, options):
    runtime.RemovePodSandbox(
        cri.RemovePodSandboxRequest(pod_sandbox_id=options.id), timeout=TIMEOUT_S
    )
    return 0


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--socket", required=True)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("status").set_defaults(function=status)
    verb = verbs.add_parser("run")
    verb.add_argument("pod")
    verb.set_defaults(function=run)
    verb = verbs.add_parser("start")
    verb.add_argument("pod")
    verb.add_argument("id")
    verb.add_argument("name")
    verb.add_argument("uid", type=int)
    verb.add_argument("command", nargs="+")
    verb.set_defaults(function=start)
    for name, function in (("stop", stop), ("remove", remove)):
        verb = verbs.add_parser(name)
        verb.add_argument("id")
        verb.set_defaults(function=function)
    options = parser.parse_args()
    with grpc.insecure_channel("unix:" + options.socket) as channel:
        try:
            return options.function(services.RuntimeServiceStub(channel), options)
        except grpc.RpcError as error:
            print(f"{error.code().name}: {error.details()}", file=sys.stderr)
            return 1


if __name__ == "__main__":
    sys.exit(main())
