/* SPDX-License-Identifier: Apache-2.0 */
#include "ebpf_engine.h"

#include "error.h"
#include "scoped.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <stdlib.h>

static struct ebpf_pod **pod_slot(struct ebpf *e, uint64_t cookie)
{
	struct ebpf_pod **at = &e->pods[cookie % POD_BUCKETS];

	while (*at && (*at)->cookie != cookie)
		at = &(*at)->next;
	return at;
}

struct ebpf_pod *ebpf_pods_find(struct ebpf *e, uint64_t cookie)
{
	return *pod_slot(e, cookie);
}

void ebpf_pods_free(struct ebpf_pod *pod)
{
	if (!pod)
		return;
	ebpf_policy_done(&pod->policy);
	scoped_close(&pod->netns_fd);
	free(pod->addresses);
	free(pod);
}

struct ebpf_pod *ebpf_pods_get(struct ebpf *e, uint64_t cookie)
{
	struct ebpf_pod **slot = pod_slot(e, cookie);

	if (!*slot) {
		*slot = calloc(1, sizeof(**slot));
		if (*slot) {
			(*slot)->cookie = cookie;
			(*slot)->namespace_id = -1;
			(*slot)->netns_fd = -1;
		}
	}
	return *slot;
}

void ebpf_pods_forget(struct ebpf *e, uint64_t cookie)
{
	struct ebpf_pod **slot = pod_slot(e, cookie), *pod = *slot;

	if (pod)
		*slot = pod->next;
	ebpf_pods_free(pod);
}

bool ebpf_pods_config(struct ebpf *e, uint64_t cookie, struct pod_config *ret)
{
	return !bpf_map_lookup_elem(bpf_map__fd(e->datapath->maps.pods), &cookie, ret);
}

int ebpf_pods_config_write(struct ebpf *e, uint64_t cookie, const struct pod_config *cfg,
			   struct error *err)
{
	if (bpf_map_update_elem(bpf_map__fd(e->datapath->maps.pods), &cookie, cfg, BPF_ANY))
		return ebpf_limit_error(err, "pods (--max-pods)");
	return 0;
}

int ebpf_limit_error(struct error *err, const char *what)
{
	int code = errno;

	/* E2BIG is the map's max_entries, which --max-rule-entries and --max-pods set. */
	if (code == E2BIG || code == ENOSPC)
		return error_set(err, ENOSPC, "the node's limit of %s is reached", what);
	return error_set(err, code, "write %s", what);
}
