#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The figures: what a connection through two sidecars costs with each engine and with each level of
# acceleration, beside Istio's iptables rules, no sidecar, and what the machine can do at best; what
# sockmesh-cni adds to a chain's ADD; what the agent needs for each pod. No network, no cluster.
#
# All variants stand side by side and are measured in turn, round after round, because a machine's
# speed changes while one looks; what counts is the ratio of values of one round. Prints a table,
# writes report.json and plots to build/bench/. docs/testing.md explains what is measured.
#
#	BENCH=quick	four minutes and not thirty, for a first look
#	BENCH_ROUNDS	rounds of the data path (7; quick: 3)
#	BENCH_MS	milliseconds of one measurement (1000; quick: 250)
#	BENCH_VARIANTS	what is compared; istio-iptables is what the others are compared with
#	BENCH_FLOORS	the same of the floors ("floor-tcp floor-unix floor-pipe")
#	BENCH_CASES	what is measured
#	BENCH_PLACEMENTS	"one-cpu spread"
#	BENCH_ADDS	ADDs of each chain (30; quick: 5)
#	BENCH_PODS	numbers of pods at which the agent's memory is read ("1 100 1000"; quick: "1 100")

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
# shellcheck source=test/lib/proxy.sh
. "$LIB_DIR/proxy.sh"
# shellcheck source=test/lib/istio_iptables.sh
. "$LIB_DIR/istio_iptables.sh"

case ${BENCH:-full} in
full) defaults=(7 1000 30 '1 100 1000') ;;
quick) defaults=(3 250 5 '1 100') ;;
*) die "BENCH=$BENCH: not quick or full" ;;
esac
BENCH_ROUNDS=${BENCH_ROUNDS:-${defaults[0]}}
BENCH_MS=${BENCH_MS:-${defaults[1]}}
BENCH_ADDS=${BENCH_ADDS:-${defaults[2]}}
BENCH_PODS=${BENCH_PODS:-${defaults[3]}}
BENCH_VARIANTS=${BENCH_VARIANTS:-direct istio-iptables iptables nftables ebpf ebpf+proxy ebpf+full ebpf+auto}
BENCH_FLOORS=${BENCH_FLOORS-floor-tcp floor-unix floor-pipe}
BENCH_CASES=${BENCH_CASES:-pingpong-64B-c1 pingpong-1KB-c1 pingpong-4KB-c1 pingpong-64B-c16 pingpong-64B-c64
	connect-c1 connect-c16 bulk http-c1 http-c16}
BENCH_PLACEMENTS=${BENCH_PLACEMENTS:-one-cpu spread}
[ "$(nproc)" -gt 1 ] || BENCH_PLACEMENTS=one-cpu
BENCH_DIR=$REPO_DIR/test/bench
OUT_DIR=$BUILD_DIR/bench

# A port for each kind of service: what the accelerator learns, it learns by port.
PINGPONG_PORT=8080
CONNECT_PORT=8081
SINK_PORT=8082
HTTP_PORT=8083

note() {
	echo "$*" >&2
}

# ---- progress ----------------------------------------------------------------------------------

# In milliseconds that things are expected to take. On a terminal one line that is written over,
# else a line now and then.
progress_total=0 progress_done=0 progress_shown=-5

progress() { # MILLISECONDS WHAT: that much of the work is done, now comes WHAT
	local percent rest elapsed=$SECONDS
	progress_done=$((progress_done + $1))
	percent=$((100 * progress_done / progress_total))
	rest='?'
	[ "$progress_done" -eq 0 ] ||
		rest=$(minutes $((elapsed * (progress_total - progress_done) / progress_done)))
	if [ -t 2 ]; then
		printf '\r%3d %%  %s elapsed, about %s to go  %-50.50s' "$percent" "$(minutes "$elapsed")" "$rest" "$2" >&2
	elif [ "$percent" -ge $((progress_shown + 5)) ]; then
		progress_shown=$percent
		note "$(printf '%3d %%  %s elapsed, about %s to go  %s' "$percent" "$(minutes "$elapsed")" "$rest" "$2")"
	fi
}

progress_end() {
	[ ! -t 2 ] || printf '\r%-100s\r' '' >&2
	note "done in $(minutes "$SECONDS")"
}

minutes() { # SECONDS
	printf '%d:%02d' $(($1 / 60)) $(($1 % 60))
}

# ---- pairs of pods -----------------------------------------------------------------------------

# Two pods for each variant and proxy, PAIR-a with the client and PAIR-b with the server. Those of
# an agent are below the cgroup that its own programs are attached to, and nobody else's.
slug() { # VARIANT: as part of names
	echo "${1//+/-}"
}

pair_of() { # VARIANT PROXY
	if [ "$1" = direct ] || [ "$2" = c ]; then
		slug "$1"
	else
		echo "$(slug "$1")-$2"
	fi
}

pair_make() { # VARIANT PROXY
	local variant=$1 proxy=$2 pair pod annotations=''
	pair=$(pair_of "$variant" "$proxy")
	POD_PARENT=other
	POD_CONFLIST=$NODE_DIR/plain.conflist
	if [ -e "$NODE_DIR/$(slug "$variant").conflist" ]; then
		POD_PARENT=$(slug "$variant")/kubepods
		POD_CONFLIST=$NODE_DIR/$(slug "$variant").conflist
		annotations=$SIDECAR_ANNOTATION
	fi
	for pod in "$pair-a" "$pair-b"; do
		pod_add "$pod" "$annotations"
		# One connection after the other for minutes: many ports stay in TIME_WAIT.
		pod_exec "$pod" sysctl -qw net.ipv4.ip_local_port_range="1024 65000" net.ipv4.tcp_tw_reuse=1
		[ "$variant" != istio-iptables ] || istio_iptables_apply "$pod"
		[ "$variant" = direct ] || pod_proxy "$pod" "$proxy"
	done
	pod_start app "$pair-b" app "$APP_UID" "$NODE_DIR/bench_server" "echo=$PINGPONG_PORT" \
		"echo=$CONNECT_PORT" "sink=$SINK_PORT" "http=$HTTP_PORT"
	wait_for 10 pod_listens "$pair-b" "$HTTP_PORT" || die "the server of $pair does not start"
	[ "$variant" = direct ] || for pod in "$pair-a" "$pair-b"; do
		wait_for 30 proxy_ready "$pod" || die "the proxy of $pod does not start"
	done
	pairs+=("$pair")
}

pod_proxy() { # POD c|envoy|haproxy
	local dir
	dir=$(proxy_dir "$1")
	case $2 in
	c) pod_start proxy "$1" istio-proxy "$PROXY_UID" "$NODE_DIR/bench_proxy" 15001 15006 ;;
	envoy)
		# Without what tests read: no log and no headers of its own.
		mkdir -p "$dir"
		envoy_config "$1" "$dir/logging.json"
		jq 'walk(if type == "object" then del(.access_log, .response_headers_to_add) else . end)' \
			"$dir/logging.json" >"$dir/envoy.json"
		chown -R "$PROXY_UID:$PROXY_UID" "$dir"
		envoy_run "$1" --disable-hot-restart &
		;;
	haproxy) proxy_start "$1" ;;
	esac
}

pairs_delete() {
	local pair
	for pair in "${pairs[@]}"; do
		pod_delete "$pair-a"
		pod_delete "$pair-b"
	done
	pairs=()
}

pod_pin() { # POD CPU
	local pid
	while read -r pid; do
		taskset -acp "$2" "$pid" >/dev/null
	done < <(find "$(pod_cgroup_dir "$1")" -name cgroup.procs -exec cat {} +)
}

# one-cpu: everything on one, no wake-up across CPUs. spread: a pod a CPU.
pairs_place() { # PLACEMENT
	local pair
	for pair in "${pairs[@]}"; do
		pod_pin "$pair-a" 0
		pod_pin "$pair-b" "$(second_cpu "$1")"
	done
}

second_cpu() { # PLACEMENT
	if [ "$1" = spread ]; then
		echo 1
	else
		echo 0
	fi
}

# ---- the data path -----------------------------------------------------------------------------

case_proxy() { # CASE
	case $1 in
	http-*) echo "$PROXY_KIND" ;;
	*) echo c ;;
	esac
}

case_variants() { # CASE
	echo "$BENCH_VARIANTS"
	case $1 in
	pingpong-64B-c1 | pingpong-4KB-c1) echo "$BENCH_FLOORS" ;;
	esac
}

case_size() { # CASE: bytes of a message
	case $1 in
	*-64B-*) echo 64 ;;
	*-1KB-*) echo 1024 ;;
	*-4KB-*) echo 4096 ;;
	esac
}

run_client() { # CASE PAIR MILLISECONDS
	local case=$1 pair=$2 ms=$3 connections=${1##*-c} arguments
	case $case in
	pingpong-*) arguments=(pingpong "$PINGPONG_PORT" "$ms" "$connections" "$(case_size "$case")") ;;
	connect-*) arguments=(connect "$CONNECT_PORT" "$ms" "$connections") ;;
	http-*) arguments=(http "$HTTP_PORT" "$ms" "$connections") ;;
	bulk) arguments=(bulk "$SINK_PORT" "$ms") ;;
	*) die "no such case: $case" ;;
	esac
	pod_run "$pair-a" app "$APP_UID" taskset -c 0 "$NODE_DIR/bench_client" "${arguments[0]}" \
		"${POD_IP4[$pair-b]}" "${arguments[@]:1}"
}

run_floor() { # CASE PLACEMENT FLOOR MILLISECONDS
	node_exec "$NODE_DIR/bench_floor" "${3#floor-}" "$4" "$(case_size "$1")" 0 "$(second_cpu "$2")"
}

# One measurement, a JSON line. A failed one is counted in the report, which then fails the run.
measure() { # ROUND CASE PLACEMENT VARIANT MILLISECONDS
	local round=$1 case=$2 placement=$3 variant=$4 ms=$5 result proxy
	proxy=$(case_proxy "$case")
	case $variant in
	floor-*)
		result=$(run_floor "$case" "$placement" "$variant" "$ms") || result='{"errors":1}'
		;;
	*)
		result=$(run_client "$case" "$(pair_of "$variant" "$proxy")" "$ms") || result='{"errors":1}'
		;;
	esac
	case $variant in
	direct | floor-*) proxy=none ;;
	esac
	printf '{"round":%d,"case":"%s","placement":"%s","proxy":"%s","variant":"%s","result":%s}\n' \
		"$round" "$case" "$placement" "$proxy" "$variant" "$result"
}

# The order changes from round to round: who comes first would otherwise always be first.
rotated() { # N WORD...
	local n=$1 i
	shift
	for ((i = 0; i < $#; i++)); do
		printf '%s\n' "${@:$(((i + n) % $# + 1)):1}"
	done
}

round_ms() { # ROUND: of one measurement; round 0 only warms up
	if [ "$1" -gt 0 ]; then
		echo "$BENCH_MS"
	else
		echo $((BENCH_MS / 4))
	fi
}

# What there is besides the time that is asked for: starting, warming up.
MEASURE_OVERHEAD_MS=70

one_round() { # ROUND: JSON lines
	local round=$1 ms placement case variant variants cost=0
	ms=$(round_ms "$round")
	for placement in $BENCH_PLACEMENTS; do
		pairs_place "$placement"
		for case in $BENCH_CASES; do
			read -rd '' -a variants < <(case_variants "$case") || true
			while read -r variant; do
				progress "$cost" "round $round of $BENCH_ROUNDS, $placement, $case, $variant"
				measure "$round" "$case" "$placement" "$variant" "$ms" </dev/null
				cost=$((ms + ms / 8 + MEASURE_OVERHEAD_MS))
			done < <(rotated "$round" "${variants[@]}")
		done
	done
	progress "$cost" "round $round of $BENCH_ROUNDS is over"
}

# What the machine does by itself.
measure_idle() {
	"$NODE_DIR/bench_client" idle 2000
}

# In milliseconds, of all rounds.
rounds_cost() {
	local round placement case n=0 total=0 ms
	for placement in $BENCH_PLACEMENTS; do
		for case in $BENCH_CASES; do
			n=$((n + $(case_variants "$case" | wc -w)))
		done
	done
	for ((round = 0; round <= BENCH_ROUNDS; round++)); do
		ms=$(round_ms "$round")
		total=$((total + n * (ms + ms / 8 + MEASURE_OVERHEAD_MS)))
	done
	echo "$total"
}

data_path() {
	local round variant proxy
	pairs=()
	for variant in $BENCH_VARIANTS; do
		for proxy in $proxies; do
			[ "$variant" != direct ] || [ "$proxy" = c ] || continue
			progress 0 "pods: $variant, $proxy"
			pair_make "$variant" "$proxy"
			progress "$PAIR_MS" "pods: $variant, $proxy"
		done
	done
	measure_idle >"$OUT_DIR/idle.json"
	: >"$OUT_DIR/samples.jsonl"
	one_round 0 >"$OUT_DIR/warm-up.jsonl"
	for ((round = 1; round <= BENCH_ROUNDS; round++)); do
		one_round "$round" >>"$OUT_DIR/samples.jsonl"
	done
	learned
	pairs_delete
}

# What the accelerators were allowed and what they made of it, to read beside the figures.
learned() {
	local variant file NODE_RUN
	for variant in $BENCH_VARIANTS; do
		case $variant in
		ebpf+*)
			NODE_RUN=$(agent_run_dir "$variant")
			file=$OUT_DIR/accelerate-${variant#ebpf+}
			# Status 1 is the answer that nothing is accelerated.
			ctl accelerate -o json >"$file.json" || [ $? -eq 1 ] || note "$variant: its agent is silent"
			ctl accelerate >"$file.txt" || true
			;;
		esac
	done
}

# ---- registration ------------------------------------------------------------------------------

registration() {
	local run_dirs=() engine
	progress 0 "ADD, $BENCH_ADDS times with and without sockmesh-cni"
	node_exec "$PYTHON" -I "$BENCH_DIR/registration.py" add --adds "$BENCH_ADDS" \
		--plain "$NODE_DIR/plain.conflist" --chained "$NODE_DIR/ebpf.conflist" --path "$BIN_DIR:$CNI_PLUGIN_DIR" \
		--annotations "$SIDECAR_ANNOTATION" >"$OUT_DIR/add.json"
	progress $((BENCH_ADDS * ADD_MS)) "memory: the agent with $BENCH_PODS pods"
	# shellcheck disable=SC2086
	"$PYTHON" -I "$BENCH_DIR/registration.py" memory --pid "$(cat "$NODE_DIR/ebpf.pid")" \
		--socket "$(agent_run_dir ebpf)/agent.sock" --annotations "$SIDECAR_ANNOTATION" \
		--pods $BENCH_PODS >"$OUT_DIR/memory.json"
	progress $((${BENCH_PODS##* } * POD_MS)) "registering $ENGINE_PODS pods with each engine"
	for engine in ebpf nftables iptables; do
		run_dirs+=("$(agent_run_dir "$engine")")
	done
	# In turn, a few at a time, as the data path.
	"$PYTHON" -I "$BENCH_DIR/registration.py" engines --annotations "$SIDECAR_ANNOTATION" \
		--pods "$ENGINE_PODS" --run-dir "${run_dirs[@]}" >"$OUT_DIR/engines.json"
	progress $((ENGINE_PODS * POD_ALL_MS)) 'registered'
}

# ---- the agents --------------------------------------------------------------------------------

agent_run_dir() { # VARIANT
	echo "$NODE_DIR/run-$(slug "$1")"
}

# Each has directories and a cgroup of its own, below which its pods are.
variant_agent() { # VARIANT OPTION...
	local variant=$1 name=${1//+/-} NODE_RUN NODE_AGENT_PID=''
	local NODE_BPFFS=$NODE_BPFFS/$name NODE_CGROUP=$NODE_CGROUP/$name
	shift
	NODE_RUN=$(agent_run_dir "$variant")
	mkdir -p "$NODE_BPFFS" "$NODE_CGROUP/kubepods"
	agent_start "$@"
	agent_pids+=("$NODE_AGENT_PID")
	echo "$NODE_AGENT_PID" >"$NODE_DIR/$name.pid"
	cni_conflist "$NODE_DIR/$name.conflist" "$(cni_sockmesh_entry)"
}

# Registration is measured with the three engines, whatever else is.
agents_start() {
	local variant
	for variant in ebpf nftables iptables; do
		variant_agent "$variant" --mode "$variant" --accelerate off
	done
	for variant in $BENCH_VARIANTS; do
		case $variant in
		ebpf+*) variant_agent "$variant" --mode ebpf --accelerate "${variant#ebpf+}" ;;
		direct | istio-iptables | ebpf | nftables | iptables) ;;
		*) die "no such variant: $variant" ;;
		esac
	done
}

agents_kill() {
	local pid
	for pid in "${agent_pids[@]}"; do
		kill -KILL "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	done
}

# ---- all of it ---------------------------------------------------------------------------------

# Milliseconds, roughly: one ADD with and without us; one pod of the memory series; of the three
# engines in turn; a pair of pods with their proxies.
ADD_MS=250 POD_MS=12 POD_ALL_MS=120 PAIR_MS=1200
ENGINE_PODS=$((BENCH_ADDS * 6))

# The processors' time of the whole machine: where cgroup v1's cpuacct is, or can be, mounted.
find_cpuacct() {
	local dir
	dir=$(awk '$(NF - 2) == "cgroup" && ("," $NF ",") ~ /,cpuacct,/ { print $5; exit }' /proc/self/mountinfo)
	if [ -z "$dir" ]; then
		dir=$NODE_DIR/cpuacct
		mkdir "$dir"
		mount -t cgroup -o cpuacct cgroup "$dir" 2>/dev/null || return 0
	fi
	[ ! -r "$dir/cpuacct.usage" ] || echo "$dir/cpuacct.usage"
}

choose_proxies() {
	proxies=c
	case $BENCH_CASES in
	*http-*)
		proxy_choose any
		[ -z "$PROXY_WHY" ] || note "HTTP is measured through HAProxy: $PROXY_WHY"
		proxies="c $PROXY_KIND"
		;;
	esac
}

plan() {
	local n
	n=$(wc -w <<<"$BENCH_VARIANTS")
	progress_total=$(($(rounds_cost) + n * $(wc -w <<<"$proxies") * PAIR_MS + BENCH_ADDS * ADD_MS +
		${BENCH_PODS##* } * POD_MS + ENGINE_PODS * POD_ALL_MS))
}

report() {
	"$PYTHON" -EsB "$BENCH_DIR/report.py" --samples "$OUT_DIR/samples.jsonl" --add "$OUT_DIR/add.json" \
		--memory "$OUT_DIR/memory.json" --engines "$OUT_DIR/engines.json" --idle "$OUT_DIR/idle.json" \
		--rounds "$BENCH_ROUNDS" --milliseconds "$BENCH_MS" \
		--cpu-clock "$([ -n "$BENCH_CPUACCT" ] && echo cpuacct || echo /proc/stat)" \
		--commit "$(git -C "$REPO_DIR" rev-parse HEAD 2>/dev/null || echo unknown)" \
		--accelerate "$OUT_DIR" --output "$OUT_DIR/report.json"
	"$PYTHON" -EsB "$BENCH_DIR/plot.py" --report "$OUT_DIR/report.json" \
		--samples "$OUT_DIR/samples.jsonl" --output "$OUT_DIR"
	note "written: $OUT_DIR/report.json, $(cd "$OUT_DIR" && echo *.svg)"
	jq -e 'all(.results[]; .errors == 0)' "$OUT_DIR/report.json" >/dev/null ||
		die "exchanges failed: see errors in the report"
}

main() {
	local program
	agent_pids=()
	node_open bench
	trap 'agents_kill; node_close' EXIT
	trap 'exit 130' INT TERM HUP
	mkdir -p "$OUT_DIR"
	rm -f "$OUT_DIR"/*.svg "$OUT_DIR"/accelerate-*
	for program in bench_proxy bench_server bench_client bench_floor; do
		cp "$BUILD_DIR/test/bench/$program" "$NODE_DIR/"
	done
	BENCH_CPUACCT=$(find_cpuacct)
	export BENCH_CPUACCT
	choose_proxies
	plan
	cni_conflist "$NODE_DIR/plain.conflist"
	agents_start
	registration
	data_path
	progress_end
	report
}

node_enter "$@"
main
