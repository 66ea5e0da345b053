/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_KUBE_STORE_H
#define SOCKMESH_KUBE_STORE_H

/*
 * What the API server said last about the pods of this node and about namespaces. Memory only, in
 * proportion to the number of objects, never to their size: of a namespace its name and its
 * answers to the selectors, of a pod struct kube_pod.
 *
 * A list is taken by list_begin, a put for each object, list_end: what was not in it is gone. A
 * list that breaks off is begun again, and nothing is gone until one ends. Of an object that cannot
 * be read, what was known stays known: it exists. Of a pod of which nothing was known, that it
 * exists is all that is known.
 */
#include "kube_pod.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct kube_store;

enum {
	KUBE_STORE_PODS_MAX = 4096, /* of one node; kubelet's own limit is 110 by default */
	KUBE_STORE_NAMESPACES_MAX = 100000,
};

enum kube_kind { KUBE_PODS, KUBE_NAMESPACES, KUBE_KIND_COUNT_ };

/*
 * was NULL: it is new; now NULL: it is gone; both: something that matters has changed. The store
 * holds what is new already; what was lives until the function returns, which must not change the
 * store. A pod that came back under its name, with another uid, is first gone and then new.
 */
struct kube_store_events {
	void (*pod)(void *arg, const struct kube_pod *was, const struct kube_pod *now,
		    uint32_t changed); /* kube_pod_diff() of both */
	void (*ns)(void *arg, const struct kube_namespace *was, const struct kube_namespace *now);
	/*
	 * A pod is there that cannot be read, and never could; why NULL: that is over. uid NULL:
	 * not even that could.
	 */
	void (*unreadable)(void *arg, const char *ns, const char *name, const char *uid,
			   const struct error *why);
	void *arg;
};

struct kube_store_config {
	struct kube_keep keep;
	const char *node;		 /* pods of others are none of ours; NULL: any */
	struct kube_store_events events; /* functions may be NULL */
};

/* Texts and selectors of cfg are borrowed. */
int kube_store_new(const struct kube_store_config *cfg, struct kube_store **ret, struct error *err);
void kube_store_free(struct kube_store *store); /* no events; NULL is fine */

/*
 * An object of a list, or of an event ADDED or MODIFIED. unreadable: NULL, or why only its identity
 * is there. -EINVAL: it could not be read, and err says why; -ENOSPC: too many; -ENOMEM. None of
 * them ends the list or the watch.
 */
int kube_store_put(struct kube_store *store, enum kube_kind kind, const json_t *object,
		   const struct error *unreadable, struct error *err);
int kube_store_remove(struct kube_store *store, enum kube_kind kind, const json_t *object,
		      struct error *err); /* DELETED; not known is success */

void kube_store_list_begin(struct kube_store *store, enum kube_kind kind);
void kube_store_list_end(struct kube_store *store, enum kube_kind kind);

/* Has a whole list been taken? Before that, what is not here may exist. */
bool kube_store_complete(const struct kube_store *store, enum kube_kind kind);

/* Pointers are good until the next put, remove or list_end. NULL: not known. */
const struct kube_pod *kube_store_pod(const struct kube_store *store, const char *ns,
				      const char *name);
/*
 * By the API's uid, or by the one that kubelet has for a static pod, unless several claim that one.
 */
const struct kube_pod *kube_store_pod_uid(const struct kube_store *store, const char *uid);
/* There is a pod of this name, and no more is known of it. */
bool kube_store_pod_unreadable(const struct kube_store *store, const char *ns, const char *name);
const struct kube_namespace *kube_store_namespace(const struct kube_store *store, const char *name);

/* In order of namespace and name; ns NULL: of all namespaces. */
const struct kube_pod *const *kube_store_pods(const struct kube_store *store, const char *ns,
					      size_t *ret_n);

struct kube_store_counts {
	size_t pods, namespaces;
	uint64_t unreadable; /* objects that could not be read, since the start */
	uint64_t refused;    /* beyond a limit, or without memory */
};
void kube_store_count(const struct kube_store *store, struct kube_store_counts *ret);

#endif
