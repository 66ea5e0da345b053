/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_POD_WORKLOAD_H
#define SOCKMESH_POD_WORKLOAD_H

/*
 * What a pod is one of many of. Pure. The mesh's own name for it (the labels that Istio takes a
 * canonical name from, in its order) where the labels are known; a CNI plugin is not told them, and
 * then the name of the pod without what its controller has added: "web-7d4b9c6f5-x2x7q" is "web".
 */
#include "pod_policy.h"

enum { POD_WORKLOAD_MAX = 512 };

/* "NAMESPACE/NAME"; "-" stands for what is not known. Returns buf. */
const char *pod_workload(const struct pod_facts *pod, char buf[static POD_WORKLOAD_MAX]);

#endif
