#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# The whole path, to watch: two pods made by the real CNI plugins with sockmesh-cni chained behind
# them, a real proxy in each, an application and a client that know nothing of it. Everything
# shown is real output; what it claims is checked, and the first claim that does not hold ends the
# demo with status 1. Run as root: `make demo`. Removes everything that it makes.

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
# shellcheck source=test/demo/narrate.sh
. "$REPO_DIR/test/demo/narrate.sh"

APP_PORT=8080
LONG_LINES=400

require() {
	local program
	for program in sockmesh-cni sockmesh-agent sockmeshctl; do
		[ -x "$BIN_DIR/$program" ] || die "no $BIN_DIR/$program: run make first"
	done
	for program in ip jq curl nft iptables-save ip6tables-save nsenter setpriv; do
		command -v "$program" >/dev/null || die "no $program: run make deps first"
	done
	for program in bridge host-local; do
		[ -x "$CNI_PLUGIN_DIR/$program" ] || die "no CNI plugin $program in $CNI_PLUGIN_DIR"
	done
}

# ---- the parts ---------------------------------------------------------------------------------

make_node() {
	heading "A node"
	node_open demo
	say "A network namespace, a cgroup and a directory play the node; nothing else on this machine" \
		"is touched. The agent runs as it would on a node, without Kubernetes."
	show_as "sockmesh-agent --run-dir \$RUN --bpffs-dir \$BPF --cgroup-root \$CGROUP --kubernetes off" \
		agent_start
	show sockmeshctl status
}

make_pods() {
	local pod
	heading "Two pods, made by the CNI plugins bridge and host-local, with sockmesh-cni behind them"
	POD_CONFLIST=$NODE_DIR/10-demo.conflist
	cni_conflist "$POD_CONFLIST" "$(cni_sockmesh_entry)"
	show_as "jq -c '.plugins[] | del(.ipam)' 10-demo.conflist" \
		jq -c '.plugins[] | del(.ipam)' "$POD_CONFLIST"
	for pod in client server; do
		pod_add "$pod" "$SIDECAR_ANNOTATION" || fail "CNI ADD of pod $pod"
		say "pod $pod: ${POD_IP4[$pod]} and ${POD_IP6[$pod]}"
	done
	show sockmeshctl pods
	expect "the agent redirects both pods" pods_redirected
}

pods_redirected() {
	local pod
	for pod in client server; do
		ctl pod "demo/$pod" -o json | jq -e 'tostring | contains("redirect")'
	done
}

start_workloads() {
	heading "A sidecar in each pod, a server in one"
	proxy_choose any
	[ -z "$PROXY_WHY" ] || say "$PROXY_WHY: HAProxy from Debian stands in. Its outbound side knows" \
		"original destinations of IPv4 only, so IPv6 is left out below."
	say "The proxy is $(proxy_version), as uid $PROXY_UID, listening on 15001 and 15006. It sends" \
		"everything to where it was going; only redirection can bring it a connection."
	cp "$LIB_DIR/http_echo.py" "$NODE_DIR/"
	pod_start app server app "$APP_UID" "$PYTHON" -I "$NODE_DIR/http_echo.py" "$APP_PORT"
	wait_for 10 pod_listens server "$APP_PORT" || fail "the HTTP server does not start"
	proxy_start client || fail "the sidecar of pod client"
	proxy_start server || fail "the sidecar of pod server"
	show_as "ss -Hltn   # in pod server" pod_exec server ss -Hltn
}

proxy_version() {
	if [ "$PROXY_KIND" = envoy ]; then
		echo "Envoy $("$PROXY_PROGRAM" --version | sed -nE 's|.*/([0-9.]+)/.*|\1|p')"
	else
		"$PROXY_PROGRAM" -v | sed -nE "1s/HAProxy version ([0-9.]+).*/HAProxy \1/p"
	fi
}

# A request as the client pod's application makes it: no proxy settings, no special address.
request() { # URL
	pod_run client app "$APP_UID" curl --noproxy '*' --silent --show-error --max-time 10 \
		--dump-header "$NODE_DIR/headers" --output "$NODE_DIR/body" "$1"
}

app_url() { # POD-ADDRESS PATH
	case $1 in
	*:*) echo "http://[$1]:$APP_PORT$2" ;;
	*) echo "http://$1:$APP_PORT$2" ;;
	esac
}

traffic() { # FAMILY ADDRESS PASSTHROUGH-SOURCE
	local url address=$2
	case $address in
	*:*) address="[$address]" ;;
	esac
	url=$(app_url "$2" "/ipv$1")
	heading "A request from pod client to pod server, IPv$1"
	install -m 0666 /dev/null "$NODE_DIR/headers"
	install -m 0666 /dev/null "$NODE_DIR/body"
	show_as "curl $url   # in pod client, uid $APP_UID" request "$url"
	show_text "$(grep -i '^x-.*-sidecar' "$NODE_DIR/headers" | tr -d '\r')" "$(cat "$NODE_DIR/body")"
	say "Both sidecars handled it, and the server saw its own sidecar (${3}), not the client:"
	expect "the outbound sidecar saw the original destination $address:$APP_PORT" \
		grep -qiF "x-outbound-sidecar: client; original destination $address:$APP_PORT" "$NODE_DIR/headers"
	expect "the inbound sidecar saw the original destination $address:$APP_PORT" \
		grep -qiF "x-inbound-sidecar: server; original destination $address:$APP_PORT" "$NODE_DIR/headers"
	expect "the server was called by $3" grep -qF "peer=$3 local=$2 port=$APP_PORT" "$NODE_DIR/body"
	show_text "$(proxy_last client outbound)" "$(proxy_last server inbound)"
	expect "the access log of the sidecar in pod client says so" logged client outbound "$address"
	expect "the access log of the sidecar in pod server says so" logged server inbound "$address"
}

logged() { # POD DIRECTION ADDRESS: proxies write their logs a little later
	wait_for 5 log_line "$@"
}

log_line() { # POD DIRECTION ADDRESS
	proxy_last "$1" "$2" | grep -qF "original=$3:$APP_PORT upstream=$3:$APP_PORT status=200"
}

explanations() {
	heading "Why? The plan that decides, in words"
	show sockmeshctl explain --pod demo/client --to "${POD_IP4[server]}:$APP_PORT"
	expect "the explanation names the outbound listener" \
		has "$SHOWN" 15001
	show sockmeshctl explain --pod demo/client --to "${POD_IP4[server]}:$APP_PORT" --uid "$PROXY_UID"
}

no_rules() {
	local pod tool
	heading "No packet filter"
	say "No iptables rule, no nftables rule, no NAT in either pod:"
	for pod in client server; do
		for tool in iptables-save ip6tables-save "nft list ruleset"; do
			# shellcheck disable=SC2086
			show_as "$tool   # in pod $pod" pod_exec "$pod" $tool
			expect "empty" test -z "$SHOWN"
		done
	done
}

# ---- the agent dies ----------------------------------------------------------------------------

# One request after the other, each a new connection, until the file `stop` appears.
request_loop() { # URL
	# shellcheck disable=SC2016 # for the inner shell
	pod_run client app "$APP_UID" bash -c '
		url=$1 dir=$2
		while [ ! -e "$dir/stop" ]; do
			curl --noproxy "*" --silent --max-time 5 --output /dev/null \
				--write-out "%{http_code} %header{x-outbound-sidecar} %header{x-inbound-sidecar}\n" \
				"$url" >>"$dir/loop" || true
		done' loop "$1" "$NODE_DIR" &
	LOOP_PID=$!
}

loop_grew() { # COUNT: so many more requests since LOOP_SEEN
	[ "$(wc -l <"$NODE_DIR/loop")" -ge $((LOOP_SEEN + $1)) ]
}

loop_wait() { # COUNT
	LOOP_SEEN=$(wc -l <"$NODE_DIR/loop")
	wait_for 20 loop_grew "$1"
}

# One connection that is open all the while: a line every 20 milliseconds.
long_answer() {
	install -m 0666 /dev/null "$NODE_DIR/long"
	pod_run client app "$APP_UID" curl --noproxy '*' --silent --show-error --no-buffer \
		--max-time 60 --output "$NODE_DIR/long" "$(app_url "${POD_IP4[server]}" "/drip/$LONG_LINES")" &
	LONG_PID=$!
}

long_under_way() {
	kill -0 "$LONG_PID" && [ -s "$NODE_DIR/long" ]
}

long_is_whole() {
	seq 0 $((LONG_LINES - 1)) | cmp - "$NODE_DIR/long"
}

agent_dies() {
	local url all bad
	heading "The agent is killed, traffic goes on"
	url=$(app_url "${POD_IP4[server]}" /loop)
	install -m 0666 /dev/null "$NODE_DIR/loop"
	request_loop "$url"
	long_answer
	expect "requests run, one new connection after the other" loop_wait 20
	expect "and one connection with an answer that takes its time" wait_for 10 long_under_way
	show_as "kill -9 \$(pidof sockmesh-agent)" agent_kill
	expect "requests go on without an agent" loop_wait 20
	say "Programs, links and maps are pinned; the kernel needs no agent to redirect."
	show_as "sockmesh-agent ...   # again" agent_start
	expect "the long answer is still coming in" long_under_way
	show sockmeshctl pods
	expect "the new agent has taken over both pods" pods_redirected
	expect "requests go on with the new agent" loop_wait 20
	expect "it ends as it should, every line of it" wait "$LONG_PID"
	expect "and in order" long_is_whole
	touch "$NODE_DIR/stop"
	wait "$LOOP_PID"
	all=$(wc -l <"$NODE_DIR/loop")
	bad=$(grep -cv '^200 client; .*server; ' "$NODE_DIR/loop" || true)
	say "$all requests meanwhile, $bad of them failed or missed a sidecar."
	expect "none failed, all went through both sidecars" test "$bad" -eq 0
}

proxy_dies() {
	local url
	heading "A sidecar dies: refused, not bypassed"
	url=$(app_url "${POD_IP4[server]}" /bypass)
	proxy_kill server || fail "the sidecar of pod server does not end"
	# The client's sidecar would answer 503 for it; from the proxy's uid the refusal itself shows.
	show_fails_as "curl $url   # with the sidecar of pod server killed, past the client's sidecar" \
		pod_run client istio-proxy "$PROXY_UID" curl --noproxy '*' --silent --show-error --max-time 10 "$url"
	expect "the connection was refused" test "$SHOWN_STATUS" -eq 7
	expect "the server was not reached" absent /bypass "$NODE_DIR/server-app.log"
	proxy_start server || fail "the sidecar of pod server does not start again"
	show_as "curl $url   # with the sidecar back" request "$url"
	expect "and it works again" grep -qF "peer=127.0.0.6" "$NODE_DIR/body"
}

# ---- the end -----------------------------------------------------------------------------------

clean_up() {
	local dir=$NODE_DIR cgroup=$NODE_CGROUP
	heading "Everything is removed"
	expect "CNI DEL of pod client" pod_delete client
	expect "CNI DEL of pod server" pod_delete server
	show sockmeshctl pods
	agent_stop
	show_as "sockmesh-agent --uninstall" agent_uninstall
	expect "no pin is left" check_empty "$NODE_BPFFS/sockmesh"
	expect "the run directory is gone" test ! -e "$NODE_RUN"
	expect "no program is left on the cgroup" no_programs "$cgroup"
	node_close
	expect "the demo's own cgroup and directory are gone" test ! -e "$cgroup" -a ! -e "$dir"
}

check_empty() { # DIR
	[ ! -e "$1" ] || [ -z "$(find "$1" -mindepth 1 -print -quit)" ]
}

no_programs() { # CGROUP
	command -v bpftool >/dev/null || return 0
	[ -z "$(bpftool -j cgroup tree "$1" | jq -r '.[].programs[]?' 2>/dev/null)" ]
}

main() {
	SECONDS=0
	trap node_close EXIT
	trap 'exit 130' INT TERM HUP
	require
	make_node
	make_pods
	start_workloads
	traffic 4 "${POD_IP4[server]}" 127.0.0.6
	[ "$PROXY_KIND" = haproxy ] || traffic 6 "${POD_IP6[server]}" ::6
	explanations
	no_rules
	agent_dies
	proxy_dies
	clean_up
	finish "All of it held, in $SECONDS seconds."
}

node_enter "$@"
main
