#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Real programs through the mesh at each level of acceleration, as proxies and as applications:
# every byte of every answer is compared, and the agent's sums say which hops went the short way.
# At off and proxy everything must be right. At full, programs that read from sockets in ways which
# a sockmap serves wrongly must behave as docs/acceleration.md says by name. TAP.
#
# LEVELS names other levels than all three.

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

PROGRAMS_DIR=$REPO_DIR/test/programs
LEVELS=${LEVELS:-off proxy full}
SCALE=${SCALE:-ci}
COUNT=40 SECONDS_RIGHT=20 SECONDS_UNSAFE=1
[ "$SCALE" != full ] || COUNT=1000 SECONDS_RIGHT=120
LEVEL=''

# Where pod b's servers listen, and those in pod a that forward to them. Sums are told apart by
# port, so every way to be a client has a server of its own.
declare -A PORT=([nonblocking]=8080 [blocking]=8081 [sendfile]=8082 [copier]=8083 [nginx]=8084
	[haproxy]=8085 [haproxy-splice]=8086)
declare -A NEAR_PORT=([copier]=8090 [nginx]=8091 [haproxy-splice]=8092)
declare -A FAR_PORT=([copier]=8093 [nginx]=8094 [haproxy-splice]=8095)
declare -A NAME_OF=([copier]="Go's io.Copy" [nginx]="nginx as reverse proxy"
	[haproxy-splice]="HAProxy with splice")
SPLICED="stalls cut-short" # what becomes of who splices
# Of HTTP its splice-auto thinks that it is not worth it.
SPLICE=$'option splice-request\n    option splice-response'
SPLICE_AUTO=$'mode tcp\n    option splice-auto'
NEXT_PORT=8100
HOPS=(app-to-proxy proxy-to-proxy proxy-to-app)

# ---- set-up ------------------------------------------------------------------------------------

make_pods() {
	local pod
	POD_CONFLIST=$NODE_DIR/net.conflist
	cni_conflist "$POD_CONFLIST" "$(cni_sockmesh_entry)"
	agent_start --mode ebpf --accelerate "$LEVEL" --accelerate-learning no
	install -m 0644 "$PROGRAMS_DIR/python_client.py" "$NODE_DIR"
	install -m 0755 "$BUILD_DIR"/test/programs/* "$NODE_DIR"
	for pod in a b; do
		pod_add "$pod" "$SIDECAR_ANNOTATION"
	done
}

# A program in the app container that listens on PORT.
start_app() { # POD NAME PORT COMMAND...
	local pod=$1 name=$2 port=$3
	shift 3
	pod_start "$name" "$pod" app "$APP_UID" "$@"
	wait_for 10 pod_listens "$pod" "$port" || {
		echo "$name in pod $pod does not listen; its log:"
		tail -n 20 "$NODE_DIR/$pod-$name.log"
		return 1
	}
}

app_dir() { # POD NAME
	local dir=$NODE_DIR/$1-$2.d
	install -d -o "$APP_UID" -g "$APP_UID" "$dir"
	echo "$dir"
}

# In front of UPSTREAM, with connections that are kept; /static/ from files.
start_nginx() { # POD PORT UPSTREAM
	local dir path
	dir=$(app_dir "$1" nginx)
	for path in client_body proxy fastcgi uwsgi scgi; do
		echo "${path}_temp_path $dir/$path;"
	done >"$dir/paths.conf"
	cat >"$dir/nginx.conf" <<-END
		daemon off;
		master_process off;
		pid $dir/pid;
		error_log stderr;
		events { worker_connections 512; }
		http {
		    include $dir/paths.conf;
		    access_log off;
		    sendfile on;
		    keepalive_requests 100000;
		    client_max_body_size 8m;
		    upstream servers { server $3; keepalive 8; }
		    server {
		        listen [::]:$2 ipv6only=off;
		        location /static/ { root $dir; }
		        location / {
		            proxy_pass http://servers;
		            proxy_http_version 1.1;
		            proxy_set_header Connection "";
		        }
		    }
		}
	END
	start_app "$1" nginx "$2" "$NGINX" -e stderr -p "$dir" -c "$dir/nginx.conf"
}

static_files() { # POD
	local size dir
	dir=$(app_dir "$1" nginx)
	for size in 1 64 1000 16384 1048576; do
		mkdir -p "$dir/static/bytes/$size"
		pod_run "$1" app "$APP_UID" curl --noproxy '*' --silent --fail \
			"http://127.0.0.1:${PORT[nonblocking]}/bytes/$size/0" >"$dir/static/bytes/$size/0"
	done
}

start_haproxy() { # POD NAME PORT UPSTREAM [OPTION]
	local dir
	dir=$(app_dir "$1" "$2")
	cat >"$dir/haproxy.cfg" <<-END
		defaults
		    mode http
		    timeout connect 5s
		    timeout client 30s
		    timeout server 30s
		    ${5:-}
		frontend in
		    bind :::$3 v4v6
		    default_backend out
		backend out
		    server up $4
	END
	start_app "$1" "$2" "$3" "$(command -v haproxy)" -db -f "$dir/haproxy.cfg"
}

# All but the proxies and what tests start; they stay for the whole level.
start_apps() {
	local near=127.0.0.1:${PORT[nonblocking]} name
	start_app b nonblocking "${PORT[nonblocking]}" "$NODE_DIR/http_server" "${PORT[nonblocking]}"
	start_app b blocking "${PORT[blocking]}" "$NODE_DIR/http_server" --blocking "${PORT[blocking]}"
	start_app b sendfile "${PORT[sendfile]}" "$NODE_DIR/http_server" --sendfile "${PORT[sendfile]}"
	start_app b copier "${PORT[copier]}" "$NODE_DIR/splice_copier" "${PORT[copier]}" \
		"${near%:*}" "${near##*:}"
	start_nginx b "${PORT[nginx]}" "$near"
	static_files b
	start_haproxy b haproxy "${PORT[haproxy]}" "$near"
	start_haproxy b haproxy-splice "${PORT[haproxy-splice]}" "$near" "$SPLICE"

	for name in "${!FAR_PORT[@]}"; do
		start_app b "far-$name" "${FAR_PORT[$name]}" "$NODE_DIR/http_server" "${FAR_PORT[$name]}"
		meet "${FAR_PORT[$name]}"
	done
	for name in "${!PORT[@]}"; do
		meet "${PORT[$name]}"
	done
	start_app a copier "${NEAR_PORT[copier]}" "$NODE_DIR/splice_copier" "${NEAR_PORT[copier]}" \
		"${POD_IP4[b]}" "${FAR_PORT[copier]}"
	start_nginx a "${NEAR_PORT[nginx]}" "${POD_IP4[b]}:${FAR_PORT[nginx]}"
	start_haproxy a haproxy-splice "${NEAR_PORT[haproxy-splice]}" \
		"${POD_IP4[b]}:${FAR_PORT[haproxy-splice]}" "$SPLICE"
}

# A server in pod b that nobody has called yet; its port in FRESH_PORT.
fresh_server() {
	FRESH_PORT=$NEXT_PORT
	start_app b "server-$FRESH_PORT" "$FRESH_PORT" "$NODE_DIR/http_server" "$FRESH_PORT"
	meet "$FRESH_PORT"
}

# The first connections to a new listener stay on TCP, and a proxy may keep one for long: let it be
# one within the pod, past the proxy.
meet() { # PORT
	pod_run b app "$APP_UID" "$NODE_DIR/http_client" --each --count 2 127.0.0.1 "$1" >/dev/null
}

# One connection first that each new listener is known by: the first to come stay on TCP.
sidecars_start() {
	proxy_start a
	proxy_start b
	client nonblocking "${POD_IP4[b]}" "${PORT[nonblocking]}" --each --count 2
}

sidecars_stop() {
	proxy_kill a
	proxy_kill b
}

# ---- what the agent counted --------------------------------------------------------------------

# A sum of the pairs on one hop to one port, or to all.
hop_sum() { # HOP FIELD [PORT]
	ctl accelerate -o json | jq --arg hop "$1" --arg field "$2" --argjson port "${3:-null}" \
		'[.. | objects | select(.leg? == $hop and ($port == null or .port == $port))
		  | .[$field]] | add // 0'
}

went_short() { # HOP PORT
	[ "$(hop_sum "$1" messages "$2")" -gt 0 ]
}

# These hops to PORT went the short way and the others did not, as far as the level allows.
check_short() { # PORT HOP...
	local port=$1 hop wanted
	shift
	for hop in "${HOPS[@]}"; do
		wanted=no
		case " $* " in
		*" $hop "*) level_has "$hop" && wanted=yes ;;
		esac
		if [ "$wanted" = yes ]; then
			wait_for 5 went_short "$hop" "$port" || {
				echo "$hop to port $port: nothing went the short way"
				ctl accelerate -o json
				return 1
			}
		else
			check_equal "$(hop_sum "$hop" messages "$port")" 0 "$hop to port $port: messages the short way" || {
				ctl accelerate -o json
				return 1
			}
		fi
	done
}

level_has() { # HOP
	[ "$LEVEL" = full ] || { [ "$LEVEL" = proxy ] && [ "$1" = proxy-to-proxy ]; }
}

# ---- loads -------------------------------------------------------------------------------------

# One client in pod a; what it says on standard output, its status returned.
client() { # WAY ADDRESS PORT [OPTION...]
	local way=$1 address=$2 port=$3
	shift 3
	pod_run a app "$APP_UID" "$NODE_DIR/http_client" --way "$way" "$@" "$address" "$port"
}

python_client() { # WAY ADDRESS PORT [SECONDS]
	pod_run a app "$APP_UID" "$PYTHON" -I "$NODE_DIR/python_client.py" "$1" "$2" "$3" \
		"$COUNT" "${4:-$SECONDS_RIGHT}"
}

# Connections that are kept, four at once, then one for each request.
right_bytes() { # WAY ADDRESS PORT [OPTION...]
	local i pids=() pid
	for i in 1 2 3 4; do
		client "$@" --count "$COUNT" --seconds "$SECONDS_RIGHT" &
		pids+=($!)
	done
	for pid in "${pids[@]}"; do
		wait "$pid"
	done
	client "$@" --each --count "$COUNT" --seconds "$SECONDS_RIGHT"
}

# ---- the tests ---------------------------------------------------------------------------------

# A client and a server that wait as a sockmap needs it: every hop goes the short way.
test_right() { # WAY FAMILY
	local address=${POD_IP4[b]}
	[ "$2" = 4 ] || address=${POD_IP6[b]}
	fresh_server
	right_bytes "$1" "$address" "$FRESH_PORT"
	check_short "$FRESH_PORT" "${HOPS[@]}"
}

# One side blocks: its hop stays on TCP, the others do not.
test_blocking_client() { # WAY
	fresh_server
	right_bytes "$1" "${POD_IP4[b]}" "$FRESH_PORT"
	check_short "$FRESH_PORT" proxy-to-proxy proxy-to-app
}

test_blocking_python() {
	fresh_server
	python_client blocking "${POD_IP4[b]}" "$FRESH_PORT"
	check_short "$FRESH_PORT" proxy-to-proxy proxy-to-app
}

test_python_timeout() {
	fresh_server
	python_client timeout "${POD_IP4[b]}" "$FRESH_PORT"
	check_short "$FRESH_PORT" "${HOPS[@]}"
}

test_python_turned() {
	fresh_server
	python_client turned "${POD_IP4[b]}" "$FRESH_PORT"
	check_short "$FRESH_PORT" proxy-to-proxy proxy-to-app
}

unsafe_python_turned() {
	fresh_server
	test_unsafe blocking unlike-tcp limited_python turned "${POD_IP4[b]}" "$FRESH_PORT"
	check_short "$FRESH_PORT" proxy-to-proxy proxy-to-app
}

test_blocking_server() {
	right_bytes nonblocking "${POD_IP4[b]}" "${PORT[blocking]}"
	check_short "${PORT[blocking]}" app-to-proxy proxy-to-proxy
}

test_server() { # NAME [OPTION...]
	local port=${PORT[$1]}
	shift
	right_bytes nonblocking "${POD_IP4[b]}" "$port" "$@"
	check_short "$port" "${HOPS[@]}"
}

# A forwarder in the client's pod, which is what dials.
test_forwarder() { # NAME
	right_bytes nonblocking 127.0.0.1 "${NEAR_PORT[$1]}"
	check_short "${FAR_PORT[$1]}" "${HOPS[@]}"
}

test_curl_http2() {
	local i size
	fresh_server
	for i in 1 2 3; do
		for size in 1 64 1000 16384 1048576; do
			pod_run a app "$APP_UID" curl --noproxy '*' --silent --fail --max-time "$SECONDS_RIGHT" \
				--http2-prior-knowledge "http://${POD_IP4[b]}:$FRESH_PORT/chunked/$size/0" |
				cmp - "$NODE_DIR/b-nginx.d/static/bytes/$size/0"
		done
	done
	check_short "$FRESH_PORT" "${HOPS[@]}"
}

test_nothing_short() { # HOP...
	local hop
	for hop in "$@"; do
		check_equal "$(hop_sum "$hop" messages)" 0 "$hop: messages the short way"
		check_equal "$(hop_sum "$hop" connections)" 0 "$hop: connections in the map"
	done
}

# What docs/acceleration.md calls unsafe: the program may wait for ever for what was sent, or take the
# end of the connection for that of the data, or a call may differ from TCP's. No byte may be wrong,
# and nothing else may happen. Where the probe found that this kernel does as TCP, the program must
# be right.
test_unsafe() { # FINDING OUTCOMES CLIENT...
	local finding=$1 wanted=$2 status=0 outcome text LIMIT=$SECONDS_RIGHT
	shift 2
	[ "$(found "$finding")" != as-tcp ] || wanted=''
	[[ $wanted != stalls* ]] || LIMIT=$SECONDS_UNSAFE
	text=$("$@") || status=$?
	case $status in
	0) outcome=right ;;
	3) outcome=stalls ;;
	4) outcome=unlike-tcp ;;
	6) outcome=cut-short ;;
	*) outcome="fails with status $status" ;;
	esac
	echo "$outcome: $text" | tee -a "$NODE_DIR/outcome"
	check_has " right $wanted " " $outcome " "what may happen"
}

# What the probe says of one behaviour of this kernel's.
found() { # NAME
	ctl probe -o json | jq -r --arg name "$1" \
		'first(.accelerate.tests[] | select(.name == $name) | .finding)'
}

limited_client() { # WAY ADDRESS PORT [OPTION...]
	client "$@" --count "$COUNT" --seconds "$LIMIT"
}

limited_python() { # WAY ADDRESS PORT
	python_client "$@" "$LIMIT"
}

# On a connection that is kept, then on one for each request.
unsafe_both() { # FINDING OUTCOMES WAY ADDRESS PORT
	local finding=$1 outcomes=$2
	shift 2
	test_unsafe "$finding" "$outcomes" limited_client "$@"
	test_unsafe "$finding" "$outcomes" limited_client "$@" --each
}

unsafe_client() { # FINDING OUTCOMES WAY
	fresh_server
	unsafe_both "$1" "$2" "$3" "${POD_IP4[b]}" "$FRESH_PORT"
}

# It stays on TCP from the call on that made it block, which does not make all of it as TCP's is.
unsafe_turned() { # WAY
	unsafe_client blocking unlike-tcp "$1"
	check_short "$FRESH_PORT" proxy-to-proxy proxy-to-app
}

unsafe_server() { # FINDING OUTCOMES NAME
	unsafe_both "$1" "$2" nonblocking "${POD_IP4[b]}" "${PORT[$3]}"
}

unsafe_forwarder() { # FINDING OUTCOMES NAME
	unsafe_both "$1" "$2" nonblocking 127.0.0.1 "${NEAR_PORT[$3]}"
}

# ---- one run per level -------------------------------------------------------------------------

sidecars() { # NAME envoy|haproxy COMMAND...: the tests with these sidecars
	local name=$1 kind=$2
	shift 2
	if ! proxy_choose "$kind"; then
		tap_skip "$LEVEL: $name as sidecars" "$PROXY_WHY"
		return
	fi
	SIDECARS=$name
	tap_test "$LEVEL: $name as sidecars" sidecars_start
	# The test ran in a subshell; this shell needs to know the processes as well.
	proxy_find a
	proxy_find b
	"$@"
	sidecars_stop
}

claim() { # TEXT FUNCTION [ARG...]
	local text=$1
	shift
	rm -f "$NODE_DIR/outcome"
	tap_test "$LEVEL: $SIDECARS: $text" "$@"
	[ ! -e "$NODE_DIR/outcome" ] || tap_comment <"$NODE_DIR/outcome"
	# A test's servers are numbered in its subshell.
	NEXT_PORT=$((NEXT_PORT + 1))
}

run_plain() {
	claim "a client that polls" test_right nonblocking 4
	claim "a client that blocks, whose own hop stays on TCP" test_blocking_client blocking
}

run_envoy() {
	run_plain
	claim "IPv6" test_right nonblocking 6
	claim "a Java-style dual-stack client with timeouts" test_right timed 4
	claim "Python's http.client, blocking, whose own hop stays on TCP" test_blocking_python
	claim "Python's http.client with a timeout" test_python_timeout
	claim "MSG_WAITALL on a blocking socket, whose own hop stays on TCP" test_blocking_client waitall
	claim "a server that blocks, whose own hop stays on TCP" test_blocking_server
	claim "a server with sendfile" test_server sendfile
	claim "nginx as server of files" test_server nginx --static
	claim "HAProxy as server" test_server haproxy
	if [ "$LEVEL" = full ]; then
		run_envoy_unsafe
	else
		run_envoy_rest
	fi
}

# What full serves wrongly, where it does nothing to applications.
run_envoy_rest() {
	local name
	claim "a client that waits for FIONREAD" test_right available 4
	claim "a client that connects without blocking, then blocks" test_right turned 4
	claim "the same with MSG_WAITALL" test_right turned-waitall 4
	claim "Python's, the same" test_python_turned
	claim "a client that splices" test_right splice 4
	for name in copier nginx haproxy-splice; do
		claim "${NAME_OF[$name]} as server" test_server "$name"
		claim "${NAME_OF[$name]} as client" test_forwarder "$name"
	done
}

run_envoy_unsafe() {
	claim "unsafe as documented: a client that waits for FIONREAD" \
		unsafe_client fionread-tcp stalls available
	claim "unsafe as documented: a client that connects without blocking, then blocks" \
		unsafe_turned turned
	claim "unsafe as documented: the same with MSG_WAITALL" \
		unsafe_turned turned-waitall
	claim "unsafe as documented: Python's, the same" unsafe_python_turned
	claim "unsafe as documented: a client that splices" unsafe_client splice "$SPLICED" splice
	claim "unsafe as documented: ${NAME_OF[copier]} as server" unsafe_server splice "$SPLICED" copier
	claim "unsafe as documented: ${NAME_OF[copier]} as client" unsafe_forwarder splice "$SPLICED" copier
	claim "unsafe as documented: nginx as reverse proxy, server" unsafe_server fionread-tcp stalls nginx
	claim "unsafe as documented: nginx as reverse proxy, client" unsafe_forwarder fionread-tcp stalls nginx
	claim "unsafe as documented: ${NAME_OF[haproxy-splice]} as server" \
		unsafe_server splice "$SPLICED" haproxy-splice
	claim "unsafe as documented: ${NAME_OF[haproxy-splice]} as client" \
		unsafe_forwarder splice "$SPLICED" haproxy-splice
}

# Its sockets are the proxy's own, so it is unsafe from level proxy on.
run_spliced() {
	if [ "$LEVEL" = off ]; then
		run_plain
	else
		claim "unsafe as documented: any client" unsafe_client splice "$SPLICED" nonblocking
	fi
}

run_http2() {
	run_plain
	claim "curl in HTTP/2" test_curl_http2
}

run_level() { # LEVEL
	LEVEL=$1
	node_open programs
	make_pods
	start_apps
	sidecars "Envoy" envoy run_envoy
	ENVOY_HOP=http2 sidecars "Envoy, HTTP/2" envoy run_http2
	ENVOY_HOP=mtls sidecars "Envoy, mTLS" envoy run_plain
	sidecars "HAProxy" haproxy run_plain
	HAPROXY_OPTIONS=$SPLICE sidecars "HAProxy with splice" haproxy run_spliced
	HAPROXY_OPTIONS=$SPLICE_AUTO sidecars "HAProxy, TCP, splice-auto" haproxy run_spliced
	case $LEVEL in
	off) tap_test "off: nothing went the short way" test_nothing_short "${HOPS[@]}" ;;
	proxy) tap_test "proxy: no application's socket went the short way" \
		test_nothing_short app-to-proxy proxy-to-app ;;
	esac
	node_close
}

main() {
	local level
	[ -x "$BIN_DIR/sockmesh-agent" ] || die "no $BIN_DIR/sockmesh-agent: run make first"
	NGINX=$(PATH=$PATH:/usr/sbin command -v nginx) || die "no nginx: run make deps first"
	trap node_close EXIT
	trap 'exit 130' INT TERM HUP
	for level in $LEVELS; do
		run_level "$level"
	done
	tap_done
}

node_enter "$@"
main
