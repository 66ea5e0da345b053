/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_KUBELET_H
#define SOCKMESH_KUBELET_H

/* Which connections of this node are kubelet's: by its cgroup, else by its process. */
#include <jansson.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct error;

enum kubelet_source {
	KUBELET_UNKNOWN, /* no such process */
	KUBELET_GIVEN,	 /* --kubelet-cgroup; it need not exist now, then cgroup_id is 0 */
	KUBELET_CGROUP,	 /* the cgroup that its process is in, which is not the root */
	KUBELET_PROCESS, /* it is in the root cgroup, or there is no cgroup2 */
};

struct kubelet {
	enum kubelet_source source;
	char cgroup[PATH_MAX]; /* directory; "" where it is not known by one */
	uint64_t cgroup_id;    /* changes when it is made anew, as when its service starts again */
	uint32_t level;	       /* of the cgroup, below the root of cgroup2; 0: not known */
	pid_t pid;	       /* 0: not looked for */
	uid_t uid;	       /* of the process; 0 where there is none, as kubelet is root */
};

/* -EINVAL: given, --kubelet-cgroup, holds the pods, which would all be kubelet then. */
int kubelet_check(const char *given, const char *cgroup_root, struct error *err);

/*
 * given: --kubelet-cgroup, NULL or "" when it is not set. cgroup_root: where cgroup2 is mounted,
 * NULL: looked for. A process counts when it is called kubelet, kubelite or k3s and is in our own
 * network namespace and not in a pod: what a pod calls its processes means nothing. Nor does a
 * cgroup count that holds the pods.
 */
int kubelet_find(const char *given, const char *cgroup_root, struct kubelet *ret,
		 struct error *err);

/*
 * A rule about a cgroup's level or path is read as the cgroup namespace of who makes it shows
 * cgroups. Moves the calling thread to the node's; false: it is in one of its own and cannot leave
 * it. Nothing but system calls.
 */
bool kubelet_see_cgroups_of_node(void);

enum kubelet_known { /* what an engine makes of that: by what it knows kubelet's connections */
		     KUBELET_KNOWN_NOT,
		     KUBELET_KNOWN_CGROUP,
		     KUBELET_KNOWN_PROCESS,
		     KUBELET_KNOWN_USER,
};

/*
 * {"knownBy":"nothing"|"cgroup"|"process"|"user","detail","cgroup","pid","uid"}, the last three
 * NULL where there is none. A new reference; NULL without memory.
 */
json_t *kubelet_json(const struct kubelet *kubelet, enum kubelet_known known);

const char *kubelet_source_words(enum kubelet_source source); /* "its cgroup, ..." */

#endif
