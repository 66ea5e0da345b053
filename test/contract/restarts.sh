# shellcheck shell=bash disable=SC2034,SC2154
# SPDX-License-Identifier: Apache-2.0
#
# Scenarios of an agent's life: what it finds when it starts again, and what changes below it while
# it runs. Each has an agent of its own, so that the other tests' agent is left alone.

own_agent() { # NAME [OPTION...]
	agent_up "$@" && return
	echo "not ok - $1: the agent starts"
	return 1
}

restarted() { # NAME [OPTION...]
	agent_up "$@"
	result $? "$1: the agent starts again"
}

with_proxy() { # NAME: both proxies
	outbound_proxy "$1" separate && inbound_proxy "$1" separate
}

check_ok() { # NAME: the agent finds everything of the pod as it should be
	agent_op "$1" check
}

becomes_captured() { # NAME
	dial_as "$1" 1000 "$EXT4:80" | grep -q label=outbound
}

# An address that the pod gives up while no agent runs is a stranger's afterwards: the next one to
# have it is not trusted, and the pod's own connections to it are captured.
scenario_address_gone() {
	local name=address-gone
	without_agent && return
	own_agent $name || return
	fresh $name $name || return
	with_proxy $name
	ip -n $name address add 10.244.0.77/24 dev eth0
	wait_for 5 check_ok $name
	result $? "$name: a further address is known"
	expect "$name: and is the pod's own" label=app dial_as $name 1000 10.244.0.77:8080
	agent_kill $name
	ip -n $name address del 10.244.0.77/24 dev eth0
	restarted $name
	ip -n $name-w address add 10.244.0.77/24 dev w0
	ip -n $name-w route add "$POD4/32" dev w0 src 10.244.0.77
	expect "$name: a client that has it now reaches the proxy" \
		"label=inbound" dial_from_world $name "$POD4:8080"
	expect "$name: as the address that it is" "peer=10.244.0.77:" dial_from_world $name "$POD4:8080"
	expect "$name: and is dialled through the proxy" "label=outbound odst4=16:10.244.0.77:80" \
		dial_as $name 1000 10.244.0.77:80
	pod_down $name
}

# An address that two interfaces have is still the pod's own when one of them loses it.
scenario_address_twice() {
	local name=address-twice
	without_agent && return
	fresh $name || return
	with_proxy $name
	ip -n $name -batch - <<-'BATCH'
		link add d0 type veth peer name d1
		link set d0 up
		address add 10.244.0.88/32 dev d0
		address add 10.244.0.88/32 dev eth0
	BATCH
	wait_for 5 check_ok $name
	result $? "$name: both are known"
	# The agent has heard of the first change when it knows the second.
	ip -n $name -batch - <<-'BATCH'
		address del 10.244.0.88/32 dev d0
		address add 10.244.0.89/32 dev d0
	BATCH
	wait_for 5 check_ok $name
	result $? "$name: the one that is left is known too"
	expect "$name: and is the pod's own" label=app dial_as $name 1000 10.244.0.88:8080
	pod_down $name
}

remake_cgroup() { # DIR
	wait_for 5 rmdir "$1" && mkdir "$1"
}

# What a kubelet that starts over does: no program is attached to the new cgroup by itself.
scenario_cgroup_again() {
	local before=cgroup-again-before after=cgroup-again-after dir=$cgroup_base/cgroup-again/kubepods
	only_for ebpf || return
	agent_pods[cgroup-again]=$dir
	agent_cgroup cgroup-again && make_cgroup "$dir" && own_agent cgroup-again || return
	fresh $before cgroup-again || return
	outbound_proxy $before separate
	expect "$before: captured" label=outbound dial_as $before 1000 "$EXT4:80"
	stop_servers $before.app
	stop_servers $before.outbound
	remake_cgroup "$dir"
	result $? "cgroup-again: the pods' cgroup is made again"
	outbound_proxy $before separate
	wait_for 15 becomes_captured $before
	result $? "$before: captured again with the next look, every ten seconds"
	stop_servers $before.outbound
	remake_cgroup "$dir"
	result $? "cgroup-again: and again"
	fresh $after cgroup-again || return
	outbound_proxy $after separate
	expect "$after: a pod that is enrolled then is captured at once" label=outbound \
		dial_as $after 1000 "$EXT4:80"
	expect "cgroup-again: which is logged" "attached again" cat "$work/agent-cgroup-again.log"
	pod_down $before
	pod_down $after
}

sorted_map() { # AGENT MAP
	map_values "$1" "$2" | jq -cS '[.[] | {key, value}] | sort'
}

map_put() { # AGENT MAP KEY-BYTES
	local pin
	pin=$(find "$work/bpf-$1" -name "$2" -print -quit)
	# shellcheck disable=SC2086 # bytes
	bpftool map update pinned "$pin" key hex $3 value hex ff 00 00 00
}

# Sets that an apply wrote before it was killed belong to no pod, until one is given their number.
scenario_leftovers() {
	local first=leftovers-first second=leftovers-second id map last
	local -A live
	only_for ebpf || return
	own_agent leftovers || return
	fresh $first leftovers excludeOutboundPorts=9999 excludeOutboundIPRanges=10.99.0.2/32 || return
	outbound_proxy $first separate
	# What the self-test's pods had is kept for some seconds yet, but not over a restart.
	agent_kill leftovers
	restarted leftovers
	for map in id_sets port_sets prefix_sets; do
		live[$map]=$(sorted_map leftovers $map)
		[ "${live[$map]}" != "[]" ]
		result $? "leftovers: the pod has entries in $map"
	done
	agent_kill leftovers
	# The numbers that come next, and one far away: uid 1000 the proxy's, port 443 and 10.99.0.1
	# in every set. A prefix's number is twice the policy's, plus one for IPv4.
	last=$(map_values leftovers id_sets | jq '[.[].formatted.key.policy] | max')
	for id in $(seq $((last + 1)) $((last + 8))) 77; do
		id=$(printf '%02x 00 00 00' "$id")
		map_put leftovers id_sets "$id e8 03 00 00"
		map_put leftovers port_sets "$id bb 01 00 00"
		map_put leftovers prefix_sets "a0 00 00 00 $(printf '%02x' $((16#${id%% *} * 2 + 1))) 00 00 00 \
			00 00 00 00 00 00 00 00 00 00 ff ff 0a 63 00 01"
	done
	restarted leftovers
	for map in id_sets port_sets prefix_sets; do
		expect "leftovers: $map has what the pod needs, and nothing else" "${live[$map]}" \
			sorted_map leftovers $map
	done
	expect "$first: an excluded port is direct" label=world dial_as $first 1000 "$EXT4:9999"
	expect "$first: an excluded prefix is direct" label=world dial_as $first 1000 10.99.0.2:80
	fresh $second leftovers || return
	outbound_proxy $second separate
	expect "$second: is captured whatever was left under its number" label=outbound \
		dial_as $second 1000 "$EXT4:443"
	pod_down $first
	pod_down $second
}

# Connects again and again until it is told to end: a line for each, when and whom it reached.
TRAFFIC='
import os, signal, socket, sys, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
print("pid", os.getpid(), flush=True)
while True:
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=3) as s:
            reached = s.recv(4096).decode().split(" ")[0] or "nobody"
    except OSError as e:
        reached = type(e).__name__
    print(time.monotonic_ns() // 1000000, reached, flush=True)
    time.sleep(0.002)
'

traffic_up() { # NAME
	rm -f "$work"/traffic-*
	as_pod "$1" 1000 1000 python3 -c "$TRAFFIC" "$EXT4" 80 >"$work/traffic-outbound" &
	traffic=($!)
	in_world "$1" python3 -c "$TRAFFIC" "$POD4" 8080 >"$work/traffic-inbound" &
	traffic+=($!)
	traffic_goes_on
}

traffic_down() {
	local pid
	kill "$(awk '/^pid/ { print $2 }' "$work/traffic-outbound")" \
		"$(awk '/^pid/ { print $2 }' "$work/traffic-inbound")"
	for pid in "${traffic[@]}"; do
		ended "$pid" 20 || echo "not ok - the traffic ends"
	done
}

has_lines() { # COUNT FILE
	[ "$(wc -l <"$2")" -ge "$1" ]
}

# As many connections as there can be, in groups, until the file "flooding" is gone.
flood_up() { # COMMAND...: a flood of a thousand
	: >"$work/flooding"
	while [ -e "$work/flooding" ]; do
		"$@"
	done >"$work/flood" 2>&1 &
	flood=$!
	wait_for 10 grep -q "ok 1000" "$work/flood"
}

flood_goes_on() { # a group that began after now has ended
	wait_for 10 has_lines $(($(wc -l <"$work/flood") + 2)) "$work/flood"
}

flood_down() { # true when each one reached the proxy
	rm "$work/flooding"
	ended "$flood" 60 || return
	! grep -v "ok 1000" "$work/flood" | sort -u | head -n 5 | sed 's/^/#   /' | grep .
}

traffic_goes_on() { # thirty connections from now on, each way
	local way n
	for way in outbound inbound; do
		n=0
		[ ! -e "$work/traffic-$way" ] || n=$(wc -l <"$work/traffic-$way")
		wait_for 10 has_lines $((n + 30)) "$work/traffic-$way" || return
	done
}

# Whom connections reached other than whom they should, and the longest time in ms without one.
traffic_report() { # outbound | inbound
	awk -v want="label=$1" '
		$1 == "pid" { next }
		$2 == want { if (last && $1 - last > gap) gap = $1 - last; last = $1; next }
		$2 ~ /^label=/ || $2 == "nobody" { wrong++ }
		END { print "wrong=" wrong + 0, gap < 3000 ? "steady" : "gap=" gap }
	' "$work/traffic-$1"
}

map_directories() { # AGENT
	find "$work/bpf-$1" -maxdepth 1 -name 'maps-v*' -printf '%f\n' | sort | xargs
}

only_new_maps() { # AGENT
	[ -n "$(map_directories "$1")" ] && [[ $(map_directories "$1") != *maps-v0* ]]
}

# As a release with another layout of the maps finds them.
maps_become_old() { # AGENT
	mv "$work/bpf-$1/$(map_directories "$1")" "$work/bpf-$1/maps-v0"
}

scenario_new_maps() {
	local name=new-maps way
	only_for ebpf || return
	own_agent $name || return
	fresh $name $name || return
	outbound_proxy $name separate && inbound_proxy $name separate --echo
	traffic_up $name && flood_up flood_from_world $name inbound 1000 "$POD4:8080"
	result $? "$name: connections come and go"
	agent_kill $name
	maps_become_old $name
	restarted $name
	wait_for 10 only_new_maps $name
	result $? "$name: the old maps are gone"
	traffic_goes_on
	result $? "$name: connections come and go with the new maps"
	traffic_down
	flood_down
	result $? "$name: a flood of inbound connections, every one reached the proxy"
	for way in outbound inbound; do
		expect "$name: $way, every one reached the proxy" "wrong=0 steady" traffic_report $way
	done
	expect "$name: the agent finds nothing to complain of" '"ok":true' check_ok $name
	stop_servers $name.inbound
	inbound_proxy $name separate
	expect_redirection $name "with the new maps"
	pod_down $name
}

# Then nobody can tell the new maps which pods there are: the old programs must go on until those
# pods have ended, and no other pod can be promised anything.
scenario_new_maps_no_state() {
	local name=new-maps-no-state next=new-maps-next way
	only_for ebpf || return
	own_agent $name || return
	fresh $name $name || return
	with_proxy $name
	traffic_up $name
	result $? "$name: connections come and go"
	agent_kill $name
	maps_become_old $name
	rm "$work/run-$name/state.json"
	restarted $name
	wait_for 5 grep -q "earlier agent's programs stay" "$work/agent-$name.log"
	result $? "$name: the agent says why it does not replace the programs"
	traffic_goes_on
	result $? "$name: connections come and go"
	traffic_down
	for way in outbound inbound; do
		expect "$name: $way, every one reached the proxy" "wrong=0 steady" traffic_report $way
	done
	expect_redirection $name "by the earlier agent's programs"
	setting=()
	pod_up $next $name
	expect "$next: a pod is refused rather than let past its proxy" '"retry":true' enrol $next
	pod_down $name
	wait_for 60 enrol $next
	result $? "$next: and redirected once the unknown pod has ended"
	enrolled $next || sed 's/^/#   /' "$work/answer"
	only_new_maps $name
	result $? "$next: with the new maps alone"
	world_servers $next && app_servers $next && with_proxy $next
	expect_redirection $next "after all"
	pod_down $next
}

# The runtime that brings the unknown pod itself, or takes it away, ends the matter at once.
scenario_new_maps_unknown_pod() {
	local name=new-maps-unknown next=new-maps-other op way
	only_for ebpf || return
	own_agent $name || return
	for op in add del; do
		fresh $name $name || return
		with_proxy $name
		agent_kill $name
		maps_become_old $name
		rm "$work/run-$name/state.json"
		restarted $name
		wait_for 5 grep -q "earlier agent's programs stay" "$work/agent-$name.log"
		result $? "$name: an earlier agent's programs stay, before its $op"
		[ $op = del ] || traffic_up $name
		expect "$name: its own $op is accepted" '"ok":true' agent_op $name $op \
			sockmesh.io/redirection=sidecar
		wait_for 15 only_new_maps $name
		result $? "$name: then the new maps are there alone"
		if [ $op = add ]; then
			traffic_goes_on
			result $? "$name: connections come and go over its add"
			traffic_down
			for way in outbound inbound; do
				expect "$name: $way, every one reached the proxy" "wrong=0 steady" \
					traffic_report $way
			done
			expect_redirection $name "after its own add"
		else
			rm "$work/enrolled-$name"
			expect "$name: is then reached directly" label=app dial_from_world $name "$POD4:8080"
		fi
		fresh $next $name && pod_down $next
		pod_down $name
	done
}

node_and_pod_are_idle() { # AGENT
	[ "$(map_values "$1" gauges | jq -c '[.[].formatted.value.handovers]')" = "[0,0]" ] &&
		[ "$(map_entries "$1" handovers)" = 0 ]
}

# Maps of another size take over what the old ones had, but for hand-overs: those that are on their
# way at that moment must not count for ever, nor count below nothing.
scenario_sizes() {
	local name=sizes options=()
	only_for ebpf || return
	own_agent $name --max-pods 50 --max-handovers 1000 --max-handovers-per-pod 500 || return
	fresh $name $name || return
	with_proxy $name
	for options in "--max-pods 60 --max-handovers 1000" "--max-pods 60 --max-handovers 2000" \
		"--max-pods 70 --max-handovers 3000"; do
		deafen $name
		pending_up $name 5
		expect "$name: hand-overs are on their way" "EINPROGRESS=5" cat "$work/pending-$name"
		agent_kill $name
		# shellcheck disable=SC2086 # options
		restarted $name --max-handovers-per-pod 500 $options
		expect "$name: the agent finds nothing to complain of" '"ok":true' check_ok $name
		pending_down $name
		inside $name nft delete table ip deaf
		expect_redirection $name "with $options"
		wait_for 5 node_and_pod_are_idle $name
		result $? "$name: nothing counts as taken with $options"
		node_and_pod_are_idle $name || map_values $name gauges | jq -c '[.[].formatted]' | sed 's/^/#   /'
	done
	pod_down $name
}

# While an agent moves its programs to another cgroup, both copies are attached for a moment.
scenario_attached_twice() {
	local name=attached-twice link id type dir=$cgroup_base/attached-twice/kubepods
	only_for ebpf || return
	agent_pods["$name"]=$dir
	agent_cgroup $name && make_cgroup "$dir" && own_agent $name || return
	fresh $name $name dns=on || return
	with_proxy $name
	dns_proxy $name
	for link in "$work/bpf-$name"/links/*; do
		read -r id type <<<"$(bpftool -j link show pinned "$link" |
			jq -r '"\(.prog_id) \(.attach_type)"')"
		bpftool cgroup attach "${dir%/*}" "$type" id "$id" multi
		result $? "$name: ${link##*/} is attached a second time"
	done
	expect_redirection $name "past two copies"
	expect "$name: a DNS answer comes from the server that was asked" "from=10.99.0.53:53" \
		as_pod $name 1000 1000 python3 -c "$ASK" 4 10.99.0.53
	expect "$name: a proxy that dials its own port learns so" "odst4=16:$POD4:15001" \
		dial_as $name 1000 "$POD4:15001"
	pod_down $name
}

links_are_on() { # AGENT DIR
	local inode
	inode=$(stat -c %i "$2")
	for link in "$work/bpf-$1"/links/*; do
		[ "$(bpftool -j link show pinned "$link" | jq .cgroup_id)" = "$inode" ] || return
	done
}

# The programs move from one cgroup of the pods to another while connections come and go.
scenario_links_move() {
	local name=links-move outer=$cgroup_base/links-move inner=$cgroup_base/links-move/inner dir
	only_for ebpf || return
	agent_pods["$name"]=$inner/pods
	agent_cgroup $name && make_cgroup "$inner" && make_cgroup "$inner/pods" || return
	own_agent $name || return
	fresh $name $name || return
	outbound_proxy $name separate --echo
	flood_up flood_as $name 1000 --label outbound --count 1000 --concurrency 16 \
		"$EXT4:80" "$EXT6:80" 10.99.0.2:443
	result $? "$name: connections come and go"
	for dir in "$inner" "$outer" "$inner" "$outer"; do
		agent_kill $name
		restarted $name --cgroup-root "$dir"
		wait_for 5 links_are_on $name "$dir"
		result $? "$name: the programs are on the pods' ${dir##*/} cgroup"
		flood_goes_on
		result $? "$name: connections come and go there"
	done
	flood_down
	result $? "$name: every connection reached the proxy, which knows what was dialled"
	pod_down $name
}

# Nobody can name the pod, and its programs must go on although the agent uses another engine.
scenario_state_lost() {
	local name=state-lost witness=state-lost-witness
	only_for ebpf || return
	agent_mode["$name"]=ebpf
	own_agent $name || return
	fresh $name $name || return
	with_proxy $name
	agent_kill $name
	rm "$work/run-$name/state.json"
	agent_mode["$name"]=nftables
	restarted $name --reconcile-seconds 1
	expect_redirection $name "by programs of an agent whose state is lost"
	fresh $witness $name || return
	round_passes $witness nftables_deleted
	result $? "$name: the agent goes on with nftables"
	expect_redirection $name "still"
	pod_down $witness
	pod_down $name
}

# Every program that lists rules fails, as it does when the kernel is busy.
silent_programs() { # DIR
	local tool
	mkdir "$1"
	for tool in "${IPTABLES_TOOLS[@]}"; do
		printf '#!/bin/sh\necho "Resource temporarily unavailable" >&2\nexit 4\n' >"$1/$tool-save"
		chmod +x "$1/$tool-save"
	done
}

# What redirects the pod cannot be found out for once: that is no reason to forget it.
scenario_engine_silent() {
	local name=engine-silent how
	local -A path=([silent]=$work/silent:$PATH [absent]=$work/absent)
	only_for iptables || return
	silent_programs "$work/silent" && own_agent $name && fresh $name $name || return
	with_proxy $name
	# Of legacy only tables can be seen without its programs, which need not be ours.
	[[ $(iptables_tool $name) = *-nft ]] || unset 'path[absent]'
	for how in "${!path[@]}"; do
		agent_kill $name
		agent_mode["$name"]=nftables agent_through["$name"]="env PATH=${path[$how]}"
		restarted $name
		expect "$name: $how programs: the pod is kept" "kept as it was" pod_field $name .reason
		expect_redirection $name "with $how programs"
		nothing_left $name nftables
		result $? "$name: $how programs: by one engine"
		agent_kill $name
		agent_mode["$name"]=iptables agent_through["$name"]=
		restarted $name
		expect "$name: $how programs: then all is as planned" '"ok":true' check_ok $name
	done
	expect "$name: is removed" '"ok":true' agent_op $name del
	expect_nothing_left $name "then"
	rm "$work/enrolled-$name"
	pod_down $name
}

# Whoever may make a user namespace may make one of these: they are no pods of the node's.
lookalike_up() { # NAME MODEL AGENT
	pod_up "$1" "$3" 100000 && nftables_rules "$2" | "$PROGRAMS/as" --userns "/run/netns/$1.user" \
		--netns "/run/netns/$1" --uid 0 --gid 0 nft -f -
}

scenario_lookalikes() {
	local name=lookalikes i
	only_for nftables || return
	own_agent $name --max-pods 2 && fresh $name $name || return
	for i in 1 2 3; do
		lookalike_up $name-$i $name $name
		result $? "$name: a namespace is made like the pod's, $i"
	done
	agent_kill $name
	restarted $name --max-pods 2
	fresh $name-pod $name && pod_down $name-pod
	result $? "$name: the node has room for its second pod"
	expect "$name: the first is as planned" '"ok":true' check_ok $name
	for i in 1 2 3; do
		pod_down $name-$i
	done
	pod_down $name
}
