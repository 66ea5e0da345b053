/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_POD_MEMBERSHIP_H
#define SOCKMESH_POD_MEMBERSHIP_H

/*
 * What the plugin itself can tell about a pod, for the case that the agent does not answer: the
 * agent decides, this only says whether the pod may start without it. Pure.
 */
#include <jansson.h>

struct cni_args;
struct cni_conf;

enum pod_membership {
	/*
	 * The agent is never asked: not Kubernetes', an excluded namespace, our own and the
	 * proxy's pods, or an annotation that says none. Waiting for the agent here could keep
	 * the agent's own pod from starting.
	 */
	POD_EXEMPT,
	POD_OUTSIDE,	/* nothing says that it is in the mesh */
	POD_MAYBE_MESH, /* an annotation says so, ambient may, or annotations are not known */
};

/* *ret_reason is a constant: why, in words. */
enum pod_membership pod_membership_guess(const struct cni_conf *conf, const struct cni_args *args,
					 const char **ret_reason);

/* The annotations that the agent reads, as a new object; NULL without memory. */
json_t *pod_membership_annotations(json_t *annotations);

#endif
