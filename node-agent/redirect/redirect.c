/* SPDX-License-Identifier: Apache-2.0 */
#include "redirect.h"

#include "error.h"
#include "redirect_engine.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

struct redirect {
	const struct redirect_engine_ops *ops;
	void *state;
	char reason[256];
};

static const struct redirect_engine_ops *const engines[] = {&redirect_ebpf_ops};

int redirect_open(const struct redirect_config *cfg, struct event_loop *loop, struct redirect **ret,
		  struct error *err)
{
	struct redirect *r;
	int result;

	if (cfg->mode != REDIRECT_AUTO && cfg->mode != REDIRECT_EBPF)
		return error_set(err, ENOTSUP, "only the eBPF engine is built so far");
	r = calloc(1, sizeof(*r));
	if (!r)
		return error_set(err, ENOMEM, "open the redirect engine");
	r->ops = &redirect_ebpf_ops;
	snprintf(r->reason, sizeof(r->reason), "%s",
		 cfg->mode == REDIRECT_AUTO ? "the kernel can do everything that it needs"
					    : "asked for by --mode");
	result = r->ops->open(cfg, loop, &r->state, err);
	if (result) {
		free(r);
		return error_wrap(err, "engine %s", redirect_ebpf_ops.name);
	}
	*ret = r;
	return 0;
}

void redirect_close(struct redirect *r)
{
	if (!r)
		return;
	r->ops->close(r->state);
	free(r);
}

const char *redirect_engine(const struct redirect *r)
{
	return r->ops->name;
}

const char *redirect_reason(const struct redirect *r)
{
	return r->reason;
}

int redirect_apply(struct redirect *r, const struct redirect_pod *pod, struct error *err)
{
	return r->ops->apply(r->state, pod, err);
}

int redirect_remove(struct redirect *r, uint64_t cookie, int netns_fd, struct error *err)
{
	return r->ops->remove(r->state, cookie, netns_fd, err);
}

int redirect_verify(struct redirect *r, const struct redirect_pod *pod, struct error *err)
{
	return r->ops->verify(r->state, pod, err);
}

int redirect_recovered(struct redirect *r, uint64_t **ret_cookies, size_t *ret_n, struct error *err)
{
	return r->ops->recovered(r->state, ret_cookies, ret_n, err);
}

int redirect_adopt(struct redirect *r, const struct redirect_pod *pod, struct error *err)
{
	return r->ops->adopt(r->state, pod, err);
}

bool redirect_netns_gone(struct redirect *r, uint64_t cookie)
{
	return r->ops->netns_gone(r->state, cookie);
}

bool redirect_address_is_local(struct redirect *r, uint64_t cookie, const struct ip_address *a)
{
	return r->ops->address_is_local(r->state, cookie, a);
}

json_t *redirect_pod_counters(struct redirect *r, uint64_t cookie)
{
	return r->ops->pod_counters(r->state, cookie, -1);
}

json_t *redirect_node_counters(struct redirect *r)
{
	return r->ops->node_counters(r->state);
}

/* Every engine looks for what it may have left, whichever ran last. */
int redirect_uninstall(const struct redirect_config *cfg, const struct redirect_pod *pods,
		       size_t n_pods, struct error *err)
{
	int result = 0;

	for (size_t i = 0; i < sizeof(engines) / sizeof(engines[0]); i++) {
		int r = engines[i]->uninstall(cfg, pods, n_pods, err);

		if (r && !result)
			result = error_wrap(err, "engine %s", engines[i]->name);
	}
	return result;
}
