/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_HANDOVER_BPF_H
#define SOCKMESH_HANDOVER_BPF_H

/*
 * Places for hand-over entries, so that no pod can starve another and the map never fills.
 * connect() can still refuse a connection, so it looks whether there is a place; sock_ops, where
 * the entry is made, takes it; whoever removes the entry gives it back. Nothing is held in between,
 * so a connect that ends early leaks nothing. What passes the look at the same moment may go over
 * the limit by as many connections: the map has HANDOVER_SLACK for them.
 */
#include "sockmesh_maps.bpf.h"

static __always_inline void gauge_give(__u64 key)
{
	struct gauge *g = bpf_map_lookup_elem(&gauges, &key);

	if (g)
		__sync_fetch_and_add(&g->handovers, -1);
}

static __always_inline void gauge_take(__u64 key)
{
	struct gauge *g = bpf_map_lookup_elem(&gauges, &key);

	if (g)
		__sync_fetch_and_add(&g->handovers, 1);
}

/* Signed: a pod that left and came back may be given back places of its earlier life. */
static __always_inline int gauge_has_room(__u64 key, __u32 limit)
{
	struct gauge *g = bpf_map_lookup_elem(&gauges, &key);

	return g && (__s32) * (volatile __u32 *)&g->handovers < (__s32)limit;
}

static __always_inline void handover_take(__u64 netns)
{
	gauge_take(netns);
	gauge_take(0);
}

static __always_inline void handover_release(__u64 netns)
{
	gauge_give(netns);
	gauge_give(0);
}

/* Ports on which a local connection must have been handed over. */
static __always_inline int is_proxy_port(const struct pod_config *pod, __u16 port)
{
	return port == pod->outbound_port || port == pod->inbound_port ||
	       (pod->dns_port && port == pod->dns_port);
}

#endif
