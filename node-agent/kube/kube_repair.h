/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_KUBE_REPAIR_H
#define SOCKMESH_KUBE_REPAIR_H

/*
 * Sidecar pods that have started without redirection: their init container istio-validation finds
 * that out, and ends with a known exit code. Which of them, and what is done about one. Pure.
 */
#include "kube_pod.h"

#include <stdbool.h>

enum kube_repair { KUBE_REPAIR_NONE, KUBE_REPAIR_REDIRECT, KUBE_REPAIR_DELETE, KUBE_REPAIR_LABEL };

struct kube_repair_config {	      /* Istio's repair.* */
	bool redirect, delete, label; /* the first of them that is true; none: no repair */
	const char *annotation;	      /* that a pod must have; NULL: sidecar.istio.io/status */
	const char *container;	      /* struct kube_keep's validation */
	int exit_code;		      /* of the init container; 0: any but success */
	const char *message;	      /* its termination message; NULL or blank: any */
	const char *label_text;	      /* "KEY=VALUE"; NULL: POD_REPAIR_LABEL */
};

/* As Istio's agent labels them. */
#define POD_REPAIR_LABEL "cni.istio.io/uninitialized=true"

/*
 * redirected: the pod is enrolled by now, so its init container will pass when it is started again.
 * *ret_reason is a literal.
 */
enum kube_repair kube_repair_decide(const struct kube_repair_config *cfg,
				    const struct kube_pod *pod, bool redirected,
				    const char **ret_reason);

#endif
