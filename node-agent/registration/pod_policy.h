/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_POD_POLICY_H
#define SOCKMESH_POD_POLICY_H

/*
 * Annotations, labels, what the API says and configuration in; a decision with its reason in words
 * and, for a pod that is redirected, the settings of its plan out. Pure. Semantics and defaults of
 * every annotation: docs/configuration.md.
 *
 * Creating a pod never depends on the API server: what the API says is used when it is known, and
 * without it sidecars are decided about from annotations alone.
 */
#include "accelerate.h"
#include "redirect_plan.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct kube_namespace;
struct kube_pod;
struct kube_selectors;

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
	bool drop_invalid;	  /* packets that conntrack calls INVALID; Istio's INVALID_DROP */
	bool ambient_dns_capture; /* of pods that say nothing themselves */
	bool node_proxy;	  /* ambient pods are served by a proxy at these addresses */
	struct ip_address proxy4, proxy6;      /* unspecified: none of that family */
	const char *const *exclude_namespaces; /* NULL-terminated, or NULL */
	const char *const *own_pods;	  /* "NAMESPACE/NAME-PREFIX", NULL-terminated, or NULL */
	struct ip_prefix loopback4;	  /* ISTIO_OUTBOUND_IPV4_LOOPBACK_CIDR */
	const char *owner_groups;	  /* "*" or a list; NULL is "*" */
	const char *owner_groups_exclude; /* list; NULL is none */
	const struct kube_selectors *selectors; /* NULL: the API server is not asked */
	const char *system_namespace;		/* of ztunnel; NULL: istio-system */
};

/* What the proxy's environment says of INVALID_DROP. */
enum pod_invalid_drop { POD_INVALID_DROP_UNSAID, POD_INVALID_DROP_NO, POD_INVALID_DROP_YES };

struct pod_facts {
	const char *ns, *name, *uid;	      /* may be NULL */
	const char *service_account;	      /* the same; decides nothing */
	const json_t *annotations;	      /* object of strings, or NULL: unknown */
	const json_t *labels;		      /* the same */
	const struct kube_pod *kube_pod;      /* NULL: not known; else it counts, not the above */
	const struct kube_namespace *kube_ns; /* NULL: not known */
	bool presumed; /* nobody can say more: of an ambient namespace it is ambient, until then */
	enum pod_invalid_drop invalid_drop; /* a decision's, from when kube_pod was known */
	bool is_node_proxy;		    /* policy_is_node_proxy() of one of its addresses */
	const char *not_yet; /* why it is not redirected for now if it is ambient; NULL: it is */
};

/*
 * POD_UNDECIDED is a decision's only: what it takes is not known before the API server has
 * answered. Until then the pod is as good as one that is skipped.
 */
enum pod_mode { POD_SKIP, POD_SIDECAR, POD_AMBIENT, POD_UNDECIDED };

struct pod_decision {
	enum pod_mode mode;
	bool hold;	  /* POD_UNDECIDED: its namespace is ambient, so do not let it start yet */
	bool foreign;	  /* POD_SKIP for good: others may have it, and write what they like */
	char reason[256]; /* why, in words, for people */
	struct redirect_settings settings;  /* POD_SIDECAR and POD_AMBIENT */
	enum accelerate_wish accelerate;    /* POD_SIDECAR only */
	enum pod_invalid_drop invalid_drop; /* to be remembered: no annotation can say it */
	char warning[128];		    /* what the pod says and nobody can read; else "" */
};

/*
 * -EINVAL: an annotation's value is invalid (err names annotation, value and position);
 * -ENOTSUP: valid but no engine of this node can do it (err says which annotation and why);
 * -ENOMEM. *ret needs pod_decision_done() after success.
 */
int pod_policy_decide(const struct policy_config *cfg, const struct pod_facts *pod,
		      struct pod_decision *ret, struct error *err);
void pod_decision_done(struct pod_decision *decision);

/* Is it the address of the proxy that serves the ambient pods of this node? */
bool policy_is_node_proxy(const struct policy_config *cfg, const struct ip_address *a);

/*
 * The pod's annotations, and in ours what the API said beyond them: from these, and from the
 * decision's invalid_drop, the decision would be the same, after a restart that finds the API
 * server gone. A new reference; NULL without memory, or if nothing is known.
 */
json_t *pod_facts_remember(const struct pod_facts *pod, const struct pod_decision *decision);

#endif
