# shellcheck shell=bash disable=SC2034,SC2154
# SPDX-License-Identifier: Apache-2.0
#
# Scenarios of ambient pods whose proxy is in another network namespace of the node.

# Netfilter cannot do it, and an agent that is told to says so.
node_proxy_needs_ebpf() { # NAME
	without_agent && return
	expect "$1: refused with this engine" "needs eBPF" "$BUILD_DIR/bin/sockmesh-agent" --dump-config \
		--mode "$ENGINE" "${NODE_PROXY_OPTIONS[@]}"
}
