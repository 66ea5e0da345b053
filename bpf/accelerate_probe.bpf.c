// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Redirects without any guard, as user space says for each send, and tells what it sees of the
 * sender: how accelerate_probe.c finds out what this kernel's sockmap does.
 */
#include "vmlinux.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

enum { CONNECTED, ACCEPTED, N_SIDES, MAX_PAIRS = 64 };

/* A connection under trial has two neighbouring slots, of its two sides in that order. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, MAX_PAIRS *N_SIDES);
	__type(key, __u32);
	__type(value, __u32);
} probe_sockets SEC(".maps");

/* For a second claim. */
struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} probe_others SEC(".maps");

/* Written by user space between the sends. */
volatile __u32 first_slot = 0;
volatile __u32 connected_port = 0;	/* tells the sides apart */
volatile __u32 short_way[N_SIDES] = {}; /* does what this side sends go the short way? */

/* Of the last socket that sent. */
volatile __u32 sends = 0;
volatile __u32 copied_seq = 0;
volatile __u32 rmem_alloc = 0;

struct sock___receiving {
	struct {
		struct {
			int counter;
		} rmem_alloc;
	} sk_backlog;
} __attribute__((preserve_access_index));

struct tcp_sock___receiving {
	__u32 copied_seq;
} __attribute__((preserve_access_index));

/* A copy that a helper wrote has no type, so it can be read from; see kernel_sock(). */
static __always_inline void look_at(const void *typed)
{
	const void *on_stack = typed, *sk = NULL;
	const struct sock___receiving *sock;
	const struct tcp_sock___receiving *tcp;

	bpf_probe_read_kernel(&sk, sizeof(sk), &on_stack);
	sock = sk;
	tcp = sk;
	copied_seq = BPF_CORE_READ(tcp, copied_seq);
	rmem_alloc = BPF_CORE_READ(sock, sk_backlog.rmem_alloc.counter);
	sends++;
}

SEC("sk_msg")
int probe_verdict(struct sk_msg_md *msg)
{
	__u32 side = msg->local_port == connected_port ? CONNECTED : ACCEPTED;
	struct bpf_sock *sk = msg->sk;

	if (sk)
		look_at(sk);
	if (short_way[side])
		bpf_msg_redirect_map(msg, &probe_sockets, first_slot + (side ^ 1), BPF_F_INGRESS);
	return SK_PASS;
}

char _license[] SEC("license") = "Dual BSD/GPL";
