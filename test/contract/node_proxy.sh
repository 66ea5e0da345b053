# shellcheck shell=bash disable=SC2004,SC2034,SC2154 # SC2004: associative arrays of rig.sh
# SPDX-License-Identifier: Apache-2.0
#
# Scenarios of ambient pods whose proxy is in another network namespace of the node.

NODE_PROXY4=10.245.0.2 NODE_PROXY6='[fd00:45::2]'

# Netfilter cannot do it, and an agent that is told to says so.
node_proxy_needs_ebpf() { # NAME
	without_agent && return
	expect "$1: refused with this engine" "needs eBPF" "$BUILD_DIR/bin/sockmesh-agent" --dump-config \
		--mode "$ENGINE" "${NODE_PROXY_OPTIONS[@]}"
}

# An agent and a pod with its world and the proxy's namespace, enrolled: node_fresh NAME [OPTION...]
node_fresh() {
	own_agent "$1" "${NODE_PROXY_OPTIONS[@]}" "${@:2}" || return
	setting=([ambient]=yes [ztunnel]=node)
	pod_up "$1" "$1" && node_proxy_up "$1" && enrol "$1" && world_servers "$1" && app_servers "$1" && return
	echo "not ok - $1: the pod is there and enrolled"
	pod_down "$1"
	return 1
}

plain_node_proxy() { # NAME
	start_servers "$1" node as_node_proxy "$1" "$PROGRAMS/reporter" outbound dual:15001
}

echoing_node_proxy() { # NAME
	start_servers "$1" node as_node_proxy "$1" "$PROGRAMS/reporter" --echo --workers 2 outbound dual:15001
}

expect_by_node() { # NAME WHEN
	expect "$1: app v4 reaches the node's proxy $2" "label=outbound odst4=16:$EXT4:80" dial_as "$1" 1000 "$EXT4:80"
	expect "$1: app v6 reaches the node's proxy $2" "odst6=28:$EXT6:80" dial_as "$1" 1000 "$EXT6:80"
	expect "$1: client -> app is direct $2" label=app dial_from_world "$1" "$POD4:8080"
}

expect_no_node_proxy() { # NAME WHEN
	expect "$1: app v4 is refused $2" refused dial_as "$1" 1000 "$EXT4:80"
	expect "$1: app v6 is refused $2" refused dial_as "$1" 1000 "$EXT6:80"
	expect "$1: app -> itself is direct $2" label=app dial_as "$1" 1000 "$POD4:8080"
}

# Whatever a program sees of its namespace.
namespace_picture() { # NAME
	ambient_knobs "$1"
	ambient_routes "$1"
	ip -n "$1" rule
	ip -n "$1" -6 rule
	ip -n "$1" -o address show | awk '{ print $2, $4 }'
	inside "$1" nft list ruleset
}

own_handovers_left() { # AGENT
	map_entries "$1" handovers
	map_values "$1" gauges | jq '[.[].formatted.value.handovers] | add'
}

no_own_handover_left() { # AGENT
	[ "$(own_handovers_left "$1" | xargs)" = "0 0" ]
}

expect_no_own_handover_left() { # NAME
	wait_for 5 no_own_handover_left "$1"
	result $? "$1: no hand-over is left, and no place is taken"
}

# ---- life ---------------------------------------------------------------------------------------------

scenario_node_proxy_life() {
	local name=node-proxy-life before
	only_for ebpf || return
	own_agent $name "${NODE_PROXY_OPTIONS[@]}" || return
	setting=([ambient]=yes [ztunnel]=node)
	pod_up $name $name && node_proxy_up $name && world_servers $name && app_servers $name
	before=$(namespace_picture $name)
	enrol $name
	result $? "$name: is enrolled, and no ztunnel was asked"
	expect_no_node_proxy $name "before the proxy starts"
	plain_node_proxy $name
	expect_by_node $name "once it listens"
	expect "$name: nothing is changed in its namespace" "$before" namespace_picture $name
	expect "$name: as planned" '"ok":true' check_ok $name
	expect "$name: is shown as ambient" '"mode":"ambient"' pod_json $name
	expect "$name: where a connection goes is explained" "10.245.0.2:15001" explain $name "$EXT4:80"
	expect "$name: also by IPv6" "[fd00:45::2]:15001" explain $name "$EXT6:80"
	expect "$name: and what is not captured" "out-to-node-proxy" explain $name "$NODE_PROXY4:15001"
	expect "$name: the form is told" node status_field $name .enrolment.form
	agent_kill $name
	expect_by_node $name "while no agent runs"
	stop_servers $name.node
	expect_no_node_proxy $name "when the proxy ends as well"
	plain_node_proxy $name
	expect_by_node $name "with a proxy that started while no agent ran"
	restarted $name "${NODE_PROXY_OPTIONS[@]}"
	expect "$name: as planned" '"ok":true' check_ok $name
	expect_by_node $name "after the agent's restart"
	expect "$name: is removed" '"ok":true' agent_op $name del
	expect "$name: app -> external is direct" label=world dial_as $name 1000 "$EXT4:80"
	enrol $name
	result $? "$name: and is enrolled again"
	expect_by_node $name "again"
	expect_no_own_handover_left $name
	agent_kill $name
	uninstall $name >/dev/null
	result $? "$name: uninstalling says that nothing is left"
	expect "$name: the namespace is as it was" "$before" namespace_picture $name
	expect "$name: app -> external is direct" label=world dial_as $name 1000 "$EXT4:80"
	rm "$work/enrolled-$name"
	pod_down $name
}

explain() { # NAME TO
	"$BUILD_DIR/bin/sockmeshctl" --run-dir "${pod_agent[$1]}" explain --pod "contract/$1" --to "$2"
}

pod_json() { # NAME
	"$BUILD_DIR/bin/sockmeshctl" --run-dir "${pod_agent[$1]}" pod "contract/$1" -o json | jq -c .
}

# A restart with another form plans every pod anew.
scenario_node_proxy_forms() {
	local name=node-proxy-forms
	only_for ebpf || return
	node_fresh $name || return
	plain_node_proxy $name && with_ztunnel $name
	expect_by_node $name "at first"
	agent_kill $name
	restarted $name
	expect_ambient $name "when the proxy is in the pod"
	expect "$name: the sysctls are set" "1 1 1" ambient_knobs $name
	expect "$name: rules and routes of table 100" 4 ambient_routes $name
	expect "$name: as planned" '"ok":true' check_ok $name
	agent_kill $name
	restarted $name "${NODE_PROXY_OPTIONS[@]}"
	expect_by_node $name "when it is the node's again"
	expect "$name: the sysctls are what they were" "0 0 0" ambient_knobs $name
	expect "$name: no rule and no route is left" 0 ambient_routes $name
	expect "$name: as planned" '"ok":true' check_ok $name
	agent_kill $name
	restarted $name --ztunnel node --ztunnel-address 10.245.0.3,fd00:45::3
	ip -n $name-p address add 10.245.0.3/24 dev eth0
	ip -n $name-p address add fd00:45::3/64 dev eth0 nodad
	expect_by_node $name "at another address"
	setting=()
	enrol $name
	expect "$name: is a sidecar's now" "local=127.0.0" dial_as $name 1000 "$EXT4:80"
	setting=([ambient]=yes [ztunnel]=node)
	enrol $name
	expect_by_node $name "and ambient again"
	pod_down $name
}

scenario_node_proxy_crash() {
	local name=node-proxy-crash us
	only_for ebpf || return
	node_fresh $name || return
	plain_node_proxy $name
	agent_op $name del >/dev/null
	for us in $(crash_points); do
		kill_during $name "$us" enrol $name
		restarted $name "${NODE_PROXY_OPTIONS[@]}"
		expect "$name: add, $us us: the runtime's next try" 0 enrol_status $name
		expect "$name: add, $us us: all is as planned" '"ok":true' check_ok $name
		expect_by_node $name "add, $us us"
		kill_during $name "$us" agent_op $name del
		restarted $name "${NODE_PROXY_OPTIONS[@]}"
		expect "$name: del, $us us: the runtime's next try" '"ok":true' agent_op $name del
		expect_nothing_left $name "after a del, $us us"
	done
	rm -f "$work/enrolled-$name"
	pod_down $name
}

# Somebody else opens what was pinned: the next round puts it right.
scenario_node_proxy_tamper() {
	local name=node-proxy-tamper
	only_for ebpf || return
	node_fresh $name --reconcile-seconds 1 || return
	plain_node_proxy $name
	forget_pod $name
	wait_for 10 by_node_again $name
	result $? "$name: put right by the next round"
	expect_by_node $name "after it"
	expect "$name: as planned" '"ok":true' check_ok $name
	pod_down $name
}

forget_pod() { # AGENT: its only pod's entry
	local pin key
	pin=$(find "$work/bpf-$1" -name pods -type f -print -quit)
	key=$(bpftool map dump pinned "$pin" -j | jq -r '.[0].key | join(" ")')
	# shellcheck disable=SC2086 # bytes
	bpftool map delete pinned "$pin" key $key
}

by_node_again() { # NAME
	dial_as "$1" 1000 "$EXT4:80" | grep -q label=outbound
}

# ---- whose record it is ------------------------------------------------------------------------------------

# One captured connection from a known port, on its way; the answer follows.
SLOW='
import os, socket, sys
print(os.getpid(), file=sys.stderr, flush=True)
s = socket.create_connection(("10.99.0.1", 80), timeout=20, source_address=("10.244.0.5", 24000))
print(s.makefile().readline().strip())
'

# A pod with SLOW's connection, of which the proxy hears once `deaf` is deleted.
slow_up() { # NAME
	node_fresh "$1" || return
	plain_node_proxy "$1"
	deafen "$1-p"
	as_pod "$1" 1000 1000 python3 -c "$SLOW" >"$work/slow-$1" 2>"$work/slow-pid-$1" &
	pending[$1]=$!
	wait_for 5 noted_handovers "$1" 1
	result $? "$1: a connection waits for the proxy"
}

noted_handovers() { # AGENT COUNT
	[ "$(map_entries "$1" handovers)" = "$2" ]
}

# A namespace with the addresses of both ends makes a connection of the same four numbers: it is told
# nothing, and takes nothing from the one that is meant.
scenario_node_proxy_theft() {
	local name=node-proxy-theft thief=node-proxy-theft-g
	only_for ebpf || return
	slow_up $name || return
	ip netns add $thief
	ip -n $thief -batch - <<-BATCH
		link set lo up
		address add 10.244.0.5/32 dev lo
		address add $NODE_PROXY4/32 dev lo
	BATCH
	start_servers $name thief "$PROGRAMS/as" --cgroup "${pod_cgroup[$name]}" --netns /run/netns/$thief \
		"$PROGRAMS/reporter" thief tcp:0.0.0.0:15001
	expect "$name: a namespace with both addresses is told nothing" "label=thief odst4=!" "$PROGRAMS/as" \
		--cgroup "${pod_cgroup[$name]}" --netns /run/netns/$thief "$PROGRAMS/dial" \
		--source 10.244.0.5:24000 "$NODE_PROXY4:15001"
	expect "$name: the record is still there" 1 map_entries $name handovers
	inside $name-p nft delete table ip deaf
	ended "${pending[$name]}" 20
	expect "$name: for the connection that is meant" "label=outbound odst4=16:$EXT4:80" cat "$work/slow-$name"
	stop_servers $name.thief
	expect_no_own_handover_left $name
	pod_down $name
}

# The next connection with the same four numbers is another one.
scenario_node_proxy_reuse() {
	local name=node-proxy-reuse
	only_for ebpf || return
	slow_up $name || return
	kill -9 "$(head -n 1 "$work/slow-pid-$name")"
	ended "${pending[$name]}" 10
	wait_for 5 noted_handovers $name 0
	result $? "$name: and takes its record along when it is killed"
	inside $name-p nft delete table ip deaf
	expect "$name: the same ports, directly: the proxy is told nothing" "label=outbound odst4=!" \
		as_pod $name 1000 1000 "$PROGRAMS/dial" --reset --source 10.244.0.5:24000 "$NODE_PROXY4:15001"
	expect "$name: captured again, elsewhere" "label=outbound odst4=16:10.99.0.2:443" \
		as_pod $name 1000 1000 "$PROGRAMS/dial" --reset --source 10.244.0.5:24000 10.99.0.2:443
	expect "$name: and directly again" "label=outbound odst4=!" \
		as_pod $name 1000 1000 "$PROGRAMS/dial" --reset --source 10.244.0.5:24000 "$NODE_PROXY4:15001"
	expect_no_own_handover_left $name
	pod_down $name
}

scenario_node_proxy_syncookies() {
	local name=node-proxy-syncookies i
	only_for ebpf || return
	node_fresh $name || return
	inside $name-p sh -c 'echo 2 >/proc/sys/net/ipv4/tcp_syncookies'
	plain_node_proxy $name
	for i in 1 2 3; do
		expect_by_node $name "with SYN cookies, $i"
	done
	expect_no_own_handover_left $name
	pod_down $name
}

# Many at once, each with its own destination; nothing of them stays.
scenario_node_proxy_flood() {
	local name=node-proxy-flood count=4000
	only_for ebpf || return
	[ "$SCALE" != full ] || count=100000
	node_fresh $name || return
	echoing_node_proxy $name
	expect "$name: $count connections, every byte right" "ok $count" flood_as $name 1000 --workers 2 \
		--count $count --concurrency 100 --payload 256 --label outbound \
		"$EXT4:80" "$EXT4:443" 10.99.0.2:80 10.99.1.1:9999 "$EXT6:80"
	expect_no_own_handover_left $name
	pod_down $name
}

scenario_node_proxy_limits() {
	local name=node-proxy-limits
	only_for ebpf || return
	node_fresh $name --max-handovers-per-pod 8 --max-handovers 12 || return
	plain_node_proxy $name
	deafen $name-p
	pending_up $name 10
	expect "$name: a pod's share is 8 places" "EINPROGRESS=8 EPERM=2" cat "$work/pending-$name"
	expect "$name: refusals are counted" '"handover-pod-limit":2' pod_events $name
	agent_kill $name
	restarted $name "${NODE_PROXY_OPTIONS[@]}" --max-handovers-per-pod 8 --max-handovers 12
	expect "$name: known to the next agent" 8 status_field $name .counters.handovers
	pending_down $name
	wait_for 5 no_own_handover_left $name
	result $? "$name: places are given back when the sockets close"
	inside $name-p nft delete table ip deaf
	expect_by_node $name "then"
	pod_down $name
}

# ---- what does not go through ----------------------------------------------------------------------------------

# A proxy of one family: the other one is refused and not let past, unless it is not to be captured.
scenario_node_proxy_one_family() {
	local name=node-proxy-one-family
	only_for ebpf || return
	own_agent $name --ztunnel node --ztunnel-address $NODE_PROXY4 --ambient-dns-capture yes || return
	setting=([ambient]=yes [ztunnel]=node)
	pod_up $name $name && node_proxy_up $name && enrol $name && world_servers $name && app_servers $name
	result $? "$name: is enrolled"
	node_proxy_servers $name dual
	expect "$name: v4 reaches the proxy" "odst4=16:$EXT4:80" dial_as $name 1000 "$EXT4:80"
	expect "$name: v6 is refused" "not permitted" dial_as $name 1000 "$EXT6:80"
	expect "$name: a question by v6 is refused" "not permitted" ask $name 6 fd00:99::53
	expect "$name: a mapped one is answered" "from=::ffff:10.99.0.53:53" ask $name 6 ::ffff:10.99.0.53
	expect "$name: which is counted" '"no-proxy-address":2' pod_events $name
	expect "$name: which is explained" "refused: the node's proxy has no address" explain $name "$EXT6:80"
	expect "$name: and logged" "no address of this family" cat "$work/agent-$name.log"
	agent_kill $name
	restarted $name --ztunnel node --ztunnel-address $NODE_PROXY4 --capture-ipv6 no
	expect "$name: v6 is direct where it is not captured" label=world dial_as $name 1000 "$EXT6:80"
	expect "$name: v4 reaches the proxy" "odst4=16:$EXT4:80" dial_as $name 1000 "$EXT4:80"
	pod_down $name
}

# A proxy that our programs are not on, and a node that rewrites addresses: told, not silent.
scenario_node_proxy_untaken() {
	local name=node-proxy-untaken
	only_for ebpf || return
	node_fresh $name || return
	start_servers $name node "$PROGRAMS/as" --cgroup "${cgroup_base%/*}" --netns /run/netns/$name-p \
		"$PROGRAMS/reporter" outbound dual:15001
	expect "$name: a proxy outside of the pods' cgroup is told nothing" "label=outbound odst4=!" \
		dial_as $name 1000 "$EXT4:80"
	wait_for 5 untaken $name 1
	result $? "$name: which is counted when the connection ends"
	stop_servers $name.node
	plain_node_proxy $name
	inside $name-w nft -f - <<-'EOF'
		table ip rewrite {
			chain out {
				type nat hook postrouting priority 100
				ip daddr 10.245.0.2 masquerade
			}
		}
	EOF
	expect "$name: with a rewritten source it is told nothing" "label=outbound odst4=!" \
		dial_as $name 1000 "$EXT4:80"
	wait_for 5 untaken $name 2
	result $? "$name: which is counted too"
	expect "$name: and logged" "without its original destination" cat "$work/agent-$name.log"
	inside $name-w nft delete table ip rewrite
	expect_by_node $name "without it"
	expect_no_own_handover_left $name
	pod_down $name
}

untaken() { # NAME COUNT
	pod_events "$1" | grep -q "\"handover-untaken\":$2"
}

# The proxy's own pod, whatever it says of itself: its connections would come back to it.
scenario_node_proxy_own_pod() {
	local name=node-proxy-own-pod
	only_for ebpf || return
	node_fresh $name || return
	expect "$name: the proxy's own pod is left alone" '"decision":"skip"' "$PROGRAMS/enrol" \
		"${pod_agent[$name]}" add id-proxy /run/netns/$name-p proxy 10.245.0.2/24,fd00:45::2/64 \
		sockmesh.io/redirection=ambient
	expect "$name: and it is said why" "it is the proxy of this node" "$PROGRAMS/enrol" \
		"${pod_agent[$name]}" add id-proxy /run/netns/$name-p proxy 10.245.0.2/24,fd00:45::2/64 \
		sockmesh.io/redirection=ambient
	expect "$name: it reaches the world" label=world as_node_proxy $name "$PROGRAMS/dial" 10.99.0.1:80
	pod_down $name
}

# Where eBPF cannot run an agent that may choose starts, and refuses such pods.
scenario_node_proxy_without_ebpf() {
	local name=node-proxy-without-ebpf
	only_for ebpf || return
	agent_through[$name]="$PROGRAMS/denied --bpf"
	agent_mode[$name]=auto
	own_agent $name "${NODE_PROXY_OPTIONS[@]}" || return
	expect "$name: it says so at its start" "ambient pods are refused" cat "$work/agent-$name.log"
	setting=([ambient]=yes [ztunnel]=node)
	pod_up $name $name && world_servers $name
	expect "$name: the pod is refused" '"code":"unsupported"' agent_op $name add sockmesh.io/redirection=ambient
	expect "$name: and the reason is told" "needs eBPF" agent_op $name add sockmesh.io/redirection=ambient
	expect "$name: and nothing is captured" label=world dial_as $name 1000 "$EXT4:80"
	pod_down $name
}

# ---- streams ---------------------------------------------------------------------------------------------------

# Connections that exchange bytes all the time, and some that are idle, live through the agent's crash
# and restart, at every level of the accelerator, which has no part in them.
scenario_node_proxy_streams() {
	local name=node-proxy-streams level pid
	only_for ebpf || return
	for level in off proxy full; do
		node_fresh $name --accelerate $level || return
		echoing_node_proxy $name
		as_pod $name 1000 1000 "$PROGRAMS/hold" --idle 8 --busy 8 --original --label outbound \
			"$EXT4:80" "$EXT6:443" 10.99.0.2:80 >"$work/hold-$name" 2>&1 &
		pid=$!
		wait_for 10 grep -q "^holds" "$work/hold-$name"
		expect "$name: $level: 16 connections are held" "holds 16" cat "$work/hold-$name"
		agent_kill $name
		restarted $name "${NODE_PROXY_OPTIONS[@]}" --accelerate $level
		expect "$name: $level: no socket of them goes the short way" 0 \
			status_field $name .accelerate.sockets
		kill "$(sed -n 's/.*pid //p' "$work/hold-$name")"
		ended $pid 20
		expect "$name: $level: every byte of 16 connections is right" "ok 16" cat "$work/hold-$name"
		expect_no_own_handover_left $name
		pod_down $name
		agent_kill $name
	done
}
