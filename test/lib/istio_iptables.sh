# shellcheck shell=bash
# SPDX-License-Identifier: Apache-2.0
#
# The rules that Istio's plugin writes into a pod with default annotations (REDIRECT mode): what
# the benchmark compares with, and the reference that tests of real proxies can run against.

istio_iptables_rules() { # FAMILY
	local loopback=127.0.0.1/32 passthrough=127.0.0.6/32
	if [ "$1" = 6 ]; then
		loopback=::1/128
		passthrough=::6/128
	fi
	cat <<-END
		*nat
		-N ISTIO_INBOUND
		-N ISTIO_REDIRECT
		-N ISTIO_IN_REDIRECT
		-N ISTIO_OUTPUT
		-A ISTIO_INBOUND -p tcp --dport 15008 -j RETURN
		-A ISTIO_REDIRECT -p tcp -j REDIRECT --to-ports 15001
		-A ISTIO_IN_REDIRECT -p tcp -j REDIRECT --to-ports 15006
		-A PREROUTING -p tcp -j ISTIO_INBOUND
		-A ISTIO_INBOUND -p tcp --dport 15020 -j RETURN
		-A ISTIO_INBOUND -p tcp --dport 15021 -j RETURN
		-A ISTIO_INBOUND -p tcp --dport 15090 -j RETURN
		-A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT
		-A OUTPUT -j ISTIO_OUTPUT
		-A ISTIO_OUTPUT -p tcp --dport 15020 -j RETURN
		-A ISTIO_OUTPUT -o lo -s $passthrough -j RETURN
		-A ISTIO_OUTPUT -o lo ! -d $loopback -p tcp ! --dport 15008 -m owner --uid-owner 1337 -j ISTIO_IN_REDIRECT
		-A ISTIO_OUTPUT -o lo -m owner ! --uid-owner 1337 -j RETURN
		-A ISTIO_OUTPUT -m owner --uid-owner 1337 -j RETURN
		-A ISTIO_OUTPUT -o lo ! -d $loopback -p tcp ! --dport 15008 -m owner --gid-owner 1337 -j ISTIO_IN_REDIRECT
		-A ISTIO_OUTPUT -o lo -m owner ! --gid-owner 1337 -j RETURN
		-A ISTIO_OUTPUT -m owner --gid-owner 1337 -j RETURN
		-A ISTIO_OUTPUT -d $loopback -j RETURN
		-A ISTIO_OUTPUT -p tcp -j ISTIO_REDIRECT
		COMMIT
	END
}

istio_iptables_apply() { # POD
	istio_iptables_rules 4 | pod_exec "$1" iptables-restore --noflush
	istio_iptables_rules 6 | pod_exec "$1" ip6tables-restore --noflush
	ip -n "$1" address replace ::6/128 dev lo
}

istio_iptables_remove() { # POD
	local tool
	for tool in iptables ip6tables; do
		pod_exec "$1" "$tool" -t nat -F
		pod_exec "$1" "$tool" -t nat -X
	done
	ip -n "$1" address del ::6/128 dev lo
}
