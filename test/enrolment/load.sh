#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Pods that move into the mesh and out of it under load, many at once, and while everything around
# them fails: a real API server with etcd, real namespaces and processes. Prints TAP, with figures
# as comments. Environment: ENGINE (auto), SCALE (ci, full), ONLY (regular expression of claims),
# LOAD_SUITE=1 (what the suite restarts runs: a part of it, with each engine). It needs the API server
# that `make test-cluster` builds and keeps in build/cache.
set -euo pipefail
cd "$(dirname "$0")/../.."

# shellcheck source=test/lib/node.sh
. test/lib/node.sh
# shellcheck source=test/lib/processes.sh
. test/lib/processes.sh
# shellcheck source=test/lib/cni.sh
. test/lib/cni.sh
# shellcheck source=test/lib/pod.sh
. test/lib/pod.sh
# shellcheck source=test/lib/tap.sh
. test/lib/tap.sh
# shellcheck source=test/cluster/cluster.sh
. test/cluster/cluster.sh
# shellcheck source=test/enrolment/lib.sh
. test/enrolment/lib.sh
# shellcheck source=test/enrolment/churn.sh
. test/enrolment/churn.sh

ENGINE=${ENGINE:-auto} ONLY=${ONLY:-} SCALE=${SCALE:-ci}
case $SCALE in
full) FLIPS=1000 CLIENTS=100 CROWD=250 ;;
*) FLIPS=40 CLIENTS=20 CROWD=60 ;;
esac
LOAD_SUITE=${LOAD_SUITE:-}
[ -z "$LOAD_SUITE" ] || FLIPS=10
FLIPS=${LOAD_FLIPS:-$FLIPS} CLIENTS=${LOAD_CLIENTS:-$CLIENTS} CROWD=${LOAD_CROWD:-$CROWD}
AMBIENT='{"istio.io/dataplane-mode":"ambient"}'
NOT_AMBIENT='{"istio.io/dataplane-mode":null}'
REDIRECTION=ambient.istio.io/redirection
CLIENT_PROGRAM=$BUILD_DIR/test/enrolment/clients

node_enter "$@"

agent_options() {
	printf '%s\n' --run-dir "$NODE_RUN" --bpffs-dir "$NODE_BPFFS/sockmesh" \
		--cgroup-root "$NODE_CGROUP" --kubeconfig "$NODE_DIR/kubeconfig" --node-name "$TEST_NODE" \
		--ztunnel-socket "$NODE_DIR/ztunnel.sock" --mode "$ENGINE" --reconcile-seconds 5
}

# A part of the tests needs not be set up when ONLY begins with the name of another.
is_wanted() { # PART
	[ -z "$ONLY" ] || [[ $ONLY = "$1"* ]]
}

check() { # CLAIM FUNCTION [ARG...]
	[[ $1 =~ $ONLY ]] || return 0
	tap_test "${LOAD_SUITE:+$ENGINE: }$1" "${@:2}"
	figures
}

# What a test has measured, as comments.
figure() { # TEXT
	echo "$1" >>"$NODE_DIR/figures"
}

figures() {
	[ -e "$NODE_DIR/figures" ] || return 0
	tap_comment <"$NODE_DIR/figures"
	rm "$NODE_DIR/figures"
}

close_all() {
	local file
	[ "$BASHPID" -eq $$ ] || return 0
	for file in "$NODE_DIR"/ztunnel-*.pid; do
		[ -e "$file" ] || continue
		file=${file##*/ztunnel-}
		ztunnel_leaves "${file%.pid}"
	done
	servers_end
	api_cut_off
	for file in "$NODE_DIR"/*.load; do
		[ ! -e "$file" ] || kill -KILL "$(cat "$file")" 2>/dev/null || true
	done
	zds_stop
	agent_ends KILL
	node_close
	cluster_close
}

# Servers are process groups. Their names are in files, for tests are subshells.
server() { # NAME GROUP
	remember "server-$1" "$2"
}

servers_end() {
	local file group
	for file in "$NODE_DIR"/server-*.pid; do
		[ -e "$file" ] || continue
		file=${file##*/}
		group=$(recall "${file%.pid}")
		kill -KILL -- "-$group" 2>/dev/null || true
	done
}

percentile() { # PERCENT: of the numbers on standard input
	sort -n | awk -v percent="$1" '{ n[NR] = $1 } END {
		at = int(NR * percent / 100 + 0.5); if (at < 1) at = 1; if (NR) print n[at] }'
}

now_us() {
	echo "${EPOCHREALTIME/./}"
}

# ---- one pod, back and forth, under connections ------------------------------------------------

# ztunnel's places, each by a name of its own: what arrives at the wrong one is seen.
ztunnel_listens() { # POD
	local place
	for place in "out dual:15001" "in dual:15006" "hbone dual:15008"; do
		remember "ztunnel-$1-${place%% *}" "$(as_ztunnel "$1" \
			"$PROGRAMS/reporter" --echo --mark 0x539 "zt-${place%% *}" "${place#* }")"
	done
}

# Programs that say their own pid, for what starts them is a shell.
load_start() { # NAME COMMAND...
	local name=$1
	shift
	"$@" >"$NODE_DIR/$name.said" 2>&1 </dev/null &
	disown $!
	wait_for 10 grep -q ', pid [0-9]' "$NODE_DIR/$name.said" &&
		sed -n 's/.*, pid //p' "$NODE_DIR/$name.said" >"$NODE_DIR/$name.load"
}

load_ends() { # NAME
	local pid
	pid=$(cat "$NODE_DIR/$1.load")
	kill -TERM "$pid" && wait_for 60 has_ended "$pid"
	rm "$NODE_DIR/$1.load"
}

hold_start() { # NAME COMMAND...
	load_start "$@" && grep -q "^holds $HELD " "$NODE_DIR/$1.said"
}

phase() { # PHASE
	"$CLIENT_PROGRAM" phase "$NODE_DIR/phase" "$1"
}

poll_until() { # SECONDS COMMAND...: as wait_for, but finer
	local end=$(($(now_us) + $1 * 1000000))
	shift
	until "$@" >/dev/null 2>&1; do
		[ "$(now_us)" -lt "$end" ] || return 1
		pause 0.003
	done
}

# The label, then the agent's word; from then until the next label connections are held to it.
flip() { # LABELS MODE PHASE
	local start
	phase either
	start=$(now_us)
	label_pod "$FLIPPED" "$1"
	poll_until 20 mode_is "$FLIPPED" "$2" || {
		echo "not $2 after 20 s"
		return 1
	}
	echo $((($(now_us) - start) / 1000)) >>"$NODE_DIR/flips-$3"
	phase "$3"
	"$CLIENT_PROGRAM" wait "$NODE_DIR/phase" 4 "${1:+$HELD_TO}" 30
}

flips_setup() {
	rm -f "$NODE_DIR"/flips-*
	run_pod "$FLIPPED"
	server app "$(nsenter --net="/run/netns/$FLIPPED" -- "$PROGRAMS/reporter" --echo app dual:8080)"
	server node "$(node_exec "$PROGRAMS/reporter" --echo server dual:8080)"
	ztunnel_listens "$FLIPPED"
	for netns in "$FLIPPED" "$NODE_NETNS"; do
		ip netns exec "$netns" sysctl -qw net.ipv4.tcp_tw_reuse=1 \
			net.ipv4.ip_local_port_range="20000 60000"
	done
}

HELD=20 HELD_TO=10

# ztunnel's own to the application, under the address of whoever has asked it.
ztunnel_holds() {
	hold_start self-enrolled as_ztunnel "$FLIPPED" "$PROGRAMS/hold" --idle 10 --busy 10 --mark 0x539 \
		--source 10.99.1.1:0 --source '[fd00:99:1::1]:0' --label app \
		"${POD_IP4[$FLIPPED]}:8080" "[${POD_IP6[$FLIPPED]}]:8080"
}

long_lived() { # GENERATION OUT-LABEL IN-LABEL
	local original=()
	[ "$1" = direct ] || original=(--original)
	hold_start "out-$1" pod_run "$FLIPPED" app "$APP_UID" "$PROGRAMS/hold" --idle 10 --busy 10 \
		"${original[@]}" --label "$2" 10.88.0.1:8080 '[fd88::1]:8080' &&
		hold_start "in-$1" node_exec "$PROGRAMS/hold" --idle 10 --busy 10 "${original[@]}" \
			--label "$3" "${POD_IP4[$FLIPPED]}:8080" "[${POD_IP6[$FLIPPED]}]:8080"
}

counter() { # NAME COUNTER
	jq -r ".$2" "$NODE_DIR/$1.counters"
}

CLIENT_NAMES="out4 out6 in4 in6"

clients_stop() { # leaves the counters of each in a file
	local name
	for name in $CLIENT_NAMES; do
		load_ends "$name"
		grep '^{' "$NODE_DIR/$name.said" >"$NODE_DIR/$name.counters"
		figure "$name: $(cat "$NODE_DIR/$name.counters")"
		grep -v '^{\|^runs' "$NODE_DIR/$name.said" | sed "s/^/$name: /" >>"$NODE_DIR/figures" || true
	done
}

# Out of the pod and into it, of both families; the counters are the tests that follow.
clients_start() {
	local run=("$CLIENT_PROGRAM" run --clients $((CLIENTS / 4)))
	local out=("${run[@]}" --direct server --enrolled zt-out)
	local in=("${run[@]}" --peer --direct app --enrolled zt-in)
	load_start out4 pod_run "$FLIPPED" app "$APP_UID" "${out[@]}" --slot 0 "$NODE_DIR/phase" 10.88.0.1:8080
	load_start out6 pod_run "$FLIPPED" app "$APP_UID" "${out[@]}" --slot 1 "$NODE_DIR/phase" '[fd88::1]:8080'
	load_start in4 node_exec "${in[@]}" --slot 2 "$NODE_DIR/phase" "${POD_IP4[$FLIPPED]}:8080"
	load_start in6 node_exec "${in[@]}" --slot 3 "$NODE_DIR/phase" "[${POD_IP6[$FLIPPED]}]:8080"
}

test_flips() {
	local i FLIPPED=flipped-$ENGINE
	flips_setup
	phase direct
	chmod 0666 "$NODE_DIR/phase" # the clients are the pod's application's
	clients_start
	"$CLIENT_PROGRAM" wait "$NODE_DIR/phase" 4 "$HELD_TO" 30
	long_lived direct server app
	for ((i = 0; i < FLIPS; i++)); do
		flip "$AMBIENT" ambient enrolled
		if [ "$i" -eq 0 ]; then
			long_lived enrolled zt-out zt-in
			ztunnel_holds
		fi
		flip "$NOT_AMBIENT" none direct
	done
	clients_stop
	for i in enrolled direct; do
		figure "until the agent says $i: p50 $(percentile 50 <"$NODE_DIR/flips-$i") ms, p99 $(percentile 99 <"$NODE_DIR/flips-$i") ms"
	done
	for i in out-direct in-direct out-enrolled in-enrolled self-enrolled; do
		load_ends "$i"
		tail -n 1 "$NODE_DIR/$i.said" >"$NODE_DIR/$i.result"
		figure "open all the time, $i: $(cat "$NODE_DIR/$i.result")"
	done
	for i in out in hbone; do
		ztunnel_leaves "$FLIPPED-$i"
	done
	end_pod "$FLIPPED"
}

test_flip_counter() { # COUNTER...
	local name counter
	for name in $CLIENT_NAMES; do
		for counter in "$@"; do
			check_equal "$(counter "$name" "$counter")" 0 "$counter of $name"
		done
	done
}

test_flip_held() { # NAME...
	local name
	for name in "$@"; do
		check_has "$(cat "$NODE_DIR/$name.result")" "ok $HELD connections" "$name"
	done
}

check_flips() {
	is_wanted "under load" || return 0
	check "under load: a label $FLIPS times on and off, $CLIENTS clients" test_flips
	check "under load: no connection failed" test_flip_counter refused reset timedOut cut otherError
	check "under load: none had wrong bytes, none went to a wrong place" test_flip_counter wrongBytes misdirected
	check "under load: none passed by an enrolled pod's ztunnel" test_flip_counter bypassed
	check "under load: none was captured after the pod had left" test_flip_counter captured
	check "under load: connections from before the first label stay" test_flip_held out-direct in-direct
	check "under load: so do those to ztunnel" test_flip_held out-enrolled in-enrolled
	check "under load: and those of ztunnel to the application" test_flip_held self-enrolled
	servers_end
}

# A client that comes back to its port, when conntrack has begun in between.
test_same_port() {
	local pod=again-$ENGINE client
	run_pod "$pod"
	cell_serves "$pod"
	pod_run "$pod" app "$APP_UID" "$PROGRAMS/reporter" --echo app dual:8081 >/dev/null
	rm -f "$NODE_DIR/again."*
	node_exec sysctl -qw net.ipv4.tcp_tw_reuse=1
	node_exec python3 -EsB test/enrolment/again.py "$NODE_DIR/again.go" 31001 \
		"${POD_IP4[$pod]}" "${POD_IP6[$pod]}" 8081 >"$NODE_DIR/again.said" 2>&1 &
	client=$!
	wait_for 10 grep -qx open "$NODE_DIR/again.said"
	label_pod "$pod" "$AMBIENT"
	wait_for 20 mode_is "$pod" ambient
	touch "$NODE_DIR/again.go"
	wait "$client"
	check_equal "$(tail -n 2 "$NODE_DIR/again.said" | tr '\n' ' ')" "ztunnel ztunnel " "who takes it"
	end_pod "$pod"
}

# ---- many pods, by one label -------------------------------------------------------------------

crowd() { # COMMAND ARG...
	python3 -EsB test/enrolment/crowd.py "$@"
}

# Pods without CNI: an address, one process, a cgroup. What kubelet and the scheduler say of them
# is in the API.
crowd_comes() {
	local name uid i=0 id
	cluster_namespace crowd
	for ((i = 0; i < CROWD; i++)); do
		echo "crowd-$i"
	done | crowd create crowd "$TEST_NODE" >"$NODE_DIR/crowd"
	i=0
	while read -r name uid; do
		i=$((i + 1))
		id="10.89.$((i / 250)).$((i % 250 + 1)) fd89::$((i + 1))"
		ip netns add "$name"
		printf '%s\n' "link set lo up" "addr add ${id% *}/32 dev lo" "addr add ${id#* }/128 dev lo nodad" |
			ip -n "$name" -batch -
		mkdir -p "$NODE_CGROUP/kubepods/pod$uid/app"
		(
			echo "$BASHPID" >"$NODE_CGROUP/kubepods/pod$uid/app/cgroup.procs"
			exec nsenter --net="/run/netns/$name" -- sleep infinity >/dev/null 2>&1
		) &
		disown $!
		echo "$name $id" >>"$NODE_DIR/crowd-addresses"
	done <"$NODE_DIR/crowd"
	crowd running crowd <"$NODE_DIR/crowd-addresses"
	wait_for 30 status_is .enrolment.kubernetes.pods "$((CROWD + OTHER_PODS))"
}

crowd_moves() { # NAME LABELS PODS
	local result
	result=$(crowd move crowd "$2" --run-dir "$NODE_RUN" --pods "$3" \
		--pid "$(cat "$NODE_DIR/agent.pid")" --seconds 120)
	figure "$1: $result"
	printf '%s\n' "$result" >"$NODE_DIR/crowd-$1"
}

OTHER_PODS=0

test_crowd_comes() {
	crowd_comes
	check_equal "$(status_field .pods.redirected)" 0 "before the label"
	crowd_moves joined "$AMBIENT" "$CROWD"
	check_equal "$(status_field .enrolment.ztunnel.pods)" "$CROWD" "pods that ztunnel has"
}

test_crowd_goes() {
	crowd_moves left "$NOT_AMBIENT" 0
	wait_for 20 status_is .enrolment.ztunnel.pods 0
	# Once more, to see whether what is used comes back to what it was.
	crowd_moves joined-again "$AMBIENT" "$CROWD"
	crowd_moves left-again "$NOT_AMBIENT" 0
	wait_for 20 status_is .enrolment.ztunnel.pods 0
}

crowd_fds() { # NAME INDEX
	jq ".fds[$2]" "$NODE_DIR/crowd-$1"
}

test_crowd_leaves_nothing() {
	local name fds
	# Of the first time stay what is opened once: connections to the API server, programs. Timers and
	# requests come and go; what leaks with each pod would be a crowd.
	fds=$(crowd_fds left-again 1)
	[ "$fds" -le $(($(crowd_fds joined-again 0) + CROWD / 10)) ] || {
		echo "$fds descriptors after, $(crowd_fds joined-again 0) before"
		return 1
	}
	crowd delete crowd
	wait_for 20 status_is .enrolment.kubernetes.pods "$OTHER_PODS"
	while read -r name _; do
		ip netns delete "$name"
	done <"$NODE_DIR/crowd"
	wait_for 20 status_is ".pods.redirected + .pods.skipped + .pods.orphaned" "$OTHER_PODS"
}

check_crowd() {
	is_wanted "a crowd" || return 0
	check "a crowd: $CROWD pods join by one label of their namespace" test_crowd_comes
	check "a crowd: they leave, and once more" test_crowd_goes
	check "a crowd: nothing stays of it" test_crowd_leaves_nothing
}

# ---- a ztunnel that misbehaves, an API server out of reach ------------------------------------

ztunnel_start() { # [OPTION...]: instead of the one that there is
	zds_stop
	python3 -EsB test/enrolment/ztunnel.py "$@" "$NODE_DIR/ztunnel.sock" "$NODE_DIR/ztunnel.pods" \
		>>"$NODE_DIR/ztunnel.log" 2>&1 </dev/null &
	disown $!
	remember zds $!
	wait_for 10 status_is .enrolment.ztunnel.ready 1
}

ztunnel_has() { # POD: itself says so
	grep -qxF "${UID_OF[$1]}" "$NODE_DIR/ztunnel.pods"
}

ztunnel_lacks() { # POD
	! ztunnel_has "$1"
}

# The agent's way to the API server, which can be cut while the test's own stays.
api_reached() { # PORT
	cat >"$NODE_DIR/haproxy.cfg" <<-END
		defaults
			mode tcp
			timeout connect 2s
			timeout client 1h
			timeout server 1h
		listen api
			bind 127.0.0.1:$1
			server api 127.0.0.1:$CLUSTER_PORT
	END
	haproxy -q -f "$NODE_DIR/haproxy.cfg" >"$NODE_DIR/haproxy.log" 2>&1 </dev/null &
	disown $!
	remember haproxy $!
}

api_cut_off() {
	local pid
	pid=$(recall haproxy) || return 0
	# Its worker is a process of its own.
	processes_below "$pid" | xargs -r kill -KILL
	ended "$pid" 10
}

api_cut() {
	api_cut_off
	wait_for 10 status_is .enrolment.kubernetes.current false
}

api_comes_back() {
	api_reached "$API_WAY"
	wait_for 40 status_is .enrolment.kubernetes.current true
}

# ---- what the agent must hold, cell by cell ---------------------------------------------------

state_has() { # POD
	jq -e --arg uid "${UID_OF[$1]}" 'any(.pods[]; .uid == $uid)' "$NODE_RUN/state.json"
}

# In the mesh, as far as anybody can tell.
is_in() { # POD
	wait_for 20 mode_is "$1" ambient
	is_captured "$1"
	check_equal "$(reached_from_node "${POD_IP4[$1]}:8080")" ztunnel "from outside"
	wait_for 20 ztunnel_has "$1"
	wait_for 20 annotation_is "$1" "$REDIRECTION" enabled
	state_has "$1" >/dev/null
	check_equal "$(pod_field "$1" 'ips' | jq -rc 'sort')" \
		"$(jq -nrc '$ARGS.positional | sort' --args "${POD_IP4[$1]}" "${POD_IP6[$1]}")" "addresses"
}

# Not in the mesh, and alive.
is_out() { # POD
	wait_for 20 mode_is "$1" none
	goes_direct "$1"
	check_equal "$(reached_from_node "${POD_IP4[$1]}:8080")" app "from outside"
	wait_for 20 ztunnel_lacks "$1"
	wait_for 20 annotation_is "$1" "$REDIRECTION" ""
	wait_for 20 annotation_is "$1" sockmesh.io/status ""
}

# Nobody remembers it. Its cookie is what the kernel knew it by.
is_gone() { # POD COOKIE
	wait_for 40 mode_is "$1" none
	wait_for 20 ztunnel_lacks "$1"
	wait_for 40 check_fails state_has "$1"
	wait_for 20 check_fails test -e "$NODE_BPFFS/sockmesh/pods/$2"
}

# ---- restarts ----------------------------------------------------------------------------------

cell_serves() { # POD: its application and ztunnel
	remember "ztunnel-$1" "$(as_ztunnel "$1" "$PROGRAMS/reporter" --mark 0x539 ztunnel \
		dual:15001 dual:15006 dual:15008)"
	pod_run "$1" app "$APP_UID" "$PROGRAMS/reporter" app dual:8080 >/dev/null
}

cell_pod() { # NAME
	run_pod "$1" "$AMBIENT"
	cell_serves "$1"
}

# The sandbox ends as it does with its node: nobody is told.
sandbox_lost() { # POD
	ztunnel_leaves "$1"
	cgroup_remove "$(pod_cgroup_dir "$1")"
	ip netns delete "$1"
}

sandbox_again() { # POD: as kubelet makes it when the node is back
	pod_add "$1" || return 1
	pod_runs "$1"
	cell_serves "$1"
}

pod_readdressed() { # POD: its interface has other addresses, and its status says so
	local new4=10.88.200.$((RANDOM % 200 + 2)) new6
	new6=fd88::1:$(printf %x "$RANDOM")
	ip -n "$1" addr flush dev eth0 scope global
	ip -n "$1" addr add "$new4/16" dev eth0
	ip -n "$1" addr add "$new6/64" dev eth0 nodad
	ip -n "$1" route replace default via 10.88.0.1
	POD_IP4[$1]=$new4 POD_IP6[$1]=$new6
	cluster_pod_status demo "$1" Running "$new4" "$new6" >/dev/null
}

event_begins() { # EVENT
	case $1 in
	killed | wiped) agent_ends KILL ;;
	engine) agent_ends TERM ;;
	ztunnel)
		zds_stop
		wait_for 10 status_is .enrolment.ztunnel.ready 0
		;;
	api) api_cut ;;
	reboot)
		agent_ends KILL
		for pod in $CELLS; do
			sandbox_lost "$ENGINE-$1-$pod"
		done
		;;
	esac
	[ "$1" != wiped ] || rm -rf "$NODE_RUN"
}

event_ends() { # EVENT
	local other=nftables
	case $1 in
	killed | wiped | reboot) agent_up ;;
	engine)
		[ "$ENGINE" != nftables ] || other=ebpf
		agent_up --mode "$other"
		;;
	ztunnel) ztunnel_start ;;
	api) api_comes_back ;;
	esac
}

CELLS="unchanged deleted relabelled readdressed"

# After a reboot the sandboxes that are still wanted are made again, with whatever addresses.
cells_change() { # EVENT
	cluster_pod_delete demo "$ENGINE-$1-deleted"
	label_pod "$ENGINE-$1-relabelled" "$NOT_AMBIENT"
	if [ "$1" = reboot ]; then
		for pod in unchanged relabelled readdressed; do
			sandbox_again "$ENGINE-$1-$pod"
		done
		return
	fi
	ztunnel_leaves "$ENGINE-$1-deleted"
	pod_delete "$ENGINE-$1-deleted"
	pod_readdressed "$ENGINE-$1-readdressed"
}

cell() { # EVENT POD CHECK...
	echo "cell $1 x $2:" # which one it was that a test has ended with
	"${@:3}"
}

test_matrix_row() { # EVENT
	local pod cookie
	for pod in $CELLS; do
		cell_pod "$ENGINE-$1-$pod"
	done
	for pod in $CELLS; do
		is_in "$ENGINE-$1-$pod"
	done
	cookie=$(pod_field "$ENGINE-$1-deleted" cookie)
	event_begins "$1"
	cells_change "$1"
	event_ends "$1"
	cell "$1" unchanged is_in "$ENGINE-$1-unchanged"
	cell "$1" deleted is_gone "$ENGINE-$1-deleted" "$cookie"
	cell "$1" relabelled is_out "$ENGINE-$1-relabelled"
	cell "$1" readdressed is_in "$ENGINE-$1-readdressed"
	for pod in unchanged relabelled readdressed; do
		end_pod "$ENGINE-$1-$pod"
	done
	agent_usual "$1"
	wait_for 20 status_is .enrolment.ztunnel.pods 0
	wait_for 40 status_is '.pods.redirected + .pods.orphaned' 0
	wait_for 20 cmp "$NODE_DIR/ztunnel.pods" /dev/null
}

agent_usual() { # EVENT
	[ "$1" != engine ] || {
		agent_ends TERM
		agent_up
		wait_for 10 status_is .enrolment.ztunnel.ready 1
	}
}

check_matrix() {
	is_wanted restart || return 0
	ztunnel_start
	server node "$(node_exec "$PROGRAMS/reporter" server dual:8080)"
	matrix_rows "$@"
	servers_end
}

matrix_rows() { # [few]
	check "restart: the agent is killed; pods stay, go, leave the mesh, move" test_matrix_row killed
	check "restart: the agent's directory is gone" test_matrix_row wiped
	[ "${1:-}" != few ] || return 0
	check "restart: the agent comes back with another engine" test_matrix_row engine
	check "restart: ztunnel is away" test_matrix_row ztunnel
	check "restart: the API server is out of reach" test_matrix_row api
	check "restart: the node was, and sandboxes are made again" test_matrix_row reboot
}

check_engines() {
	for ENGINE in ebpf nftables iptables; do
		agent_ends TERM
		agent_up
		check_matrix "$([ "$ENGINE" = ebpf ] || echo few)"
		[[ restart =~ $ONLY ]] && ztunnel_start
		check "under load: a port that was used before the pod joined is captured" test_same_port
		check_flips
	done
}

# ---- races -------------------------------------------------------------------------------------

with_plugin() { # COMMAND...: pods made by it have our plugin in their chain
	POD_CONFLIST=$NODE_DIR/mesh.conflist "$@"
}

nothing_left() {
	wait_for 40 status_is '.pods.redirected + .pods.orphaned' 0
	wait_for 20 status_is .enrolment.ztunnel.pods 0
	wait_for 20 status_is .enrolment.ztunnel.pending 0
	check_equal "$(status_field .enrolment.waiting)" 0 "adds that wait"
	check_equal "$(jq -c '[.pods[] | select(.decision != "skip") | .name]' "$NODE_RUN/state.json")" "[]" "state"
	wait_for 20 cmp "$NODE_DIR/ztunnel.pods" /dev/null
}

agent_is_prompt() { # it answers while others keep it waiting
	local start
	start=$(now_us)
	ctl status -o json >/dev/null
	[ $(($(now_us) - start)) -lt 2000000 ]
}

# The namespace's label is set, and removed, at some moment of ADD.
test_flip_while_created() {
	local i labels
	for ((i = 0; i < 6; i++)); do
		api_pod "born-$i"
		(
			pause "0.0$((RANDOM % 10))"
			label_namespace demo "$([ $((i % 2)) -eq 0 ] && echo "$AMBIENT" || echo "$NOT_AMBIENT")"
		) &
		labels=$!
		with_plugin pod_add "born-$i"
		wait "$labels"
		pod_runs "born-$i"
		if [ $((i % 2)) -eq 0 ]; then
			wait_for 20 mode_is "born-$i" ambient
			wait_for 20 ztunnel_has "born-$i"
			wait_for 20 annotation_is "born-$i" "$REDIRECTION" enabled
		else
			wait_for 20 mode_is "born-$i" none
			wait_for 20 ztunnel_lacks "born-$i"
			wait_for 20 annotation_is "born-$i" "$REDIRECTION" ""
		fi
	done
	for ((i = 0; i < 6; i++)); do
		end_pod "born-$i"
	done
	nothing_left
}

# ztunnel has been asked, and has not answered yet.
test_deleted_while_asked() {
	ztunnel_start --delay 1.5
	run_pod short
	label_pod short "$AMBIENT"
	wait_for 10 status_is .enrolment.ztunnel.pending 1
	agent_is_prompt
	end_pod short
	nothing_left
}

test_deleted_while_added() {
	local add
	ztunnel_start --delay 1.5
	api_pod shorter "$AMBIENT"
	(with_plugin pod_add shorter '{}') >/dev/null 2>&1 &
	add=$!
	wait_for 10 status_is .enrolment.ztunnel.pending 1
	cluster_pod_delete demo shorter
	agent_is_prompt
	wait "$add" || true
	# kubelet ends what the runtime has made.
	cgroup_remove "$NODE_CGROUP/kubepods/pod${UID_OF[shorter]}"
	ip netns delete shorter
	nothing_left
}

test_withdrawn_while_asked() {
	ztunnel_start --delay 1.5
	run_pod unsure
	label_pod unsure "$AMBIENT"
	wait_for 10 status_is .enrolment.ztunnel.pending 1
	label_pod unsure "$NOT_AMBIENT"
	wait_for 10 status_is .enrolment.ztunnel.pending 0
	nothing_left
	wait_for 10 annotation_is unsure "$REDIRECTION" ""
	check_equal "$(taken_by unsure 10.88.0.1:8080)" server "the pod that was taken back"
	end_pod unsure
}

test_late_ztunnel() {
	ztunnel_start --delay 2
	cell_pod late
	goes_direct late
	agent_is_prompt
	is_in late
	end_pod late
	nothing_left
}

# It takes no pod, whatever the way in which it does not; the next ztunnel takes it.
refused_by() { # WAY OPTION...
	local name=refused-$1
	ztunnel_start "${@:2}"
	cell_pod "$name"
	wait_for 20 annotation_is "$name" "$REDIRECTION" pending
	agent_is_prompt
	check_equal "$(pod_field "$name" mode)" none "mode"
	goes_direct "$name"
	wait_for 20 has_event "$name" SockmeshRefused
	ztunnel_start
	is_in "$name"
	end_pod "$name"
	nothing_left
}

has_event() { # POD REASON
	api GET "/api/v1/namespaces/demo/events?fieldSelector=involvedObject.name=$1,reason=$2" |
		jq -e '.items | length > 0'
}

test_unwilling_ztunnel() {
	refused_by nack --refuse "no room"
}

test_silent_ztunnel() {
	refused_by silence --silent
}

test_add_refused() { # OPTION...
	local start said name=denied-${1#--}
	ztunnel_start "$@"
	api_pod "$name" "$AMBIENT"
	start=$(now_us)
	said=$(with_plugin pod_add "$name" '{}' 2>&1) && return 1
	check_has "$said" '"code":11' "the plugin's answer"
	[ $(($(now_us) - start)) -lt 20000000 ]
	check_equal "$(pod_field "$name" mode)" none "a pod that was refused"
	ip netns delete "$name"
	ztunnel_start
	with_plugin pod_add "$name" '{}'
	pod_runs "$name"
	wait_for 20 annotation_is "$name" "$REDIRECTION" enabled
	end_pod "$name"
	nothing_left
}

# The second sandbox has begun when the first one's DEL comes.
test_two_sandboxes() {
	local old_id
	with_plugin run_pod twice "$AMBIENT"
	check_equal "$(pod_field twice mode)" ambient "first sandbox"
	old_id=${POD_ID[twice]}
	# The runtime makes the second one of the same pod beside it.
	mv_netns twice twice-old
	with_plugin pod_add twice '{}'
	check_equal "$(pod_field twice mode)" ambient "second sandbox"
	CNI_POD_NAMESPACE=demo CNI_POD_NAME=twice CNI_POD_UID=${UID_OF[twice]} \
		CNI_POD_CGROUP=$NODE_CGROUP_PATH/${POD_CGROUP[twice]} \
		cni_del "$NODE_DIR/mesh.conflist" "$old_id" /run/netns/twice-old
	ip netns delete twice-old
	cluster_pod_status demo twice Running "${POD_IP4[twice]}" "${POD_IP6[twice]}" >/dev/null
	cell_serves twice
	check_equal "$(pod_field twice containerId)" "${POD_ID[twice]}" "which sandbox it is"
	is_in twice
	end_pod twice
	nothing_left
}

mv_netns() { # OLD NEW
	: >"/run/netns/$2"
	mount --bind "/run/netns/$1" "/run/netns/$2"
	umount "/run/netns/$1"
	rm "/run/netns/$1"
}

test_without_api() {
	cell_pod known
	api_cut
	label_pod known "$NOT_AMBIENT"
	run_pod later "$AMBIENT"
	cell_serves later
	with_plugin run_pod newer "$AMBIENT"
	cell_serves newer
	check_equal "$(pod_field known mode)" ambient "a pod of before"
	check_equal "$(pod_field later mode)" none "a pod that only the API could tell of"
	api_comes_back
	is_out known
	is_in later
	is_in newer
	for pod in known later newer; do
		end_pod "$pod"
	done
	nothing_left
}

check_races() {
	is_wanted race || return 0
	ztunnel_start
	server node "$(node_exec "$PROGRAMS/reporter" server dual:8080)"
	check "race: a namespace's label is changed while its pods are created" test_flip_while_created
	check "race: a pod is deleted while ztunnel is asked" test_deleted_while_asked
	check "race: or while its ADD waits for ztunnel" test_deleted_while_added
	check "race: or is taken back by its label" test_withdrawn_while_asked
	check "race: ztunnel is late" test_late_ztunnel
	check "race: ztunnel refuses a pod, and its successor takes it" test_unwilling_ztunnel
	check "race: ztunnel never answers, and its successor does" test_silent_ztunnel
	check "race: an ADD that ztunnel refuses fails, and leaves nothing" test_add_refused --refuse no
	check "race: so does one that it never answers" test_add_refused --silent
	ztunnel_start
	check "race: the DEL of a pod's first sandbox comes after the ADD of the second" test_two_sandboxes
	check "race: pods join and leave while the API server is out of reach" test_without_api
	servers_end
}

check_churn() {
	is_wanted churn || return 0
	check "churn: kernel, annotations and what is wanted agree after changes at a steady rate" test_churn
}

# ---- main --------------------------------------------------------------------------------------

trap close_all EXIT
cluster_open
node_open load
API_WAY=$(cluster_free_ports 1)
api_reached "$API_WAY"
cluster_kubeconfig admin | sed "s/:$CLUSTER_PORT\$/:$API_WAY/" >"$NODE_DIR/kubeconfig"
cluster_node "$TEST_NODE"
cluster_namespace demo
cni_conflist "$NODE_DIR/mesh.conflist" "$(cni_sockmesh_entry)"
POD_CONFLIST=$NODE_DIR/plain.conflist
cni_conflist "$POD_CONFLIST"
agent_up
zds_start

if [ -n "$LOAD_SUITE" ]; then
	check_engines
else
	check_races
	check_matrix
	check_churn
	check_crowd
	check_flips
fi
tap_done
