/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_REGISTRATION_H
#define SOCKMESH_REGISTRATION_H

/*
 * What the CNI plugin asks for: add, del, check, gc. The one place that changes whether a pod is
 * redirected, and that keeps the pod table, the state file and the kernel saying the same:
 * an add is in all three before it is answered, or in none.
 */
#include "agent_protocol.h"
#include "pod_policy.h"
#include "pod_table.h"
#include "redirect.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct accelerate;
struct error;
struct kube_pod;
struct registration;

struct registration_config {
	const struct policy_config *policy;
	struct redirect *redirect;
	struct accelerate *accelerate; /* is told of every pod; NULL: nobody is */
	const char *run_dir;
	uint32_t max_pods;

	/* An entry is about to go, whoever asked for it. NULL: nobody wants to know. */
	void (*forgotten)(void *arg, const struct pod *pod);
	/* pod->broken has come or gone. NULL: the same. */
	void (*broken)(void *arg, const struct pod *pod);
	void *hooks_arg;
};

/* Reads the state file and makes table and kernel agree (recovery.c). */
int registration_open(const struct registration_config *cfg, struct registration **ret,
		      struct error *err);
void registration_close(struct registration *reg); /* pods stay redirected; NULL is fine */

/*
 * add, del, check and gc. netns_fd is -1 when none came. facts: all that is known of a pod that is
 * added; NULL: what the request says. A new reference; NULL without memory.
 */
json_t *registration_handle(struct registration *reg, const struct agent_request *req, int netns_fd,
			    const struct pod_facts *facts);

/*
 * The same for a pod of which no plugin has told: found->netns_fd is its namespace, `netns` the
 * path by which that can be opened again. Its entry has the key {POD_FOUND_PREFIX uid, "-"}. The
 * errors are those of an add: -EINVAL and -ENOTSUP about what the facts say, -ENOSPC, -ENOMEM, else
 * the engine's.
 */
#define POD_FOUND_PREFIX "pod-"
struct registration_found {
	int netns_fd;
	const char *netns, *cgroup;
	const struct agent_address *ips;
	size_t n_ips;
};
int registration_add_found(struct registration *reg, const struct registration_found *found,
			   const struct pod_facts *facts, struct error *err);

/*
 * Decides anew about a namespace that is known, for all its entries, and makes it so: it is
 * redirected, changed in place or let go. found: another way to this very namespace, which is its
 * path from now on; NULL: the one that is known. `pod` is not to be used afterwards: find it again.
 */
int registration_redecide(struct registration *reg, const struct pod *pod,
			  const struct registration_found *found, const struct pod_facts *facts,
			  struct error *err);

/*
 * Has the pod other addresses than a plugin has told: the API says so, and they are there?
 * registration_redecide() takes them.
 */
bool registration_readdressed(const struct registration *reg, const struct pod *pod,
			      const struct kube_pod *kp);

/* Is what these settings mean already the entry's plan? */
bool registration_is_planned(const struct pod *pod, const struct redirect_settings *settings);

/*
 * Is this the namespace of an orphan, of which nobody knows whose it is? -1: is there such an
 * orphan at all? A pod that is found in it takes its place (registration_add_found()).
 */
bool registration_has_orphan(const struct registration *reg, int netns_fd);

/* For a pod that was found: it has ended. One that a plugin has added stays until its del. */
void registration_forget_found(struct registration *reg, const char *uid);

/* Its namespace, through its path, when that still is the same one; else -1. The caller's. */
int registration_open_netns(const struct pod *pod);

/* Neither by its path nor in the kernel is there anything of its namespace any more. */
bool registration_has_ended(const struct registration *reg, const struct pod *pod);

/* Forgets pods whose namespace has ended: for an agent that missed their del. */
void registration_sweep(struct registration *reg);

/* A redirected pod's namespace, opened again by its path. -ENOENT: it cannot be. */
int registration_reopen_netns(const struct registration *reg, uint64_t cookie, int *ret_fd,
			      struct error *err);

/* The same, and calls fn with the pod as its engine takes it; its plan is NULL for an orphan. */
int registration_visit_pod(const struct registration *reg, uint64_t cookie, redirect_visit_fn fn,
			   void *fn_arg, struct error *err);

/*
 * Compares every redirected pod with the kernel and heals what differs; pods that another engine
 * has than the one they should have move. One slice of at most a few tens of milliseconds of a
 * round; true while the round has pods left.
 */
bool registration_reconcile(struct registration *reg);

const struct pod_table *registration_pods(const struct registration *reg);

struct registration_counts { /* namespaces, but for `skipped`: attachments */
	size_t redirected, skipped, orphaned;
};
void registration_count(const struct registration *reg, struct registration_counts *ret);

/*
 * The same questions to the state file without an agent, for uninstall: the pods that were
 * redirected and whose namespace can still be reached. The array and each netns_fd in it are the
 * caller's. No file is no pods.
 */
int registration_saved_pods(const char *run_dir, struct redirect_pod **ret, size_t *ret_n,
			    struct error *err);

#endif
