// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * The short way between two sockets of this node. docs/acceleration.md tells the whole story; each
 * part of it has a file: who may enter the map (accelerate_enter.bpf.h), which way a direction
 * goes (accelerate_way.bpf.h), how much may be outstanding (accelerate_bound.bpf.h), what is
 * counted and learned (accelerate_account.bpf.h). Here are the hooks.
 *
 * A kernel sockmap is not TCP: what goes the short way overtakes what went by TCP and is not read
 * yet, knows no window, and ends with its map entry. So whatever is not certain goes by TCP, and
 * nothing that is in use is ever deleted from the map.
 */
#include "accelerate_enter.bpf.h"
#include "accelerate_way.bpf.h"

char _license[] SEC("license") = "Dual BSD/GPL";

enum { SOL_SOCKET_ = 1, SOL_TCP_ = 6, SO_RCVLOWAT_ = 18, TCP_ULP_ = 31 };
enum { SETSOCKOPT_REFUSE = 0, SETSOCKOPT_ALLOW = 1 };

SEC("sockops")
int accelerate_sockops(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		connecting_again(ctx);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		connected(ctx);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		accepted(ctx);
		break;
	case BPF_SOCK_OPS_RTT_CB:
		observe_acceptor(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		if (ctx->args[1] == TCP_CLOSE_STATE)
			ended(ctx);
		else
			leaves(ctx);
		break;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		forget_acceptor(ctx);
		break;
	}
	return 1;
}

/*
 * Each send, with the sender's socket locked. The verdict is SK_PASS: with a target set it means
 * the short way, without one TCP. SK_DROP would fail the send.
 */
SEC("sk_msg")
int accelerate_verdict(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	struct accel_stream *s;

	if (!sk)
		return SK_PASS;
	s = bpf_sk_storage_get(&accel_streams, sk, NULL, 0);
	return s ? choose_way(msg, sk, s) : SK_PASS;
}

SEC("cgroup/sock_release")
int accelerate_release(struct bpf_sock *ctx)
{
	struct accel_stream *s = bpf_sk_storage_get(&accel_streams, ctx, NULL, 0);

	if (s)
		released(s);
	return 1;
}

/*
 * Two options change what a socket can receive. From SO_RCVLOWAT on its peer sends by TCP. TCP_ULP
 * (kernel TLS) would take unread bytes that came the short way for decrypted ones, so a socket that
 * such bytes may have come to is told what a kernel without TLS would say, as Linux itself does
 * since 6.12.111; TLS then stays in user space. One without gets it, and stays on TCP.
 */
SEC("cgroup/setsockopt")
int accelerate_setsockopt(struct bpf_sockopt *ctx)
{
	__s32 level = ctx->level, name = ctx->optname;
	struct bpf_sock *sk = ctx->sk;
	struct accel_stream *s;

	if (!(level == SOL_SOCKET_ && name == SO_RCVLOWAT_) &&
	    !(level == SOL_TCP_ && name == TCP_ULP_))
		goto allow;
	if (!sk)
		goto allow;
	s = bpf_sk_storage_get(&accel_streams, sk, NULL, 0);
	if (!s)
		goto allow;
	if (level == SOL_TCP_) {
		if (!(guards & GUARD_ULP))
			goto allow;
		if (s->sent_messages || peer_has_sent(s)) {
			accel_count(ACCEL_ULP_REFUSED);
			return SETSOCKOPT_REFUSE;
		}
		by_tcp(s, ACCEL_ULP);
		s->wants_tcp = ACCEL_ULP;
	} else if (guards & GUARD_LOWAT) {
		s->wants_tcp = ACCEL_LOWAT;
	}
allow:
	/* 0 leaves a value longer than a page as it is; this hook changes none. */
	if (ctx->optlen > OPTVAL_MAX)
		ctx->optlen = 0;
	return SETSOCKOPT_ALLOW;
}
