/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_ACCELERATE_BOUND_BPF_H
#define SOCKMESH_ACCELERATE_BOUND_BPF_H

/*
 * How much may be outstanding: sent the short way and not read yet. The kernel itself has no bound
 * but the node's TCP memory, and at that send() fails. So each direction is limited in bytes and in
 * messages (a message of one byte takes a kilobyte of the kernel, and keeps the page that it is
 * in). A small allowance is every direction's own; what is beyond it must be claimed from the
 * budgets of the receiving pod and of the node, so that many slow readers cannot add up to the
 * node's memory.
 *
 * What has been read is seen when we look into the receiver's queue, which is only done when the
 * estimate without a look is beyond the allowance.
 */
#include "accelerate_account.bpf.h"
#include "identity.bpf.h"

#include <bpf/bpf_core_read.h>

enum {
	MESSAGE_COST = 4096, /* struct sk_msg, and a page that one byte may keep */
	ALLOWANCE = 32 * 1024,
	CLAIM_CHUNK = 64 * 1024,
	USER_DATA_FLAGS = 7, /* in the low bits of sk_user_data */
};

const volatile __u32 max_bytes = 4 << 20, max_messages = 1024; /* of one direction */
const volatile __u64 budget = 256ull << 20, pod_budget = 64ull << 20;
const volatile __u32 guards = GUARD_ALL;
const volatile __u32 rmem_is_exact = 0; /* this kernel's sk_rmem_alloc counts the short way */

static __always_inline const struct sock *sock_at(__u64 address)
{
	return (const struct sock *)(unsigned long)address;
}

static __always_inline __u64 cookie_at(__u64 address)
{
	const struct sock *sk = sock_at(address);

	return BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
}

static __always_inline __u64 outstanding_bytes(const struct accel_stream *s)
{
	return s->sent_bytes - s->read_bytes;
}

static __always_inline __u64 outstanding_messages(const struct accel_stream *s)
{
	return s->sent_messages - s->read_messages;
}

static __always_inline __u64 outstanding_cost(const struct accel_stream *s)
{
	return outstanding_bytes(s) + outstanding_messages(s) * MESSAGE_COST;
}

/*
 * Has the receiver's list of messages nothing in it? Of a socket that has left the map, and whose
 * messages are gone with it, this says yes.
 */
static __always_inline int is_all_read(const struct accel_stream *s)
{
	const struct sock *peer = sock_at(s->peer_sock);
	__u64 psock = (__u64)BPF_CORE_READ(peer, sk_user_data) & ~(__u64)USER_DATA_FLAGS;
	const struct sk_psock *p = (const struct sk_psock *)(unsigned long)psock;
	__u64 head = psock + bpf_core_field_offset(p->ingress_msg), next;

	if (!psock || cookie_at(s->peer_sock) != s->peer)
		return 1;
	next = (__u64)BPF_CORE_READ(p, ingress_msg.next);
	return next == head || !next;
}

/*
 * Messages are read in the order in which they were sent: when no more bytes are outstanding than
 * were sent since the last look, then whatever was sent before that look has been read.
 */
static __always_inline void look(struct accel_stream *s)
{
	const struct sock *peer = sock_at(s->peer_sock);
	__u64 unread = outstanding_bytes(s);
	__s32 rmem;

	if (is_all_read(s)) {
		s->read_messages = s->mark_messages = s->sent_messages;
		s->read_bytes = s->mark_bytes = s->sent_bytes;
		return;
	}
	if (!rmem_is_exact)
		return;
	rmem = BPF_CORE_READ(peer, sk_backlog.rmem_alloc.counter);
	if (rmem >= 0 && (__u64)rmem < unread)
		unread = rmem;
	if (unread > s->sent_bytes - s->mark_bytes)
		return;
	s->read_messages = s->mark_messages;
	s->read_bytes = s->mark_bytes;
	s->mark_messages = s->sent_messages;
	s->mark_bytes = s->sent_bytes;
}

static __always_inline void claim_add(struct accel_stream *s, __s64 bytes)
{
	struct accel_usage *pod = usage_of(s->peer_netns), *node = usage_of(0);

	if (pod)
		__sync_fetch_and_add(&pod->claimed, bytes);
	if (node)
		__sync_fetch_and_add(&node->claimed, bytes);
	s->claimed += bytes;
}

/* 0, or the event that names the budget that is used up. As many CPUs may pass at once. */
static __always_inline __u32 claim(struct accel_stream *s, __u64 cost)
{
	__u64 wanted = (cost - ALLOWANCE + CLAIM_CHUNK - 1) / CLAIM_CHUNK * CLAIM_CHUNK;
	struct accel_usage *pod = usage_of(s->peer_netns), *node = usage_of(0);

	if (!(guards & GUARD_BUDGET) || wanted <= s->claimed)
		return 0;
	if (!pod ||
	    (__s64)(*(volatile __u64 *)&pod->claimed + wanted - s->claimed) > (__s64)pod_budget)
		return ACCEL_SPILL_POD;
	if (!node ||
	    (__s64)(*(volatile __u64 *)&node->claimed + wanted - s->claimed) > (__s64)budget)
		return ACCEL_SPILL_NODE;
	claim_add(s, (__s64)(wanted - s->claimed));
	return 0;
}

static __always_inline void claim_release(struct accel_stream *s)
{
	if (s->claimed)
		claim_add(s, -(__s64)s->claimed);
}

/* TCP's own sign that the node is short of memory; then TCP waits where send() would fail here. */
static __always_inline int memory_is_short(const struct tcp_sock *tp)
{
	const unsigned long *pressure =
		tp->inet_conn.icsk_inet.sk.__sk_common.skc_prot->memory_pressure;
	unsigned long value = 0;

	if (!pressure || !(guards & GUARD_PRESSURE))
		return 0;
	bpf_probe_read_kernel(&value, sizeof(value), pressure);
	return value != 0;
}

/*
 * The same of the receiver's memory cgroup, which is charged. Its limit, too, would make send()
 * fail, when TCP would only drop and send again.
 */
static __always_inline int reader_is_short(const struct accel_stream *s)
{
	const struct mem_cgroup *memcg = (const struct mem_cgroup *)(unsigned long)s->peer_memcg;

	if (!memcg || !(guards & GUARD_PRESSURE))
		return 0;
	if (bpf_core_field_exists(memcg->tcpmem_pressure) && BPF_CORE_READ(memcg, tcpmem_pressure))
		return 1;
	return bpf_core_field_exists(memcg->socket_pressure) &&
	       (__s64)(BPF_CORE_READ(memcg, socket_pressure) - bpf_jiffies64()) > 0;
}

/* 0: there is room for this message. Else the event that says what limit it would go beyond. */
static __always_inline __u32 no_room(struct accel_stream *s, const struct tcp_sock *tp, __u32 size)
{
	__u64 cost = outstanding_cost(s) + size + MESSAGE_COST;

	if (memory_is_short(tp))
		return ACCEL_SPILL_PRESSURE;
	if (cost <= ALLOWANCE)
		return 0;
	if (reader_is_short(s))
		return ACCEL_SPILL_PRESSURE;
	look(s);
	if (((guards & GUARD_BYTES) && outstanding_bytes(s) + size > max_bytes) ||
	    ((guards & GUARD_MESSAGES) && outstanding_messages(s) + 1 > max_messages))
		return ACCEL_SPILL_LIMIT;
	cost = outstanding_cost(s) + size + MESSAGE_COST;
	if (cost > ALLOWANCE)
		return claim(s, cost);
	claim_release(s);
	return 0;
}

#endif
