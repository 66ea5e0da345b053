/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_REDIRECT_H
#define SOCKMESH_REDIRECT_H

/*
 * Redirect engines: the one place that decides how a pod's traffic reaches the proxy. Callers
 * never learn which engine runs. Only registration/ (and later the reconciler) calls this.
 *
 * A pod is known here by the cookie of its network namespace (SO_NETNS_COOKIE), never by a name.
 */
#include "ip_address.h"
#include "redirect_plan.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct event_loop;
struct redirect;

enum redirect_mode { REDIRECT_AUTO, REDIRECT_EBPF, REDIRECT_NFTABLES, REDIRECT_IPTABLES };

struct redirect_config {
	enum redirect_mode mode;
	const char *bpffs_dir;	 /* pins live here; created; bpffs is mounted on it when it must */
	const char *cgroup_root; /* programs attach to its kubepods[.slice], else to itself */
	uint32_t max_pods;
	uint32_t max_handovers;		/* connections being handed over at once, node */
	uint32_t max_handovers_per_pod; /* the same, one pod */
	uint32_t max_rule_entries;	/* ports and prefixes in all lists of all pods */

	const char *iptables; /* "auto", "legacy" or "nft": which iptables-restore is run */

	/*
	 * Opens a pod's namespace again, for an engine that must look into it later; engines keep
	 * no descriptor, which would hold a dead pod's namespace alive. *ret_fd is the engine's.
	 */
	int (*open_netns)(void *arg, uint64_t cookie, int *ret_fd, struct error *err);
	void *open_netns_arg;
};

/* What an engine needs of one pod; borrowed for the call. */
struct redirect_pod {
	uint64_t cookie;
	int netns_fd;
	/* The same plan twice: with ids as our user namespace and as the pod's own numbers them. */
	const struct redirect_plan *plan, *pod_plan;
	bool beside_ebpf; /* the eBPF engine has the pod as well, while it moves */
	const struct ip_address *addresses; /* from prevResult, the first of a family is primary */
	size_t n_addresses;
};

int redirect_open(const struct redirect_config *cfg, struct event_loop *loop, struct redirect **ret,
		  struct error *err);
void redirect_close(struct redirect *r); /* NULL is fine; pods stay redirected */

const char *redirect_engine(const struct redirect *r); /* "ebpf", ... */
const char *redirect_reason(const struct redirect *r); /* why this engine, in words */

/*
 * apply: idempotent, all or nothing; returns with the pod redirected. -ENOSPC when a limit is
 * reached (err says which). remove: already gone is success; netns_fd may be -1 when the namespace
 * is gone. verify: -ENODEV with err naming the first difference between kernel and plan.
 */
int redirect_apply(struct redirect *r, const struct redirect_pod *pod, struct error *err);
int redirect_remove(struct redirect *r, uint64_t cookie, int netns_fd, struct error *err);
int redirect_verify(struct redirect *r, const struct redirect_pod *pod, struct error *err);

/*
 * After a restart: the pods that the kernel still redirects. *ret_cookies is the caller's to free.
 * adopt: the pod is known again (watches are set up); nothing in the kernel changes.
 */
int redirect_recovered(struct redirect *r, uint64_t **ret_cookies, size_t *ret_n,
		       struct error *err);
int redirect_adopt(struct redirect *r, const struct redirect_pod *pod, struct error *err);
bool redirect_netns_gone(struct redirect *r, uint64_t cookie); /* its namespace has ended */

/* Is `address` one of the pod's own right now? For explain. */
bool redirect_address_is_local(struct redirect *r, uint64_t cookie, const struct ip_address *a);

/*
 * {"verdicts":{"<rule name>":N,...},"events":{"<event>":N,...}} for one pod, and
 * {"events":{...},"handovers":N,"limits":{...}} for the node. New references, NULL without memory
 * or when the pod is not there.
 */
json_t *redirect_pod_counters(struct redirect *r, uint64_t cookie);
json_t *redirect_node_counters(struct redirect *r);

/*
 * Removes everything that any engine of Sockmesh left under this configuration, in the kernel and
 * in bpffs, without an open engine and whatever version made it. Pods' namespaces are reached
 * through the fds given.
 */
int redirect_uninstall(const struct redirect_config *cfg, const struct redirect_pod *pods,
		       size_t n_pods, struct error *err);

#endif
