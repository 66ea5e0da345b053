/* SPDX-License-Identifier: Apache-2.0 */
#include "metrics_server.h"

#include "error.h"
#include "event_loop.h"
#include "log.h"
#include "monotonic.h"
#include "scoped.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

enum {
	CONNECTIONS_MAX = 32,
	CONNECTION_MEMORY = 16 * 1024, /* a request's head, and what is being sent */
	IDLE_TIMEOUT_S = 5,
	REQUEST_MS =
		10 * 1000, /* from the connection, or the request before it, to the answer's end */
	TICK_MS = 1000,	   /* while there are connections */
	FRESH_MS = 1000,   /* a text that is younger is good enough */
	LISTEN_BACKLOG = 32,
};

struct visitor {
	struct metrics_server *server;
	int fd; /* -1: this place is free */
	int64_t since_ms;
	bool is_cut;
};

struct metrics_server {
	struct metrics_server_config cfg;
	struct event_loop *loop;
	struct MHD_Daemon *daemon;
	struct event_source *source, *timer;
	uint16_t port;
	char *text; /* of text_ms; NULL: none yet */
	int64_t text_ms;
	struct visitor visitors[CONNECTIONS_MAX];
	struct log_limit failures;
};

/* ---- the address ----------------------------------------------------------------------------- */

int metrics_address_parse(const char *text, struct metrics_address *ret, struct error *err)
{
	const char *colon = strrchr(text, ':');
	struct metrics_address address = {.all = colon == text};
	struct error inner = {0};
	char *end;
	unsigned long port;

	if (!colon || !isdigit((unsigned char)colon[1]))
		return error_set(err, EINVAL, "not HOST:PORT");
	port = strtoul(colon + 1, &end, 10);
	if (*end || port > UINT16_MAX)
		return error_set(err, EINVAL, "the port is not from 1 to 65535");
	if (!address.all && ip_endpoint_parse(text, &address.address, &address.port, &inner))
		return error_set(
			err, EINVAL,
			"HOST is not an IPv4 address, an IPv6 address in brackets, or empty");
	address.port = (uint16_t)port;
	*ret = address;
	return 0;
}

union endpoint {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

static socklen_t to_endpoint(const struct metrics_address *a, int family, union endpoint *ret)
{
	*ret = (union endpoint){.v6.sin6_family = (sa_family_t)family};
	if (family == AF_INET) {
		ret->v4.sin_port = htons(a->port);
		if (!a->all)
			ret->v4.sin_addr.s_addr = ip_address_v4_be(&a->address);
		return sizeof(ret->v4);
	}
	ret->v6.sin6_port = htons(a->port);
	if (!a->all)
		memcpy(&ret->v6.sin6_addr, a->address.bytes, sizeof(ret->v6.sin6_addr));
	return sizeof(ret->v6);
}

static int listen_on(const struct metrics_address *a, int family, int *ret_fd, struct error *err)
{
	const int yes = 1, v6_only = !a->all;
	union endpoint address;
	socklen_t size = to_endpoint(a, family, &address);
	scoped_fd int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	if (fd < 0)
		return error_set(err, errno, "socket");
	/* What an agent before us still has in TIME_WAIT is no reason to fail. */
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof(yes)) < 0)
		return error_set(err, errno, "SO_REUSEADDR");
	if (family == AF_INET6 &&
	    setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &v6_only, sizeof(v6_only)) < 0)
		return error_set(err, errno, "IPV6_V6ONLY");
	if (bind(fd, &address.any, size) < 0)
		return error_set(err, errno, "bind");
	if (listen(fd, LISTEN_BACKLOG) < 0)
		return error_set(err, errno, "listen");
	*ret_fd = take_fd(&fd);
	return 0;
}

static int open_socket(const char *text, int *ret_fd, struct error *err)
{
	struct metrics_address a = {0};
	int r = metrics_address_parse(text, &a, err);

	if (!r)
		r = listen_on(&a, !a.all && ip_address_is_v4(&a.address) ? AF_INET : AF_INET6,
			      ret_fd, err);
	/* A kernel without IPv6, or with none that is switched on. */
	if (a.all && (r == -EAFNOSUPPORT || r == -EADDRNOTAVAIL))
		r = listen_on(&a, AF_INET, ret_fd, err);
	return r;
}

static uint16_t port_of(int fd)
{
	union endpoint bound = {0};
	socklen_t size = sizeof(bound);

	if (getsockname(fd, &bound.any, &size) < 0)
		return 0;
	return ntohs(bound.any.sa_family == AF_INET ? bound.v4.sin_port : bound.v6.sin6_port);
}

/* ---- answers --------------------------------------------------------------------------------- */

static enum MHD_Result respond(struct MHD_Connection *connection, unsigned status, const char *type,
			       const char *text)
{
	/* Copied: the text may be another one before a slow reader has it all. */
	struct MHD_Response *response =
		MHD_create_response_from_buffer(strlen(text), (void *)text, MHD_RESPMEM_MUST_COPY);
	enum MHD_Result queued = MHD_NO;

	if (!response)
		return MHD_NO;
	if (MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, type) &&
	    (status != MHD_HTTP_METHOD_NOT_ALLOWED ||
	     MHD_add_response_header(response, MHD_HTTP_HEADER_ALLOW, "GET, HEAD")))
		queued = MHD_queue_response(connection, status, response);
	MHD_destroy_response(response);
	return queued;
}

static enum MHD_Result respond_plain(struct MHD_Connection *connection, unsigned status,
				     const char *text)
{
	return respond(connection, status, "text/plain; charset=utf-8", text);
}

static enum MHD_Result respond_metrics(struct metrics_server *server,
				       struct MHD_Connection *connection)
{
	int64_t now_ms = monotonic_ms();

	if (!server->text || now_ms - server->text_ms >= FRESH_MS) {
		free(server->text);
		server->text = server->cfg.text(server->cfg.arg);
		server->text_ms = now_ms;
	}
	if (!server->text)
		return respond_plain(connection, MHD_HTTP_INTERNAL_SERVER_ERROR, "out of memory\n");
	return respond(connection, MHD_HTTP_OK, "text/plain; version=0.0.4; charset=utf-8",
		       server->text);
}

static enum MHD_Result respond_ready(struct metrics_server *server,
				     struct MHD_Connection *connection)
{
	const char *why = server->cfg.not_ready(server->cfg.arg);
	char text[256];

	if (!why)
		return respond_plain(connection, MHD_HTTP_OK, "ready\n");
	snprintf(text, sizeof(text), "not ready: %s\n", why);
	return respond_plain(connection, MHD_HTTP_SERVICE_UNAVAILABLE, text);
}

static bool has_body(struct MHD_Connection *connection)
{
	const char *length = MHD_lookup_connection_value(connection, MHD_HEADER_KIND,
							 MHD_HTTP_HEADER_CONTENT_LENGTH);

	return (length && strcmp(length, "0") != 0) ||
	       MHD_lookup_connection_value(connection, MHD_HEADER_KIND,
					   MHD_HTTP_HEADER_TRANSFER_ENCODING);
}

/*
 * Called once when the head is there and again when the request is. Whoever is refused at the
 * first call is not read from any more: the connection ends with the answer.
 */
static enum MHD_Result on_request(void *arg, struct MHD_Connection *connection, const char *url,
				  const char *method, const char *version, const char *upload,
				  size_t *upload_size, void **context)
{
	struct metrics_server *server = arg;

	(void)version;
	(void)upload;
	(void)upload_size;
	if (!*context) {
		*context = server;
		if (strcmp(method, MHD_HTTP_METHOD_GET) != 0 &&
		    strcmp(method, MHD_HTTP_METHOD_HEAD) != 0)
			return respond_plain(connection, MHD_HTTP_METHOD_NOT_ALLOWED,
					     "only GET and HEAD\n");
		if (has_body(connection))
			return respond_plain(connection, MHD_HTTP_CONTENT_TOO_LARGE,
					     "no request has a body here\n");
		return MHD_YES;
	}
	if (!strcmp(url, "/metrics"))
		return respond_metrics(server, connection);
	if (!strcmp(url, "/healthz"))
		return respond_plain(connection, MHD_HTTP_OK, "ok\n");
	if (!strcmp(url, "/readyz"))
		return respond_ready(server, connection);
	return respond_plain(connection, MHD_HTTP_NOT_FOUND,
			     "there are /metrics, /healthz and /readyz\n");
}

/* ---- deadlines ------------------------------------------------------------------------------- */

/* Idle ones are the library's to end; these send or read a byte now and then. */
static void cut_the_slow(struct metrics_server *server)
{
	int64_t now_ms = monotonic_ms();

	for (size_t i = 0; i < CONNECTIONS_MAX; i++) {
		struct visitor *v = &server->visitors[i];

		if (v->fd >= 0 && !v->is_cut && now_ms - v->since_ms >= server->cfg.request_ms) {
			v->is_cut = true;
			shutdown(v->fd, SHUT_RDWR);
		}
	}
}

static void on_connection(void *arg, struct MHD_Connection *connection, void **context,
			  enum MHD_ConnectionNotificationCode code)
{
	struct metrics_server *server = arg;
	struct visitor *v = *context;
	const union MHD_ConnectionInfo *info;

	if (code == MHD_CONNECTION_NOTIFY_CLOSED) {
		if (v)
			v->fd = -1;
		return;
	}
	info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
	for (size_t i = 0; info && i < CONNECTIONS_MAX; i++) {
		v = &server->visitors[i];
		if (v->fd >= 0)
			continue;
		*v = (struct visitor){
			.server = server, .fd = info->connect_fd, .since_ms = monotonic_ms()};
		*context = v;
		return;
	}
}

static void on_completed(void *arg, struct MHD_Connection *connection, void **context,
			 enum MHD_RequestTerminationCode code)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
	struct visitor *v = info ? info->socket_context : NULL;

	(void)arg;
	(void)context;
	(void)code;
	if (v)
		v->since_ms = monotonic_ms();
}

/* ---- in the event loop ----------------------------------------------------------------------- */

static void turn(struct metrics_server *server);

static void on_timer(void *arg)
{
	struct metrics_server *server = arg;

	server->timer = NULL; /* it fired, once */
	turn(server);
}

static void on_events(int fd, uint32_t events, void *arg)
{
	(void)fd;
	(void)events;
	turn(arg);
}

static size_t count_visitors(const struct metrics_server *server)
{
	size_t n = 0;

	for (size_t i = 0; i < CONNECTIONS_MAX; i++)
		n += server->visitors[i].fd >= 0;
	return n;
}

/*
 * Lets the library do what can be done without waiting, and comes back when it wants to. Whoever
 * left has made a place, and only its next turn looks for who waits for one.
 */
static void turn(struct metrics_server *server)
{
	size_t before = count_visitors(server), after;
	MHD_UNSIGNED_LONG_LONG wait_ms = TICK_MS, wanted_ms;
	struct error err = {0};
	unsigned suppressed;

	cut_the_slow(server);
	MHD_run(server->daemon);
	event_loop_remove(server->timer);
	server->timer = NULL;
	after = count_visitors(server);
	if (MHD_get_timeout(server->daemon, &wanted_ms) == MHD_YES && wanted_ms < wait_ms)
		wait_ms = wanted_ms;
	if (after < before)
		wait_ms = 0;
	if (!after && wait_ms == TICK_MS)
		return;
	if (event_loop_add_timer(server->loop, wait_ms, 0, on_timer, server, &server->timer,
				 &err) &&
	    log_limit_allow(&server->failures, &suppressed))
		log_error(LOG_WARN, &err, "cannot time out whoever reads the metrics", NULL);
}

static int start_daemon(struct metrics_server *server, int *fd, struct error *err)
{
	const union MHD_DaemonInfo *info;

	/* No thread of its own: MHD_run() is called when its epoll descriptor is readable. */
	server->daemon = MHD_start_daemon(
		MHD_USE_EPOLL, 0, NULL, NULL, on_request, server, MHD_OPTION_LISTEN_SOCKET, *fd,
		MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS_MAX,
		MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)IDLE_TIMEOUT_S,
		MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY,
		MHD_OPTION_NOTIFY_CONNECTION, on_connection, server, MHD_OPTION_NOTIFY_COMPLETED,
		on_completed, server, MHD_OPTION_END);
	if (!server->daemon)
		return error_set(err, errno ? errno : EIO, "start the HTTP server");
	take_fd(fd); /* the library's, which closes it */
	info = MHD_get_daemon_info(server->daemon, MHD_DAEMON_INFO_EPOLL_FD);
	if (!info || info->epoll_fd < 0)
		return error_set(err, EIO, "the HTTP server has no epoll descriptor");
	return event_loop_add_fd(server->loop, info->epoll_fd, EPOLLIN, on_events, server,
				 &server->source, err);
}

int metrics_server_open(const struct metrics_server_config *cfg, struct event_loop *loop,
			struct metrics_server **ret, struct error *err)
{
	struct metrics_server *server = calloc(1, sizeof(*server));
	scoped_fd int fd = -1;
	int r;

	if (!server)
		return error_set(err, ENOMEM, "metrics server");
	server->cfg = *cfg;
	if (!cfg->request_ms)
		server->cfg.request_ms = REQUEST_MS;
	server->loop = loop;
	server->failures.per_minute = 1;
	for (size_t i = 0; i < CONNECTIONS_MAX; i++)
		server->visitors[i].fd = -1;
	r = open_socket(cfg->address, &fd, err);
	if (!r) {
		server->port = port_of(fd);
		r = start_daemon(server, &fd, err);
	}
	if (r) {
		metrics_server_close(server);
		return error_wrap(err, "--metrics-address %s", cfg->address);
	}
	*ret = server;
	return 0;
}

void metrics_server_close(struct metrics_server *server)
{
	if (!server)
		return;
	event_loop_remove(server->timer);
	event_loop_remove(server->source);
	if (server->daemon)
		MHD_stop_daemon(server->daemon);
	free(server->text);
	free(server);
}

uint16_t metrics_server_port(const struct metrics_server *server)
{
	return server->port;
}
