// SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause)

/*
 * Where programs start: the first one in each pair of cgroup and network namespace is told to the
 * agent, which is looking for the namespace of a pod. Every container begins with an exec in its
 * own cgroup and namespace, so none is missed. Attached only while somebody is looked for.
 */
#include "vmlinux.h"

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#include "process_watch_abi.h"

char _license[] SEC("license") = "Dual BSD/GPL";

const volatile __u32 host_netns; /* inode number: what runs there is no pod's */

/* Least recently used places go first: to hear of one twice costs the agent a look. */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, PROCESS_PLACES);
	__type(key, struct process_place);
	__type(value, __u32);
} process_places SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, PROCESS_NOTICES);
} process_notices SEC(".maps");

/* Notices that found no room; the agent then walks over all processes. */
__u64 process_lost;

SEC("raw_tp/sched_process_exec")
int sockmesh_process_exec(struct bpf_raw_tracepoint_args *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx->args[0];
	struct process_place place = {.cgroup = bpf_get_current_cgroup_id()};
	struct process_notice *notice;
	__u32 seen = 1;

	place.netns = BPF_CORE_READ(task, nsproxy, net_ns, ns.inum);
	if (place.netns == host_netns)
		return 0;
	if (bpf_map_update_elem(&process_places, &place, &seen, BPF_NOEXIST))
		return 0;
	notice = bpf_ringbuf_reserve(&process_notices, sizeof(*notice), 0);
	if (!notice) {
		bpf_map_delete_elem(&process_places, &place);
		__sync_fetch_and_add(&process_lost, 1);
		return 0;
	}
	notice->place = place;
	notice->pid = bpf_get_current_pid_tgid() >> 32;
	notice->pad = 0;
	bpf_ringbuf_submit(notice, 0);
	return 0;
}
