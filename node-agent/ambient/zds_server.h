/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_ZDS_SERVER_H
#define SOCKMESH_ZDS_SERVER_H

/*
 * Tells ztunnel which pods it serves, and hands it their network namespaces: the agent's end of
 * ZDS. The caller says what ztunnel should have; the server keeps that, gives it to every ztunnel
 * that connects (the snapshot) and keeps those up to date that are connected, one message at a time
 * each. New pods go to the newest ztunnel that is ready, removals to all.
 *
 * A wrong message ends the whole ztunnel process, so nothing is sent that it might not expect, and
 * an answer that does not come in time ends the connection: no later one is taken for it.
 *
 * Never blocks. done and on_peers are called from the event loop (and done from
 * zds_server_close()), never before the call that they belong to has returned; they may call
 * anything here but zds_server_close().
 */
#include "zds_codec.h"

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct error;
struct event_loop;
struct zds_server;

struct zds_server_config {
	const char *path;
	uint32_t hello_timeout_ms; /* from accepting a connection to its Hello */
	uint32_t ack_timeout_ms;   /* for each message */
	uint32_t put_timeout_ms;   /* for a put, whatever it waits for */
	unsigned max_peers;	   /* connections; more are closed */
	unsigned max_accepts;	   /* a second */
	unsigned max_queued;	   /* removals that one connection has not been sent yet */
	unsigned max_pods;

	/*
	 * The pod's network namespace, for a snapshot; the descriptor is the server's to close.
	 * Left at -1 or an error: not known, and ztunnel is asked to keep what it has. Must not
	 * call the server.
	 */
	int (*open_netns)(void *arg, const char *uid, int *ret_fd);
	/* How many are ready has changed: the time to put again what ended in ZDS_NO_PROXY. */
	void (*on_peers)(void *arg, unsigned n_ready); /* NULL: nobody cares */
	void *arg;
};

#define ZDS_SERVER_DEFAULTS                                                                        \
	.hello_timeout_ms = 5000, .ack_timeout_ms = 5000, .put_timeout_ms = 10000, .max_peers = 8, \
	.max_accepts = 5, .max_queued = 4096, .max_pods = 65536

enum zds_result {
	ZDS_ACKED,
	ZDS_NACKED,   /* text is ztunnel's */
	ZDS_NO_PROXY, /* none is ready, nor on the way to be */
	ZDS_TIMEOUT,
	ZDS_LOST, /* the connection has ended, or the pod was put again or removed meanwhile */
};
const char *zds_result_name(enum zds_result result); /* "acked" and so on */

typedef void (*zds_done_fn)(void *arg, enum zds_result result, const char *text);

/*
 * Takes the socket, but accepts nobody before zds_server_start(): a ztunnel stops serving what its
 * snapshot lacks, so first every pod that it may serve already is put or remembered.
 * -EADDRINUSE: another agent listens there.
 */
int zds_server_open(const struct zds_server_config *cfg, struct event_loop *loop,
		    struct zds_server **ret, struct error *err);
void zds_server_start(struct zds_server *server);
void zds_server_close(struct zds_server *server); /* NULL is fine */

/*
 * ztunnel should have this pod, from now until zds_server_remove(), whatever the result of this
 * attempt: later ones get it in their snapshot, and one that refused it tries again by itself.
 * The descriptor stays the caller's. done (NULL: nobody cares) is called exactly once: with
 * ZDS_NO_PROXY soon, unless one is ready or its snapshot is on the way. Of several connections that
 * have it under way the first good answer counts. Putting a pod again is harmless (ztunnel knows
 * the namespace); a put that still waits ends in ZDS_LOST.
 * -EINVAL, -EMSGSIZE: never sendable, err names the pod. -ENOSPC: max_pods. -ESHUTDOWN: closing.
 */
int zds_server_put(struct zds_server *server, const struct zds_pod *pod, int netns_fd,
		   zds_done_fn done, void *arg, struct error *err);

/* The same for a pod that ztunnel should already have, of which cfg.open_netns may know more. */
int zds_server_remember(struct zds_server *server, const struct zds_pod *pod, struct error *err);

/*
 * ztunnel should not have it any more. done as for a put: ZDS_ACKED when every ztunnel that could
 * have it has said that it let go; ZDS_NO_PROXY when none is connected. A removal that was not
 * acked needs no second one: that connection has ended, and the next snapshot will not name the
 * pod. On failure (-ENOMEM, -EINVAL) nothing has changed.
 */
int zds_server_remove(struct zds_server *server, const char *uid, zds_done_fn done, void *arg,
		      struct error *err);

unsigned zds_server_ready(const struct zds_server *server); /* connections */
bool zds_server_has(const struct zds_server *server, const char *uid);
/* As it was put or remembered; NULL: it was not. Good until the next call. */
const struct zds_pod *zds_server_pod(const struct zds_server *server, const char *uid);

/* What ztunnel said when it last refused the pod (it tries again by itself); NULL: it did not. */
const char *zds_server_refusal(const struct zds_server *server, const char *uid);

/* A new reference; NULL without memory. docs/ambient.md describes the members. */
json_t *zds_server_status(const struct zds_server *server);

#endif
