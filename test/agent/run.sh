#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The real sockmesh-agent, asked by a client of the tests' own (agent_client.py): its socket, its
# life, what it remembers. Where packets go is test/contract's business. TAP; BUILD_DIR is tested.
set -euo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/lib/tap.sh
. test/lib/node.sh

node_enter "$@"

AGENT=$BIN_DIR/sockmesh-agent
CLIENT=$REPO_DIR/test/agent/agent_client.py
SIDECAR='{"sidecar.istio.io/status":"{\"initContainers\":[\"istio-validation\"]}"}'

node_open agent
trap node_close EXIT

# ---- helpers -----------------------------------------------------------------------------------

ask() { # [OPTION...] REQUEST...
	"$CLIENT" "$NODE_RUN" "$@"
}

refused() { # CODE PART [OPTION...] REQUEST: the last answer is this refusal, and says PART
	local code=$1 part=$2 answer
	shift 2
	answer=$("$CLIENT" "$NODE_RUN" "$@") || true
	check_equal "$(tail -n1 <<<"$answer" | jq -r '.code')" "$code" "code of $answer"
	check_has "$answer" "$part"
}

attachment() { # OP CONTAINER IFNAME NETNS-NAME [POD [ANNOTATIONS]]
	jq -nc --arg op "$1" --arg id "$2" --arg ifname "$3" --arg ns "/run/netns/$4" \
		--arg pod "${5:-$2}" --argjson annotations "${6:-$SIDECAR}" --arg network "${NETWORK:-}" \
		'{op: $op, network: $network, containerId: $id, ifName: $ifname, netns: $ns, ips: ["10.9.0.2/24", "fd09::2/64"],
		  pod: {namespace: "test", name: $pod, uid: ("uid-" + $pod)}, annotations: $annotations}'
}

add() { # CONTAINER IFNAME NETNS-NAME [POD [ANNOTATIONS]]
	ask --netns "/run/netns/$3" "$(attachment add "$@")"
}

del() { # CONTAINER IFNAME [NETNS-NAME]
	if [ -n "${3:-}" ]; then
		ask --netns "/run/netns/$3" "$(attachment del "$1" "$2" "$3")"
	else
		ask "$(attachment del "$1" "$2" none)"
	fi
}

check() { # CONTAINER IFNAME NETNS-NAME
	ask --netns "/run/netns/$3" "$(attachment check "$1" "$2" "$3")"
}

gc() { # VALID: a JSON list of [CONTAINER, IFNAME]
	ask "$(jq -nc --argjson valid "$1" --arg network "${NETWORK:-}" \
		'{op: "gc", network: $network, valid: [$valid[] | {containerId: .[0], ifName: .[1]}]}')"
}

# The pods as "CONTAINER/IFNAME:DECISION", sorted, on one line.
pods() {
	ask '{"op":"pods"}' | jq -r '[.pods[] | "\(.containerId)/\(.ifName):\(.decision)"] | sort | join(" ")'
}

gc_leaves() { # VALID PODS
	gc "$1"
	[ "$(pods)" = "$2" ]
}

count() { # redirected | skipped | orphaned
	ask '{"op":"status"}' | jq ".pods.$1"
}

namespaces() { # NAME...
	local name
	for name in "$@"; do
		ip netns add "$name"
	done
}

# The status of a process that was killed must not end a test.
crash() {
	agent_kill || true
}

# Each test begins with no pods and ends with whatever it left: the next one wipes it.
fresh() {
	local name
	crash
	! mountpoint -q "$NODE_RUN" || umount "$NODE_RUN"
	for name in /run/netns/t-*; do
		[ ! -e "$name" ] || ip netns delete "${name##*/}"
	done
	agent_uninstall
	agent_start "$@"
}

in_fresh_agent() { # TEST [OPTION...]
	local body=$1
	shift
	trap crash EXIT
	fresh "$@"
	"$body"
}

test_agent() { # CLAIM TEST [OPTION...]
	local claim=$1
	shift
	tap_test "$claim" in_fresh_agent "$@"
}

exits() { # STATUS PART COMMAND...: exit status and what it says on standard error
	local wanted=$1 part=$2 status=0 said
	shift 2
	said=$("$@" 2>&1 >/dev/null) || status=$?
	check_equal "$status" "$wanted" "exit status of $*"
	check_has "$said" "$part"
}

# ---- command line ------------------------------------------------------------------------------

test_usage() {
	local config=$NODE_DIR/config.json
	exits 2 "--mode" "$AGENT" --mode tc
	exits 2 "not built yet" "$AGENT" --install-cni yes
	exits 2 "not built yet" "$AGENT" --proxy-identity cgroup
	exits 2 "--no-such" "$AGENT" --no-such
	exits 2 "SOCKMESH_MAX_PODS" env SOCKMESH_MAX_PODS=many "$AGENT"
	exits 2 "owner" "$AGENT" --owner-groups 'a b'
	exits 2 "off|proxy|auto|full-advised|full" "$AGENT" --accelerate fast
	exits 2 "more than --accelerate-max-sockets 100" "$AGENT" --accelerate-max-sockets 100 --accelerate-max-sockets-per-pod 101
	echo '{"run-dir": "/run/x", "max-pod": 7}' >"$config"
	exits 2 'unknown key "max-pod"' "$AGENT" --config "$config"
	echo '{"max-pods": "7"}' >"$config"
	exits 2 "max-pods must be a whole number" "$AGENT" --config "$config"
	exits 2 "No such file" "$AGENT" --config "$config.none"
	check_has "$("$AGENT" --help)" "--exclude-namespaces"
	check_has "$("$AGENT" --version)" "sockmesh-agent $(cat VERSION)"
}

test_dump_config() {
	local config=$NODE_DIR/config.json dump
	echo '{"max-pods": 7, "bpffs-dir": "/file"}' >"$config"
	dump=$(SOCKMESH_BPFFS_DIR=/environment "$AGENT" --config "$config" --log-level=debug --dump-config)
	check_has "$dump" "max-pods=7	# file $config, key max-pods"
	check_has "$dump" "bpffs-dir=/environment	# environment SOCKMESH_BPFFS_DIR"
	check_has "$dump" "log-level=debug	# flag --log-level"
	check_has "$dump" "run-dir=/run/sockmesh	# default"
}

test_not_a_cgroup() {
	exits 1 "not a cgroup2 directory" "$AGENT" --run-dir "$NODE_DIR/other" \
		--bpffs-dir "$NODE_BPFFS/other" --cgroup-root "$NODE_DIR" --mode ebpf
}

test_says_what_has_no_effect() {
	check_has "$(grep cni-conf-dir "$NODE_DIR/agent.log")" "not built yet"
	check_has "$(grep cni-bin-dir "$NODE_DIR/agent.log")" "not built yet"
}

# ---- the socket --------------------------------------------------------------------------------

test_modes() {
	check_equal "$(stat -c %a "$NODE_RUN")" 700
	check_equal "$(stat -c %a "$NODE_RUN/agent.sock")" 600
}

test_others_are_refused() {
	local client=$NODE_DIR/client.py
	local nobody=(setpriv --reuid 65534 --regid 65534 --clear-groups -- "$client" "$NODE_RUN")
	install -m 0755 "$CLIENT" "$client"
	exits 3 "Permission denied" "${nobody[@]}" '{"op":"status"}'
	# And by who they are, should the file modes ever let them through.
	chmod 0711 "$NODE_RUN"
	chmod 0666 "$NODE_RUN/agent.sock"
	exits 3 "" "${nobody[@]}" '{"op":"status"}'
	wait_for 5 grep -q "peer with uid 65534" "$NODE_DIR/agent.log"
	ask '{"op":"status"}'
}

test_framing() {
	refused bad-request "request" --raw "not JSON"
	refused bad-request "request" --raw "[]"
	refused bad-request "op" '{"op":"nonsense"}'
	refused bad-request "containerId" '{"op":"add"}'
	refused bad-request "" --raw "$(printf '{"v":1,"op":"status","x":"%070000d"}' 0)"
	refused unsupported "not built yet" '{"op":"flows","pod":{"namespace":"a","name":"b"}}'
	refused bad-request "advise" '{"op":"accelerate","advise":"no-namespace"}'
	ask '{"op":"status"}'
}

test_versions() {
	local answer
	answer=$(ask --raw '{"v":2,"op":"status","pods":"what v 2 means by it"}') || true
	check_equal "$(jq -r .code <<<"$answer")" version
	check_equal "$(jq .v <<<"$answer")" 1 "the version that is offered instead"
	# On the same connection the older version is spoken after all.
	answer=$(ask --raw '{"v":2,"op":"status"}' '{"v":1,"op":"status"}') || true
	check_equal "$(tail -n1 <<<"$answer" | jq .ok)" true
	# A field that a newer plugin of the same version knows.
	ask '{"op":"status","hint":{"new":true}}'
	refused bad-request "v" --raw '{"op":"status"}'
}

test_pipelining() {
	local answer
	answer=$(ask '{"op":"status"}' '{"op":"pods"}' '{"op":"nonsense"}' '{"op":"status"}') || true
	check_equal "$(jq -c '[has("version"), has("pods"), .ok]' <<<"$answer" | tr '\n' ' ')" \
		"[true,true,true] [false,true,true] [false,false,false] [true,true,true] "
}

test_silent_peers() {
	python3 - "$NODE_RUN/agent.sock" <<-'PYTHON'
		import socket, sys
		peers = [socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(257)]
		for peer in peers:
		    peer.connect(sys.argv[1])
		    peer.settimeout(20)
		# One too many: told at once. The silent ones: closed after the deadline.
		busy = peers[-1].recv(65536)
		assert b'"busy"' in busy and b'"retry":true' in busy, busy
		for peer in peers[:-1]:
		    assert peer.recv(65536) == b"", "an answer to nothing"
	PYTHON
	ask '{"op":"status"}'
}

# A peer that asks and never reads must not hold up the others, nor make the agent hold much.
test_deaf_peer() {
	python3 - "$NODE_RUN/agent.sock" <<-'PYTHON'
		import socket, sys
		deaf = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
		deaf.connect(sys.argv[1])
		deaf.settimeout(1)
		sent = 0
		try:
		    while sent < 20000:
		        deaf.send(b'{"v":1,"op":"status"}')
		        sent += 1
		except TimeoutError:
		    pass
		assert 0 < sent < 20000, sent
		other = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
		other.settimeout(5)
		other.connect(sys.argv[1])
		other.send(b'{"v":1,"op":"status"}')
		assert b'"ok":true' in other.recv(65536)
	PYTHON
}

test_long_answer() {
	local requests=() i
	namespaces t-a
	for i in $(seq 240); do
		requests+=("$(attachment add "container-$i" eth0 t-a "pod-$i" '{}')")
		if [ "${#requests[@]}" -eq 40 ]; then
			ask --netns /run/netns/t-a "${requests[@]}" >/dev/null
			requests=()
		fi
	done
	[ "$(ask '{"op":"pods"}' | wc -c)" -gt 65536 ]
	check_equal "$(ask '{"op":"pods"}' | jq '.pods | length')" 240
}

# ---- metrics -----------------------------------------------------------------------------------

# An address of this run alone: the agent listens in the machine's network namespace.
METRICS=127.$((100 + $$ / 65536)).$(($$ / 256 % 256)).$(($$ % 256)):9407

get() { # PATH [OPTION...]: what METRICS answers
	local path=$1
	shift
	curl --silent --show-error --max-time 10 "$@" "http://$METRICS$path"
}

says() { # LINE: a line of /metrics, of today's text
	get /metrics | grep -qxF -- "$1"
}

# Of every series there is one, and status and probe say the same.
test_metrics() {
	local text wanted
	namespaces t-a t-b
	ip -n t-a link set lo up
	add c1 eth0 t-a web
	add c2 eth0 t-b db '{}'
	wait_for 5 says 'sockmesh_pods{state="redirected"} 1'
	text=$(get /metrics)
	check_has "$text" "sockmesh_build_info{version=\"$(cat VERSION)\"} 1"
	check_has "$text" 'sockmesh_engine_info{engine="ebpf"} 1'
	check_has "$text" 'sockmesh_pods{state="skipped"} 1'
	check_has "$text" 'sockmesh_pods_by_engine{engine="ebpf"} 1'
	check_has "$text" 'sockmesh_accelerate_level_info{level="'
	wanted=$(ask '{"op":"probe"}' | jq -r '.accelerate.tests[] |
		"sockmesh_accelerate_probe{test=\"\(.name)\",finding=\"\(.finding)\",decides=\"\(.decides)\"} 1"')
	check_equal "$(grep '^sockmesh_accelerate_probe{' <<<"$text")" "$wanted" "the probe's results"
	check_has "$wanted" 'test="loads",finding="as-tcp"'
	check_equal "$(grep -v '^#' <<<"$text" | sed 's/ [^ ]*$//' | sort | uniq -d)" "" "series that are there twice"
	check_equal "$(get /metrics --head | tr -d '\r' | sed -n 's/^Content-Type: //p')" \
		"text/plain; version=0.0.4; charset=utf-8"
}

# Nobody listens as the proxy; that the rule decided counts all the same.
connects_from() { # NETNS-NAME
	mkdir -p "$NODE_CGROUP/kubepods/connects"
	(
		echo "$BASHPID" >"$NODE_CGROUP/kubepods/connects/cgroup.procs"
		! ip netns exec "$1" bash -c ': </dev/tcp/192.0.2.1/80' 2>/dev/null
	)
}

totals() { # of status, as series that are not zero
	ask '{"op":"status"}' | jq -r '.counters.totals.verdicts | to_entries[] | select(.value > 0) |
		"sockmesh_verdicts_total{rule=\"\(.key)\"} \(.value)"'
}

# What a pod counted does not go with the pod.
test_metrics_totals() {
	local wanted
	namespaces t-a
	ip -n t-a link set lo up
	ip -n t-a route add default dev lo
	add c1 eth0 t-a web
	connects_from t-a
	wanted=$(totals)
	check_has "$wanted" 'rule="out-'
	wait_for 5 says "$(head -n1 <<<"$wanted")"
	del c1 eth0 t-a
	check_equal "$(totals)" "$wanted" "totals without the pod"
}

test_health() {
	local options
	check_equal "$(get /healthz)" ok
	check_equal "$(get /readyz)" ready
	check_equal "$(get / --output /dev/null --write-out '%{http_code}')" 404
	check_equal "$(get /metrics --output /dev/null --write-out '%{http_code}' --request POST --data x)" 405
	# The same address again, with everything else apart.
	mapfile -t options < <(agent_options)
	options+=(--run-dir "$NODE_DIR/another-run" --bpffs-dir "$NODE_BPFFS/another" --metrics-address "$METRICS")
	exits 1 "--metrics-address $METRICS" "$AGENT" "${options[@]}"
	[ ! -e "$NODE_BPFFS/another" ]
	# The address is free again as soon as the agent is gone.
	crash
	agent_start --metrics-address "$METRICS"
	check_equal "$(get /readyz)" ready
}

# With an API server that nobody reaches the agent lives, serves its socket, and is not ready.
test_not_ready() {
	cat >"$NODE_DIR/kubeconfig" <<-'YAML'
		apiVersion: v1
		kind: Config
		current-context: node
		contexts: [{name: node, context: {cluster: none, user: agent}}]
		clusters: [{name: none, cluster: {server: "https://127.0.0.1:1", insecure-skip-tls-verify: true}}]
		users: [{name: agent, user: {token: none}}]
	YAML
	crash
	agent_start --metrics-address "$METRICS" --kubernetes auto --kubeconfig "$NODE_DIR/kubeconfig"
	check_equal "$(get /healthz)" ok
	check_equal "$(get /readyz --output /dev/null --write-out '%{http_code}')" 503
	check_has "$(get /readyz)" "not ready: the API server has not yet told"
	check_has "$(get /metrics)" "sockmesh_kubernetes_current 0"
	check_has "$(get /metrics)" "sockmesh_kubernetes_complete 0"
	check_has "$(get /metrics)" 'sockmesh_kubernetes_watch_synced{watch="pods"} 0'
}

# ---- registration ------------------------------------------------------------------------------

test_what_is_no_pod() {
	local request
	namespaces t-a
	request=$(attachment add c1 eth0 t-a)
	refused bad-request "host's own" --netns /proc/self/ns/net "$request"
	# Inside some containers process 1 cannot be looked at; then it is not the host's either.
	! [ -r /proc/1/ns/net ] ||
		refused bad-request "host's own" --netns /proc/1/ns/net "$request"
	refused bad-request "not a network namespace" --netns /dev/null "$request"
	refused bad-request "not a network namespace" --netns /proc/self/ns/uts "$request"
	refused bad-request "descriptor" "$request"
	check_equal "$(pods)" ""
}

test_decisions() {
	namespaces t-a t-b t-c
	check_equal "$(add c1 eth0 t-a web | jq -r '.decision, .engine' | tr '\n' ' ')" "redirect ebpf "
	check_equal "$(add c2 eth0 t-b db '{}' | jq -r .decision)" skip
	check_equal "$(pods)" "c1/eth0:redirect c2/eth0:skip"
	[ -n "$(ask '{"op":"pods"}' | jq -r '.pods[1].reason')" ]
	refused bad-annotation "excludeOutboundPorts" --netns /run/netns/t-c \
		"$(attachment add c3 eth0 t-c x '{"sidecar.istio.io/status":"{}","traffic.sidecar.istio.io/excludeOutboundPorts":"80,x"}')"
	refused busy "ztunnel is not connected" --netns /run/netns/t-c \
		"$(attachment add c3 eth0 t-c x '{"sockmesh.io/redirection":"ambient"}')"
	check_equal "$(pods)" "c1/eth0:redirect c2/eth0:skip"
	check c1 eth0 t-a
	check c2 eth0 t-b
	refused not-found "never added" --netns /run/netns/t-c "$(attachment check c3 eth0 t-c)"
	refused not-found "another network namespace" --netns /run/netns/t-c "$(attachment check c1 eth0 t-c)"
}

test_add_is_idempotent() {
	namespaces t-a t-b
	add c1 eth0 t-a
	add c1 eth0 t-a
	check_equal "$(pods)" "c1/eth0:redirect"
	check c1 eth0 t-a
	# The runtime uses the id again with another namespace.
	add c1 eth0 t-b
	check_equal "$(count redirected)" 1
	check c1 eth0 t-b
	# The same pod, opted out now.
	add c1 eth0 t-b c1 '{"sockmesh.io/redirection":"none"}'
	check_equal "$(count redirected) $(count skipped)" "0 1"
	del c1 eth0 t-b
	del c1 eth0 t-b
	check_equal "$(pods)" ""
}

# What eBPF cannot do falls to nftables, and it is said why.
test_fallback() {
	local answer
	namespaces t-a
	ip -n t-a link set lo up
	answer=$(add c1 eth0 t-a web '{"sidecar.istio.io/status":"{}","sidecar.istio.io/interceptionMode":"TPROXY"}')
	check_equal "$(jq -r '.decision, .engine' <<<"$answer" | tr '\n' ' ')" "redirect nftables "
	check_has "$answer" "TPROXY needs netfilter"
	check c1 eth0 t-a
	check_equal "$(ask '{"op":"status"}' | jq -c '[.engine, .counters.fallbacks, .counters.engines]')" \
		'["ebpf",1,{"ebpf":0,"nftables":1,"iptables":0}]'
	check_has "$(ip netns exec t-a nft list tables)" "table inet sockmesh"
	del c1 eth0 t-a
	check_equal "$(ip netns exec t-a nft list tables)" ""
	check_equal "$(ip -n t-a rule show table 133)" ""
}

test_late_del() {
	namespaces t-old t-new
	add old eth0 t-old web
	add new eth0 t-new web
	# With the new sandbox's namespace, as a confused runtime would.
	del old eth0 t-new
	check_equal "$(pods)" "new/eth0:redirect"
	check new eth0 t-new
	del old eth0 t-old
	del never-seen eth0 t-new
	del never-seen eth0
	check new eth0 t-new
}

test_two_interfaces() {
	namespaces t-a
	add c1 eth0 t-a
	add c1 net1 t-a
	check_equal "$(count redirected)" 1
	del c1 eth0 t-a
	check_equal "$(pods)" "c1/net1:redirect"
	check c1 net1 t-a
	del c1 net1
	check_equal "$(count redirected)" 0
}

test_gc() {
	namespaces t-a t-b t-c
	add c1 eth0 t-a
	add c2 eth0 t-b
	add c3 eth0 t-c c3 '{}'
	gc '[["c2","eth0"],["c9","eth0"]]'
	check_equal "$(pods)" "c2/eth0:redirect"
	check c2 eth0 t-b
	# A namespace that ended without a del, though the runtime still lists it.
	ip netns delete t-b
	wait_for 10 gc_leaves '[["c2","eth0"]]' ""
	refused bad-request "valid" '{"op":"gc"}'
}

# The kernel knows a namespace by a number, and gives it to another one when the first has ended.
test_namespace_number_is_used_again() {
	local number=$((1 << 30 | $$))
	namespaces t-a t-b
	ip netns set t-a "$number"
	add c1 eth0 t-a
	test/agent/deafen.py "$NODE_AGENT_PID"
	ip netns delete t-a
	wait_for 10 ip netns set t-b "$number"
	check_equal "$(pods)" "c1/eth0:redirect" "of whose end nobody has told"
	add c2 eth0 t-b
	wait_for 5 pods_are "c2/eth0:redirect"
	check c2 eth0 t-b
}

pods_are() { # PODS
	[ "$(pods)" = "$1" ]
}

test_gc_of_one_network() {
	namespaces t-a t-b
	NETWORK=cluster add c1 eth0 t-a
	NETWORK=storage add c1 net1 t-a
	NETWORK=storage add c2 net1 t-b
	NETWORK=storage gc '[["c1","net1"]]'
	check_equal "$(pods)" "c1/eth0:redirect c1/net1:redirect"
	gc '[]'
	check_equal "$(pods)" "c1/eth0:redirect c1/net1:redirect"
	NETWORK=cluster gc '[]'
	check_equal "$(pods)" "c1/net1:redirect"
	check c1 net1 t-a
}

test_max_pods() {
	namespaces t-a t-b t-c
	add c1 eth0 t-a
	add c1 net1 t-a # no further pod
	add c2 eth0 t-b
	refused limit "max-pods" --netns /run/netns/t-c "$(attachment add c3 eth0 t-c)"
	add c3 eth0 t-c c3 '{}'
	del c1 eth0 t-a
	del c1 net1 t-a
	add c3 eth0 t-c
}

# A pod of which nothing would be known after a restart is not redirected.
test_state_cannot_be_written() {
	namespaces t-a
	mount --bind "$NODE_RUN" "$NODE_RUN"
	mount -o remount,bind,ro "$NODE_RUN"
	refused kernel "state.json" --netns /run/netns/t-a "$(attachment add c1 eth0 t-a)"
	check_equal "$(pods)" ""
	check_equal "$(count redirected)" 0
	umount "$NODE_RUN"
	add c1 eth0 t-a
	check c1 eth0 t-a
}

# What a process of the pod that has CAP_NET_ADMIN makes in the place of our table is its own.
test_release_that_fails() {
	local opted_out pid
	namespaces t-a
	ip -n t-a link set lo up
	add c1 eth0 t-a
	mkfifo "$NODE_DIR/nft"
	ip netns exec t-a nft -i <"$NODE_DIR/nft" >/dev/null 2>&1 &
	pid=$!
	exec 7>"$NODE_DIR/nft"
	rm "$NODE_DIR/nft"
	echo 'delete table inet sockmesh; add table inet sockmesh { flags owner; }' >&7
	wait_for 10 is_owned t-a
	opted_out=$(attachment add c1 eth0 t-a c1 '{"sockmesh.io/redirection":"none"}')
	refused kernel "not permitted" --netns /run/netns/t-a "$opted_out"
	check_equal "$(pods)" "c1/eth0:redirect"
	# Nor does the next agent take it for a pod that is not redirected.
	crash
	exec 7>&-
	wait "$pid"
	agent_start --mode nftables
	check_equal "$(pods)" "c1/eth0:redirect"
	check_equal "$(count orphaned)" 0
	add c1 eth0 t-a
	check c1 eth0 t-a
	ask --netns /run/netns/t-a "$opted_out"
	check_equal "$(pods)" "c1/eth0:skip"
}

is_owned() { # NETNS-NAME: the table of ours in it
	ip netns exec "$1" nft list table inet sockmesh | grep -q owner
}

# Nor is one redirected after a restart that the kernel had no room for.
test_refused_by_the_kernel() {
	local before lists
	lists=$(jq -nc '{"sockmesh.io/redirection": "sidecar",
		"traffic.sidecar.istio.io/excludeOutboundPorts": [range(1; 100) | tostring] | join(",")}')
	namespaces t-a t-b
	add c1 eth0 t-a
	add c2 eth0 t-b c2 '{}'
	before=$(jq -cS .pods "$NODE_RUN/state.json")
	refused limit "max-rule-entries" --netns /run/netns/t-b "$(attachment add c2 eth0 t-b c2 "$lists")"
	check_equal "$(jq -cS .pods "$NODE_RUN/state.json")" "$before" "what the state file says"
	check_equal "$(pods)" "c1/eth0:redirect c2/eth0:skip"
}

killed_during_an_add() { # before|after the state file is put into its place, MODE of both agents
	local killer
	rm -f "$NODE_DIR/killer"
	python3 -EsB test/lib/kill_at_rename.py "$NODE_AGENT_PID" "$1" state.json >"$NODE_DIR/killer" &
	killer=$!
	wait_for 10 grep -q watching "$NODE_DIR/killer"
	check_fails add c1 eth0 t-a
	wait "$killer"
	crash
	agent_start --mode "$2"
}

# Whoever's redirection the kernel has, the next agent can name the pod.
test_killed_during_an_add() {
	local mode
	for mode in auto nftables; do
		fresh --mode "$mode"
		namespaces t-a
		killed_during_an_add before "$mode"
		check_equal "$(pods)" "" "$mode, before"
		check_equal "$(count orphaned)" 0 "$mode, before"
		killed_during_an_add after "$mode"
		check_equal "$(pods)" "c1/eth0:redirect" "$mode, after"
		check_equal "$(count orphaned)" 0 "$mode, after"
		check c1 eth0 t-a
	done
}

test_user_namespaces() {
	local helper
	# Owned by user namespaces: one maps the proxy's id, one does not.
	for helper in "t-mapped 0 100000 65536" "t-narrow 0 100000 1000"; do
		# shellcheck disable=SC2086 # words
		python3 "$REPO_DIR/test/agent/userns_netns.py" $helper
	done
	add c1 eth0 t-mapped
	check c1 eth0 t-mapped
	check_equal "$(ask '{"op":"pod","pod":{"namespace":"test","name":"c1"}}' | jq -c .lists.proxyUids)" \
		"[1337]" "the pod's own numbers"
	refused unsupported "no user id of the proxy is mapped" --netns /run/netns/t-narrow \
		"$(attachment add c2 eth0 t-narrow)"
}

test_questions() {
	namespaces t-a
	add c1 eth0 t-a web '{"sidecar.istio.io/status":"{}","traffic.sidecar.istio.io/excludeOutboundPorts":"9443"}'
	local pod='"pod":{"namespace":"test","name":"web"}'
	check_equal "$(ask "{\"op\":\"pod\",$pod}" | jq -r '.pod.containerId, (.rules | length > 5)' | tr '\n' ' ')" \
		"c1 true "
	check_equal "$(ask "{\"op\":\"explain\",$pod,\"to\":\"192.0.2.1:80\"}" | jq -r '"\(.verdict) \(.port)"')" \
		"redirect 15001"
	check_equal "$(ask "{\"op\":\"explain\",$pod,\"to\":\"[2001:db8::1]:9443\"}" | jq -r '"\(.verdict) \(.rule)"')" \
		"pass out-port-excluded"
	check_equal "$(ask "{\"op\":\"explain\",$pod,\"to\":\"192.0.2.1:80\",\"uid\":1337}" | jq -r .rule)" \
		"out-proxy-uid"
	refused not-found "test/nobody" '{"op":"pod","pod":{"namespace":"test","name":"nobody"}}'
	refused bad-request "to" "{\"op\":\"explain\",$pod,\"to\":\"nowhere\"}"
	check_equal "$(ask '{"op":"status"}' | jq -r '"\(.runDir) \(.bpffsDir)"')" \
		"$NODE_RUN $NODE_BPFFS/sockmesh"
	check_equal "$(ask '{"op":"probe"}' | jq -r '.probe.ebpf')" true
	check_equal "$(ask '{"op":"probe"}' | jq -c '[.probe.foreign[] | select(.cgroup | contains("agent-"))]')" \
		"[]" "our own programs among the foreign ones"
}

known_by() {
	ask '{"op":"probe"}' | jq -r .kubelet.knownBy
}

# Its cgroup has to be one that is made after the agent has started, as a service's is.
test_kubelet_is_told() {
	check_equal "$(known_by)" nothing "without its cgroup"
	check_has "$(ctl probe)" "$NODE_CGROUP/kubelet, is not there"
	mkdir "$NODE_CGROUP/kubelet"
	check_equal "$(known_by)" cgroup "with its cgroup"
	check_equal "$(ask '{"op":"probe"}' | jq -r .kubelet.cgroup)" "$NODE_CGROUP/kubelet"
	check_has "$(ctl probe)" "known by its cgroup"
	rmdir "$NODE_CGROUP/kubelet"
}

# ---- life --------------------------------------------------------------------------------------

test_least_privilege() {
	local status
	status=$(cat "/proc/$NODE_AGENT_PID/status")
	check_has "$status" "NoNewPrivs:	1"
	python3 - "$(awk '/^CapEff/ { print $2 }' <<<"$status")" <<-'PYTHON'
		import sys
		have = int(sys.argv[1], 16)
		# DAC_OVERRIDE NET_BROADCAST NET_ADMIN NET_RAW SYS_PTRACE SYS_ADMIN SYS_RESOURCE PERFMON BPF
		allowed = sum(1 << n for n in (1, 11, 12, 13, 19, 21, 24, 38, 39))
		assert have and not have & ~allowed, hex(have & ~allowed)
	PYTHON
}

test_signals() {
	local status=0
	namespaces t-a
	add c1 eth0 t-a
	kill -HUP "$NODE_AGENT_PID"
	ask '{"op":"status"}'
	kill -TERM "$NODE_AGENT_PID"
	wait "$NODE_AGENT_PID" || status=$?
	NODE_AGENT_PID=''
	check_equal "$status" 0
	check_fails test -e "$NODE_RUN/agent.sock"
	agent_start
	check_equal "$(pods)" "c1/eth0:redirect"
	check c1 eth0 t-a
}

test_crash() {
	namespaces t-a t-b t-c t-d
	add c1 eth0 t-a
	add c1 net1 t-a
	add c2 eth0 t-b c2 '{}'
	add c3 eth0 t-c
	add c4 eth0 t-d
	crash
	[ -S "$NODE_RUN/agent.sock" ] # a stale one, to be replaced
	ip netns delete t-c
	ip netns delete t-d
	ip netns add t-d # another namespace at the same path
	agent_start
	check_equal "$(pods)" "c1/eth0:redirect c1/net1:redirect c2/eth0:skip"
	check_equal "$(count redirected) $(count skipped) $(count orphaned)" "1 1 0"
	check c1 eth0 t-a
	del c1 eth0 t-a
	del c1 net1 t-a
	del c2 eth0 t-b
	check_equal "$(pods)" ""
}

# Killed at twelve moments of an add or a del: what the runtime then does, asking again, works, and
# nothing is known that is not so.
test_crash_on_the_way() {
	local i verb pid
	namespaces t-a t-b
	add bystander eth0 t-b
	for i in $(seq 0 11); do
		verb=add
		[ $((i % 3)) -ne 2 ] || verb=del
		"$verb" c1 eth0 t-a >/dev/null 2>&1 &
		pid=$!
		# From before the request is read to after its answer; a client takes 30 ms to start.
		sleep "0.0$((20 + i * 3))"
		crash
		wait "$pid" || true
		agent_start
		check bystander eth0 t-b >/dev/null
		! pods | grep -q c1/eth0:redirect || check c1 eth0 t-a
		add c1 eth0 t-a
		check c1 eth0 t-a
		check_equal "$(pods)" "bystander/eth0:redirect c1/eth0:redirect"
		check_equal "$(count orphaned)" 0
	done
}

test_crash_without_its_state() {
	namespaces t-a
	add c1 eth0 t-a web
	crash
	rm "$NODE_RUN/state.json"
	agent_start
	check_equal "$(ask '{"op":"pods"}' | jq -r '.pods[] | "\(.name) \(.decision) \(.orphan)"')" \
		"(recovered) redirect true"
	# Its del knows the namespace.
	del c1 eth0 t-a
	check_equal "$(pods)" ""
}

test_corrupt_state() {
	namespaces t-a t-b
	add c1 eth0 t-a
	add c2 eth0 t-b
	crash
	truncate -s -20 "$NODE_RUN/state.json"
	agent_start
	[ -s "$NODE_RUN/state.json.corrupt" ]
	check_equal "$(count orphaned)" 2
	grep -q "moved aside" "$NODE_DIR/agent.log"
	# The runtime adds it again: nothing is lost.
	add c1 eth0 t-a
	check_equal "$(count redirected) $(count orphaned)" "1 1"
	check c1 eth0 t-a
	# The other one ends with its namespace.
	ip netns delete t-b
	wait_for 10 gc_leaves '[["c1","eth0"]]' "c1/eth0:redirect"
	check c1 eth0 t-a
}

test_configuration_changed() {
	namespaces t-a
	add c1 eth0 t-a web
	crash
	agent_start --mesh osm
	check c1 eth0 t-a
	check_equal "$(ask '{"op":"explain","pod":{"namespace":"test","name":"web"},"to":"192.0.2.1:80","uid":1500}' |
		jq -r .rule)" "out-proxy-uid"
	crash
	# Excluded now; but its proxy is not bypassed behind its back.
	agent_start --exclude-namespaces test
	check_equal "$(count orphaned)" 1
	del c1 eth0 t-a
	check_equal "$(pods)" ""
}

test_second_agent() {
	local options
	mapfile -t options < <(agent_options)
	exits 1 "pid $NODE_AGENT_PID" "$AGENT" "${options[@]}"
	exits 1 "stop the agent first" "$AGENT" "${options[@]}" --uninstall
	# Nor on its pins, by whatever run directory.
	options+=(--run-dir "$NODE_DIR/another-run")
	exits 1 "another agent uses --bpffs-dir" "$AGENT" "${options[@]}"
	exits 1 "another agent uses --bpffs-dir" "$AGENT" "${options[@]}" --uninstall
	ask '{"op":"status"}'
}

test_side_by_side() {
	local first=$NODE_RUN second=$NODE_DIR/run-2 pid
	namespaces t-a t-b
	mkdir "$NODE_CGROUP/second"
	"$AGENT" --run-dir "$second" --bpffs-dir "$NODE_BPFFS/second" --cgroup-root "$NODE_CGROUP/second" \
		--kubernetes off >>"$NODE_DIR/agent-2.log" 2>&1 &
	pid=$!
	trap 'kill -KILL "$pid" || true; crash' EXIT
	wait_for 10 "$CLIENT" "$second" '{"op":"status"}'
	add c1 eth0 t-a
	NODE_RUN=$second add c2 eth0 t-b
	check_equal "$(pods)" "c1/eth0:redirect"
	check_equal "$(NODE_RUN=$second pods)" "c2/eth0:redirect"
	# One of them is removed from the node.
	kill -TERM "$pid"
	wait "$pid"
	"$AGENT" --run-dir "$second" --bpffs-dir "$NODE_BPFFS/second" \
		--cgroup-root "$NODE_CGROUP/second" --uninstall
	trap crash EXIT
	check_fails test -e "$second"
	check_fails test -e "$NODE_BPFFS/second"
	NODE_RUN=$first check c1 eth0 t-a
}

test_uninstall() {
	namespaces t-a
	add c1 eth0 t-a
	[ -e "$NODE_BPFFS/sockmesh" ]
	crash
	agent_uninstall
	check_fails test -e "$NODE_BPFFS/sockmesh"
	check_fails test -e "$NODE_RUN"
	agent_uninstall
}

# A namespace with an IPv6 address, so that its redirection comes with ::6 on lo.
pod_with_ipv6() { # NAME
	namespaces "$1"
	ip -n "$1" link set lo up
	ip -n "$1" address add fd09::2/128 dev lo
	add c1 eth0 "$1"
	check_has "$(ip -n "$1" address show dev lo)" "inet6 ::6/128"
}

test_uninstall_takes_the_address() {
	pod_with_ipv6 t-a
	crash
	agent_uninstall
	check_fails test -e "$NODE_BPFFS/sockmesh"
	check_fails check_has "$(ip -n t-a address show dev lo)" "inet6 ::6/128"
	check_has "$(ip -n t-a address show dev lo)" "inet6 fd09::2/128"
}

# Nobody knows any more where the pods are: everything goes that can, and what cannot is said.
test_uninstall_without_state() {
	pod_with_ipv6 t-a
	crash
	rm "$NODE_RUN/state.json"
	exits 1 "::6/128 stays on lo of 1 pod" agent_uninstall
	check_fails test -e "$NODE_BPFFS/sockmesh"
	check_has "$(ip -n t-a address show dev lo)" "inet6 ::6/128"
	agent_uninstall
	check_fails test -e "$NODE_RUN"
}

# A directory that is no bpffs, as on a machine that mounts none at boot.
test_bpffs_is_mounted() {
	local dir=$NODE_DIR/no-bpffs status=0
	crash
	mkdir "$dir"
	namespaces t-a
	NODE_BPFFS_SAVED=$NODE_BPFFS
	NODE_BPFFS=$dir agent_start
	add c1 eth0 t-a
	check c1 eth0 t-a
	crash
	NODE_BPFFS=$dir agent_start
	check c1 eth0 t-a || status=1
	crash
	NODE_BPFFS=$dir agent_uninstall
	NODE_BPFFS=$NODE_BPFFS_SAVED
	! mountpoint -q "$dir/sockmesh" || umount "$dir/sockmesh"
	! mountpoint -q "$dir" || umount "$dir"
	return "$status"
}

# ---- the accelerator ---------------------------------------------------------------------------

accelerator() { # FILTER: of what status says about it
	ask '{"op":"status"}' | jq -rc ".accelerate | $1"
}

pin() { # PATH: below the accelerator's pins
	echo "$NODE_BPFFS/sockmesh/accelerate-v1/$1"
}

level() { # POD: its level and why
	ask "{\"op\":\"pod\",\"pod\":{\"namespace\":\"test\",\"name\":\"$1\"}}" |
		jq -r '.pod | "\(.accelerate): \(.accelerateReason)"'
}

wishes() { # LEVEL: annotations of a pod that says so
	jq -nc --arg level "$1" '{"sidecar.istio.io/status": "{}", "sockmesh.io/accelerate": $level}'
}

# What the kernel is told: a level (0 off, 1 proxy, 2 full) for each pod, sorted.
kernel_levels() {
	bpftool -j map dump pinned "$(pin maps/accel_pods)" | jq -c '[.[].formatted.value.level] | sort'
}

map_ids() {
	local map
	for map in "$(pin maps)"/*; do
		echo "${map##*/} $(bpftool -j map show pinned "$map" | jq .id)"
	done
}

# An application and its proxy in a pod (talk.py), whose connection is in the map: its listener was
# seen by a first one.
talk_start() { # NETNS-NAME
	ip -n "$1" link set lo up
	ip -n "$1" address replace 10.9.0.2/32 dev lo
	mkdir -p "$NODE_CGROUP/kubepods/talk"
	coproc TALK {
		echo "$BASHPID" >"$NODE_CGROUP/kubepods/talk/cgroup.procs"
		exec ip netns exec "$1" test/agent/talk.py
	}
	hears ready
	talk again again
	check_equal "$(accelerator .sockets)" 2
}

hears() { # ANSWER
	local answer=nothing
	read -r -t 30 answer <&"${TALK[0]}" || true
	check_equal "$answer" "$1"
}

talk() { # COMMAND ANSWER
	echo "$1" >&"${TALK[1]}"
	hears "$2"
}

talk_end() {
	local pid=$TALK_PID
	echo quit >&"${TALK[1]}"
	wait "$pid"
}

test_accelerator_is_seen() {
	local answer program
	namespaces t-a
	check_equal "$(accelerator '[.policy, .level, .learning, .sockets, .retiring]')" '["auto","full",true,0,0]'
	check_has "$(accelerator .reason)" "--accelerate auto: proxy for all pods, full for those that ask; here "
	check_equal "$(accelerator .limits.sockets)" 32768
	check_has "$(ctl status)" "Accelerator"
	answer=$(ask '{"op":"accelerate"}')
	check_equal "$(jq -c '[.accelerate.policy, .pairs]' <<<"$answer")" '["auto",[]]'
	check_equal "$(ask '{"op":"probe"}' | jq -r '.accelerate.tests[] | select(.name == "loads") | .finding')" as-tcp
	add c1 eth0 t-a web
	check_has "$(level web)" "proxy: "
	check_has "$(ctl pod test/web)" "Accelerated"
	for program in accelerate_sockops accelerate_release accelerate_setsockopt; do
		[ -e "$(pin "links/$program")" ]
	done
	[ -e "$(pin maps/accel_sockets)" ]
}

test_accelerator_levels() {
	namespaces t-a t-b t-c t-d
	add c1 eth0 t-a none
	add c2 eth0 t-b off "$(wishes off)"
	add c3 eth0 t-c proxy "$(wishes proxy)"
	add c4 eth0 t-d full "$(wishes full)"
	check_has "$(level none)" "proxy: --accelerate auto"
	check_has "$(level off)" "off: annotation"
	check_has "$(level proxy)" "proxy: annotation"
	check_has "$(level full)" "full: annotation"
	check_equal "$(kernel_levels)" '[0,1,1,2]'
	# A change of the annotation is an add again.
	add c1 eth0 t-a none "$(wishes full)"
	check_has "$(level none)" "full: annotation"
	crash
	agent_start --accelerate proxy
	check_equal "$(kernel_levels)" '[0,1,1,1]'
	check_has "$(level full)" "--accelerate proxy does not allow"
	crash
	agent_start --accelerate full
	check_equal "$(kernel_levels)" '[0,1,2,2]'
	check_has "$(grep "^warn" "$NODE_DIR/agent.log")" "at the operator's own risk"
	del c4 eth0 t-d
	del c2 eth0
	check_equal "$(kernel_levels)" '[1,2]'
	# One that ended while no agent ran, and one of which nothing is known any more.
	crash
	ip netns delete t-a
	rm "$NODE_RUN/state.json"
	agent_start
	check_equal "$(kernel_levels)" '[]'
	check_has "$(level '(recovered)')" ""
}

# Another engine's pod, and another engine's node.
test_accelerator_rides_on_ebpf() {
	namespaces t-a t-b
	ip -n t-a link set lo up
	add c1 eth0 t-a web '{"sidecar.istio.io/status":"{}","sidecar.istio.io/interceptionMode":"TPROXY"}'
	check_equal "$(kernel_levels)" '[]'
	check_equal "$(level web)" "off: only pods of the eBPF engine; this one's is nftables"
	del c1 eth0 t-a
	crash
	agent_uninstall
	agent_start --mode nftables
	check_equal "$(accelerator .level)" off
	check_has "$(accelerator .reason)" "the eBPF engine"
	check_fails test -e "$(pin maps)"
}

test_accelerator_addresses() {
	# shellcheck disable=SC2016 # jq's
	local owned='[.[].formatted | select(.key.w[2] == 4294901760) | .value.netns]'
	local one both
	namespaces t-a t-b
	add c1 eth0 t-a
	one=$(bpftool -j map dump pinned "$(pin maps/accel_addresses)" | jq -c "$owned")
	check_fails check_equal "$one" '[0]'
	# The same addresses in another pod: nobody can be told by them.
	add c2 eth0 t-b
	both=$(bpftool -j map dump pinned "$(pin maps/accel_addresses)" | jq -c "$owned")
	check_equal "$both" '[0]'
	crash
	agent_start
	check_equal "$(bpftool -j map dump pinned "$(pin maps/accel_addresses)" | jq -c "$owned")" '[0]'
	del c2 eth0 t-b
	check_equal "$(bpftool -j map dump pinned "$(pin maps/accel_addresses)" | jq -c "$owned")" "$one"
	del c1 eth0 t-a
	check_equal "$(bpftool -j map dump pinned "$(pin maps/accel_addresses)" | jq -c "$owned")" '[]'
}

test_accelerator_restarts() {
	local ids
	namespaces t-a
	add c1 eth0 t-a web "$(wishes full)"
	talk_start t-a
	ids=$(map_ids)
	talk send sent
	crash
	agent_start --accelerate-max-sockets 5000
	check_equal "$(map_ids)" "$ids"
	check_equal "$(accelerator '[.sockets, .limits.sockets]')" '[2,5000]'
	crash
	agent_start --accelerate-max-sockets 50000
	check_equal "$(accelerator '[.sockets, .limits.sockets]')" '[2,32768]'
	check_has "$(grep "^warn" "$NODE_DIR/agent.log")" "map=accel_sockets entries=32768 asked=50000"
	talk read read
	talk ping pong
	# By the new agent's programs too.
	talk again again
	check_equal "$(accelerator .sockets)" 2
	talk_end
	wait_for 5 accelerator_has_sockets 0
}

accelerator_has_sockets() { # N
	[ "$(accelerator .sockets)" = "$1" ]
}

accelerator_is_retiring() { # N
	[ "$(accelerator .retiring)" = "$1" ]
}

# What its sockets have received and not read would go with the map: it stays until they are closed.
test_accelerator_off() {
	namespaces t-a
	add c1 eth0 t-a web "$(wishes full)"
	talk_start t-a
	talk send sent
	crash
	agent_start --accelerate off
	check_equal "$(accelerator '[.level, .reason, .retiring]')" '["off","--accelerate off",1]'
	check_equal "$(level web)" "off: --accelerate off"
	check_has "$(ctl status)" "an earlier one has stopped"
	talk read read
	talk ping pong
	[ -e "$(pin maps/accel_sockets)" ]
	# Nothing new enters.
	talk again again
	wait_for 10 accelerator_is_retiring 0
	check_fails test -e "$(pin maps)"
	talk ping pong
	talk_end
	# And with nothing in it, at once.
	crash
	agent_start
	[ -e "$(pin maps)" ]
	crash
	agent_start --accelerate off
	check_fails test -e "$(pin maps)"
}

test_accelerator_uninstall() {
	namespaces t-a
	add c1 eth0 t-a web "$(wishes full)"
	talk_start t-a
	talk send sent
	wait_for 5 test -s "$NODE_RUN/accelerate.json"
	crash
	agent_uninstall 2>"$NODE_DIR/uninstall.log"
	check_has "$(cat "$NODE_DIR/uninstall.log")" "sockets=2"
	check_fails test -e "$NODE_BPFFS/sockmesh"
	check_fails test -e "$NODE_RUN"
	talk read read
	talk ping pong
	talk_end
}

# Of another layout, as of a build between two releases: let run out beside the new one.
test_accelerator_misfit() {
	local dir
	crash
	dir=$(pin maps)
	rm "$dir/accel_pairs"
	bpftool map create "$dir/accel_pairs" type hash key 4 value 4 entries 7 name accel_pairs
	agent_start
	check_equal "$(accelerator '[.level, .retiring]')" '["full",0]'
	check_has "$(cat "$NODE_DIR/agent.log")" "it is let run out beside the new one"
	check_equal "$(bpftool -j map show pinned "$dir/accel_pairs" | jq .bytes_key)" 16
	check_fails test -e "${dir%/maps}-old0"
}

accelerator_is_attached() {
	[ -e "$(pin links/accelerate_sockops)" ]
}

test_accelerator_heals() {
	rm "$(pin links/accelerate_sockops)"
	wait_for 10 accelerator_is_attached
	check_has "$(cat "$NODE_DIR/agent.log")" "attached again"
}

accelerator_is_repaired() {
	local map
	for map in accel_control accel_ends accel_pods; do
		[ -e "$(pin "maps/$map")" ] || return 1
	done
	[ "$(accelerator_brake)" = 0 ]
}

accelerator_brake() {
	bpftool -j map dump pinned "$(pin maps/accel_control)" | jq '.[0].formatted.value.stopped'
}

test_accelerator_repairs() {
	local ids
	ids=$(map_ids)
	bpftool map update pinned "$(pin maps/accel_control)" key 0 0 0 0 value 1 0 0 0 0 0 0 0
	wait_for 10 accelerator_is_repaired
	check_has "$(cat "$NODE_DIR/agent.log")" "the accelerator was stopped"
	rm "$(pin maps/accel_ends)" "$(pin maps/accel_pods)"
	wait_for 10 accelerator_is_repaired
	check_equal "$(map_ids)" "$ids"
}

# The program that decides each send, of this node's map of sockets: no pin has it.
verdict_id() {
	local map
	map=$(bpftool -j map show pinned "$(pin maps/accel_sockets)" | jq .id)
	bpftool -j prog show | jq --argjson map "$map" \
		'first(.[] | select(.type == "sk_msg" and ((.map_ids // []) | index($map))) | .id)'
}

# The kernel refuses it when the program is not attached.
detach_verdict() {
	bpftool prog detach id "$(verdict_id)" sk_msg_verdict pinned "$(pin maps/accel_sockets)"
}

test_accelerator_verdict() {
	detach_verdict
	wait_for 10 detach_verdict
	check_has "$(cat "$NODE_DIR/agent.log")" "accelerate_verdict was detached"
}

# What ended while nobody saw it holds places no more: after a repair, and for the next agent.
test_accelerator_counts_anew() {
	namespaces t-a
	add c1 eth0 t-a web "$(wishes full)"
	talk_start t-a
	bpftool link detach pinned "$(pin links/accelerate_sockops)"
	bpftool link detach pinned "$(pin links/accelerate_release)"
	talk_end
	wait_for 10 accelerator_has_sockets 0
	check_equal "$(accelerator_holds)" 0
	check_equal "$(bpftool -j map dump pinned "$(pin maps/accel_ends)" | jq length)" 0
	check_equal "$(accelerator_brake)" 0
	talk_start t-a
	crash
	bpftool link detach pinned "$(pin links/accelerate_sockops)"
	bpftool link detach pinned "$(pin links/accelerate_release)"
	talk_end
	check_equal "$(accelerator_holds)" 4
	agent_start
	check_equal "$(accelerator_holds)" 0
	check_equal "$(bpftool -j map dump pinned "$(pin maps/accel_ends)" | jq length)" 0
}

accelerator_holds() { # places, of pods and node together
	bpftool -j map dump pinned "$(pin maps/accel_usage)" | jq '[.[].formatted.value.sockets] | add'
}

accelerator_level_is() { # POD LEVEL
	[[ "$(level "$1")" = "$2:"* ]]
}

# Of what an earlier agent has left room is made, of what is in use none.
test_accelerator_is_full() {
	local map
	namespaces t-a t-b
	map=$(pin maps/accel_pods)
	crash
	rm "$map"
	bpftool map create "$map" type hash key 8 value 8 entries 1 name accel_pods flags 1
	agent_start --reconcile-seconds 3600
	check_has "$(grep "^warn" "$NODE_DIR/agent.log")" "map=accel_pods entries=1 asked=4096"
	# At once, not when somebody looks the next time.
	bpftool map update pinned "$map" key 1 2 3 4 5 6 7 8 value 2 0 0 0 1 0 0 0
	add c1 eth0 t-a first
	check_has "$(level first)" "proxy: --accelerate auto"
	crash
	agent_start --reconcile-seconds 1
	add c2 eth0 t-b second
	check_has "$(level second)" "off: a map of the accelerator is full"
	check_equal "$(bpftool -j map dump pinned "$map" | jq -c '[.[].value[0]]')" '["0x01"]'
	check_has "$(grep "^warn" "$NODE_DIR/agent.log")" "a map of the accelerator is full"
	del c1 eth0 t-a
	wait_for 10 accelerator_level_is second proxy
	check_equal "$(bpftool -j map dump pinned "$map" | jq -c '[.[].value[0]]')" '["0x01"]'
}

# What the adviser found, and by which number the kernel knows a workload.
test_accelerator_remembers() {
	local file=$NODE_RUN/accelerate.json
	namespaces t-a t-b
	add c1 eth0 t-a web-7d4b9c6f5-x2x7q
	add c2 eth0 t-b db-0
	wait_for 5 test -s "$file"
	check_equal "$(jq -c '[.workloads[].name]' "$file")" '["test/web","test/db"]'
	crash
	jq -c '.workloads[0].cleared = true' "$file" >"$file.new"
	mv "$file.new" "$file"
	agent_start --accelerate full-advised
	check_equal "$(level web-7d4b9c6f5-x2x7q)" "full: the adviser has cleared workload test/web"
	check_has "$(level db-0)" "proxy: the adviser has not cleared workload test/db"
	# Without the file only that is lost, and no number stands for two workloads.
	crash
	echo '{"v":1,"workloads":[{"name":"test/web","id":"1"}]}' >"$file"
	agent_start --accelerate full-advised
	check_has "$(level web-7d4b9c6f5-x2x7q)" "proxy: the adviser has not cleared"
	check_has "$(cat "$NODE_DIR/agent.log")" "workloads are learned about anew"
	check_equal "$(bpftool -j map dump pinned "$(pin maps/accel_pods)" |
		jq -c '[.[].formatted.value.workload] | sort')" '[3,4]'
	refused not-found "test/nobody" '{"op":"accelerate","advise":"test/nobody"}'
}

# ---- all of it ---------------------------------------------------------------------------------

[ -x "$AGENT" ] || die "no $AGENT: build first"

tap_test "a wrong flag, variable or configuration file exits with 2 and is named" test_usage
tap_test "--dump-config prints each value with its source" test_dump_config
tap_test "a cgroup root that is none is refused where eBPF is asked for" test_not_a_cgroup
test_agent "options without effect yet are logged as such" test_says_what_has_no_effect \
	--cni-conf-dir /run/net.d --cni-bin-dir /run/bin
test_agent "the run directory is 0700 and the socket 0600" test_modes
test_agent "a peer that is not root is refused twice over" test_others_are_refused
test_agent "what is no request is answered as such, and the agent lives on" test_framing
test_agent "versions: newer is answered with ours, unknown fields are tolerated" test_versions
test_agent "pipelined requests are answered in order" test_pipelining
test_agent "too many peers are told so, silent ones are closed" test_silent_peers
test_agent "a peer that never reads holds nobody up" test_deaf_peer
test_agent "an answer over 64 KiB arrives whole" test_long_answer
test_agent "metrics say what status and probe say, every series once" test_metrics \
	--metrics-address "$METRICS"
test_agent "totals keep what pods counted that have gone" test_metrics_totals --metrics-address "$METRICS"
test_agent "health and readiness, and an address that is in use" test_health --metrics-address "$METRICS"
test_agent "without the API server's answer the agent lives and is not ready" test_not_ready
test_agent "the host's namespace and what is no namespace are refused" test_what_is_no_pod
test_agent "pods are redirected, skipped or refused, and shown with the reason" test_decisions
test_agent "a pod that eBPF cannot serve gets another engine, and leaves nothing" test_fallback
test_agent "add is idempotent, and follows a namespace or an annotation that changed" test_add_is_idempotent
test_agent "a late del of an old sandbox leaves the new one alone" test_late_del
test_agent "the redirection ends with the last interface of a pod" test_two_interfaces
test_agent "gc removes what is not listed and what has ended" test_gc
test_agent "a pod ends whose namespace's end was not told, when another has its number" \
	test_namespace_number_is_used_again --reconcile-seconds 3600
test_agent "gc of one network leaves the others' attachments" test_gc_of_one_network
test_agent "--max-pods refuses one more, and skipped pods do not count" test_max_pods --max-pods 2
test_agent "an add whose state cannot be saved is undone" test_state_cannot_be_written
test_agent "so is one that the kernel has no room for" test_refused_by_the_kernel --mode ebpf --max-rule-entries 64
test_agent "a pod that cannot be let go stays redirected, for the next agent too" \
	test_release_that_fails --mode nftables
test_agent "an agent that is killed during an add leaves no pod without a name" test_killed_during_an_add
test_agent "ids are those of the pod's user namespace" test_user_namespaces
test_agent "status, pod, explain and probe answer" test_questions
test_agent "probe says by what kubelet is known" test_kubelet_is_told \
	--kubelet-cgroup "$NODE_CGROUP/kubelet"
test_agent "probe says by what kubelet is known, nftables" test_kubelet_is_told \
	--kubelet-cgroup "$NODE_CGROUP/kubelet" --mode nftables
test_agent "the agent keeps only the capabilities that it needs" test_least_privilege
test_agent "SIGTERM ends it and leaves pods redirected, SIGHUP does nothing" test_signals
test_agent "killed and restarted, it knows its pods, and which have ended" test_crash
test_agent "killed in the middle of an add or a del, it comes back consistent" test_crash_on_the_way
test_agent "without its state file, redirected pods are recovered from the kernel" test_crash_without_its_state
test_agent "a corrupt state file is moved aside and no pod is lost" test_corrupt_state
test_agent "a new configuration takes effect at a restart, but un-redirects nobody" test_configuration_changed
test_agent "a second agent on the same run directory is refused" test_second_agent
test_agent "two agents with directories of their own do not meet" test_side_by_side
test_agent "uninstall leaves nothing, twice" test_uninstall
test_agent "uninstall takes ::6 from the pods" test_uninstall_takes_the_address
test_agent "uninstall without a state file removes the rest and says that ::6 stays" \
	test_uninstall_without_state
test_agent "bpffs is mounted where there is none" test_bpffs_is_mounted
test_agent "the accelerator is shown by status, pod, accelerate and probe" test_accelerator_is_seen
test_agent "policy and annotation make a pod's level, with a reason" test_accelerator_levels
test_agent "pods of other engines are not accelerated" test_accelerator_rides_on_ebpf
test_agent "an address that two pods have tells nobody apart, until one leaves" test_accelerator_addresses
test_agent "a killed agent's accelerated connections go on, unread bytes too" test_accelerator_restarts
test_agent "--accelerate off stops at once and goes with the last socket" test_accelerator_off
test_agent "uninstall takes the accelerator, and no byte of its connections" test_accelerator_uninstall
test_agent "pinned maps of another layout run out beside the new ones" test_accelerator_misfit
test_agent "detached programs of the accelerator are attached again" test_accelerator_heals \
	--reconcile-seconds 1
test_agent "what somebody else stops or unpins of the accelerator is repaired" test_accelerator_repairs \
	--reconcile-seconds 1
test_agent "a verdict that somebody detaches from the map of sockets is attached again" \
	test_accelerator_verdict --reconcile-seconds 1
test_agent "places of connections whose end nobody saw are counted anew" test_accelerator_counts_anew \
	--reconcile-seconds 1
test_agent "room is made in a full map of pods, and waited for" test_accelerator_is_full
test_agent "workloads keep their numbers and the adviser's verdict" test_accelerator_remembers
tap_done
