/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_POD_FINDER_H
#define SOCKMESH_POD_FINDER_H

/*
 * The network namespaces of pods that no CNI plugin registered, found by their processes: the
 * cgroup tells whose a process is, and the namespace must have an address of that pod. Without the
 * last, a process that merely passes through another pod's namespace (a CNI plugin at work) would
 * be believed.
 *
 * Of several namespaces of one pod, the one whose process started first is the pod's.
 */
#include "ip_address.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct error;
struct pod_search;

struct pod_found {
	const char *uid;
	int netns_fd; /* the search's, closed after the call */
	/*
	 * By which the namespace can be opened again: where it is bound to a file, that, which
	 * stays as long as the sandbox; else /proc/PID/ns/net, as long as that process.
	 */
	const char *netns;
	const char *cgroup; /* of that process, in cgroup2; NULL: it has none there */
	pid_t pid;
};
typedef void (*pod_found_fn)(const struct pod_found *found, void *arg);

/* NULL proc: /proc. */
int pod_search_new(const char *proc, struct pod_search **ret, struct error *err);
void pod_search_free(struct pod_search *search); /* NULL is fine */

/*
 * A pod to look for; again: with these addresses from now on. One without addresses is never found.
 */
int pod_search_want(struct pod_search *search, const char *uid, const struct ip_address *addresses,
		    size_t n, struct error *err);
void pod_search_forget(struct pod_search *search, const char *uid);
size_t pod_search_wanted(const struct pod_search *search);

/*
 * Goes on with a walk over all processes for at most about slice_ms; begins one when none is under
 * way. True while there is more to do. At the end of the walk fn is called for every pod that was
 * found, and these are no longer wanted. A walk finds pods that were wanted before it began: one
 * that was not has it pass by the process that started first, and gets a walk of its own.
 */
bool pod_search_step(struct pod_search *search, unsigned slice_ms, pod_found_fn fn, void *arg);

/*
 * One process, of which somebody has heard. It says that a pod is there, but not whether another
 * of the pod's processes started before it. True: it is a wanted pod's, and the walk that is under
 * way or, without one, the next tells what there is.
 */
bool pod_search_look_at(struct pod_search *search, pid_t pid);

/*
 * Processes of which nobody has heard may have started: if a walk is under way, which may have
 * passed by where they are, another one follows.
 */
void pod_search_again(struct pod_search *search);

#endif
