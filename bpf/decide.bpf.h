/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_DECIDE_BPF_H
#define SOCKMESH_DECIDE_BPF_H

/*
 * The plan's meaning in the kernel: compute a connection's facts once, then take the first rule
 * whose facts hold. redirect_plan_decide() in user space is the same thing; the conformance matrix
 * keeps the two together.
 */
#include "address.bpf.h"
#include "identity.bpf.h"
#include "sockmesh_maps.bpf.h"

struct flow {
	struct addr16 destination; /* as dialled; unspecified already resolved */
	struct addr16 source;	   /* bound source, all zero when not bound */
	__u64 netns;
	__u16 port;
	__u16 udp;
};

static __always_inline int is_own_address(__u64 netns, const struct addr16 *addr)
{
	struct local_address_key key = {.netns = netns, .addr = *addr};

	return bpf_map_lookup_elem(&local_addresses, &key) != NULL;
}

static __always_inline __u32 port_facts(const struct pod_config *pod, __u16 port, int inbound)
{
	struct port_set_key key = {.policy = pod->policy, .port = port};
	__u32 facts = 0, *bits;

	if (port == 53)
		facts |= FACT_PORT_DNS;
	if (port == pod->tunnel_port && port)
		facts |= FACT_PORT_TUNNEL;
	if (!(pod->flags & POD_HAS_PORTS))
		return facts;
	bits = bpf_map_lookup_elem(&port_sets, &key);
	if (!bits)
		return facts;
	if (*bits & (inbound ? PORT_IN_EXCLUDED : PORT_OUT_EXCLUDED))
		facts |= FACT_PORT_EXCLUDED;
	if (*bits & (inbound ? PORT_IN_INCLUDED : PORT_OUT_INCLUDED))
		facts |= FACT_PORT_INCLUDED;
	return facts;
}

static __always_inline __u32 prefix_facts(const struct pod_config *pod, const struct addr16 *dst)
{
	struct prefix_set_key key = {
		.prefixlen = 32 + 128,
		.policy_family = prefix_policy_family(pod->policy, addr16_is_v4(dst)),
		.addr = *dst,
	};
	__u32 facts = 0, *bits;

	if (!(pod->flags & POD_HAS_PREFIXES))
		return 0;
	bits = bpf_map_lookup_elem(&prefix_sets, &key);
	if (!bits)
		return 0;
	if (*bits & PREFIX_EXCLUDED)
		facts |= FACT_CIDR_EXCLUDED;
	if (*bits & PREFIX_INCLUDED)
		facts |= FACT_CIDR_INCLUDED;
	return facts;
}

/* Where this pod's captured connections of dst's family go, in its node-proxy form. */
static __always_inline const struct addr16 *node_proxy_of(const struct pod_config *pod,
							  const struct addr16 *dst)
{
	return addr16_is_v4(dst) ? &pod->proxy4 : &pod->proxy6;
}

static __always_inline __u32 outbound_facts(const struct pod_config *pod, const struct flow *flow,
					    const struct opener *who)
{
	__u32 facts = flow->udp ? FACT_UDP : FACT_TCP;

	if (!addr16_is_v4(&flow->destination)) {
		facts |= FACT_IPV6;
		if (addr16_is_low_v6(&flow->destination, 1))
			facts |= FACT_DST_LO;
	} else if ((flow->destination.w[3] & pod->loopback4_mask_be) == pod->loopback4_be) {
		facts |= FACT_DST_LO;
	}
	if (addr16_is_loopback(&flow->destination) ||
	    is_own_address(flow->netns, &flow->destination))
		facts |= FACT_OUT_LO;
	if (addr16_is_passthrough(&flow->source))
		facts |= FACT_SRC_P6;
	if ((pod->flags & POD_NODE_PROXY) &&
	    addr16_equal(&flow->destination, node_proxy_of(pod, &flow->destination)))
		facts |= FACT_DST_PROXY;
	facts |= port_facts(pod, flow->port, 0);
	facts |= prefix_facts(pod, &flow->destination);
	facts |= identity_facts(pod, who);
	return facts;
}

/*
 * The same number without what the verifier has learned about it on the way. The facts are built
 * on hundreds of paths; with their ranges forgotten the rule loop is checked once, not once a path.
 */
static __always_inline __u32 forget_range(__u32 known)
{
	__u32 on_stack = known, number = 0;

	bpf_probe_read_kernel(&number, sizeof(number), &on_stack);
	return number;
}

struct decision {
	__u32 rule;
	__u16 redirect;
	__u16 port;
};

static __always_inline struct decision first_match(const struct pod_rule *rules, __u32 n, __u32 max,
						   __u32 facts)
{
	struct decision d = {};

	for (__u32 i = 0; i < max; i++) {
		const struct pod_rule *r = &rules[i];

		if (i >= n)
			break;
		if ((facts & r->all_of) != r->all_of || (facts & r->none_of))
			continue;
		d.rule = r->id;
		d.redirect = r->redirect;
		d.port = r->port;
		break;
	}
	return d;
}

/*
 * An element that was deleted while a preempted program looked at it may already hold another pod
 * (hash maps reuse memory at once). Whoever has read a decision from a pod asks this afterwards.
 */
static __always_inline int pod_is_still(const struct pod_config *pod, __u64 netns)
{
	return *(const volatile __u64 *)&pod->netns == netns;
}

static __always_inline struct decision decide_outbound(const struct pod_config *pod,
						       const struct flow *flow,
						       const struct opener *who, __u32 *ret_facts)
{
	*ret_facts = forget_range(outbound_facts(pod, flow, who));
	return first_match(pod->outbound, pod->n_outbound, POD_RULES_OUTBOUND_MAX, *ret_facts);
}

#endif
