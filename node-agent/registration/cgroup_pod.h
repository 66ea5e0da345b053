/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_CGROUP_POD_H
#define SOCKMESH_CGROUP_POD_H

/*
 * Which pod a process belongs to, by the names that kubelet gives to its cgroups: a component that
 * holds "pod" and the pod's uid, with its dashes as underscores under systemd:
 *
 *   /kubepods/burstable/pod0b7a2f3e-.../4f1c...
 *   /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0b7a2f3e_....slice/cri-...scope
 *
 * A static pod's is the hash of its manifest, 32 hex digits, which only kubelet and the runtime
 * know it by; to the API it has another one (kube_pod's local_uid).
 *
 * Pure.
 */
#include <stdbool.h>
#include <stddef.h>

enum { POD_UID_SIZE = 37 }; /* 8-4-4-4-12 hex digits with dashes, or 32 without, and the NUL */

/*
 * The uid in the text of /proc/PID/cgroup or in one cgroup's path. False when there is none, and
 * when there are several that differ (a process that is being moved, or a name made to mislead).
 */
bool cgroup_pod_uid(const char *text, char ret[static POD_UID_SIZE]);

#endif
