/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_POD_POLICY_H
#define SOCKMESH_POD_POLICY_H

/*
 * Annotations, labels and configuration in; a decision with its reason in words and, for a pod
 * that is redirected, the settings of its plan out. Pure. Semantics and defaults of every
 * annotation: docs/configuration.md.
 */
#include "accelerate.h"
#include "redirect_plan.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

enum mesh { MESH_ISTIO, MESH_LINKERD, MESH_KUMA, MESH_OSM, MESH_CUSTOM, MESH_COUNT_ };

struct mesh_preset {
	const char *name;
	uint16_t outbound_port, inbound_port, dns_port, tunnel_port; /* 0: none */
	uint32_t proxy_uid, proxy_gid;
};
extern const struct mesh_preset mesh_presets[MESH_COUNT_];

struct policy_config {
	struct mesh_preset mesh; /* the preset, with the operator's changes for custom */
	bool capture_ipv6;
	bool drop_invalid; /* packets that conntrack calls INVALID; Istio's INVALID_DROP */
	const char *const *exclude_namespaces; /* NULL-terminated, or NULL */
	const char *const *own_pods;	  /* "NAMESPACE/NAME-PREFIX", NULL-terminated, or NULL */
	struct ip_prefix loopback4;	  /* ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR */
	const char *owner_groups;	  /* "*" or a list; NULL is "*" */
	const char *owner_groups_exclude; /* list; NULL is none */
};

struct pod_facts {
	const char *ns, *name, *uid; /* may be NULL */
	const json_t *annotations;   /* object of strings, or NULL: unknown */
	const json_t *labels;	     /* the same */
};

enum pod_mode { POD_SKIP, POD_SIDECAR };

struct pod_decision {
	enum pod_mode mode;
	char reason[256];		   /* why, in words, for people */
	struct redirect_settings settings; /* POD_SIDECAR only */
	enum accelerate_wish accelerate;   /* the same */
};

/*
 * -EINVAL: an annotation's value is invalid (err names annotation, value and position);
 * -ENOTSUP: valid but no engine of this node can do it (err says which annotation and why);
 * -ENOMEM. *ret needs pod_decision_done() after success.
 */
int pod_policy_decide(const struct policy_config *cfg, const struct pod_facts *pod,
		      struct pod_decision *ret, struct error *err);
void pod_decision_done(struct pod_decision *decision);

#endif
