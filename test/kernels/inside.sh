#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# What run.sh does on one kernel, inside the machine or, for the running kernel, beside it:
#
#   inside.sh CASE   in the repository's top directory, as root
#
# The cases are nodes that can do less and less; each tries the engine that is the best there:
#
#   ebpf             nothing is denied
#   nftables         bpf() is denied
#   iptables-nft     the same, and iptables of the nft kind is asked for
#   iptables-legacy  bpf() is denied, and the node has no nf_tables; where it is built in, its socket
#                    is denied instead
#   accelerator      nothing is denied: what --accelerate auto does by itself, and then, whatever is
#                    known of this kernel, the accelerator's streams and hazards instead of the matrix
#
# Output: "ok - " and "not ok - " lines, unnumbered; "row " before each line of the matrix; one line
# "auto ENGINE"; and what the agent's probe found, "facility found|missing|required NAME" and
# "engine NAME usable|unusable"; where the accelerator was tried, "accelerator FINDING TEST" and
# "accelerator-level LEVEL", a release's known bugs aside; "accelerator-auto LEVEL REASON" with them.
#
#   PARTS    of the contract test: matrix, or all (matrix)
#   STREAMS  of the accelerator (900)
set -uo pipefail

BUILD_DIR=${BUILD_DIR:-build}
case ${1:-} in
ebpf | accelerator) engine=ebpf through=() ;;
nftables) engine=nftables through=(--bpf) ;;
iptables-nft) engine=iptables through=(--bpf) IPTABLES=nft ;;
iptables-legacy)
	engine=iptables through=(--bpf)
	! nft list tables >/dev/null 2>&1 || through+=(--netfilter-netlink)
	;;
*)
	echo "inside.sh: no case \"${1:-}\"" >&2
	exit 2
	;;
esac
[ ${#through[@]} -eq 0 ] || through=("$BUILD_DIR/test/contract/denied" "${through[@]}")
export ENGINE=$engine IPTABLES=${IPTABLES:-auto} PARTS=${PARTS:-matrix} BUILD_DIR

# shellcheck source=test/lib/processes.sh
. test/lib/processes.sh

answers() { # DIR
	"$BUILD_DIR/bin/sockmeshctl" --run-dir "$1/run" status -o json
}

wait_for_agent() { # DIR PID
	local deadline=$((SECONDS + 60))
	until answers "$1" >/dev/null 2>&1; do
		[ $SECONDS -lt $deadline ] && kill -0 "$2" 2>/dev/null || return 1
		pause 0.1
	done
}

tell_probe() { # JSON
	jq -r '.probe | (.facilities[] | "facility \(if .found then "found" elif .required then "required"
			else "missing" end) \(.name)"),
		((.engines // [])[] | "engine \(.name) \(if .usable then "usable" else "unusable" end)")' "$1"
	jq -r '.probe.facilities[] | select(.found | not) | "# probe: \(.name): \(.how): \(.detail)"' "$1"
	jq -r '.accelerate // empty | "accelerator-level \(.level)", "# accelerator: \(.tookUs) us: \(.reason)",
		(.tests[] | "accelerator \(.finding) \(.name)", "# accelerator: \(.name): \(.detail)")' "$1"
}

# The probe, when it had the time to try everything: on an emulated machine it may not get to the end
# of it while the kernel still has to load a module for each thing that is tried.
probe() { # DIR
	local deadline=$((SECONDS + 120))
	while :; do
		# Its status says whether eBPF can be used, which is another question.
		"$BUILD_DIR/bin/sockmeshctl" --run-dir "$1/run" --timeout-ms 60000 probe -o json >"$1/probe"
		jq -e 'any(.probe.facilities[]; .detail | contains("not tried"))' "$1/probe" >/dev/null || break
		[ $SECONDS -lt $deadline ] || break
	done
	tell_probe "$1/probe"
}

# What an agent that may choose takes here.
tell_choice() { # DIR
	echo "auto $(answers "$1" | jq -r .engine)"
	probe "$1"
}

# What one says of the accelerator that goes by the release, too.
tell_accelerator() { # DIR
	answers "$1" | jq -r '.accelerate | "accelerator-auto \(.level) \(.reason)"'
}

with_agent() { # TELL [OPTION...]
	local dir cgroup agent tell=$1
	shift
	dir=$(mktemp -d /tmp/sockmesh-kernels.XXXXXX)
	cgroup=$(awk '{ for (i = 7; i < NF; i++) if ($i == "-" && $(i + 1) == "cgroup2") { print $5; exit } }' \
		/proc/self/mountinfo)/sockmesh-kernels-$$
	mkdir "$cgroup" "$dir/run" "$dir/bpf"
	"${through[@]}" "$BUILD_DIR/bin/sockmesh-agent" --mode auto --kubernetes off --accelerate auto "$@" \
		--run-dir "$dir/run" --bpffs-dir "$dir/bpf" --cgroup-root "$cgroup" >"$dir/log" 2>&1 &
	agent=$!
	if wait_for_agent "$dir" "$agent"; then
		echo "ok - an agent that may choose starts"
		"$tell" "$dir"
	else
		echo "not ok - an agent that may choose starts"
	fi
	sed 's/^/# agent: /' "$dir/log"
	kill "$agent" 2>/dev/null
	wait "$agent"
	rmdir "$cgroup"
	! mountpoint -q "$dir/bpf" || umount "$dir/bpf"
	rm -rf --one-file-system "$dir"
}

case $1 in
accelerator)
	with_agent tell_accelerator
	ONLY="streams hazards" GUARDS=0 STREAMS=${STREAMS:-900} MACHINE=own \
		AGENT_OPTIONS="--accelerate-ignore-known-bugs yes" test/accelerate/run.sh | sed 's/^/row /'
	exit
	;;
# On a node that has nf_tables: nothing to choose that case nftables did not.
iptables-nft) ;;
*) with_agent tell_choice --accelerate-ignore-known-bugs yes ;;
esac
"${through[@]}" test/contract/run.sh | sed 's/^/row /'
