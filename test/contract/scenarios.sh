# shellcheck shell=bash disable=SC2034,SC2154
# SPDX-License-Identifier: Apache-2.0
#
# What does not fit into a row of the matrix: things that happen one after the other. Every function
# scenario_NAME is run by run.sh, makes its own pods and removes them.

EXT4=10.99.0.1 EXT6='[fd00:99::1]' POD4=10.244.0.5 POD6='[fd00:10::5]'

# A pod with an app and a world, enrolled, no proxy: fresh NAME [AGENT [SETTING=VALUE...]].
fresh() {
	local name=$1 agent=${2:-main} pair
	setting=()
	for pair in "${@:3}"; do
		setting[${pair%%=*}]=${pair#*=}
	done
	pod_up "$name" "$agent" && enrol "$name" && world_servers "$name" && app_servers "$name" && return
	echo "not ok - $name: the pod is there and enrolled"
	pod_down "$name"
	return 1
}

# What an agent does is nothing that the reference has.
without_agent() {
	[ "$ENGINE" = reference ]
}

# For what only one engine has, its maps for example.
only_for() { # ENGINE
	[ "$ENGINE" = "$1" ]
}

# expect CLAIM WANTED COMMAND...: the output contains WANTED.
expect() {
	local claim=$1 wanted=$2 got
	shift 2
	got=$("$@" 2>&1)
	case $got in
	*"$wanted"*) echo "ok - $claim" ;;
	*)
		echo "not ok - $claim"
		echo "#   wanted: $wanted"
		echo "#   got: $got"
		;;
	esac
}

dial_as() { # NAME UID TO
	as_pod "$1" "$2" "$2" "$PROGRAMS/dial" "$3"
}

dial_from_world() { # NAME TO
	in_world "$1" "$PROGRAMS/dial" "$2"
}

# Until the proxy listens everything that it should see is refused; nothing reaches the app.
expect_refusals() { # NAME WHEN
	expect "$1: client -> pod v4 is refused $2" refused dial_from_world "$1" "$POD4:8080"
	expect "$1: client -> pod v6 is refused $2" refused dial_from_world "$1" "$POD6:8080"
	expect "$1: app -> external v4 is refused $2" refused dial_as "$1" 1000 "$EXT4:80"
	expect "$1: app -> external v6 is refused $2" refused dial_as "$1" 1000 "$EXT6:80"
	expect "$1: proxy -> own pod is refused $2" refused dial_as "$1" 1337 "$POD4:8080"
	expect "$1: app -> resolver is refused $2" refused dial_as "$1" 1000 10.99.0.53:53
	expect "$1: client -> excluded port is direct $2" label=app dial_from_world "$1" "$POD4:15020"
}

expect_redirection() { # NAME WHEN
	expect "$1: client -> pod v4 reaches the proxy $2" label=inbound \
		dial_from_world "$1" "$POD4:8080"
	expect "$1: client -> pod v6 reaches the proxy $2" label=inbound \
		dial_from_world "$1" "$POD6:8080"
	expect "$1: app -> external v4 reaches the proxy $2" "label=outbound odst4=16:$EXT4:80" \
		dial_as "$1" 1000 "$EXT4:80"
	expect "$1: app -> external v6 reaches the proxy $2" "odst6=28:$EXT6:80" \
		dial_as "$1" 1000 "$EXT6:80"
	expect "$1: proxy -> own pod reaches the proxy $2" label=inbound dial_as "$1" 1337 "$POD4:8080"
}

scenario_proxy_down() {
	local name=proxy-down shape=separate
	fresh $name main dns=on || return
	expect_refusals $name "before the proxy starts"
	outbound_proxy "$name" $shape && inbound_proxy "$name" $shape
	expect_redirection "$name" "once it listens"
	stop_servers $name.outbound
	stop_servers $name.inbound
	expect_refusals $name "after it has ended"
	outbound_proxy "$name" dual && inbound_proxy "$name" dual
	expect_redirection "$name" "when it listens again"
	pod_down $name
}

# A refused connect leaves nothing behind in the socket: the next one is captured just the same.
scenario_connect_retry() {
	local name=connect-retry line to pid in out
	fresh $name || return
	for to in "$EXT4:80" "$EXT6:80"; do
		coproc RETRY { as_pod $name 1000 1000 "$PROGRAMS/dial" --again "$to"; }
		pid=$RETRY_PID
		exec {out}<&"${RETRY[0]}" {in}>&"${RETRY[1]}"
		read -rt 20 line <&"$out"
		expect "$name: $to is refused while the proxy is down" "Connection refused" echo "$line"
		outbound_proxy "$name" separate
		echo again >&"$in"
		read -rt 20 line <&"$out"
		expect "$name: the same socket then reaches the proxy" "label=outbound" echo "$line"
		expect "$name: with its destination" ":$to" echo "${line% peer=*}"
		exec {out}<&- {in}>&-
		ended "$pid" 10 || echo "not ok - $name: it ends"
		stop_servers $name.outbound
	done
	pod_down $name
}

flood_from_world() { # NAME LABEL COUNT TO...
	in_world "$1" "$PROGRAMS/flood" --label "$2" --count "$3" --concurrency 16 "${@:4}"
}

flood_as() { # NAME UID FLOOD-ARGUMENT...
	as_pod "$1" "$2" "$2" "$PROGRAMS/flood" "${@:3}"
}

# Two generations of a proxy listen on the same ports for a while; whichever leaves, the other one
# gets everything: no connection is refused and none reaches the app.
scenario_hot_restart() {
	local name=hot-restart in=("$POD4:8080" "$POD6:8080" "$POD4:9090") round kind
	fresh $name || return
	for round in "old leaves" "new leaves"; do
		for kind in inbound outbound; do
			${kind}_proxy "$name" separate --reuseport --echo
			servers["$name.old-$kind"]=${servers["$name.$kind"]}
			${kind}_proxy "$name" separate --reuseport --echo
		done
		expect "$name: both generations serve" "ok 100" flood_from_world $name inbound 100 "${in[@]}"
		for kind in inbound outbound; do
			if [ "$round" = "old leaves" ]; then
				stop_servers $name.old-$kind
			else
				stop_servers $name.$kind
			fi
		done
		expect "$name: $round, inbound goes on" "ok 200" \
			flood_from_world $name inbound 200 "${in[@]}"
		expect "$name: $round, outbound goes on" "ok 200" flood_as $name 1000 --label outbound \
			--count 200 --concurrency 16 "$EXT4:80" "$EXT6:80"
		for kind in inbound outbound old-inbound old-outbound; do
			[ -z "${servers[$name.$kind]:-}" ] || stop_servers $name.$kind
		done
		expect "$name: $round, then nobody: refused" refused dial_from_world $name "$POD4:8080"
	done
	pod_down $name
}

# Istio's own self-test, which its injected init container runs as the proxy.
scenario_istio_validation() {
	local name=istio-validation family
	fresh $name || return
	for family in 4 6; do
		as_pod $name 1337 1337 "$PROGRAMS/validation" $family
		result $? "$name: IPv$family passes in an enrolled pod"
	done
	pod_down $name
	pod_up $name
	as_pod $name 1337 1337 "$PROGRAMS/validation" 4 2>"$work/validation"
	result $(($? != 126)) "$name: and fails with 126 in a pod that is not"
	pod_down $name
}

# Two pods with the same address connect from the same ports at the same time: every tuple that the
# kernel knows is there twice, and each connection must be told its own pod's destination.
scenario_equal_tuples() {
	local a=equal-tuples-a b=equal-tuples-b name count=400 pid
	fresh $a || return
	fresh $b || { pod_down $a && return; }
	for name in $a $b; do
		outbound_proxy "$name" separate --echo --workers 2
		inbound_proxy "$name" separate --echo --workers 2
	done
	for name in outbound inbound; do
		local uid=1000 to_a=$EXT4:80 to_b=10.99.0.2:443
		[ $name = outbound ] || { uid=1337 to_a=127.0.0.2:80 to_b=127.0.0.3:443; }
		flood_as $b $uid --hold --bind-from 20000 --count $count --concurrency 50 --label $name \
			$to_b >"$work/flood-b" 2>&1 &
		pid=$!
		expect "equal-tuples: $name, the first pod's destinations" "ok $count" flood_as $a $uid \
			--hold --bind-from 20000 --count $count --concurrency 50 --label $name $to_a
		ended $pid 60
		expect "equal-tuples: $name, the second pod's destinations" "ok $count" cat "$work/flood-b"
	done
	pod_down $a
	pod_down $b
}

# Two agents with directories of their own; one is killed, and its pod stays redirected.
scenario_two_agents() {
	local first=two-agents-first second=two-agents-second
	without_agent && return
	agent_up second || {
		echo "not ok - two-agents: the second one starts"
		return
	}
	fresh $first main || return
	fresh $second second || { pod_down $first && return; }
	for name in $first $second; do
		outbound_proxy "$name" separate
		inbound_proxy "$name" separate
		expect_redirection "$name" "beside another agent"
	done
	agent_kill second
	expect_redirection $second "while its agent is dead"
	stop_servers $second.inbound
	stop_servers $second.outbound
	expect "$second: a proxy that ends is not bypassed while the agent is dead" refused \
		dial_from_world $second "$POD4:8080"
	inbound_proxy $second separate
	outbound_proxy $second separate
	expect_redirection $second "with a proxy that started while its agent is dead"
	expect_redirection $first "after the other agent has died"
	pod_down $first
	agent_up second
	result $? "two-agents: the killed one starts again"
	expect_redirection $second "after its agent is back"
	expect "$second: can be removed by the agent that is back" '"ok":true' agent_op $second del
	rm "$work/enrolled-$second"
	expect "$second: is then reached directly" label=app dial_from_world $second "$POD4:8080"
	expect "$second: and reaches the world" label=world dial_as $second 1000 "$EXT4:80"
	pod_down $second
}

# Entries that wait for an accept, and the places that are counted as taken for them.
handovers_left() {
	map_entries main handovers
	map_values main gauges | jq '[.[].formatted.value.handovers] | add'
}

no_handover_left() {
	[ "$(handovers_left | xargs)" = "0 0" ]
}

expect_no_handover_left() { # NAME
	only_for ebpf || return
	wait_for 5 no_handover_left
	result $? "$1: no hand-over is left, and no place is taken"
	no_handover_left || handovers_left | sed 's/^/#   /'
}

# Connections whose SYN nobody answers: prints how each connect() began, and holds them all.
PENDING='
import errno, os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
held, began = [], {}
for i in range(int(sys.argv[1])):
    s = socket.socket()
    s.setblocking(False)
    name = errno.errorcode.get(s.connect_ex(("10.99.0.1", 80)), "0")
    began[name] = began.get(name, 0) + 1
    held.append(s)
print(*("%s=%d" % item for item in sorted(began.items())), os.getpid(), flush=True)
signal.pause()
'

declare -A pending # NAME: who holds them

pending_up() { # NAME COUNT
	rm -f "$work/pending-$1"
	as_pod "$1" 0 0 python3 -c "$PENDING" "$2" >"$work/pending-$1" &
	pending[$1]=$!
	wait_for 10 test -s "$work/pending-$1"
}

pending_down() { # NAME
	kill "$(awk '{ print $NF }' "$work/pending-$1")"
	ended "${pending[$1]}" 10 || echo "not ok - $1: the connections end that were held"
}

# Until the table "deaf" is deleted no SYN reaches the proxy.
deafen() { # NAME
	inside "$1" nft -f - <<-'EOF'
		table ip deaf {
			chain in {
				type filter hook input priority 0
				tcp dport 15001 tcp flags & syn == syn drop
			}
		}
	EOF
}

pod_events() { # NAME
	"$BUILD_DIR/bin/sockmeshctl" --run-dir "${pod_agent[$1]}" pod "contract/$1" -o json |
		jq -c .counters.events
}

places() {
	map_values limits gauges | jq '[.[].formatted.value.handovers] | add'
}

no_place_taken() {
	[ "$(places)" = 0 ]
}

# A place for its hand-over is taken before a connection is let go, and given back whatever becomes
# of it. Beyond the limit connections are refused and counted, and the next pod still has its share.
scenario_limits() {
	local first=limits-first second=limits-second name
	only_for ebpf || return
	agent_up limits --max-handovers-per-pod 8 --max-handovers 12 || {
		echo "not ok - limits: the agent starts"
		return
	}
	fresh $first limits || return
	fresh $second limits || { pod_down $first && return; }
	for name in $first $second; do
		outbound_proxy "$name" separate
		deafen "$name"
	done
	pending_up $first 10
	expect "limits: a pod's share is 8 places" "EINPROGRESS=8 EPERM=2" cat "$work/pending-$first"
	expect "limits: refusals are counted" '"handover-pod-limit":2' pod_events $first
	pending_up $second 8
	expect "limits: the node has 4 left for another pod" "EINPROGRESS=4 EPERM=4" \
		cat "$work/pending-$second"
	expect "limits: which is counted too" '"handover-node-limit":4' pod_events $second
	expect "limits: and logged" "max-handovers-per-pod is reached" cat "$work/agent-limits.log"
	pending_down $first
	pending_down $second
	wait_for 5 no_place_taken
	result $? "limits: places are given back when the sockets close"
	for name in $first $second; do
		inside "$name" nft delete table ip deaf
		expect "$name: captured again" "label=outbound odst4=16:$EXT4:80" dial_as "$name" 1000 "$EXT4:80"
	done
	pod_down $first
	pod_down $second
}

# More listeners than a pod has slots: all but one of them leave.
scenario_many_listeners() {
	local name=many-listeners in=("$POD4:8080" "$POD6:8080")
	fresh $name || return
	inbound_proxy $name separate --reuseport --echo --workers 12
	servers[$name.old]=${servers[$name.inbound]}
	expect "$name: 24 listeners serve" "ok 100" flood_from_world $name inbound 100 "${in[@]}"
	inbound_proxy $name separate --reuseport --echo
	stop_servers $name.old
	expect "$name: the last pair serves alone" "ok 100" flood_from_world $name inbound 100 "${in[@]}"
	servers[$name.last]=${servers[$name.inbound]}
	inbound_proxy $name separate --reuseport --echo --workers 12
	stop_servers $name.inbound
	wait_for 5 flood_from_world $name inbound 100 "${in[@]}"
	result $? "$name: found again when newer ones took its slots and left"
	stop_servers $name.last
	pod_down $name
}

# Connects to 10.99.0.1:80, and fifty times more from the same port to the same place, which the
# kernel refuses after connect() was decided and before the socket has ports.
REPEAT='
import errno, socket, sys
def connecting(port, protocol):
    s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, protocol)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind(("10.244.0.5", port))
    return s, s.connect_ex(("10.99.0.1", 80))
try:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM, int(sys.argv[1])).close()
except OSError as e:
    sys.exit("no such sockets here")
held, failed = connecting(0, 0)
assert not failed, failed
became = {}
for i in range(50):
    s, failed = connecting(held.getsockname()[1], int(sys.argv[1]))
    s.close()
    name = errno.errorcode.get(failed, "0")
    became[name] = became.get(name, 0) + 1
print(*("%s=%d" % item for item in sorted(became.items())))
'

scenario_connect_fails_early() {
	local name=connect-fails-early protocol got
	fresh $name || return
	outbound_proxy "$name" separate --echo
	for protocol in 0 262; do
		got=$(as_pod $name 1000 1000 python3 -c "$REPEAT" $protocol 2>&1)
		case $got in
		*"no such sockets here"*)
			echo "ok - $name: protocol $protocol # SKIP this kernel has no multipath TCP"
			continue
			;;
		esac
		expect "$name: protocol $protocol, the port is taken" EADDRNOTAVAIL=50 echo "$got"
		expect_no_handover_left "$name: protocol $protocol"
	done
	pod_down $name
}

# ::6 on lo is what makes a source of ::6 the proxy's own; without it, it is anybody's.
scenario_passthrough_from_outside() {
	local name=passthrough-from-outside
	without_agent && return
	setting=()
	pod_up $name main
	inside $name sh -c 'echo 1 >/proc/sys/net/ipv6/conf/lo/disable_ipv6'
	enrol $name && world_servers $name && app_servers $name && inbound_proxy $name separate
	result $? "$name: a pod without IPv6 on lo is enrolled"
	ip -n $name-w -batch - <<-BATCH
		address add ::6/128 dev lo nodad
		route add fd00:10::5/128 dev w0 src ::6
	BATCH
	expect "$name: ::6 from outside reaches the proxy" label=inbound dial_from_world $name "$POD6:8080"
	expect "$name: and the proxy sees who it is" "peer=[::6]:" dial_from_world $name "$POD6:8080"
	stop_servers $name.inbound
	expect "$name: or is refused without one" refused dial_from_world $name "$POD6:8080"
	pod_down $name
}

# Questions from one socket (family 4 or 6; 6 is dual-stack): what each answer says of where it
# was asked, and whom it comes from. After "connect" the next server is connected to; a question to
# the server after "lost" says so, for lose_questions().
ASK='
import socket, sys
v6 = sys.argv[1] == "6"
s = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5)
if v6:
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
def answer():
    line, server = s.recvfrom(512)
    print(line.decode().split()[-1], "from=%s:%d" % server[:2], flush=True)
waiting, how = 0, None
for word in sys.argv[2:]:
    if word == "answer":
        answer()
        waiting -= 1
    elif word in ("connect", "lost"):
        how = word
        continue
    elif how == "lost":
        s.sendto(b"lost", (word, 53))
    elif how == "connect":
        s.connect((word, 53))
        s.send(b"?")
        waiting += 1
    else:
        s.sendto(b"?", (word, 53))
        waiting += 1
    how = None
for i in range(waiting):
    answer()
'

ask() { # NAME FAMILY WHAT...: the answers, sorted, on one line
	as_pod "$1" 1000 1000 python3 -c "$ASK" "${@:2}" 2>&1 | sort | xargs
}

lose_questions() { # NAME: those of four bytes, which make a datagram of twelve
	inside "$1" nft -f - <<-'EOF'
		table inet lossy {
			chain in {
				type filter hook input priority 0
				udp dport 15053 udp length 12 drop
			}
		}
	EOF
}

scenario_dns_servers() {
	local name=dns-servers
	fresh $name main dns=on || return
	dns_proxy $name
	expect "$name: a dual-stack socket asks a server of each family" 		"local=127.0.0.1:15053 from=::ffff:10.99.0.53:53 local=[::1]:15053 from=fd00:99::53:53" 		ask $name 6 ::ffff:10.99.0.53 fd00:99::53
	expect "$name: in the other order" 		"local=127.0.0.1:15053 from=::ffff:10.99.0.54:53 local=[::1]:15053 from=fd00:99::54:53" 		ask $name 6 fd00:99::54 ::ffff:10.99.0.54
	expect "$name: IPv4, after connect() answers come from the connected server" 		"local=127.0.0.1:15053 from=10.99.0.53:53 local=127.0.0.1:15053 from=10.99.0.54:53" 		ask $name 4 10.99.0.54 answer connect 10.99.0.53
	expect "$name: IPv6, after connect() answers come from the connected server" 		"local=[::1]:15053 from=fd00:99::53:53 local=[::1]:15053 from=fd00:99::54:53" 		ask $name 6 fd00:99::54 answer connect fd00:99::53
	lose_questions $name
	expect "$name: also when an earlier question was lost" "from=10.99.0.53:53" \
		ask $name 4 lost 10.99.0.54 connect 10.99.0.53
	expect "$name: a lost question of one family is not answered by the other" \
		"local=[::1]:15053 from=fd00:99::53:53" ask $name 6 lost ::ffff:10.99.0.54 fd00:99::53
	expect "$name: nor the other way round" "local=127.0.0.1:15053 from=::ffff:10.99.0.53:53" \
		ask $name 6 lost fd00:99::54 ::ffff:10.99.0.53
	stop_servers $name.dns
	pod_down $name
}

# The kernel's NAT cannot tell whose listener it is; sk_lookup can.
scenario_listener_not_proxy() {
	local name=listener-not-proxy
	only_for ebpf || return
	fresh $name || return
	# shellcheck disable=SC2046
	start_servers $name impostor as_pod $name 1000 1000 "$PROGRAMS/reporter" impostor \
		$(proxy_at 15006 separate)
	expect "$name: IPv4 is refused" refused dial_from_world $name "$POD4:8080"
	expect "$name: IPv6 is refused" refused dial_from_world $name "$POD6:8080"
	expect "$name: both listeners are counted" '"listener-not-proxy":2' pod_events $name
	stop_servers $name.impostor
	inbound_proxy $name separate
	expect "$name: the proxy's own is reached" label=inbound dial_from_world $name "$POD4:8080"
	pod_down $name
}

# Who listened as the proxy before the proxy became another user is not steered to any more.
scenario_proxy_user_changes() {
	local name=proxy-user-changes
	only_for ebpf || return
	fresh $name || return
	inbound_proxy $name separate
	expect "$name: the proxy is reached" label=inbound dial_from_world $name "$POD4:8080"
	expect "$name: its user is another one now" '"ok":true' agent_op $name add \
		sockmesh.io/redirection=sidecar sockmesh.io/proxy-uid=2000 sockmesh.io/proxy-gid=2000
	expect "$name: the old user's listener is not" refused dial_from_world $name "$POD4:8080"
	expect "$name: nor for IPv6" refused dial_from_world $name "$POD6:8080"
	expect "$name: and again" '"ok":true' agent_op $name add sockmesh.io/redirection=sidecar
	expect "$name: found again" label=inbound dial_from_world $name "$POD4:8080"
	pod_down $name
}

long_counts() { # sets held and total
	held=60000 total=100000
	[ "$SCALE" = full ] || held=3000 total=5000
	# The kernel's NAT has one range of ports for everything that goes to 127.0.0.1:15001.
	[ "$ENGINE" = ebpf ] || held=3000 total=5000
}

scenario_long_concurrent() {
	local name=long-concurrent held total
	long_counts
	fresh $name || return
	outbound_proxy "$name" separate --echo --workers 5
	expect "$name: $held connections of one pod at the same time" "ok $held" flood_as $name 1000 \
		--hold --workers 4 --count "$held" --concurrency 400 --label outbound \
		"$EXT4:80" "$EXT4:443" 10.99.0.2:80 10.99.1.1:9999
	expect_no_handover_left $name
	pod_down $name
}

scenario_long_payload() {
	local name=long-payload held total pid
	long_counts
	fresh $name || return
	outbound_proxy "$name" separate --echo --workers 2
	inbound_proxy "$name" separate --echo --workers 2
	in_world $name "$PROGRAMS/flood" --workers 2 --count $((total / 4)) --concurrency 100 \
		--payload 1024 --label inbound "$POD4:8080" "$POD6:9090" >"$work/flood-in" 2>&1 &
	pid=$!
	expect "$name: $total connections, every byte right, none at the wrong place" "ok $total" \
		flood_as $name 1000 --workers 4 --count "$total" --concurrency 200 --payload 1024 \
		--label outbound "$EXT4:80" "$EXT4:443" 10.99.0.2:80 10.99.1.1:9999 "$EXT6:80"
	ended $pid 300
	expect "$name: and $((total / 4)) inbound at the same time" "ok $((total / 4))" cat "$work/flood-in"
	expect_no_handover_left $name
	pod_down $name
}
