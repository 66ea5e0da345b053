/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_ENROLMENT_H
#define SOCKMESH_ENROLMENT_H

/*
 * Who is in the mesh, over time. The one place that hears of a pod from all who know something of
 * it (its CNI plugin, the API server, its processes, ztunnel) and that makes what registration, the
 * kernel, ztunnel and the pod's status say the same. It follows what is, not what was announced: an
 * event only means that a pod has to be looked at again.
 *
 * A pod joins ambient in this order, so that no connection of it fails: ztunnel gets its namespace
 * and says that it listens there; then the kernel redirects; then the status is written. It leaves
 * in the other: the kernel lets go, ztunnel is told, the status is removed.
 */
#include "pod_policy.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct accelerate;
struct agent_call;
struct agent_request;
struct enrolment;
struct error;
struct event_loop;
struct kube_client;
struct kube_repair_config;
struct kube_selectors;
struct pod;
struct redirect;
struct registration;

enum {
	ENROLMENT_CACHE_WAIT_MS = 2000, /* how long an add waits for the API to know its pod */
	ENROLMENT_ADDS_MAX = 512,	/* that wait at the same time; more are told to come back */
};

struct enrolment_config {
	struct event_loop *loop;
	const struct policy_config *policy;
	struct registration *registration;
	const struct redirect *redirect;
	const struct accelerate *accelerate;

	struct kube_client *client; /* NULL: nobody asks the API server */
	const struct kube_selectors *selectors;
	const struct kube_repair_config *repair;
	const char *node; /* this node's name in the API */

	const char *ztunnel_socket;
	bool ztunnel_socket_given; /* by the operator: it is made even before it is needed */
	bool admit_without_ztunnel;
	bool node_proxy;     /* ambient pods need no ztunnel to be told */
	bool reset_existing; /* connections that a pod has when it is enrolled while it runs */
};

/* Needs registration's pods; begins to ask the API server and to serve ztunnel. */
int enrolment_open(const struct enrolment_config *cfg, struct enrolment **ret, struct error *err);
void enrolment_close(struct enrolment *e); /* answers what waits; pods stay as they are */

/* add, del, check and gc of a plugin; contract of agent_server_fn. */
json_t *enrolment_request(struct enrolment *e, struct agent_request *req, int netns_fd,
			  struct agent_call *call);

/* registration_config's hooks. */
void enrolment_forgotten(struct enrolment *e, const struct pod *pod);
void enrolment_broken(struct enrolment *e, const struct pod *pod);

/* Looks at every pod again, a few at a time: what was missed is found, what differs is healed. */
void enrolment_reconcile(struct enrolment *e);

/* {"kubernetes":{...}|null,"ztunnel":{...},"pods":{...}}: for sockmeshctl status. */
json_t *enrolment_status(const struct enrolment *e);

#endif
