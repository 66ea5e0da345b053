/* SPDX-License-Identifier: Apache-2.0 */
#include "zds_server_private.h"

#include "error.h"
#include "event_loop.h"
#include "json.h"
#include "monotonic.h"
#include "netns.h"
#include "scoped.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>

enum {
	MS_PER_S = 1000,
	NS_PER_MS = 1000000,
	LOGGED_PER_MINUTE = 30,
	STATUS_PODS_MAX = 16, /* refused ones that the status names */
};

static const char *const result_names[] = {
	[ZDS_ACKED] = "acked",	   [ZDS_NACKED] = "nacked", [ZDS_NO_PROXY] = "no-proxy",
	[ZDS_TIMEOUT] = "timeout", [ZDS_LOST] = "lost",
};

const char *zds_result_name(enum zds_result result)
{
	return result_names[result];
}

void zds_server_warn(struct log_limit *limit, const char *msg, const char *const pairs[static 4])
{
	unsigned suppressed;
	char text[16];

	if (!log_limit_allow(limit, &suppressed))
		return;
	snprintf(text, sizeof(text), "%u", suppressed);
	log_write(LOG_WARN, msg, pairs[0], pairs[1], pairs[2], pairs[3],
		  suppressed ? "suppressed" : NULL, text, NULL);
}

/* ---- tickets -------------------------------------------------------------------------------- */

static int ticket_new(zds_done_fn done, void *arg, struct zds_ticket **ret, struct error *err)
{
	struct zds_ticket *ticket;

	if (!done) {
		*ret = NULL;
		return 0;
	}
	ticket = calloc(1, sizeof(*ticket));
	if (!ticket)
		return error_set(err, ENOMEM, "answer");
	ticket->done = done;
	ticket->arg = arg;
	*ret = ticket;
	return 0;
}

/* Of several connections that a removal waits for, the first bad answer is its result. */
static void ticket_note(struct zds_ticket *ticket, enum zds_result result, const char *text)
{
	if (ticket->result != ZDS_ACKED)
		return;
	ticket->result = result;
	snprintf(ticket->text, sizeof(ticket->text), "%s", text);
}

static void ticket_queue(struct zds_server *server, struct zds_ticket *ticket)
{
	ticket->next = NULL;
	*server->finished_end = ticket;
	server->finished_end = &ticket->next;
}

static void ticket_finish(struct zds_server *server, struct zds_ticket *ticket,
			  enum zds_result result, const char *text)
{
	ticket_note(ticket, result, text);
	ticket_queue(server, ticket);
}

void zds_ticket_answered(struct zds_server *server, struct zds_ticket *ticket,
			 enum zds_result result, const char *text)
{
	if (!ticket)
		return;
	ticket_note(ticket, result, text);
	if (!--ticket->n_waiting)
		ticket_queue(server, ticket);
}

static bool is_pending(const struct zds_entry *entry)
{
	return entry->netns_fd >= 0;
}

/* The end of a put, one way or the other: its descriptor would keep the namespace alive. */
static void entry_finish(struct zds_server *server, struct zds_entry *entry, enum zds_result result,
			 const char *text)
{
	struct zds_ticket *ticket = take_ptr(entry->ticket);

	if (!is_pending(entry))
		return;
	close(take_fd(&entry->netns_fd));
	server->n_pending--;
	if (ticket)
		ticket_finish(server, ticket, result, text);
}

/* Those that finish meanwhile have their turn after the next event, so this always ends. */
static void run_callbacks(struct zds_server *server)
{
	struct zds_ticket *batch = server->finished;

	server->finished = NULL;
	server->finished_end = &server->finished;
	while (batch) {
		struct zds_ticket *ticket = batch;

		batch = ticket->next;
		ticket->done(ticket->arg, ticket->result, ticket->text);
		free(ticket);
	}
	if (server->n_ready_told == server->n_ready || server->closing)
		return;
	server->n_ready_told = server->n_ready;
	if (server->cfg.on_peers)
		server->cfg.on_peers(server->cfg.arg, server->n_ready);
}

/* ---- connections and puts ------------------------------------------------------------------- */

struct zds_conn *zds_server_newest(const struct zds_server *server)
{
	struct zds_conn *conn = server->conns;

	while (conn && (conn->failed || conn->state != ZDS_CONN_READY))
		conn = conn->next;
	return conn;
}

static bool is_expected(const struct zds_server *server, const struct zds_entry *entry)
{
	for (const struct zds_conn *conn = server->conns; conn; conn = conn->next) {
		if (zds_conn_expects(conn, entry))
			return true;
	}
	return false;
}

void zds_server_answered(struct zds_conn *conn, const char *uid, uint64_t seq, const char *error)
{
	struct zds_server *server = conn->server;
	struct zds_entry *entry = zds_pods_find(&server->pods, uid);

	if (!entry || entry->seq != seq)
		return; /* removed, or put again, since it was asked */
	free(entry->refusal);
	entry->refusal = *error ? strdup(error) : NULL;
	if (!*error)
		entry_finish(server, entry, ZDS_ACKED, "");
	else if (!is_expected(server, entry))
		entry_finish(server, entry, ZDS_NACKED, error);
}

/* A connection has gone: what no other will answer ends. */
static void settle(struct zds_server *server, enum zds_result result, const char *why)
{
	for (struct zds_entry *entry = server->pods.head; entry && server->n_pending;
	     entry = entry->next) {
		if (is_pending(entry) && !is_expected(server, entry))
			entry_finish(server, entry, result, why);
	}
}

static void log_end(struct zds_server *server, const struct zds_conn *conn)
{
	char pid[16];

	snprintf(pid, sizeof(pid), "%d", conn->pid);
	if (conn->closed_by_peer) {
		log_write(LOG_INFO, "ztunnel has disconnected", "pid", pid, NULL);
		return;
	}
	snprintf(server->last_error, sizeof(server->last_error), "%s", conn->why);
	zds_server_warn(&server->failures, "connection to ztunnel dropped",
			(const char *[]){"pid", pid, "reason", conn->why});
}

/* Frees one connection that has failed. */
static bool reap(struct zds_server *server)
{
	struct zds_conn *conn = server->conns;
	char why[ZDS_ERROR_TEXT_SIZE];
	enum zds_result result;

	while (conn && !conn->failed)
		conn = conn->next;
	if (!conn)
		return false;
	result = conn->failure;
	memcpy(why, conn->why, sizeof(why));
	server->counters.dropped += !conn->closed_by_peer;
	server->counters.ended += conn->closed_by_peer;
	if (!server->closing)
		log_end(server, conn);
	zds_conn_free(conn);
	settle(server, result, why);
	return true;
}

/* ---- the timer ------------------------------------------------------------------------------ */

static int64_t earlier(int64_t a, int64_t b)
{
	return !a || (b && b < a) ? b : a;
}

/* Puts are given the same time each, so the first that waits is the first whose time is over. */
static int64_t put_deadline(const struct zds_server *server)
{
	const struct zds_entry *entry = server->n_pending ? server->pods.head : NULL;

	while (entry && !is_pending(entry))
		entry = entry->next;
	return entry ? entry->deadline_ms : 0;
}

/* A timer that fires too early does no harm: it is set again only when it would be late. */
static void arm(struct zds_server *server)
{
	int64_t at_ms = earlier(put_deadline(server), server->accept_again_ms);
	struct itimerspec when = {0};

	for (const struct zds_conn *conn = server->conns; conn; conn = conn->next)
		at_ms = earlier(at_ms, conn->deadline_ms);
	if (server->finished || (server->n_ready != server->n_ready_told && !server->closing))
		at_ms = 1; /* at once */
	if (!at_ms || (server->armed_ms && server->armed_ms <= at_ms))
		return;
	when.it_value.tv_sec = at_ms / MS_PER_S;
	when.it_value.tv_nsec = at_ms % MS_PER_S * NS_PER_MS;
	if (!timerfd_settime(server->timer_fd, TFD_TIMER_ABSTIME, &when, NULL))
		server->armed_ms = at_ms;
}

/* Whatever has changed: sends what can be sent, ends what has to end. */
static void progress(struct zds_server *server)
{
	do {
		for (struct zds_conn *conn = server->conns; conn; conn = conn->next)
			zds_conn_pump(conn);
	} while (reap(server));
}

/* A call of the caller's ends with this: nothing is called back from here. */
static void called(struct zds_server *server)
{
	progress(server);
	arm(server);
}

void zds_server_handled(struct zds_server *server)
{
	progress(server);
	run_callbacks(server);
	arm(server);
}

static void end_late_puts(struct zds_server *server, int64_t now_ms)
{
	for (struct zds_entry *entry = server->pods.head; entry && server->n_pending;
	     entry = entry->next) {
		if (!is_pending(entry))
			continue;
		if (entry->deadline_ms > now_ms)
			return;
		server->counters.timeouts++;
		entry_finish(server, entry, ZDS_TIMEOUT, "ztunnel did not get to it in time");
	}
}

static void set_accepting(struct zds_server *server, bool accepting)
{
	struct error ignored = {0};

	event_loop_set_events(server->listen_source, accepting ? EPOLLIN : 0, &ignored);
}

static void on_timer(int fd, uint32_t events, void *arg)
{
	struct zds_server *server = arg;
	int64_t now_ms = monotonic_ms();
	uint64_t expirations;

	(void)events;
	if (read(fd, &expirations, sizeof(expirations)) != sizeof(expirations))
		return;
	server->armed_ms = 0;
	for (struct zds_conn *conn = server->conns; conn; conn = conn->next)
		zds_conn_check_deadline(conn, now_ms);
	end_late_puts(server, now_ms);
	if (server->accept_again_ms && now_ms >= server->accept_again_ms) {
		server->accept_again_ms = 0;
		set_accepting(server, true);
	}
	zds_server_handled(server);
}

/* ---- accepting ------------------------------------------------------------------------------ */

/* The socket stays readable, so look away until then. */
static void pause_accepting(struct zds_server *server, int64_t until_ms)
{
	server->accept_again_ms = until_ms;
	set_accepting(server, false);
}

static bool may_accept(struct zds_server *server)
{
	int64_t now_ms = monotonic_ms();

	if (now_ms - server->accept_window_ms >= MS_PER_S) {
		server->accept_window_ms = now_ms;
		server->n_accepted = 0;
	}
	if (server->n_accepted < server->cfg.max_accepts) {
		server->n_accepted++;
		return true;
	}
	pause_accepting(server, server->accept_window_ms + MS_PER_S);
	return false;
}

static int check_peer(const struct zds_server *server, int fd, int32_t *ret_pid, struct error *err)
{
	struct ucred credentials;
	socklen_t size = sizeof(credentials);

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &credentials, &size) < 0)
		return error_set(err, errno, "SO_PEERCRED");
	if (credentials.uid != 0)
		return error_set(err, EPERM, "peer with uid %u, pid %d", credentials.uid,
				 (int)credentials.pid);
	if (server->n_conns >= server->cfg.max_peers)
		return error_set(err, EBUSY, "there are %u connections already, peer with pid %d",
				 server->n_conns, (int)credentials.pid);
	*ret_pid = credentials.pid;
	return 0;
}

static void on_listen(int listen_fd, uint32_t events, void *arg)
{
	struct zds_server *server = arg;
	struct error err = {0};
	scoped_fd int fd = -1;
	int32_t pid = 0;
	int r;

	(void)events;
	if (!may_accept(server)) {
		arm(server);
		return;
	}
	fd = accept4(listen_fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd < 0) {
		if (errno == EAGAIN || errno == ECONNABORTED || errno == EINTR)
			return;
		zds_server_warn(
			&server->failures, "cannot accept a connection of ztunnel",
			(const char *[]){"error", strerror(errno), "path", server->cfg.path});
		pause_accepting(server, monotonic_ms() + MS_PER_S);
		arm(server);
		return;
	}
	r = check_peer(server, fd, &pid, &err);
	if (!r)
		r = zds_conn_new(server, &fd, pid, &err);
	if (r) {
		server->counters.refused++;
		zds_server_warn(&server->refusals, "refused a connection to ztunnel's socket",
				(const char *[]){"reason", err.text, "path", server->cfg.path});
		return;
	}
	server->counters.accepted++;
	zds_server_handled(server);
}

/* ---- what the caller wants ------------------------------------------------------------------ */

static int check_put(const struct zds_server *server, const struct zds_pod *pod, struct error *err)
{
	struct zds_request req = {.kind = ZDS_ADD, .pod = *pod};
	struct zds_packet packet;

	if (server->closing)
		return error_set(err, ESHUTDOWN, "the server for ztunnel is closing");
	if (zds_request_encode(&req, &packet, err))
		return -err->code;
	if (server->pods.n >= server->cfg.max_pods && !zds_pods_find(&server->pods, pod->uid))
		return error_set(err, ENOSPC, "there are %u pods for ztunnel already",
				 server->cfg.max_pods);
	return 0;
}

static void drop_entry(struct zds_server *server, struct zds_entry *entry, const char *why)
{
	for (struct zds_conn *conn = server->conns; conn; conn = conn->next)
		zds_conn_entry_leaves(conn, entry);
	zds_pods_take(&server->pods, entry);
	entry_finish(server, entry, ZDS_LOST, why);
	zds_entry_free(entry);
}

static void add_entry(struct zds_server *server, struct zds_entry *entry)
{
	struct zds_entry *old = zds_pods_find(&server->pods, entry->pod.uid);

	if (old)
		drop_entry(server, old, "the pod was put again");
	for (struct zds_conn *conn = server->conns; conn; conn = conn->next)
		zds_conn_undelete(conn, entry->pod.uid);
	zds_pods_append(&server->pods, entry);
	for (struct zds_conn *conn = server->conns; conn; conn = conn->next)
		zds_conn_entry_added(conn, entry);
}

int zds_server_put(struct zds_server *server, const struct zds_pod *pod, int netns_fd,
		   zds_done_fn done, void *arg, struct error *err)
{
	struct zds_ticket *ticket = NULL;
	struct zds_entry *entry;
	scoped_fd int fd = -1;
	int r = check_put(server, pod, err);

	if (!r)
		r = netns_check_fd(netns_fd, err);
	if (r)
		return r;
	fd = fcntl(netns_fd, F_DUPFD_CLOEXEC, 0);
	if (fd < 0)
		return error_set(err, errno, "duplicate a descriptor of pod %s", pod->name);
	entry = zds_entry_new(pod);
	if (!entry)
		return error_set(err, ENOMEM, "pod %s", pod->name);
	r = ticket_new(done, arg, &ticket, err);
	if (r) {
		zds_entry_free(entry);
		return r;
	}
	entry->ticket = ticket;
	entry->netns_fd = take_fd(&fd);
	entry->deadline_ms = monotonic_ms() + server->cfg.put_timeout_ms;
	server->n_pending++;
	add_entry(server, entry);
	if (!is_expected(server, entry))
		entry_finish(server, entry, ZDS_NO_PROXY, "no ztunnel is connected");
	called(server);
	return 0;
}

int zds_server_remember(struct zds_server *server, const struct zds_pod *pod, struct error *err)
{
	struct zds_entry *entry;
	int r = check_put(server, pod, err);

	if (r || zds_pods_find(&server->pods, pod->uid))
		return r;
	entry = zds_entry_new(pod);
	if (!entry)
		return error_set(err, ENOMEM, "pod %s", pod->name);
	add_entry(server, entry);
	called(server);
	return 0;
}

int zds_server_remove(struct zds_server *server, const char *uid, zds_done_fn done, void *arg,
		      struct error *err)
{
	struct zds_entry *entry = zds_pods_find(&server->pods, uid);
	struct zds_request req = {.kind = ZDS_DEL, .pod.uid = uid};
	const char *why = "no ztunnel is connected";
	enum zds_result result = ZDS_NO_PROXY;
	struct zds_ticket *ticket = NULL;
	struct zds_packet packet;
	int r = zds_request_encode(&req, &packet, err);

	if (!r)
		r = ticket_new(done, arg, &ticket, err);
	if (r)
		return r;
	for (struct zds_conn *conn = server->conns; conn; conn = conn->next) {
		zds_conn_delete(conn, uid, ticket);
		if (conn->failed) {
			result = ZDS_LOST;
			why = conn->why;
		}
	}
	if (entry)
		drop_entry(server, entry, "the pod was removed");
	if (ticket && !ticket->n_waiting)
		ticket_finish(server, ticket, result, why);
	else if (ticket && result == ZDS_LOST)
		ticket_note(ticket, result, why);
	called(server);
	return 0;
}

unsigned zds_server_ready(const struct zds_server *server)
{
	return server->n_ready;
}

bool zds_server_has(const struct zds_server *server, const char *uid)
{
	return zds_pods_find(&server->pods, uid) != NULL;
}

const struct zds_pod *zds_server_pod(const struct zds_server *server, const char *uid)
{
	const struct zds_entry *entry = zds_pods_find(&server->pods, uid);

	return entry ? &entry->pod : NULL;
}

const char *zds_server_refusal(const struct zds_server *server, const char *uid)
{
	const struct zds_entry *entry = zds_pods_find(&server->pods, uid);

	return entry ? entry->refusal : NULL;
}

/* ---- status --------------------------------------------------------------------------------- */

static json_t *connections_json(const struct zds_server *server)
{
	static const char *const states[] = {
		[ZDS_CONN_HELLO] = "hello",
		[ZDS_CONN_SNAPSHOT] = "snapshot",
		[ZDS_CONN_READY] = "ready",
	};
	json_t *out = json_array();

	for (const struct zds_conn *conn = server->conns; conn; conn = conn->next)
		json_array_append_new(out, json_pack("{s:i, s:s, s:I, s:b, s:i}", "pid", conn->pid,
						     "state", states[conn->state], "connectedMs",
						     (json_int_t)(monotonic_ms() - conn->since_ms),
						     "waiting", conn->in_flight.any,
						     "queuedRemovals", (int)conn->n_deletions));
	return out;
}

static json_t *refused_pods_json(const struct zds_server *server, size_t *ret_n)
{
	json_t *out = json_array();
	size_t n = 0;

	for (const struct zds_entry *entry = server->pods.head; entry; entry = entry->next) {
		if (!entry->refusal || n++ >= STATUS_PODS_MAX)
			continue;
		json_array_append_new(out,
				      json_pack("{s:s, s:s, s:s, s:o}", "uid", entry->pod.uid,
						"namespace", entry->pod.ns, "name", entry->pod.name,
						"error", json_string_lossy(entry->refusal)));
	}
	*ret_n = n;
	return out;
}

static json_t *counters_json(const struct zds_counters *c)
{
	return json_pack("{s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", //
			 "accepted", (json_int_t)c->accepted, "refused", (json_int_t)c->refused,
			 "ended", (json_int_t)c->ended, "dropped", (json_int_t)c->dropped,
			 "snapshots", (json_int_t)c->snapshots, "adds", (json_int_t)c->adds,
			 "keeps", (json_int_t)c->keeps, "dels", (json_int_t)c->dels, "skipped",
			 (json_int_t)c->skipped, "acks", (json_int_t)c->acks, "nacks",
			 (json_int_t)c->nacks, "timeouts", (json_int_t)c->timeouts);
}

json_t *zds_server_status(const struct zds_server *server)
{
	size_t n_refused;
	json_t *refused = refused_pods_json(server, &n_refused);

	return json_pack("{s:o, s:i, s:i, s:i, s:i, s:o, s:o, s:o, s:o}", "socket",
			 json_string_lossy(server->cfg.path), "ready", (int)server->n_ready, "pods",
			 (int)server->pods.n, "pending", (int)server->n_pending, "refused",
			 (int)n_refused, "refusedPods", refused, "connections",
			 connections_json(server), "counters", counters_json(&server->counters),
			 "lastError", json_string_lossy(server->last_error));
}

/* ---- life ----------------------------------------------------------------------------------- */

static int open_sources(struct zds_server *server, struct error *err)
{
	int r;

	server->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	if (server->timer_fd < 0)
		return error_set(err, errno, "timerfd_create");
	r = zds_socket_open(server->cfg.path, &server->socket, err);
	if (!r)
		r = event_loop_add_fd(server->loop, server->timer_fd, EPOLLIN, on_timer, server,
				      &server->timer_source, err);
	if (!r)
		r = event_loop_add_fd(server->loop, server->socket.fd, 0, on_listen, server,
				      &server->listen_source, err);
	return r;
}

int zds_server_open(const struct zds_server_config *cfg, struct event_loop *loop,
		    struct zds_server **ret, struct error *err)
{
	struct zds_server *server = calloc(1, sizeof(*server));
	int r;

	if (!server)
		return error_set(err, ENOMEM, "server for ztunnel");
	server->cfg = *cfg;
	server->loop = loop;
	server->socket.fd = server->timer_fd = -1;
	server->finished_end = &server->finished;
	server->refusals.per_minute = server->nacks.per_minute = server->failures.per_minute =
		LOGGED_PER_MINUTE;
	server->cfg.path = strdup(cfg->path);
	r = server->cfg.path ? open_sources(server, err) : error_set(err, ENOMEM, "path");
	if (r)
		zds_server_close(server);
	else
		*ret = server;
	return r;
}

void zds_server_start(struct zds_server *server)
{
	if (server->started)
		return;
	server->started = true;
	set_accepting(server, true);
}

void zds_server_close(struct zds_server *server)
{
	if (!server)
		return;
	server->closing = true;
	event_loop_remove(server->listen_source);
	event_loop_remove(server->timer_source);
	zds_socket_close(&server->socket);
	for (struct zds_conn *conn = server->conns; conn; conn = conn->next)
		zds_conn_fail(conn, ZDS_LOST, "the agent ends");
	while (reap(server))
		;
	while (server->pods.head)
		drop_entry(server, server->pods.head, "the agent ends");
	while (server->finished)
		run_callbacks(server);
	if (server->timer_fd >= 0)
		close(server->timer_fd);
	free((char *)server->cfg.path);
	free(server);
}
