// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * DNS over unconnected UDP: each question goes to the proxy's DNS port, each answer appears to
 * come from a server that was asked. (Connected UDP is decided in connect().)
 *
 * One socket may ask several servers before any has answered, as musl's resolver does. An answer
 * does not say which question it belongs to, so it carries the server asked longest ago that has
 * not answered: exact with one question outstanding, and always a server that was asked.
 */
#include "decide.bpf.h"

#include <bpf/bpf_endian.h>

enum { SENDMSG_DENY = 0, SENDMSG_ALLOW = 1 };

/* A question that is older was lost: resolvers ask again after five seconds. */
#define ANSWER_NS 10000000000ull

static __always_inline struct dns_ring *ring_of(struct dns_asked_locked *asked, int is_v4)
{
	return is_v4 ? &asked->v4 : &asked->v6;
}

static __always_inline int remember(struct bpf_sock_addr *ctx, const struct flow *flow,
				    const struct endpoint *via)
{
	struct dns_asked_locked *asked = NULL;
	struct bpf_sock *sk = ctx->sk;
	__u64 now = bpf_ktime_get_ns();
	struct dns_question *q;
	struct dns_ring *ring;
	int overflow = 0;

	if (sk)
		asked = bpf_sk_storage_get(&dns_asked, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!asked) {
		report_event(flow->netns, EVENT_RECORD_FAILED);
		return -1;
	}
	ring = ring_of(asked, addr16_is_v4(&flow->destination));
	bpf_spin_lock(&asked->lock);
	ring->via = *via;
	if (ring->n >= DNS_ASKED_MAX) {
		ring->first++;
		ring->n = DNS_ASKED_MAX - 1;
		overflow = 1;
	}
	q = &ring->asked[(ring->first + ring->n) & (DNS_ASKED_MAX - 1)];
	q->at_ns = now;
	q->server.addr = flow->destination;
	q->server.port = flow->port;
	ring->n++;
	bpf_spin_unlock(&asked->lock);
	if (overflow)
		count_event(flow->netns, EVENT_DNS_OVERFLOW);
	return 0;
}

/* SENDMSG_DENY, or SENDMSG_ALLOW with target->port set when the datagram must be rewritten. */
static __always_inline int question(struct bpf_sock_addr *ctx, struct flow *flow,
				    struct endpoint *target)
{
	const struct pod_config *pod = bpf_map_lookup_elem(&pods, &flow->netns);
	struct addr16 lo6 = {{0, 0, 0, BE32(1)}};
	struct opener who;
	struct decision d;
	__u32 facts;

	if (!pod || !(pod->flags & POD_ACTIVE))
		return SENDMSG_ALLOW;
	who = opener_of(kernel_sock(ctx->sk));
	addr16_resolve_unspecified(&flow->destination, &flow->source);
	d = decide_outbound(pod, flow, &who, &facts);
	if (!pod_is_still(pod, flow->netns)) {
		report_event(flow->netns, EVENT_RECORD_FAILED);
		return SENDMSG_DENY;
	}
	count_rule(flow->netns, d.rule);
	if (!d.redirect)
		return SENDMSG_ALLOW;
	target->port = d.port;
	target->addr = addr16_is_v4(&flow->destination) ? addr16_from_v4(BE32(0x7f000001)) : lo6;
	if (pod->flags & POD_NODE_PROXY)
		target->addr = *node_proxy_of(pod, &flow->destination);
	if (addr16_is_zero(&target->addr)) {
		report_event(flow->netns, EVENT_NO_PROXY_ADDRESS);
		return SENDMSG_DENY;
	}
	return remember(ctx, flow, target) ? SENDMSG_DENY : SENDMSG_ALLOW;
}

SEC("cgroup/sendmsg4")
int sockmesh_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct endpoint target = {};
	struct flow flow = {};

	flow.netns = netns_of(ctx, ctx->sk);
	flow.udp = 1;
	flow.port = bpf_ntohs(ctx->user_port);
	flow.destination = addr16_from_v4(ctx->user_ip4);
	if (ctx->msg_src_ip4)
		flow.source = addr16_from_v4(ctx->msg_src_ip4);
	if (question(ctx, &flow, &target) == SENDMSG_DENY)
		return SENDMSG_DENY;
	if (target.port) {
		ctx->user_ip4 = target.addr.w[3];
		ctx->user_port = bpf_htons(target.port);
	}
	return SENDMSG_ALLOW;
}

SEC("cgroup/sendmsg6")
int sockmesh_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct endpoint target = {};
	struct flow flow = {};

	flow.netns = netns_of(ctx, ctx->sk);
	flow.udp = 1;
	flow.port = bpf_ntohs(ctx->user_port);
	flow.destination.w[0] = ctx->user_ip6[0];
	flow.destination.w[1] = ctx->user_ip6[1];
	flow.destination.w[2] = ctx->user_ip6[2];
	flow.destination.w[3] = ctx->user_ip6[3];
	flow.source.w[0] = ctx->msg_src_ip6[0];
	flow.source.w[1] = ctx->msg_src_ip6[1];
	flow.source.w[2] = ctx->msg_src_ip6[2];
	flow.source.w[3] = ctx->msg_src_ip6[3];
	if (question(ctx, &flow, &target) == SENDMSG_DENY)
		return SENDMSG_DENY;
	if (target.port) {
		ctx->user_ip6[0] = target.addr.w[0];
		ctx->user_ip6[1] = target.addr.w[1];
		ctx->user_ip6[2] = target.addr.w[2];
		ctx->user_ip6[3] = target.addr.w[3];
		ctx->user_port = bpf_htons(target.port);
	}
	return SENDMSG_ALLOW;
}

/* Takes the oldest question that may still be answered; the last server when there is none. */
static __always_inline void take_oldest(struct dns_ring *ring, __u64 now, struct endpoint *ret)
{
	for (int i = 0; i < DNS_ASKED_MAX; i++) {
		const struct dns_question *q = &ring->asked[ring->first & (DNS_ASKED_MAX - 1)];

		if (!ring->n)
			break;
		ring->first++;
		ring->n--;
		ring->last = q->server;
		if (now - q->at_ns < ANSWER_NS)
			break;
	}
	*ret = ring->last;
}

/* A proxy in the pod may answer from any loopback address, one of the node from its own. */
static __always_inline int is_from(const struct addr16 *source, const struct addr16 *proxy)
{
	return addr16_is_loopback(proxy) ? addr16_is_loopback(source) : addr16_equal(source, proxy);
}

/*
 * Who the answer appears to come from; 0 when it is not an answer of ours. Questions that wait were
 * asked after the socket was connected, because connect() forgets them, so they come first.
 */
static __always_inline int answerer(struct bpf_sock_addr *ctx, const struct addr16 *source,
				    struct endpoint *ret)
{
	__u16 port = bpf_ntohs(ctx->user_port);
	struct dns_asked_locked *asked;
	struct bpf_sock *sk = ctx->sk;
	const struct capture *c;
	struct dns_ring *ring;
	int waiting = 0;
	__u64 now;

	if (!sk)
		return 0;
	asked = bpf_sk_storage_get(&dns_asked, sk, NULL, 0);
	ring = asked ? ring_of(asked, addr16_is_v4(source)) : NULL;
	if (asked && ring && port == ring->via.port && is_from(source, &ring->via.addr)) {
		now = bpf_ktime_get_ns();
		bpf_spin_lock(&asked->lock);
		waiting = ring->n != 0;
		take_oldest(ring, now, ret);
		bpf_spin_unlock(&asked->lock);
	}
	c = waiting ? NULL : bpf_sk_storage_get(&captures, sk, NULL, 0);
	if (c && c->state == CAPTURE_DATAGRAM && port == c->rewritten.port &&
	    addr16_equal(source, &c->rewritten.addr))
		*ret = c->original;
	return ret->port != 0;
}

SEC("cgroup/recvmsg4")
int sockmesh_recvmsg4(struct bpf_sock_addr *ctx)
{
	struct addr16 source = addr16_from_v4(ctx->user_ip4);
	struct endpoint from = {};

	if (answerer(ctx, &source, &from)) {
		ctx->user_ip4 = from.addr.w[3];
		ctx->user_port = bpf_htons(from.port);
	}
	return 1;
}

SEC("cgroup/recvmsg6")
int sockmesh_recvmsg6(struct bpf_sock_addr *ctx)
{
	struct endpoint from = {};
	struct addr16 source;

	source.w[0] = ctx->user_ip6[0];
	source.w[1] = ctx->user_ip6[1];
	source.w[2] = ctx->user_ip6[2];
	source.w[3] = ctx->user_ip6[3];
	if (answerer(ctx, &source, &from)) {
		ctx->user_ip6[0] = from.addr.w[0];
		ctx->user_ip6[1] = from.addr.w[1];
		ctx->user_ip6[2] = from.addr.w[2];
		ctx->user_ip6[3] = from.addr.w[3];
		ctx->user_port = bpf_htons(from.port);
	}
	return 1;
}
