/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_server.h"

#include "agent_protocol.h"
#include "error.h"
#include "event_loop.h"
#include "json.h"
#include "log.h"
#include "monotonic.h"
#include "run_dir.h"
#include "scoped.h"

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

enum { LISTEN_BACKLOG = 128 };

struct agent_call {
	struct peer *peer; /* NULL: it has gone */
	bool later;
	bool waits; /* the function has returned, the peer waits */
	bool is_answered;
	json_t *reply; /* of an answer that came before the function returned */
};

struct peer {
	struct agent_server *server;
	struct agent_call *call; /* the request that is answered later */
	struct peer *next, **link;
	struct event_source *source;
	int fd;
	uint64_t progress_ms; /* when it last sent a request or took a packet */
	char **packets;	      /* the answer that is being sent */
	size_t n_packets, n_sent;
	bool close_when_sent;
};

struct agent_server {
	struct agent_server_config cfg;
	struct event_loop *loop;
	agent_server_fn fn;
	void *arg;
	int listen_fd;
	struct event_source *listen_source, *timer;
	struct peer *peers;
	unsigned n_peers;
	bool accepting;
	struct sockaddr_un address;
	struct log_limit refusals, failures;
	char buffer[AGENT_PACKET_MAX + 1];
};

static void warn(struct log_limit *limit, const struct error *err, const char *msg)
{
	unsigned suppressed;
	char text[16];

	if (!log_limit_allow(limit, &suppressed))
		return;
	snprintf(text, sizeof(text), "%u", suppressed);
	if (suppressed)
		log_error(LOG_WARN, err, msg, "suppressed", text, NULL);
	else
		log_error(LOG_WARN, err, msg, NULL);
}

/* ---- one peer ------------------------------------------------------------------------------- */

static void packets_free(struct peer *peer)
{
	for (size_t i = 0; i < peer->n_packets; i++)
		free(peer->packets[i]);
	free(peer->packets);
	peer->packets = NULL;
	peer->n_packets = peer->n_sent = 0;
}

static void peer_free(struct peer *peer)
{
	if (peer->call)
		peer->call->peer = NULL;
	event_loop_remove(peer->source);
	*peer->link = peer->next;
	if (peer->next)
		peer->next->link = peer->link;
	peer->server->n_peers--;
	packets_free(peer);
	close(peer->fd);
	free(peer);
}

/*
 * Sends what the peer takes. While it does not, no further request of it is read, which is what
 * bounds the memory that it can make us hold. Returns false when the peer is gone.
 */
static bool peer_flush(struct peer *peer)
{
	struct error err = {0};

	while (peer->n_sent < peer->n_packets) {
		const char *packet = peer->packets[peer->n_sent];
		int r = agent_packet_send(peer->fd, packet, strlen(packet), -1, &err);

		if (r == -EAGAIN)
			return !event_loop_set_events(peer->source, EPOLLOUT, &err);
		if (r)
			return false;
		peer->n_sent++;
		peer->progress_ms = monotonic_ms();
	}
	packets_free(peer);
	return !peer->close_when_sent && !event_loop_set_events(peer->source, EPOLLIN, &err);
}

/* Takes over the reply. */
static bool peer_answer(struct peer *peer, json_t *reply)
{
	struct error err = {0};
	int r = reply ? agent_reply_packets(reply, &peer->packets, &peer->n_packets, &err)
		      : error_set(&err, ENOMEM, "answer");

	json_decref(reply);
	if (r) {
		warn(&peer->server->failures, &err, "cannot answer a request");
		return false;
	}
	return peer_flush(peer);
}

/* ---- answers that come later ---------------------------------------------------------------- */

void agent_call_later(struct agent_call *call)
{
	call->later = true;
}

void agent_call_answer(struct agent_call *call, json_t *reply)
{
	struct peer *peer = call->peer;

	if (!call->waits) {
		call->reply = reply;
		call->is_answered = true;
		return;
	}
	free(call);
	if (!peer) {
		json_decref(reply);
		return;
	}
	peer->call = NULL;
	peer->progress_ms = monotonic_ms();
	if (!peer_answer(peer, reply))
		peer_free(peer);
}

/* Until the answer comes only the peer's end is of interest, which epoll reports unasked. */
static bool peer_wait(struct peer *peer, struct agent_call *call)
{
	struct error err = {0};

	peer->call = call;
	call->waits = true;
	if (!event_loop_set_events(peer->source, 0, &err))
		return true;
	warn(&peer->server->failures, &err, "cannot wait for an answer");
	return false;
}

/* ---- requests ------------------------------------------------------------------------------- */

static json_t *handle_packet(struct agent_server *server, size_t size, int netns_fd,
			     struct agent_call *call)
{
	struct agent_request req;
	struct error err = {0};
	json_t *reply;
	int r = agent_request_decode(server->buffer, size, &req, &err);

	if (r == -EPROTONOSUPPORT)
		return agent_reply_refusal(AGENT_CODE_VERSION, false, err.text);
	if (r == -ENOMEM)
		return agent_reply_refusal(AGENT_CODE_BUSY, true, err.text);
	if (r)
		return agent_reply_refusal(AGENT_CODE_BAD_REQUEST, false, err.text);
	reply = server->fn(&req, netns_fd, call, server->arg);
	agent_request_done(&req);
	return reply;
}

static bool peer_receive(struct peer *peer)
{
	struct agent_server *server = peer->server;
	scoped_fd int netns_fd = -1;
	struct agent_call *call;
	struct error err = {0};
	json_t *reply;
	size_t size = 0;
	int r = agent_packet_receive(peer->fd, server->buffer, sizeof(server->buffer), &size,
				     &netns_fd, &err);

	if (r == -EAGAIN)
		return true;
	if (r == -EMSGSIZE || r == -EINVAL) {
		peer->close_when_sent = true;
		return peer_answer(peer,
				   agent_reply_refusal(AGENT_CODE_BAD_REQUEST, false, err.text));
	}
	if (r || !size)
		return false;
	peer->progress_ms = monotonic_ms();
	call = calloc(1, sizeof(*call));
	if (!call)
		return peer_answer(peer, NULL);
	call->peer = peer;
	reply = handle_packet(server, size, netns_fd, call);
	if (call->later && !call->is_answered)
		return peer_wait(peer, call);
	if (call->later)
		reply = call->reply;
	free(call);
	return peer_answer(peer, reply);
}

static void on_peer(int fd, uint32_t events, void *arg)
{
	struct peer *peer = arg;
	bool alive;

	(void)fd;
	if (events & EPOLLIN)
		alive = peer_receive(peer);
	else if (events & EPOLLOUT)
		alive = peer_flush(peer);
	else
		alive = false;
	if (!alive)
		peer_free(peer);
}

/* ---- the listening socket ------------------------------------------------------------------- */

static bool is_root(struct agent_server *server, int fd)
{
	struct ucred credentials;
	socklen_t size = sizeof(credentials);
	struct error err = {0};

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0)
		return false;
	if (credentials.uid == 0)
		return true;
	error_set(&err, EPERM, "peer with uid %u, pid %d", credentials.uid, (int)credentials.pid);
	warn(&server->refusals, &err, "refused a connection to the agent's socket");
	return false;
}

static void say_busy(int fd)
{
	json_t *reply =
		agent_reply_refusal(AGENT_CODE_BUSY, true, "too many connections to the agent");
	char *text = reply ? json_to_text(reply) : NULL;
	struct error ignored = {0};

	if (text)
		agent_packet_send(fd, text, strlen(text), -1, &ignored);
	free(text);
	json_decref(reply);
}

static int peer_new(struct agent_server *server, int *fd, struct error *err)
{
	struct peer *peer = calloc(1, sizeof(*peer));
	int r;

	if (!peer)
		return error_set(err, ENOMEM, "peer");
	peer->server = server;
	peer->fd = *fd;
	peer->progress_ms = monotonic_ms();
	r = event_loop_add_fd(server->loop, peer->fd, EPOLLIN, on_peer, peer, &peer->source, err);
	if (r) {
		free(peer);
		return r;
	}
	take_fd(fd);
	peer->next = server->peers;
	peer->link = &server->peers;
	if (peer->next)
		peer->next->link = &peer->next;
	server->peers = peer;
	server->n_peers++;
	return 0;
}

static void on_listen(int listen_fd, uint32_t events, void *arg)
{
	struct agent_server *server = arg;
	scoped_fd int fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	struct error err = {0};

	(void)events;
	if (fd < 0) {
		if (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR)
			return;
		/* Out of descriptors: the socket stays readable, so look away until the timer. */
		error_set(&err, errno, "accept");
		warn(&server->failures, &err, "cannot accept a connection");
		if (!event_loop_set_events(server->listen_source, 0, &err))
			server->accepting = false;
		return;
	}
	if (!is_root(server, fd))
		return;
	if (server->n_peers >= server->cfg.max_peers)
		say_busy(fd);
	else if (peer_new(server, &fd, &err))
		warn(&server->failures, &err, "cannot serve a connection");
}

static void on_timer(void *arg)
{
	struct agent_server *server = arg;
	uint64_t now = monotonic_ms();
	struct error err = {0};

	for (struct peer *peer = server->peers, *next; peer; peer = next) {
		next = peer->next;
		if (!peer->call && now - peer->progress_ms >= server->cfg.peer_timeout_ms)
			peer_free(peer);
	}
	if (!server->accepting && !event_loop_set_events(server->listen_source, EPOLLIN, &err))
		server->accepting = true;
}

static int listen_on(struct agent_server *server, struct error *err)
{
	struct sockaddr_un *address = &server->address;
	int n = snprintf(address->sun_path, sizeof(address->sun_path), "%s/" RUN_DIR_SOCKET,
			 server->cfg.run_dir);
	scoped_fd int fd = -1;
	mode_t mask;
	int r;

	if (n < 0 || (size_t)n >= sizeof(address->sun_path))
		return error_set(err, ENAMETOOLONG, "socket path in %s", server->cfg.run_dir);
	address->sun_family = AF_UNIX;
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return error_set(err, errno, "socket");
	if (unlink(address->sun_path) < 0 && errno != ENOENT)
		return error_set(err, errno, "remove stale %s", address->sun_path);
	mask = umask(0177); /* mode 0600 from the first moment on */
	r = bind(fd, (struct sockaddr *)address, sizeof(*address));
	umask(mask);
	if (r < 0)
		return error_set(err, errno, "bind %s", address->sun_path);
	server->listen_fd = take_fd(&fd);
	if (listen(server->listen_fd, LISTEN_BACKLOG) < 0)
		return error_set(err, errno, "listen on %s", address->sun_path);
	return 0;
}

int agent_server_open(const struct agent_server_config *cfg, struct event_loop *loop,
		      agent_server_fn fn, void *arg, struct agent_server **ret, struct error *err)
{
	struct agent_server *server = calloc(1, sizeof(*server));
	uint64_t period_ms = cfg->peer_timeout_ms / 4 + 1;
	int r;

	if (!server)
		return error_set(err, ENOMEM, "agent server");
	server->cfg = *cfg;
	server->loop = loop;
	server->fn = fn;
	server->arg = arg;
	server->listen_fd = -1;
	server->accepting = true;
	server->refusals.per_minute = server->failures.per_minute = 10;
	r = listen_on(server, err);
	if (!r)
		r = event_loop_add_fd(loop, server->listen_fd, EPOLLIN, on_listen, server,
				      &server->listen_source, err);
	if (!r)
		r = event_loop_add_timer(loop, period_ms, period_ms, on_timer, server,
					 &server->timer, err);
	if (r)
		agent_server_close(server);
	else
		*ret = server;
	return r;
}

void agent_server_close(struct agent_server *server)
{
	if (!server)
		return;
	for (struct peer *peer = server->peers, *next; peer; peer = next) {
		next = peer->next;
		peer_free(peer);
	}
	event_loop_remove(server->timer);
	event_loop_remove(server->listen_source);
	if (server->listen_fd >= 0) {
		unlink(server->address.sun_path);
		close(server->listen_fd);
	}
	free(server);
}
