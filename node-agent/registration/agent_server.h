/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_AGENT_SERVER_H
#define SOCKMESH_AGENT_SERVER_H

/*
 * The agent's end of <run-dir>/agent.sock: accepts root only, frames, bounds and times its peers,
 * and calls one function per request. A peer may send several requests before it reads; they are
 * answered in order.
 */
#include <jansson.h>

struct agent_call;
struct agent_request;
struct agent_server;
struct error;
struct event_loop;

struct agent_server_config {
	const char *run_dir;
	unsigned max_peers;	  /* more are answered "busy" */
	unsigned peer_timeout_ms; /* for the next request, and for reading an answer */
};

/*
 * One request. The answer is a new reference; NULL: there is no memory for one. netns_fd (-1: none)
 * stays the server's, and so does *req, but what it holds may be taken over (the rest zeroed).
 *
 * A function that cannot answer yet calls agent_call_later() and returns NULL. From then on it owes
 * an answer to agent_call_answer(), exactly once and before the server is closed, also when the
 * peer has gone meanwhile; no further request of that peer is read until then.
 */
typedef json_t *(*agent_server_fn)(struct agent_request *req, int netns_fd, struct agent_call *call,
				   void *arg);

void agent_call_later(struct agent_call *call);
void agent_call_answer(struct agent_call *call, json_t *reply); /* takes reply over, frees call */

/* Replaces a socket that a dead agent left; the caller holds the run directory's lock. */
int agent_server_open(const struct agent_server_config *cfg, struct event_loop *loop,
		      agent_server_fn fn, void *arg, struct agent_server **ret, struct error *err);
void agent_server_close(struct agent_server *server); /* and removes the socket; NULL is fine */

#endif
