/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_REDIRECT_H
#define SOCKMESH_REDIRECT_H

/*
 * Redirect engines: the one place that decides how a pod's traffic reaches the proxy. Callers
 * never learn which engine runs. Only registration/ (and later the reconciler) calls this.
 *
 * A pod is known here by the cookie of its network namespace (netns_identify()), never by a name.
 */
#include "ip_address.h"
#include "redirect_plan.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct accelerate_host;
struct error;
struct event_loop;
struct redirect;

/*
 * For how long ztunnel goes on with a pod that leaves the mesh while it runs: as it is told, it
 * cuts what it has of the pod.
 */
enum { REDIRECT_LINGER_MS = 5000 };

enum redirect_mode { REDIRECT_AUTO, REDIRECT_EBPF, REDIRECT_NFTABLES, REDIRECT_IPTABLES };

/* What an engine needs of one pod; borrowed for the call. */
struct redirect_pod {
	uint64_t cookie;
	int netns_fd;
	/* The same plan twice: with ids as our user namespace and as the pod's own numbers them. */
	const struct redirect_plan *plan, *pod_plan;
	bool beside_ebpf; /* the eBPF engine has the pod as well, while it moves */
	bool nat_goes_on; /* retired beside another netfilter engine, which keeps translating */
	bool leaves;	  /* retired for no other engine: in the end nothing is to be left in it */
	bool lingers;	  /* and not yet: ztunnel, which still serves it, opens connections to it */
	bool passthrough_is_ours; /* ::6 on lo is there because an engine of ours added it */
	const struct ip_address *addresses; /* from prevResult, the first of a family is primary */
	size_t n_addresses;
};

typedef int (*redirect_visit_fn)(const struct redirect_pod *pod, void *arg, struct error *err);

struct redirect_config {
	enum redirect_mode mode;
	const char *bpffs_dir;	 /* pins live here; created; bpffs is mounted on it when it must */
	const char *cgroup_root; /* programs attach to its kubepods[.slice], else to itself */
	uint32_t max_pods;
	uint32_t max_handovers;		/* connections being handed over at once, node */
	uint32_t max_handovers_per_pod; /* the same, one pod */
	uint32_t max_rule_entries;	/* ports and prefixes in all lists of all pods */

	const char *kubelet_cgroup; /* directory of --kubelet-cgroup; NULL: kubelet is looked for */

	uint32_t instance;    /* marks what this agent makes in namespaces; of its run directory */
	const char *iptables; /* "auto", "legacy" or "nft": which iptables-restore is run */

	/*
	 * Opens a pod's namespace again, for an engine that must look into it later; engines keep
	 * no descriptor, which would hold a dead pod's namespace alive. *ret_fd is the engine's.
	 */
	int (*open_netns)(void *arg, uint64_t cookie, int *ret_fd, struct error *err);
	/* Calls fn with a pod as it is to be applied, its namespace open. -ENOENT: it cannot. */
	int (*visit_pod)(void *arg, uint64_t cookie, redirect_visit_fn fn, void *fn_arg,
			 struct error *err);
	/* A pod's namespace has ended, or several. Not called from within any call. NULL: fine. */
	void (*namespaces_ended)(void *arg);
	void *pods_arg; /* of all of these */
};

int redirect_open(const struct redirect_config *cfg, struct event_loop *loop, struct redirect **ret,
		  struct error *err);
void redirect_close(struct redirect *r); /* NULL is fine; pods stay redirected */

const char *redirect_engine(const struct redirect *r); /* preferred on this node: "ebpf", ... */
const char *redirect_reason(const struct redirect *r); /* why this engine, in words */

/* "none" when the pod is not known; the reason is NULL when it has the preferred engine. */
const char *redirect_pod_engine(const struct redirect *r, uint64_t cookie);
const char *redirect_pod_engine_reason(const struct redirect *r, uint64_t cookie);

/* The engines that still keep something for connections captured before the pod moved. */
enum { REDIRECT_ENGINES = 3 };
size_t redirect_pod_draining(const struct redirect *r, uint64_t cookie,
			     const char *ret_names[static REDIRECT_ENGINES]);

/*
 * apply: idempotent, all or nothing; returns with the pod redirected, by the engine that this node
 * prefers, or where that one cannot do the plan by one that can. A pod that another engine has
 * moves: at no moment is it covered by none, and no connection that it had is broken. -ENOSPC when
 * a limit is reached, -ENOTSUP when no engine can do the plan (err says which, and why).
 * remove: already gone is success; netns_fd may be -1 when the namespace is gone.
 * release: the pod lives on without redirection: nothing new is captured from now on, and what was
 * goes on to its end; it is to be visited (visit_pod) until then.
 * verify: -ENODEV with err naming the first difference between kernel and plan.
 */
int redirect_apply(struct redirect *r, const struct redirect_pod *pod, struct error *err);
int redirect_remove(struct redirect *r, uint64_t cookie, int netns_fd, struct error *err);
int redirect_release(struct redirect *r, const struct redirect_pod *pod, struct error *err);
int redirect_verify(struct redirect *r, const struct redirect_pod *pod, struct error *err);

/*
 * Compares and, when there is a difference or the pod has another engine than it should, applies
 * and counts. *ret_why says what was found; REDIRECT_AS_PLANNED otherwise. When it fails, *ret_why
 * has a code if there is a difference, so that the pod is not redirected as it should be; none if
 * that is not known, or the pod only keeps the engine that it has.
 */
enum redirect_healing { REDIRECT_AS_PLANNED, REDIRECT_HEALED, REDIRECT_MOVED };
int redirect_heal(struct redirect *r, const struct redirect_pod *pod, enum redirect_healing *ret,
		  struct error *ret_why, struct error *err);

/*
 * After a restart: the pods that the kernel still redirects, as far as that can be known without
 * their namespaces or found by looking into every namespace. *ret_cookies is the caller's to free.
 * adopt: the pod is known again (watches are set up); nothing in the kernel changes. -ENODEV: no
 * engine has it.
 */
int redirect_recovered(struct redirect *r, uint64_t **ret_cookies, size_t *ret_n,
		       struct error *err);
int redirect_adopt(struct redirect *r, const struct redirect_pod *pod, struct error *err);
bool redirect_netns_gone(struct redirect *r, uint64_t cookie); /* its namespace has ended */

/* Is `address` one of the pod's own right now? For explain. */
bool redirect_address_is_local(struct redirect *r, uint64_t cookie, const struct ip_address *a);

/*
 * {"verdicts":{"<rule name>":N,...},"events":{"<event>":N,...}} for one pod, and
 * {"events":{...},"totals":{"verdicts":{...},"events":{...}},"handovers":N,"limits":{...},
 * "engines":{"<engine>":pods,...},"healed":N,"healFailures":N,"moves":N,"fallbacks":N} for the node
 * (the first four only with eBPF; events: what belongs to no pod; totals: that and all pods, also
 * those that have gone since the agent started). New references, NULL without memory or when the
 * pod is not there.
 */
json_t *redirect_pod_counters(struct redirect *r, uint64_t cookie);
json_t *redirect_node_counters(struct redirect *r);

/* By what the preferred engine knows kubelet's probes: kubelet_json(). */
json_t *redirect_kubelet(const struct redirect *r);

/*
 * What the accelerator rides on. False: the eBPF engine is not the node's. What is in *ret is the
 * engine's; ask again rather than keep it: a cgroup that is made anew gets another descriptor.
 */
bool redirect_accelerate_host(const struct redirect *r, struct accelerate_host *ret);

/*
 * Removes everything that any engine of Sockmesh left under this configuration, in the kernel and
 * in bpffs, without an open engine and whatever version made it. Pods' namespaces are reached
 * through the fds given.
 */
int redirect_uninstall(const struct redirect_config *cfg, const struct redirect_pod *pods,
		       size_t n_pods, struct error *err);

#endif
