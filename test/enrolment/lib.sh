# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# A node whose pods are in a real API server: what kubelet and the scheduler would write is written
# by the test. Needs node.sh, cni.sh, pod.sh, processes.sh and cluster.sh.
#
# shellcheck disable=SC2034,SC2153,SC2154 # variables are for and from the scripts that source this

PROGRAMS=$BUILD_DIR/test/contract
TEST_NODE=node-1
ZTUNNEL_UID=1337
declare -A UID_OF=() # POD: its uid in the API

# pod.sh's, but as the API server has given it.
pod_uid() { # POD
	echo "${UID_OF[$1]}"
}

# The pod in the API, bound to this node, without a status yet.
api_pod() { # POD [LABELS [ANNOTATIONS [SPEC]]]
	local labels=${2:-} annotations=${3:-} metadata
	metadata=$(jq -nc --argjson labels "${labels:-{\}}" --argjson annotations "${annotations:-{\}}" \
		'{$labels, $annotations}')
	UID_OF[$1]=$(cluster_pod "${POD_NAMESPACE:-demo}" "$1" "$TEST_NODE" "$metadata" "${4:-{\}}")
}

# The whole of it: in the API, with a sandbox by the chain in POD_CONFLIST, running.
run_pod() { # POD [LABELS [ANNOTATIONS [SPEC]]]
	api_pod "$@"
	pod_add "$1" "${3:-{\}}" || return 1
	pod_runs "$1"
}

# As kubelet says it, with a process as the runtime starts it: sandboxes have one, which is what a
# pod is found by.
pod_runs() { # POD
	pod_start pause "$1" app "$APP_UID" sleep infinity
	cluster_pod_status "${POD_NAMESPACE:-demo}" "$1" Running "${POD_IP4[$1]}" "${POD_IP6[$1]}" >/dev/null
}

label_pod() { # POD LABELS
	cluster_pod_patch "${POD_NAMESPACE:-demo}" "$1" "{\"metadata\":{\"labels\":$2}}" >/dev/null
}

annotate_pod() { # POD ANNOTATIONS
	cluster_pod_patch "${POD_NAMESPACE:-demo}" "$1" "{\"metadata\":{\"annotations\":$2}}" >/dev/null
}

label_namespace() { # NAMESPACE LABELS
	cluster_patch "/api/v1/namespaces/$1" "{\"metadata\":{\"labels\":$2}}" >/dev/null
}

api_annotation() { # POD NAME: its value, empty where it is absent
	api GET "/api/v1/namespaces/${POD_NAMESPACE:-demo}/pods/$1" |
		jq -r --arg name "$2" '.metadata.annotations[$name] // ""'
}

end_pod() { # POD: as kubelet and the runtime do
	cluster_pod_delete "${POD_NAMESPACE:-demo}" "$1" || true
	ztunnel_leaves "$1"
	pod_delete "$1"
	unset "UID_OF[$1]"
}

# ---- what the agent has ------------------------------------------------------------------------

pod_field() { # POD FIELD: of `sockmeshctl pod`; "none" for a pod that is not known
	ctl pod "${POD_NAMESPACE:-demo}/$1" -o json 2>/dev/null | jq -r --arg field "$2" '.pod[$field] // "none"'
}

mode_is() { # POD MODE
	[ "$(pod_field "$1" mode)" = "$2" ]
}

annotation_is() { # POD NAME VALUE
	[ "$(api_annotation "$1" "$2")" = "$3" ]
}

status_field() { # JQ-FILTER
	ctl status -o json | jq -r "$1"
}

status_is() { # JQ-FILTER VALUE
	[ "$(status_field "$1")" = "$2" ]
}

# ---- processes ---------------------------------------------------------------------------------

# Which one it is stands in a file, for tests are subshells and may start another one.
remember() { # NAME PID
	echo "$2" >"$NODE_DIR/$1.pid"
}

recall() { # NAME: prints its pid, once
	cat "$NODE_DIR/$1.pid" 2>/dev/null && rm "$NODE_DIR/$1.pid"
}

agent_up() { # [OPTION...]
	agent_start "$@"
	remember agent "$NODE_AGENT_PID"
	NODE_AGENT_PID=''
}

agent_ends() { # SIGNAL
	local pid
	pid=$(recall agent) || return 0
	kill "-$1" "$pid" 2>/dev/null || true
	ended "$pid" 10
}

# ---- ztunnel -----------------------------------------------------------------------------------

zds_start() { # its protocol, with every pod taken
	"$PROGRAMS/zds_ack" --again "$NODE_DIR/ztunnel.sock" >"$NODE_DIR/zds.log" 2>&1 </dev/null &
	disown $!
	remember zds $!
}

zds_stop() {
	local pid
	pid=$(recall zds) || return 0
	kill -KILL "$pid" 2>/dev/null || true
	ended "$pid" 10
}

# As ztunnel, which is a pod of its own, in the namespace of another. Its sockets are known only
# where the programs are: below the cgroup of the pods.
as_ztunnel() { # POD COMMAND...
	local pod=$1 cgroup=$NODE_CGROUP/kubepods/pod0bad0000-0000-4000-8000-00000000beef/ztunnel
	shift
	mkdir -p "$cgroup"
	(
		echo "$BASHPID" >"$cgroup/cgroup.procs"
		exec nsenter --net="/run/netns/$pod" -- "$@"
	)
}

# Its listeners, which it would make in the pod's namespace when it is told of the pod.
ztunnel_comes() { # POD
	remember "ztunnel-$1" "$(as_ztunnel "$1" "$PROGRAMS/reporter" --mark 0x539 ztunnel \
		dual:15001 dual:15006 dual:15008 tcp:127.0.0.1:15053 udp:127.0.0.1:15053)"
}

ztunnel_leaves() { # POD
	local group
	group=$(recall "ztunnel-$1") || return 0
	kill -KILL -- "-$group" 2>/dev/null || true
}

# What ztunnel says to the application is said as the client.
reached_for_client() { # POD ADDRESS:PORT
	as_ztunnel "$1" "$PROGRAMS/dial" --mark 0x539 --source 10.99.1.1:0 --source '[fd00:99:1::1]:0' "$2"
}

# ---- what becomes of connections ---------------------------------------------------------------

# By whom a connection of the pod's application is taken: "ztunnel", "server", or why by nobody.
taken_by() { # POD ADDRESS:PORT
	local said
	said=$(pod_run "$1" app "$APP_UID" "$PROGRAMS/dial" "$2" 2>&1) || true
	case $said in
	*label=*) said=${said#*label=} && echo "${said%% *}" ;;
	*) echo "nobody: $said" ;;
	esac
}

# The same from outside.
reached_from_node() { # ADDRESS:PORT
	local said
	said=$(node_exec "$PROGRAMS/dial" "$1" 2>&1) || true
	case $said in
	*label=*) said=${said#*label=} && echo "${said%% *}" ;;
	*) echo "nobody: $said" ;;
	esac
}

is_taken_by() { # POD WHOM: of both families
	check_equal "$(taken_by "$1" 10.88.0.1:8080)" "$2" "who takes IPv4 of $1"
	check_equal "$(taken_by "$1" "[fd88::1]:8080")" "$2" "who takes IPv6 of $1"
}

is_captured() { # POD
	is_taken_by "$1" ztunnel
}

goes_direct() { # POD
	is_taken_by "$1" server
}
