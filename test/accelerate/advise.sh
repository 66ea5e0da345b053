#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The adviser: real programs in pods' network namespaces do, one each, what a sockmap serves
# otherwise than TCP (advise_calls.c), and the agent is asked what it has seen. TAP; BUILD_DIR is
# tested. Part of test/accelerate, and complete by itself.
set -euo pipefail
cd "$(dirname "$0")/../.." || exit 1
. test/lib/tap.sh
. test/lib/node.sh

node_enter "$@"

CLIENT=$REPO_DIR/test/agent/agent_client.py
CALLS=$BUILD_DIR/test/accelerate/advise_calls
ROUNDS=300
SIDECAR='{"sidecar.istio.io/status":"{\"initContainers\":[\"istio-validation\"]}"}'

node_open advise
trap node_close EXIT

# ---- helpers -----------------------------------------------------------------------------------

pod() { # NETNS POD
	ip netns add "$1"
	ip -n "$1" link set lo up
	"$CLIENT" "$NODE_RUN" --netns "/run/netns/$1" "$(
		jq -nc --arg ns "$1" --arg pod "$2" --argjson annotations "$SIDECAR" \
			'{op: "add", containerId: $ns, ifName: "eth0", netns: ("/run/netns/" + $ns),
			  ips: ["10.9.0.2/24"], pod: {namespace: "demo", name: $pod, uid: $pod},
			  annotations: $annotations}'
	)" >/dev/null
}

ask() { # TARGET [SECONDS]
	"$CLIENT" "$NODE_RUN" "$(jq -nc --arg target "$1" --argjson seconds "${2:-null}" \
		'{op: "accelerate", advise: $target} + if $seconds then {seconds: $seconds} else {} end')"
}

advice() { # TARGET [SECONDS]
	ask "$@" | jq -c .advice
}

is_done() { # TARGET
	[ "$(advice "$1" 1 | jq -r .state)" = "done" ]
}

verdict() { # TARGET: once it is there
	wait_for 60 is_done "$1" || return 1
	advice "$1"
}

calls() { # NETNS WHAT [UID]
	nsenter --net="/run/netns/$1" -- setpriv --reuid "${3:-1000}" --clear-groups -- \
		"$CALLS" "$2" "$ROUNDS" >/dev/null
}

count_of() { # ADVICE COMM CALL: how often, as the evidence says
	jq -r --arg comm "$2" --arg call "$3" \
		'[.evidence[] | select(.comm == $comm and .call == $call).count] | add // 0' <<<"$1"
}

# What the agent holds of BPF, "prog 12", "map 13" or "link 14" a line.
agent_holds() {
	cat /proc/"$NODE_AGENT_PID"/fdinfo/* 2>/dev/null |
		sed -nE 's/^(prog|map|link)_id:\t*([0-9]+)$/\1 \2/p' | sort -u
}

agent_holds_now() { # LIST
	[ "$(agent_holds)" = "$1" ]
}

all_gone() { # LIST: the kernel has none of these
	local kind id
	while read -r kind id; do
		! bpftool "$kind" show id "$id" >/dev/null 2>&1 || return 1
	done <<<"$1"
}

# Starts a run and prints what the agent holds for it.
held_by_run() { # TARGET SECONDS
	local before
	before=$(agent_holds)
	ask "$@" >/dev/null
	comm -13 <(printf '%s\n' "$before") <(agent_holds)
}

is_cleared() { # WORKLOAD: as it is remembered, with time and evidence
	jq -e --arg name "$1" '.workloads[] | select(.name == $name) |
		.cleared and .advice.cleared and (.advice.ended | fromdate > 0) and
		(.advice.evidence | length > 0)' "$NODE_RUN/accelerate.json" >/dev/null
}

# The most that pods get here: what --accelerate full-advised says once a workload is cleared.
node_level() {
	"$CLIENT" "$NODE_RUN" '{"op": "accelerate"}' | jq -r .accelerate.level
}

pod_level() { # POD
	"$CLIENT" "$NODE_RUN" '{"op": "pods"}' |
		jq -r --arg name "$1" '.pods[] | select(.name == $name).accelerate'
}

# Where the probe allows level full at all, only a cleared workload has it.
check_not_full() { # POD
	check_fails [ "$(node_level) $(pod_level "$1")" = "full full" ]
}

# ---- tests -------------------------------------------------------------------------------------

test_starts_and_joins() {
	local first second
	first=$(advice demo/culprits 600)
	check_equal "$(jq -r .state <<<"$first")" watching
	check_equal "$(jq -r .workload <<<"$first")" demo/culprits
	check_equal "$(jq -r .left <<<"$first")" 600 "seconds left"
	second=$(advice demo/culprits-6f5c7d9b8-x2x7q 5)
	check_equal "$(jq -r .workload <<<"$second")" demo/culprits "workload of the pod"
	[ "$(jq -r .left <<<"$second")" -gt 500 ]
}

test_no_such_workload() {
	local answer
	answer=$(ask demo/nobody 5 || true)
	check_equal "$(jq -r .code <<<"$answer")" not-found "code of $answer"
	for seconds in 0 3601; do
		answer=$(ask demo/culprits "$seconds" || true)
		check_equal "$(jq -r .code <<<"$answer")" bad-request "code of $answer"
	done
}

# In the workload that is being watched since the first test.
test_culprit() { # WHAT CALL...
	local what=$1 seen call
	shift
	calls culprits "$what"
	seen=$(advice demo/culprits)
	check_equal "$(jq -r .refuted <<<"$seen")" true refuted
	for call; do
		check_equal "$(count_of "$seen" "call-$what" "$call")" "$ROUNDS" "$call in $seen"
		jq -e --arg comm "call-$what" --arg call "$call" '.evidence[] |
			select(.comm == $comm and .call == $call) | .pid > 1 and
			(.unsafe or .unknown) and (.means | length > 0)' <<<"$seen" >/dev/null
	done
}

# Strangers and proxies at the worst, in the midst of two replicas of an application that is clean.
test_clean_is_cleared() {
	local seen
	check_not_full clean-6f5c7d9b8-z4z9k
	advice demo/clean 6 >/dev/null
	for stranger in culprits node; do
		calls "$stranger" splice
		calls "$stranger" blocking
	done
	calls clean1 splice 1337
	calls clean1 blocking 1337
	calls clean1 clean
	calls clean2 clean
	seen=$(advice demo/clean)
	check_equal "$(jq -r .state <<<"$seen")" watching
	check_equal "$(count_of "$seen" call-clean "non-blocking receive")" $((2 * 4 * ROUNDS))
	check_equal "$(count_of "$seen" call-clean "sendfile() to a socket")" $((2 * ROUNDS))
	seen=$(verdict demo/clean)
	check_equal "$(jq -r '[.cleared, .refuted, .sockets, .left] | tostring' <<<"$seen")" \
		"[true,false,2,0]" "verdict of $seen"
	check_equal "$(jq -r '[.evidence[].comm] | unique | join(" ")' <<<"$seen")" call-clean \
		"who is in the evidence"
	check_equal "$(jq -r '.evidence | any(.unsafe or .unknown)' <<<"$seen")" false
	is_cleared demo/clean
	check_equal "$(pod_level clean-6f5c7d9b8-z4z9k)" "$(node_level)" "level of a cleared pod"
}

test_little_is_undecided() {
	local seen
	advice demo/w1 2 >/dev/null
	ROUNDS=10 calls w1 clean
	seen=$(verdict demo/w1)
	check_equal "$(jq -r '[.cleared, .refuted] | tostring' <<<"$seen")" "[false,false]"
	check_has "$(jq -r .reason <<<"$seen")" "only 40 receive calls"
	check_fails is_cleared demo/w1
}

test_at_most_four() {
	local answer i
	for i in 1 2 3; do # culprits are watched, too
		check_equal "$(advice "demo/w$((i + 1))" 600 | jq -r .state)" watching
	done
	answer=$(ask demo/w5 600 || true)
	check_equal "$(jq -r '[.code, .retry] | tostring' <<<"$answer")" '["busy",true]'
	check_equal "$(advice demo/w4 | jq -r .state)" watching "one that is watched already"
}

# With a new agent, which has answered nobody yet.
test_refuted_is_not_cleared_any_more() {
	is_cleared demo/clean
	check_equal "$(pod_level clean-6f5c7d9b8-z4z9k)" "$(node_level)" "level after a restart"
	advice demo/clean 3 >/dev/null
	calls clean2 fionread
	check_equal "$(verdict demo/clean | jq -r .refuted)" true
	check_fails is_cleared demo/clean
	check_not_full clean-6f5c7d9b8-z4z9k
}

test_leaves_nothing_when_done() {
	local before held
	before=$(agent_holds)
	held=$(held_by_run demo/w1 1)
	check_has "$held" prog
	check_has "$held" link
	check_has "$held" map
	verdict demo/w1 >/dev/null
	wait_for 10 agent_holds_now "$before"
	wait_for 10 all_gone "$held"
}

test_leaves_nothing_after() { # COMMAND: how the agent ends
	local held
	held=$(held_by_run demo/w2 600)
	check_fails all_gone "$held"
	"$1"
	wait_for 10 all_gone "$held"
	check_equal "$(find "$NODE_BPFFS" -name '*advise*' | wc -l)" 0 "pins of the adviser"
}

# ---- the suite ---------------------------------------------------------------------------------

agent_start --mode ebpf --accelerate full-advised
pod culprits culprits-6f5c7d9b8-x2x7q
pod clean1 clean-6f5c7d9b8-x2x7q
pod clean2 clean-6f5c7d9b8-z4z9k
for i in 1 2 3 4 5; do
	pod "w$i" "w$i-6f5c7d9b8-zzzzz"
done

tap_test "a run is started, and joined by whoever asks for one of its pods" test_starts_and_joins
tap_test "unknown workloads and impossible times are refused" test_no_such_workload
while IFS=: read -r what call also; do
	tap_test "$call is reported with the program's name and count" \
		test_culprit "$what" "$call" ${also:+"$also"}
done <<'END'
splice:splice() out of a socket
fionread:ioctl(FIONREAD)
waitall:receive with MSG_WAITALL
blocking:blocking receive
rcvlowat:setsockopt(SO_RCVLOWAT)
zerocopy:send with MSG_ZEROCOPY:setsockopt(SO_ZEROCOPY)
oob:send with MSG_OOB:receive with MSG_OOB
ulp:setsockopt(TCP_ULP)
discard:receive with MSG_TRUNC
inq:setsockopt(TCP_INQ)
peek-off:setsockopt(SO_PEEK_OFF)
zc-rcv:getsockopt(TCP_ZEROCOPY_RECEIVE)
io-uring:io_uring
io-submit:io_submit()
END
if [ "$(uname -m)" = x86_64 ]; then
	tap_test "32-bit calls are reported as unknown" test_culprit 32bit "32-bit system call"
fi
tap_test "a clean workload is cleared: other pods' and proxies' calls are not its" \
	test_clean_is_cleared
tap_test "too little to judge by decides nothing" test_little_is_undecided
tap_test "at most four workloads are watched at once" test_at_most_four
agent_stop
agent_start --mode ebpf --accelerate full-advised
tap_test "a workload that is refuted later is not cleared any more" \
	test_refuted_is_not_cleared_any_more
tap_test "nothing is left in the kernel when a run is done" test_leaves_nothing_when_done
tap_test "nothing is left when the agent is stopped" test_leaves_nothing_after agent_stop
wait_for 10 test ! -e "/proc/$NODE_AGENT_PID"
agent_start --mode ebpf --accelerate full-advised
disown "$NODE_AGENT_PID" # whose end is expected
tap_test "nothing is left when the agent is killed" test_leaves_nothing_after agent_kill
tap_done
