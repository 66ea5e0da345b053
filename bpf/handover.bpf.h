/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_HANDOVER_BPF_H
#define SOCKMESH_HANDOVER_BPF_H

/*
 * Places for hand-over entries. The entry itself is made where a connection can no longer be
 * refused (sock_ops), so its place is taken in the connect hook, which can, and given back by
 * whoever removes the entry. Two gauges bound it: the node's, and the pod's, so that no pod can
 * starve another.
 */
#include "sockmesh_maps.bpf.h"

static __always_inline void gauge_give(__u64 key)
{
	struct gauge *g = bpf_map_lookup_elem(&gauges, &key);

	if (g)
		__sync_fetch_and_add(&g->handovers, -1);
}

static __always_inline int gauge_take(__u64 key, __u32 limit)
{
	struct gauge *g = bpf_map_lookup_elem(&gauges, &key);

	if (!g)
		return -1;
	/* Signed: a pod that left and came back may be given back places of its earlier life. */
	if ((__s32)__sync_fetch_and_add(&g->handovers, 1) < (__s32)limit)
		return 0;
	__sync_fetch_and_add(&g->handovers, -1);
	return -1;
}

static __always_inline void handover_release(__u64 netns)
{
	gauge_give(netns);
	gauge_give(0);
}

#endif
