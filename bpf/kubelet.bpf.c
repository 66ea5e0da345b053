// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Kubelet's probes of ambient pods go to the application whatever the mesh's policy says. These
 * programs are attached to kubelet's cgroup and nowhere else. They note the two ends of each
 * connection to a pod before its SYN leaves, and inbound.bpf.c lets exactly that one pass: no other
 * process of the node has it, and no pod. Where a host rewrites the source on the way the pod knows
 * nothing of the connection, which then goes to ztunnel like any other, and is counted.
 */
#include "sockmesh_maps.bpf.h"
#include "tuple.bpf.h"

#include <bpf/bpf_core_read.h>

char _license[] SEC("license") = "Dual BSD/GPL";

/*
 * Where kubelet has no cgroup of its own: its process, and when that has started, since its number
 * may be another one's later. In ticks of /proc/PID/stat. 0: whoever is in the cgroup.
 */
volatile __u32 kubelet_tgid;
volatile __u64 kubelet_start, kubelet_tick_ns;

enum { IPPROTO_TCP_ = 6, TCP_CLOSE_STATE = 7 };

static __always_inline int is_target(const struct addr16 *addr)
{
	return bpf_map_lookup_elem(&probe_targets, addr) != NULL;
}

static __always_inline int is_kubelet(void)
{
	__u64 tick_ns = kubelet_tick_ns;
	__u32 only = kubelet_tgid;
	const struct task_struct *task;

	if (!only)
		return 1;
	if (bpf_get_current_pid_tgid() >> 32 != only || !tick_ns)
		return 0;
	task = (const struct task_struct *)bpf_get_current_task();
	return BPF_CORE_READ(task, group_leader, start_boottime) / tick_ns == kubelet_start;
}

/* Whose connection it is can only be told here; its ports are known when it goes out. */
static __always_inline void connecting(struct bpf_sock_addr *ctx, const struct addr16 *destination)
{
	struct bpf_sock *sk = ctx->sk;
	struct kubelet_socket *own;

	if (!sk || ctx->protocol != IPPROTO_TCP_ || !is_target(destination) || !is_kubelet())
		return;
	own = bpf_sk_storage_get(&kubelet_sockets, sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (own)
		own->announced = 0;
	else
		count_probe(PROBE_NO_ROOM);
}

SEC("cgroup/connect4")
int sockmesh_kubelet_connect4(struct bpf_sock_addr *ctx)
{
	struct addr16 destination = addr16_from_v4(ctx->user_ip4);

	connecting(ctx, &destination);
	return 1;
}

SEC("cgroup/connect6")
int sockmesh_kubelet_connect6(struct bpf_sock_addr *ctx)
{
	struct addr16 destination;

	destination.w[0] = ctx->user_ip6[0];
	destination.w[1] = ctx->user_ip6[1];
	destination.w[2] = ctx->user_ip6[2];
	destination.w[3] = ctx->user_ip6[3];
	connecting(ctx, &destination);
	return 1;
}

/* The ports are known, the SYN is not sent yet. */
static __always_inline void announce(struct bpf_sock_ops *ctx, struct kubelet_socket *own)
{
	struct probe probe = {.cookie = bpf_get_socket_cookie(ctx), .at_ns = bpf_ktime_get_ns()};
	struct tuple t;

	read_tuple(ctx, &t);
	if (!is_target(&t.remote))
		return; /* somebody else has rewritten the destination */
	__builtin_memset(&own->key, 0, sizeof(own->key));
	own->key.local = t.local;
	own->key.remote = t.remote;
	own->key.local_port = t.local_port;
	own->key.remote_port = t.remote_port;
	if (bpf_map_update_elem(&probes, &own->key, &probe, BPF_ANY)) {
		count_probe(PROBE_NO_ROOM);
		return;
	}
	own->announced = 1;
	count_probe(PROBE_ANNOUNCED);
	bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
}

static __always_inline struct probe *announced(struct bpf_sock_ops *ctx, struct kubelet_socket *own)
{
	struct probe *probe = own->announced ? bpf_map_lookup_elem(&probes, &own->key) : NULL;

	return probe && probe->cookie == bpf_get_socket_cookie(ctx) ? probe : NULL;
}

/*
 * The pod has answered. It keeps a connection that it has recognised until its own end is there,
 * which may take another ACK.
 */
static __always_inline void established(struct bpf_sock_ops *ctx, struct kubelet_socket *own)
{
	const struct probe *probe = announced(ctx, own);

	if (!probe || probe->recognised)
		return;
	count_probe(PROBE_NOT_RECOGNISED);
	bpf_map_delete_elem(&probes, &own->key);
	own->announced = 0;
}

static __always_inline void closed(struct bpf_sock_ops *ctx, struct kubelet_socket *own)
{
	if (announced(ctx, own))
		bpf_map_delete_elem(&probes, &own->key);
	own->announced = 0;
}

SEC("sockops")
int sockmesh_kubelet_sockops(struct bpf_sock_ops *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	struct kubelet_socket *own;
	__u32 op = ctx->op;

	if (!sk || (op != BPF_SOCK_OPS_TCP_CONNECT_CB && op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
		    op != BPF_SOCK_OPS_STATE_CB))
		return 1;
	own = bpf_sk_storage_get(&kubelet_sockets, sk, NULL, 0);
	if (!own)
		return 1;
	if (op == BPF_SOCK_OPS_TCP_CONNECT_CB)
		announce(ctx, own);
	else if (op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		established(ctx, own);
	else if (ctx->args[1] == TCP_CLOSE_STATE)
		closed(ctx, own);
	return 1;
}
