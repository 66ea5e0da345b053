/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_ACCELERATE_WAY_BPF_H
#define SOCKMESH_ACCELERATE_WAY_BPF_H

/*
 * Which way a direction goes. Undecided at first; by TCP until the other end is in the map, is
 * known to be non-blocking and has read all that was sent (its copied_seq is our write_seq: then
 * nothing can be overtaken); then the short way; and by TCP for good once anything speaks against
 * it. That last step is always in order: the receiver reads what came the short way first.
 */
#include "accelerate_trial.bpf.h"

enum {
	TRIES_MAX = 64,	    /* sends by TCP after which a direction stays there */
	TRIES_BLOCKING = 4, /* the same, to a socket that is blocking */
	O_NONBLOCK_ = 04000,
	TCP_ESTABLISHED_STATE = 1,
	TCP_CLOSE_STATE = 7,
	TCP_CLOSE_WAIT_STATE = 8,
	OPTVAL_MAX = 4096,
};

/* The kernel's; its value here is of no importance, CO-RE puts in the running kernel's. */
enum sock_flags { SOCK_ZEROCOPY = 1 };

static __always_inline int is_stopped(void)
{
	__u32 zero = 0;
	struct accel_control *control = bpf_map_lookup_elem(&accel_control, &zero);

	return !control || control->stopped;
}

static __always_inline void by_tcp(struct accel_stream *s, __u32 why)
{
	if (s->way == WAY_TCP)
		return;
	s->way = WAY_TCP;
	accel_count(why);
	tell(s);
}

/* Only what the pair's own way of sending has brought about is learned from. */
static __always_inline void spill(struct accel_stream *s, __u32 why)
{
	struct accel_pair *pair = bpf_map_lookup_elem(&accel_pairs, &s->pair);

	if (pair && why == ACCEL_SPILL_LIMIT)
		__sync_fetch_and_add(&pair->spills, 1);
	by_tcp(s, why);
}

static __always_inline int is_nonblocking(const struct sock *sk, int *ret_known)
{
	const struct file *file = BPF_CORE_READ(sk, sk_socket, file);

	*ret_known = file != NULL;
	return file && (BPF_CORE_READ(file, f_flags) & O_NONBLOCK_);
}

/*
 * Why this socket, with what its owner has made of it since, must stay on TCP; 0: it need not. Read
 * anew at each send, through typed pointers, which costs next to nothing.
 */
static __always_inline __u32 sender_wants_tcp(const struct tcp_sock *tp)
{
	const struct sock *sk = &tp->inet_conn.icsk_inet.sk;

	if ((guards & GUARD_ULP) && tp->inet_conn.icsk_ulp_ops)
		return ACCEL_ULP;
	if ((guards & GUARD_ZEROCOPY) &&
	    (sk->__sk_common.skc_flags &
	     (1ul << bpf_core_enum_value(enum sock_flags, SOCK_ZEROCOPY))))
		return ACCEL_ZEROCOPY;
	if ((guards & GUARD_NONBLOCKING) && !(sk->sk_socket->file->f_flags & O_NONBLOCK_))
		return ACCEL_TURNED_BLOCKING;
	return 0;
}

/* The same of the receiver, as far as it is not in its own stream. */
static __always_inline __u32 receiver_wants_tcp(__u64 address)
{
	const struct tcp_sock *tp = (const struct tcp_sock *)(unsigned long)address;
	const struct sock *sk = sock_at(address);

	if ((guards & GUARD_ULP) && BPF_CORE_READ(tp, inet_conn.icsk_ulp_ops))
		return ACCEL_ULP;
	if ((guards & GUARD_LOWAT) && BPF_CORE_READ(sk, sk_rcvlowat) > 1)
		return ACCEL_LOWAT;
	return 0;
}

static __always_inline int find_peer(struct accel_stream *s)
{
	struct accel_ends *ends;
	struct accel_end *peer;

	if (s->peer)
		return 1;
	ends = bpf_map_lookup_elem(&accel_ends, &s->ends);
	if (!ends)
		return 0;
	peer = s->is_active ? &ends->passive : &ends->active;
	s->peer_sock = peer->sock;
	s->peer_stream = peer->stream;
	s->peer = *(volatile __u64 *)&peer->cookie;
	return s->peer != 0;
}

/* Learned from at once: being in the map at all can wake a blocking receive with EAGAIN. */
static __always_inline void tell_blocking(const struct accel_stream *s)
{
	struct accel_pair *pair = bpf_map_lookup_elem(&accel_pairs, &s->pair);

	if (pair)
		__sync_fetch_and_add(&pair->turned_blocking, 1);
}

/* Has the other end sent anything the short way? Then it may be unread here. */
static __always_inline int peer_has_sent(struct accel_stream *s)
{
	const struct accel_stream *peer;
	__u64 cookie = 0, messages = 0;

	if (!find_peer(s))
		return 0;
	peer = (const void *)(unsigned long)s->peer_stream;
	bpf_probe_read_kernel(&cookie, sizeof(cookie), &peer->cookie);
	bpf_probe_read_kernel(&messages, sizeof(messages), &peer->sent_messages);
	return cookie != s->peer || messages;
}

/* By TCP now, and perhaps for ever. Always 0. */
static __always_inline int not_yet(struct accel_stream *s, __u32 why)
{
	s->way = WAY_TCP_SO_FAR;
	if (++s->tries >= TRIES_MAX)
		by_tcp(s, why);
	return 0;
}

static __always_inline int may_become_short(struct accel_stream *s, const struct tcp_sock *tp,
					    enum trial_says says)
{
	const struct tcp_sock *peer;
	int known, nonblocking;
	__u32 why;

	if (!find_peer(s))
		return not_yet(s, ACCEL_PEER_UNKNOWN);
	peer = (const struct tcp_sock *)(unsigned long)s->peer_sock;
	if (cookie_at(s->peer_sock) != s->peer) {
		by_tcp(s, ACCEL_PEER_GONE);
		return 0;
	}
	s->held = says == SAYS_NOT_YET ? HELD_ON_TRIAL : HELD_NOT;
	if (s->held) {
		s->way = WAY_TCP_SO_FAR; /* and that is no try */
		return 0;
	}
	nonblocking = is_nonblocking(sock_at(s->peer_sock), &known);
	if ((guards & GUARD_NONBLOCKING) && !nonblocking) {
		/* Not accepted yet, or between accept() and fcntl(). */
		if (!known || s->tries < TRIES_BLOCKING)
			return not_yet(s, ACCEL_PEER_UNKNOWN);
		tell_blocking(s);
		by_tcp(s, ACCEL_ACCEPTOR_BLOCKING);
		return 0;
	}
	why = receiver_wants_tcp(s->peer_sock);
	if (why) {
		by_tcp(s, why);
		return 0;
	}
	if ((guards & GUARD_ORDER) && BPF_CORE_READ(peer, copied_seq) != tp->write_seq)
		return not_yet(s, ACCEL_NEVER_DRAINED);
	s->peer_memcg = (__u64)BPF_CORE_READ(peer, inet_conn.icsk_inet.sk.sk_memcg);
	if (reader_is_short(s)) {
		by_tcp(s, ACCEL_SPILL_PRESSURE);
		return 0;
	}
	accel_count(s->way == WAY_UNDECIDED ? ACCEL_SHORT_AT_ONCE : ACCEL_SHORT_LATER);
	s->way = WAY_SHORT;
	return 1;
}

/*
 * A program that takes a read of less than it asked for as "there is no more", and then waits for
 * an edge, must not find bytes of both ways at once: those that came by TCP would wait for another
 * edge. So whatever can wait changes the way only when all that was sent has been read.
 */
static __always_inline int can_wait(__u32 why)
{
	return why == ACCEL_STOPPED || why == ACCEL_LOWAT || why == ACCEL_TURNED_BLOCKING ||
	       why == ACCEL_SLOWER;
}

/*
 * What has changed since the direction was decided; 0: nothing that matters. What can wait is said
 * only if nothing else has changed that can not.
 */
static __always_inline __u32 has_changed(struct bpf_sock *sk, struct accel_stream *s,
					 const struct tcp_sock *tp, const struct stream_head *peer)
{
	__u32 state = *(volatile __u32 *)&sk->state, why, peers = 0;

	if (!s->cookie)
		return ACCEL_ENDED; /* connected anew, and not by us */
	if ((guards & GUARD_STATE) && state != TCP_ESTABLISHED_STATE &&
	    state != TCP_CLOSE_WAIT_STATE)
		return ACCEL_ENDED; /* TCP knows what send() has to say */
	why = sender_wants_tcp(tp);
	if (why == ACCEL_TURNED_BLOCKING) {
		tell_blocking(s);
		s->wants_tcp = why;
	}
	if (why && !can_wait(why))
		return why;
	if (s->way == WAY_SHORT && (guards & GUARD_STATE))
		peers = peer->cookie != s->peer ? ACCEL_PEER_GONE : peer->wants_tcp;
	if (peers && (!why || !can_wait(peers)))
		return peers;
	if (!why && is_stopped())
		return ACCEL_STOPPED;
	return why;
}

static __always_inline int must_change(const struct accel_stream *s, __u32 why)
{
	return s->way != WAY_SHORT || !can_wait(why) || is_all_read(s);
}

/* The program's verdict; with a target set in msg, SK_PASS is the short way. */
static __always_inline int choose_way(struct sk_msg_md *msg, struct bpf_sock *sk,
				      struct accel_stream *s)
{
	enum trial_says says = SAYS_AS_YOU_LIKE;
	struct stream_head peer = {};
	struct tcp_sock *tp;
	__u32 size = msg->size, why;

	if (s->way == WAY_TCP && s->held != HELD_ON_TRIAL)
		goto tcp;
	if (find_peer(s))
		read_peer(s, &peer);
	if (learning && s->peer)
		says = take_part(s, &peer);
	if (s->way == WAY_TCP) {
		s->held = says == SAYS_NOT_YET ? HELD_ON_TRIAL : HELD_FOR_GOOD;
		goto tcp;
	}
	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		goto tcp;
	why = has_changed(sk, s, tp, &peer);
	if (!why && says == SAYS_TCP)
		why = ACCEL_SLOWER;
	if (why && must_change(s, why)) {
		s->held = why == ACCEL_SLOWER ? HELD_ON_TRIAL : HELD_NOT;
		by_tcp(s, why);
		goto tcp;
	}
	if (s->way != WAY_SHORT && !may_become_short(s, tp, says))
		goto tcp;
	why = no_room(s, tp, size);
	if (why) {
		spill(s, why);
		goto tcp;
	}
	if (bpf_msg_redirect_hash(msg, &accel_sockets, &s->peer, BPF_F_INGRESS) != SK_PASS) {
		by_tcp(s, ACCEL_PEER_GONE);
		if (!(guards & GUARD_MISS_PASSES))
			return SK_DROP;
		goto tcp;
	}
	s->sent_messages++;
	s->sent_bytes += size;
	tell_sometimes(s);
	return SK_PASS;
tcp:
	/* What was claimed before a spill is given back once it has been read. */
	if (s->claimed && is_all_read(s))
		claim_release(s);
	s->tcp_messages++;
	s->tcp_bytes += size;
	if (s->held)
		s->held_messages++;
	tell_sometimes(s);
	return SK_PASS;
}

#endif
