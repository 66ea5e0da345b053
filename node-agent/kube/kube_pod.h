/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_KUBE_POD_H
#define SOCKMESH_KUBE_POD_H

/*
 * One Pod or Namespace object of the API, reduced to what the agent acts upon. Pure, bounded: what
 * is kept of an object does not grow with what its author put into it.
 *
 * A member of the wrong type is -EINVAL, and the error names it ("pod shop/web-0: spec.hostNetwork
 * is 1, not true or false"): that object cannot be used, others can.
 */
#include "ip_address.h"
#include "kube_selector.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

enum {
	KUBE_NAMESPACE_NAME_MAX = 63,	    /* RFC 1123 label */
	KUBE_NAME_MAX = 253,		    /* RFC 1123 subdomain */
	KUBE_UID_MAX = 128,		    /* 36 in practice */
	KUBE_VERSION_MAX = 256,		    /* opaque; 20 digits in practice */
	KUBE_POD_IPS_MAX = 16,		    /* one of each family in practice */
	KUBE_CONTAINERS_MAX = 128,	    /* whose ids are kept */
	KUBE_CONTAINER_ID_MAX = 128,	    /* 64 in practice */
	KUBE_ANNOTATIONS_BYTES_MAX = 65536, /* names and values, as in a plugin's request */
	KUBE_STATUS_TEXT_MAX = 1024,	    /* kept of the annotations that the agent writes */
	KUBE_MESSAGE_MAX = 4096,	    /* what kubelet keeps of a termination message */
};

enum kube_phase {
	KUBE_PHASE_UNKNOWN, /* also: not said yet */
	KUBE_PHASE_PENDING,
	KUBE_PHASE_RUNNING,
	KUBE_PHASE_SUCCEEDED,
	KUBE_PHASE_FAILED,
};

enum kube_restart { KUBE_RESTART_ALWAYS, KUBE_RESTART_ON_FAILURE, KUBE_RESTART_NEVER };

/* A boolean of the proxy container's environment, as Go's ParseBool reads it. */
enum kube_env { KUBE_ENV_ABSENT, KUBE_ENV_FALSE, KUBE_ENV_TRUE, KUBE_ENV_ILLEGIBLE };

struct kube_proxy { /* the container or init container istio-proxy */
	bool present;
	bool native;		     /* an init container: it starts before the others */
	bool other_type;	     /* "proxy router", not a sidecar; no type said is a sidecar */
	uint32_t run_as_user;	     /* of its own securityContext; 0: root or not said */
	uint32_t run_as_group;	     /* the same */
	enum kube_env disable_envoy; /* DISABLE_ENVOY */
	enum kube_env dns_capture;   /* ISTIO_META_DNS_CAPTURE */
	enum kube_env dual_stack;    /* ISTIO_DUAL_STACK */
	enum kube_env invalid_drop;  /* INVALID_DROP */
};

struct kube_container {
	char *id; /* without "containerd://" */
	bool running;
	bool proxy;
};

/* The init container that tests whether the pod is redirected (istio-validation). */
enum kube_validation_state {
	KUBE_VALIDATION_ABSENT,
	KUBE_VALIDATION_WAITING, /* to start, or to start again */
	KUBE_VALIDATION_RUNNING,
	KUBE_VALIDATION_PASSED,
	KUBE_VALIDATION_FAILED, /* and not started again yet */
};

struct kube_termination {
	bool known;
	int32_t exit_code;
	char *message; /* never NULL if known */
};

struct kube_validation {
	enum kube_validation_state state;
	struct kube_termination current; /* while the state is PASSED or FAILED */
	struct kube_termination last;	 /* of the run before */
};

struct kube_pod {
	char *ns, *name, *uid;	/* never NULL */
	char *local_uid;	/* what kubelet and the runtime call a static pod; else NULL */
	char *resource_version; /* opaque; NULL: not said */
	char *node;		/* NULL: not bound yet */
	char *service_account;	/* NULL: not said */
	bool deleting;		/* has a deletionTimestamp */
	/*
	 * Objects of strings, never NULL. Labels: those that a podSelector, the policy or a
	 * workload's name asks about. Annotations: of known prefixes, without the next two.
	 */
	json_t *labels, *annotations;
	char *redirection; /* annotation ambient.istio.io/redirection; NULL: absent */
	char *status;	   /* annotation sockmesh.io/status; NULL: absent */

	bool host_network;
	bool host_users; /* false: it has a user namespace of its own */
	enum kube_restart restart;
	bool istio_init; /* redirects itself */
	struct kube_proxy proxy;

	enum kube_phase phase;
	struct ip_address ips[KUBE_POD_IPS_MAX]; /* status.podIP first */
	size_t n_ips;
	struct kube_container *containers; /* that have an id */
	size_t n_containers;
	struct kube_validation validation;

	bool listed; /* kube_store's own */
};

struct kube_keep {
	const struct kube_selectors *selectors;
	const char *validation; /* name of that init container; NULL: istio-validation */
};

/* -EINVAL or -ENOMEM. *ret needs kube_pod_free(). */
int kube_pod_read(const json_t *object, const struct kube_keep *keep, struct kube_pod **ret,
		  struct error *err);
void kube_pod_free(struct kube_pod *pod); /* NULL is fine */

/* Succeeded or Failed: its containers have ended and never start again. */
bool kube_pod_ended(const struct kube_pod *pod);

/* Is this the pod that kubelet and the runtime know by this uid? */
bool kube_pod_is(const struct kube_pod *pod, const char *uid);

enum kube_pod_change { /* bits */
		       KUBE_CHANGED_MEMBERSHIP = 1u
						 << 0, /* labels, annotations, spec: decide again */
		       KUBE_CHANGED_ADDRESSES = 1u << 1,
		       KUBE_CHANGED_PHASE = 1u << 2, /* it has ended, or is being deleted */
		       KUBE_CHANGED_CONTAINERS = 1u << 3,
		       KUBE_CHANGED_VALIDATION = 1u << 4,
		       KUBE_CHANGED_STATUS =
			       1u << 5, /* what the agent writes; maybe by another's hand */
};

/* Between two versions of one pod. 0: nothing that the agent acts upon. */
uint32_t kube_pod_diff(const struct kube_pod *was, const struct kube_pod *now);

struct kube_namespace {
	uint64_t selected; /* kube_selectors_namespace() */
	bool discovered;   /* kube_selectors_discover() */
	bool deleting;
	bool listed; /* kube_store's own */
	char name[];
};

/* Only the answers to the selectors are kept, not the labels. *ret is to be freed. */
int kube_namespace_read(const json_t *object, const struct kube_selectors *selectors,
			struct kube_namespace **ret, struct error *err);

/* metadata.namespace and metadata.name of any object, borrowed; "" for no namespace. */
int kube_object_name(const json_t *object, const char **ret_ns, const char **ret_name,
		     struct error *err);

#endif
