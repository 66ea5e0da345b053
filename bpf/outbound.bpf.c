// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Outbound: what an enrolled pod connects to becomes the proxy's port on loopback. Decide, then
 * record the original destination on the socket, then rewrite. Whatever cannot be recorded is
 * refused (connect fails with EPERM) and counted: it never goes past the proxy.
 *
 * The peer that the proxy sees stays the pod's address, as with netfilter's REDIRECT, because the
 * source is bound before the destination is rewritten. A proxy in another namespace of the node is
 * reached by its address: there the pod's own source comes by itself.
 */
#include "decide.bpf.h"
#include "handover.bpf.h"

#include <bpf/bpf_endian.h>

char _license[] SEC("license") = "Dual BSD/GPL";

const volatile __u32 max_handovers = 120000;
const volatile __u32 max_handovers_per_pod = 30000;

enum { IPPROTO_TCP_ = 6, IPPROTO_UDP_ = 17, IPPROTO_MPTCP_ = 262, TCP_LISTEN_STATE = 10 };
enum { CONNECT_DENY = 0, CONNECT_ALLOW = 1 };
enum { SOL_SOCKET_ = 1, SO_MARK_ = 36 };

/* What connect4 and connect6 share; the entries read and write the context themselves. */
struct attempt {
	struct flow flow;
	struct endpoint target; /* where the connection goes instead */
	struct addr16 bound6;	/* what the socket is bound to; zero: nothing */
	__u32 bound4, bound_device;
	__u16 bound_port;
	__u16 redirect;
	__u32 facts;
	__u32 kind; /* enum handover_kind, of what is recorded */
};

static __always_inline int has_handover_place(__u64 netns)
{
	if (!gauge_has_room(netns, max_handovers_per_pod)) {
		report_event(netns, EVENT_HANDOVER_POD_LIMIT);
		return 0;
	}
	if (!gauge_has_room(0, max_handovers)) {
		report_event(netns, EVENT_HANDOVER_NODE_LIMIT);
		return 0;
	}
	return 1;
}

/* 0, or -1 when the connection must be refused. */
static __always_inline int record(struct bpf_sock_addr *ctx, const struct attempt *a)
{
	struct bpf_sock *sk = ctx->sk;
	struct capture *c = NULL;

	if (sk)
		c = bpf_sk_storage_get(&captures, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!c) {
		report_event(a->flow.netns, EVENT_RECORD_FAILED);
		return -1;
	}
	c->original.addr = a->flow.destination;
	c->original.port = a->flow.port;
	c->rewritten = a->target;
	c->netns = a->flow.netns;
	c->kind = a->kind;
	if (a->flow.udp) {
		c->state = CAPTURE_DATAGRAM;
		return 0;
	}
	c->state = CAPTURE_PENDING;
	return has_handover_place(a->flow.netns) ? 0 : -1;
}

/* A socket that was captured before and is not now must not keep its old record. */
static __always_inline void forget(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct capture *c;

	if (!sk)
		return;
	c = bpf_sk_storage_get(&captures, sk, NULL, 0);
	if (c)
		c->state = CAPTURE_NONE;
}

/* What a socket asked before it was connected answers nothing that it asks from now on. */
static __always_inline void forget_questions(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;

	if (sk)
		bpf_sk_storage_delete(&dns_asked, sk);
}

/*
 * A second copy of this program, attached to another cgroup on the way while an agent moves, sees
 * what the first one has rewritten already.
 */
static __always_inline int is_decided(struct bpf_sock_addr *ctx, const struct attempt *a)
{
	struct bpf_sock *sk = ctx->sk;
	struct capture *c;

	if (!sk)
		return 0;
	c = bpf_sk_storage_get(&captures, sk, NULL, 0);
	if (!c || c->state != (a->flow.udp ? CAPTURE_DATAGRAM : CAPTURE_PENDING))
		return 0;
	return c->rewritten.port == a->flow.port &&
	       addr16_equal(&c->rewritten.addr, &a->flow.destination);
}

/* All fields first, volatile: see read_tuple() in original_dst.bpf.c. */
static __always_inline int is_wildcard_listener(struct bpf_sock *sk)
{
	volatile struct bpf_sock *s = sk;
	__u32 state = s->state, family = s->family, v4 = s->src_ip4;
	__u32 v6 = s->src_ip6[0] | s->src_ip6[1] | s->src_ip6[2] | s->src_ip6[3];

	return state == TCP_LISTEN_STATE && !(family == AF_INET ? v4 : v6);
}

/*
 * Does the proxy listen on the wildcard? Only then may a connection go to another loopback address
 * than 127.0.0.1, or to the pod's own address.
 */
static __always_inline int listens_on_wildcard(struct bpf_sock_addr *ctx, const struct addr16 *dst,
					       __u16 port)
{
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;
	int wildcard;

	if (addr16_is_v4(dst)) {
		t.ipv4.saddr = BE32(0x7f000001);
		t.ipv4.daddr = BE32(0x7f000001);
		t.ipv4.dport = bpf_htons(port);
		sk = bpf_skc_lookup_tcp(ctx, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0);
	} else {
		t.ipv6.saddr[3] = BE32(1);
		t.ipv6.daddr[3] = BE32(1);
		t.ipv6.dport = bpf_htons(port);
		sk = bpf_skc_lookup_tcp(ctx, &t, sizeof(t.ipv6), BPF_F_CURRENT_NETNS, 0);
	}
	if (!sk)
		return 0;
	wildcard = is_wildcard_listener(sk);
	bpf_sk_release(sk);
	return wildcard;
}

static __always_inline const struct addr16 *primary_source(const struct pod_config *pod,
							   const struct addr16 *dst)
{
	return addr16_is_v4(dst) ? &pod->source4 : &pod->source6;
}

/*
 * The source that the kernel would have chosen towards the original destination: that address
 * itself when it is the pod's own, else the pod's primary one. All zero: leave it to the kernel.
 */
static __always_inline struct addr16 wanted_source(const struct pod_config *pod,
						   const struct attempt *a)
{
	struct addr16 none = {};

	if ((pod->flags & POD_NODE_PROXY) || a->flow.udp || !addr16_is_zero(&a->flow.source) ||
	    addr16_is_loopback(&a->flow.destination))
		return none;
	if (a->facts & FACT_OUT_LO)
		return a->flow.destination;
	return *primary_source(pod, &a->flow.destination);
}

/*
 * Loopback, as REDIRECT does in OUTPUT. Two kinds of socket cannot reach it with the right source
 * and go to the pod's own address, when the proxy listens there: one bound to a port (no source
 * can be bound any more) and one bound to a device (127.0.0.1 is not behind it). So does IPv6 in
 * general: an end in TIME_WAIT answers ::1 only through the interface that its own address is on,
 * where ::1 is not, so the proxy's last FIN would stay without an answer and its socket in
 * LAST_ACK for minutes.
 */
static __always_inline void choose_target(struct bpf_sock_addr *ctx, const struct pod_config *pod,
					  struct attempt *a, __u16 port)
{
	const struct addr16 *dst = &a->flow.destination;
	const struct addr16 *own = a->facts & FACT_OUT_LO ? dst : primary_source(pod, dst);
	int loopback = addr16_is_loopback(dst), wildcard;
	struct addr16 lo6 = {{0, 0, 0, BE32(1)}};

	a->target.port = port;
	if (pod->flags & POD_NODE_PROXY) {
		a->target.addr = *node_proxy_of(pod, dst);
		a->kind = HANDOVER_TO_NODE;
		return;
	}
	a->target.addr = addr16_is_v4(dst) ? addr16_from_v4(BE32(0x7f000001)) : lo6;
	if (a->flow.udp || (loopback && !addr16_is_v4(dst)))
		return;
	wildcard = listens_on_wildcard(ctx, dst, port);
	if (!wildcard)
		return;
	if (!loopback && (a->bound_device || (a->bound_port && addr16_is_zero(&a->flow.source)))) {
		if (!addr16_is_zero(own))
			a->target.addr = *own;
		return;
	}
	if (addr16_is_v4(dst)) {
		struct endpoint original = {.addr = *dst, .port = a->flow.port};

		a->target.addr = addr16_from_v4(spread_loopback_be(&original));
	} else if (!addr16_is_zero(own)) {
		a->target.addr = *own;
	}
}

/* Ambient: ztunnel hands a connection on to the application as if it were the client. */
static __always_inline int speaks_for_client(const struct attempt *a)
{
	const struct addr16 *source = &a->flow.source;

	return (a->facts & (FACT_MARK_PROXY | FACT_MARK_REPLY)) && (a->facts & FACT_TCP) &&
	       (a->facts & FACT_OUT_LO) && !addr16_is_unspecified(source) &&
	       !addr16_is_loopback(source) && !is_own_address(a->flow.netns, source);
}

/*
 * The application answers an address that is not the pod's. The accepted socket inherits the mark
 * of the SYN, as does what the kernel answers itself, and a rule of routing brings such packets
 * back to the pod. Whoever has spoken for a client once and now connects elsewhere is ztunnel
 * again.
 */
static __always_inline int set_mark(struct bpf_sock_addr *ctx, const struct attempt *a,
				    const struct opener *who)
{
	__u32 wanted = a->kind == HANDOVER_TO_APP ? AMBIENT_MARK_REPLY : AMBIENT_MARK_PROXY;
	__u32 mark = (who->mark & ~(__u32)AMBIENT_MARK_MASK) | wanted;

	if (!(a->facts & FACT_TCP) || mark == who->mark ||
	    !(a->facts & (FACT_MARK_PROXY | FACT_MARK_REPLY)))
		return 0;
	if (!bpf_setsockopt(ctx, SOL_SOCKET_, SO_MARK_, &mark, sizeof(mark)))
		return 0;
	report_event(a->flow.netns, EVENT_RECORD_FAILED);
	return -1;
}

/*
 * The pod has left the mesh: nothing is captured. But ztunnel still hands on what it is asked
 * until its peers know, and the application's answers have to find it.
 */
static __always_inline int decide_of_leaving(struct bpf_sock_addr *ctx, struct attempt *a,
					     const struct opener *who)
{
	if (!speaks_for_client(a))
		return CONNECT_ALLOW;
	a->kind = HANDOVER_TO_APP;
	return set_mark(ctx, a, who) ? CONNECT_DENY : CONNECT_ALLOW;
}

/*
 * The decision for one connect(). Returns CONNECT_DENY or CONNECT_ALLOW; a->redirect says that the
 * entry has to rewrite to a->target, *source what to bind first (zero: nothing).
 */
static __always_inline int attempt_decide(struct bpf_sock_addr *ctx, struct attempt *a,
					  struct addr16 *source)
{
	const struct pod_config *pod = bpf_map_lookup_elem(&pods, &a->flow.netns);
	struct opener who;
	struct decision d;
	int hand_over, active;

	if (!pod || is_decided(ctx, a))
		return CONNECT_ALLOW;
	active = pod->flags & POD_ACTIVE;
	if (!active && (a->flow.udp || !(pod->flags & POD_LEAVES)))
		return CONNECT_ALLOW;
	if (a->flow.udp)
		forget_questions(ctx);
	who = opener_of(kernel_sock(ctx->sk));
	addr16_resolve_unspecified(&a->flow.destination, &a->flow.source);
	d = decide_outbound(pod, &a->flow, &who, &a->facts);
	if (!pod_is_still(pod, a->flow.netns)) {
		report_event(a->flow.netns, EVENT_RECORD_FAILED);
		return CONNECT_DENY;
	}
	if (!active)
		return decide_of_leaving(ctx, a, &who);
	count_rule(a->flow.netns, d.rule);

	/*
	 * A process that dials the proxy's port on an own address reaches it directly, and the
	 * proxy must learn that this very port was dialled, or it could not tell a loop.
	 */
	hand_over = !d.redirect && (a->facts & FACT_TCP) && (a->facts & FACT_OUT_LO) &&
		    !(pod->flags & POD_NODE_PROXY) && is_proxy_port(pod, a->flow.port);
	if (!d.redirect && speaks_for_client(a)) {
		a->kind = HANDOVER_TO_APP;
		hand_over = 1;
	}
	if (set_mark(ctx, a, &who))
		return CONNECT_DENY;
	if (!d.redirect && !hand_over) {
		forget(ctx);
		return CONNECT_ALLOW;
	}
	if (d.redirect) {
		choose_target(ctx, pod, a, d.port);
		*source = wanted_source(pod, a);
		if (addr16_is_zero(&a->target.addr)) {
			report_event(a->flow.netns, EVENT_NO_PROXY_ADDRESS);
			return CONNECT_DENY;
		}
	} else {
		a->target.addr = a->flow.destination;
		a->target.port = a->flow.port;
	}
	if (record(ctx, a))
		return CONNECT_DENY;
	a->redirect = d.redirect;
	return CONNECT_ALLOW;
}

static __always_inline int is_captured_protocol(__u32 protocol)
{
	return protocol == IPPROTO_TCP_ || protocol == IPPROTO_UDP_ || protocol == IPPROTO_MPTCP_;
}

static __always_inline void attempt_init(struct bpf_sock_addr *ctx, struct attempt *a)
{
	a->flow.netns = netns_of(ctx, ctx->sk);
	a->flow.port = bpf_ntohs(ctx->user_port);
	a->flow.udp = ctx->protocol == IPPROTO_UDP_;
	if (ctx->sk) {
		volatile struct bpf_sock *sk = ctx->sk;

		a->bound4 = sk->src_ip4;
		a->bound6.w[0] = sk->src_ip6[0];
		a->bound6.w[1] = sk->src_ip6[1];
		a->bound6.w[2] = sk->src_ip6[2];
		a->bound6.w[3] = sk->src_ip6[3];
		a->bound_port = sk->src_port;
		a->bound_device = sk->bound_dev_if;
	}
}

SEC("cgroup/connect4")
int sockmesh_connect4(struct bpf_sock_addr *ctx)
{
	struct addr16 source = {};
	struct attempt a = {};

	if (!is_captured_protocol(ctx->protocol))
		return CONNECT_ALLOW;
	attempt_init(ctx, &a);
	a.flow.destination = addr16_from_v4(ctx->user_ip4);
	if (a.bound4)
		a.flow.source = addr16_from_v4(a.bound4);
	if (attempt_decide(ctx, &a, &source) == CONNECT_DENY)
		return CONNECT_DENY;
	if (!a.redirect)
		return CONNECT_ALLOW;
	if (!addr16_is_zero(&source)) {
		struct sockaddr_in from = {.sin_family = AF_INET, .sin_addr.s_addr = source.w[3]};

		if (bpf_bind(ctx, (struct sockaddr *)&from, sizeof(from)) &&
		    addr16_is_loopback(&a.target.addr))
			count_event(a.flow.netns, EVENT_SOURCE_NOT_BOUND);
	}
	ctx->user_ip4 = a.target.addr.w[3];
	ctx->user_port = bpf_htons(a.target.port);
	return CONNECT_ALLOW;
}

/* Differs only in touching user_ip6, which the verifier refuses in connect4. */
SEC("cgroup/connect6")
int sockmesh_connect6(struct bpf_sock_addr *ctx)
{
	struct addr16 source = {};
	struct attempt a = {};

	if (!is_captured_protocol(ctx->protocol))
		return CONNECT_ALLOW;
	attempt_init(ctx, &a);
	a.flow.destination.w[0] = ctx->user_ip6[0];
	a.flow.destination.w[1] = ctx->user_ip6[1];
	a.flow.destination.w[2] = ctx->user_ip6[2];
	a.flow.destination.w[3] = ctx->user_ip6[3];
	a.flow.source = a.bound6;
	if (addr16_is_unspecified(&a.flow.source))
		a.flow.source.w[2] = 0; /* ::ffff:0.0.0.0 is not bound either */
	if (attempt_decide(ctx, &a, &source) == CONNECT_DENY)
		return CONNECT_DENY;
	if (!a.redirect)
		return CONNECT_ALLOW;
	if (!addr16_is_zero(&source)) {
		struct sockaddr_in6 from = {.sin6_family = AF_INET6};

		from.sin6_addr.in6_u.u6_addr32[0] = source.w[0];
		from.sin6_addr.in6_u.u6_addr32[1] = source.w[1];
		from.sin6_addr.in6_u.u6_addr32[2] = source.w[2];
		from.sin6_addr.in6_u.u6_addr32[3] = source.w[3];
		if (bpf_bind(ctx, (struct sockaddr *)&from, sizeof(from)) &&
		    addr16_is_loopback(&a.target.addr))
			count_event(a.flow.netns, EVENT_SOURCE_NOT_BOUND);
	}
	ctx->user_ip6[0] = a.target.addr.w[0];
	ctx->user_ip6[1] = a.target.addr.w[1];
	ctx->user_ip6[2] = a.target.addr.w[2];
	ctx->user_ip6[3] = a.target.addr.w[3];
	ctx->user_port = bpf_htons(a.target.port);
	return CONNECT_ALLOW;
}
