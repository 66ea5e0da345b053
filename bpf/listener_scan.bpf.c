// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)
/*
 * Finds inbound listeners that were there before the agent, or whose slot another one took: an
 * iterator over the TCP sockets of one namespace, read by the agent from inside it. It puts into
 * free slots what is not registered yet.
 */
#include "listener.bpf.h"

#include <bpf/bpf_tracing.h>

char _license[] SEC("license") = "Dual BSD/GPL";

#define EEXIST 17

enum { TCP_LISTEN_STATE = 10 };

/* Set by the agent before each scan: it has one thread, so one scan runs at a time. */
__u64 scan_netns;
__u64 scan_known[LISTENER_SLOTS]; /* socket cookies that are registered already */
__u32 scan_found;

static __always_inline int is_known(__u64 cookie)
{
	for (__u32 i = 0; i < LISTENER_SLOTS; i++)
		if (scan_known[i] == cookie)
			return 1;
	return 0;
}

SEC("iter/tcp")
int sockmesh_listener_scan(struct bpf_iter__tcp *ctx)
{
	struct sock_common *skc = ctx->sk_common;
	struct listener_key key = {};
	const struct pod_config *pod;
	struct listener_mark *mark;
	struct addr16 local = {};
	struct opener who;
	__u64 netns = scan_netns;
	int err = -EEXIST;

	if (!skc || skc->skc_state != TCP_LISTEN_STATE)
		return 0;
	pod = bpf_map_lookup_elem(&pods, &netns);
	if (!pod || skc->skc_num != pod->inbound_port)
		return 0;
	if (skc->skc_family == AF_INET)
		local = addr16_from_v4(skc->skc_rcv_saddr);
	else
		bpf_probe_read_kernel(&local, sizeof(local), &skc->skc_v6_rcv_saddr);
	who = opener_of(kernel_sock(skc));
	if (!is_inbound_listener(pod, skc->skc_num, &local, &who))
		return 0;
	if (is_known(bpf_get_socket_cookie(skc)))
		return 0;
	mark = bpf_sk_storage_get(&listener_marks, (struct sock *)skc, NULL,
				  BPF_SK_STORAGE_GET_F_CREATE);
	if (!mark)
		return 0;
	mark->inbound = 1;
	key.netns = netns;
	for (__u32 slot = 0; slot < LISTENER_SLOTS && err == -EEXIST; slot++) {
		key.slot = slot;
		err = bpf_map_update_elem(&listeners, &key, skc, BPF_NOEXIST);
	}
	if (!err)
		scan_found++;
	return 0;
}
