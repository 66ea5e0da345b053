#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The contract test: every connection of a pod goes where matrix.txt says, whatever engine
# redirects it. TAP on standard output. docs/testing.md has the details.
#
#   BUILD_DIR   where the programs are (build)
#   ENGINE      ebpf, nftables, iptables, or reference: the rules of Istio in the kernel's NAT; or
#               several of them (ebpf nftables iptables)
#   IPTABLES    the iptables engine's backend: legacy, nft or auto (auto)
#   SCALE       ci or full: how large the long tests are (ci)
#   ONLY        run only what contains this text: a pod of the matrix or a scenario
#   PARTS       matrix: without the scenarios, but with what not every kernel has; or all (all)
#   SILENCE     seconds without a line of output after which an engine's part is given up (by
#               SCALE: 150, 600)
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
if [ -z "${SOCKMESH_CONTRACT_PRIVATE:-}" ]; then
	SOCKMESH_CONTRACT_PRIVATE=1 exec unshare --mount --propagation private "$0" "$@"
fi
ENGINES=${ENGINE:-ebpf nftables iptables}
# shellcheck source=test/contract/rig.sh
. test/contract/rig.sh
# shellcheck source=test/contract/scenarios.sh
. test/contract/scenarios.sh
# shellcheck source=test/contract/restarts.sh
. test/contract/restarts.sh
# shellcheck source=test/contract/engines.sh
. test/contract/engines.sh
# shellcheck source=test/contract/moves.sh
. test/contract/moves.sh
# shellcheck source=test/contract/ambient.sh
. test/contract/ambient.sh
# shellcheck source=test/contract/node_proxy.sh
. test/contract/node_proxy.sh

# shellcheck source=test/contract/tls.sh
. test/contract/tls.sh

SCALE=${SCALE:-ci}
ONLY=${ONLY:-}
PARTS=${PARTS:-all}
[ "$SCALE" = full ] && silence=600 || silence=150
SILENCE=$((${SILENCE:-$silence} * ${SOCKMESH_TEST_PATIENCE:-1}))

result() { # STATUS CLAIM
	if [ "$1" -eq 0 ]; then
		echo "ok - $2"
	else
		echo "not ok - $2"
	fi
}

pods_of_matrix() {
	awk '$1 == "pod" { print $2 }' "$MATRIX"
}

selected() { # NAME
	case ${1//_/-} in *"$ONLY"*) return 0 ;; esac
	return 1
}

matrix_pod_up() { # NAME AGENT
	pod_up "$1" "$2" "${setting[userns]:-}" || return
	[ "${setting[guest]:-no}" = no ] || guest_up "$1"
	! is_by_node || node_proxy_up "$1"
	case ${setting[servers]:-} in
	before*) servers_up "$1" "${setting[listeners]:-separate}" ;;
	esac
}

matrix_rows() { # NAME [ENGINE]
	local arguments=(--file "$MATRIX" --pod "$1" --engine "${2:-$ENGINE}"
		--pod-netns "/run/netns/$1" --world-netns "/run/netns/$1-w" --cgroup "${pod_cgroup[$1]}"
		--kubelet-cgroup "$kubelet_cgroup")
	[ "${setting[guest]:-no}" = no ] || arguments+=(--guest-netns "/run/netns/$1-g")
	[ -z "${setting[userns]:-}" ] || arguments+=(--pod-userns "/run/netns/$1.user")
	[ -z "${setting[settle-ms]:-}" ] || arguments+=(--settle-ms "${setting[settle-ms]}")
	"$PROGRAMS/matrix" "${arguments[@]}" ||
		[ $? -eq 1 ] || echo "not ok - $1: the matrix program ran to its end"
}

# What this engine cannot do it must refuse when it is forced, and say so by the annotation's name.
matrix_refusal() { # NAME
	local answer
	answer=$(enrol "$1" 2>&1)
	case $answer in
	*'"ok":false'*"${setting[refused-for]}"*) echo "ok - $1: refused by name" ;;
	*)
		echo "not ok - $1: refused by name"
		echo "#   $answer"
		;;
	esac
}

# An agent that may choose gives such a pod to an engine that can do it, and says why.
matrix_falls_back() { # NAME
	agent_mode[chooser]=auto
	[ -n "${agent_pid[chooser]:-}" ] || agent_up chooser || {
		echo "not ok - $1: an agent that chooses starts"
		pod_down "$1"
		return 1
	}
	pod_agent[$1]=$work/run-chooser
}

matrix_fallback_is_told() { # NAME
	expect "$1: falls back to nftables" '"engine":"nftables"' cat "$work/answer"
	expect "$1: and says why" "${setting[refused-for]}" \
		jq -r '.engineReason // "no reason"' "$work/answer"
	sed -n '/ ready /s/.*engine=/#   its agent: engine=/p' "$work/agent-chooser.log" # what it chose for the others
}

matrix_enrolled_pod() { # NAME ENGINE
	enrol "$1" || {
		echo "not ok - $1: enrolled"
		return
	}
	[ -n "${servers[$1.app]:-}" ] || servers_up "$1" "${setting[listeners]:-separate}" || {
		echo "not ok - $1: its servers are there"
		return
	}
	if [ "${setting[second]:-}" = after ]; then
		ip -n "$1" address add 10.244.0.55/24 dev eth0
		ip -n "$1" address add fd00:10::55/64 dev eth0 nodad
	fi
	matrix_rows "$1" "$2"
}

# The agent for a pod whose settings are in part an agent's options, into `matrix_agent_is`.
matrix_agent() { # NAME
	local options=()
	[ -z "${setting[ownerGroups]:-}" ] || options+=(--owner-groups "${setting[ownerGroups]}")
	[ -z "${setting[ownerGroupsExclude]:-}" ] ||
		options+=(--owner-groups-exclude "${setting[ownerGroupsExclude]}")
	! is_by_node || options+=("${NODE_PROXY_OPTIONS[@]}")
	[ -z "${setting[agentDNS]:-}" ] || options+=(--ambient-dns-capture "${setting[agentDNS]}")
	matrix_agent_is=main
	[ "$ENGINE" != reference ] && [ ${#options[@]} -gt 0 ] || return 0
	matrix_agent_is=$1
	agent_up "$1" "${options[@]}"
}

matrix_pod() { # NAME
	local engine=$ENGINE
	pod_settings "$1"
	if is_by_node && [ "$ENGINE" != ebpf ]; then
		node_proxy_needs_ebpf "$1"
		return
	fi
	[ -e "/run/netns/$1" ] || { matrix_agent "$1" && matrix_pod_up "$1" "$matrix_agent_is"; } || {
		echo "not ok - $1: its namespaces and servers are there"
		return
	}
	if [ "${setting[refused-by]:-}" = "$ENGINE" ]; then
		matrix_refusal "$1"
		engine=nftables
		matrix_falls_back "$1" || return
	fi
	matrix_enrolled_pod "$1" "$engine"
	[ "$engine" = "$ENGINE" ] || matrix_fallback_is_told "$1"
	pod_down "$1"
}

early_pods() {
	local pod
	for pod in $(pods_of_matrix); do
		pod_settings "$pod"
		[ "${setting[servers]:-}" != before-agent ] || ! selected "$pod" || matrix_pod_up "$pod" main
	done
}

run_all() {
	local name
	rig_up
	trap rig_down EXIT
	early_pods
	[ "$ENGINE" = reference ] || agent_up main || {
		echo "not ok - the agent starts"
		return
	}
	for name in $(pods_of_matrix); do
		! selected "$name" || matrix_pod "$name"
	done
	! selected kernel_tls || kernel_tls
	[ "$PARTS" = all ] || return 0
	for name in $(declare -F | sed -n 's/^declare -f scenario_//p'); do
		! selected "$name" || "scenario_$name"
	done
	return 0 # what failed has said so
}

# An engine's part stands still: shows what its processes do, and ends them.
give_up() { # ENGINE PID LAST-CLAIM
	local pids
	[ -n "$2" ] && ! has_ended "$2" || return
	n=$((n + 1)) failed=$((failed + 1))
	mapfile -t pids <<<"$(processes_below "$2")"
	printf 'not ok %d - %s: goes on within %d s after "%s"\n' "$n" "$1" "$SILENCE" "$3"
	processes_picture "${pids[@]}"
	kill "$2" # which takes away what it has made
	kill -9 "${pids[@]:1}" 2>/dev/null
	wait_for 60 has_ended "$2" || kill -9 "$2"
}

# The next line into the caller's `line`; fails at the end.
next_line() {
	local part status
	line=''
	while :; do
		IFS= read -rt "$SILENCE" part
		status=$?
		line+=$part
		[ $status -gt 128 ] || break
		give_up "$engine" "$pid" "$last" || return
	done
	[ $status -eq 0 ] || [ -n "$line" ]
}

# Numbers the results, each when it is there; the exit code is 1 when one of them is a failure.
number() {
	local line engine='' pid='' last='the start' n=0 failed=0
	while next_line; do
		case $line in
		'engine '*)
			read -r _ engine pid <<<"$line"
			continue
			;;
		'ok - '* | 'not ok - '*)
			n=$((n + 1)) last=${line#*ok - }
			[[ $line = ok* ]] || failed=$((failed + 1))
			line="${line%%ok - *}ok $n - $engine: $last"
			;;
		esac
		printf '%s\n' "$line"
	done
	echo "1..$n"
	[ $failed -eq 0 ] && [ $n -gt 0 ]
}

for ENGINE in $ENGINES; do
	case $ENGINE in
	ebpf | nftables | iptables | reference) ;;
	*)
		echo "run.sh: ENGINE \"$ENGINE\" is none of ebpf, nftables, iptables, reference" >&2
		exit 2
		;;
	esac
done
for ENGINE in $ENGINES; do
	(
		echo "engine $ENGINE $BASHPID"
		run_all
	)
done | number
