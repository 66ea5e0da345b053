/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_AGENT_SERVER_H
#define SOCKMESH_AGENT_SERVER_H

/*
 * The agent's end of <run-dir>/agent.sock: accepts root only, frames, bounds and times its peers,
 * and calls one function per request. A peer may send several requests before it reads; they are
 * answered in order.
 */
#include <jansson.h>

struct agent_request;
struct agent_server;
struct error;
struct event_loop;

struct agent_server_config {
	const char *run_dir;
	unsigned max_peers;	  /* more are answered "busy" */
	unsigned peer_timeout_ms; /* for the next request, and for reading an answer */
};

/* Owns neither req nor netns_fd (-1: none). Returns a new reference; NULL without memory. */
typedef json_t *(*agent_server_fn)(const struct agent_request *req, int netns_fd, void *arg);

/* Replaces a socket that a dead agent left; the caller holds the run directory's lock. */
int agent_server_open(const struct agent_server_config *cfg, struct event_loop *loop,
		      agent_server_fn fn, void *arg, struct agent_server **ret, struct error *err);
void agent_server_close(struct agent_server *server); /* and removes the socket; NULL is fine */

#endif
