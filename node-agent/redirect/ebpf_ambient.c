/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What an ambient pod needs in its network namespace, so that what the application answers to a
 * client comes back to ztunnel, which spoke for that client: the accepted socket and the kernel's
 * own resets take the mark of the SYN (two sysctls, one of them for each family), and packets with
 * that mark are the pod's own (a rule and a route). What a sysctl was before is a flag of the pod's
 * configuration in the kernel, written before the sysctl is: an agent that ends in between leaves
 * nothing that its successor would not change back.
 */
#include "ebpf_engine.h"

#include "error.h"
#include "netfilter_routes.h"
#include "netlink_talk.h"
#include "netns.h"
#include "scoped.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>

static const struct knob {
	__u32 flag; /* it was 0 before */
	bool ipv6;
	const char *path;
} knobs[] = {
	{POD_SET_FWMARK_ACCEPT, false, "/proc/sys/net/ipv4/tcp_fwmark_accept"},
	{POD_SET_REFLECT4, false, "/proc/sys/net/ipv4/fwmark_reflect"},
	{POD_SET_REFLECT6, true, "/proc/sys/net/ipv6/fwmark_reflect"},
};

#define KNOB_FLAGS (POD_SET_FWMARK_ACCEPT | POD_SET_REFLECT4 | POD_SET_REFLECT6)

struct task {
	__u32 flags; /* of the knobs that it is about */
	char value;
	__u32 ret_off; /* of these, those that are 0 */
};

static int knob_off(const struct knob *knob, bool *ret, struct error *err)
{
	scoped_fd int fd = open(knob->path, O_RDONLY | O_CLOEXEC);
	char text[16] = "";

	if (fd < 0 && errno == ENOENT && knob->ipv6) {
		*ret = false; /* the kernel has no IPv6 */
		return 0;
	}
	if (fd < 0 || read(fd, text, sizeof(text) - 1) <= 0)
		return error_set(err, errno, "read %s", knob->path);
	*ret = strtol(text, NULL, 10) == 0;
	return 0;
}

static int look(void *arg, struct error *err)
{
	struct task *task = arg;

	for (size_t i = 0; i < sizeof(knobs) / sizeof(knobs[0]); i++) {
		bool off = false;
		int r = knobs[i].flag & task->flags ? knob_off(&knobs[i], &off, err) : 0;

		if (r)
			return r;
		if (off)
			task->ret_off |= knobs[i].flag;
	}
	return 0;
}

static int turn(void *arg, struct error *err)
{
	const struct task *task = arg;

	for (size_t i = 0; i < sizeof(knobs) / sizeof(knobs[0]); i++) {
		scoped_fd int fd = -1;

		if (!(knobs[i].flag & task->flags))
			continue;
		fd = open(knobs[i].path, O_WRONLY | O_CLOEXEC);
		if (fd < 0 || write(fd, &task->value, 1) != 1)
			return error_set(err, errno, "write %s of the pod's namespace",
					 knobs[i].path);
	}
	return 0;
}

static __u32 wanted_knobs(const struct redirect_plan *plan)
{
	return plan->capture_ipv6 ? KNOB_FLAGS : KNOB_FLAGS & ~(__u32)POD_SET_REFLECT6;
}

static int remember(struct ebpf *e, uint64_t cookie, __u32 set, __u32 clear, struct error *err)
{
	struct pod_config cfg;

	if (!ebpf_pods_config(e, cookie, &cfg))
		return 0;
	if ((cfg.flags & set) == set && !(cfg.flags & clear))
		return 0;
	cfg.flags = (cfg.flags | set) & ~clear;
	return ebpf_pods_config_write(e, cookie, &cfg, err);
}

int ebpf_ambient_enter(struct ebpf *e, const struct redirect_pod *pod, struct error *err)
{
	struct task task = {.flags = wanted_knobs(pod->plan), .value = '1'};
	int r = netns_run(pod->netns_fd, look, &task, err);

	if (!r)
		r = remember(e, pod->cookie, task.ret_off | POD_ADDED_ROUTES, 0, err);
	task.flags = task.ret_off;
	if (!r && task.flags)
		r = netns_run(pod->netns_fd, turn, &task, err);
	if (!r)
		r = netfilter_routes_set(pod->netns_fd, NETFILTER_ROUTES_AMBIENT, true,
					 pod->plan->capture_ipv6, err);
	return r;
}

int ebpf_ambient_undo(int netns_fd, __u32 flags, struct error *err)
{
	struct task task = {.flags = flags & KNOB_FLAGS, .value = '0'};
	int r = 0;

	if (flags & POD_ADDED_ROUTES)
		r = netfilter_routes_set(netns_fd, NETFILTER_ROUTES_AMBIENT, false, true, err);
	if (!r && task.flags)
		r = netns_run(netns_fd, turn, &task, err);
	return r;
}

int ebpf_ambient_leave(struct ebpf *e, uint64_t cookie, int netns_fd, __u32 which,
		       struct error *err)
{
	struct pod_config cfg;
	__u32 flags;
	int r;

	if (!ebpf_pods_config(e, cookie, &cfg))
		return 0;
	flags = cfg.flags & which & POD_AMBIENT_CHANGES;
	if (!flags)
		return 0;
	r = ebpf_ambient_undo(netns_fd, flags, err);
	return r ? r : remember(e, cookie, 0, flags, err);
}

int ebpf_ambient_verify(const struct redirect_pod *pod, struct error *err)
{
	struct task task = {.flags = wanted_knobs(pod->plan)};
	int r = netns_run(pod->netns_fd, look, &task, err);

	for (size_t i = 0; !r && i < sizeof(knobs) / sizeof(knobs[0]); i++)
		if (task.ret_off & knobs[i].flag)
			r = error_set(err, ENODEV, "%s of the pod's namespace is off",
				      knobs[i].path);
	return r ? r
		 : netfilter_routes_verify(pod->netns_fd, NETFILTER_ROUTES_AMBIENT,
					   pod->plan->capture_ipv6, err);
}

/* ---- connections ---------------------------------------------------------------------------- */

/* Sockets with ztunnel's second mark: both ends of each connection that it opened for a client. */
struct mark_filter {
	struct inet_diag_bc_op op;
	struct inet_diag_markcond mark;
};

static int see_socket(const struct nlmsghdr *nlh, void *arg)
{
	bool *found = arg;

	if (nlh->nlmsg_type == SOCK_DIAG_BY_FAMILY)
		*found = true;
	return MNL_CB_OK;
}

static int find_connections(void *arg, struct error *err)
{
	static const unsigned char families[] = {AF_INET, AF_INET6};
	/* What does not match jumps behind the end, which is no. */
	const struct mark_filter filter = {
		.op = {.code = INET_DIAG_BC_MARK_COND,
		       .yes = sizeof(filter),
		       .no = sizeof(filter) + 4},
		.mark = {.mark = AMBIENT_MARK_REPLY, .mask = AMBIENT_MARK_MASK},
	};
	bool *found = arg;

	for (size_t i = 0; i < sizeof(families) && !*found; i++) {
		struct netlink_request request;
		struct inet_diag_req_v2 *diag;
		struct nlmsghdr *nlh = netlink_request_start(&request, SOCK_DIAG_BY_FAMILY,
							     NLM_F_DUMP, sizeof(*diag), &diag);
		int r;

		diag->sdiag_family = families[i];
		diag->sdiag_protocol = IPPROTO_TCP;
		diag->idiag_states = ~(1u << TCP_LISTEN | 1u << TCP_TIME_WAIT | 1u << TCP_CLOSE);
		mnl_attr_put(nlh, INET_DIAG_REQ_BYTECODE, sizeof(filter), &filter);
		r = netlink_dump(NETLINK_SOCK_DIAG, nlh, see_socket, NULL, found);
		if (r)
			return error_set(err, -r, "look for ztunnel's connections");
	}
	return 0;
}

int ebpf_ambient_has_connections(int netns_fd, bool *ret, struct error *err)
{
	bool found = false;
	int r = netns_run(netns_fd, find_connections, &found, err);

	if (!r)
		*ret = found;
	return r;
}
