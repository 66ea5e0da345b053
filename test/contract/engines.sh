# shellcheck shell=bash disable=SC2034,SC2154
# SPDX-License-Identifier: Apache-2.0
#
# Scenarios of what an engine leaves in the kernel: somebody else changes it, the agent is killed
# while it writes it, hundreds of pods are written at once; and of which engine an agent chooses.

ctl() { # AGENT VERB...
	"$BUILD_DIR/bin/sockmeshctl" --run-dir "$work/run-$1" "${@:2}"
}

pod_field() { # NAME JQ-EXPRESSION
	"$BUILD_DIR/bin/sockmeshctl" --run-dir "${pod_agent[$1]}" pod "contract/$1" -o json | jq -c ".pod | $2"
}

status_field() { # AGENT JQ-EXPRESSION
	ctl "$1" status -o json | jq -r "$2"
}

# ---- what is in a pod's namespace ----------------------------------------------------------------

# Both iptables see only their own rules, so a pod's are looked for in both.
IPTABLES_TOOLS=(iptables-legacy ip6tables-legacy iptables-nft ip6tables-nft)

iptables_rules() { # NAME; rules and chains of ours, without counters
	local tool
	for tool in "${IPTABLES_TOOLS[@]}"; do
		command -v "$tool-save" >/dev/null || continue
		inside "$1" "$tool-save" 2>/dev/null | sed -n "s/ \[[0-9:]*\]$//; s/^[-:]/$tool &/p" |
			grep -v ' :\(INPUT\|OUTPUT\|FORWARD\|PREROUTING\|POSTROUTING\) \(ACCEPT\|-\)$'
	done
}

nftables_rules() { # NAME; tables that are not iptables-nft's
	local table
	inside "$1" nft list tables | while read -r _ table; do
		case ${table##* } in
		nat | raw | mangle | filter | '') ;;
		*) inside "$1" nft --stateless list table "${table% *}" "${table##* }" ;;
		esac
	done
}

ebpf_entries() { # NAME; how many pods its agent's maps have
	local agent=${pod_agent[$1]##*/run-}
	[ -n "$(find "$work/bpf-$agent" -name pods -print -quit)" ] || {
		echo 0
		return
	}
	map_entries "$agent" pods
}

routes_of_tproxy() { # NAME
	ip -n "$1" rule show fwmark 1337
	ip -n "$1" -6 rule show fwmark 1337
	ip -n "$1" route show table 133 2>/dev/null
	ip -n "$1" -6 route show table 133 2>/dev/null
}

# What an ambient pod has beside rules: packets with ztunnel's second mark are the pod's own.
state_of_ambient() { # NAME
	ip -n "$1" rule show table 100
	ip -n "$1" -6 rule show table 100
	ip -n "$1" route show table 100 2>/dev/null
	ip -n "$1" -6 route show table 100 2>/dev/null
	inside "$1" sh -c 'cd /proc/sys/net && grep -H [^0] ipv4/tcp_fwmark_accept ipv4/fwmark_reflect \
		ipv6/fwmark_reflect'
}

# Everything that an engine can have in a pod but for what bpf has, in a form that can be compared.
netfilter_state() { # NAME
	nftables_rules "$1"
	iptables_rules "$1"
	routes_of_tproxy "$1"
	state_of_ambient "$1"
	ip -n "$1" -6 -o address show dev lo to ::6/128
}

same_state() { # NAME STATE; what differs is printed
	netfilter_state "$1" >"$work/state-now"
	diff - "$work/state-now" <<<"$2" | sed 's/^/#   /'
	[ "${PIPESTATUS[0]}" -eq 0 ]
}

nothing_left() { # NAME [ENGINE]: of that engine, or of any
	case ${2:-all} in
	ebpf) [ "$(ebpf_entries "$1")" = 0 ] ;;
	nftables) [ -z "$(nftables_rules "$1")" ] ;;
	iptables) [ -z "$(iptables_rules "$1")" ] ;;
	*) nothing_left "$1" ebpf && [ -z "$(netfilter_state "$1")" ] ;;
	esac
}

expect_nothing_left() { # NAME WHEN [ENGINE]
	wait_for 10 nothing_left "$1" "${3:-}"
	result $? "$1: nothing is left ${3:+of $3, }$2"
	nothing_left "$1" "${3:-}" || {
		netfilter_state "$1"
		ebpf_entries "$1"
	} | sed 's/^/#   /'
}

# ---- tampering -------------------------------------------------------------------------------------

nft_table() { # NAME
	inside "$1" nft list tables | sed -n 's/^table \(.* sockmesh[^ ]*\)$/\1/p' | head -n 1
}

# FAMILY TABLE CHAIN HANDLE of the first rule that redirects.
nft_redirect_rule() { # NAME
	local table
	table=$(nft_table "$1")
	# shellcheck disable=SC2086 # family and name
	inside "$1" nft -a list table $table | awk -v table="$table" '
		$1 == "chain" { chain = $2 }
		/redirect to/ { print table, chain, $NF; exit }'
}

tamper_nftables_flushed() { # NAME
	# shellcheck disable=SC2046
	inside "$1" nft flush table $(nft_table "$1")
}

tamper_nftables_deleted() { # NAME
	# shellcheck disable=SC2046
	inside "$1" nft delete table $(nft_table "$1")
}

tamper_nftables_rule_deleted() { # NAME
	local rule
	read -ra rule <<<"$(nft_redirect_rule "$1")"
	inside "$1" nft delete rule "${rule[@]:0:3}" handle "${rule[3]}"
}

tamper_nftables_rule_added() { # NAME
	local rule
	read -ra rule <<<"$(nft_redirect_rule "$1")"
	inside "$1" nft insert rule "${rule[@]:0:3}" tcp dport 80 accept
}

# nft cannot rename a table; the same under another name, and the first one gone, is what it is.
tamper_nftables_renamed() { # NAME
	local table
	table=$(nft_table "$1")
	# shellcheck disable=SC2086
	inside "$1" nft list table $table | sed "1s/$table/${table% *} elsewhere/" >"$work/renamed"
	# shellcheck disable=SC2086
	inside "$1" nft -f "$work/renamed" && inside "$1" nft delete table $table
}

undo_nftables_renamed() { # NAME: what stays is not ours to remove
	inside "$1" nft list tables | sed -n 's/^table \(.* elsewhere\)$/delete table \1/p' |
		inside "$1" nft -f -
}

# The tool whose rules are there, IPv4's.
iptables_tool() { # NAME
	iptables_rules "$1" | awk '{ print $1; exit }'
}

# The first rule that redirects: CHAIN and the rest.
iptables_redirect_rule() { # NAME TOOL
	inside "$1" "$2-save" -t nat | sed -n '/REDIRECT/{s/^-A //p;q}'
}

tamper_iptables_flushed() { # NAME
	inside "$1" "$(iptables_tool "$1")" -t nat -F
}

tamper_iptables_jump_deleted() { # NAME
	inside "$1" "$(iptables_tool "$1")" -t nat -D OUTPUT 1
}

tamper_iptables_rule_deleted() { # NAME
	local tool
	tool=$(iptables_tool "$1")
	iptables_redirect_rule "$1" "$tool" >"$work/rule"
	{
		echo '*nat'
		sed 's/^/-D /' "$work/rule"
		echo COMMIT
	} | inside "$1" "$tool-restore" --noflush
}

tamper_iptables_rule_added() { # NAME
	local tool chain
	tool=$(iptables_tool "$1")
	read -r chain _ <<<"$(iptables_redirect_rule "$1" "$tool")"
	inside "$1" "$tool" -t nat -I "$chain" -p tcp --dport 80 -j ACCEPT
}

tamper_iptables_v6_flushed() { # NAME
	local tool
	tool=$(iptables_tool "$1")
	inside "$1" "${tool/ip/ip6}" -t nat -F
}

# None of our rules is touched, and none of them is reached.
tamper_iptables_overtaken() { # NAME
	inside "$1" "$(iptables_tool "$1")" -t nat -I OUTPUT 1 -p tcp -j ACCEPT
}

undo_iptables_overtaken() { # NAME: what stays is not ours to remove
	inside "$1" "$(iptables_tool "$1")" -t nat -D OUTPUT -p tcp -j ACCEPT
}

tamper_iptables_passthrough_deleted() { # NAME
	ip -n "$1" address del ::6/128 dev lo
}

tamper_nftables_passthrough_deleted() { # NAME
	ip -n "$1" address del ::6/128 dev lo
}

pinned_map() { # NAME MAP
	find "$work/bpf-${pod_agent[$1]##*/run-}" -name "$2" -print -quit
}

delete_entry() { # PIN JQ-EXPRESSION: the key, of all entries
	# shellcheck disable=SC2046 # bytes
	bpftool map delete pinned "$1" key hex \
		$(bpftool map dump pinned "$1" -j | jq -r "$2 | map(ltrimstr(\"0x\")) | join(\" \")")
}

tamper_ebpf_entry_deleted() { # NAME
	delete_entry "$(pinned_map "$1" pods)" '.[0].key'
}

tamper_ebpf_port_deleted() { # NAME: of the newest policy, which is the pod's
	delete_entry "$(pinned_map "$1" port_sets)" 'max_by(.formatted.key.policy).key'
}

tamper_ebpf_link_detached() { # NAME
	bpftool link detach pinned "$work/bpf-${pod_agent[$1]##*/run-}/links/sockmesh_connect4"
}

tamper_ebpf_netns_link_detached() { # NAME
	local id
	id=$(bpftool -j link show | jq --argjson netns "$(stat -L -c %i "/run/netns/$1")" \
		'[.[] | select(.type == "netns" and .netns_ino == $netns)][0].id')
	bpftool link detach id "$id"
}

healed() { # AGENT
	status_field "$1" .counters.healed
}

healed_since() { # AGENT COUNT
	[ "$(healed "$1")" -gt "$2" ]
}

# What CHECK says of each.
declare -A tampering_is=(
	[nftables_flushed]="is missing"
	[nftables_deleted]="table sockmesh is missing"
	[nftables_renamed]="table sockmesh is missing"
	[nftables_rule_deleted]="is missing"
	[nftables_rule_added]="is not ours"
	[iptables_flushed]="is missing"
	[iptables_jump_deleted]="the jump"
	[iptables_rule_deleted]="rule"
	[iptables_rule_added]="rule 1 is"
	[iptables_v6_flushed]="IPv6"
	[iptables_overtaken]="is behind another's rule"
	[iptables_passthrough_deleted]="address ::6"
	[nftables_passthrough_deleted]="address ::6"
	[ebpf_entry_deleted]="does not have the pod"
	[ebpf_port_deleted]="port"
	[ebpf_link_detached]="connect4"
	[ebpf_netns_link_detached]="is detached"
)

check_message() { # NAME
	check_ok "$1" | jq -r .message
}

# Where the reconciler does not come in between.
tamper_and_check() { # NAME KIND
	local before
	before=$(netfilter_state "$1")
	"tamper_${ENGINE}_$2" "$1"
	result $? "$1: $2"
	expect "$1: $2: CHECK fails" '"ok":false' check_ok "$1"
	expect "$1: $2: and says what differs" "${tampering_is[${ENGINE}_$2]}" check_message "$1"
	enrol "$1"
	result $? "$1: $2: applied again"
	expect "$1: $2: and all is as planned" '"ok":true' check_ok "$1"
	[ "$(type -t "undo_${ENGINE}_$2")" != function ] || "undo_${ENGINE}_$2" "$1"
	same_state "$1" "$before"
	result $? "$1: $2: nothing is there twice"
}

tamper_and_heal() { # NAME KIND
	local count
	count=$(healed "$1")
	"tamper_${ENGINE}_$2" "$1"
	wait_for 10 healed_since "$1" "$count"
	result $? "$1: $2: healed, and counted"
	expect "$1: $2: as planned again" '"ok":true' check_ok "$1"
	[ "$(type -t "undo_${ENGINE}_$2")" != function ] || "undo_${ENGINE}_$2" "$1"
}

tamperings() {
	declare -F | sed -n "s/^declare -f tamper_${ENGINE}_//p"
}

scenario_tamper() {
	local name=tamper kind
	without_agent && return
	own_agent $name --reconcile-seconds 3600 || return
	fresh $name $name || return
	for kind in $(tamperings); do
		tamper_and_check $name "$kind"
	done
	agent_kill $name
	restarted $name --reconcile-seconds 1
	with_proxy $name
	for kind in $(tamperings); do
		tamper_and_heal $name "$kind"
	done
	expect "$name: healing is logged" "tamper" cat "$work/agent-$name.log"
	expect_redirection $name "after all that"
	pod_down $name
}

# The agent looks at its pods once more: this one had to be put right.
round_passes() { # NAME TAMPERING
	local agent=${pod_agent[$1]##*/run-} count
	count=$(healed "$agent")
	"tamper_$2" "$1"
	wait_for 10 healed_since "$agent" "$count"
}

# A rule that only nft can read, in the table that we share with it.
add_unreadable() { # NAME
	inside "$1" nft -f - 2>/dev/null <<-'EOF'
		add chain ip nat POSTROUTING { type nat hook postrouting priority 100; }
		add rule ip nat POSTROUTING numgen inc mod 3 0 counter comment "unreadable"
	EOF
}

delete_unreadable() { # NAME
	inside "$1" nft flush chain ip nat POSTROUTING
}

jumps_by_nft() { # NAME
	inside "$1" nft list chain ip nat OUTPUT | grep -c SOCKMESH_
}

uninstall() { # AGENT
	"$BUILD_DIR/bin/sockmesh-agent" --uninstall --run-dir "$work/run-$1" --bpffs-dir "$work/bpf-$1"
}

# iptables-nft-save then says that the table is empty, with status 0.
scenario_unreadable_table() {
	local name=unreadable-table witness=unreadable-witness round
	only_for iptables || return
	own_agent $name --reconcile-seconds 1 && fresh $name $name && fresh $witness $name || return
	outbound_proxy $name separate
	if [[ $(iptables_tool $name) != *-nft ]] || ! add_unreadable $name; then
		echo "ok - $name: there is such a rule # SKIP legacy iptables, or no numgen in nft or kernel"
		pod_down $name
		pod_down $witness
		return
	fi
	expect "$name: CHECK fails" '"ok":false' check_ok $name
	expect "$name: and says why" "rules that only nft can read" check_message $name
	for round in 1 2 3; do
		round_passes $witness iptables_jump_deleted
		result $? "$name: the agent looks at it again, $round"
	done
	expect "$name: one jump is there" 1 jumps_by_nft $name
	expect "$name: captured" label=outbound dial_as $name 1000 "$EXT4:80"
	agent_kill $name
	expect "$name: uninstalling says that it cannot" "rules that only nft can read" uninstall $name
	! uninstall $name >/dev/null 2>&1
	result $? "$name: and fails"
	delete_unreadable $name
	uninstall $name >/dev/null 2>&1
	result $? "$name: without that rule it can"
	expect_nothing_left $name "then"
	rm "$work/enrolled-$name" "$work/enrolled-$witness"
	pod_down $name
	pod_down $witness
}

# ---- connections that were there before the pod was enrolled ----------------------------------------

declare -A holding # NAME.WHAT: the file that it writes to

hold_ready() { # FILE
	grep -q '^holds' "$1"
}

# What COMMAND holds, in the background; COMMAND ends with hold and its arguments.
hold_up() { # ID COMMAND...
	local id=$1
	shift
	holding[$id]=$work/hold-$id
	: >"${holding[$id]}"
	"$@" >>"${holding[$id]}" 2>&1 &
	wait_for 15 hold_ready "${holding[$id]}" || return
	background[$(hold_pid "$id")]=$id
}

hold_pid() { # ID
	sed -n 's/^holds.* pid //p' "${holding[$1]}"
}

hold_ended() { # ID
	grep -q '^ok\|broken in' "${holding[$1]}"
}

rounds_of() { # ID
	grep -c '^rounds' "${holding[$1]}"
}

hold_goes_on() { # ID: another round begins and ends, with all connections alive
	local n
	n=$(rounds_of "$1")
	kill -USR1 "$(hold_pid "$1")"
	wait_for 15 more_rounds "$1" "$n" && ! grep -q '[1-9][0-9]* broken' "${holding[$1]}"
}

more_rounds() { # ID COUNT
	[ "$(rounds_of "$1")" -gt "$2" ]
}

# Ends it and says whether each connection lived; its own words are the comment.
hold_down() { # ID CLAIM
	local pid
	pid=$(hold_pid "$1")
	kill "$pid"
	wait_for 30 hold_ended "$1"
	unset "background[$pid]" # the number may be another process's soon
	grep -q '^ok' "${holding[$1]}"
	result $? "$2"
	sed -n '/^ok/s/^/#   /p; /broken/s/^/#   /p' "${holding[$1]}"
}

hold_as() { # NAME HOLD-ARGUMENT...
	as_pod "$1" 1000 1000 "$PROGRAMS/hold" "${@:2}"
}

hold_from_world() { # NAME HOLD-ARGUMENT...
	in_world "$1" "$PROGRAMS/hold" "${@:2}"
}

echo_servers() { # NAME: beyond the redirected ones, on ports of their own
	# shellcheck disable=SC2046
	start_servers "$1" world-echo in_world "$1" "$PROGRAMS/reporter" --echo world-echo \
		$(on_ports tcp '0.0.0.0 [::]' '7000') &&
		start_servers "$1" app-echo as_pod "$1" 1000 1000 "$PROGRAMS/reporter" --echo app-echo \
			$(on_ports tcp '0.0.0.0 [::]' '7000')
}

scenario_live_connections() {
	local name=live-connections
	without_agent && return
	setting=()
	pod_up $name && world_servers $name && app_servers $name && echo_servers $name
	result $? "$name: a pod that is not enrolled"
	hold_up $name-out hold_as $name --idle 8 --busy 8 --label world-echo "$EXT4:7000" "$EXT6:7000" &&
		hold_up $name-in hold_from_world $name --idle 8 --busy 8 --label app-echo "$POD4:7000" "$POD6:7000" &&
		hold_up $name-self hold_as $name --idle 2 --busy 2 --label app-echo "$POD4:7000" 127.0.0.1:7000
	result $? "$name: has connections, out, in and to itself"
	with_proxy $name
	enrol $name
	result $? "$name: is enrolled"
	expect_redirection $name "as every enrolled pod"
	hold_goes_on $name-out && hold_goes_on $name-in && hold_goes_on $name-self
	result $? "$name: the earlier connections go on"
	expect "$name: applied once more" '"ok":true' agent_op $name add sockmesh.io/redirection=sidecar
	hold_goes_on $name-out && hold_goes_on $name-in
	result $? "$name: and go on"
	hold_down $name-out "$name: outbound, idle or busy, none broke"
	hold_down $name-in "$name: inbound, idle or busy, none broke"
	hold_down $name-self "$name: to itself, idle or busy, none broke"
	pod_down $name
}

# ---- packets that conntrack calls invalid ------------------------------------------------------------

# From outside, with a raw socket: on an open connection a segment far out of the window, then an
# ordinary one. Says whether the pod answered the first with a reset.
OUT_OF_WINDOW='
import select, socket, struct, sys
pod, client = "10.244.0.5", "10.244.0.1"
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
raw.setblocking(False)
tcp = socket.create_connection((pod, 8080), timeout=5)
port = tcp.getsockname()[1]
def line():
    text = b""
    while not text.endswith(b"\n"):
        text += tcp.recv(512)
line()
def received():
    while True:
        try:
            packet = raw.recv(2048)
        except BlockingIOError:
            return
        header = packet[(packet[0] & 15) * 4:]
        source, target, sequence, acknowledged, offset, flags = struct.unpack("!HHIIBB", header[:14])
        if (source, target) == (8080, port):
            yield sequence, acknowledged, flags, len(header) - (offset >> 4) * 4
for sequence, acknowledged, flags, length in received():
    last = (sequence + length) & 0xffffffff, acknowledged
def checksum(data):
    total = sum(struct.unpack("!%dH" % (len(data) // 2), data))
    while total >> 16:
        total = (total & 0xffff) + (total >> 16)
    return ~total & 0xffff
ours, theirs = (last[1] + 0x40000000) & 0xffffffff, last[0]
def segment(check):
    return struct.pack("!HHIIBBHHH", port, 8080, ours, theirs, 5 << 4, 0x10, 512, check, 0)
pseudo = socket.inet_aton(client) + socket.inet_aton(pod) + struct.pack("!HH", 6, 20)
raw.sendto(segment(checksum(pseudo + segment(0))), (pod, 0))
resets = 0
try:
    tcp.sendall(b"still there?")
    alive = tcp.recv(64) == b"still there?"
except OSError:
    alive = False
resets = sum(1 for packet in received() if packet[2] & 4)
print("resets=%d" % resets, "alive" if alive else "cut")
'

# Without the option NAT does not know such a packet: the pod itself answers, with a reset that
# ends the client's connection. The eBPF engine has no NAT, and with it the socket ignores it.
scenario_drop_invalid() {
	local name drop
	for drop in no yes; do
		name=drop-invalid-$drop
		setting=()
		[ "$ENGINE" = reference ] || own_agent $name --drop-invalid $drop || return
		fresh $name $name dropInvalid=$drop || return
		inbound_proxy $name separate --echo
		if [ $drop = yes ] || [ "$ENGINE" = ebpf ]; then
			expect "$name: an out-of-window segment is ignored" "resets=0 alive" \
				in_world $name python3 -c "$OUT_OF_WINDOW"
		else
			expect "$name: an out-of-window segment is answered with a reset" "resets=1 cut" \
				in_world $name python3 -c "$OUT_OF_WINDOW"
		fi
		pod_down $name
	done
}

# ---- the agent is killed while it writes ---------------------------------------------------------

# Runs COMMAND in the background and kills the agent that many microseconds later.
kill_during() { # AGENT MICROSECONDS COMMAND...
	local agent=$1 deadline pid
	deadline=$((${EPOCHREALTIME/./} + $2))
	shift 2
	"$@" >/dev/null 2>&1 &
	pid=$!
	while [ "${EPOCHREALTIME/./}" -lt "$deadline" ]; do
		:
	done
	agent_kill "$agent"
	ended "$pid" 30 || echo "not ok - $agent: what it was asked for ends when it is killed"
}

crash_points() { # microseconds from the request on, the first ones within a single apply
	case $SCALE in
	full) echo 0 300 600 900 1200 1500 2000 2500 3000 4000 5000 6000 8000 10000 13000 17000 25000 ;;
	*) echo 500 1500 3000 5000 8000 14000 ;;
	esac
}

crash_add() { # NAME: adds it with what is in `setting`
	agent_op "$1" add sockmesh.io/redirection=sidecar sockmesh.io/dns-capture=true \
		traffic.sidecar.istio.io/excludeOutboundPorts=9999,15020
}

scenario_crash() {
	local name=crash us clean
	without_agent && return
	own_agent $name || return
	setting=()
	pod_up $name $name && world_servers $name && app_servers $name && with_proxy $name
	expect "$name: a pod is added" '"ok":true' crash_add $name
	clean=$(netfilter_state $name)
	for us in $(crash_points); do
		agent_op $name del >/dev/null
		kill_during $name "$us" crash_add $name
		restarted $name
		expect "$name: add, $us us: the runtime's next try" '"ok":true' crash_add $name
		expect "$name: add, $us us: all is as planned" '"ok":true' check_ok $name
		same_state $name "$clean" && [ "$(ebpf_entries $name)" -le 1 ]
		result $? "$name: add, $us us: nothing is there twice"
		expect "$name: add, $us us: captured" label=outbound dial_as $name 1000 "$EXT4:80"
		kill_during $name "$us" agent_op $name del
		restarted $name
		expect "$name: del, $us us: the runtime's next try" '"ok":true' agent_op $name del
		expect_nothing_left $name "after a del, $us us"
		expect "$name: del, $us us: direct" label=world dial_as $name 1000 "$EXT4:80"
		crash_add $name >/dev/null
	done
	# Killed during an apply over what is there, under connections.
	for us in $(crash_points); do
		kill_during $name "$us" crash_add $name
		expect "$name: again, $us us: captured while no agent runs" label=outbound \
			dial_as $name 1000 "$EXT4:80"
		restarted $name
		expect "$name: again, $us us: all is as planned" '"ok":true' check_ok $name
	done
	agent_op $name del >/dev/null
	expect_nothing_left $name "at the end"
	pod_down $name
}

# ---- hundreds of pods at once ----------------------------------------------------------------------

churn_op() { # OP PREFIX COUNT: eight at a time
	seq "$3" | ENROL_TIMES=$work/churn-times xargs -P 8 -I '{}' "$PROGRAMS/enrol" "$work/run-churn" "$1" \
		"id-$2-{}" "/run/netns/$2-{}" "$2-{}" 10.244.0.5/24,fd00:10::5/64 \
		sockmesh.io/redirection=sidecar
}

churn_failures() { # FILE
	grep -cv '"ok":true' "$1"
}

churn_namespaces() { # add|del PREFIX COUNT
	seq -f "netns $1 $2-%g" "$3" | ip -batch -
}

# p50 and p99 in microseconds, of one operation.
churn_times() { # OP
	sort -n -k 2 "$work/churn-times" | awk -v op="$1" '
		$1 == op { t[n++] = $2 }
		END { printf "%s of %d pods, seen by the client: p50 %d us, p99 %d us\n", op, n, t[int(n / 2)],
			t[int(n * 99 / 100)] }'
}

resident_kb() { # AGENT
	awk '/^VmRSS/ { print $2 }' "/proc/${agent_pid[$1]}/status"
}

scenario_churn() {
	local count=40 op prefix i left=0 adding
	without_agent && return
	[ "$SCALE" != full ] || count=200
	own_agent churn || return
	churn_namespaces add churn-a $count && churn_namespaces add churn-b $count
	result $? "churn: twice $count namespaces"
	echo "# agent: $(resident_kb churn) kB resident before"
	churn_op add churn-a $count >"$work/churn-1"
	expect "churn: $count pods are added" 0 churn_failures "$work/churn-1"
	echo "# agent: $(resident_kb churn) kB resident with $count pods"
	churn_op add churn-b $count >"$work/churn-2" &
	adding=$!
	churn_op del churn-a $count >"$work/churn-3"
	ended $adding 120
	expect "churn: $count pods are added" 0 churn_failures "$work/churn-2"
	expect "churn: while $count others are removed" 0 churn_failures "$work/churn-3"
	churn_op check churn-b $count >"$work/churn-4"
	expect "churn: each is as planned" 0 churn_failures "$work/churn-4"
	churn_op del churn-b $count >"$work/churn-5"
	expect "churn: and is removed" 0 churn_failures "$work/churn-5"
	echo "# agent: $(resident_kb churn) kB resident after"
	for op in add check del; do
		echo "# $(churn_times $op)"
	done
	for prefix in churn-a churn-b; do
		for ((i = 1; i <= count; i++)); do
			pod_agent["$prefix-$i"]=$work/run-churn
			[ -z "$(netfilter_state "$prefix-$i")" ] || left=$((left + 1))
		done
	done
	[ "$left" = 0 ] && nothing_left churn-a-1 ebpf
	result $? "churn: nothing is left in any namespace"
	churn_namespaces del churn-a $count
	churn_namespaces del churn-b $count
}

# ---- which engine an agent takes -------------------------------------------------------------------

# It works with that engine, says so with the reason, and says so once in its log.
expect_choice() { # NAME ENGINE REASON
	local name=$1
	expect "$name: takes $2" "$2" status_field "$name" .engine
	expect "$name: says why" "$3" status_field "$name" .engineReason
	expect "$name: in one line of its log" 1 grep -c "engine=$2" "$work/agent-$name.log"
	fresh "$name" "$name" || return
	with_proxy "$name"
	expect_redirection "$name" "by $2"
	expect "$name: is one of $2" "\"$2\"" pod_field "$name" .engine
	pod_down "$name"
}

chooses() { # NAME ENGINE REASON [OPTION...]
	agent_mode[$1]=auto
	own_agent "$1" "${@:4}" && expect_choice "$1" "$2" "$3"
}

# One that cannot work ends with status 1 and one line.
cannot_start() { # NAME MODE REASON [OPTION...]
	local status
	agent_mode[$1]=$2
	agent_cgroup "$1"
	mkdir -p "$work/run-$1" "$work/bpf-$1"
	# shellcheck disable=SC2086 # a command and its options
	timeout 20 ${agent_through[$1]:-} "$BUILD_DIR/bin/sockmesh-agent" --run-dir "$work/run-$1" \
		--bpffs-dir "${agent_bpffs[$1]:-$work/bpf-$1}" --cgroup-root "$cgroup_base/$1" \
		--kubernetes off --mode "$2" "${@:4}" >"$work/agent-$1.log" 2>&1
	status=$?
	expect "$1: the agent ends with status 1" 1 echo $status
	expect "$1: and says why" "$3" tail -n 1 "$work/agent-$1.log"
}

scenario_choice() {
	only_for ebpf || return
	local denied=$PROGRAMS/denied
	chooses choice-all ebpf ebpf
	agent_through[choice-no-bpf]="$denied --bpf"
	chooses choice-no-bpf nftables "Operation not permitted"
	: >"$work/a-file"
	agent_bpffs[choice-no-bpffs]=$work/a-file/bpf
	chooses choice-no-bpffs nftables "a-file"
	mkdir "$work/no-cgroup"
	agent_cgroup_root[choice-no-cgroup]=$work/no-cgroup
	chooses choice-no-cgroup nftables cgroup
	agent_through[choice-memlock]="$denied --memlock 65536"
	chooses choice-memlock ebpf ebpf
	agent_through[choice-neither]="$denied --bpf --netfilter-netlink"
	chooses choice-neither iptables nftables
	agent_through[forced-ebpf]="$denied --bpf"
	cannot_start forced-ebpf ebpf "Operation not permitted"
	agent_through[forced-nftables]="$denied --netfilter-netlink"
	cannot_start forced-nftables nftables "Protocol not supported"
	agent_through[forced-iptables]="$denied --netfilter-netlink"
	cannot_start forced-iptables iptables "iptables" --iptables nft
}
