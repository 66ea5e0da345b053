// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Finds inbound listeners that were there before the agent, on kernels whose iterators cannot ask
 * for a socket's cookie (before Linux 5.12) or mark one (5.11). The agent test-runs this program
 * inside the pod's namespace, each run with another source port: listeners that share a port are
 * chosen by a hash of the tuple. It is attached to nothing.
 */
#include "listener.bpf.h"

#include <bpf/bpf_endian.h>

char _license[] SEC("license") = "Dual BSD/GPL";

#define EEXIST 17

enum { TCP_LISTEN_STATE = 10, SOURCE_PORT_MIN = 1024 };

/* Set by the agent before each run: it has one thread, so one runs at a time. */
__u64 lookup_netns;
struct addr16 lookup_addr; /* one of the pod's own */
__u32 lookup_tries;	   /* so far */

static __always_inline struct bpf_sock *find(struct __sk_buff *ctx, __u16 port)
{
	struct bpf_sock_tuple t = {};
	__u16 source = SOURCE_PORT_MIN + (lookup_tries++ & 0x3fff);

	/* From loopback, which the pod's own inbound program passes. */
	if (addr16_is_v4(&lookup_addr)) {
		t.ipv4.saddr = BE32(0x7f000001);
		t.ipv4.sport = bpf_htons(source);
		t.ipv4.daddr = lookup_addr.w[3];
		t.ipv4.dport = bpf_htons(port);
		return bpf_sk_lookup_tcp(ctx, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0);
	}
	t.ipv6.saddr[3] = BE32(1);
	t.ipv6.sport = bpf_htons(source);
	t.ipv6.daddr[0] = lookup_addr.w[0];
	t.ipv6.daddr[1] = lookup_addr.w[1];
	t.ipv6.daddr[2] = lookup_addr.w[2];
	t.ipv6.daddr[3] = lookup_addr.w[3];
	t.ipv6.dport = bpf_htons(port);
	return bpf_sk_lookup_tcp(ctx, &t, sizeof(t.ipv6), BPF_F_CURRENT_NETNS, 0);
}

/* All fields first, volatile: see read_tuple() in original_dst.bpf.c. */
static __always_inline int is_listener(struct bpf_sock *sk, const struct pod_config *pod)
{
	volatile struct bpf_sock *s = sk;
	__u32 state = s->state, family = s->family, port = s->src_port, v4 = s->src_ip4;
	struct addr16 v6 = {{s->src_ip6[0], s->src_ip6[1], s->src_ip6[2], s->src_ip6[3]}};
	struct addr16 local = family == AF_INET ? addr16_from_v4(v4) : v6;
	struct opener who;

	if (state != TCP_LISTEN_STATE)
		return 0;
	who = opener_of(kernel_sock(sk));
	return is_inbound_listener(pod, port, &local, &who);
}

static __always_inline int is_registered(const struct sock *wanted)
{
	struct listener_key key = {.netns = lookup_netns};

	for (__u32 slot = 0; slot < LISTENER_SLOTS; slot++) {
		struct bpf_sock *sk;
		int same;

		key.slot = slot;
		sk = bpf_map_lookup_elem(&listeners, &key);
		if (!sk)
			continue;
		same = kernel_sock(sk) == wanted;
		bpf_sk_release(sk);
		if (same)
			return 1;
	}
	return 0;
}

static __always_inline void register_listener(struct bpf_sock *sk)
{
	struct listener_key key = {.netns = lookup_netns};
	struct listener_mark *mark;
	int err = -EEXIST;

	mark = bpf_sk_storage_get(&listener_marks, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!mark)
		return;
	mark->inbound = 1;
	for (__u32 slot = 0; slot < LISTENER_SLOTS && err == -EEXIST; slot++) {
		key.slot = slot;
		err = bpf_map_update_elem(&listeners, &key, sk, BPF_NOEXIST);
	}
}

SEC("tc")
int sockmesh_listener_lookup(struct __sk_buff *ctx)
{
	__u64 netns = lookup_netns;
	const struct pod_config *pod = bpf_map_lookup_elem(&pods, &netns);
	struct bpf_sock *sk;

	if (!pod)
		return 0;
	sk = find(ctx, pod->inbound_port);
	if (!sk)
		return 0;
	if (is_listener(sk, pod) && !is_registered(kernel_sock(sk)))
		register_listener(sk);
	bpf_sk_release(sk);
	return 0;
}
