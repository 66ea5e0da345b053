/* SPDX-License-Identifier: Apache-2.0 */
#include "netfilter_join.h"

#include "conntrack_stale.h"
#include "error.h"
#include "log.h"
#include "redirect.h"

#include <errno.h>

static void set_loose(int netns_fd, bool loose, bool may_tell)
{
	static bool told; /* it is the node that does not let us, for one pod as for the next */
	struct error err = {0};

	if (!conntrack_set_loose(netns_fd, loose, &err) || told || !may_tell)
		return;
	told = true;
	log_error(LOG_WARN, &err,
		  "connections that end while their pod joins may let others past the proxy", NULL);
}

/*
 * With --drop-invalid they must have entries, for what has none is dropped. Before the first rules
 * of a node conntrack may not be there, nor its sysctl.
 */
void netfilter_join_begin(const struct redirect_pod *pod)
{
	set_loose(pod->netns_fd, pod->plan->drop_invalid, false);
}

void netfilter_join_end(const struct redirect_pod *pod)
{
	struct error err = {0};
	size_t n = 0;

	set_loose(pod->netns_fd, pod->plan->drop_invalid, true);
	if (!conntrack_forget_ended(pod->netns_fd, &n, &err))
		return;
	log_error(err.code == EOPNOTSUPP ? LOG_DEBUG : LOG_WARN, &err,
		  "cannot forget the connections that a pod had before", NULL);
}

/* Namespaces are made with 1; a 0 of somebody else's is not remembered. */
void netfilter_join_undo(int netns_fd)
{
	struct error ignored = {0};

	conntrack_set_loose(netns_fd, true, &ignored);
}
