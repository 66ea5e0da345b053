/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_POD_STATE_H
#define SOCKMESH_POD_STATE_H

/*
 * The state file's content: {"v":1,"pods":[{...}]}, what an agent must know about its pods to take
 * over from one that died. Plans are not in it: they follow from the annotations. Pure.
 */
#include <stddef.h>
#include <stdint.h>

struct error;
struct pod;

enum {
	POD_STATE_VERSION = 1,
	POD_STATE_MAX = 256 * 1024 * 1024, /* bytes of a state file that is read */
	POD_STATE_PODS_MAX = 4 * 65536,
};

/* One entry as JSON text, the caller's to free. */
int pod_state_encode(const struct pod *pod, char **ret, struct error *err);

/*
 * Every entry; the array and the pods in it are the caller's (pod_free, free). Their plans are
 * NULL, their records set. -EINVAL names what is wrong; -EPROTONOSUPPORT: written by a newer agent.
 */
int pod_state_decode(const char *text, size_t size, struct pod ***ret, size_t *ret_n,
		     struct error *err);

/* RFC 3339 in UTC. */
enum { TIME_TEXT_MAX = 32 };
const char *pod_state_time(int64_t seconds, char buf[static TIME_TEXT_MAX]);

#endif
