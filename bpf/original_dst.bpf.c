// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * The life of an original destination after connect() has recorded it: handed over to the socket
 * that the proxy accepts, answered when the proxy asks SO_ORIGINAL_DST, shown to the application
 * that asks getpeername(), withdrawn when the connection ends early. Also the proxies' listeners,
 * which register themselves here because it is the same sock_ops hook.
 */
#include "handover.bpf.h"
#include "listener.bpf.h"
#include "tuple.bpf.h"

#include <bpf/bpf_endian.h>

#define EEXIST 17

enum { SOL_IP_ = 0, SOL_IPV6_ = 41, SO_ORIGINAL_DST_ = 80, OPTVAL_MAX = 4096 };
enum { TCP_SYN_SENT_STATE = 2, TCP_CLOSE_STATE = 7, TCP_LISTEN_STATE = 10 };

/* Of the SYN that is about to be sent. */
static __always_inline __u32 sequence_of_syn(struct bpf_sock *sk)
{
	const struct tcp_sock *tp = (const struct tcp_sock *)kernel_sock(sk);

	return BPF_CORE_READ(tp, write_seq);
}

/* TCP_CONNECT_CB: the ports are known, the SYN is not sent yet. */
static __always_inline void connecting(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct handover entry = {};
	struct capture *c;
	struct tuple t;

	if (!sk)
		return;
	c = bpf_sk_storage_get(&captures, sk, NULL, 0);
	if (!c || c->state != CAPTURE_PENDING)
		return;
	read_tuple(ctx, &t);
	__builtin_memset(&c->key, 0, sizeof(c->key));
	if (c->kind == HANDOVER_TO_NODE)
		c->key.isn = sequence_of_syn(sk);
	else
		c->key.netns = c->netns;
	c->key.local = t.local;
	c->key.remote = t.remote;
	c->key.local_port = t.local_port;
	c->key.remote_port = t.remote_port;
	entry.original = c->original;
	entry.kind = c->kind;
	entry.cookie = bpf_get_socket_cookie(ctx);
	entry.netns = c->netns;
	c->state = CAPTURE_HANDED;
	/* An entry of the same tuple is a leftover of a connection that is gone: its place is ours.
	 */
	if (!bpf_map_lookup_elem(&handovers, &c->key))
		handover_take(c->netns);
	if (bpf_map_update_elem(&handovers, &c->key, &entry, BPF_ANY)) {
		/* There was a place, so this is the kernel's memory: the proxy gets ENOENT. */
		bpf_map_delete_elem(&handovers, &c->key);
		report_event(c->netns, EVENT_HANDOVER_LOST);
		handover_release(c->netns);
		return;
	}
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline int is_local_peer(__u64 netns, const struct addr16 *peer)
{
	struct local_address_key key = {.netns = netns, .addr = *peer};

	return addr16_is_loopback(peer) || bpf_map_lookup_elem(&local_addresses, &key);
}

/*
 * Ambient: the application's end of a connection that ztunnel or kubelet has announced is there.
 * Not before: with SYN cookies the kernel looks for the listener once more when the ACK comes.
 */
static __always_inline void announced_arrived(struct handover_key *key)
{
	const struct handover *entry = bpf_map_lookup_elem(&handovers, key);

	if (entry) {
		if (entry->kind == HANDOVER_TO_APP && !bpf_map_delete_elem(&handovers, key))
			handover_release(key->netns);
		return;
	}
	key->netns = 0;
	bpf_map_delete_elem(&probes, key);
}

/*
 * In a namespace that is not redirected: is it the node proxy's end of a captured connection? Every
 * program below the pods' cgroup is asked; what only that connection's two ends know decides.
 */
static __always_inline void accepted_for_node(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	__u32 next = ctx->rcv_nxt; /* nothing has come after the SYN */
	const struct handover *entry;
	struct handover_key key = {};
	struct accepted_dst *dst;
	struct tuple t;
	__u64 netns;

	read_tuple(ctx, &t);
	key.local = t.remote;
	key.remote = t.local;
	key.local_port = t.remote_port;
	key.remote_port = t.local_port;
	key.isn = next - 1;
	entry = bpf_map_lookup_elem(&handovers, &key);
	if (!entry)
		return;
	netns = entry->netns;
	dst = bpf_sk_storage_get(&accepted_dsts, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (dst) {
		dst->original = entry->original;
		dst->kind = ACCEPTED_RECORD;
	} else {
		report_event(netns, EVENT_RECORD_FAILED);
	}
	if (!bpf_map_delete_elem(&handovers, &key))
		handover_release(netns);
}

/* PASSIVE_ESTABLISHED: before accept() can return this socket. */
static __always_inline void accepted(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	const struct pod_config *pod;
	struct handover_key key = {};
	struct accepted_dst *dst;
	struct handover *entry;
	struct tuple t;
	__u64 netns;

	if (!sk)
		return;
	netns = netns_of(ctx, sk);
	pod = bpf_map_lookup_elem(&pods, &netns);
	if (!pod) {
		accepted_for_node(ctx, sk);
		return;
	}
	if (pod->flags & POD_NODE_PROXY)
		return; /* no proxy of its own accepts anything there */
	read_tuple(ctx, &t);
	key.netns = netns;
	key.local = t.remote;
	key.remote = t.local;
	key.local_port = t.remote_port;
	key.remote_port = t.local_port;
	if (!is_proxy_port(pod, t.local_port) || !is_local_peer(netns, &t.remote)) {
		/* From outside: its local address is the original destination. */
		if (pod->flags & POD_IS_AMBIENT)
			announced_arrived(&key);
		return;
	}
	entry = bpf_map_lookup_elem(&handovers, &key);
	dst = bpf_sk_storage_get(&accepted_dsts, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!dst) {
		report_event(netns, EVENT_RECORD_FAILED);
	} else if (entry) {
		dst->original = entry->original;
		dst->kind = ACCEPTED_RECORD;
	} else if (!dst->kind) { /* or another copy of this program has taken it over already */
		dst->kind = ACCEPTED_MISS;
		/* While it only drains, others bring the proxy its connections. */
		if (pod->flags & POD_ACTIVE)
			report_event(netns, EVENT_HANDOVER_MISS);
	}
	if (entry && !bpf_map_delete_elem(&handovers, &key))
		handover_release(netns);
}

static __always_inline void closed(struct bpf_sock_ops *ctx, int old_state)
{
	struct bpf_sock *sk = ctx->sk;
	struct handover *entry;
	struct capture *c;

	if (!sk)
		return;
	if (old_state == TCP_LISTEN_STATE) {
		if (bpf_sk_storage_get(&listener_marks, sk, NULL, 0))
			notify_listener(netns_of(ctx, sk), NOTICE_LISTENER_LEFT);
		return;
	}
	c = bpf_sk_storage_get(&captures, sk, NULL, 0);
	if (!c || c->state != CAPTURE_HANDED)
		return;
	c->state = CAPTURE_NONE;
	entry = bpf_map_lookup_elem(&handovers, &c->key);
	if (!entry || entry->cookie != bpf_get_socket_cookie(ctx) ||
	    bpf_map_delete_elem(&handovers, &c->key))
		return;
	handover_release(c->netns);
	/* Its answer came, so somebody has accepted it: under another tuple, or not below us. */
	if (c->kind == HANDOVER_TO_NODE && old_state != TCP_SYN_SENT_STATE)
		report_event(c->netns, EVENT_HANDOVER_UNTAKEN);
}

static __always_inline void watch_state(struct bpf_sock_ops *ctx)
{
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/*
 * Ambient: ztunnel without port reuse marks its listener when it listens already, so the agent
 * looks a moment later whose it is.
 */
static __always_inline void not_proxys(struct bpf_sock_ops *ctx, const struct pod_config *pod,
				       __u64 netns)
{
	if (pod->flags & POD_IS_AMBIENT) {
		watch_state(ctx);
		notify_listener(netns, NOTICE_LISTENER_UNMARKED);
	} else {
		report_event(netns, EVENT_LISTENER_NOT_PROXY);
	}
}

static __always_inline void listening(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct listener_key key = {};
	const struct pod_config *pod;
	struct listener_mark *mark;
	struct opener who;
	struct tuple t;
	int err = -EEXIST;
	__u64 netns;

	if (!sk)
		return;
	netns = netns_of(ctx, sk);
	pod = bpf_map_lookup_elem(&pods, &netns);
	if (!pod)
		return;
	key.netns = netns;
	read_tuple(ctx, &t);
	if (t.local_port != pod->inbound_port)
		return;
	who = opener_of(kernel_sock(sk));
	if (!is_inbound_listener(pod, t.local_port, &t.local, &who)) {
		if (!addr16_is_loopback(&t.local))
			not_proxys(ctx, pod, netns);
		return;
	}
	mark = bpf_sk_storage_get(&listener_marks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!mark) {
		report_event(netns, EVENT_LISTENER_FAILED);
		return;
	}
	mark->inbound = 1;
	for (__u32 slot = 0; slot < LISTENER_SLOTS && err == -EEXIST; slot++) {
		key.slot = slot;
		err = bpf_sock_hash_update(ctx, &listeners, &key, BPF_NOEXIST);
	}
	if (err == -EEXIST) {
		/* Newer listeners outlive older ones: a proxy that is being replaced leaves. */
		key.slot = bpf_get_prandom_u32() % LISTENER_SLOTS;
		err = bpf_sock_hash_update(ctx, &listeners, &key, BPF_ANY);
		count_event(netns, EVENT_LISTENER_SLOTS_FULL);
	}
	if (err)
		report_event(netns, EVENT_LISTENER_FAILED);
	watch_state(ctx);
}

SEC("sockops")
int sockmesh_sockops(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		connecting(ctx);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		accepted(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] == TCP_CLOSE_STATE)
			closed(ctx, ctx->args[0]);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		listening(ctx);
		break;
	}
	return 1;
}

/* ---- the proxy asks ------------------------------------------------------------------------- */

/*
 * What the kernel's NAT would answer: IPv4, mapped included, as a sockaddr_in through SOL_IP;
 * IPv6 as a sockaddr_in6 through SOL_IPV6; the other level knows nothing (ENOENT).
 */
static __always_inline int answer(struct bpf_sockopt *ctx, const struct endpoint *dst)
{
	struct sockaddr_in6 *v6 = ctx->optval;
	struct sockaddr_in *v4 = ctx->optval;

	if (addr16_is_v4(&dst->addr)) {
		if (ctx->level != SOL_IP_ || (void *)(v4 + 1) > ctx->optval_end)
			return 0;
		__builtin_memset(v4, 0, sizeof(*v4));
		v4->sin_family = AF_INET;
		v4->sin_port = bpf_htons(dst->port);
		v4->sin_addr.s_addr = dst->addr.w[3];
		ctx->optlen = sizeof(*v4);
	} else {
		if (ctx->level != SOL_IPV6_ || (void *)(v6 + 1) > ctx->optval_end)
			return 0;
		__builtin_memset(v6, 0, sizeof(*v6));
		v6->sin6_family = AF_INET6;
		v6->sin6_port = bpf_htons(dst->port);
		v6->sin6_addr.in6_u.u6_addr32[0] = dst->addr.w[0];
		v6->sin6_addr.in6_u.u6_addr32[1] = dst->addr.w[1];
		v6->sin6_addr.in6_u.u6_addr32[2] = dst->addr.w[2];
		v6->sin6_addr.in6_u.u6_addr32[3] = dst->addr.w[3];
		ctx->optlen = sizeof(*v6);
	}
	ctx->retval = 0;
	return 1;
}

static __always_inline void local_endpoint(struct bpf_sock *sk, struct endpoint *ret)
{
	volatile struct bpf_sock *s = sk;
	__u32 family = s->family, v4 = s->src_ip4;
	__u32 w0 = s->src_ip6[0], w1 = s->src_ip6[1], w2 = s->src_ip6[2], w3 = s->src_ip6[3];

	ret->port = s->src_port;
	if (family == AF_INET) {
		ret->addr = addr16_from_v4(v4);
		return;
	}
	ret->addr.w[0] = w0;
	ret->addr.w[1] = w1;
	ret->addr.w[2] = w2;
	ret->addr.w[3] = w3;
}

SEC("cgroup/getsockopt")
int sockmesh_getsockopt(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct endpoint local = {};
	struct accepted_dst *dst;

	if (ctx->optname != SO_ORIGINAL_DST_ ||
	    (ctx->level != SOL_IP_ && ctx->level != SOL_IPV6_)) {
		/* 0 leaves the kernel's answer as it is, also one that is longer than a page. */
		if (ctx->optlen > OPTVAL_MAX)
			ctx->optlen = 0;
		return 1;
	}
	if (!sk)
		return 1;
	dst = bpf_sk_storage_get(&accepted_dsts, sk, NULL, 0);
	if (dst) {
		if (dst->kind == ACCEPTED_RECORD && answer(ctx, &dst->original))
			count_event(netns_of(ctx, sk), EVENT_ORIGINAL_DST);
		return 1;
	}
	/* Steered by sk_lookup: nothing was rewritten, so the local address is what was dialled. */
	if (!ctx->retval || sk->state == TCP_LISTEN_STATE ||
	    !bpf_sk_storage_get(&listener_marks, sk, NULL, 0))
		return 1;
	local_endpoint(sk, &local);
	if (answer(ctx, &local))
		count_event(netns_of(ctx, sk), EVENT_ORIGINAL_DST);
	return 1;
}

/* ---- the application asks ------------------------------------------------------------------- */

static __always_inline const struct capture *captured_peer(struct bpf_sock_addr *ctx,
							   const struct addr16 *peer)
{
	struct bpf_sock *sk = ctx->sk;
	const struct capture *c;

	if (!sk)
		return NULL;
	c = bpf_sk_storage_get(&captures, sk, NULL, 0);
	if (!c || c->state == CAPTURE_NONE || bpf_ntohs(ctx->user_port) != c->rewritten.port ||
	    !addr16_equal(peer, &c->rewritten.addr))
		return NULL;
	return c;
}

SEC("cgroup/getpeername4")
int sockmesh_getpeername4(struct bpf_sock_addr *ctx)
{
	struct addr16 peer = addr16_from_v4(ctx->user_ip4);
	const struct capture *c = captured_peer(ctx, &peer);

	if (c) {
		ctx->user_ip4 = c->original.addr.w[3];
		ctx->user_port = bpf_htons(c->original.port);
	}
	return 1;
}

SEC("cgroup/getpeername6")
int sockmesh_getpeername6(struct bpf_sock_addr *ctx)
{
	struct addr16 peer;
	const struct capture *c;

	peer.w[0] = ctx->user_ip6[0];
	peer.w[1] = ctx->user_ip6[1];
	peer.w[2] = ctx->user_ip6[2];
	peer.w[3] = ctx->user_ip6[3];
	c = captured_peer(ctx, &peer);
	if (c) {
		ctx->user_ip6[0] = c->original.addr.w[0];
		ctx->user_ip6[1] = c->original.addr.w[1];
		ctx->user_ip6[2] = c->original.addr.w[2];
		ctx->user_ip6[3] = c->original.addr.w[3];
		ctx->user_port = bpf_htons(c->original.port);
	}
	return 1;
}
