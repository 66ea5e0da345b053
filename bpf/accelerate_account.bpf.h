/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_ACCELERATE_ACCOUNT_BPF_H
#define SOCKMESH_ACCELERATE_ACCOUNT_BPF_H

/*
 * What streams did, summed up per pair of workloads for the agent to learn from, and how much of
 * the limits pods and node use.
 */
#include "accelerate_maps.bpf.h"

enum { TELL_MESSAGES = 256, TELL_BYTES = 1 << 20 };

static __always_inline struct accel_usage *usage_of(__u64 netns)
{
	return bpf_map_lookup_elem(&accel_usage, &netns);
}

/* What was sent since the pair was last told. */
static __always_inline void tell(struct accel_stream *s)
{
	struct accel_pair *pair = bpf_map_lookup_elem(&accel_pairs, &s->pair);

	if (pair) {
		__sync_fetch_and_add(&pair->messages, s->sent_messages - s->told_messages);
		__sync_fetch_and_add(&pair->bytes, s->sent_bytes - s->told_bytes);
		__sync_fetch_and_add(&pair->tcp_messages, s->tcp_messages - s->told_tcp_messages);
		__sync_fetch_and_add(&pair->tcp_bytes, s->tcp_bytes - s->told_tcp_bytes);
		__sync_fetch_and_add(&pair->held_messages,
				     s->held_messages - s->told_held_messages);
	}
	s->told_messages = s->sent_messages;
	s->told_bytes = s->sent_bytes;
	s->told_tcp_messages = s->tcp_messages;
	s->told_tcp_bytes = s->tcp_bytes;
	s->told_held_messages = s->held_messages;
}

static __always_inline void tell_sometimes(struct accel_stream *s)
{
	if (s->sent_messages - s->told_messages >= TELL_MESSAGES ||
	    s->sent_bytes - s->told_bytes >= TELL_BYTES ||
	    s->tcp_messages - s->told_tcp_messages >= TELL_MESSAGES ||
	    s->tcp_bytes - s->told_tcp_bytes >= TELL_BYTES)
		tell(s);
}

/* NULL: the map of pairs is full; the connection goes on without being learned from. */
static __always_inline struct accel_pair *pair_get(const struct accel_pair_key *key)
{
	struct accel_pair *pair = bpf_map_lookup_elem(&accel_pairs, key);
	struct accel_pair none = {};

	if (pair)
		return pair;
	none.first_ns = bpf_ktime_get_ns();
	bpf_map_update_elem(&accel_pairs, key, &none, BPF_NOEXIST);
	return bpf_map_lookup_elem(&accel_pairs, key);
}

static __always_inline void tell_connection(struct accel_stream *s)
{
	struct accel_pair *pair = pair_get(&s->pair);

	if (!pair)
		return;
	__sync_fetch_and_add(&pair->connections, 1);
	__sync_fetch_and_add(&pair->live, 1);
	s->is_counted = 1;
	pair->last_ns = bpf_ktime_get_ns();
}

/* An end has been closed, or the other one was: it is not one of those that are busy at once. */
static __always_inline void tell_left(struct accel_stream *s)
{
	struct accel_pair *pair = bpf_map_lookup_elem(&accel_pairs, &s->pair);

	if (!s->is_counted)
		return;
	s->is_counted = 0;
	if (!pair)
		return;
	__sync_fetch_and_add(&pair->live, -1);
	if (s->is_alone)
		__sync_fetch_and_add(&pair->live_alone, -1);
}

/* For now, and whatever the trials of the pair say. */
static __always_inline int has_verdict(const struct accel_pair_key *key)
{
	struct accel_verdict *verdict = bpf_map_lookup_elem(&accel_verdicts, key);

	return verdict && bpf_ktime_get_ns() < verdict->until_ns;
}

#endif
