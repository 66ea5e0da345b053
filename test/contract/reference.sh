# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The reference engine: the rules that Istio's REDIRECT and TPROXY modes make of a pod's settings
# (the order of its ISTIO_INBOUND and OUTPUT chains), as text for iptables-restore. Only the
# conformance test uses it: whatever the kernel does with these rules is what an engine has to match.

items_of() { # LIST
	echo "${1//,/ }"
}

# The members of a comma-separated list of prefixes that are of family 4 or 6.
prefixes_of() { # FAMILY LIST
	local item
	for item in ${2//,/ }; do
		case $1$item in
		4*.* | 6*:*) echo "$item" ;;
		esac
	done
}

is_tproxy() { # by `setting`
	[ "${setting[interceptionMode]:-}" = TPROXY ]
}

# I0: what comes from a guest's interface is the guest's outbound traffic.
reference_reroute() { # FAMILY, and the settings in `setting`
	local name item include=${setting[includeOutboundIPRanges]-*}
	for name in $(items_of "${setting[rerouteInterfaces]-${setting[kubevirtInterfaces]-}}"); do
		if [ "$include" = '*' ]; then
			echo "-A PREROUTING -i $name -p tcp -j REDIRECT --to-ports 15001"
		else
			for item in $(prefixes_of "$1" "$include"); do
				echo "-A PREROUTING -i $name -p tcp -d $item -j REDIRECT --to-ports 15001"
			done
		fi
		echo "-A PREROUTING -i $name -j RETURN"
	done
}

reference_inbound() { # INCLUDE EXCLUDE
	local port
	[ -n "$1" ] || return 0
	echo "-A PREROUTING -p tcp -j ISTIO_INBOUND"
	echo "-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN"
	if [ "$1" = '*' ]; then
		for port in ${2//,/ } 15020 15021 15090; do
			echo "-A ISTIO_INBOUND -p tcp --dport $port -j RETURN"
		done
		echo "-A ISTIO_INBOUND -p tcp -j REDIRECT --to-ports 15006"
	else
		for port in ${1//,/ }; do
			echo "-A ISTIO_INBOUND -p tcp --dport $port -j REDIRECT --to-ports 15006"
		done
	fi
}

# O4 to O6 for a uid, O7 to O9 for a gid of the proxy.
reference_owner() { # OWNER-OPTION ID LOOPBACK TO-SELF-PORTS DNS KEEP-LO
	local proxy="-m owner --$1 $2" others="-m owner ! --$1 $2" dns=''
	[ "$5" = off ] || dns='-p tcp ! --dport 53'
	echo "-A OUTPUT -o lo ! -d $3 -p tcp $4 $proxy -j REDIRECT --to-ports 15006"
	[ "$6" = no ] || echo "-A OUTPUT -o lo $dns $others -j RETURN"
	echo "-A OUTPUT $proxy -j RETURN"
}

# O10: either groups that are left alone, or what is in none of those that are captured.
reference_groups() { # by `setting`
	local item none=''
	for item in $(items_of "${setting[ownerGroupsExclude]-}"); do
		echo "-A OUTPUT -m owner --gid-owner $item -j RETURN"
	done
	for item in $(items_of "${setting[ownerGroups]-}"); do
		none+=" -m owner ! --gid-owner $item"
	done
	[ -z "$none" ] || echo "-A OUTPUT$none -j RETURN"
}

reference_outbound() { # FAMILY, and the settings in `setting`
	local lo=127.0.0.1/32 p6=127.0.0.6/32 dns=${setting[dns]:-off} item keep_lo=yes
	local include=${setting[includeOutboundIPRanges]-*} tunnel='! --dport 15008' to_self
	[ "$1" = 4 ] || { lo=::1/128 p6=::6/128; }
	to_self=$tunnel
	[ "$dns" = off ] || to_self='-m multiport ! --dports 53,15008'
	case ,$include in *,127.* | *,::1*) keep_lo=no ;; esac
	for item in $(items_of "${setting[excludeInterfaces]-}"); do
		echo "-A OUTPUT -o $item -j RETURN"
	done
	for item in $(items_of "${setting[excludeOutboundPorts]-15020}"); do
		echo "-A OUTPUT -p tcp --dport $item -j RETURN"
		echo "-A OUTPUT -p udp --dport $item -j RETURN"
	done
	echo "-A OUTPUT -o lo -s $p6 -j RETURN"
	for item in $(items_of "${setting[proxyUIDs]-1337}"); do
		reference_owner uid-owner "$item" $lo "$to_self" "$dns" $keep_lo
	done
	for item in $(items_of "${setting[proxyGIDs]-1337}"); do
		reference_owner gid-owner "$item" $lo "$tunnel" "$dns" $keep_lo
	done
	reference_groups
	if [ "$dns" = on ]; then
		echo "-A OUTPUT -p tcp --dport 53 -j REDIRECT --to-ports 15053"
		echo "-A OUTPUT -p udp --dport 53 -j REDIRECT --to-ports 15053"
	fi
	echo "-A OUTPUT -d $lo -j RETURN"
	for item in $(prefixes_of "$1" "${setting[excludeOutboundIPRanges]-}"); do
		echo "-A OUTPUT -d $item -j RETURN"
	done
	for item in $(items_of "${setting[includeOutboundPorts]-}"); do
		echo "-A OUTPUT -p tcp --dport $item -j REDIRECT --to-ports 15001"
	done
	if [ "$include" = '*' ]; then
		echo "-A OUTPUT -p tcp -j REDIRECT --to-ports 15001"
	else
		for item in $(prefixes_of "$1" "$include"); do
			echo "-A OUTPUT -p tcp -d $item -j REDIRECT --to-ports 15001"
		done
	fi
}

# Different conntrack zones for the two halves of a DNS question that goes through the proxy.
reference_zones() {
	local owner owners=()
	for owner in $(items_of "${setting[proxyUIDs]-1337}"); do
		owners+=("--uid-owner $owner")
	done
	for owner in $(items_of "${setting[proxyGIDs]-1337}"); do
		owners+=("--gid-owner $owner")
	done
	for owner in "${owners[@]}"; do
		echo "-A OUTPUT -p udp --dport 53 -m owner $owner -j CT --zone 1"
		echo "-A OUTPUT -p udp --sport 15053 -m owner $owner -j CT --zone 2"
	done
	echo "-A OUTPUT -p udp --dport 53 -j CT --zone 2"
	echo "-A PREROUTING -p udp --sport 53 -j CT --zone 1"
}

# TPROXY, before the ports: what the proxy sent to the application itself, what has 127.0.0.6 as
# its source, and what the application sent to its own pod pass.
reference_tproxy_inbound() { # LOOPBACK P6 INCLUDE EXCLUDE
	local port captured=()
	echo "-A ISTIO_DIVERT -j MARK --set-mark 1337"
	echo "-A ISTIO_DIVERT -j ACCEPT"
	echo "-A ISTIO_TPROXY ! -d $1 -p tcp -j TPROXY --tproxy-mark 1337/0xffffffff --on-port 15006"
	echo "-A PREROUTING -p tcp -j ISTIO_INBOUND"
	echo "-A ISTIO_INBOUND -p tcp -m mark --mark 1337 -j RETURN"
	echo "-A ISTIO_INBOUND -p tcp -s $2 -i lo -j RETURN"
	echo "-A ISTIO_INBOUND -p tcp -i lo -m mark ! --mark 1338 -j RETURN"
	if [ "$3" = '*' ]; then
		for port in ${4//,/ } 15020 15021 15090; do
			echo "-A ISTIO_INBOUND -p tcp --dport $port -j RETURN"
		done
		captured=('')
	else
		for port in ${3//,/ }; do
			captured+=("--dport $port ")
		done
	fi
	for port in "${captured[@]}"; do
		echo "-A ISTIO_INBOUND -p tcp $port-m conntrack --ctstate RELATED,ESTABLISHED -j ISTIO_DIVERT"
		echo "-A ISTIO_INBOUND -p tcp $port-j ISTIO_TPROXY"
	done
}

reference_tproxy() { # FAMILY, and the settings in `setting`
	local lo=127.0.0.1/32 p6=127.0.0.6/32 item include=${setting[includeInboundPorts]-*}
	[ "$1" = 4 ] || { lo=::1/128 p6=::6/128; }
	printf ':%s - [0:0]\n' ISTIO_INBOUND ISTIO_DIVERT ISTIO_TPROXY
	for item in $(items_of "${setting[excludeInterfaces]-}"); do
		echo "-A PREROUTING -i $item -j RETURN"
		echo "-A OUTPUT -o $item -j RETURN"
	done
	[ -z "$include" ] ||
		reference_tproxy_inbound $lo $p6 "$include" "${setting[excludeInboundPorts]-15020}"
	echo "-A PREROUTING -p tcp -m mark --mark 1337 -j CONNMARK --save-mark"
	echo "-A OUTPUT -p tcp -o lo -m mark --mark 1337 -j RETURN"
	for item in $(items_of "${setting[proxyUIDs]-1337}"); do
		echo "-A OUTPUT ! -d $lo -p tcp -o lo -m owner --uid-owner $item -j MARK --set-mark 1338"
	done
	for item in $(items_of "${setting[proxyGIDs]-1337}"); do
		echo "-A OUTPUT ! -d $lo -p tcp -o lo -m owner --gid-owner $item -j MARK --set-mark 1338"
	done
	echo "-A OUTPUT -p tcp -m connmark --mark 1337 -j CONNMARK --restore-mark"
}

reference_mangle() { # FAMILY, and the settings in `setting`
	is_tproxy || [ "${setting[dropInvalid]:-no}" = yes ] || return 0
	echo '*mangle'
	[ "${setting[dropInvalid]:-no}" = no ] ||
		echo "-A PREROUTING -m conntrack --ctstate INVALID -j DROP"
	! is_tproxy || reference_tproxy "$1"
	echo COMMIT
}

# The rules that Istio's agent writes into an ambient pod.
reference_ambient() { # FAMILY, and the settings in `setting`
	local lo=127.0.0.1/32 probe=169.254.7.127 name marked='-m mark --mark 0x539/0xfff'
	local others='-m mark ! --mark 0x539/0xfff' answers='-m connmark --mark 0x111/0xfff'
	[ "$1" = 4 ] || { lo=::1/128 probe=fd16:9254:7127:1337:ffff:ffff:ffff:ffff; }
	echo '*mangle'
	echo "-A PREROUTING $marked -j CONNMARK --set-xmark 0x111/0xfff"
	echo "-A OUTPUT $answers -j CONNMARK --restore-mark"
	echo COMMIT
	echo '*nat'
	for name in $(items_of "${setting[rerouteInterfaces]-}"); do
		echo "-A PREROUTING -i $name -p tcp -j REDIRECT --to-ports 15001"
		echo "-A PREROUTING -i $name -j RETURN"
	done
	if [ "${setting[ingress]:-no}" = no ]; then
		echo "-A PREROUTING -s $probe -p tcp -j ACCEPT"
		echo "-A PREROUTING ! -d $lo -p tcp ! --dport 15008 $others -j REDIRECT --to-ports 15006"
	fi
	echo "-A OUTPUT -d $probe -p tcp -j ACCEPT"
	if [ "${setting[dns]:-${setting[agentDNS]:-on}}" = on ]; then
		echo "-A OUTPUT ! -o lo -p udp --dport 53 $others -j REDIRECT --to-ports 15053"
		echo "-A OUTPUT ! -d $lo -p tcp --dport 53 $others -j REDIRECT --to-ports 15053"
	fi
	echo "-A OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT"
	echo "-A OUTPUT ! -d $lo -o lo -j ACCEPT"
	echo "-A OUTPUT ! -d $lo -p tcp $others -j REDIRECT --to-ports 15001"
	echo COMMIT
	[ "${setting[dns]:-${setting[agentDNS]:-on}}" = on ] || return 0
	echo '*raw'
	echo "-A OUTPUT -p udp --dport 53 $marked -j CT --zone 1"
	echo "-A PREROUTING -p udp --sport 53 $others -j CT --zone 1"
	echo COMMIT
}

# What the marks are for: packets with them are the namespace's own, whatever their destination.
reference_routes() { # NAME, and the settings in `setting`
	local family
	for family in -4 -6; do
		is_ambient || break
		ip -n "$1" $family rule add fwmark 0x111/0xfff pref 32764 lookup 100
		ip -n "$1" $family route add local default dev lo table 100
	done
	is_tproxy || return 0
	for family in -4 -6; do
		ip -n "$1" $family rule add fwmark 1337 lookup 133
		ip -n "$1" $family route add local default dev lo table 133
	done
}

# The whole input of iptables-restore (4) or ip6tables-restore (6).
reference_rules() { # FAMILY, and the settings in `setting`
	local item
	if is_ambient; then
		reference_ambient "$1"
		return
	fi
	echo '*nat'
	echo ':ISTIO_INBOUND - [0:0]'
	reference_reroute "$1"
	for item in $(items_of "${setting[excludeInterfaces]-}"); do
		echo "-A PREROUTING -i $item -j RETURN"
	done
	is_tproxy || reference_inbound "${setting[includeInboundPorts]-*}" "${setting[excludeInboundPorts]-}"
	reference_outbound "$1"
	echo COMMIT
	reference_mangle "$1"
	[ "${setting[dns]:-off}" = on ] || return 0
	echo '*raw'
	reference_zones
	echo COMMIT
}
