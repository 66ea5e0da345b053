# shellcheck shell=bash disable=SC2034,SC2154
# SPDX-License-Identifier: Apache-2.0
#
# Scenarios of ambient pods: what is changed in their namespace, who is taken for ztunnel and for
# kubelet, and what becomes of both when something fails.

# ztunnel and its application, enrolled: ambient_up NAME [AGENT [SETTING=VALUE...]]
ambient_up() {
	local name=$1 agent=${2:-main}
	shift
	[ $# -eq 0 ] || shift
	fresh "$name" "$agent" ambient=yes listeners=dual "$@"
}

with_ztunnel() { # NAME
	outbound_proxy "$1" dual && inbound_proxy "$1" dual && dns_proxy "$1" && tunnel_proxy "$1" dual
}

dial_as_ztunnel() { # NAME DIAL-ARGUMENT...
	as_ztunnel "$1" "$PROGRAMS/dial" --mark 0x539 "${@:2}"
}

# As ztunnel does it: under the client's address.
dial_for_client() { # NAME TO
	dial_as_ztunnel "$1" --source 10.244.0.1:0 --source '[fd00:10::1]:0' "$2"
}

dial_as_kubelet() { # NAME DIAL-ARGUMENT...
	as_kubelet "$1" "$PROGRAMS/dial" "${@:2}"
}

expect_ambient() { # NAME WHEN
	expect "$1: client -> pod v4 reaches ztunnel $2" label=inbound dial_from_world "$1" "$POD4:8080"
	expect "$1: client -> pod v6 reaches ztunnel $2" label=inbound dial_from_world "$1" "$POD6:8080"
	expect "$1: app -> external v4 reaches ztunnel $2" "label=outbound odst4=16:$EXT4:80" \
		dial_as "$1" 1337 "$EXT4:80"
	expect "$1: app -> external v6 reaches ztunnel $2" "odst6=28:$EXT6:80" dial_as "$1" 1000 "$EXT6:80"
	expect "$1: ztunnel for a client -> app v4 $2" "peer=10.244.0.1:" dial_for_client "$1" "$POD4:8080"
	expect "$1: ztunnel for a client -> app v6 $2" "peer=[fd00:10::1]:" \
		dial_for_client "$1" "$POD6:8080"
	expect "$1: a closed port is told to ztunnel $2" refused dial_for_client "$1" "$POD4:9"
	expect "$1: ztunnel -> external $2" label=world dial_as_ztunnel "$1" "$EXT4:80"
	[ "$ENGINE" != ebpf ] ||
		expect "$1: kubelet -> app $2" label=app dial_as_kubelet "$1" "$POD4:8080"
}

ambient_knobs() { # NAME: tcp_fwmark_accept, fwmark_reflect of both families
	inside "$1" sh -c 'cd /proc/sys/net && cat ipv4/tcp_fwmark_accept ipv4/fwmark_reflect \
		ipv6/fwmark_reflect' | xargs
}

ambient_routes() { # NAME: how many rules and routes
	{
		ip -n "$1" rule show table 100
		ip -n "$1" -6 rule show table 100
		ip -n "$1" route show table 100 2>/dev/null
		ip -n "$1" -6 route show table 100 2>/dev/null
	} | grep -c .
}

# ---- what is changed in the namespace ----------------------------------------------------------------

# One of the sysctls was on before: it stays on.
scenario_ambient_namespace() {
	local name=ambient-namespace clean knobs="1 1 1"
	without_agent && return
	own_agent $name || return
	setting=([ambient]=yes [listeners]=dual)
	pod_up $name $name || return
	inside $name sh -c 'echo 1 >/proc/sys/net/ipv4/fwmark_reflect'
	[ "$ENGINE" = ebpf ] || knobs="0 1 0" # conntrack does it
	enrol $name && world_servers $name && app_servers $name && with_ztunnel $name
	result $? "$name: is enrolled"
	expect "$name: its sysctls" "$knobs" ambient_knobs $name
	expect "$name: rules and routes of table 100" 4 ambient_routes $name
	expect "$name: ::6 is not on lo" "none" sh -c "ip -n $name -6 address show to ::6 | grep . || echo none"
	expect_ambient $name "with one of the sysctls set before"
	expect "$name: applied once more" 0 enrol_status $name
	expect "$name: rules and routes are not there twice" 4 ambient_routes $name
	agent_kill $name
	expect_ambient $name "while no agent runs"
	restarted $name
	expect "$name: as planned" '"ok":true' check_ok $name
	expect "$name: is removed" '"ok":true' agent_op $name del
	expect "$name: the sysctls are what they were" "0 1 0" ambient_knobs $name
	expect "$name: no rule and no route is left" 0 ambient_routes $name
	expect "$name: client -> app is direct" label=app dial_from_world $name "$POD4:8080"
	enrol $name
	result $? "$name: and is enrolled again"
	agent_kill $name
	uninstall $name >/dev/null
	result $? "$name: uninstalling says that nothing is left"
	expect "$name: the sysctls are what they were" "0 1 0" ambient_knobs $name
	expect "$name: no rule and no route is left" 0 ambient_routes $name
	rm "$work/enrolled-$name"
	pod_down $name
}

enrol_status() { # NAME
	enrol "$1"
	echo $?
}

# A pod that is a sidecar's now keeps nothing of an ambient one, and the other way round.
scenario_ambient_to_sidecar() {
	local name=ambient-to-sidecar
	without_agent && return
	ambient_up $name || return
	with_ztunnel $name
	expect_ambient $name "at first"
	setting=()
	enrol $name
	result $? "$name: is a sidecar's"
	expect "$name: the sysctls are what they were" "0 0 0" ambient_knobs $name
	expect "$name: no rule and no route is left" 0 ambient_routes $name
	expect "$name: as planned" '"ok":true' check_ok $name
	net_admin=yes expect "$name: the mark is nobody's" label=outbound \
		as_pod $name 1000 1000 "$PROGRAMS/dial" --mark 0x539 "$EXT4:80"
	setting=([ambient]=yes [listeners]=dual)
	enrol $name
	result $? "$name: is ambient again"
	expect "$name: as planned" '"ok":true' check_ok $name
	expect_ambient $name "again"
	pod_down $name
}

tamper_ambient_knob() { # NAME
	inside "$1" sh -c 'echo 0 >/proc/sys/net/ipv4/tcp_fwmark_accept'
}

tamper_ambient_reflect() { # NAME
	inside "$1" sh -c 'echo 0 >/proc/sys/net/ipv6/fwmark_reflect'
}

tamper_ambient_rule() { # NAME
	ip -n "$1" rule del table 100
}

tamper_ambient_route() { # NAME
	ip -n "$1" -6 route del local default table 100
}

tamper_ambient_kubelet() { # NAME
	bpftool link detach pinned "$work/bpf-${pod_agent[$1]##*/run-}/links/sockmesh_kubelet_sockops"
}

scenario_ambient_tamper() {
	local name=ambient-tamper kind kinds="rule route"
	without_agent && return
	[ "$ENGINE" != ebpf ] || kinds+=" knob reflect kubelet"
	own_agent $name --reconcile-seconds 1 || return
	ambient_up $name $name || return
	with_ztunnel $name
	for kind in $kinds; do
		round_passes $name "ambient_$kind"
		result $? "$name: $kind: healed, and counted"
		expect "$name: $kind: as planned again" '"ok":true' check_ok $name
		expect_ambient $name "after $kind"
	done
	pod_down $name
}

# Killed anywhere in an add or a del: the next one has what it needs and leaves nothing.
scenario_ambient_crash() {
	local name=ambient-crash us
	without_agent && return
	own_agent $name || return
	setting=([ambient]=yes [listeners]=dual)
	pod_up $name $name && world_servers $name && app_servers $name && with_ztunnel $name
	for us in $(crash_points); do
		kill_during $name "$us" enrol $name
		restarted $name
		expect "$name: add, $us us: the runtime's next try" 0 enrol_status $name
		expect "$name: add, $us us: all is as planned" '"ok":true' check_ok $name
		expect "$name: add, $us us: ztunnel for a client -> app" label=app dial_for_client $name "$POD4:8080"
		kill_during $name "$us" agent_op $name del
		restarted $name
		expect "$name: del, $us us: the runtime's next try" '"ok":true' agent_op $name del
		expect "$name: del, $us us: the sysctls are what they were" "0 0 0" ambient_knobs $name
		expect "$name: del, $us us: no rule and no route is left" 0 ambient_routes $name
		expect_nothing_left $name "after a del, $us us"
	done
	rm -f "$work/enrolled-$name"
	pod_down $name
}

# ---- ztunnel -------------------------------------------------------------------------------------------

scenario_ambient_without_ztunnel() {
	local name=ambient-without-ztunnel
	ambient_up $name || return
	expect_no_ztunnel $name "before it starts"
	with_ztunnel $name
	expect_ambient $name "once it listens"
	stop_servers $name.outbound
	stop_servers $name.inbound
	stop_servers $name.tunnel
	expect_no_ztunnel $name "after it has ended"
	with_ztunnel $name
	expect_ambient $name "when it listens again"
	pod_down $name
}

expect_no_ztunnel() { # NAME WHEN
	expect "$1: client -> pod v4 is refused $2" refused dial_from_world "$1" "$POD4:8080"
	expect "$1: client -> pod v6 is refused $2" refused dial_from_world "$1" "$POD6:8080"
	expect "$1: app -> external v4 is refused $2" refused dial_as "$1" 1000 "$EXT4:80"
	expect "$1: app -> external v6 is refused $2" refused dial_as "$1" 1000 "$EXT6:80"
	expect "$1: app -> itself is direct $2" label=app dial_as "$1" 1000 "$POD4:8080"
	[ "$ENGINE" != ebpf ] ||
		expect "$1: kubelet -> app is direct $2" label=app dial_as_kubelet "$1" "$POD4:8080"
}

# Whoever listens there without the mark gets nothing.
scenario_ambient_impostor() {
	local name=ambient-impostor
	only_for ebpf || return
	own_agent $name && ambient_up $name $name || return
	# shellcheck disable=SC2046
	start_servers $name impostor as_pod $name 1337 1337 "$PROGRAMS/reporter" impostor \
		$(proxy_at 15006 separate)
	expect "$name: IPv4 is refused" refused dial_from_world $name "$POD4:8080"
	expect "$name: IPv6 is refused" refused dial_from_world $name "$POD6:8080"
	agent_kill $name
	restarted $name
	expect "$name: also when an agent has looked for listeners" refused dial_from_world $name "$POD4:8080"
	stop_servers $name.impostor
	inbound_proxy $name dual
	expect "$name: ztunnel's own is reached" label=inbound dial_from_world $name "$POD4:8080"
	pod_down $name
}

# With SYN cookies nothing is kept of a SYN: the ACK finds its listener anew.
scenario_ambient_syncookies() {
	local name=ambient-syncookies i
	without_agent && return
	ambient_up $name || return
	inside $name sh -c 'echo 2 >/proc/sys/net/ipv4/tcp_syncookies'
	with_ztunnel $name
	for i in 1 2 3; do
		expect_ambient $name "with SYN cookies, $i"
	done
	expect_no_handover_left $name
	pod_down $name
}

flood_for_clients() { # NAME COUNT TO...
	as_ztunnel "$1" "$PROGRAMS/flood" --mark 0x539 --source 10.99.1.1:0 --source '[fd00:99:1::1]:0' \
		--any-original --label app-echo --count "$2" --concurrency 32 "${@:3}"
}

# Many at once; nothing of them stays.
scenario_ambient_flood() {
	local name=ambient-flood count=2000
	without_agent && return
	[ "$SCALE" != full ] || count=50000
	ambient_up $name || return
	with_ztunnel $name && echo_servers $name
	expect "$name: $count connections for clients" "ok $count" flood_for_clients $name $count \
		"$POD4:7000" "$POD6:7000"
	expect_no_handover_left $name
	pod_down $name
}

# Until the table "deaf" is deleted no SYN reaches the application.
deafen_app() { # NAME
	inside "$1" nft -f - <<-'EOF'
		table inet deaf {
			chain in {
				type filter hook input priority 0
				tcp dport { 8080, 9090 } tcp flags & (syn | ack) == syn drop
			}
		}
	EOF
}

PENDING_FOR_CLIENT='
import errno, os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
held, began = [], {}
for i in range(int(sys.argv[1])):
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, 36, 0x539)
    s.setsockopt(socket.SOL_IP, 19, 1)
    s.bind(("10.99.1.1", 0))
    s.setblocking(False)
    name = errno.errorcode.get(s.connect_ex(("10.244.0.5", 8080)), "0")
    began[name] = began.get(name, 0) + 1
    held.append(s)
print(*("%s=%d" % item for item in sorted(began.items())), os.getpid(), flush=True)
signal.pause()
'

# There is a place for each connection that is not there yet, and none without one.
scenario_ambient_limits() {
	local name=ambient-limits
	only_for ebpf || return
	agent_up limits --max-handovers-per-pod 8 --max-handovers 12 || return
	ambient_up $name limits || return
	deafen_app $name
	rm -f "$work/pending-$name"
	as_ztunnel $name python3 -c "$PENDING_FOR_CLIENT" 10 >"$work/pending-$name" &
	# shellcheck disable=SC2004 # it is an associative array, of scenarios.sh
	pending[$name]=$!
	wait_for 10 test -s "$work/pending-$name"
	expect "$name: a pod's share is 8 places" "EINPROGRESS=8 EPERM=2" cat "$work/pending-$name"
	expect "$name: refusals are counted" '"handover-pod-limit":2' pod_events $name
	pending_down $name
	wait_for 5 no_place_taken
	result $? "$name: places are given back when the sockets close"
	inside $name nft delete table inet deaf
	expect "$name: ztunnel for a client -> app" label=app dial_for_client $name "$POD4:8080"
	pod_down $name
	agent_kill limits
}

# ---- kubelet ---------------------------------------------------------------------------------------------

probes_noted() {
	map_entries "${1:-main}" probes
}

kubelet_count() { # AGENT COUNTER
	status_field "$1" ".counters.kubelet[\"probe-$2\"]"
}

kubelet_back() { # NAME
	dial_as_kubelet "$1" "$POD4:8080" | grep -q label=app
}

# Its connections and nobody else's, and those only while they are its own.
scenario_ambient_kubelet() {
	local name=ambient-kubelet port=23000 from pid
	only_for ebpf || return
	own_agent $name && ambient_up $name $name || return
	with_ztunnel $name
	expect "$name: kubelet -> app" "label=app" dial_as_kubelet $name "$POD4:8080"
	expect "$name: root of the node -> ztunnel" label=inbound dial_from_world $name "$POD4:8080"
	expect "$name: a pod of the node -> ztunnel" label=inbound "$PROGRAMS/as" \
		--cgroup "${pod_cgroup[$name]}" --netns /run/netns/$name-w "$PROGRAMS/dial" "$POD4:8080"
	expect "$name: nothing is noted in between" 0 probes_noted $name
	for from in 10.244.0.1:$port '[fd00:10::1]:'$port; do
		[[ $from = \[* ]] && to=$POD6 || to=$POD4
		expect "$name: kubelet from $from" label=app dial_as_kubelet $name --reset --source "$from" "$to:8080"
		expect "$name: the same ports, another process" label=inbound dial_from_world_at $name "$from" "$to:8080"
		expect "$name: kubelet to a closed port from $from" refused \
			dial_as_kubelet $name --reset --source "$from" "$to:9"
		expect "$name: the same ports, another process, closed port" label=inbound \
			dial_from_world_at $name "$from" "$to:9"
	done
	expect "$name: nothing is noted" 0 probes_noted $name
	# Kubelet is killed while the pod does not answer.
	deafen_app $name
	from=10.244.0.1:$((port + 1))
	dial_as_kubelet $name --source $from "$POD4:8080" >/dev/null &
	pid=$!
	wait_for 5 noted $name 1
	result $? "$name: a connection is noted that is not answered"
	kill -9 $pid
	ended $pid 10
	wait_for 5 noted $name 0
	result $? "$name: and forgotten when kubelet is killed"
	inside $name nft delete table inet deaf
	expect "$name: the same ports, another process" label=inbound \
		dial_from_world_at $name $from "$POD4:8080"
	ambient_kubelet_rewritten $name
	ambient_kubelet_again $name
	pod_down $name
}

noted() { # AGENT COUNT
	[ "$(probes_noted "$1")" = "$2" ]
}

dial_from_world_at() { # NAME SOURCE TO
	in_world "$1" "$PROGRAMS/dial" --reset --source "$2" "$3"
}

# A host that rewrites the source: the pod cannot know it, and ztunnel gets the connection.
ambient_kubelet_rewritten() { # NAME
	inside "$1-w" nft -f - <<-'EOF'
		table ip rewrite {
			chain out {
				type nat hook postrouting priority 100
				ip daddr 10.244.0.5 tcp dport 8080 masquerade to :30000-31000
			}
		}
	EOF
	expect "$1: with a rewritten source kubelet reaches ztunnel" label=inbound \
		dial_as_kubelet "$1" "$POD4:8080"
	expect "$1: which is counted" 1 kubelet_count "$1" not-recognised
	expect "$1: nothing is noted" 0 probes_noted "$1"
	inside "$1-w" nft delete table ip rewrite
	expect "$1: without it it reaches the app" label=app dial_as_kubelet "$1" "$POD4:8080"
}

# Kubelet starts again, in a cgroup that is made anew.
ambient_kubelet_again() { # NAME
	remake_cgroup "$kubelet_cgroup"
	result $? "$1: kubelet's cgroup is made again"
	wait_for 15 kubelet_back "$1"
	result $? "$1: kubelet reaches the app with the next look, every ten seconds"
	agent_kill "$1"
	expect "$1: also while no agent runs" label=app dial_as_kubelet "$1" "$POD4:8080"
	restarted "$1"
	expect "$1: and after it" label=app dial_as_kubelet "$1" "$POD4:8080"
	expect "$1: root of the node still does not" label=inbound dial_from_world "$1" "$POD4:8080"
}

# Kubelet without a cgroup of its own, as in k3s: its process, and no other one of that cgroup. It is
# looked for in the agent's network namespace, so only a thread of it is where the pod can be reached.
KUBELET_PROCESS='
import ctypes, socket, sys, threading
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(15, b"kubelet", 0, 0, 0)
def dial(netns, to):
    if libc.setns(netns.fileno(), 0x40000000):
        print("setns:", ctypes.get_errno(), flush=True)
        return
    try:
        with socket.create_connection((to, 8080), timeout=3) as s:
            print(s.makefile().readline().strip(), flush=True)
    except OSError as e:
        print(e, flush=True)
print("ready", flush=True)
for line in sys.stdin:
    with open(sys.argv[1]) as netns:
        thread = threading.Thread(target=dial, args=(netns, line.strip()))
        thread.start()
        thread.join()
'

scenario_ambient_kubelet_process() {
	local name=ambient-kubelet-process line in out
	only_for ebpf || return
	if { pgrep -x kubelet || pgrep -x kubelite || pgrep -x "k3s.*"; } >/dev/null; then
		echo "ok - $name: # SKIP this node has a kubelet"
		return
	fi
	coproc KUBELET { as_root_cgroup python3 -c "$KUBELET_PROCESS" "/run/netns/$name-w"; }
	exec {out}<&"${KUBELET[0]}" {in}>&"${KUBELET[1]}"
	background["$KUBELET_PID"]=$name
	read -rt 20 line <&"$out"
	own_agent $name --kubelet-cgroup "" && ambient_up $name $name || return
	with_ztunnel $name
	expect "$name: it is found" "which is in no cgroup of its own" cat "$work/agent-$name.log"
	echo 10.244.0.5 >&"$in"
	read -rt 20 line <&"$out"
	expect "$name: kubelet -> app" label=app echo "$line"
	echo fd00:10::5 >&"$in"
	read -rt 20 line <&"$out"
	expect "$name: kubelet -> app, IPv6" label=app echo "$line"
	expect "$name: another process of its cgroup" label=inbound as_root_cgroup "$PROGRAMS/as" \
		--netns "/run/netns/$name-w" "$PROGRAMS/dial" "$POD4:8080"
	exec {out}<&- {in}>&-
	pod_down $name
}

as_root_cgroup() { # COMMAND...
	"$PROGRAMS/as" --cgroup "${cgroup_base%/*}" "$@"
}
