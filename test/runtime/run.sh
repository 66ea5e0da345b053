#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# A real runtime: containerd makes pod sandboxes through its CRI, with sockmesh-cni in its chain,
# and runc runs a sidecar and an app in them. TAP. containerd, its state and its sockets are
# private to the test.

set -euo pipefail

LIB_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/../lib" && pwd)
# shellcheck source=test/lib/node.sh
. "$LIB_DIR/node.sh"
# shellcheck source=test/lib/tap.sh
. "$LIB_DIR/tap.sh"
# shellcheck source=test/lib/cni.sh
. "$LIB_DIR/cni.sh"
# shellcheck source=test/lib/download.sh
. "$LIB_DIR/download.sh"

TEST_DIR=$REPO_DIR/test/runtime
PAUSE_IMAGE=sockmesh.test/pause:1
PROGRAMS_IMAGE=sockmesh.test/programs:1
APP_UID=1000
PROXY_UID=1337
CONTAINERD_PID=''
VENV=''

# ---- containerd --------------------------------------------------------------------------------

containerd_config() {
	cat <<-END
		version = 2
		root = "$NODE_DIR/containerd/root"
		state = "$NODE_DIR/containerd/state"
		disabled_plugins = [
		    "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.zfs",
		    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.aufs"]
		[grpc]
		    address = "$NODE_DIR/containerd.sock"
		[plugins."io.containerd.internal.v1.opt"]
		    path = "$NODE_DIR/containerd/opt"
		[plugins."io.containerd.grpc.v1.cri"]
		    sandbox_image = "$PAUSE_IMAGE"
		    restrict_oom_score_adj = true
		[plugins."io.containerd.grpc.v1.cri".cni]
		    bin_dir = "$NODE_DIR/cni-bin"
		    conf_dir = "$NODE_DIR/cni-conf"
		[plugins."io.containerd.grpc.v1.cri".containerd]
		    snapshotter = "native"
		[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
		    runtime_type = "io.containerd.runc.v2"
		    pod_annotations = ["sidecar.istio.io/*", "traffic.sidecar.istio.io/*", "sockmesh.io/*"]
	END
}

containerd_start() {
	local plugin
	mkdir -p "$NODE_DIR/containerd" "$NODE_DIR/cni-bin" "$NODE_DIR/cni-conf" "$NODE_DIR/logs"
	for plugin in bridge host-local loopback sockmesh-cni; do
		ln -s "$(cni_find "$plugin")" "$NODE_DIR/cni-bin/$plugin"
	done
	cni_conflist "$NODE_DIR/cni-conf/10-test.conflist" "$(cni_sockmesh_entry)"
	containerd_config >"$NODE_DIR/containerd.toml"
	# Whatever it mounts below is unmounted with this.
	mount -t tmpfs tmpfs "$NODE_DIR/containerd"
	# Its shims put their sockets there, whatever the configuration says.
	mkdir -p /run/containerd
	mount -t tmpfs tmpfs /run/containerd
	# Itself, not a shell around it: its pid is needed.
	nsenter --net="/run/netns/$NODE_NETNS" -- containerd --config "$NODE_DIR/containerd.toml" \
		>"$NODE_DIR/containerd.log" 2>&1 </dev/null &
	CONTAINERD_PID=$!
	wait_for 30 cri_answers || return 1
}

cri_answers() {
	kill -0 "$CONTAINERD_PID" && cri status
}

# Sandboxes, and with them containers and shims, outlive containerd: they go first.
containerd_stop() {
	local id pid
	[ -n "$CONTAINERD_PID" ] || return 0
	for id in $(jq -r .id "$NODE_DIR"/*.sandbox 2>/dev/null); do
		cri remove "$id" >/dev/null 2>&1
	done
	for pid in $(shim_pids); do
		kill -KILL "$pid" 2>/dev/null
	done
	cgroup_remove "$NODE_CGROUP"
	kill -TERM "$CONTAINERD_PID" 2>/dev/null
	wait "$CONTAINERD_PID"
	CONTAINERD_PID=''
	wait_for 10 umount -R "$NODE_DIR/containerd"
	wait_for 10 umount /run/containerd
	# On a cgroup v1 or hybrid host runc made directories in the other hierarchies, too.
	find /sys/fs/cgroup -depth -type d -path "*/sockmesh-$NODE_NAME/*" -exec rmdir {} + 2>/dev/null
	find /sys/fs/cgroup -mindepth 2 -maxdepth 2 -name "sockmesh-$NODE_NAME" \
		! -path "$NODE_CGROUP" -exec rmdir {} + 2>/dev/null
}

# Shims of this containerd, which its address on their command line tells.
shim_pids() {
	local file
	for file in /proc/[0-9]*/cmdline; do
		if { tr '\0' ' ' <"$file"; } 2>/dev/null | grep -q "^[^ ]*containerd-shim.* $NODE_DIR/containerd.sock "; then
			basename "$(dirname "$file")"
		fi
	done
}

cri() { # VERB...
	"$VENV/bin/python" "$TEST_DIR/cri.py" --socket "$NODE_DIR/containerd.sock" "$@"
}

build_images() {
	local program
	for program in pause who; do
		"${CC:-gcc}" -std=gnu11 -D_GNU_SOURCE -O2 -static -s -I"$LIB_DIR" \
			-o "$NODE_DIR/$program" "$TEST_DIR/$program.c"
	done
	"$PYTHON" -I "$TEST_DIR/image.py" "$NODE_DIR/pause.tar" "$PAUSE_IMAGE" pause "$NODE_DIR/pause"
	"$PYTHON" -I "$TEST_DIR/image.py" "$NODE_DIR/programs.tar" "$PROGRAMS_IMAGE" who "$NODE_DIR/who"
}

import_images() {
	local image
	for image in pause programs; do
		ctr --address "$NODE_DIR/containerd.sock" --namespace k8s.io images import \
			--snapshotter native "$NODE_DIR/$image.tar"
	done
}

# ---- pods --------------------------------------------------------------------------------------

# Writes the pod's description; `sandbox` then makes it.
pod_describe() { # NAME ANNOTATIONS
	local uid
	uid=$(printf '%s' "$1" | md5sum | sed -E 's/^(.{8})(.{4})(.{4})(.{4})(.{12}).*/\1-\2-\3-\4-\5/')
	mkdir -p "$NODE_DIR/logs/$1"
	jq -n --arg name "$1" --arg uid "$uid" --argjson annotations "$2" \
		--arg cgroup "$NODE_CGROUP_PATH/kubepods/pod$uid" --arg logs "$NODE_DIR/logs/$1" \
		'{namespace: "runtime", $name, $uid, $annotations, cgroupParent: $cgroup,
		  logDirectory: $logs}' >"$NODE_DIR/$1.json"
}

sandbox() { # NAME ANNOTATIONS: its facts go to NAME.sandbox
	pod_describe "$1" "$2"
	cri run "$NODE_DIR/$1.json" >"$NODE_DIR/$1.sandbox"
}

sandbox_get() { # NAME JQ-EXPRESSION
	jq -r "$2" "$NODE_DIR/$1.sandbox"
}

container() { # NAME CONTAINER UID COMMAND...
	local name=$1
	shift
	cri start "$NODE_DIR/$name.json" "$(sandbox_get "$name" .id)" "$@"
}

sandbox_end() { # NAME
	cri stop "$(sandbox_get "$1" .id)"
	cri remove "$(sandbox_get "$1" .id)"
}

# Whoever answers at the pod's address and port, asked from the node.
reach() { # NAME FAMILY PORT
	local filter='contains(":") | not'
	[ "$2" = 4 ] || filter='contains(":")'
	node_exec "$NODE_DIR/who" dial "$(sandbox_get "$1" "first(.ips[] | select($filter))")" "$3"
}

answers() { # NAME PORT PART
	reach "$1" 4 "$2" | grep -q "$3"
}

# A container that dials and ends; its log line without CRI's prefix.
dial_from() { # NAME CONTAINER UID ADDRESS PORT
	local log=$NODE_DIR/logs/$1/$2.log
	container "$1" "$2" "$3" /who dial "$4" "$5" >/dev/null
	wait_for 10 test -s "$log" || echo "container $2 wrote nothing"
	cut -d' ' -f4- "$log"
}

SIDECAR='{"sidecar.istio.io/status":"{\"containers\":[\"istio-proxy\"]}"}'

# ---- the tests ---------------------------------------------------------------------------------

test_sandbox() {
	sandbox meshed "$SIDECAR"
	cat "$NODE_DIR/meshed.sandbox"
	check_equal "$(sandbox_get meshed '.ips | length')" 2 "number of addresses"
}

test_agent_knows() {
	local answer
	answer=$(ctl pod runtime/meshed -o json)
	check_equal "$(jq -r '[.. | .decision? | strings] | first' <<<"$answer")" redirect "decision"
	check_has "$answer" "$(sandbox_get meshed '.ips[0]')"
	check_has "$answer" "$(sandbox_get meshed .id)"
	check_equal "$(ctl pods -o json | jq '.pods | length')" 1 "number of pods"
}

test_containers() {
	container meshed istio-proxy "$PROXY_UID" /who serve 15001=outbound 15006=inbound
	container meshed app "$APP_UID" /who serve 8080=app
	wait_for 10 answers meshed 8080 inbound
}

test_inbound() { # FAMILY
	local line address
	line=$(reach meshed "$1" 8080)
	address=$(sandbox_get meshed ".ips[$(($1 == 4 ? 0 : 1))]")
	check_has "$line" "inbound original=$address:8080 peer="
}

# Nothing listens at the node's address: only redirection can make this connection.
test_outbound() { # FAMILY ADDRESS
	local line
	line=$(dial_from meshed "client$1" "$APP_UID" "$2" 4444)
	check_has "$line" "outbound original=$2:4444 peer=$(sandbox_get meshed ".ips[$(($1 == 4 ? 0 : 1))]")"
}

test_plain() {
	sandbox plain '{}'
	container plain app "$APP_UID" /who serve 8080=app
	wait_for 10 answers plain 8080 app
	check_has "$(reach plain 6 8080)" "app original="
	check_has "$(dial_from plain client "$APP_UID" "$(sandbox_get meshed '.ips[0]')" 9)" "inbound original="
	sandbox_end plain
}

test_bad_annotation() {
	local message status=0
	message=$(sandbox bad "$(jq -c '. + {"traffic.sidecar.istio.io/excludeOutboundPorts": "80,many"}' <<<"$SIDECAR")" 2>&1) || status=$?
	check_equal "$status" 1 "cri.py's exit status"
	check_has "$message" excludeOutboundPorts
	check_has "$message" many
}

test_removed() {
	local netns
	netns=$(sandbox_get meshed .netns)
	test -e "$netns"
	sandbox_end meshed
	check_equal "$(ctl pods -o json | jq '.pods | length')" 0 "number of pods"
	test ! -e "$netns"
}

# Its namespace is not named by anybody else; nothing may be left of it in the chain's books.
test_nothing_left() {
	check_equal "$(find "$NODE_DIR/ipam" -type f -name '*[0-9].*' | wc -l)" 0 "addresses still leased"
	check_equal "$(find "$NODE_DIR/ipam" -type f -name '*:*' | wc -l)" 0 "IPv6 addresses still leased"
	check_equal "$(node_exec ip -j link show type veth | jq length)" 0 "veth pairs"
}

test_agent_down() {
	local message status=0
	message=$(sandbox late "$SIDECAR" 2>&1) || status=$?
	check_equal "$status" 1 "cri.py's exit status"
	check_has "$message" sockmesh
	sandbox unmeshed '{"sockmesh.io/redirection": "none"}'
	sandbox_end unmeshed
}

test_uninstall() {
	agent_uninstall
	test ! -e "$NODE_RUN"
	if [ -e "$NODE_BPFFS/sockmesh" ]; then
		check_equal "$(find "$NODE_BPFFS/sockmesh" -mindepth 1 | wc -l)" 0 "pins"
	fi
}

node_address() { # FAMILY
	node_exec ip -j "-$1" address show dev cni0 scope global | jq -r 'first(.[].addr_info[].local | strings)'
}

end() {
	local status=$?
	[ "$BASHPID" -eq $$ ] || return "$status"
	set +e
	containerd_stop
	node_close
	return "$status"
}

main() {
	local program
	[ -x "$BIN_DIR/sockmesh-agent" ] || die "no $BIN_DIR/sockmesh-agent: run make first"
	for program in containerd ctr runc; do
		command -v "$program" >/dev/null || tap_skip_all "no $program"
	done
	node_open runtime
	trap end EXIT
	trap 'exit 130' INT TERM HUP
	VENV=$(python_venv grpc grpcio grpcio-tools) || tap_skip_all "Python's grpcio cannot be had"
	build_images
	agent_start --mode ebpf
	if ! containerd_start; then
		tap_comment < <(tail -n 10 "$NODE_DIR/containerd.log")
		tap_skip_all "containerd does not start here: $(tail -n 1 "$NODE_DIR/containerd.log")"
	fi
	import_images >"$NODE_DIR/import.log" 2>&1 || die "import of the images: $(cat "$NODE_DIR/import.log")"

	tap_test "a pod sandbox is made with sockmesh-cni in containerd's chain" test_sandbox
	tap_test "the agent was told its annotations and addresses, and redirects it" test_agent_knows
	tap_test "runc starts a sidecar and an app in it" test_containers
	tap_test "IPv4 from the node reaches the sidecar, not the app" test_inbound 4
	tap_test "IPv6 from the node reaches the sidecar, not the app" test_inbound 6
	tap_test "IPv4 out of the app's container reaches the sidecar" test_outbound 4 "$(node_address 4)"
	tap_test "IPv6 out of the app's container reaches the sidecar" test_outbound 6 "$(node_address 6)"
	tap_test "a pod without annotations is not redirected" test_plain
	tap_test "an annotation that is not valid refuses the pod, by name" test_bad_annotation
	tap_test "a removed sandbox is forgotten" test_removed
	tap_test "no lease and no interface is left" test_nothing_left
	agent_kill
	tap_test "agent down: a pod of the mesh waits, one that opted out does not" test_agent_down
	tap_test "uninstalling leaves nothing" test_uninstall
	tap_done
}

node_enter "$@"
main
