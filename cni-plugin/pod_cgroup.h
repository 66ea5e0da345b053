/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_POD_CGROUP_H
#define SOCKMESH_POD_CGROUP_H

/*
 * The pod's directory in the cgroup2 hierarchy, from what the runtime says or by looking for it:
 * systemd and cgroupfs drivers, hosts with cgroup2 alone or beside cgroup v1. A pod without one
 * (cgroup v1, or a runtime that made none yet) is an ordinary answer.
 */
#include <stddef.h>

struct error;

struct pod_cgroup_query {
	const char *cgroup_path;  /* the pod's cgroup parent, or NULL */
	const char *pod_uid;	  /* or NULL */
	const char *container_id; /* or NULL */
};

/*
 * Where cgroup2 is mounted, from a file in the format of /proc/self/mountinfo. -ENOENT: nowhere.
 */
int pod_cgroup_mount(const char *mountinfo_path, char *ret, size_t size, struct error *err);

/*
 * Writes the directory relative to root, starting with '/'. cgroup_path is tried first, then the
 * places where kubelet puts a pod of that uid, then directories in root named after the uid or,
 * without a uid, after the container (its parent when that is a pod's). -ENOENT: none.
 */
int pod_cgroup_find(const char *root, const struct pod_cgroup_query *query, char *ret, size_t size,
		    struct error *err);

/*
 * The nested path of a systemd slice: "a-b.slice" is "/a.slice/a-b.slice". -EINVAL: no slice name
 * (systemd.slice(5)).
 */
int pod_cgroup_expand_slice(const char *slice, char *ret, size_t size, struct error *err);

#endif
