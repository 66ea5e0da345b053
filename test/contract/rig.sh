# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# Pods for the contract test. A pod is a network namespace NAME whose eth0 leads to a namespace
# NAME-w, its world: the node's end of the veth and every external server. Both have the same
# addresses whatever the pod (matrix.txt and matrix.c name them), so each pod has a world of its own.
#
# Expects to run in a private mount namespace: names are mounts under a private /run/netns, and
# whatever is pinned in a private bpffs goes with it.

BUILD_DIR=$(realpath -- "${BUILD_DIR:-build}")
ENGINE=${ENGINE:-ebpf}
IPTABLES=${IPTABLES:-auto}
PROGRAMS=$BUILD_DIR/test/contract
MATRIX=${MATRIX:-$(dirname "${BASH_SOURCE[0]}")/matrix.txt}

declare -A setting         # of the pod that pod_settings read last
declare -A servers         # NAME.KIND: process group of those servers
declare -A pod_cgroup      # NAME: where its processes run
declare -A pod_agent       # NAME: run directory of the agent that has it
declare -A agents=()       # by process id, while they run
declare -a cgroups=()      # removed at the end, last first
declare -A background=()   # by process id: whatever else must not outlive the test

# shellcheck source=test/lib/processes.sh
. "$(dirname "${BASH_SOURCE[0]}")/../lib/processes.sh"
# shellcheck source=test/contract/reference.sh
. "$(dirname "${BASH_SOURCE[0]}")/reference.sh"

rig_up() {
	local cgroup2
	work=$(mktemp -d /tmp/sockmesh-contract.XXXXXX)
	mkdir -p /run/netns
	mount -t tmpfs -o mode=0755 netns /run/netns
	cgroup2=$(awk '{ for (i = 7; i < NF; i++) if ($i == "-" && $(i + 1) == "cgroup2") { print $5; exit } }' \
		/proc/self/mountinfo)
	cgroup_base=$cgroup2/sockmesh-test-$$
	kubelet_cgroup=$cgroup_base/kubelet # of the process that stands for kubelet
}

rig_down() {
	trap "" INT TERM HUP # whoever ends us tells the whole process group, more than once
	local id dir
	for id in "${!servers[@]}"; do
		stop_servers "$id"
	done
	rm -f "$work/moving" "$work/flooding" # what goes on until they are gone
	for id in "${!background[@]}"; do
		kill -9 "$id" 2>/dev/null
	done
	for id in "${!agents[@]}"; do
		kill "$id" 2>/dev/null
		ended "$id" 10
	done
	# What they have in the namespace that the machine itself is in ends with nothing else.
	for dir in "$work"/run-*; do
		[ -d "$dir" ] || continue
		id=${dir##*/run-}
		"$BUILD_DIR/bin/sockmesh-agent" --uninstall --run-dir "$dir" \
			--bpffs-dir "${agent_bpffs[$id]:-$work/bpf-$id}" >/dev/null 2>&1
	done
	for id in "${!pod_cgroup[@]}"; do
		ip netns del "$id" 2>/dev/null
		ip netns del "$id-w" 2>/dev/null
		ip netns del "$id-g" 2>/dev/null
		ip netns del "$id-p" 2>/dev/null
	done
	for ((id = ${#cgroups[@]} - 1; id >= 0; id--)); do
		dir=${cgroups[id]}
		wait_for 2 rmdir "$dir" 2>/dev/null || echo "# $dir stays behind" >&2
	done
	umount /run/netns
	for dir in "$work"/bpf-*; do
		! mountpoint -q "$dir" || umount "$dir" # and with it every pinned link
	done
	rm -rf --one-file-system "$work"
}

# SOCKMESH_TEST_PATIENCE: how many times slower than hardware this machine is, when it is emulated.
wait_for() { # SECONDS COMMAND...
	local deadline=$((${EPOCHREALTIME/./} + $1 * 1000000 * ${SOCKMESH_TEST_PATIENCE:-1}))
	shift
	until "$@" >/dev/null 2>&1; do
		[ "${EPOCHREALTIME/./}" -lt "$deadline" ] || return 1
		pause 0.02
	done
}

make_cgroup() { # DIR
	mkdir "$1" && cgroups+=("$1") && return
	echo "not ok - there is a cgroup ${1##*/}"
	return 1
}

# ---- agents ------------------------------------------------------------------------------------

# The processes of this agent's pods belong into its cgroup.
agent_start() { # NAME [OPTION...]
	local name=$1 through=() mode=${agent_mode[$1]:-$ENGINE}
	read -ra through <<<"${agent_through[$name]:-}"
	[ -d "$cgroup_base" ] || make_cgroup "$cgroup_base" || return
	[ -d "$cgroup_base/$name" ] || agent_cgroup "$name" || return
	mkdir -p "$work/run-$name" "$work/bpf-$name"
	"${through[@]}" "$BUILD_DIR/bin/sockmesh-agent" --run-dir "$work/run-$name" \
		--bpffs-dir "${agent_bpffs[$name]:-$work/bpf-$name}" \
		--cgroup-root "${agent_cgroup_root[$name]:-$cgroup_base/$name}" --kubernetes off \
		--mode "$mode" --iptables "$IPTABLES" --accelerate off \
		--kubelet-cgroup "$kubelet_cgroup" --ztunnel-socket "$work/zds-$name.sock" \
		"${@:2}" >"$work/agent-$name.log" 2>&1 &
	agents[$!]=$name
	agent_pid[$name]=$!
	zds_start "$name"
}

# What ztunnel says to this agent, now and to the ones after it. The listeners are the pods' own.
zds_start() { # NAME
	[ -z "${zds_pid[$1]:-}" ] || return 0
	"$PROGRAMS/zds_ack" --again "$work/zds-$1.sock" >/dev/null 2>&1 &
	zds_pid[$1]=$!
	background[$!]=zds
}

zds_is_ready() { # NAME
	"$PROGRAMS/enrol" "$work/run-$1" status | grep -q '"ready":1'
}

agent_answers() { # NAME
	"$PROGRAMS/enrol" "$work/run-$1" status | grep -q '"ok":true'
}

agent_up() { # NAME [OPTION...]; returns when it answers
	local ready=zds_is_ready
	case " $* " in *" --ztunnel node "*) ready=agent_answers ;; esac # it tells no ztunnel anything
	agent_start "$@" || return
	wait_for 10 $ready "$1" || {
		sed 's/^/# agent: /' "$work/agent-$1.log"
		return 1
	}
}
declare -A agent_pid
declare -A zds_pid
declare -A agent_pods        # NAME: where its pods' processes run, if not in its cgroup's child "pods"
declare -A agent_mode        # NAME: --mode, if it is not the engine that is tested
declare -A agent_through     # NAME: the command that runs it (denied, with its options)
declare -A agent_bpffs       # NAME: --bpffs-dir, if it is not its own directory
declare -A agent_cgroup_root # NAME: --cgroup-root, if it is not its own cgroup

agent_cgroup() { # NAME
	[ -d "$cgroup_base" ] || make_cgroup "$cgroup_base"
	[ -d "$kubelet_cgroup" ] || make_cgroup "$kubelet_cgroup"
	make_cgroup "$cgroup_base/$1" && make_cgroup "$cgroup_base/$1/pods"
}

agent_kill() { # NAME
	local pid=${agent_pid[$1]}
	kill -9 "$pid"
	ended "$pid" 20 || echo "not ok - $1: the agent ends when it is killed"
	unset "agents[$pid]" # the number may be another process's soon
}

# What a map of this agent holds, as JSON.
map_values() { # AGENT MAP
	local pin
	pin=$(find "$work/bpf-$1" -name "$2" -print -quit)
	[ -n "$pin" ] || {
		echo "no pin is called $2"
		return 1
	}
	bpftool map dump pinned "$pin" -j
}

map_entries() { # AGENT MAP
	map_values "$1" "$2" | jq length
}

# ---- namespaces --------------------------------------------------------------------------------

inside() { # NETNS COMMAND...
	local netns=$1
	shift
	"$PROGRAMS/as" --netns "/run/netns/$netns" "$@"
}

as_pod() { # NAME UID GID COMMAND...
	local name=$1 uid=$2 gid=$3 userns=()
	shift 3
	[ ! -e "/run/netns/$name.user" ] || userns=(--userns "/run/netns/$name.user")
	"$PROGRAMS/as" --cgroup "${pod_cgroup[$name]}" "${userns[@]}" --netns "/run/netns/$name" \
		--uid "$uid" --gid "$gid" --net-admin "${net_admin:-no}" "$@"
}

# ztunnel: a process of the node, in the pod's network namespace.
as_ztunnel() { # NAME COMMAND...
	"$PROGRAMS/as" --cgroup "${pod_cgroup[$1]}" --netns "/run/netns/$1" --uid 0 --gid 1337 \
		--net-admin yes "${@:2}"
}

in_world() { # NAME COMMAND...
	inside "$1-w" "${@:2}"
}

as_kubelet() { # NAME COMMAND...
	"$PROGRAMS/as" --cgroup "$kubelet_cgroup" --netns "/run/netns/$1-w" "${@:2}"
}

make_namespaces() { # NAME [SHIFT]
	ip netns add "$1-w"
	if [ -n "${2:-}" ]; then
		: >"/run/netns/$1.user"
		"$PROGRAMS/as" --make "$2" "/run/netns/$1.user" "/run/netns/$1"
	else
		ip netns add "$1"
	fi
}

pod_up() { # NAME [AGENT [SHIFT]]
	local name=$1 agent=${2:-main}
	[ -d "$cgroup_base/$agent/pods" ] || agent_cgroup "$agent" || return
	pod_cgroup[$name]=${agent_pods[$agent]:-$cgroup_base/$agent/pods}
	pod_agent[$name]=$work/run-$agent
	make_namespaces "$name" "${3:-}"
	# shellcheck disable=SC2016
	inside "$name" sh -c 'cd /proc/sys/net && echo 0 >ipv4/ip_unprivileged_port_start &&
		echo 0 >ipv6/conf/default/accept_dad && echo 0 >ipv6/conf/all/disable_ipv6'
	in_world "$name" sh -c 'cd /proc/sys/net && echo 0 >ipv6/conf/default/accept_dad'
	ip -n "$name-w" -batch - <<-BATCH
		link set lo up
		link add w0 type veth peer name eth0 netns $name
		link set w0 up
		address add 10.244.0.1/24 dev w0
		address add fd00:10::1/64 dev w0 nodad
		$(printf 'address add %s dev lo\n' 10.99.0.{1,2,53,54,55}/32 10.99.1.1/32)
		$(printf 'address add %s dev lo nodad\n' fd00:99::{1,2,53,54,55}/128 fd00:99:1::1/128)
		address add 169.254.7.127/32 dev lo
		address add fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128 dev lo nodad
	BATCH
	ip -n "$name" -batch - <<-BATCH
		link set lo up
		link set eth0 up
		address add 10.244.0.5/24 dev eth0
		address add fd00:10::5/64 dev eth0 nodad
		route add default via 10.244.0.1
		route add default via fd00:10::1
	BATCH
}

# A new namespace BEHIND, whose way to all else is a link to NETNS. On the link NETNS has PREFIX4.1 and
# PREFIX6::1, and with the mode none no link-local address; BEHIND has those that end in 2.
behind_up() { # NETNS DEVICE BEHIND DEVICE PREFIX4 PREFIX6 [ADDRGENMODE]
	ip netns add "$3"
	inside "$1" sh -c 'cd /proc/sys/net && echo 1 >ipv4/ip_forward &&
		echo 1 >ipv6/conf/all/forwarding'
	inside "$3" sh -c 'echo 0 >/proc/sys/net/ipv6/conf/default/accept_dad'
	ip -n "$1" -batch - <<-BATCH
		link add $2 type veth peer name $4 netns $3
		link set $2 addrgenmode ${7:-eui64}
		link set $2 up
		address add $5.1/24 dev $2
		address add $6::1/64 dev $2 nodad
	BATCH
	ip -n "$3" -batch - <<-BATCH
		link set lo up
		link set $4 up
		address add $5.2/24 dev $4
		address add $6::2/64 dev $4 nodad
		route add default via $5.1
		route add default via $6::1
	BATCH
}

# Namespace NAME-g is behind the pod's interface k0, as a virtual machine's is in a KubeVirt pod.
guest_up() { # NAME
	behind_up "$1" k0 "$1-g" g0 10.250.0 fd00:250 none
	ip -n "$1-w" -batch - <<-BATCH
		route add 10.250.0.0/24 via 10.244.0.5
		route add fd00:250::/64 via fd00:10::5
	BATCH
}

# What an agent is told of the proxy of node_proxy_up.
# shellcheck disable=SC2034,SC2054 # for those who source this; a list of the agent's has commas
NODE_PROXY_OPTIONS=(--ztunnel node --ztunnel-address 10.245.0.2,fd00:45::2)

# Namespace NAME-p is that of the node's own proxy; the world routes between it and the pod.
node_proxy_up() { # NAME
	behind_up "$1-w" p0 "$1-p" eth0 10.245.0 fd00:45
}

# A process of the proxy's pod, which is one of this node.
as_node_proxy() { # NAME COMMAND...
	"$PROGRAMS/as" --cgroup "${pod_cgroup[$1]}" --netns "/run/netns/$1-p" --uid 1337 --gid 1337 "${@:2}"
}

pod_down() { # NAME
	local id
	for id in "${!servers[@]}"; do
		case $id in "$1".*) stop_servers "$id" ;; esac
	done
	[ "$ENGINE" = reference ] || ! enrolled "$1" || agent_op "$1" del >/dev/null || :
	ip netns del "$1-w"
	[ ! -e "/run/netns/$1-g" ] || ip netns del "$1-g"
	[ ! -e "/run/netns/$1-p" ] || ip netns del "$1-p"
	ip netns del "$1"
	rm -f "$work/enrolled-$1"
	[ ! -e "/run/netns/$1.user" ] || {
		umount "/run/netns/$1.user"
		rm "/run/netns/$1.user"
	}
	unset "pod_cgroup[$1]"
}

# ---- servers -----------------------------------------------------------------------------------

start_servers() { # NAME KIND COMMAND...
	local name=$1 kind=$2 id
	shift 2
	id=$("$@") || return
	servers[$name.$kind]=$id
}

group_is_gone() { # PROCESS-GROUP
	! pgrep -g "$1" -r R,S,D # a zombie has closed its sockets, whenever it is reaped
}

# Returns when their sockets are closed.
stop_servers() { # NAME.KIND
	kill -9 -- "-${servers[$1]}"
	wait_for 5 group_is_gone "${servers[$1]}"
	unset "servers[$1]"
}

on_ports() { # PROTOCOL ADDRESSES PORTS
	local address port
	for address in $2; do
		for port in $3; do
			echo "$1:$address:$port"
		done
	done
}

# Where the proxy listens, by the pod's setting; arguments of reporter.
proxy_at() { # PORT SHAPE
	case $2 in
	dual) echo "dual:$1" ;;
	loopback) on_ports tcp '127.0.0.1 [::1]' "$1" ;;
	*) on_ports tcp '0.0.0.0 [::]' "$1" ;;
	esac
}

world_servers() { # NAME
	# shellcheck disable=SC2046
	start_servers "$1" world in_world "$1" "$PROGRAMS/reporter" world \
		$(on_ports tcp '0.0.0.0 [::]' '53 80 443 9999 15001 15006 15008 15020') \
		$(on_ports udp '0.0.0.0 [::]' '53 80')
}

app_servers() { # NAME, and `setting`
	local ports='53 8080 9090 15008 15020 15021 15090'
	[ "${setting[proxyPorts]:-proxy}" != app ] || ports+=' 15001 15006 15053'
	! is_ambient || [ "${setting[proxyPorts]:-proxy}" = app ] || ports=${ports/15008/} # that one is ztunnel's
	# shellcheck disable=SC2046
	start_servers "$1" app as_pod "$1" 1000 1000 "$PROGRAMS/reporter" app \
		$(on_ports tcp '0.0.0.0 [::]' "$ports") $(on_ports udp '0.0.0.0 [::]' '53 8080')
}

# The proxy: by its user, or if the pod is ambient, ztunnel: by its mark.
proxy_servers() { # NAME KIND [REPORTER-OPTION...] LABEL SPEC..., and `setting`
	local who=(as_pod "$1" 1337 1337) mark=()
	if is_ambient; then
		who=(as_ztunnel "$1")
		mark=(--mark 0x539)
		[ "${setting[lateMark]:-no}" = no ] || mark+=(--mark-late)
	fi
	start_servers "$1" "$2" "${who[@]}" "$PROGRAMS/reporter" "${mark[@]}" "${@:3}"
}

outbound_proxy() { # NAME SHAPE [OPTION...]
	# shellcheck disable=SC2046
	proxy_servers "$1" outbound "${@:3}" outbound $(proxy_at 15001 "$2")
}

inbound_proxy() { # NAME SHAPE [OPTION...]
	local net_admin=no
	[ "$2" != loopback ] || set -- "$1" separate "${@:3}"
	[ "$2" != transparent ] || {
		set -- "$1" separate --transparent "${@:3}"
		net_admin=yes
	}
	# shellcheck disable=SC2046
	proxy_servers "$1" inbound "${@:3}" inbound $(proxy_at 15006 "$2")
}

dns_proxy() { # NAME
	# shellcheck disable=SC2046
	proxy_servers "$1" dns dns $(on_ports tcp '127.0.0.1 [::1]' 15053) \
		$(on_ports udp '127.0.0.1 [::1]' 15053)
}

tunnel_proxy() { # NAME SHAPE
	# shellcheck disable=SC2046
	proxy_servers "$1" tunnel tunnel $(proxy_at 15008 "$2")
}

# What is not captured reaches its port 15020.
node_proxy_servers() { # NAME SHAPE
	# shellcheck disable=SC2046
	start_servers "$1" outbound as_node_proxy "$1" "$PROGRAMS/reporter" outbound $(proxy_at 15001 "$2") &&
		start_servers "$1" dns as_node_proxy "$1" "$PROGRAMS/reporter" dns \
			$(on_ports tcp '0.0.0.0 [::]' 15053) $(on_ports udp '0.0.0.0 [::]' 15053) &&
		start_servers "$1" other as_node_proxy "$1" "$PROGRAMS/reporter" world $(proxy_at 15020 "$2")
}

servers_up() { # NAME SHAPE
	if is_by_node; then
		world_servers "$1" && app_servers "$1" && node_proxy_servers "$@"
		return
	fi
	world_servers "$1" && app_servers "$1" && outbound_proxy "$1" "$2" &&
		inbound_proxy "$1" "$2" && dns_proxy "$1" || return
	! is_ambient || tunnel_proxy "$1" "$2"
}

# ---- enrolment ---------------------------------------------------------------------------------

# The settings of a pod of the matrix, into `setting`.
pod_settings() { # NAME
	local pair pairs
	read -ra pairs <<<"$(awk -v name="$1" '$1 == "pod" && $2 == name { $1 = $2 = ""; print }' "$MATRIX")"
	setting=()
	for pair in "${pairs[@]}"; do
		setting[${pair%%=*}]=${pair#*=}
	done
}

agent_op() { # NAME OP ANNOTATION...
	"$PROGRAMS/enrol" "${pod_agent[$1]}" "$2" "id-$1" "/run/netns/$1" "$1" \
		10.244.0.5/24,fd00:10::5/64 "${@:3}"
}

enrolled() { # NAME
	[ -e "$work/enrolled-$1" ]
}

is_ambient() { # by `setting`
	[ "${setting[ambient]:-no}" != no ]
}

# The proxy is the node's own, in NAME-p.
is_by_node() { # by `setting`
	[ "${setting[ztunnel]:-}" = node ]
}

ambient_annotations() { # by `setting`
	local key value
	for key in "${!setting[@]}"; do
		value=${setting[$key]}
		case $key in
		ambient) echo sockmesh.io/redirection=ambient ;;
		dns) [ "$value" = on ] && echo ambient.istio.io/dns-capture=true ||
			echo ambient.istio.io/dns-capture=false ;;
		ingress) echo ambient.istio.io/bypass-inbound-capture=true ;;
		rerouteInterfaces) echo "istio.io/reroute-virtual-interfaces=$value" ;;
		esac
	done
}

enrol_in_agent() { # NAME, and `setting`
	local key value annotations=(sockmesh.io/redirection=sidecar)
	! is_ambient || mapfile -t annotations <<<"$(ambient_annotations)"
	for key in "${!setting[@]}"; do
		! is_ambient || break
		value=${setting[$key]}
		case $key in
		dns) [ "$value" = off ] || annotations+=(sockmesh.io/dns-capture=true) ;;
		include* | exclude*) annotations+=("traffic.sidecar.istio.io/$key=$value") ;;
		kubevirtInterfaces) annotations+=("traffic.sidecar.istio.io/$key=$value") ;;
		rerouteInterfaces) annotations+=("istio.io/reroute-virtual-interfaces=$value") ;;
		interceptionMode) annotations+=("sidecar.istio.io/$key=$value") ;;
		proxyUIDs) annotations+=("sockmesh.io/proxy-uid=$value") ;;
		proxyGIDs) annotations+=("sockmesh.io/proxy-gid=$value") ;;
		esac
	done
	agent_op "$1" add "${annotations[@]}" >"$work/answer" 2>&1 || {
		sed 's/^/# enrol: /' "$work/answer"
		return 1
	}
	: >"$work/enrolled-$1"
}

enrol_by_rules() { # NAME, and `setting`
	local family tool userns=()
	[ ! -e "/run/netns/$1.user" ] || userns=(--userns "/run/netns/$1.user" --uid 0 --gid 0)
	for family in 4 6; do
		tool=iptables-nft-restore
		[ $family = 4 ] || tool=ip6tables-nft-restore
		reference_rules $family >"$work/rules"
		"$PROGRAMS/as" "${userns[@]}" --netns "/run/netns/$1" $tool <"$work/rules" || {
			sed 's/^/# /' "$work/rules"
			return 1
		}
	done
	is_ambient || ip -n "$1" address add ::6/128 dev lo nodad
	reference_routes "$1"
}

enrol() { # NAME, and `setting`
	if [ "$ENGINE" = reference ]; then
		enrol_by_rules "$1"
	else
		enrol_in_agent "$1"
	fi
}
