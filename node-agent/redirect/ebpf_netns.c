/* SPDX-License-Identifier: Apache-2.0 */
#include "ebpf_engine.h"

#include "error.h"
#include "netns.h"
#include "scoped.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

/*
 * Where inode numbers tell namespaces apart, a pod's must not be given to another namespace while
 * the programs know it: the pod's namespace is held until the pod is removed. While no agent runs
 * nobody holds it: a namespace that ends then leaves its number, and the outbound half of its
 * redirection, to whichever namespace is made next, until an agent starts and finds the pod's
 * inbound program detached.
 */
int ebpf_netns_hold(struct ebpf *e, struct ebpf_pod *pod, int netns_fd, struct error *err)
{
	if (!e->netns_by_inode || pod->netns_fd >= 0)
		return 0;
	pod->netns_fd = fcntl(netns_fd, F_DUPFD_CLOEXEC, 0);
	return pod->netns_fd < 0 ? error_set(err, errno, "hold the pod's namespace") : 0;
}

static int is_same(int netns_fd, void *arg, struct error *err)
{
	const struct stat *held = arg;
	struct stat st;

	(void)err;
	return !fstat(netns_fd, &st) && st.st_ino == held->st_ino && st.st_dev == held->st_dev;
}

/* What we hold cannot end: it has ended when it is nowhere else. What cannot be seen may be. */
static bool only_we_have(struct ebpf *e, const struct ebpf_pod *pod)
{
	struct error ignored = {0};
	scoped_fd int fd = -1;
	struct stat held;

	if (e->cfg->open_netns && !e->cfg->open_netns(e->cfg->pods_arg, pod->cookie, &fd, &ignored))
		return false;
	return !fstat(pod->netns_fd, &held) && !netns_each(is_same, &held, &ignored);
}

/* Only what the kernel says counts: a link that cannot be looked at proves nothing. */
bool ebpf_netns_gone(void *state, uint64_t cookie)
{
	struct ebpf *e = state;
	const struct ebpf_pod *pod = ebpf_pods_find(e, cookie);
	struct pod_config cfg;
	char path[PIN_PATH_MAX];
	enum netns_state netns;

	ebpf_pins_pod_path(&e->pins, cookie, path);
	netns = ebpf_pins_netns_state(path);
	if (netns == NETNS_ENDED)
		return true;
	if (pod && pod->netns_fd >= 0)
		return only_we_have(e, pod);
	return netns == NETNS_UNKNOWN && !ebpf_pods_config(e, cookie, &cfg);
}
