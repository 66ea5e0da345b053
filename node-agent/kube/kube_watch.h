/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_KUBE_WATCH_H
#define SOCKMESH_KUBE_WATCH_H

/*
 * Follows one resource of the API server for ever: a list, then a watch from where the list was
 * taken, resumed from the last resourceVersion seen whenever it ends, and a new list when the
 * server no longer knows that version (410).
 *
 * As in client-go the first list asks for resourceVersion 0: the API server then answers from its
 * cache, where the pods of a node are indexed, and does not read every pod of the cluster from etcd
 * for each agent. That may be a little old; the watch brings the rest. Later lists, after a version
 * that the server refused (410: too old; or one that it has not reached, after a restore), are
 * consistent ones, in pages of KUBE_WATCH_PAGE.
 *
 * Every failure (refused, cut, silent, nonsense, 401, 403, 429, 5xx) leads to another try, after a
 * back-off when the last one achieved nothing. What was seen stays valid: on_state tells how old it
 * is getting.
 *
 * Only the monotonic clock is used; setting the time changes nothing.
 */
#include "kube_client.h"

#include <stdbool.h>

struct event_loop;
struct kube_watch;

enum kube_change {
	KUBE_SEEN,    /* is there, said a list */
	KUBE_CHANGED, /* is new or has changed */
	KUBE_DELETED, /* is gone */
};

/*
 * What the server has answered, not what it is asked: each state lasts until the next answer
 * begins, or until a failure. A request that nobody answers is in the state of before.
 */
enum kube_watch_state {
	KUBE_WATCH_LISTING,
	KUBE_WATCH_WATCHING,
	KUBE_WATCH_WAITING, /* at the start; after a failure, for the next try and its answer */
};

/*
 * Every object given has a metadata object with strings name and resourceVersion, not empty;
 * jansson's strings may hold NULs (json_get_string() refuses them). All are borrowed for the call.
 * The watch must not be freed from in here.
 */
struct kube_watch_ops {
	/* A list begins. Again without an end between: the one before came to nothing. */
	void (*relist_begin)(void *arg);
	/*
	 * unreadable: NULL, or why object is only its identity (kube_stream.h). Unless it is
	 * deleted, it is there: what was known of it before must be kept.
	 */
	void (*object)(void *arg, enum kube_change change, const json_t *object,
		       const struct error *unreadable);
	/* What was not seen since the last begin is gone. */
	void (*relist_end)(void *arg);
	/* With each answer and each failure. why: the failure because of which it waits; else NULL.
	 */
	void (*state)(void *arg, enum kube_watch_state state, const struct error *why);
};

/* 0 stands for the default. */
struct kube_watch_limits {
	uint32_t backoff_base_ms, backoff_max_ms; /* KUBE_BACKOFF_... */
	uint32_t list_ms;			  /* one response of a list */
	uint32_t list_silence_ms;
	/*
	 * Nothing heard on a watch. API servers send a bookmark about every minute, so this finds
	 * one that stands still though its connection does not; else it costs a request.
	 */
	uint32_t watch_silence_ms;
	/* The server is asked to end the watch after this time, or up to twice that: a jitter. */
	uint32_t watch_s;
	size_t object_max; /* KUBE_OBJECT_MAX */
};

enum {
	KUBE_WATCH_PAGE = 500,
	KUBE_WATCH_LIST_MS = 120000,
	KUBE_WATCH_LIST_SILENCE_MS = 30000,
	KUBE_WATCH_SILENCE_MS = 150000,
	KUBE_WATCH_S = 300,
	KUBE_WATCH_GRACE_MS = 30000, /* for a server that does not end it */
};

typedef int (*kube_send_fn)(struct kube_client *client, const struct kube_request_spec *spec,
			    struct kube_request **ret, struct error *err);
typedef void (*kube_cancel_fn)(struct kube_request *request);

struct kube_watch_spec {
	struct event_loop *loop;
	struct kube_client *client;
	const char *name;			     /* for errors and status: "pods" */
	const char *path;			     /* "/api/v1/pods" */
	const char *field_selector, *label_selector; /* NULL: none */
	const struct kube_watch_ops *ops;
	void *arg;
	struct kube_watch_limits limits;
	/* NULL: kube_client_send() and kube_request_cancel(); unit tests have others */
	kube_send_fn send;
	kube_cancel_fn cancel;
};

/* Starts with the next turn of the loop. Copies the texts; ops must outlive the watch. */
int kube_watch_new(const struct kube_watch_spec *spec, struct kube_watch **ret, struct error *err);
void kube_watch_free(struct kube_watch *watch); /* no further callback; NULL is fine */

bool kube_watch_synced(const struct kube_watch *watch); /* one list has been complete */

/*
 * {"name","state","synced","resourceVersion","quietMs","lists","listsFailed","watches",
 * "watchesFailed","expired","events","bookmarks","unreadable","failuresInARow","error"}: quietMs is
 * how long ago the server was last heard saying something; -1: never.
 */
json_t *kube_watch_status(const struct kube_watch *watch);

#endif
