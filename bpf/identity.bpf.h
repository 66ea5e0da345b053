/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_IDENTITY_BPF_H
#define SOCKMESH_IDENTITY_BPF_H

/*
 * Whose socket is it, and which pod's? As netfilter's owner match (net/netfilter/xt_owner.c) we
 * take the fsuid and fsgid of whoever opened the socket's file, not of the task that happens to
 * call connect(); in an ambient pod, the socket's mark. The pod is known by its network namespace.
 */
#include "vmlinux.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "sockmesh_maps.bpf.h"

/*
 * What a namespace's number is: its inode number where user space cannot ask for its cookie, see
 * netns_numbered_by_inode() in netns.h. A constant when the verifier sees it, so it never looks at
 * the other way: bpf_get_netns_cookie() is unknown to sock_ops before Linux 5.15.
 */
const volatile __u32 netns_by_inode __weak = 0;

struct opener {
	__u32 uid, gid;
	__u32 mark;
	int known; /* 0: no file, as for sockets of the kernel itself */
};

/*
 * The address of a socket as a number. The verifier lets nobody do arithmetic on the typed
 * pointers that contexts hand out, and CO-RE reads need arithmetic; a copy through memory that a
 * helper wrote has no type. On the stack, because programs on cgroup hooks are preemptible.
 */
static __always_inline const struct sock *kernel_sock(const void *typed)
{
	const void *on_stack = typed;
	__u64 number = 0;

	bpf_probe_read_kernel(&number, sizeof(number), &on_stack);
	return (const struct sock *)(unsigned long)number;
}

/* sk: the typed socket of ctx, not NULL. */
static __always_inline __u64 netns_of(void *ctx, const void *sk)
{
	if (netns_by_inode)
		return BPF_CORE_READ(kernel_sock(sk), __sk_common.skc_net.net, ns.inum);
	return bpf_get_netns_cookie(ctx);
}

static __always_inline struct opener opener_of(const struct sock *sk)
{
	struct opener who = {};
	const struct cred *cred = BPF_CORE_READ(sk, sk_socket, file, f_cred);

	who.mark = BPF_CORE_READ(sk, sk_mark);
	if (!cred)
		return who;
	who.uid = BPF_CORE_READ(cred, fsuid.val);
	who.gid = BPF_CORE_READ(cred, fsgid.val);
	who.known = 1;
	return who;
}

static __always_inline __u32 id_bits(__u32 policy, __u32 id)
{
	struct id_set_key key = {.policy = policy, .id = id};
	__u32 *bits = bpf_map_lookup_elem(&id_sets, &key);

	return bits ? *bits : 0;
}

/* Who may set a mark in a pod can pass for ztunnel, as with Istio's own rules. */
static __always_inline __u32 mark_facts(__u32 mark)
{
	switch (mark & AMBIENT_MARK_MASK) {
	case AMBIENT_MARK_PROXY:
		return FACT_MARK_PROXY;
	case AMBIENT_MARK_REPLY:
		return FACT_MARK_REPLY;
	}
	return 0;
}

/*
 * The facts that identity decides. A socket without an owner is an application's: iptables'
 * positive owner match fails for it and the negated one holds. Where the proxy is in another
 * namespace nobody in the pod's is the proxy.
 */
static __always_inline __u32 identity_facts(const struct pod_config *pod, const struct opener *who)
{
	__u32 facts = 0, gid_is = 0;
	int listed;

	if (pod->flags & POD_NODE_PROXY)
		return 0;
	if (pod->flags & POD_IS_AMBIENT)
		return mark_facts(who->mark);
	if (who->known) {
		gid_is = id_bits(pod->policy, who->gid);
		if (id_bits(pod->policy, who->uid) & ID_PROXY_UID)
			facts |= FACT_UID_PROXY;
		if (gid_is & ID_PROXY_GID)
			facts |= FACT_GID_PROXY;
	}
	if (pod->flags & POD_HAS_GROUPS) {
		listed = !!(gid_is & ID_GROUP);
		if (listed == !!(pod->flags & POD_GROUPS_EXEMPT))
			facts |= FACT_GROUP_EXEMPT;
	}
	return facts;
}

#endif
