/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_POD_STATUS_H
#define SOCKMESH_POD_STATUS_H

/*
 * What the agent tells the cluster about pods: two annotations, by merge patches of the status
 * subresource (which need fewer rights than the pod itself), and Events for what it refuses.
 *
 * Always after the fact, and nothing waits for it. Of several values in a row only the last is
 * sent; a failure is tried again with back-off until the pod is gone. A patch names only our keys,
 * so that other writers are not in its way, and the pod's uid: a new pod of the same name is never
 * given the state of the old one. The kernel's state is the truth, not what is written here.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct error;
struct event_loop;
struct kube_client;
struct pod_status;

enum {
	POD_STATUS_IN_FLIGHT = 8,     /* patches at the same time */
	POD_STATUS_EVENTS_WAIT = 64,  /* Events that wait to be sent; more are dropped, counted */
	POD_STATUS_EVENT_MINUTES = 10 /* in which the same Event is not sent again */
};

struct pod_status_pod {
	const char *ns, *name, *uid;
};

struct pod_status_values {
	/* ambient.istio.io/redirection: set, or removed where the value is NULL; or not touched */
	bool has_redirection;
	const char *redirection;
	const char *status; /* sockmesh.io/status, JSON; NULL: removed */
};

/* client and loop must outlive it; node names the source of Events. */
int pod_status_new(struct event_loop *loop, struct kube_client *client, const char *node,
		   struct pod_status **ret, struct error *err);
void pod_status_free(struct pod_status *ps); /* what is not sent yet is not sent; NULL is fine */

int pod_status_set(struct pod_status *ps, const struct pod_status_pod *pod,
		   const struct pod_status_values *values, struct error *err);
void pod_status_forget(struct pod_status *ps, const char *uid); /* the pod is gone */

/* A warning about the pod. Repeats are left out. */
void pod_status_event(struct pod_status *ps, const struct pod_status_pod *pod, const char *reason,
		      const char *message);

/* {"written","failed","waiting","refused","events","eventsDropped","lastError"}, or NULL. */
json_t *pod_status_json(const struct pod_status *ps);

#endif
