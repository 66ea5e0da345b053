/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_AGENT_CLIENT_H
#define SOCKMESH_AGENT_CLIENT_H

/* One question to the node agent and its answer, in a version of the protocol that both speak. */
struct agent_reply;
struct agent_request;
struct error;

/*
 * timeout_ms covers everything, a second try in an older version included. netns_fd is -1 for
 * none. -E2BIG or -EINVAL: this request cannot be sent, whoever listens. Everything else is the
 * agent's absence: not there, hanging (-ETIMEDOUT), died on the way (-ECONNRESET), or its answer is
 * not one (-EPROTO). An answer that refuses is success here; *ret needs agent_reply_done().
 */
int agent_client_ask(const char *run_dir, int timeout_ms, const struct agent_request *request,
		     int netns_fd, struct agent_reply *ret, struct error *err);

#endif
