/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_ACCELERATE_H
#define SOCKMESH_ACCELERATE_H

/*
 * The short way between two sockets of this node: what is sent goes straight to the receiver's
 * socket (sockmap), past the TCP stack. It rides on the eBPF engine, and is never more than an
 * optimisation: whatever fails here leaves connections on TCP, and no pod is refused for it.
 * docs/acceleration.md says how it works; the BPF side is bpf/accelerate.bpf.c.
 */
#include "ip_address.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct accelerate;
struct bpf_object;
struct error;
struct event_loop;

/* --accelerate */
enum accelerate_policy {
	ACCELERATE_OFF,
	ACCELERATE_PROXY,
	ACCELERATE_AUTO,	 /* proxy where the probe allows, full for pods that ask */
	ACCELERATE_FULL_ADVISED, /* the same, and full for workloads that the adviser cleared */
	ACCELERATE_FULL,	 /* full for every pod, at the operator's own risk */
};

/* sockmesh.io/accelerate */
enum accelerate_wish {
	ACCELERATE_WISH_NONE, /* no annotation, or "auto" */
	ACCELERATE_WISH_OFF,
	ACCELERATE_WISH_PROXY,
	ACCELERATE_WISH_FULL,
};

struct accelerate_config {
	enum accelerate_policy policy;
	bool learning;		/* --accelerate-learning; without it nothing is ever left alone */
	bool ignore_known_bugs; /* --accelerate-ignore-known-bugs: of the table of releases */
	bool unknown_proxy;	/* of this mesh: auto leaves pods that do not ask alone */
	uint32_t max_pods;
	uint32_t max_sockets, max_sockets_per_pod; /* in the map */
	uint32_t max_bytes, max_messages; /* outstanding in one direction of one connection */
	uint64_t budget, pod_budget; /* kernel memory outstanding beyond the allowances, bytes */
	const char *bpffs_dir;
	const char *state_dir; /* the run directory: what the adviser cleared outlives an agent */
};

/* The eBPF engine's, borrowed for as long as the accelerator is open. */
struct accelerate_host {
	struct bpf_object *datapath; /* its maps are shared by name */
	int cgroup_fd;		     /* that programs are attached to */
	bool netns_by_inode;
};

struct accelerate_pod {
	uint64_t cookie;
	const char *ns, *name;
	const char *workload; /* "NAMESPACE/NAME" of what the pod belongs to, see pod_workload.h */
	enum accelerate_wish wish;
	const struct ip_address *addresses;
	size_t n_addresses;
};

/*
 * host NULL: there is no eBPF engine, so there is nothing to do but to say so. Runs the probe
 * (accelerate_probe.h) first, which decides how far the policy may go. Takes over what an earlier
 * agent pinned; with ACCELERATE_OFF it tells that to stop, and removes it once no socket is left in
 * it. -errno only without memory: whatever else fails is the reason that accelerate_json() gives.
 */
int accelerate_open(const struct accelerate_config *cfg, const struct accelerate_host *host,
		    struct event_loop *loop, struct accelerate **ret, struct error *err);
void accelerate_close(struct accelerate *a); /* NULL is fine; what is pinned goes on */

/*
 * A pod of the eBPF engine, new, adopted or changed; idempotent. A failure is only told (the pod
 * then stays on TCP): the caller logs it. remove: already gone is success.
 */
int accelerate_pod_set(struct accelerate *a, const struct accelerate_pod *pod, struct error *err);
void accelerate_pod_remove(struct accelerate *a, uint64_t cookie);

/*
 * settle: once the pods that an agent starts with are set, what earlier agents left of others goes.
 * heal: now and then; the programs are on the engine's cgroup, which may be another one by now.
 */
void accelerate_pods_settle(struct accelerate *a);
void accelerate_heal(struct accelerate *a, const struct accelerate_host *host);

/* "off", "proxy" or "full", what new connections of the pod may have at most; "off" if unknown. */
const char *accelerate_pod_level(const struct accelerate *a, uint64_t cookie);
const char *accelerate_pod_reason(const struct accelerate *a, uint64_t cookie); /* NULL: unknown */

/*
 * What the adviser found about a workload, for --accelerate full-advised: kept in
 * <state_dir>/accelerate.json with its words (a reference is taken), and the workload's pods get
 * their level anew.
 */
int accelerate_workload_clear(struct accelerate *a, const char *workload, bool cleared,
			      json_t *advice, struct error *err);

/*
 * New references; NULL without memory.
 *
 * {"policy","level":"off"|"proxy"|"full" (the most that a pod may get here),"reason",
 *  "learning":bool,"sockets":N,"claimed":bytes,
 *  "retiring":N (of earlier agents' versions that still have sockets),
 *  "limits":{...},"events":{"<event>":N,...}}
 */
json_t *accelerate_json(struct accelerate *a);
/*
 * [{"workload","peer","port","leg","verdict":"short"|"left-alone","why","until",...sums,
 *   "measured":[{"connections":"16-31","verdict":"faster"|"slower","of":"exchange"|"answer",
 *   "tcpUs","shortUs","until"}]}]
 */
json_t *accelerate_pairs_json(struct accelerate *a);
/* accelerate_probe.h's result; NULL: the probe was not run */
json_t *accelerate_probe_json(struct accelerate *a);

/* Everything that any agent left under bpffs_dir, without an open one; see docs/architecture.md. */
int accelerate_uninstall(const char *bpffs_dir, struct error *err);

/* "auto" and so on; false when the text is none. */
bool accelerate_policy_parse(const char *text, enum accelerate_policy *ret);
const char *accelerate_policy_name(enum accelerate_policy policy);
bool accelerate_wish_parse(const char *text, enum accelerate_wish *ret);

#endif
