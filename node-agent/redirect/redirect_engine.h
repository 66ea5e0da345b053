/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_REDIRECT_ENGINE_H
#define SOCKMESH_REDIRECT_ENGINE_H

/* What redirect.c chooses from: one table of these per engine. Contracts are redirect.h's. */
#include "redirect.h"

struct redirect_engine_ops {
	const char *name;
	int (*open)(const struct redirect_config *cfg, struct event_loop *loop, void **ret_state,
		    struct error *err);
	void (*close)(void *state);
	int (*apply)(void *state, const struct redirect_pod *pod, struct error *err);
	int (*remove)(void *state, uint64_t cookie, int netns_fd, struct error *err);
	int (*verify)(void *state, const struct redirect_pod *pod, struct error *err);
	int (*recovered)(void *state, uint64_t **ret_cookies, size_t *ret_n, struct error *err);
	int (*adopt)(void *state, const struct redirect_pod *pod, struct error *err);
	bool (*netns_gone)(void *state, uint64_t cookie);
	bool (*address_is_local)(void *state, uint64_t cookie, const struct ip_address *a);
	json_t *(*pod_counters)(void *state, uint64_t cookie);
	json_t *(*node_counters)(void *state);
	int (*uninstall)(const struct redirect_config *cfg, const struct redirect_pod *pods,
			 size_t n_pods, struct error *err);
};

extern const struct redirect_engine_ops redirect_ebpf_ops;

#endif
