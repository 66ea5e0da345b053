# shellcheck shell=bash disable=SC2034,SC2154
# SPDX-License-Identifier: Apache-2.0
#
# A node's engine is changed while its pods are at work: every one of the six ways from one engine to
# another, under connections that stay open, connections that come and go, and the rows of the matrix.

# Every connection that a pod had when its engine was chosen, and what comes and goes meanwhile.
moves_hold() { # NAME GENERATION
	hold_up "$1-out-$2" hold_as "$1" --idle 6 --busy 6 --original --label outbound \
		"$EXT4:80" "$EXT6:80" 10.99.0.2:443 &&
		hold_up "$1-in-$2" hold_from_world "$1" --idle 6 --busy 6 --original --label inbound \
			"$POD4:8080" "$POD6:8080" &&
		moves_hold_self "$1" "$2"
}

# The proxy's own way to its pod; ztunnel's is a client's address and no proxy in between.
moves_hold_self() { # NAME GENERATION
	if is_ambient; then
		hold_up "$1-self-$2" as_ztunnel "$1" "$PROGRAMS/hold" "${FOR_CLIENTS[@]}" --idle 4 --busy 4 \
			--label app-echo "$POD4:7000" "$POD6:7000"
	else
		hold_up "$1-self-$2" hold_as_proxy "$1" --idle 2 --busy 2 --original --label inbound \
			"$POD4:8080" "$POD6:8080"
	fi
}

FOR_CLIENTS=(--mark 0x539 --source 10.99.1.1:0 --source '[fd00:99:1::1]:0')

hold_as_proxy() { # NAME HOLD-ARGUMENT...
	as_pod "$1" 1337 1337 "$PROGRAMS/hold" "${@:2}"
}

moves_release() { # NAME GENERATION WHEN
	hold_down "$1-out-$2" "$1: $3: outbound connections from before it, none broke"
	hold_down "$1-in-$2" "$1: $3: inbound connections from before it, none broke"
	hold_down "$1-self-$2" "$1: $3: the proxy's to its own pod from before it, none broke"
}

# Floods in both directions, in groups of which each is one line, until "moving" is gone.
moves_flood_up() { # NAME
	: >"$work/moving"
	moves_flood out as_pod "$1" 1000 1000 "$PROGRAMS/flood" --label outbound --count 20 \
		--concurrency 2 "$EXT4:80" "$EXT6:80" 10.99.0.2:443 &
	moves_flooding=($!)
	moves_flood in in_world "$1" "$PROGRAMS/flood" --label inbound --count 20 --concurrency 2 \
		"$POD4:8080" "$POD6:8080" "$POD4:9090" &
	moves_flooding+=($!)
	if is_ambient; then
		moves_flood self as_ztunnel "$1" "$PROGRAMS/flood" "${FOR_CLIENTS[@]}" --any-original \
			--label app-echo --count 20 --concurrency 2 "$POD4:7000" "$POD6:7000" &
	else
		moves_flood self as_pod "$1" 1337 1337 "$PROGRAMS/flood" --label inbound --count 20 \
			--concurrency 2 "$POD4:8080" "$POD6:8080" &
	fi
	moves_flooding+=($!)
	moves_flood_goes_on
}

moves_flood() { # WAY COMMAND...
	while [ -e "$work/moving" ]; do
		"${@:2}"
		pause 0.02 # not as many as there can be: others use this machine too
	done >"$work/moves-$1" 2>&1
}

# What conntrack remembers of connections that have ended, or that nobody answered, is forgotten soon: a test
# does not wait two minutes.
forget_soon() { # NAME
	# shellcheck disable=SC2016
	inside "$1" sh -c 'cd /proc/sys/net/netfilter && for state in time_wait fin_wait close_wait last_ack syn_sent; do
		echo 2 >nf_conntrack_tcp_timeout_$state; done
		echo 2 >nf_conntrack_udp_timeout; echo 2 >nf_conntrack_udp_timeout_stream'
}

moves_flood_goes_on() { # a group that begins after now ends, each way
	local way
	for way in out in self; do
		wait_for 20 has_lines $(($(wc -l 2>/dev/null <"$work/moves-$way" || echo 0) + 2)) \
			"$work/moves-$way" || return
	done
}

# Every connection was captured and knew what was dialled: none refused, none direct.
moves_flood_down() {
	local way pid
	rm "$work/moving"
	for pid in "${moves_flooding[@]}"; do
		ended "$pid" 60 || echo "not ok - moves: what came and went ends"
	done
	for way in out in self; do
		! grep -qv '^ok' "$work/moves-$way"
		result $? "moves: $way, $(($(wc -l <"$work/moves-$way") * 20)) connections came and went, each captured"
		grep -v '^ok' "$work/moves-$way" | sort -u | head -n 5 | sed 's/^/#   /'
	done
}

# shellcheck disable=SC2317 # wait_for calls it
has_moved() { # NAME ENGINE
	[ "$(pod_field "$1" .engine)" = "\"$2\"" ]
}

# The matrix's rows that are the same with every engine, again and again until "moving" is gone. Each
# pass ends with a line of its own.
moves_rows() { # NAME, and `setting`
	local rows=moving
	! is_ambient || rows=ambient-moving
	while [ -e "$work/moving" ]; do
		"$PROGRAMS/matrix" --file "$MATRIX" --pod $rows --engine any --pod-netns "/run/netns/$1" \
			--world-netns "/run/netns/$1-w" --cgroup "${pod_cgroup[$1]}"
		echo pass
	done >>"$work/moves-rows" 2>&1
}

passes() {
	grep -c '^pass' "$work/moves-rows"
}

more_passes() { # COUNT
	[ "$(passes)" -ge "$1" ]
}

moves_rows_up() { # NAME
	: >"$work/moves-rows"
	moves_rows "$1" &
	moves_flooding+=($!)
}

# What was not as it should be since line N; a pass that began after now has ended.
expect_rows() { # NAME WHAT LINE
	wait_for 60 more_passes $(($(passes) + 2))
	tail -n "+$3" "$work/moves-rows" | grep -v '^ok\|^pass' >"$work/moves-wrong"
	[ ! -s "$work/moves-wrong" ]
	result $? "$1: $2: $(tail -n "+$3" "$work/moves-rows" | grep -c '^ok') rows of the matrix meanwhile"
	head -n 12 "$work/moves-wrong" | sed 's/^/#   /'
}

# shellcheck disable=SC2317 # wait_for calls it
has_moved() { # NAME ENGINE
	[ "$(pod_field "$1" .engine)" = "\"$2\"" ]
}

moves_once() { # NAME FROM TO
	local line
	line=$(wc -l <"$work/moves-rows")
	agent_kill "$1"
	agent_mode[$1]=$3
	restarted "$1" --reconcile-seconds 1
	wait_for 20 has_moved "$1" "$3"
	result $? "$1: $2 to $3: the pod has moved"
	moves_flood_goes_on
	result $? "$1: $2 to $3: connections come and go"
	expect_rows "$1" "$2 to $3" $((line + 1))
}

moves_proxy() { # NAME, and `setting`
	local shape=${setting[listeners]:-separate}
	outbound_proxy "$1" "$shape" --echo --workers 2 && inbound_proxy "$1" "$shape" --echo --workers 2 &&
		dns_proxy "$1" || return
	! is_ambient || { tunnel_proxy "$1" "$shape" && echo_servers "$1"; }
}

# An agent that begins with eBPF, and a pod that is at work.
moves_up() { # NAME [SETTING=VALUE...]
	agent_mode[$1]=ebpf
	own_agent "$1" --reconcile-seconds 1 && fresh "$1" "$1" dns=on "${@:2}" || return
	forget_soon "$1"
	moves_proxy "$1" && moves_flood_up "$1" && moves_hold "$1" 0
	result $? "$1: connections stay open, others come and go"
	moves_rows_up "$1"
}

# The way round all three in both directions is each way from one to another once.
MOVES=(nftables iptables ebpf iptables nftables ebpf)

scenario_moves() {
	only_for ebpf || return
	moves_through_all moves
}

scenario_ambient_moves() {
	only_for ebpf || return
	moves_through_all ambient-moves ambient=yes listeners=dual
}

moves_through_all() { # NAME [SETTING=VALUE...]
	local name=$1 from=ebpf to generation=0
	moves_up "$@" || return
	for to in "${MOVES[@]}"; do
		moves_once "$name" "$from" "$to"
		moves_hold "$name" $((generation + 1))
		result $? "$name: $from to $to: new connections stay open"
		moves_release "$name" $generation "$from to $to"
		wait_for 60 nothing_left "$name" "$from"
		expect_nothing_left "$name" "$from to $to, when the last connection from before it has ended" "$from"
		expect "$name: $from to $to: nothing drains" '[]' pod_field "$name" '.draining // []'
		expect "$name: $from to $to: as planned" '"ok":true' check_ok "$name"
		from=$to generation=$((generation + 1))
	done
	expect "$name: a move is counted" 1 status_field "$name" .counters.moves
	moves_flood_down
	moves_release "$name" $generation "at the end"
	! is_ambient || expect "$name: its sysctls are eBPF's" "1 1 1" ambient_knobs "$name"
	pod_down "$name"
}

moves_points() { # milliseconds from an agent's start on
	case $SCALE in
	full) seq 20 20 400 && seq 450 50 1600 ;;
	*) echo 60 120 250 600 1100 ;;
	esac
}

# An agent that is killed at any moment of a move leaves both engines, or one and what is left of the
# other: whatever it is, every row is the same, and the next agent goes on from there.
scenario_moves_killed() {
	only_for ebpf || return
	moves_all_killed moves-killed
}

scenario_ambient_moves_killed() {
	only_for ebpf || return
	moves_all_killed ambient-moves-killed ambient=yes listeners=dual
}

moves_all_killed() { # NAME [SETTING=VALUE...]
	local name=$1 from=ebpf to ms line
	moves_up "$@" || return
	agent_kill "$name"
	for to in "${MOVES[@]}"; do
		line=$(wc -l <"$work/moves-rows")
		agent_mode["$name"]=$to
		for ms in $(moves_points); do
			agent_start "$name" --reconcile-seconds 1
			kill_during "$name" $((ms * 1000)) true
		done
		expect_rows "$name" "killed on the way from $from to $to" $((line + 1))
		restarted "$name" --reconcile-seconds 1
		wait_for 20 has_moved "$name" "$to"
		result $? "$name: $from to $to: the pod has moved after all"
		hold_goes_on "$name-out-0" && hold_goes_on "$name-in-0" && hold_goes_on "$name-self-0"
		result $? "$name: $from to $to: connections from before it all go on"
		from=$to
		agent_kill "$name"
	done
	restarted "$name"
	moves_flood_down
	moves_release "$name" 0 "at the end"
	pod_down "$name"
}

# Changes of mind: each agent is told another engine than the one that its predecessor had not done
# with, and ended in the middle of it or right behind it.
ROLLBACK=(nftables:0 ebpf:150 nftables:250 iptables:150 ebpf:0 iptables:0 ebpf:200 nftables:100 ebpf:0)

rollback_up() { # NAME
	agent_mode[$1]=$2
	own_agent "$1" && fresh "$1" "$1" dns=on || return
	forget_soon "$1"
	outbound_proxy "$1" separate --echo && inbound_proxy "$1" separate --echo && dns_proxy "$1" &&
		moves_hold "$1" 0 && moves_flood_up "$1"
	result $? "$1: connections stay open, others come and go"
}

rollback() { # NAME ENGINE:MILLISECONDS, or 0: until it has moved
	local ms=${2#*:}
	agent_mode[$1]=${2%:*}
	agent_start "$1"
	if [ "$ms" = 0 ]; then
		wait_for 20 has_moved "$1" "${2%:*}"
		result $? "$1: has moved to ${2%:*}"
		has_moved "$1" "${2%:*}" || sed 's/^/#   agent: /' "$work/agent-$1.log"
		agent_kill "$1"
	else
		kill_during "$1" $((ms * 1000)) true
	fi
}

scenario_rollback() {
	local name=rollback step
	only_for ebpf || return
	rollback_up $name ebpf || return
	agent_kill $name
	for step in "${ROLLBACK[@]}"; do
		rollback $name "$step"
	done
	restarted $name
	wait_for 20 has_moved $name ebpf
	result $? "$name: is where it was"
	moves_flood_goes_on
	moves_flood_down
	moves_release $name 0 "at the end"
	expect "$name: as planned" '"ok":true' check_ok $name
	pod_down $name
}

# In the pods, what writes the rules of IPv6 gets no further: those of IPv4 are there.
slow_programs() { # DIR
	local tool
	mkdir "$1"
	for tool in ip6tables-legacy ip6tables-nft; do
		cat >"$1/$tool-restore" <<-EOF
			#!/bin/sh
			PATH=$PATH
			ip -4 address | grep -q 10.244.0.5 || exec $tool-restore "\$@"
			exec cat $1/never
		EOF
		chmod +x "$1/$tool-restore"
	done
	mkfifo "$1/never"
}

has_jump() { # NAME
	[[ $(iptables_rules "$1") = *"-A OUTPUT -j SOCKMESH_NAT_OUTPUT"* ]]
}

# Then a third engine finds the rules of two others.
scenario_rollback_third() {
	local name=rollback-third
	only_for ebpf || return
	slow_programs "$work/slow" && rollback_up $name nftables || return
	agent_kill $name
	agent_mode["$name"]=iptables agent_through["$name"]="env PATH=$work/slow:$PATH"
	agent_start $name
	wait_for 10 has_jump $name
	result $? "$name: half of the rules of iptables are there"
	agent_kill $name
	! nothing_left $name nftables
	result $? "$name: and all of nftables"
	agent_mode["$name"]=ebpf agent_through["$name"]=
	restarted $name
	wait_for 20 has_moved $name ebpf
	result $? "$name: has moved to ebpf"
	moves_flood_goes_on
	moves_flood_down
	moves_release $name 0 "at the end"
	: <>"$work/slow/never" # whoever still waits for it ends
	pod_down $name
}
