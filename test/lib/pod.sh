# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Pods of a test node: a network namespace that the CNI chain connects, and a cgroup with one
# directory a container. Needs node.sh and cni.sh; the chain for new pods is in POD_CONFLIST.
#
# shellcheck disable=SC2034,SC2153 # variables are for and from the scripts that source this

PROXY_UID=1337
APP_UID=1000
POD_PARENT=kubepods # where the next pods' cgroups go; the agent attaches to kubepods only
declare -A POD_IP4=() POD_IP6=() POD_ID=() POD_CGROUP=() POD_CHAIN=()

# The annotation by which the injector says that a pod has a sidecar.
SIDECAR_ANNOTATION='{"sidecar.istio.io/status":"{\"initContainers\":[\"istio-validation\"],\"containers\":[\"istio-proxy\"]}"}'

pod_uid() { # POD: the same for the same name
	printf '%s' "$1" | md5sum | sed -E 's/^(.{8})(.{4})(.{4})(.{4})(.{12}).*/\1-\2-\3-\4-\5/'
}

pod_cgroup_dir() { # POD
	echo "$NODE_CGROUP/${POD_CGROUP[$1]}"
}

# What the runtime knows of the pod, for cni.sh. It says POD_SAID_UID, if that is set.
pod_cni() { # VERB POD [ANNOTATIONS]
	CNI_POD_NAMESPACE=${POD_NAMESPACE:-demo} CNI_POD_NAME=$2 CNI_POD_UID=${POD_SAID_UID-$(pod_uid "$2")} \
		CNI_POD_ANNOTATIONS=${3:-null} CNI_POD_CGROUP=$NODE_CGROUP_PATH/${POD_CGROUP[$2]} \
		"cni_$1" "${POD_CHAIN[$2]}" "${POD_ID[$2]}" "/run/netns/$2"
}

pod_add() { # POD [ANNOTATIONS]
	local pod=$1 result container
	ip netns add "$pod"
	ip -n "$pod" link set lo up
	POD_CHAIN[$pod]=$POD_CONFLIST
	POD_CGROUP[$pod]=$POD_PARENT/pod$(pod_uid "$pod")
	for container in app istio-proxy; do
		mkdir -p "$(pod_cgroup_dir "$pod")/$container"
	done
	POD_ID[$pod]=$(printf '%s' "$NODE_NAME/$pod/$RANDOM" | sha256sum | cut -c1-64)
	result=$(pod_cni add "$pod" "${2:-}") || return 1
	POD_IP4[$pod]=$(jq -r 'first(.ips[].address | select(contains(":") | not)) | sub("/.*"; "")' <<<"$result")
	POD_IP6[$pod]=$(jq -r 'first(.ips[].address | select(contains(":"))) | sub("/.*"; "")' <<<"$result")
}

# A command as UID in one of the pod's containers. The process joins the cgroup first: a socket
# belongs to the cgroup that it was made in.
pod_run() { # POD CONTAINER UID COMMAND...
	local pod=$1 container=$2 uid=$3
	shift 3
	(
		echo "$BASHPID" >"$(pod_cgroup_dir "$pod")/$container/cgroup.procs"
		exec nsenter --net="/run/netns/$pod" -- \
			setpriv --reuid "$uid" --regid "$uid" --clear-groups -- "$@"
	)
}

# The same in the background, output appended to NODE_DIR/POD-NAME.log; the pid in POD_PID.
pod_start() { # NAME POD CONTAINER UID COMMAND...
	local name=$1 pod=$2
	shift
	pod_run "$@" >>"$NODE_DIR/$pod-$name.log" 2>&1 </dev/null &
	POD_PID=$!
}

pod_listens() { # POD PORT
	ip netns exec "$1" ss -Hltn "sport = :$2" | grep -q .
}

# Root in the pod's namespace, outside of its cgroup, as an operator's debugging shell.
pod_exec() { # POD COMMAND...
	local pod=$1
	shift
	nsenter --net="/run/netns/$pod" -- "$@"
}

pod_delete() { # POD
	local failed=0
	cgroup_remove "$(pod_cgroup_dir "$1")"
	pod_cni del "$1" || failed=1
	ip netns delete "$1" || failed=1
	unset "POD_ID[$1]" "POD_IP4[$1]" "POD_IP6[$1]" "POD_CGROUP[$1]" "POD_CHAIN[$1]"
	return "$failed"
}
