/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_CGROUP_H
#define SOCKMESH_CGROUP_H

/*
 * Where cgroup2 is mounted (it is not always /sys/fs/cgroup: on v1/v2 hybrid hosts it is
 * /sys/fs/cgroup/unified) and which directory in it our programs attach to.
 */
#include <stddef.h>

struct error;

/* The first cgroup2 mount in mountinfo_path (NULL: /proc/self/mountinfo). -ENOENT: none. */
int cgroup2_find(const char *mountinfo_path, char *ret, size_t size, struct error *err);

/*
 * The directory that programs attach to: root's kubepods.slice or kubepods when there is one, else
 * root itself. root must be a cgroup2 directory (-EINVAL names it).
 */
int cgroup_attach_dir(const char *root, char *ret, size_t size, struct error *err);

#endif
