/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_POD_REPAIR_H
#define SOCKMESH_POD_REPAIR_H

/*
 * Carries out --repair delete and --repair label: what the API server is asked to do about a
 * sidecar pod that has started without redirection (kube_repair.h says which). Each pod once; a
 * request that fails is made again when the pod changes or the next round comes. Redirecting the
 * pod, the default, is enrolment's.
 */
#include "kube_repair.h"

#include <stdint.h>

struct error;
struct kube_client;
struct pod_repair;
struct pod_status;

/* Everything is borrowed. */
int pod_repair_new(struct kube_client *client, struct pod_status *events,
		   const struct kube_repair_config *cfg, struct pod_repair **ret,
		   struct error *err);
void pod_repair_free(struct pod_repair *repair); /* NULL is fine */

/* redirected: the pod is, by now. */
void pod_repair_look_at(struct pod_repair *repair, const struct kube_pod *pod, bool redirected);
void pod_repair_forget(struct pod_repair *repair, const char *uid); /* the pod is gone */

struct pod_repair_counts {
	uint64_t deleted, labelled, failed;
};
void pod_repair_count(const struct pod_repair *repair, struct pod_repair_counts *ret);

#endif
