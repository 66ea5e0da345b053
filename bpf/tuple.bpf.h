/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_TUPLE_BPF_H
#define SOCKMESH_TUPLE_BPF_H

/* A connection's two ends, as sock_ops programs see them. */
#include "vmlinux.h"

#include <bpf/bpf_endian.h>

#include "address.bpf.h"

struct tuple {
	struct addr16 local, remote;
	__u16 local_port, remote_port;
};

/*
 * The context's address fields are read through volatile, all before the first branch: clang
 * otherwise merges conditional reads into arithmetic on the socket pointer, which is refused.
 */
static __always_inline void read_tuple(struct bpf_sock_ops *ctx, struct tuple *t)
{
	volatile struct bpf_sock_ops *c = ctx;
	__u32 family = c->family;
	__u32 local4 = c->local_ip4, remote4 = c->remote_ip4;
	__u32 l0 = c->local_ip6[0], l1 = c->local_ip6[1], l2 = c->local_ip6[2];
	__u32 l3 = c->local_ip6[3];
	__u32 r0 = c->remote_ip6[0], r1 = c->remote_ip6[1], r2 = c->remote_ip6[2];
	__u32 r3 = c->remote_ip6[3];

	t->local_port = c->local_port;
	t->remote_port = bpf_ntohl(c->remote_port);
	if (family == AF_INET) {
		t->local = addr16_from_v4(local4);
		t->remote = addr16_from_v4(remote4);
		return;
	}
	t->local.w[0] = l0;
	t->local.w[1] = l1;
	t->local.w[2] = l2;
	t->local.w[3] = l3;
	t->remote.w[0] = r0;
	t->remote.w[1] = r1;
	t->remote.w[2] = r2;
	t->remote.w[3] = r3;
}

#endif
