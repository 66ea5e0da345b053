/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_ACCELERATE_ENTER_BPF_H
#define SOCKMESH_ACCELERATE_ENTER_BPF_H

/*
 * Who enters the map, and when: the moment a connection is established, which is the only one that
 * the kernel offers. The connecting end comes first and enters when its hop, its pod, the listener
 * at the other end and the socket itself allow it; the accepting end follows only when it finds the
 * other one by what only the two ends of one connection know.
 *
 * Being in the map has a price even for a socket that stays on TCP, so nobody enters in vain: a
 * listener whose accepted sockets have not been seen to be non-blocking yet keeps both ends out.
 */
#include "accelerate_way.bpf.h"
#include "handover.bpf.h"
#include "tuple.bpf.h"

#define EBUSY 16
#define E2BIG 7

const volatile __u32 max_sockets = 32768, max_sockets_per_pod = 4096;

/* A connection that is being looked at. */
struct candidate {
	__u64 netns, peer_netns;
	__u32 leg;
	__u32 is_active;
	__u32 is_slower; /* a trial has shown that it would be, the short way */
	struct accel_end_key ends;
	struct accel_pair_key pair;
};

static __always_inline const struct accel_pod *accel_pod_of(__u64 netns)
{
	return bpf_map_lookup_elem(&accel_pods, &netns);
}

static __always_inline int is_own_address(__u64 netns, const struct addr16 *addr)
{
	struct local_address_key key = {.netns = netns, .addr = *addr};

	return addr16_is_loopback(addr) || bpf_map_lookup_elem(&local_addresses, &key);
}

/* The pod of this node that has the address; 0: none, or nobody can tell. */
static __always_inline __u64 pod_at(const struct addr16 *addr)
{
	const struct accel_address *at = bpf_map_lookup_elem(&accel_addresses, addr);

	if (!at)
		return 0;
	if (!at->netns)
		accel_count(ACCEL_AMBIGUOUS);
	return at->netns;
}

static __always_inline __u32 workload_of(__u64 netns)
{
	const struct accel_pod *pod = netns ? accel_pod_of(netns) : NULL;

	return pod ? pod->workload : 0;
}

/* ---- the listener at the other end ---------------------------------------------------------- */

enum acceptor_is { ACCEPTOR_IS_UNKNOWN, ACCEPTOR_IS_BLOCKING, ACCEPTOR_IS_NONBLOCKING };

static __always_inline enum acceptor_is acceptor_seen(__u64 netns, __u16 port)
{
	struct accel_acceptor_key key = {.netns = netns, .port = port};
	const struct accel_acceptor *a = bpf_map_lookup_elem(&accel_acceptors, &key);

	if (!a)
		return ACCEPTOR_IS_UNKNOWN;
	return a->blocking ? ACCEPTOR_IS_BLOCKING : ACCEPTOR_IS_NONBLOCKING;
}

/*
 * A proxy's listener that is not known yet is as the other proxies of this node, which are the same
 * program: there is one entry for all of them, without namespace and port.
 */
static __always_inline enum acceptor_is acceptor_is(__u64 netns, __u16 port, int is_proxys)
{
	enum acceptor_is is = acceptor_seen(netns, port);

	return is == ACCEPTOR_IS_UNKNOWN && is_proxys ? acceptor_seen(0, 0) : is;
}

static __always_inline void acceptor_tell(const struct accel_acceptor_key *key, int nonblocking)
{
	struct accel_acceptor *a = bpf_map_lookup_elem(&accel_acceptors, key), first = {};

	if (!a) {
		bpf_map_update_elem(&accel_acceptors, key, &first, BPF_NOEXIST);
		a = bpf_map_lookup_elem(&accel_acceptors, key);
	}
	if (a)
		__sync_fetch_and_add(nonblocking ? &a->nonblocking : &a->blocking, 1);
}

/* By which port an accepted socket's listener is known. */
static __always_inline __u16 acceptor_port(struct bpf_sock *sk, __u64 netns, __u16 local_port)
{
	const struct pod_config *pod = bpf_map_lookup_elem(&pods, &netns);

	if (pod && bpf_sk_storage_get(&listener_marks, sk, NULL, 0))
		return pod->inbound_port;
	return local_port;
}

static __always_inline int is_proxys_listener(__u64 netns, __u16 port)
{
	const struct pod_config *pod = bpf_map_lookup_elem(&pods, &netns);

	return pod && (port == pod->inbound_port || port == pod->outbound_port);
}

/*
 * An answer of an accepted socket was acknowledged, so its program has had it for a while: is it
 * non-blocking? Asked once for each socket of a listener that is not known yet.
 */
static __always_inline void observe_acceptor(struct bpf_sock_ops *ctx)
{
	struct accel_acceptor_key key = {}, any_proxy = {};
	struct bpf_sock *sk = ctx->sk;
	struct accel_stream *s;
	int known, nonblocking;
	struct tuple t;

	if (!sk)
		return;
	s = bpf_sk_storage_get(&accel_streams, sk, NULL, 0);
	if (!s || !s->is_watched)
		return; /* somebody else's program asked for this call */
	nonblocking = is_nonblocking(kernel_sock(sk), &known);
	if (!known)
		return; /* not accepted yet, whoever answered */
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags & ~BPF_SOCK_OPS_RTT_CB_FLAG);
	s->is_watched = 0;
	if (!s->cookie)
		bpf_sk_storage_delete(&accel_streams, sk);
	read_tuple(ctx, &t);
	key.netns = netns_of(ctx, sk);
	key.port = acceptor_port(sk, key.netns, t.local_port);
	acceptor_tell(&key, nonblocking);
	/* One that blocks speaks for itself only. */
	if (nonblocking && is_proxys_listener(key.netns, key.port))
		acceptor_tell(&any_proxy, nonblocking);
}

/* Somebody listens anew: perhaps another program. */
static __always_inline void forget_acceptor(struct bpf_sock_ops *ctx)
{
	struct accel_acceptor_key key = {};
	struct bpf_sock *sk = ctx->sk;
	struct tuple t;

	if (!sk)
		return;
	read_tuple(ctx, &t);
	key.netns = netns_of(ctx, sk);
	key.port = t.local_port;
	bpf_map_delete_elem(&accel_acceptors, &key);
}

/* ---- the socket itself ---------------------------------------------------------------------- */

/* 0, or the event that says why this socket may not enter. */
static __always_inline __u32 unfit(struct bpf_sock_ops *ctx, const struct tcp_sock *tp)
{
	__u32 in = ctx->data_segs_in, out = ctx->data_segs_out, next = ctx->snd_nxt;

	if ((guards & GUARD_NO_DATA) &&
	    (in || out || tp->write_seq != next ||
	     (bpf_core_field_exists(tp->fastopen_rsk) && tp->fastopen_rsk)))
		return ACCEL_HAS_MOVED_DATA;
	if ((guards & GUARD_MPTCP) && bpf_core_field_exists(tp->is_mptcp) &&
	    BPF_CORE_READ_BITFIELD(tp, is_mptcp))
		return ACCEL_MPTCP;
	if ((guards & GUARD_ULP) && tp->inet_conn.icsk_ulp_ops)
		return ACCEL_ULP;
	if ((guards & GUARD_LOWAT) && tp->inet_conn.icsk_inet.sk.sk_rcvlowat > 1)
		return ACCEL_LOWAT;
	if ((guards & GUARD_ZEROCOPY) &&
	    (tp->inet_conn.icsk_inet.sk.__sk_common.skc_flags &
	     (1ul << bpf_core_enum_value(enum sock_flags, SOCK_ZEROCOPY))))
		return ACCEL_ZEROCOPY;
	return 0;
}

/* Places are taken here and given back when the socket ends; as many CPUs may pass at once. */
static __always_inline __u32 take_place(__u64 netns)
{
	struct accel_usage *pod = usage_of(netns), *node = usage_of(0);

	if (!pod || (__s64) * (volatile __u64 *)&pod->sockets >= (__s64)max_sockets_per_pod)
		return ACCEL_POD_FULL;
	if (!node || (__s64) * (volatile __u64 *)&node->sockets >= (__s64)max_sockets)
		return ACCEL_NODE_FULL;
	__sync_fetch_and_add(&pod->sockets, 1);
	__sync_fetch_and_add(&node->sockets, 1);
	return 0;
}

static __always_inline void give_place(__u64 netns)
{
	struct accel_usage *pod = usage_of(netns), *node = usage_of(0);

	if (pod)
		__sync_fetch_and_add(&pod->sockets, -1);
	if (node)
		__sync_fetch_and_add(&node->sockets, -1);
}

static __always_inline __u32 insert_failure(long err)
{
	if (err == -EBUSY)
		return ACCEL_SECOND_OWNER;
	return err == -E2BIG ? ACCEL_MAP_FULL : ACCEL_INSERT_FAILED;
}

/* 0 with *ret set, or the event that says why it is not in the map. */
static __always_inline __u32 enter(struct bpf_sock_ops *ctx, const struct candidate *c,
				   struct accel_stream **ret)
{
	struct bpf_sock *sk = ctx->sk;
	struct accel_stream *s;
	struct tcp_sock *tp;
	__u64 cookie;
	__u32 why;
	long err;

	if (!sk)
		return ACCEL_NO_MEMORY;
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return ACCEL_INSERT_FAILED;
	why = unfit(ctx, tp);
	if (why)
		return why;
	cookie = bpf_get_socket_cookie(ctx);
	s = bpf_sk_storage_get(&accel_streams, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s)
		return ACCEL_NO_MEMORY;
	why = take_place(c->netns);
	if (why)
		goto failed;
	s->netns = c->netns;
	s->peer_netns = c->peer_netns;
	s->ends = c->ends;
	s->pair = c->pair;
	s->is_active = c->is_active;
	s->born_ns = bpf_ktime_get_ns();
	s->cookie = cookie;
	err = bpf_sock_hash_update(ctx, &accel_sockets, &cookie, BPF_ANY);
	if (!err) {
		bpf_sock_ops_cb_flags_set(ctx,
					  ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
		accel_count(ACCEL_ENTERED);
		*ret = s;
		return 0;
	}
	give_place(c->netns);
	why = insert_failure(err);
failed:
	bpf_sk_storage_delete(&accel_streams, sk);
	return why;
}

static __always_inline void fill_end(struct accel_end *end, struct bpf_sock *sk,
				     const struct accel_stream *s)
{
	end->sock = (__u64)kernel_sock(sk);
	end->stream = (__u64)s;
	*(volatile __u64 *)&end->cookie = s->cookie; /* last: it says that the rest is there */
}

/* ---- both ends ------------------------------------------------------------------------------ */

static __always_inline void fill_ends(struct bpf_sock_ops *ctx, const struct tuple *t,
				      struct candidate *c)
{
	struct accel_end_key *k = &c->ends;
	__u32 sent = ctx->snd_nxt, received = ctx->rcv_nxt;

	if (guards & GUARD_NETNS) {
		k->active_netns = c->is_active ? c->netns : c->peer_netns;
		k->passive_netns = c->is_active ? c->peer_netns : c->netns;
	}
	k->active = c->is_active ? t->local : t->remote;
	k->passive = c->is_active ? t->remote : t->local;
	k->active_port = c->is_active ? t->local_port : t->remote_port;
	k->passive_port = c->is_active ? t->remote_port : t->local_port;
	if (guards & GUARD_ISN) {
		k->active_isn = c->is_active ? sent : received;
		k->passive_isn = c->is_active ? received : sent;
	}
}

/* ---- the connecting end --------------------------------------------------------------------- */

static __always_inline int is_proxy(const struct pod_config *pod, const struct sock *sk)
{
	struct opener who = opener_of(sk);

	return !!(identity_facts(pod, &who) & (FACT_UID_PROXY | FACT_GID_PROXY));
}

/*
 * An application's captured connection to its proxy, or the proxy's to an application of its pod.
 * Returns the port by which the listener is known, 0: neither.
 */
static __always_inline __u16 leg_within_pod(struct bpf_sock *sk, const struct pod_config *pod,
					    const struct tuple *t, struct candidate *c)
{
	const struct capture *captured = bpf_sk_storage_get(&captures, sk, NULL, 0);

	c->peer_netns = c->netns;
	if (captured && captured->state == CAPTURE_HANDED) {
		if (t->remote_port != pod->outbound_port)
			return 0;
		c->leg = LEG_OUT;
		c->pair.peer = workload_of(pod_at(&captured->original.addr));
		c->pair.port = captured->original.port;
		return t->remote_port;
	}
	if (is_proxy_port(pod, t->remote_port) || !is_proxy(pod, kernel_sock(sk)))
		return 0;
	c->leg = LEG_IN;
	c->pair.peer = c->pair.workload;
	c->pair.port = t->remote_port;
	return t->remote_port;
}

/* One proxy's connection to another's pod; the listener there is that pod's proxy's. */
static __always_inline __u16 leg_between_pods(struct bpf_sock *sk, const struct pod_config *pod,
					      const struct tuple *t, struct candidate *c)
{
	const struct accel_pod *peer;
	const struct pod_config *peer_pod;

	c->peer_netns = pod_at(&t->remote);
	peer = c->peer_netns ? accel_pod_of(c->peer_netns) : NULL;
	if (!peer || peer->level < ACCEL_PROXY || !is_proxy(pod, kernel_sock(sk)))
		return 0;
	peer_pod = bpf_map_lookup_elem(&pods, &c->peer_netns);
	if (!peer_pod || !(peer_pod->flags & POD_ACTIVE))
		return 0;
	c->leg = LEG_NODE;
	c->pair.peer = peer->workload;
	c->pair.port = t->remote_port;
	return peer_pod->inbound_port;
}

static __always_inline int is_left_alone(struct candidate *c)
{
	struct accel_pair *pair = bpf_map_lookup_elem(&accel_pairs, &c->pair);
	int verdict = has_verdict(&c->pair);

	if (!pair)
		return verdict;
	c->is_slower = !verdict && trial_leaves_alone(&c->pair, pair);
	if (!verdict && !c->is_slower)
		return 0;
	__sync_fetch_and_add(&pair->left_alone, 1);
	return 1;
}

/*
 * A trial's verdict is about so many connections at once, so those that are left alone because of
 * one count as well, until they end.
 */
static __always_inline void count_alone(struct bpf_sock_ops *ctx, const struct candidate *c)
{
	struct accel_pair *pair = bpf_map_lookup_elem(&accel_pairs, &c->pair);
	struct bpf_sock *sk = ctx->sk;
	struct accel_stream *s;

	if (!pair || !sk)
		return;
	s = bpf_sk_storage_get(&accel_streams, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s)
		return;
	s->pair = c->pair;
	s->is_counted = s->is_alone = 1;
	__sync_fetch_and_add(&pair->live, 1);
	__sync_fetch_and_add(&pair->live_alone, 1);
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

/* 0, or the event that says why the connection stays as it is; *ret_port: of its listener, 0: no
 * hop of ours. */
static __always_inline __u32 examine_active(struct bpf_sock_ops *ctx, struct candidate *c)
{
	const struct accel_pod *self = accel_pod_of(c->netns);
	const struct pod_config *pod = bpf_map_lookup_elem(&pods, &c->netns);
	struct bpf_sock *sk = ctx->sk;
	enum acceptor_is acceptor;
	int known, nonblocking;
	struct tuple t;
	__u16 port;

	if (!sk || !pod || !self || self->level == ACCEL_OFF)
		return 0;
	read_tuple(ctx, &t);
	c->pair.workload = self->workload;
	if (!is_own_address(c->netns, &t.remote))
		port = leg_between_pods(sk, pod, &t, c);
	else
		port = self->level == ACCEL_FULL ? leg_within_pod(sk, pod, &t, c) : 0;
	if (!port)
		return c->leg = 0;
	c->pair.leg = c->leg;
	if (is_left_alone(c))
		return ACCEL_LEFT_ALONE;
	nonblocking = is_nonblocking(kernel_sock(sk), &known);
	if ((guards & GUARD_NONBLOCKING) && !nonblocking)
		return ACCEL_BLOCKING;
	acceptor = acceptor_is(c->peer_netns, port, c->leg != LEG_IN);
	if ((guards & GUARD_NONBLOCKING) && acceptor != ACCEPTOR_IS_NONBLOCKING)
		return acceptor == ACCEPTOR_IS_BLOCKING ? ACCEL_ACCEPTOR_BLOCKING
							: ACCEL_ACCEPTOR_UNKNOWN;
	fill_ends(ctx, &t, c);
	return 0;
}

static __always_inline void connected(struct bpf_sock_ops *ctx)
{
	struct candidate c = {.is_active = 1};
	struct accel_stream *s = NULL;
	struct bpf_sock *sk = ctx->sk;
	struct accel_ends ends = {};
	__u32 why;

	if (!sk || is_stopped())
		return;
	c.netns = netns_of(ctx, sk);
	why = examine_active(ctx, &c);
	if (!why && !c.leg)
		return;
	if (!why)
		why = enter(ctx, &c, &s);
	if (why || !s) {
		accel_count(why);
		if (c.is_slower)
			count_alone(ctx, &c);
		return;
	}
	ends.pair = c.pair;
	fill_end(&ends.active, sk, s);
	tell_connection(s);
	/* Full: then the other end stays out, and this one on TCP. */
	if (bpf_map_update_elem(&accel_ends, &c.ends, &ends, BPF_ANY))
		accel_count(ACCEL_MAP_FULL);
}

/* ---- the accepting end ---------------------------------------------------------------------- */

static __always_inline void watch_acceptor(struct bpf_sock_ops *ctx, struct bpf_sock *sk)
{
	struct accel_stream *s =
		bpf_sk_storage_get(&accel_streams, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);

	if (!s)
		return;
	s->is_watched = 1;
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_RTT_CB_FLAG);
}

/*
 * Only what the connecting end has said of the hop counts here but for the proof that this end is
 * what it took it for: the proxy's inbound listener between pods.
 */
static __always_inline int is_other_end(struct bpf_sock *sk, const struct accel_pod *self,
					const struct accel_ends *ends)
{
	if (ends->pair.leg == LEG_NODE)
		return bpf_sk_storage_get(&listener_marks, sk, NULL, 0) != NULL;
	return self->level == ACCEL_FULL;
}

static __always_inline void accepted(struct bpf_sock_ops *ctx)
{
	struct candidate c = {};
	const struct accel_pod *self;
	struct accel_stream *s = NULL;
	struct bpf_sock *sk = ctx->sk;
	struct accel_ends *ends;
	struct tuple t;
	int is_marked;
	__u16 port;
	__u32 why;

	if (!sk || is_stopped())
		return;
	c.netns = netns_of(ctx, sk);
	self = accel_pod_of(c.netns);
	if (!self || self->level == ACCEL_OFF)
		return;
	read_tuple(ctx, &t);
	is_marked = bpf_sk_storage_get(&listener_marks, sk, NULL, 0) != NULL;
	if (!is_marked && self->level != ACCEL_FULL)
		return;
	port = acceptor_port(sk, c.netns, t.local_port);
	if (acceptor_seen(c.netns, port) == ACCEPTOR_IS_UNKNOWN) {
		int is_proxys = is_proxys_listener(c.netns, port);

		watch_acceptor(ctx, sk);
		if ((guards & GUARD_NONBLOCKING) &&
		    acceptor_is(c.netns, port, is_proxys) != ACCEPTOR_IS_NONBLOCKING)
			return;
	}
	c.peer_netns = is_own_address(c.netns, &t.remote) ? c.netns : pod_at(&t.remote);
	if (!c.peer_netns)
		return;
	fill_ends(ctx, &t, &c);
	ends = bpf_map_lookup_elem(&accel_ends, &c.ends);
	if (!ends || !is_other_end(sk, self, ends)) {
		accel_count(ACCEL_NO_OTHER_END);
		return;
	}
	c.pair = ends->pair;
	why = enter(ctx, &c, &s);
	if (why || !s) {
		accel_count(why);
		return;
	}
	fill_end(&ends->passive, sk, s);
}

/* ---- the end -------------------------------------------------------------------------------- */

/* The accepting end's, as it is now or as it was when that end ended before us. */
static __always_inline __u64 messages_of_passive(struct accel_stream *s)
{
	const struct accel_stream *peer;
	__u64 cookie = 0, sent = 0, tcp = 0;
	struct accel_ends *ends;

	if (find_peer(s)) {
		peer = (const void *)(unsigned long)s->peer_stream;
		bpf_probe_read_kernel(&sent, sizeof(sent), &peer->sent_messages);
		bpf_probe_read_kernel(&tcp, sizeof(tcp), &peer->tcp_messages);
		bpf_probe_read_kernel(&cookie, sizeof(cookie), &peer->cookie);
		if (cookie == s->peer)
			return sent + tcp;
	}
	ends = bpf_map_lookup_elem(&accel_ends, &s->ends);
	return ends ? ends->passive_messages : 0;
}

static __always_inline void leave_messages(struct accel_stream *s)
{
	struct accel_ends *ends = bpf_map_lookup_elem(&accel_ends, &s->ends);

	if (ends)
		ends->passive_messages = s->sent_messages + s->tcp_messages;
}

static __always_inline void tell_end(struct accel_stream *s)
{
	struct accel_pair *pair;

	tell(s);
	if (!s->is_active) {
		leave_messages(s);
		return;
	}
	pair = bpf_map_lookup_elem(&accel_pairs, &s->pair);
	if (!pair)
		return;
	__sync_fetch_and_add(&pair->closed, 1);
	__sync_fetch_and_add(&pair->life_ns, bpf_ktime_get_ns() - s->born_ns);
	if (s->sent_messages + s->tcp_messages + messages_of_passive(s) <= BRIEF_MESSAGES)
		__sync_fetch_and_add(&pair->brief, 1);
}

/* Has the other end's last descriptor been closed, and with it the end of all that is unread? */
static __always_inline int peer_is_settled(const struct accel_stream *s)
{
	struct stream_head peer = {};

	bpf_probe_read_kernel(&peer, sizeof(peer), (const void *)(unsigned long)s->peer_stream);
	return peer.cookie != s->peer;
}

/*
 * What was claimed for bytes that are not read yet stays claimed until their reader is settled.
 * Both ends may end at once: each first says so (the reader) or leaves the claim (we), then looks.
 */
static __always_inline void pass_claim_on(struct accel_stream *s)
{
	__u64 claimed = s->claimed;

	if (!claimed)
		return;
	if (peer_is_settled(s) || is_all_read(s) ||
	    bpf_map_update_elem(&accel_carried, &s->peer, &claimed, BPF_ANY)) {
		claim_release(s);
		return;
	}
	accel_count(ACCEL_BUDGET_CARRIED);
	if (peer_is_settled(s) && !bpf_map_delete_elem(&accel_carried, &s->peer))
		claim_release(s);
	s->claimed = 0;
}

static __always_inline void release_carried(struct accel_stream *s, __u64 cookie)
{
	__u64 *carried = bpf_map_lookup_elem(&accel_carried, &cookie);
	struct accel_usage *pod = usage_of(s->netns), *node = usage_of(0);
	__u64 bytes;

	if (!carried)
		return;
	bytes = *carried;
	if (bpf_map_delete_elem(&accel_carried, &cookie))
		return;
	if (pod)
		__sync_fetch_and_add(&pod->claimed, -bytes);
	if (node)
		__sync_fetch_and_add(&node->claimed, -bytes);
}

/* Nothing that came the short way is held for this socket any more. Once. */
static __always_inline void settle(struct accel_stream *s)
{
	__u64 cookie = s->cookie;

	*(volatile __u64 *)&s->cookie = 0;
	release_carried(s, cookie);
	give_place(s->netns);
}

/*
 * TCP_CLOSE. Unread bytes stay with the socket until its last descriptor is closed, and so do its
 * place and what was claimed for it: a sender that resets its connections would otherwise get
 * both back while the kernel still holds the memory. A socket that nobody has accepted, or that
 * was closed before, has no descriptor.
 */
static __always_inline void ended(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct accel_stream *s;
	int is_last;

	if (!sk)
		return;
	s = bpf_sk_storage_get(&accel_streams, sk, NULL, 0);
	if (!s)
		return;
	tell_left(s);
	if (s->is_alone) {
		bpf_sk_storage_delete(&accel_streams, sk);
		return;
	}
	if (!s->cookie || s->has_ended)
		return;
	s->wants_tcp = ACCEL_ENDED;
	tell_end(s);
	s->way = WAY_TCP;
	pass_claim_on(s);
	if (s->is_active)
		bpf_map_delete_elem(&accel_ends, &s->ends);
	is_last = !BPF_CORE_READ(kernel_sock(sk), sk_socket);
	bpf_spin_lock(&s->lock);
	s->has_ended = 1;
	is_last |= s->is_released;
	bpf_spin_unlock(&s->lock);
	if (is_last)
		settle(s);
}

/* It begins to end: one of the two has said that it sends no more. */
static __always_inline void leaves(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct accel_stream *s;

	if (!sk)
		return;
	s = bpf_sk_storage_get(&accel_streams, sk, NULL, 0);
	if (s)
		tell_left(s);
}

/* close() of the last descriptor. */
static __always_inline void released(struct accel_stream *s)
{
	int is_last;

	if (!s->cookie)
		return;
	bpf_spin_lock(&s->lock);
	s->is_released = 1;
	is_last = s->has_ended;
	bpf_spin_unlock(&s->lock);
	if (is_last)
		settle(s);
}

/*
 * TCP_CONNECT_CB of a socket whose earlier connection has ended. TCP has dropped what that one left
 * unread; so must we, and this is the one entry that is ever deleted.
 */
static __always_inline void connecting_again(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct accel_stream *s;
	__u64 cookie;

	if (!sk)
		return;
	s = bpf_sk_storage_get(&accel_streams, sk, NULL, 0);
	if (!s || !s->has_ended)
		return;
	cookie = s->cookie;
	if (cookie)
		settle(s);
	else
		cookie = bpf_get_socket_cookie(ctx);
	bpf_map_delete_elem(&accel_sockets, &cookie);
	bpf_sk_storage_delete(&accel_streams, sk);
}

#endif
