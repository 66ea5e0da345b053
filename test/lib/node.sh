# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# One node to test on, apart from the machine it runs on: a directory, a network namespace, a
# cgroup2 subtree with `kubepods` in it, a bpffs, an agent. Everything of it is under NODE_DIR,
# NODE_CGROUP or the private mount namespace, so that several nodes run side by side and nothing
# stays when one ends, however it ends.
#
#	node_enter "$@"		# first: the script again, in a mount namespace of its own
#	node_open NAME		# sets NODE_DIR NODE_CGROUP NODE_NETNS NODE_RUN NODE_BPFFS
#	trap node_close EXIT

NODE_NAME='' NODE_DIR='' NODE_CGROUP='' NODE_NETNS='' NODE_RUN='' NODE_BPFFS=''
NODE_AGENT_PID=''

REPO_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
BUILD_DIR=${BUILD_DIR:-build}
case $BUILD_DIR in
/*) ;;
*) BUILD_DIR=$REPO_DIR/$BUILD_DIR ;;
esac
BIN_DIR=$BUILD_DIR/bin
CACHE_DIR=$REPO_DIR/build/cache
CNI_PLUGIN_DIR=${CNI_PLUGIN_DIR:-/usr/lib/cni}
export REPO_DIR BUILD_DIR BIN_DIR CACHE_DIR CNI_PLUGIN_DIR

die() {
	echo "${0##*/}: $*" >&2
	exit 1
}

# Waits until COMMAND succeeds, at most SECONDS; its output is not shown. On a slow machine
# SOCKMESH_TEST_PATIENCE multiplies that.
wait_for() { # SECONDS COMMAND...
	local end=$((SECONDS + $1 * ${SOCKMESH_TEST_PATIENCE:-1}))
	shift
	until "$@" >/dev/null 2>&1; do
		[ "$SECONDS" -lt "$end" ] || return 1
		sleep 0.05
	done
}

cgroup2_mount() {
	awk '{ for (i = 7; i < NF; i++) if ($i == "-") { if ($(i + 1) == "cgroup2") { print $5; exit } } }' \
		/proc/self/mountinfo
}

# Mounts made from here on are seen by nobody else and end with us, /run/netns included: names of
# network namespaces would otherwise be shared with the machine.
node_enter() {
	[ "$(id -u)" -eq 0 ] || die "must run as root"
	[ -z "${SOCKMESH_TEST_NODE:-}" ] || return 0
	export SOCKMESH_TEST_NODE=1
	exec unshare --mount --propagation private -- "$0" "$@"
}

node_open() { # NAME
	local mount
	NODE_NAME=$1-$$
	mount=$(cgroup2_mount)
	[ -n "$mount" ] || die "no cgroup2 is mounted here"

	NODE_DIR=$(mktemp -d "/tmp/sockmesh-$NODE_NAME.XXXXXX")
	chmod 0755 "$NODE_DIR"
	mkdir -p /run/netns
	mount -t tmpfs tmpfs /run/netns
	NODE_CGROUP=$mount/sockmesh-$NODE_NAME
	NODE_CGROUP_PATH=/sockmesh-$NODE_NAME
	mkdir -p "$NODE_CGROUP/kubepods"
	NODE_BPFFS=$NODE_DIR/bpf
	mkdir "$NODE_BPFFS"
	mount -t bpf bpf "$NODE_BPFFS"
	NODE_RUN=$NODE_DIR/run
	NODE_NETNS=node
	ip netns add "$NODE_NETNS"
	ip -n "$NODE_NETNS" link set lo up
	# The bridge's addresses are used at once, not after seconds of duplicate detection.
	node_exec sysctl -qw net.ipv6.conf.all.accept_dad=0 net.ipv6.conf.default.accept_dad=0
	export NODE_NAME NODE_DIR NODE_CGROUP NODE_CGROUP_PATH NODE_BPFFS NODE_RUN NODE_NETNS
}

node_exec() { # COMMAND...: in the node's network namespace
	nsenter --net="/run/netns/$NODE_NETNS" -- "$@"
}

# Ends every process of a cgroup directory and removes the directory.
cgroup_remove() { # DIR
	local dir
	[ -d "$1" ] || return 0
	if [ -e "$1/cgroup.kill" ]; then
		echo 1 >"$1/cgroup.kill"
	else
		find "$1" -type d | while read -r dir; do
			xargs -r kill -KILL <"$dir/cgroup.procs" 2>/dev/null || true
		done
	fi
	find "$1" -depth -type d | while read -r dir; do
		wait_for 10 rmdir "$dir" || echo "cannot remove $dir" >&2
	done
}

# Safe to call twice, and when node_open got only half way.
node_close() {
	local status=$? name
	# bash 5.2 runs the EXIT trap also in a pipeline's subshell that errexit ends.
	[ "$BASHPID" -eq $$ ] || return "$status"
	set +e
	agent_kill
	# What it has in the namespace that the machine itself is in ends with nothing else.
	[ ! -d "$NODE_RUN" ] || agent_uninstall >/dev/null 2>&1
	[ -z "$NODE_CGROUP" ] || cgroup_remove "$NODE_CGROUP"
	if [ -n "$NODE_NETNS" ]; then
		for name in /run/netns/*; do
			[ ! -e "$name" ] || ip netns delete "${name##*/}"
		done
		umount /run/netns
	fi
	[ -z "$NODE_BPFFS" ] || umount "$NODE_BPFFS"
	if [ -n "$NODE_DIR" ] && [ -z "${KEEP_NODE_DIR:-}" ]; then
		rm -rf --one-file-system "$NODE_DIR"
	fi
	NODE_CGROUP='' NODE_NETNS='' NODE_BPFFS='' NODE_DIR=''
	return "$status"
}

# ---- the agent ---------------------------------------------------------------------------------

ctl() { # VERB...: sockmeshctl to this node's agent
	"$BIN_DIR/sockmeshctl" --run-dir "$NODE_RUN" "$@"
}

agent_options() {
	printf '%s\n' --run-dir "$NODE_RUN" --bpffs-dir "$NODE_BPFFS/sockmesh" \
		--cgroup-root "$NODE_CGROUP" --kubernetes off --ztunnel-socket "$NODE_DIR/ztunnel.sock"
}

agent_start() { # [OPTION...]
	local options
	mapfile -t options < <(agent_options)
	"$BIN_DIR/sockmesh-agent" "${options[@]}" "$@" >>"$NODE_DIR/agent.log" 2>&1 </dev/null &
	NODE_AGENT_PID=$!
	if ! wait_for 10 agent_settled || ! agent_answers >/dev/null 2>&1; then
		echo "the agent does not answer; its log:" >&2
		tail -n 20 "$NODE_DIR/agent.log" >&2
		return 1
	fi
}

agent_settled() { # it answers, or has given up
	! kill -0 "$NODE_AGENT_PID" || agent_answers
}

agent_answers() {
	kill -0 "$NODE_AGENT_PID" && ctl status
}

agent_kill() { # as a crash does
	[ -n "$NODE_AGENT_PID" ] || return 0
	kill -KILL "$NODE_AGENT_PID" 2>/dev/null || true
	wait "$NODE_AGENT_PID" 2>/dev/null || true
	NODE_AGENT_PID=''
}

agent_stop() {
	[ -n "$NODE_AGENT_PID" ] || return 0
	kill -TERM "$NODE_AGENT_PID"
	wait "$NODE_AGENT_PID" || true
	NODE_AGENT_PID=''
}

agent_uninstall() {
	local options
	mapfile -t options < <(agent_options)
	"$BIN_DIR/sockmesh-agent" "${options[@]}" --uninstall
}
