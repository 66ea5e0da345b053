#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Real proxies as sidecars, Envoy and HAProxy: requests between pods, both families, what each
# side sees, and what happens while a proxy is down, restarts or reloads. TAP.
#
# Runs with every engine; ENGINES names others than all three. ENGINES=istio-iptables runs the same
# expectations against the rules that Istio's plugin writes: they are then the reference that the
# tests themselves are checked with.

set -euo pipefail

LIB_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/../lib" && pwd)
# shellcheck source=test/lib/node.sh
. "$LIB_DIR/node.sh"
# shellcheck source=test/lib/tap.sh
. "$LIB_DIR/tap.sh"
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
# shellcheck source=test/proxies/node_proxy.sh
. "$LIB_DIR/../proxies/node_proxy.sh"

ENGINES=${ENGINES:-ebpf nftables iptables}
APP_PORT=8080
SCALE=${SCALE:-ci}

# ---- set-up ------------------------------------------------------------------------------------

is_ours() {
	[ "$ENGINE" != istio-iptables ]
}

# Pods a and b have a sidecar, plain has none; b and plain have a server.
make_pods() {
	local pod
	POD_CONFLIST=$NODE_DIR/net.conflist
	if is_ours; then
		cni_conflist "$POD_CONFLIST" "$(cni_sockmesh_entry)"
		agent_start --mode "$ENGINE"
	else
		cni_conflist "$POD_CONFLIST"
	fi
	cp "$LIB_DIR/http_echo.py" "$NODE_DIR/"
	pod_add plain
	for pod in a b; do
		pod_add "$pod" "$SIDECAR_ANNOTATION"
		is_ours || istio_iptables_apply "$pod"
	done
	for pod in b plain; do
		pod_start app "$pod" app "$APP_UID" "$PYTHON" -I "$NODE_DIR/http_echo.py" "$APP_PORT"
		wait_for 10 pod_listens "$pod" "$APP_PORT" || die "the server in pod $pod does not start"
	done
}

url() { # POD FAMILY PATH [PORT]
	if [ "$2" = 4 ]; then
		echo "http://${POD_IP4[$1]}:${4:-$APP_PORT}$3"
	else
		echo "http://[${POD_IP6[$1]}]:${4:-$APP_PORT}$3"
	fi
}

# As URL prints it, without the scheme and the path.
place() { # POD FAMILY [PORT]
	local text
	text=$(url "$1" "$2" '' "${3:-}")
	echo "${text#http://}"
}

address() { # POD FAMILY
	if [ "$2" = 4 ]; then
		echo "${POD_IP4[$1]}"
	else
		echo "${POD_IP6[$1]}"
	fi
}

passthrough_source() { # FAMILY
	if [ "$1" = 4 ]; then
		echo 127.0.0.6
	else
		echo ::6
	fi
}

# Headers and body on standard output; curl's exit status.
request() { # POD UID URL
	local container=app
	[ "$2" != "$PROXY_UID" ] || container=istio-proxy
	pod_run "$1" "$container" "$2" curl --noproxy '*' --silent --show-error --include --max-time 20 "$3"
}

request_status() { # POD UID URL: curl's exit status, nothing else
	local status=0
	request "$1" "$2" "$3" >/dev/null 2>&1 || status=$?
	echo "$status"
}

# The proxy of POD wrote a line with these parts for the request that was just made.
logged() { # POD DIRECTION PART...
	local pod=$1 direction=$2 part
	shift 2
	for part in "$@"; do
		wait_for 5 last_has "$pod" "$direction" "$part" || {
			echo "the $direction side of pod $pod logged '$(proxy_last "$pod" "$direction")', without '$part'"
			return 1
		}
	done
}

last_has() { # POD DIRECTION PART
	local line
	line=$(proxy_last "$1" "$2") || return 1
	case "$line " in
	*"$3"*) return 0 ;;
	esac
	return 1
}

sidecars_start() {
	proxy_start a
	proxy_start b
}

# ---- the tests ---------------------------------------------------------------------------------

test_both() { # FAMILY
	local answer
	answer=$(request a "$APP_UID" "$(url b "$1" /both)")
	check_has "$answer" "x-outbound-sidecar: a; original destination $(place b "$1")"
	check_has "$answer" "x-inbound-sidecar: b; original destination $(place b "$1")"
	check_has "$answer" "peer=$(passthrough_source "$1") local=$(address b "$1") port=$APP_PORT"
	logged a outbound "original=$(place b "$1") " "upstream=$(place b "$1") " "client=$(client_text a "$1")"
	logged b inbound "original=$(place b "$1") " "upstream=$(place b "$1") " "client=$(client_text a "$1")"
}

# A client's address as logs have it, up to the port.
client_text() { # POD FAMILY
	if [ "$2" = 4 ]; then
		echo "${POD_IP4[$1]}:"
	else
		echo "[${POD_IP6[$1]}]:"
	fi
}

test_inbound_only() { # FAMILY
	local answer
	answer=$(request plain "$APP_UID" "$(url b "$1" /inbound)")
	check_has "$answer" "x-inbound-sidecar: b; original destination $(place b "$1")"
	check_fails check_has "$answer" x-outbound-sidecar >/dev/null
	check_has "$answer" "peer=$(passthrough_source "$1")"
	logged b inbound "client=$(client_text plain "$1")" "original=$(place b "$1") "
}

test_outbound_only() { # FAMILY
	local answer
	answer=$(request a "$APP_UID" "$(url plain "$1" /outbound)")
	check_has "$answer" "x-outbound-sidecar: a; original destination $(place plain "$1")"
	check_fails check_has "$answer" x-inbound-sidecar >/dev/null
	check_has "$answer" "peer=$(address a "$1")"
	logged a outbound "original=$(place plain "$1") "
}

test_proxy_is_exempt() { # FAMILY
	local answer
	answer=$(request a "$PROXY_UID" "$(url plain "$1" /exempt)")
	check_fails check_has "$answer" x-outbound-sidecar >/dev/null
	check_has "$answer" "peer=$(address a "$1")"
}

# Nothing listens there: the proxy is asked all the same, and says so.
test_closed_port() { # FAMILY
	local answer
	answer=$(request plain "$APP_UID" "$(url b "$1" /closed 8999)")
	check_has "$answer" " 503 "
	logged b inbound "original=$(place b "$1" 8999) "
}

# The app of a pod with a sidecar calls its own pod: not the mesh's business.
test_self() { # FAMILY
	local answer
	answer=$(request b "$APP_UID" "$(url b "$1" /self)")
	check_fails check_has "$answer" -sidecar >/dev/null
	check_has "$answer" "peer=$(address b "$1")"
}

test_bytes() { # FAMILY
	local size=20000000 got wanted
	got=$(pod_run a app "$APP_UID" curl --noproxy '*' --silent --show-error --max-time 60 \
		"$(url b "$1" /bytes/$size)" | sha256sum)
	wanted=$("$PYTHON" -c "import sys; n = $size
sys.stdout.buffer.write((bytes(range(251)) * (n // 251 + 1))[:n])" | sha256sum)
	check_equal "$got" "$wanted" "the hash of $size bytes"
}

# One curl, many requests, 50 connections at a time, each a new one.
test_concurrent() { # FAMILY
	local n=400 got
	[ "$SCALE" != full ] || n=8000
	got=$(pod_run a app "$APP_UID" curl --noproxy '*' --silent --show-error --max-time 120 \
		--no-keepalive --header 'Connection: close' --parallel --parallel-max 50 \
		--parallel-immediate "$(url b "$1" "/many/[1-$n]")" |
		grep -c "peer=$(passthrough_source "$1") local=$(address b "$1") port=$APP_PORT")
	check_equal "$got" "$n" "number of good answers"
}

# Killed, not stopped: no socket closes gracefully. 7 is curl's "failed to connect".
test_inbound_proxy_down() {
	local family
	proxy_kill b
	for family in 4 6; do
		check_equal "$(request_status plain "$APP_UID" "$(url b $family /bypass)")" 7 "curl's status"
	done
	check_equal "$(grep -c /bypass "$NODE_DIR/b-app.log")" 0 "requests that passed the dead proxy by"
}

test_outbound_proxy_down() {
	local family
	proxy_kill a
	for family in 4 6; do
		check_equal "$(request_status a "$APP_UID" "$(url plain $family /bypass)")" 7 "curl's status"
	done
	check_equal "$(grep -c /bypass "$NODE_DIR/plain-app.log")" 0 "requests that passed the dead proxy by"
}

# Requests one after the other until the file `stop` is there, a line each: HTTP status, curl's
# exit status, body.
request_loop() { # POD URL DIR
	# shellcheck disable=SC2016 # for the inner shell
	pod_run "$1" app "$APP_UID" bash -c '
		url=$1 dir=$2
		while [ ! -e "$dir/stop" ]; do
			status=0
			body=$(curl --noproxy "*" --silent --max-time 10 --write-out "%{http_code}" "$url") ||
				status=$?
			echo "curl=$status" $body >>"$dir/loop"
		done' loop "$2" "$3"
}

lines_reach() { # FILE COUNT
	[ "$(wc -l <"$1")" -ge "$2" ]
}

# Restarts pod b's proxy COUNT times while requests come in, and wants every one of them answered
# through it. RESTART gets the number of the restart.
restarts_under_load() { # COUNT RESTART
	local count=$1 restart=$2 dir=$NODE_DIR/restarts i loop seen missed=0
	rm -rf "$dir"
	install -d -m 0777 "$dir"
	install -m 0666 /dev/null "$dir/loop"
	request_loop plain "$(url b 4 /restart)" "$dir" &
	loop=$!
	for ((i = 1; i <= count; i++)); do
		"$restart" "$i" || missed=1
		seen=$(wc -l <"$dir/loop")
		wait_for 20 lines_reach "$dir/loop" $((seen + 15)) || missed=1
	done
	touch "$dir/stop"
	wait "$loop"
	echo "$(wc -l <"$dir/loop") requests; those that were not answered through the sidecar:"
	check_fails grep -v '^curl=0 .*peer=127.0.0.6 .*200$' "$dir/loop"
	lines_reach "$dir/loop" $((count * 15))
	check_equal "$missed" 0 "restarts without requests after them"
}

# A new worker listens beside the old one, then the old one leaves.
test_haproxy_reload() {
	restarts_under_load 5 haproxy_reload
	wait_for 20 process_count b 2 # the master and one worker
}

haproxy_reload() {
	kill -USR2 "${PROXY_PID[b]}"
}

# Envoy's own: a new process takes the sockets over and tells the old one to drain and to end.
test_envoy_hot_restart() {
	proxy_kill b
	# What old and new process share has one name for the whole machine.
	mount -t tmpfs tmpfs /dev/shm
	envoy_epoch b 0
	wait_for 20 proxy_ready b
	restarts_under_load 2 envoy_restart
	proxy_kill b
	wait_for 10 umount /dev/shm
	proxy_start b
}

envoy_restart() { # NUMBER
	envoy_epoch b "$1"
	wait_for 20 process_count b 2 && wait_for 20 process_count b 1
}

envoy_epoch() { # POD EPOCH
	envoy_run "$1" --base-id 0 --restart-epoch "$2" --drain-time-s 1 --parent-shutdown-time-s 2 &
}

process_count() { # POD COUNT
	[ "$(wc -l <"$(proxy_procs "$1")")" -eq "$2" ]
}

# The agent's own books after all that: nothing waits to be handed over, nothing was lost, and the
# connections that found no proxy were counted as such.
test_books() {
	local pod counters
	wait_for 10 no_handovers || {
		ctl status -o json
		return 1
	}
	for pod in a b; do
		counters=$(ctl pod "demo/$pod" -o json)
		jq -e '[.. | .events? | objects] | length > 0 and all(."record-failed" == 0
			and ."handover-lost" == 0 and ."handover-miss" == 0
			and ."listener-failed" == 0)' <<<"$counters" || {
			echo "pod $pod: $counters"
			return 1
		}
	done
	check_has "$counters" no-listener
	jq -e '[.. | .events? | objects | ."no-listener"] | add > 0' <<<"$counters"
}

test_rule_books() {
	ctl status -o json | jq -e '.counters.healed == 0 and .counters.moves == 0'
	ctl pod demo/a -o json |
		jq -e '.counters.verdicts | ."out-all" > 0 and ."out-proxy-uid" > 0'
	ctl pod demo/b -o json | jq -e '.counters.verdicts | ."in-all" > 0 and ."out-src-p6" > 0'
}

no_handovers() {
	ctl status -o json | jq -e '.counters.handovers == 0'
}

# ---- one run per proxy -------------------------------------------------------------------------

run_family() { # FAMILY
	tap_test "$ENGINE: $PROXY_KIND, IPv$1: a request passes both sidecars, each saw the original destination" \
		test_both "$1"
	tap_test "$ENGINE: $PROXY_KIND, IPv$1: from a pod without a sidecar, inbound only, the client's address is seen" \
		test_inbound_only "$1"
	tap_test "$ENGINE: $PROXY_KIND, IPv$1: to a pod without a sidecar, outbound only" test_outbound_only "$1"
	tap_test "$ENGINE: $PROXY_KIND, IPv$1: the proxy's own connections are not captured" test_proxy_is_exempt "$1"
	tap_test "$ENGINE: $PROXY_KIND, IPv$1: a port where nothing listens still reaches the proxy" test_closed_port "$1"
	tap_test "$ENGINE: $PROXY_KIND, IPv$1: an app that calls its own pod does so directly" test_self "$1"
	tap_test "$ENGINE: $PROXY_KIND, IPv$1: 20 MB arrive as they were sent" test_bytes "$1"
	tap_test "$ENGINE: $PROXY_KIND, IPv$1: many connections at once, none lost, none past a sidecar" \
		test_concurrent "$1"
}

# HAProxy asks the kernel for IPv4 originals only, so of IPv6 behind netfilter it learns nothing.
# With sk_lookup its IPv6 listener needs no answer, because the accepted socket's own address is the
# original destination.
run_haproxy_ipv6() {
	[ "$ENGINE" = ebpf ] || return 0
	tap_test "$ENGINE: haproxy, IPv6: from a pod without a sidecar, inbound only, the client's address is seen" \
		test_inbound_only 6
	tap_test "$ENGINE: haproxy, IPv6: a port where nothing listens still reaches the proxy" test_closed_port 6
}

run_proxy() { # envoy|haproxy
	if ! proxy_choose "$1"; then
		tap_skip "$ENGINE: $1 as sidecar" "$PROXY_WHY"
		return
	fi
	tap_test "$ENGINE: $1 starts as sidecar of two pods" sidecars_start
	# The test ran in a subshell; this shell needs to know the processes as well.
	proxy_find a
	proxy_find b
	run_family 4
	if [ "$1" = envoy ]; then
		run_family 6
		tap_test "$ENGINE: envoy: two hot restarts under load, every request answered through the sidecar" \
			test_envoy_hot_restart
		proxy_find b
	else
		run_haproxy_ipv6
		tap_test "$ENGINE: haproxy: five reloads under load, every request answered through the sidecar" \
			test_haproxy_reload
	fi
	tap_test "$ENGINE: $1: killed on the server's side, connections are refused, none bypasses it" \
		test_inbound_proxy_down
	tap_test "$ENGINE: $1: killed on the client's side, connections are refused, none bypasses it" \
		test_outbound_proxy_down
	tap_test "$ENGINE: $1: restarted on both sides" sidecars_start
	tap_test "$ENGINE: $1: requests pass both sidecars again" test_both 4
	proxy_kill a
	proxy_kill b
}

run_engine() { # ENGINE
	ENGINE=$1
	node_open proxies
	make_pods
	run_proxy envoy
	run_proxy haproxy
	if [ "$ENGINE" = ebpf ]; then
		tap_test "the agent counted no lost hand-over, and every connection that found no proxy" \
			test_books
	elif is_ours; then
		tap_test "$ENGINE: the agent found nothing to heal, and counts what it redirected" test_rule_books
	fi
	node_close
}

main() {
	local engine
	[ -x "$BIN_DIR/sockmesh-agent" ] || die "no $BIN_DIR/sockmesh-agent: run make first"
	trap node_close EXIT
	trap 'exit 130' INT TERM HUP
	for engine in $ENGINES; do
		run_engine "$engine"
	done
	case " $ENGINES " in *" ebpf "*) run_node_proxies ;; esac
	tap_done
}

node_enter "$@"
main
