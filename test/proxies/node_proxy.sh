# shellcheck shell=bash disable=SC2034,SC2153,SC2154
# SPDX-License-Identifier: Apache-2.0
#
# Envoy and HAProxy as the one proxy of a node's ambient pods: in a pod of its own, for TCP, on to
# the original destination. Sourced by run.sh.

STREAM_PORT=9000

node_envoy_chain() { # POD CLUSTER MATCH-JSON
	jq -nc --arg cluster "$2" --argjson match "$3" --argjson log "$(envoy_access_log "$1" outbound)" '{
		filter_chain_match: $match,
		filters: [{
			name: "envoy.filters.network.tcp_proxy",
			typed_config: {
				"@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
				stat_prefix: $cluster, cluster: $cluster, access_log: [$log]
			}
		}]
	}'
}

# What was dialled at the proxy itself has no original destination but the proxy: it ends there, or it
# would go round in circles.
node_envoy_config() { # POD FILE
	jq -n '{static_resources: {
		listeners: [$ARGS.positional[0]],
		clusters: [
			$ARGS.positional[1],
			{name: "nowhere", type: "STATIC", connect_timeout: "5s"}
		]
	}}' --jsonargs "$(envoy_listener outbound 15001 \
		"$(node_envoy_chain "$1" nowhere '{"destination_port":15001}')" \
		"$(node_envoy_chain "$1" original '{}')")" "$(envoy_cluster original)" >"$2"
}

# HAProxy asks for the original destination of IPv4 only.
node_haproxy_config() { # POD FILE
	cat >"$2" <<-END
		global
		    log stdout format raw local0
		defaults
		    mode tcp
		    log global
		    timeout connect 5s
		    timeout client 60s
		    timeout server 60s
		frontend outbound
		    bind 0.0.0.0:15001
		    tcp-request connection reject if { dst_port 15001 }
		    log-format "outbound client=%ci:%cp original=%[dst]:%[dst_port] upstream=%si:%sp"
		    default_backend original
		backend original
		    server original 0.0.0.0:0
	END
}

node_proxy_start() {
	proxy_launch proxy node_
	proxy_await proxy 15001
}

# The proxy's pod and a server outside of the mesh come first: the agent is told the address.
node_proxy_pods() {
	POD_CONFLIST=$NODE_DIR/plain.conflist
	cni_conflist "$POD_CONFLIST"
	pod_add proxy
	pod_add plain
	cp "$LIB_DIR/http_echo.py" "$LIB_DIR/../proxies/stream.py" "$NODE_DIR/"
	pod_start stream plain app "$APP_UID" "$PYTHON" -I "$NODE_DIR/stream.py" serve "$STREAM_PORT"
	wait_for 10 pod_listens plain "$STREAM_PORT" || die "the server in pod plain does not start"
	node_proxy_agent
	POD_CONFLIST=$NODE_DIR/net.conflist
	cni_conflist "$POD_CONFLIST" "$(cni_sockmesh_entry)"
	pod_add a '{"sockmesh.io/redirection":"ambient"}'
}

node_proxy_agent() {
	agent_start --mode ebpf --ztunnel node \
		--ztunnel-address "${POD_IP4[proxy]},${POD_IP6[proxy]}" || return
	echo "$NODE_AGENT_PID" >"$NODE_DIR/agent.pid"
}

dial_stream() { # FAMILY BYTES CONNECTIONS SECONDS
	pod_run a app "$APP_UID" "$PYTHON" -I "$NODE_DIR/stream.py" dial "$(address plain "$1")" \
		"$STREAM_PORT" "$2" "$3" "$4"
}

test_node_stream() { # FAMILY
	check_equal "$(dial_stream "$1" 3000001 1 0)" "ok=1 peers=$(address proxy "$1")" "the stream"
	logged proxy outbound "client=$(client_text a "$1")" "original=$(place plain "$1" "$STREAM_PORT")"
}

test_node_concurrent() { # FAMILY
	check_equal "$(dial_stream "$1" 20000 200 0)" "ok=200 peers=$(address proxy "$1")" "the streams"
}

# The agent is killed and comes back while they run.
test_node_agent_crash() { # FAMILY
	dial_stream "$1" 400000 20 4 >"$NODE_DIR/streams" &
	local streams=$!
	wait_for 10 node_proxy_has 20
	agent_kill
	node_proxy_agent
	wait "$streams" || true
	check_equal "$(cat "$NODE_DIR/streams")" "ok=20 peers=$(address proxy "$1")" "the streams"
}

node_proxy_has() { # CONNECTIONS
	[ "$(ip netns exec proxy ss -Htn state established "sport = :15001" | wc -l)" -ge "$1" ]
}

test_node_directly() { # FAMILY
	check_equal "$(pod_run a app "$APP_UID" "$PYTHON" -I "$NODE_DIR/stream.py" dial \
		"$(address proxy "$1")" 15001 1000 1 0 | cut -d ' ' -f 1)" "ok=0" "a stream to the proxy itself"
	check_fails grep "upstream=$(place proxy "$1" 15001)" "$(proxy_access_log proxy)"
	test_node_stream "$1"
}

test_node_proxy_down() { # FAMILY...
	local family
	proxy_kill proxy
	for family; do
		check_has "$(dial_stream "$family" 1000 1 0)" "ok=0 peers= ConnectionRefusedError" "without a proxy"
	done
	node_proxy_start
	for family; do
		test_node_stream "$family"
	done
}

test_node_uninstall() {
	agent_kill
	agent_uninstall
	check_equal "$(dial_stream 4 1000 1 0)" "ok=1 peers=${POD_IP4[a]}" "without an agent"
	check_fails test -e "$NODE_BPFFS/sockmesh"
	check_fails test -e "$NODE_RUN"
}

run_node_proxy() { # envoy|haproxy FAMILY...
	local family claim
	if ! proxy_choose "$1"; then
		tap_skip "$1 as the node's proxy" "$PROXY_WHY"
		return
	fi
	claim="node: $1"
	tap_test "$claim starts in a pod of its own" node_proxy_start
	proxy_find proxy
	for family in "${@:2}"; do
		tap_test "$claim, IPv$family: 3 MB each way at once, half-closed, the proxy learns where to" \
			test_node_stream "$family"
		tap_test "$claim, IPv$family: 200 streams at once" test_node_concurrent "$family"
		tap_test "$claim, IPv$family: streams go on while the agent crashes and returns" \
			test_node_agent_crash "$family"
		agent_find
		tap_test "$claim, IPv$family: what is dialled at the proxy itself ends there" \
			test_node_directly "$family"
	done
	tap_test "$claim: killed, connections are refused; started again, they pass" \
		test_node_proxy_down "${@:2}"
	proxy_find proxy
	proxy_kill proxy
}

# The agent that a test has started: that was in a subshell.
agent_find() {
	NODE_AGENT_PID=$(cat "$NODE_DIR/agent.pid")
}

run_node_proxies() {
	node_open node-proxy
	node_proxy_pods
	run_node_proxy envoy 4 6
	run_node_proxy haproxy 4
	proxy_choose haproxy
	node_proxy_start
	tap_test "node: uninstalled, nothing is left" test_node_uninstall
	node_close
}
