#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# What the accelerator must not get wrong: streams whose every byte is checked, the hazards of
# sockmap one by one (hazards.txt), the same with the guard against each taken away, the kernel's
# memory, an agent that dies. TAP on standard output. docs/testing.md has the details.
#
#   BUILD_DIR   where the programs are (build)
#   SCALE       ci or full: 30,000 or 1,000,000 streams (ci)
#   STREAMS     so many streams in all
#   GUARDS      0: without the tests that take guards away
#   ONLY        streams, trials, hazards, guards, memory, adviser, restarts (all of them)
#   AGENT_OPTIONS  more for every agent
#   MACHINE     own: nobody else is on this machine, so what is the whole machine's may be changed
#   SOCKMESH_TEST_PATIENCE  multiplies what is waited for at most (1)
set -euo pipefail

SUITE_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
LIB_DIR=$(cd "$SUITE_DIR/../lib" && pwd)
# shellcheck source=test/lib/node.sh
. "$LIB_DIR/node.sh"
# shellcheck source=test/lib/tap.sh
. "$LIB_DIR/tap.sh"
# shellcheck source=test/lib/cni.sh
. "$LIB_DIR/cni.sh"
# shellcheck source=test/lib/pod.sh
. "$LIB_DIR/pod.sh"

SCALE=${SCALE:-ci}
case $SCALE in
full) STREAMS=${STREAMS:-1000000} ;;
*) STREAMS=${STREAMS:-30000} ;;
esac
GUARDS=${GUARDS:-1}
ONLY=${ONLY:-streams trials hazards guards memory adviser restarts}
read -ra MORE_OPTIONS <<<"${AGENT_OPTIONS:-}"
MACHINE=${MACHINE:-shared}
PORT=8080
ECHO_PORT=8090
# What hazard.c measures against, whatever the defaults are.
LIMITS=(--accelerate-max-bytes 1048576 --accelerate-max-messages 1024 --accelerate-pod-budget 67108864)
RUN=0 # of the next stream client

# ---- set-up ------------------------------------------------------------------------------------

# An agent that lacks the guards named in WITHOUT, or the real one.
agent_with() { # OPTION...
	BIN_DIR=$BUILD_DIR/bin
	if [ -n "${WITHOUT:-}" ]; then
		export SOCKMESH_WITHOUT_GUARD=$WITHOUT
		BIN_DIR=$NODE_DIR/unguarded
	else
		unset SOCKMESH_WITHOUT_GUARD
	fi
	agent_start --mode ebpf --accelerate-learning no "${MORE_OPTIONS[@]}" "$@"
	disown "$NODE_AGENT_PID" # it may be killed
	echo "$NODE_AGENT_PID" >"$NODE_DIR/agent.pid"
}

# Tests run in subshells, so whose child the agent is and who knows its number differs.
agent_end() { # SIGNAL
	local pid
	[ -e "$NODE_DIR/agent.pid" ] || return 0
	pid=$(cat "$NODE_DIR/agent.pid")
	rm "$NODE_DIR/agent.pid"
	kill "-$1" "$pid"
	wait_for 10 is_over "$pid"
	NODE_AGENT_PID=''
}

is_over() { # PID: gone, or a zombie that nobody has asked for yet
	[ ! -e "/proc/$1/stat" ] || grep -q ') Z ' "/proc/$1/stat"
}

agent_again() { # OPTION...
	agent_end TERM
	agent_with "$@"
}

tear_down() {
	local status=$?
	[ "$BASHPID" -eq $$ ] || return "$status"
	set +e
	agent_end KILL
	node_close
	return "$status"
}

# From the proxy to port 8096 of its own pod nothing is captured: there are listeners of devices.
wired_pod() { # POD
	local pod=$1
	pod_add "$pod" "$(jq -c '. + {"traffic.sidecar.istio.io/excludeOutboundPorts": "8096"}' \
		<<<"$SIDECAR_ANNOTATION")" >/dev/null
	# One connection after the other: many ports stay in TIME_WAIT.
	# None of them is to be one that a test listens on or binds to.
	pod_exec "$pod" sysctl -qw net.ipv4.ip_local_port_range="1024 65000" net.ipv4.tcp_tw_reuse=1 \
		net.ipv4.ip_local_reserved_ports=8080,8090,8096-8099,15001,15006,41000-43000
	# Softirqs on the last CPU; the programs run on the others.
	# shellcheck disable=SC2016
	ip netns exec "$pod" sh -c 'for f in /sys/class/net/*/queues/rx-*/rps_cpus; do
		printf %x '"$((1 << ($(nproc) - 1)))"' >"$f"; done'
}

on_first_cpus() { # COMMAND...: as arguments of pod_run
	echo "taskset -c 0-$(($(nproc) > 1 ? $(nproc) - 2 : 0))"
}

proxy_up() { # POD
	# shellcheck disable=SC2046
	pod_start proxy "$1" istio-proxy "$PROXY_UID" $(on_first_cpus) "$NODE_DIR/bench_proxy" 15001 15006
	wait_for 10 pod_listens "$1" 15001
	wait_for 10 pod_listens "$1" 15006
}

server_up() { # POD
	# shellcheck disable=SC2046
	pod_start stream "$1" app "$APP_UID" $(on_first_cpus) "$NODE_DIR/stream" server "$PORT"
	wait_for 10 pod_listens "$1" "$PORT"
}

# ---- streams -----------------------------------------------------------------------------------

stream_client() { # TO FAMILY COUNT [OPTION...]
	local to=$1 family=$2 count=$3 options=()
	shift 3
	case $family in
	4) to=${POD_IP4[$to]} ;;
	6) to=${POD_IP6[$to]} ;;
	m) to=${POD_IP4[$to]} options=(--mapped yes) ;;
	esac
	# shellcheck disable=SC2046
	pod_run a app "$APP_UID" $(on_first_cpus) "$NODE_DIR/stream" client --count "$count" \
		--run "$RUN" "${options[@]}" "$@" "$to" "$PORT"
}

# Bytes of all pairs on a hop: the short way, and by TCP although in the map.
hop_bytes() { # HOP
	{ ctl accelerate -o json || :; } | jq -r --arg hop "$1" \
		'[.. | objects | select(.leg? == $hop)] | "\(map(.bytes) | add // 0) \(map(.tcpBytes) | add // 0)"'
}

hop_bytes_beyond() { # HOP BYTES
	[ "$(hop_bytes "$1")" != "$2" ]
}

test_streams() { # LEVEL FAMILY COUNT
	local level=$1 family=$2 left=$3 part said short tcp hop before
	declare -A was=()
	for hop in app-to-proxy proxy-to-proxy proxy-to-app; do
		was[$hop]=$(hop_bytes "$hop")
	done
	while [ "$left" -gt 0 ]; do
		part=$((left > 20000 ? 20000 : left))
		said=$(stream_client b "$family" "$part" --concurrency 100) || {
			echo "$said"
			return 1
		}
		left=$((left - part))
		echo "# $level, IPv$family: $said, $left to go" >&3
	done
	echo "# $level, IPv$family, events so far: $(ctl status -o json |
		jq -c '[.accelerate | .events, .sockets, .claimed]')" >&3
	for hop in app-to-proxy proxy-to-proxy proxy-to-app; do
		read -r short tcp <<<"$(hop_bytes "$hop")"
		before=${was[$hop]}
		short=$((short - ${before% *})) tcp=$((tcp - ${before#* }))
		echo "# $level, IPv$family, $hop: $short bytes the short way, $tcp by TCP" >&3
		if [ "$level" = full ] || [ "$level-$hop" = proxy-proxy-to-proxy ]; then
			[ "$short" -gt "$tcp" ] || {
				echo "$hop: most bytes went by TCP"
				return 1
			}
		else
			check_equal "$short" 0 "bytes the short way on $hop"
		fi
	done
}

test_unguarded_streams() {
	local i said
	WITHOUT=order agent_again --accelerate full
	for i in 1 2 3 4 5 6; do
		RUN=$((40 + i))
		if ! said=$(stream_client b 4 2000 --concurrency 100 --largest 65536 2>&1); then
			case $said in
			*wrong:*"another byte"* | *wrong:*"its header"*) return 0 ;;
			esac
			echo "$said"
		fi
	done
	echo "no stream was corrupted: the test proves nothing"
	return 1
}

streams() {
	local level family
	for level in off proxy full; do
		agent_again --accelerate "$level"
		# The first connections to a new listener are on TCP.
		stream_client b 4 50 --largest 64 >/dev/null
		for family in 4 6 m; do
			RUN=$((RUN + 1))
			[ "$level" != off ] || [ "$family" = 4 ] || continue
			tap_test "streams, $level, IPv$family: every byte, in order, and no more" \
				test_streams $level $family $((STREAMS / 6))
		done
	done
	[ "$GUARDS" = 0 ] || {
		tap_test "streams without the guard of order are corrupted" test_unguarded_streams
		servers_again
	}
}

is_empty() { # CGROUP
	! find "$1" -name cgroup.procs -exec cat {} + | grep -q .
}

# Whatever a test without guards has left in programs and sockets.
servers_again() {
	local pod
	for pod in a b; do
		xargs -r kill -KILL <"$(pod_cgroup_dir "$pod")/istio-proxy/cgroup.procs"
		xargs -r kill -KILL <"$(pod_cgroup_dir "$pod")/app/cgroup.procs"
	done
	for pod in a b; do
		wait_for 5 is_empty "$(pod_cgroup_dir "$pod")"
	done
	proxy_up a
	proxy_up b
	server_up b
}

# ---- trials ------------------------------------------------------------------------------------

pod_place() { # POD CPU
	local pid
	while read -r pid; do
		taskset -acp "$2" "$pid" >/dev/null
	done < <(find "$(pod_cgroup_dir "$1")" -name cgroup.procs -exec cat {} +)
}

# Nothing is measured between ends that run on one CPU.
apart() {
	agent_again --accelerate full --accelerate-learning yes
	pod_place a 0
	pod_place b 1
	stream_client b 4 50 --largest 64 >/dev/null
}

# Streams that change their way while they are measured.
test_trial_streams() {
	apart
	RUN=60 stream_client b 4 $((STREAMS / 10)) --concurrency 100
}

measured() { # JQ-FILTER of what trials found between the two proxies
	{ ctl accelerate -o json || :; } | jq -e --argjson port "$ECHO_PORT" \
		"[.pairs[] | select(.leg == \"proxy-to-proxy\" and .port == \$port) | .measured[]] | $1"
}

# Until a trial has ended; each run makes its connections anew.
test_trial_ends() {
	apart
	for _ in 1 2 3 4 5 6; do
		pod_run a app "$APP_UID" taskset -c 0 "$NODE_DIR/bench_client" pingpong "${POD_IP4[b]}" \
			"$ECHO_PORT" 1000 16 64 >/dev/null
		! measured 'any(.tcpUs > 0 and .shortUs > 0)' || return 0
	done
	ctl accelerate
	return 1
}

# On one CPU the same pair goes the short way, whatever was found.
test_no_trial_on_one_cpu() {
	local before short tcp
	pod_place b 0
	before=$(hop_bytes proxy-to-proxy)
	pod_run a app "$APP_UID" taskset -c 0 "$NODE_DIR/bench_client" pingpong "${POD_IP4[b]}" \
		"$ECHO_PORT" 500 16 64
	# The proxies may close theirs, and say what they have sent, after the client has ended.
	wait_for 10 hop_bytes_beyond proxy-to-proxy "$before"
	read -r short tcp <<<"$(hop_bytes proxy-to-proxy)"
	short=$((short - ${before% *})) tcp=$((tcp - ${before#* }))
	echo "# on one CPU: $short bytes the short way, $tcp by TCP" >&3
	[ "$short" -gt $((9 * tcp)) ]
}

trials() {
	if [ "$(nproc)" -lt 2 ]; then
		tap_test "trials: there is one CPU, and nothing to find out" true
		return
	fi
	pod_start echo b app "$APP_UID" "$NODE_DIR/bench_server" "echo=$ECHO_PORT"
	wait_for 10 pod_listens b "$ECHO_PORT"
	tap_test "streams are right while the short way is measured" test_trial_streams
	tap_test "a trial finds out which way is faster" test_trial_ends
	tap_test "and on one CPU the short way is taken" test_no_trial_on_one_cpu
}

# ---- hazards -----------------------------------------------------------------------------------

# Where the accelerator's maps are.
accelerate_pins() {
	local map
	map=$(find "$NODE_BPFFS" -name accel_usage -print -quit)
	echo "${map%/*}"
}

hazard() { # [TEST...]
	ACCELERATE_PINS=$(accelerate_pins) timeout "$((120 * ${SOCKMESH_TEST_PATIENCE:-1}))" \
		"$NODE_DIR/hazard" "$(pod_cgroup_dir ha)/istio-proxy" /run/netns/ha \
		"$(pod_cgroup_dir hb)/istio-proxy" /run/netns/hb "${POD_IP4[hb]}" "${POD_IP6[hb]}" "$@"
}

# Numbers a program's lines of TAP as ours.
results_of() { # CLAIM COMMAND...
	local line claim=$1 status=0
	shift
	"$@" >"$NODE_DIR/tap.out" 2>&1 || status=$?
	while IFS= read -r line; do
		case $line in
		ok\ * | not\ ok\ *)
			TAP_RUN=$((TAP_RUN + 1))
			[ "${line%% *}" = ok ] || TAP_FAILED=$((TAP_FAILED + 1))
			[[ $line != *" # SKIP "* ]] || TAP_SKIPPED=$((TAP_SKIPPED + 1))
			sed -E "s/^((not )?ok)( [0-9]+)? - /\\1 $TAP_RUN - /" <<<"$line"
			;;
		1..*) ;;
		*) echo "$line" ;;
		esac
	done <"$NODE_DIR/tap.out"
	tap_test "$claim: the program ran to its end" test "$status" -le 1
}

hazard_results() { # [TEST...]
	results_of hazards hazard "$@"
}

events_of() { # EVENT
	ctl status -o json | jq --arg event "$1" '.accelerate.events[$event] // 0'
}

test_counted() { # EVENT
	[ "$(events_of "$1")" -gt 0 ]
}

is_nothing_held() {
	ctl status -o json | jq -e '.accelerate | .sockets == 0 and .claimed == 0'
}

test_max_sockets() {
	agent_again --accelerate full --accelerate-max-sockets 4 --accelerate-max-sockets-per-pod 4
	RUN=30 stream_client b 4 300 --largest 10000
	[ "$(events_of pod-full)" -gt 0 ] || [ "$(events_of node-full)" -gt 0 ] ||
		[ "$(events_of map-full)" -gt 0 ]
}

hazards() {
	local event
	agent_again --accelerate full "${LIMITS[@]}"
	hazard_results
	[ "$MACHINE" != own ] || hazard_results "memory pressure of the node"
	for event in has-moved-data second-owner blocking lowat zerocopy ulp-refused spill-limit spill-pod \
		turned-blocking; do
		tap_test "it is counted: $event" test_counted "$event"
	done
	[ ! -e /proc/sys/net/mptcp ] || tap_test "it is counted: mptcp" test_counted mptcp
	tap_test "when all is closed nothing is counted as held" wait_for 10 is_nothing_held
	tap_test "H27 map full" test_max_sockets
}

# ---- guards ------------------------------------------------------------------------------------

# The guards that are taken away, the test that must then fail, and what it must say.
guards_table() {
	cat <<-END
		order:H1 reorder:"AAAABBBB"
		order:H2 late peer: accept-queue overflow:not right
		no-data:H2 late peer: TCP_DEFER_ACCEPT:"CCCC") == TCP
		bytes:H4 1 bytes without back-pressure:bytes the short way to a reader that does not read
		messages:H5 messages without back-pressure:messages the short way to a reader that does not read
		budget:H4 H5 budget of a pod:bytes the short way to one pod that does not read
		netns,isn:8 equal tuples in two pods:not say(e[i].client, text[i]) == SHORT
		isn:H7 9 one tuple twice in one pod:not say(e[i].client, text[i]) == SHORT
		isn,order:H7 9 one tuple twice in one pod:not hears(e[i].server, text[i])
		nonblocking:3 blocking client:"ping") == TCP
		nonblocking:3 socket that turns blocking:"all") == TCP
		zerocopy:H12 6 zerocopy:zerocopy_completes
		lowat:H15 5 SO_RCVLOWAT:"1234") == TCP
		ulp:H20 kernel TLS:"all") == TCP
		mptcp,ulp:H21 MPTCP:a subflow of MPTCP was put into the map
		pressure:memory pressure of a pod:under pressure a send Cannot allocate memory
		state:send after shutdown:errno == EPIPE
		state,miss-passes:send to a peer that is gone:"x", 1, MSG_NOSIGNAL) == 1
	END
}

test_guard() { # GUARDS TEST MESSAGE
	local said
	WITHOUT=$1 agent_again --accelerate full "${LIMITS[@]}"
	said=$(hazard "$2" 2>&1) || :
	grep -xF -A 1 -e "not ok - $2" <<<"$said" | tail -n 1 | grep -qF -e "$3" || {
		echo "$said"
		echo "wanted: $3"
		return 1
	}
}

# What this machine cannot try with all guards it cannot try without one: TESTs and why.
untried() { # TEST...
	agent_again --accelerate full "${LIMITS[@]}"
	hazard "$@" | sed -n 's/^ok - \(.*\) # SKIP \(.*\)/\1:\2/p'
}

guards() {
	local names test message untried
	untried=$(untried "H21 MPTCP" "memory pressure of a pod") || :
	while IFS= read -r names; do
		message=${names##*:}
		test=${names#*:}
		test=${test%:*}
		names=${names%%:*}
		if [[ $'\n'$untried == *$'\n'"$test:"* ]]; then
			tap_skip "without the guard $names this fails: $test" \
				"$(sed -n "s/^$test://p" <<<"$untried")"
			continue
		fi
		tap_test "without the guard $names this fails: $test" \
			test_guard "$names" "$test" "$message"
	done < <(guards_table)
}

# ---- memory ------------------------------------------------------------------------------------

memory() {
	agent_again --accelerate full "${LIMITS[@]}"
	hazard_results memory:
	agent_again --accelerate off
	echo "# the same with --accelerate off:"
	hazard memory: 2>/dev/null | grep '^#' || :
}

# ---- agents that end ---------------------------------------------------------------------------

streams_run() {
	[ "$(ip netns exec a ss -Htn state established "dport = :$PORT" | wc -l)" -ge 100 ]
}

# 200 streams at a time, for as long as COMMAND and a little more need.
test_streams_while() { # COMMAND...
	local said pid
	stream_client b 4 50 --largest 64 >/dev/null
	stream_client b 4 1000000 --seconds 4 --concurrency 200 >"$NODE_DIR/said" 2>&1 &
	pid=$!
	wait_for 10 streams_run
	"$@"
	wait "$pid" || {
		cat "$NODE_DIR/said"
		return 1
	}
	cat "$NODE_DIR/said"
	said=$(cat "$NODE_DIR/said")
	check_has "$said" "ok "
}

agent_killed() { # OPTION...
	agent_end KILL
	agent_with "$@"
}

agent_killed_many() {
	local i
	for i in 1 2 3; do
		agent_killed --accelerate full
	done
}

# A pod that talks to the same server, both in the map, goes with everything in it.
delete_other_pod() {
	# shellcheck disable=SC2046
	pod_start client c app "$APP_UID" $(on_first_cpus) "$NODE_DIR/stream" client --count 100000 \
		--run 90 --seconds 30 --concurrency 50 "${POD_IP4[b]}" "$PORT"
	wait_for 10 other_streams_run
	pod_delete c
}

other_streams_run() {
	[ "$(ip netns exec c ss -Htn state established "dport = :$PORT" | wc -l)" -ge 20 ]
}

restart_test() { # CLAIM COMMAND...
	RUN=$((RUN + 1))
	tap_test "$1" test_streams_while "${@:2}"
}

restarts() {
	agent_again --accelerate full
	restart_test "the agent is killed and started again under 200 streams" \
		agent_killed --accelerate full
	restart_test "killed three times" agent_killed_many
	restart_test "killed and started with other limits" agent_killed --accelerate full \
		--accelerate-max-bytes 65536 --accelerate-max-messages 16 --accelerate-max-sockets 1000 \
		--accelerate-max-sockets-per-pod 500
	restart_test "killed and started with --accelerate off" agent_killed --accelerate off
	restart_test "killed and started with --accelerate proxy" agent_killed --accelerate proxy
	restart_test "killed and started with --accelerate full again" agent_killed --accelerate full
	wired_pod c
	proxy_up c
	restart_test "another pod is deleted under 200 streams" delete_other_pod
}

# In a node of its own.
adviser() {
	results_of adviser env -u SOCKMESH_TEST_NODE "$SUITE_DIR/advise.sh"
}

# ---- the suite ---------------------------------------------------------------------------------

set_up() {
	local pod program
	node_open accelerate
	trap tear_down EXIT
	trap 'exit 130' INT TERM HUP
	POD_CONFLIST=$NODE_DIR/net.conflist
	cni_conflist "$POD_CONFLIST" "$(cni_sockmesh_entry)"
	mkdir "$NODE_DIR/unguarded"
	ln -s "$BUILD_DIR"/bin/* "$NODE_DIR/unguarded/"
	ln -sf "$BUILD_DIR/test/sockmesh-agent-without-guards" "$NODE_DIR/unguarded/sockmesh-agent"
	for program in bench/bench_proxy bench/bench_client bench/bench_server accelerate/stream \
		accelerate/hazard; do
		cp "$BUILD_DIR/test/$program" "$NODE_DIR/"
	done
	agent_with --accelerate full
	for pod in a b ha hb; do
		wired_pod "$pod"
	done
	proxy_up a
	proxy_up b
	server_up b
}

node_enter "$@"
exec 3>&1
set_up
for part in $ONLY; do
	[ "$part" != guards ] || [ "$GUARDS" != 0 ] || continue
	"$part"
done
tap_done
