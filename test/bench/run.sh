#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The figures: what sockmesh-cni adds to a chain's ADD, what the agent and each engine need per pod,
# and what a connection through both sidecars costs with each engine, compared with Istio's iptables
# rules and with no sidecar.
#
# All variants stand side by side and are measured in turn, round after round, because a machine's
# speed changes while one looks; what counts is the ratio of values of one round. Prints a table,
# writes build/bench/report.json.
#
#	BENCH_ROUNDS	rounds of the data path (5)
#	BENCH_MS	milliseconds of one ping-pong measurement (500)
#	BENCH_CONNECTS	connections of one connect measurement (1500)
#	BENCH_ADDS	ADDs of each chain (30)
#	BENCH_PODS	numbers of pods at which the agent's memory is read ("1 100 1000")

set -euo pipefail

LIB_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/../lib" && pwd)
# shellcheck source=test/lib/node.sh
. "$LIB_DIR/node.sh"
# shellcheck source=test/lib/cni.sh
. "$LIB_DIR/cni.sh"
# shellcheck source=test/lib/pod.sh
. "$LIB_DIR/pod.sh"
# shellcheck source=test/lib/download.sh
. "$LIB_DIR/download.sh"
# shellcheck source=test/lib/istio_iptables.sh
. "$LIB_DIR/istio_iptables.sh"

BENCH_ROUNDS=${BENCH_ROUNDS:-5}
BENCH_MS=${BENCH_MS:-500}
BENCH_CONNECTS=${BENCH_CONNECTS:-1500}
BENCH_ADDS=${BENCH_ADDS:-30}
BENCH_PODS=${BENCH_PODS:-1 100 1000}
BENCH_VARIANTS=${BENCH_VARIANTS:-direct istio-iptables iptables nftables ebpf}
BENCH_ENGINES=(ebpf nftables iptables) # an agent each
BENCH_DIR=$REPO_DIR/test/bench
OUT_DIR=$BUILD_DIR/bench
APP_PORT=8080

note() {
	echo "$*" >&2
}

# ---- the data path -----------------------------------------------------------------------------

# Two pods a variant: NAME-a with the client, NAME-b with the server. Only the pods of `ebpf` are
# below the cgroup that the agent's programs are attached to.
pair_make() { # VARIANT
	local variant=$1 pod annotations=''
	POD_PARENT=other
	[ "$variant" != ebpf ] || POD_PARENT=kubepods
	POD_CONFLIST=$NODE_DIR/plain.conflist
	if [ -e "$NODE_DIR/$variant.conflist" ]; then
		POD_CONFLIST=$NODE_DIR/$variant.conflist
		annotations=$SIDECAR_ANNOTATION
	fi
	for pod in "$variant-a" "$variant-b"; do
		pod_add "$pod" "$annotations"
		# One connection after the other for minutes: many ports stay in TIME_WAIT.
		pod_exec "$pod" sysctl -qw net.ipv4.ip_local_port_range="1024 65000"
		[ "$variant" != istio-iptables ] || istio_iptables_apply "$pod"
		[ "$variant" = direct ] || pod_start proxy "$pod" istio-proxy "$PROXY_UID" \
			"$NODE_DIR/bench_proxy" 15001 15006
	done
	pod_start app "$variant-b" app "$APP_UID" "$NODE_DIR/bench_server" "$APP_PORT"
	wait_for 10 pod_listens "$variant-b" "$APP_PORT" || die "the server of $variant does not start"
	[ "$variant" = direct ] || for pod in "$variant-a" "$variant-b"; do
		wait_for 10 pod_listens "$pod" 15006 || die "the proxy of $pod does not start"
	done
}

pod_pin() { # POD CPU
	local pid
	while read -r pid; do
		taskset -acp "$2" "$pid" >/dev/null
	done < <(find "$(pod_cgroup_dir "$1")" -name cgroup.procs -exec cat {} +)
}

# one-cpu: everything on one, no wake-up across CPUs. spread: a pod a CPU.
pair_place() { # VARIANT PLACEMENT
	pod_pin "$1-a" 0
	pod_pin "$1-b" "$([ "$2" = spread ] && echo 1 || echo 0)"
}

pair_cpu_us() { # VARIANT: CPU time of its two pods so far
	cat "$(pod_cgroup_dir "$1-a")/cpu.stat" "$(pod_cgroup_dir "$1-b")/cpu.stat" |
		awk '$1 == "usage_usec" { sum += $2 } END { print sum }'
}

# One measurement, a JSON line.
measure() { # ROUND CASE PLACEMENT VARIANT
	local round=$1 case=$2 placement=$3 variant=$4 arguments before after result
	case $case in
	pingpong-64B-c1) arguments=(pingpong "${POD_IP4[$variant-b]}" "$APP_PORT" 64 "$BENCH_MS") ;;
	pingpong-4KB-c1) arguments=(pingpong "${POD_IP4[$variant-b]}" "$APP_PORT" 4096 "$BENCH_MS") ;;
	connect-c1) arguments=(connect "${POD_IP4[$variant-b]}" "$APP_PORT" "$BENCH_CONNECTS") ;;
	esac
	pair_place "$variant" "$placement"
	before=$(pair_cpu_us "$variant")
	result=$(pod_run "$variant-a" app "$APP_UID" taskset -c 0 "$NODE_DIR/bench_client" "${arguments[@]}") ||
		die "$case $placement $variant failed in round $round: $result"
	after=$(pair_cpu_us "$variant")
	jq -nc --argjson round "$round" --arg case "$case" --arg placement "$placement" \
		--arg variant "$variant" --argjson cpu $((after - before)) --argjson r "$result" '
		{$round, $case, $placement, $variant, errors: $r.errors,
		 metrics: ($r | del(.errors, .count) + {cpu_us_per_req: ($cpu / .count)})}'
}

# The order changes from round to round: who comes first would otherwise always be first.
rotated() { # N WORD...
	local n=$1 i
	shift
	for ((i = 0; i < $#; i++)); do
		printf '%s\n' "${@:$(((i + n) % $# + 1)):1}"
	done
}

data_path() {
	local round case placement variant placements=(one-cpu)
	[ "$(nproc)" -lt 2 ] || placements+=(spread)
	for variant in $BENCH_VARIANTS; do
		pair_make "$variant"
	done
	for ((round = 0; round <= BENCH_ROUNDS; round++)); do
		# Round 0 warms up and is not kept.
		note "data path: round $round of $BENCH_ROUNDS"
		for placement in "${placements[@]}"; do
			for case in pingpong-64B-c1 pingpong-4KB-c1 connect-c1; do
				# shellcheck disable=SC2086
				for variant in $(rotated "$round" $BENCH_VARIANTS); do
					measure "$round" "$case" "$placement" "$variant"
				done
			done
		done
	done | jq -c 'select(.round > 0)' >"$OUT_DIR/samples.jsonl"
	for variant in $BENCH_VARIANTS; do
		pod_delete "$variant-a"
		pod_delete "$variant-b"
	done
}

# ---- registration ------------------------------------------------------------------------------

registration() {
	note "ADD: $BENCH_ADDS times with and without sockmesh-cni"
	node_exec "$PYTHON" -I "$BENCH_DIR/registration.py" add --adds "$BENCH_ADDS" \
		--plain "$NODE_DIR/plain.conflist" --chained "$NODE_DIR/ebpf.conflist" --path "$BIN_DIR:$CNI_PLUGIN_DIR" \
		--annotations "$SIDECAR_ANNOTATION" >"$OUT_DIR/add.json"
	note "memory: the agent with $BENCH_PODS pods"
	# shellcheck disable=SC2086
	"$PYTHON" -I "$BENCH_DIR/registration.py" memory --pid "$NODE_AGENT_PID" \
		--socket "$(engine_run_dir ebpf)/agent.sock" --annotations "$SIDECAR_ANNOTATION" \
		--pods $BENCH_PODS >"$OUT_DIR/memory.json"
	# In turn, a few at a time, as the data path.
	note "registering: 200 pods with each engine"
	"$PYTHON" -I "$BENCH_DIR/registration.py" engines --annotations "$SIDECAR_ANNOTATION" --pods 200 \
		--run-dir "$(engine_run_dir ebpf)" "$(engine_run_dir nftables)" "$(engine_run_dir iptables)" \
		>"$OUT_DIR/engines.json"
}

# ---- the agents --------------------------------------------------------------------------------

engine_run_dir() { # ENGINE
	echo "$NODE_DIR/run-$1"
}

# NODE_AGENT_PID stays that of the first, ebpf; node_close knows only one.
engine_start() { # ENGINE
	local NODE_RUN
	NODE_RUN=$(engine_run_dir "$1")
	[ "$1" = ebpf ] || local NODE_BPFFS=$NODE_BPFFS-$1 NODE_AGENT_PID=''
	agent_start --mode "$1"
	cni_conflist "$NODE_DIR/$1.conflist" "$(cni_sockmesh_entry)"
	engine_pids+=("$NODE_AGENT_PID")
}

engines_kill() {
	local pid
	for pid in "${engine_pids[@]}"; do
		kill -KILL "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	done
}

# ---- the report --------------------------------------------------------------------------------

main() {
	local program
	engine_pids=()
	node_open bench
	trap 'engines_kill; node_close' EXIT
	trap 'exit 130' INT TERM HUP
	mkdir -p "$OUT_DIR"
	for program in bench_proxy bench_server bench_client; do
		cp "$BUILD_DIR/test/bench/$program" "$NODE_DIR/"
	done
	cni_conflist "$NODE_DIR/plain.conflist"
	for program in "${BENCH_ENGINES[@]}"; do
		engine_start "$program"
	done
	registration
	data_path
	"$PYTHON" -I "$BENCH_DIR/report.py" --samples "$OUT_DIR/samples.jsonl" --add "$OUT_DIR/add.json" \
		--memory "$OUT_DIR/memory.json" --engines "$OUT_DIR/engines.json" --rounds "$BENCH_ROUNDS" \
		--commit "$(git -C "$REPO_DIR" rev-parse HEAD 2>/dev/null || echo unknown)" \
		--output "$OUT_DIR/report.json"
	note "written: $OUT_DIR/report.json"
	jq -e 'all(.results[]; .errors == 0)' "$OUT_DIR/report.json" >/dev/null ||
		die "exchanges failed: see errors in the report"
}

node_enter "$@"
main
