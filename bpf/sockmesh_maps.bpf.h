/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_MAPS_BPF_H
#define SOCKMESH_MAPS_BPF_H

/*
 * Every map, once. They are weak so that the objects linked into one skeleton may each include
 * this file; separate skeletons share them through pins. Sizes are set by redirect_ebpf.c between
 * open and load. Nothing is preallocated where the kernel allows it: an idle node pays nothing.
 */
#include "vmlinux.h"

#include <bpf/bpf_helpers.h>

#include "sockmesh_abi.h"

#define weak_map SEC(".maps") __weak

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct pod_config);
} pods weak_map;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct local_address_key);
	__type(value, __u8);
} local_addresses weak_map;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct id_set_key);
	__type(value, __u32);
} id_sets weak_map;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct port_set_key);
	__type(value, __u32);
} port_sets weak_map;

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct prefix_set_key);
	__type(value, __u32);
} prefix_sets weak_map;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct handover_key);
	__type(value, struct handover);
} handovers weak_map;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1025);
	__type(key, __u64);
	__type(value, struct gauge);
} gauges weak_map;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1024);
	__type(key, __u64);
	__type(value, struct counters);
} pod_counters weak_map;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct counters);
} node_counters weak_map;

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 4096);
	__type(key, struct handover_key);
	__type(value, struct probe);
} probes weak_map;

/* Addresses of ambient pods: what kubelet connects to there is a probe. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 16384);
	__type(key, struct addr16);
	__type(value, __u8);
} probe_targets weak_map;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, PROBE_EVENTS);
	__type(key, __u32);
	__type(value, __u64);
} probe_counters weak_map;

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct kubelet_socket);
} kubelet_sockets weak_map;

/* The proxies' inbound listeners. Entries leave by themselves when their socket stops listening. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKHASH);
	__uint(max_entries, 16384);
	__type(key, struct listener_key);
	__type(value, __u64);
} listeners weak_map;

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 256 * 1024);
} notices weak_map;

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct capture);
} captures weak_map;

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct accepted_dst);
} accepted_dsts weak_map;

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct listener_mark);
} listener_marks weak_map;

struct dns_asked_locked {
	struct bpf_spin_lock lock;
	__u32 pad;
	struct dns_ring v4, v6;
};
_Static_assert(sizeof(struct dns_asked_locked) == sizeof(struct dns_asked), "dns_asked layout");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct dns_asked_locked);
} dns_asked weak_map;

/* ---- counting ------------------------------------------------------------------------------- */

static __always_inline struct counters *counters_of(__u64 netns)
{
	struct counters *c = bpf_map_lookup_elem(&pod_counters, &netns);
	__u32 zero = 0;

	return c ? c : bpf_map_lookup_elem(&node_counters, &zero);
}

static __always_inline void count_rule(__u64 netns, __u32 rule)
{
	struct counters *c = counters_of(netns);

	/* Preemptible and shared by nested contexts on one CPU, so not a plain increment. */
	if (c && rule < RULE_COUNTERS)
		__sync_fetch_and_add(&c->rule[rule], 1);
}

static __always_inline void count_event(__u64 netns, enum event_counter event)
{
	struct counters *c = counters_of(netns);

	if (c)
		__sync_fetch_and_add(&c->event[event], 1);
}

static __always_inline void count_probe(__u32 event)
{
	__u64 *n = bpf_map_lookup_elem(&probe_counters, &event);

	if (n)
		__sync_fetch_and_add(n, 1);
}

/* Counts, and asks the agent to write it to the log. */
static __always_inline void report_event(__u64 netns, enum event_counter event)
{
	struct notice *n;

	count_event(netns, event);
	n = bpf_ringbuf_reserve(&notices, sizeof(*n), 0);
	if (!n)
		return;
	n->type = NOTICE_EVENT;
	n->event = event;
	n->netns = netns;
	bpf_ringbuf_submit(n, 0);
}

static __always_inline void notify_listener(__u64 netns, enum notice_type type)
{
	struct notice *n = bpf_ringbuf_reserve(&notices, sizeof(*n), 0);

	if (!n)
		return;
	n->type = type;
	n->event = 0;
	n->netns = netns;
	bpf_ringbuf_submit(n, 0);
}

#endif
