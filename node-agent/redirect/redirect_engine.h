/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_REDIRECT_ENGINE_H
#define SOCKMESH_REDIRECT_ENGINE_H

/*
 * What redirect.c chooses from: one table of these per engine. Contracts are redirect.h's where the
 * name is the same.
 */
#include "kubelet.h"
#include "redirect.h"

/* What the kernel has of one engine for one pod. */
enum redirect_presence {
	REDIRECT_ABSENT,
	REDIRECT_ACTIVE,   /* new connections are captured; perhaps not exactly as planned */
	REDIRECT_DRAINING, /* none are, but something is kept for those that were */
	REDIRECT_PARTIAL,  /* the leftovers of an apply or remove that was cut short */
};

struct redirect_engine_ops {
	const char *name;

	/*
	 * Has this engine something on the node for the pod (cookie 0: at all) that outlives an
	 * agent? NULL: what it has is in the pods' namespaces. Looks, and makes nothing.
	 */
	bool (*is_installed)(const struct redirect_config *cfg, uint64_t cookie);

	/* The same of a namespace: is what it has there this agent's (cfg->instance)? */
	bool (*is_ours)(const struct redirect_config *cfg, int netns_fd);

	/* NULL when it can do this plan, else why not, in words ("TPROXY needs ..."). Static. */
	const char *(*cannot)(const struct redirect_plan *plan);

	/*
	 * Takes what the node needs for it, or fails having left nothing: no probe but trying. An
	 * error says in one line what the node lacks.
	 */
	int (*open)(const struct redirect_config *cfg, struct event_loop *loop, void **ret_state,
		    struct error *err);
	void (*close)(void *state);

	int (*apply)(void *state, const struct redirect_pod *pod, struct error *err);

	/* The pod ends, or never was: everything goes. netns_fd may be -1. */
	int (*remove)(void *state, uint64_t cookie, int netns_fd, struct error *err);

	/*
	 * The pod goes on under another engine: captures nothing new from now on, and breaks no
	 * connection that was. Idempotent; called again until *ret_done says that nothing is left
	 * of this engine in the pod. pod->plan may be NULL (not known). ::6 on lo stays: it is the
	 * next engine's.
	 */
	int (*retire)(void *state, const struct redirect_pod *pod, bool *ret_done,
		      struct error *err);

	/*
	 * netns_fd is valid; state is NULL when the engine is not open. Cheap, without running a
	 * program where nothing is to be found: it is asked for every pod at every start.
	 */
	int (*presence)(void *state, uint64_t cookie, int netns_fd, enum redirect_presence *ret,
			struct error *err);
	/* Did it put ::6/128 on the pod's lo? Then whoever takes the pod over has to take it away.
	 */
	bool (*owns_passthrough)(void *state, uint64_t cookie, int netns_fd);
	int (*verify)(void *state, const struct redirect_pod *pod, struct error *err);

	/*
	 * Cookies of pods that the kernel has, for an engine that can list them without their
	 * namespaces. NULL: it cannot.
	 */
	int (*recovered)(void *state, uint64_t **ret_cookies, size_t *ret_n, struct error *err);
	/* NULL: nothing to do. */
	int (*adopt)(void *state, const struct redirect_pod *pod, struct error *err);

	bool (*netns_gone)(void *state, uint64_t cookie); /* NULL: it cannot tell */
	/* NULL: it does not follow addresses. */
	bool (*address_is_local)(void *state, uint64_t cookie, const struct ip_address *a);
	json_t *(*pod_counters)(void *state, uint64_t cookie, int netns_fd);
	json_t *(*node_counters)(void *state); /* NULL: none */
	/* Who kubelet is at this moment, and by what its connections to ambient pods are known. */
	enum kubelet_known (*kubelet)(void *state, struct kubelet *ret);
	/* NULL: the accelerator cannot ride on this engine. */
	bool (*accelerate_host)(const void *state, struct accelerate_host *ret);

	/*
	 * An earlier agent had this engine, which has no pod any more: what it keeps in the host's
	 * own namespace goes. Without an open engine; one that is open sees to it itself. NULL:
	 * nothing is kept there.
	 */
	int (*leave_host)(const struct redirect_config *cfg, struct error *err);

	/* Removes it from one namespace, and from the node; without an open engine. */
	int (*uninstall)(const struct redirect_config *cfg, const struct redirect_pod *pods,
			 size_t n_pods, struct error *err);
};

extern const struct redirect_engine_ops redirect_ebpf_ops;
extern const struct redirect_engine_ops redirect_nftables_ops;
extern const struct redirect_engine_ops redirect_iptables_ops;

#endif
