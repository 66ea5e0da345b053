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

static __always_inline int remember(struct bpf_sock_addr *ctx, const struct flow *flow,
				    const struct endpoint *rewritten)
{
	struct bpf_sock *sk = ctx->sk;
	struct dns_asked_locked *asked = NULL;
	int overflow = 0;
	__u32 at;

	if (sk)
		asked = bpf_sk_storage_get(&dns_asked, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!asked) {
		report_event(flow->netns, EVENT_RECORD_FAILED);
		return -1;
	}
	bpf_spin_lock(&asked->lock);
	asked->rewritten = *rewritten;
	if (asked->n >= DNS_ASKED_MAX) {
		asked->first++;
		asked->n = DNS_ASKED_MAX - 1;
		overflow = 1;
	}
	at = (asked->first + asked->n) & (DNS_ASKED_MAX - 1);
	asked->asked[at].addr = flow->destination;
	asked->asked[at].port = flow->port;
	asked->n++;
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
	count_rule(flow->netns, d.rule);
	if (!d.redirect)
		return SENDMSG_ALLOW;
	target->port = d.port;
	target->addr = addr16_is_v4(&flow->destination) ? addr16_from_v4(BE32(0x7f000001)) : lo6;
	return remember(ctx, flow, target) ? SENDMSG_DENY : SENDMSG_ALLOW;
}

SEC("cgroup/sendmsg4")
int sockmesh_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct endpoint target = {};
	struct flow flow = {};

	flow.netns = bpf_get_netns_cookie(ctx);
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

	flow.netns = bpf_get_netns_cookie(ctx);
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

static __always_inline int came_from(struct bpf_sock_addr *ctx, const struct addr16 *source,
				     const struct endpoint *rewritten)
{
	return bpf_ntohs(ctx->user_port) == rewritten->port &&
	       addr16_equal(source, &rewritten->addr);
}

/* Who the answer appears to come from; 0 when it is not an answer of ours. */
static __always_inline int answerer(struct bpf_sock_addr *ctx, const struct addr16 *source,
				    struct endpoint *ret)
{
	struct bpf_sock *sk = ctx->sk;
	struct dns_asked_locked *asked;
	struct capture *c;

	if (!sk)
		return 0;
	asked = bpf_sk_storage_get(&dns_asked, sk, NULL, 0);
	if (asked && came_from(ctx, source, &asked->rewritten)) {
		bpf_spin_lock(&asked->lock);
		if (asked->n) {
			asked->last = asked->asked[asked->first & (DNS_ASKED_MAX - 1)];
			asked->first++;
			asked->n--;
		}
		*ret = asked->last;
		bpf_spin_unlock(&asked->lock);
		return 1;
	}
	c = bpf_sk_storage_get(&captures, sk, NULL, 0);
	if (c && c->state == CAPTURE_DATAGRAM && came_from(ctx, source, &c->rewritten)) {
		*ret = c->original;
		return 1;
	}
	return 0;
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
