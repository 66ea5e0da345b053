/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_KUBE_SELECTOR_H
#define SOCKMESH_KUBE_SELECTOR_H

/*
 * Label selectors as Kubernetes defines them (matchLabels and matchExpressions with In, NotIn,
 * Exists and DoesNotExist), and the two lists of them that an operator configures: which pods
 * ambient is for, and which namespaces the mesh is about. Pure, bounded.
 *
 * What the API server would refuse is refused here in its terms: the error names the field, like
 * `[1].podSelector.matchExpressions[0].values`.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

enum {
	KUBE_SELECTORS_MAX = 64,    /* in one list: a namespace's answers are bits of a number */
	KUBE_REQUIREMENTS_MAX = 64, /* of one selector */
	KUBE_VALUES_MAX = 256,	    /* of one requirement */
};

enum kube_operator { KUBE_IN, KUBE_NOT_IN, KUBE_EXISTS, KUBE_DOES_NOT_EXIST };

struct kube_requirement {
	char *key;
	enum kube_operator op;
	char **values; /* KUBE_IN and KUBE_NOT_IN */
	size_t n_values;
};

struct kube_selector { /* all of them must hold: without any it matches everything */
	struct kube_requirement *requirements;
	size_t n;
};

/* `where` begins the errors. A null or absent value matches everything. -EINVAL or -ENOMEM. */
int kube_selector_read(const json_t *value, const char *where, struct kube_selector *ret,
		       struct error *err);
void kube_selector_done(struct kube_selector *selector);

/* labels: an object of strings, NULL for none. */
bool kube_selector_matches(const struct kube_selector *selector, const json_t *labels);

struct kube_enablement {
	struct kube_selector pod, ns;
};

struct kube_selectors {
	struct kube_enablement *enablement; /* a pod is ambient if one of them selects it */
	size_t n_enablement;
	struct kube_selector *discovery; /* of namespaces; none: all are discovered */
	size_t n_discovery;
};

/* Istio's: the pod's label, or the namespace's unless the pod says none. */
extern const char kube_enablement_default[];

/*
 * The JSON texts of --enablement-selectors, [{"podSelector":S,"namespaceSelector":S},...], and of
 * --discovery-selectors, [S,...] as in Istio's meshConfig, each into its half of *ret, which must
 * be zeroed or read before. `what` begins the errors. -EINVAL or -ENOMEM.
 */
int kube_enablement_read(const char *text, const char *what, struct kube_selectors *ret,
			 struct error *err);
int kube_discovery_read(const char *text, const char *what, struct kube_selectors *ret,
			struct error *err);
void kube_selectors_done(struct kube_selectors *selectors);

/* Bit i: the namespaceSelector of enablement i matches. All that selection asks of a namespace. */
uint64_t kube_selectors_namespace(const struct kube_selectors *selectors, const json_t *labels);
bool kube_selectors_discover(const struct kube_selectors *selectors, const json_t *labels);

/*
 * The first enablement whose bit is in `ns` and whose podSelector matches: its number from 0, or
 * -1 when none selects the pod.
 */
int kube_selectors_select(const struct kube_selectors *selectors, uint64_t ns,
			  const json_t *pod_labels);

/* Does a podSelector look at this label? Others need not be kept. */
bool kube_selectors_ask_pod(const struct kube_selectors *selectors, const char *key);

#endif
