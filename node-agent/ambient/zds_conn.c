/* SPDX-License-Identifier: Apache-2.0 */
#include "zds_server_private.h"

#include "error.h"
#include "event_loop.h"
#include "monotonic.h"
#include "netns.h"
#include "scoped.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/epoll.h>

static const char *const request_names[] = {
	[ZDS_ADD] = "Add",
	[ZDS_KEEP] = "Keep",
	[ZDS_DEL] = "Del",
	[ZDS_SNAPSHOT_SENT] = "SnapshotSent",
};

void zds_conn_fail(struct zds_conn *conn, enum zds_result result, const char *fmt, ...)
{
	va_list args;

	if (conn->failed)
		return;
	conn->failed = true;
	conn->failure = result;
	va_start(args, fmt);
	vsnprintf(conn->why, sizeof(conn->why), fmt, args);
	va_end(args);
}

/* ---- what it is told ------------------------------------------------------------------------ */

static bool is_unsent(const struct zds_conn *conn, const struct zds_entry *entry)
{
	return conn->unsent && entry->seq >= conn->unsent->seq;
}

bool zds_conn_expects(const struct zds_conn *conn, const struct zds_entry *entry)
{
	if (conn->failed || conn->state == ZDS_CONN_HELLO)
		return false;
	if (conn->in_flight.any && conn->in_flight.kind == ZDS_ADD &&
	    conn->in_flight.seq == entry->seq)
		return true;
	return is_unsent(conn, entry) &&
	       (conn->state == ZDS_CONN_SNAPSHOT || conn == zds_server_newest(conn->server));
}

void zds_conn_entry_added(struct zds_conn *conn, struct zds_entry *entry)
{
	if (conn->state != ZDS_CONN_HELLO && !conn->unsent)
		conn->unsent = entry;
}

void zds_conn_entry_leaves(struct zds_conn *conn, struct zds_entry *entry)
{
	if (conn->unsent == entry)
		conn->unsent = entry->next;
}

static void queue_deletion(struct zds_conn *conn, const char *uid, struct zds_ticket *ticket)
{
	size_t size = strlen(uid) + 1;
	struct zds_deletion *deletion;

	/* Without the message it would have to be told by a new snapshot. */
	if (conn->n_deletions >= conn->server->cfg.max_queued) {
		zds_conn_fail(conn, ZDS_LOST, "more than %u removals wait to be sent",
			      conn->server->cfg.max_queued);
		return;
	}
	deletion = malloc(sizeof(*deletion) + size);
	if (!deletion) {
		zds_conn_fail(conn, ZDS_LOST, "no memory for a removal");
		return;
	}
	deletion->next = NULL;
	deletion->ticket = ticket;
	if (ticket)
		ticket->n_waiting++;
	memcpy(deletion->uid, uid, size);
	*conn->deletions_end = deletion;
	conn->deletions_end = &deletion->next;
	conn->n_deletions++;
}

/*
 * Also when its snapshot did not name the pod yet: it may have named the same pod before that was
 * put again. Unknown ones are acked.
 */
void zds_conn_delete(struct zds_conn *conn, const char *uid, struct zds_ticket *ticket)
{
	if (!conn->failed && conn->state != ZDS_CONN_HELLO)
		queue_deletion(conn, uid, ticket);
}

static void take_deletion(struct zds_conn *conn, struct zds_deletion **at)
{
	struct zds_deletion *deletion = *at;

	*at = deletion->next;
	if (conn->deletions_end == &deletion->next)
		conn->deletions_end = at;
	conn->n_deletions--;
	free(deletion);
}

/*
 * A removal that waits for the end of the snapshot would hit the pod that was put since, because
 * that one goes into the snapshot; it replaces what ztunnel has, so nothing is lost. Once the
 * snapshot is over, the order of the messages is that of the calls.
 */
void zds_conn_undelete(struct zds_conn *conn, const char *uid)
{
	struct zds_deletion **at = &conn->deletions;

	if (conn->state != ZDS_CONN_SNAPSHOT)
		return;
	while (*at) {
		if (strcmp((*at)->uid, uid) != 0) {
			at = &(*at)->next;
			continue;
		}
		zds_ticket_answered(conn->server, (*at)->ticket, ZDS_LOST, "the pod was put again");
		take_deletion(conn, at);
	}
}

/* ---- sending -------------------------------------------------------------------------------- */

struct outgoing {
	struct zds_request req;
	uint64_t seq;
	int netns_fd;  /* -1: none goes along */
	int opened_fd; /* to be closed after */
};

static void outgoing_done(struct outgoing *out)
{
	scoped_close(&out->opened_fd);
}

/* The namespace of a put that waits is at hand; for all others we ask. */
static int netns_of(struct zds_server *server, const struct zds_entry *entry, int *ret_opened)
{
	scoped_fd int fd = -1;
	struct error err = {0};

	if (entry->netns_fd >= 0)
		return entry->netns_fd;
	if (server->cfg.open_netns(server->cfg.arg, entry->pod.uid, &fd) || fd < 0)
		return -1;
	if (netns_check_fd(fd, &err)) {
		zds_server_warn(&server->failures, "a pod's network namespace is none",
				(const char *[]){"pod", entry->pod.uid, "error", err.text});
		return -1;
	}
	*ret_opened = take_fd(&fd);
	return *ret_opened;
}

static bool next_pod(struct zds_conn *conn, struct outgoing *ret)
{
	for (; conn->unsent; conn->unsent = conn->unsent->next) {
		struct zds_entry *entry = conn->unsent;
		int fd = netns_of(conn->server, entry, &ret->opened_fd);

		/* Keep would end ztunnel now. The next snapshot may know more. */
		if (fd < 0 && conn->state != ZDS_CONN_SNAPSHOT) {
			conn->server->counters.skipped++;
			continue;
		}
		ret->req = (struct zds_request){.kind = fd < 0 ? ZDS_KEEP : ZDS_ADD,
						.pod = entry->pod};
		ret->seq = entry->seq;
		ret->netns_fd = fd;
		return true;
	}
	return false;
}

/*
 * Del is for after the snapshot: to older ztunnels an earlier one is a fatal error, and newer ones
 * act on it only then.
 */
static bool next_request(struct zds_conn *conn, struct outgoing *ret)
{
	if (conn->state == ZDS_CONN_SNAPSHOT) {
		if (!next_pod(conn, ret))
			ret->req.kind = ZDS_SNAPSHOT_SENT;
		return true;
	}
	/* Before new pods: one of them may be the same, put again. */
	if (conn->deletions) {
		ret->req = (struct zds_request){.kind = ZDS_DEL, .pod.uid = conn->deletions->uid};
		return true;
	}
	return conn == zds_server_newest(conn->server) && next_pod(conn, ret);
}

static void count(struct zds_counters *counters, enum zds_request_kind kind)
{
	counters->adds += kind == ZDS_ADD;
	counters->keeps += kind == ZDS_KEEP;
	counters->dels += kind == ZDS_DEL;
}

static void was_sent(struct zds_conn *conn, const struct outgoing *out)
{
	struct zds_in_flight *in_flight = &conn->in_flight;

	*in_flight = (struct zds_in_flight){.any = true, .kind = out->req.kind, .seq = out->seq};
	if (out->req.pod.uid)
		snprintf(in_flight->uid, sizeof(in_flight->uid), "%s", out->req.pod.uid);
	if (out->req.kind == ZDS_DEL) {
		in_flight->ticket = conn->deletions->ticket;
		take_deletion(conn, &conn->deletions);
	} else if (out->req.kind != ZDS_SNAPSHOT_SENT) {
		conn->unsent = conn->unsent->next;
	}
	conn->deadline_ms = monotonic_ms() + conn->server->cfg.ack_timeout_ms;
	count(&conn->server->counters, out->req.kind);
}

static void set_blocked(struct zds_conn *conn, bool blocked)
{
	uint32_t events = EPOLLIN | EPOLLRDHUP | (blocked ? EPOLLOUT : 0);
	struct error err = {0};

	if (conn->blocked == blocked)
		return;
	conn->blocked = blocked;
	if (event_loop_set_events(conn->source, events, &err))
		zds_conn_fail(conn, ZDS_LOST, "%s", err.text);
}

void zds_conn_pump(struct zds_conn *conn)
{
	scoped(outgoing_done) struct outgoing out = {.netns_fd = -1, .opened_fd = -1};
	struct zds_packet packet;
	struct error err = {0};
	int r;

	if (conn->failed || conn->in_flight.any || conn->state == ZDS_CONN_HELLO)
		return;
	if (!next_request(conn, &out)) {
		set_blocked(conn, false);
		if (!conn->failed)
			conn->deadline_ms = 0;
		return;
	}
	r = zds_request_encode(&out.req, &packet, &err);
	if (!r)
		r = zds_packet_send(conn->fd, packet.data, packet.size, out.netns_fd, &err);
	if (r == -EAGAIN) {
		/* Decided anew when there is room: the pod may have been removed by then. */
		set_blocked(conn, true);
		if (!conn->deadline_ms)
			conn->deadline_ms = monotonic_ms() + conn->server->cfg.ack_timeout_ms;
		return;
	}
	if (r) {
		zds_conn_fail(conn, ZDS_LOST, "%s: %s", err.text, strerror(err.code));
		return;
	}
	set_blocked(conn, false);
	was_sent(conn, &out);
}

/* ---- receiving ------------------------------------------------------------------------------ */

static void on_hello(struct zds_conn *conn, size_t size)
{
	struct error err = {0};
	char pid[16], text[16];
	int version;

	if (zds_hello_decode(conn->server->buffer, size, &version, &err)) {
		zds_conn_fail(conn, ZDS_LOST, "it did not begin with a Hello: %s", err.text);
		return;
	}
	snprintf(pid, sizeof(pid), "%d", conn->pid);
	snprintf(text, sizeof(text), "%d", version);
	log_write(version == ZDS_VERSION ? LOG_DEBUG : LOG_WARN, "ztunnel says hello", "pid", pid,
		  "version", text, NULL);
	conn->state = ZDS_CONN_SNAPSHOT;
	conn->unsent = conn->server->pods.head;
	conn->deadline_ms = 0;
}

static void snapshot_answered(struct zds_conn *conn, const char *error)
{
	struct zds_server *server = conn->server;
	char pid[16], pods[24], ms[24];

	if (*error) {
		zds_conn_fail(conn, ZDS_NACKED, "it refused the end of the snapshot: %.300s",
			      error);
		return;
	}
	conn->state = ZDS_CONN_READY;
	server->n_ready++;
	server->counters.snapshots++;
	snprintf(pid, sizeof(pid), "%d", conn->pid);
	snprintf(pods, sizeof(pods), "%zu", server->pods.n);
	snprintf(ms, sizeof(ms), "%lld", (long long)(monotonic_ms() - conn->since_ms));
	log_write(LOG_INFO, "ztunnel is ready", "pid", pid, "pods", pods, "after-ms", ms, NULL);
}

static void note_refusal(struct zds_conn *conn, const struct zds_in_flight *asked,
			 const char *error)
{
	struct zds_server *server = conn->server;

	server->counters.nacks++;
	snprintf(server->last_error, sizeof(server->last_error), "%s of pod %s: %.300s",
		 request_names[asked->kind], *asked->uid ? asked->uid : "-", error);
	zds_server_warn(&server->nacks, "ztunnel refused a message",
			(const char *[]){"pod", *asked->uid ? asked->uid : "-", "error", error});
}

static void on_response(struct zds_conn *conn, size_t size)
{
	struct zds_in_flight asked = conn->in_flight;
	char error[ZDS_ERROR_TEXT_SIZE];
	struct error err = {0};

	if (!asked.any) {
		zds_conn_fail(conn, ZDS_LOST, "it sent %zu bytes that nobody asked for", size);
		return;
	}
	if (zds_response_decode(conn->server->buffer, size, error, &err)) {
		zds_conn_fail(conn, ZDS_LOST, "its answer to %s: %s", request_names[asked.kind],
			      err.text);
		return;
	}
	conn->in_flight = (struct zds_in_flight){0};
	conn->deadline_ms = 0;
	if (*error)
		note_refusal(conn, &asked, error);
	else
		conn->server->counters.acks++;
	if (asked.kind == ZDS_ADD)
		zds_server_answered(conn, asked.uid, asked.seq, error);
	else if (asked.kind == ZDS_DEL)
		zds_ticket_answered(conn->server, asked.ticket, *error ? ZDS_NACKED : ZDS_ACKED,
				    error);
	else if (asked.kind == ZDS_SNAPSHOT_SENT)
		snapshot_answered(conn, error);
}

/*
 * Everything that is there, before anything is sent again: a second answer to the same message is
 * found here, and not taken for the answer to the next one.
 */
void zds_conn_receive(struct zds_conn *conn)
{
	struct zds_server *server = conn->server;

	while (!conn->failed) {
		struct error err = {0};
		size_t size = 0;
		int r = zds_packet_receive(conn->fd, server->buffer, sizeof(server->buffer), &size,
					   &err);

		if (r == -EAGAIN)
			return;
		if (r == -ECONNRESET) {
			conn->closed_by_peer = true;
			zds_conn_fail(conn, ZDS_LOST, "ztunnel closed the connection");
		} else if (r == -EPROTO || r == -EMSGSIZE) {
			zds_conn_fail(conn, ZDS_LOST, "it sent %s", err.text);
		} else if (r) {
			zds_conn_fail(conn, ZDS_LOST, "%s: %s", err.text, strerror(err.code));
		} else if (conn->state == ZDS_CONN_HELLO) {
			on_hello(conn, size);
		} else {
			on_response(conn, size);
		}
	}
}

/* ---- life ----------------------------------------------------------------------------------- */

/* An answer that has arrived while we were busy elsewhere is not late. */
void zds_conn_check_deadline(struct zds_conn *conn, int64_t now_ms)
{
	if (!conn->deadline_ms || now_ms < conn->deadline_ms)
		return;
	zds_conn_receive(conn);
	if (conn->failed || !conn->deadline_ms)
		return;
	conn->server->counters.timeouts++;
	if (conn->state == ZDS_CONN_HELLO)
		zds_conn_fail(conn, ZDS_TIMEOUT, "no Hello within %u ms",
			      conn->server->cfg.hello_timeout_ms);
	else if (conn->in_flight.any)
		zds_conn_fail(conn, ZDS_TIMEOUT, "no answer to %s%s%s within %u ms",
			      request_names[conn->in_flight.kind],
			      *conn->in_flight.uid ? " of pod " : "", conn->in_flight.uid,
			      conn->server->cfg.ack_timeout_ms);
	else
		zds_conn_fail(conn, ZDS_TIMEOUT, "it takes no message within %u ms",
			      conn->server->cfg.ack_timeout_ms);
}

static void on_conn(int fd, uint32_t events, void *arg)
{
	struct zds_conn *conn = arg;
	struct zds_server *server = conn->server;

	(void)fd;
	if (events & ~(uint32_t)EPOLLOUT)
		zds_conn_receive(conn);
	zds_server_handled(server);
}

int zds_conn_new(struct zds_server *server, int *fd, int32_t pid, struct error *err)
{
	struct zds_conn *conn = calloc(1, sizeof(*conn));
	int r;

	if (!conn)
		return error_set(err, ENOMEM, "connection");
	conn->server = server;
	conn->fd = *fd;
	conn->pid = pid;
	conn->deletions_end = &conn->deletions;
	conn->since_ms = monotonic_ms();
	conn->deadline_ms = conn->since_ms + server->cfg.hello_timeout_ms;
	r = event_loop_add_fd(server->loop, conn->fd, EPOLLIN | EPOLLRDHUP, on_conn, conn,
			      &conn->source, err);
	if (r) {
		free(conn);
		return r;
	}
	take_fd(fd);
	conn->next = server->conns;
	conn->link = &server->conns;
	if (conn->next)
		conn->next->link = &conn->next;
	server->conns = conn;
	server->n_conns++;
	return 0;
}

void zds_conn_free(struct zds_conn *conn)
{
	struct zds_server *server = conn->server;

	event_loop_remove(conn->source);
	*conn->link = conn->next;
	if (conn->next)
		conn->next->link = conn->link;
	server->n_conns--;
	server->n_ready -= conn->state == ZDS_CONN_READY;
	if (conn->in_flight.any)
		zds_ticket_answered(server, conn->in_flight.ticket, conn->failure, conn->why);
	while (conn->deletions) {
		zds_ticket_answered(server, conn->deletions->ticket, conn->failure, conn->why);
		take_deletion(conn, &conn->deletions);
	}
	close(conn->fd);
	free(conn);
}
