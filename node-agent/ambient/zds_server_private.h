/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_ZDS_SERVER_PRIVATE_H
#define SOCKMESH_ZDS_SERVER_PRIVATE_H

/*
 * What the server (pods, tickets, deadlines) and its connections (zds_conn.c) share. A connection
 * that has to end is only marked; zds_server.c frees it when nobody is looking at it.
 */
#include "log.h"
#include "zds_pods.h"
#include "zds_server.h"
#include "zds_socket.h"

struct event_source;

/* The right to one call of `done`. */
struct zds_ticket {
	struct zds_ticket *next; /* in the queue of the finished */
	zds_done_fn done;
	void *arg;
	unsigned n_waiting; /* answers of a removal that are missing */
	enum zds_result result;
	char text[ZDS_ERROR_TEXT_SIZE];
};

struct zds_deletion {
	struct zds_deletion *next;
	struct zds_ticket *ticket; /* NULL: nobody cares */
	char uid[];
};

enum zds_conn_state { ZDS_CONN_HELLO, ZDS_CONN_SNAPSHOT, ZDS_CONN_READY };

struct zds_in_flight {
	bool any;
	enum zds_request_kind kind;
	uint64_t seq; /* ADD */
	struct zds_ticket *ticket;
	char uid[ZDS_UID_MAX + 1];
};

struct zds_conn {
	struct zds_server *server;
	struct zds_conn *next, **link; /* the newest first */
	struct event_source *source;
	int fd;
	int32_t pid;
	enum zds_conn_state state;
	int64_t since_ms;    /* when it was accepted */
	int64_t deadline_ms; /* 0: none */
	bool blocked;	     /* waits for room in the socket */

	struct zds_entry *unsent; /* it has been sent what is before it in the list */
	struct zds_deletion *deletions, **deletions_end;
	unsigned n_deletions;
	struct zds_in_flight in_flight;

	bool failed, closed_by_peer;
	enum zds_result failure;
	char why[ZDS_ERROR_TEXT_SIZE];
};

struct zds_counters {
	unsigned long accepted, refused, ended, dropped, snapshots;
	unsigned long adds, keeps, dels, skipped, acks, nacks, timeouts;
};

struct zds_server {
	struct zds_server_config cfg;
	struct event_loop *loop;
	struct zds_socket socket;
	struct event_source *listen_source, *timer_source;
	int timer_fd;
	int64_t armed_ms; /* when the timer is set to fire; 0: it is not */
	bool started, closing;
	int64_t accept_again_ms; /* 0: accepting */
	int64_t accept_window_ms;
	unsigned n_accepted; /* in this window */

	struct zds_conn *conns;
	unsigned n_conns, n_ready, n_ready_told;
	struct zds_pods pods;
	size_t n_pending; /* puts without an answer */
	struct zds_ticket *finished, **finished_end;

	struct zds_counters counters;
	char last_error[ZDS_ERROR_TEXT_SIZE];
	struct log_limit refusals, nacks, failures;
	uint8_t buffer[ZDS_RESPONSE_MAX];
};

/* ---- zds_conn.c ---- */

int zds_conn_new(struct zds_server *server, int *fd, int32_t pid, struct error *err);
void zds_conn_free(struct zds_conn *conn); /* its tickets get its failure */
void zds_conn_fail(struct zds_conn *conn, enum zds_result result, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));
void zds_conn_receive(struct zds_conn *conn);
void zds_conn_pump(struct zds_conn *conn); /* sends the next message if it is time for one */
void zds_conn_check_deadline(struct zds_conn *conn, int64_t now_ms);

/* It will be sent, or has been sent and did not answer yet, this very entry. */
bool zds_conn_expects(const struct zds_conn *conn, const struct zds_entry *entry);

/* The list of pods: an entry was appended, or is about to be taken out. */
void zds_conn_entry_added(struct zds_conn *conn, struct zds_entry *entry);
void zds_conn_entry_leaves(struct zds_conn *conn, struct zds_entry *entry);

/* Lets ztunnel forget the pod; the ticket (may be NULL) waits for that answer too. */
void zds_conn_delete(struct zds_conn *conn, const char *uid, struct zds_ticket *ticket);
void zds_conn_undelete(struct zds_conn *conn, const char *uid); /* the pod is put again */

/* ---- zds_server.c ---- */

struct zds_conn *zds_server_newest(const struct zds_server *server); /* that is ready */
void zds_server_handled(struct zds_server *server); /* every event ends with this */

/* A warning with two pairs of key and value, unless there were too many of its kind. */
void zds_server_warn(struct log_limit *limit, const char *msg, const char *const pairs[static 4]);

/* The answer to an Add; error "" is a good one. */
void zds_server_answered(struct zds_conn *conn, const char *uid, uint64_t seq, const char *error);
void zds_ticket_answered(struct zds_server *server, struct zds_ticket *ticket,
			 enum zds_result result, const char *text);

#endif
