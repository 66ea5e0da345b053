# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The reference engine: the rules that Istio's REDIRECT mode makes of a pod's settings (the order
# of its ISTIO_INBOUND and OUTPUT chains), as text for iptables-restore. Only the conformance test
# uses it: whatever the kernel's NAT does with these rules is what an engine has to match.

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

# O4 to O9 for the uid or the gid of the proxy.
reference_owner() { # OWNER-OPTION LOOPBACK TO-SELF-PORTS DNS KEEP-LO
	local proxy="-m owner --$1 1337" others="-m owner ! --$1 1337" dns=''
	[ "$4" = off ] || dns='-p tcp ! --dport 53'
	echo "-A OUTPUT -o lo ! -d $2 -p tcp $3 $proxy -j REDIRECT --to-ports 15006"
	[ "$5" = no ] || echo "-A OUTPUT -o lo $dns $others -j RETURN"
	echo "-A OUTPUT $proxy -j RETURN"
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
	reference_owner uid-owner $lo "$to_self" "$dns" $keep_lo
	reference_owner gid-owner $lo "$tunnel" "$dns" $keep_lo
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
	local owner
	for owner in uid gid; do
		echo "-A OUTPUT -p udp --dport 53 -m owner --$owner-owner 1337 -j CT --zone 1"
		echo "-A OUTPUT -p udp --sport 15053 -m owner --$owner-owner 1337 -j CT --zone 2"
	done
	echo "-A OUTPUT -p udp --dport 53 -j CT --zone 2"
	echo "-A PREROUTING -p udp --sport 53 -j CT --zone 1"
}

# The whole input of iptables-restore (4) or ip6tables-restore (6).
reference_rules() { # FAMILY, and the settings in `setting`
	local item
	echo '*nat'
	echo ':ISTIO_INBOUND - [0:0]'
	for item in $(items_of "${setting[excludeInterfaces]-}"); do
		echo "-A PREROUTING -i $item -j RETURN"
	done
	reference_inbound "${setting[includeInboundPorts]-*}" "${setting[excludeInboundPorts]-}"
	reference_outbound "$1"
	echo COMMIT
	[ "${setting[dns]:-off}" = on ] || return 0
	echo '*raw'
	reference_zones
	echo COMMIT
}
