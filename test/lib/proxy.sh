# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Real proxies as sidecars: their configuration, starting and stopping. Both are plain: HTTP in on
# 15001 and 15006, on to the original destination, the inbound side from 127.0.0.6 or ::6 as
# Istio's. What each saw is in response headers and in an access log with lines
#
#	outbound|inbound client=ADDR original=ADDR upstream=ADDR status=N
#
# Needs node.sh, download.sh and pod.sh.
#
# shellcheck disable=SC2034,SC2153 # variables are for and from the scripts that source this

PROXY_KIND=''	 # envoy or haproxy
PROXY_PROGRAM='' # a copy that every user may run, whatever the modes above our own tree
ENVOY_HOP=http1	 # what one sidecar speaks to the next: http1, http2, or mtls (HTTP/1.1 in mutual TLS)
HAPROXY_OPTIONS='' # further lines for its `defaults`
declare -A PROXY_PID=()

# Takes the proxy that can be had. Sets PROXY_WHY when it is not Envoy.
proxy_choose() { # envoy|haproxy|any
	local program
	PROXY_WHY=''
	PROXY_KIND=$1
	if [ "$1" != haproxy ]; then
		PROXY_KIND=envoy
		if program=$(envoy_fetch 2>"$NODE_DIR/envoy-fetch.log"); then
			PROXY_PROGRAM=$NODE_DIR/envoy
			[ -e "$PROXY_PROGRAM" ] || cp "$program" "$PROXY_PROGRAM"
			return 0
		fi
		PROXY_WHY="Envoy could not be had ($(tail -n 1 "$NODE_DIR/envoy-fetch.log"))"
		[ "$1" = any ] || return 1
		PROXY_KIND=haproxy
	fi
	PROXY_PROGRAM=$(command -v haproxy) || die "no proxy: neither Envoy nor HAProxy"
}

proxy_dir() { # POD
	echo "$NODE_DIR/proxy-$1"
}

proxy_access_log() { # POD
	echo "$(proxy_dir "$1")/access.log"
}

# ---- Envoy -------------------------------------------------------------------------------------

# A key and its certificate, which every sidecar has and is the only one that they trust.
envoy_tls() { # POD
	local dir=$NODE_DIR/tls
	if [ ! -e "$dir/cert.pem" ]; then
		mkdir -p "$dir"
		openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
			-subj /CN=sidecar -keyout "$dir/key.pem" -out "$dir/cert.pem" 2>/dev/null
	fi
	install -m 0600 "$dir/key.pem" "$dir/cert.pem" "$(proxy_dir "$1")"
}

# transport_socket of a hop between sidecars, for SIDE Downstream or Upstream.
envoy_transport() { # POD SIDE
	if [ "$ENVOY_HOP" != mtls ]; then
		echo '{}'
		return
	fi
	jq -nc --arg side "$2" --arg dir "$(proxy_dir "$1")" '{transport_socket: {
		name: "envoy.transport_sockets.tls",
		typed_config: ({
			"@type": ("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3." + $side + "TlsContext"),
			common_tls_context: {
				tls_certificates: [{
					certificate_chain: {filename: ($dir + "/cert.pem")},
					private_key: {filename: ($dir + "/key.pem")}
				}],
				validation_context: {trusted_ca: {filename: ($dir + "/cert.pem")}}
			}
		} + if $side == "Downstream" then {require_client_certificate: true} else {} end)
	}}'
}

# What a cluster of other sidecars needs beyond HTTP/1.1.
envoy_hop() { # POD
	if [ "$ENVOY_HOP" != http2 ]; then
		envoy_transport "$1" Upstream
		return
	fi
	jq -nc '{typed_extension_protocol_options: {
		"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
			"@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
			explicit_http_config: {http2_protocol_options: {}}
		}
	}}'
}

envoy_access_log() { # POD DIRECTION [REST-OF-LINE]
	jq -nc --arg path "$(proxy_access_log "$1")" --arg direction "$2" --arg rest "${3:-}" '{
		name: "envoy.access_loggers.file",
		typed_config: {
			"@type": "type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog",
			path: $path,
			log_format: {text_format_source: {inline_string: (
				$direction + " client=%DOWNSTREAM_REMOTE_ADDRESS%"
				+ " original=%DOWNSTREAM_LOCAL_ADDRESS% upstream=%UPSTREAM_HOST%" + $rest + "\n")}}
		}
	}'
}

# One HTTP filter chain to CLUSTER, as JSON. Headers say to the client who saw what.
envoy_chain() { # POD DIRECTION CLUSTER MATCH-JSON
	jq -nc --arg pod "$1" --arg direction "$2" --arg cluster "$3" --argjson match "$4" \
		--argjson log "$(envoy_access_log "$1" "$2" ' status=%RESPONSE_CODE%')" '{
		filter_chain_match: $match,
		filters: [{
			name: "envoy.filters.network.http_connection_manager",
			typed_config: {
				"@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
				stat_prefix: $direction,
				server_header_transformation: "PASS_THROUGH",
				generate_request_id: false,
				http_filters: [{
					name: "envoy.filters.http.router",
					typed_config: {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
				}],
				route_config: {
					response_headers_to_add: [{
						header: {key: ("x-" + $direction + "-sidecar"),
							 value: ($pod + "; original destination %DOWNSTREAM_LOCAL_ADDRESS%")}
					}],
					virtual_hosts: [{
						name: "any", domains: ["*"],
						routes: [{match: {prefix: "/"}, route: {cluster: $cluster, timeout: "0s"}}]
					}]
				},
				access_log: [$log]
			}
		}]
	}'
}

envoy_listener() { # NAME PORT CHAIN-JSON...
	local name=$1 port=$2
	shift 2
	jq -nc --arg name "$name" --argjson port "$port" '{
		name: $name,
		address: {socket_address: {address: "::", ipv4_compat: true, port_value: $port}},
		listener_filters: [{
			name: "envoy.filters.listener.original_dst",
			typed_config: {"@type": "type.googleapis.com/envoy.extensions.filters.listener.original_dst.v3.OriginalDst"}
		}],
		filter_chains: $ARGS.positional
	}' --jsonargs "$@"
}

envoy_cluster() { # NAME [SOURCE-ADDRESS]
	jq -nc --arg name "$1" --arg source "${2:-}" '{
		name: $name, type: "ORIGINAL_DST", lb_policy: "CLUSTER_PROVIDED", connect_timeout: "5s"
	} + if $source == "" then {}
	    else {upstream_bind_config: {source_address: {address: $source, port_value: 0}}} end'
}

# The listener is `::` with IPv4 beside it; the two inbound chains differ in the source address.
envoy_config() { # POD FILE
	local outbound inbound transport
	[ "$ENVOY_HOP" != mtls ] || envoy_tls "$1"
	transport=$(envoy_transport "$1" Downstream)
	outbound=$(envoy_listener outbound 15001 "$(envoy_chain "$1" outbound original '{}')")
	inbound=$(envoy_listener inbound 15006 \
		"$(envoy_chain "$1" inbound app-ipv4 \
			'{"prefix_ranges":[{"address_prefix":"0.0.0.0","prefix_len":0}]}')" \
		"$(envoy_chain "$1" inbound app-ipv6 \
			'{"prefix_ranges":[{"address_prefix":"::","prefix_len":0}]}')")
	jq -n --argjson hop "$(envoy_hop "$1")" --argjson transport "$transport" '{static_resources: {
		listeners: [$ARGS.positional[0], ($ARGS.positional[1] | .filter_chains[] += $transport)],
		clusters: [$ARGS.positional[2] + $hop, $ARGS.positional[3:][]]
	}}' --jsonargs "$outbound" "$inbound" "$(envoy_cluster original)" \
		"$(envoy_cluster app-ipv4 127.0.0.6)" "$(envoy_cluster app-ipv6 ::6)" >"$2"
}

envoy_run() { # POD OPTION...
	local pod=$1 dir
	shift
	dir=$(proxy_dir "$pod")
	pod_run "$pod" istio-proxy "$PROXY_UID" "$PROXY_PROGRAM" --config-path "$dir/envoy.json" \
		--concurrency 1 --log-level warning --file-flush-interval-msec 20 "$@" \
		>>"$dir/proxy.log" 2>&1 </dev/null
}

# ---- HAProxy -----------------------------------------------------------------------------------

# HAProxy asks SO_ORIGINAL_DST of IPv4 listeners only (tcp_get_dst() in its proto_tcp.c), so its
# outbound side is IPv4. Inbound by sk_lookup needs no question: the accepted socket's own address
# is the original destination, so there both families work.
haproxy_config() { # POD FILE [BIND-OPTIONS]
	local pod=$1 dir
	dir=$(proxy_dir "$pod")
	cat >"$2" <<-END
		global
		    log stdout format raw local0
		    stats socket $dir/stats.sock mode 600 level admin expose-fd listeners
		    hard-stop-after 5s
		defaults
		    mode http
		    log global
		    timeout connect 5s
		    timeout client 30s
		    timeout server 30s
		    $HAPROXY_OPTIONS
		frontend outbound
		    bind 0.0.0.0:15001
		    log-format "outbound client=%ci:%cp original=%[dst]:%[dst_port] upstream=%si:%sp status=%ST"
		    http-response set-header x-outbound-sidecar "$pod; original destination %[dst]:%[dst_port]"
		    default_backend original
		frontend inbound-ipv4
		    bind 0.0.0.0:15006
		    log-format "inbound client=%ci:%cp original=%[dst]:%[dst_port] upstream=%si:%sp status=%ST"
		    http-response set-header x-inbound-sidecar "$pod; original destination %[dst]:%[dst_port]"
		    default_backend app-ipv4
		frontend inbound-ipv6
		    bind :::15006 v6only
		    log-format "inbound client=[%ci]:%cp original=[%[dst]]:%[dst_port] upstream=[%si]:%sp status=%ST"
		    http-response set-header x-inbound-sidecar "$pod; original destination [%[dst]]:%[dst_port]"
		    default_backend app-ipv6
		backend original
		    server original 0.0.0.0:0
		backend app-ipv4
		    server app 0.0.0.0:0 source 127.0.0.6
		backend app-ipv6
		    server app [::]:0 source [::6]:0
	END
}

# ---- both --------------------------------------------------------------------------------------

# As PREFIXenvoy_config or PREFIXhaproxy_config configures it; without a prefix, as a sidecar.
proxy_launch() { # POD [PREFIX]
	local pod=$1 dir
	dir=$(proxy_dir "$pod")
	mkdir -p "$dir"
	# A new log: HAProxy takes O_APPEND off and would write over what is there.
	: >"$dir/access.log"
	if [ "$PROXY_KIND" = envoy ]; then
		"${2:-}envoy_config" "$pod" "$dir/envoy.json"
		chown -R "$PROXY_UID:$PROXY_UID" "$dir"
		envoy_run "$pod" --disable-hot-restart &
	else
		"${2:-}haproxy_config" "$pod" "$dir/haproxy.cfg"
		chown -R "$PROXY_UID:$PROXY_UID" "$dir"
		pod_run "$pod" istio-proxy "$PROXY_UID" "$PROXY_PROGRAM" -W -f "$dir/haproxy.cfg" \
			>>"$dir/access.log" 2>>"$dir/proxy.log" </dev/null &
	fi
	PROXY_PID[$pod]=$!
}

proxy_await() { # POD PORT...
	if ! wait_for 30 proxy_settled "$@" || ! proxy_listens "$@"; then
		echo "$PROXY_KIND in pod $1 does not listen; its log:" >&2
		tail -n 20 "$(proxy_dir "$1")/proxy.log" >&2
		return 1
	fi
}

proxy_settled() { # POD PORT...: it listens, or has given up
	! kill -0 "${PROXY_PID[$1]}" || proxy_listens "$@"
}

proxy_listens() { # POD PORT...
	local port
	for port in "${@:2}"; do
		pod_listens "$1" "$port" || return
	done
}

proxy_start() { # POD: a sidecar
	proxy_launch "$1"
	proxy_await "$1" 15001 15006
}

proxy_ready() { # POD: its sidecar
	proxy_listens "$1" 15001 15006
}

proxy_procs() { # POD: the file with all its processes; HAProxy has workers too
	echo "$(pod_cgroup_dir "$1")/istio-proxy/cgroup.procs"
}

# The first of its processes, when it was started in a subshell.
proxy_find() { # POD
	PROXY_PID[$1]=$(sort -n "$(proxy_procs "$1")" | head -n 1)
}

proxy_kill() { # POD
	local procs
	procs=$(proxy_procs "$1")
	xargs -r kill -KILL <"$procs"
	wait "${PROXY_PID[$1]}" 2>/dev/null || true
	wait_for 10 check_empty_file "$procs"
}

check_empty_file() {
	[ -z "$(cat "$1")" ]
}

# The newest line of one direction.
proxy_last() { # POD DIRECTION
	grep "^$2 " "$(proxy_access_log "$1")" | tail -n 1
}
