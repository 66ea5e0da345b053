/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The application: one thread, epoll, non-blocking sockets. A port for each kind of service, so
 * that who learns by port (the accelerator) meets services as they are, not a mixture.
 *
 *	bench_server KIND=PORT...
 *
 * echo: what came goes back. sink: reads to the end, then answers with the number of bytes, 8 bytes
 * in host order. http: HTTP/1.1, connections are kept; the body of an answer is 64 bytes that begin
 * with the path that was asked for.
 */
#include "bench_net.h"

#include <stdio.h>
#include <sys/epoll.h>

enum { CHUNK = 131072, EVENTS = 64, REQUEST_MAX = 8192, BODY = 64 };

enum kind { ECHO, SINK, HTTP };

static const char *const kind_names[] = {[ECHO] = "echo", [SINK] = "sink", [HTTP] = "http"};

/* A listener or a connection. */
struct end {
	int fd;
	enum kind kind;
	bool listens;
	uint64_t count; /* sink: bytes so far */
	size_t n_in;	/* http: of a request that is not complete */
	char *in;	/* the same */
	char *held;	/* an answer that could not be sent yet; nothing is read meanwhile */
	size_t n_held;
};

static int epoll_fd;

static void watch(struct end *end, int op, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = end};

	if (epoll_ctl(epoll_fd, op, end->fd, &event))
		err(1, "epoll_ctl");
}

static void *allocate(size_t size)
{
	void *p = calloc(1, size);

	if (!p)
		err(1, "calloc");
	return p;
}

static struct end *end_new(int fd, enum kind kind, bool listens)
{
	struct end *end = allocate(sizeof(*end));

	end->fd = fd;
	end->kind = kind;
	end->listens = listens;
	if (kind == HTTP && !listens)
		end->in = allocate(REQUEST_MAX);
	watch(end, EPOLL_CTL_ADD, EPOLLIN);
	return end;
}

static void end_close(struct end *end)
{
	close(end->fd);
	free(end->in);
	free(end->held);
	free(end);
}

/* What cannot be sent now is held. False when the connection is no good any more. */
static bool answer(struct end *end, const char *data, size_t size)
{
	ssize_t sent = send(end->fd, data, size, MSG_NOSIGNAL);
	char *rest;

	if (sent < 0 && errno != EAGAIN)
		return false;
	if (sent < 0)
		sent = 0;
	if ((size_t)sent == size)
		return true;
	rest = allocate(end->n_held + size - sent);
	if (end->n_held)
		memcpy(rest, end->held, end->n_held);
	memcpy(rest + end->n_held, data + sent, size - sent);
	free(end->held);
	end->held = rest;
	end->n_held += size - sent;
	watch(end, EPOLL_CTL_MOD, EPOLLOUT);
	return true;
}

static bool send_held(struct end *end)
{
	char *data = end->held;
	size_t size = end->n_held;
	bool good;

	end->held = NULL;
	end->n_held = 0;
	good = answer(end, data, size);
	free(data);
	if (good && !end->n_held)
		watch(end, EPOLL_CTL_MOD, EPOLLIN);
	return good;
}

static bool http_answer(struct end *end, const char *request)
{
	char text[256], path[BODY + 1] = "";
	int size;

	if (sscanf(request, "GET %64s HTTP/1.1\r\n", path) != 1)
		return false;
	size = snprintf(text, sizeof(text),
			"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"
			"content-length: %d\r\n\r\n%-*s",
			BODY, BODY, path);
	return answer(end, text, size);
}

/* A client asks again only when it has its answer, so what follows a request is the next one. */
static bool http(struct end *end, const char *data, size_t size)
{
	if (size >= REQUEST_MAX - end->n_in)
		return false;
	memcpy(end->in + end->n_in, data, size);
	end->n_in += size;
	end->in[end->n_in] = '\0';
	if (!memmem(end->in, end->n_in, "\r\n\r\n", 4))
		return true;
	end->n_in = 0;
	return http_answer(end, end->in);
}

/* False when the connection is over. */
static bool receive(struct end *end)
{
	static char buf[CHUNK];
	ssize_t n = recv(end->fd, buf, sizeof(buf), 0);

	if (n < 0)
		return errno == EAGAIN;
	if (!n) {
		if (end->kind == SINK)
			answer(end, (char *)&end->count, sizeof(end->count));
		return false;
	}
	if (end->kind == SINK) {
		end->count += n;
		return true;
	}
	return end->kind == HTTP ? http(end, buf, n) : answer(end, buf, n);
}

static void accept_all(const struct end *listener)
{
	int fd;

	while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		bench_no_delay(fd);
		end_new(fd, listener->kind, false);
	}
}

static void handle(struct end *end)
{
	if (end->listens)
		accept_all(end);
	else if (!(end->n_held ? send_held(end) : receive(end)))
		end_close(end);
}

static void serve(const char *service)
{
	const char *port = strchr(service, '=');
	size_t i;

	for (i = 0; port && i < sizeof(kind_names) / sizeof(*kind_names); i++)
		if (strlen(kind_names[i]) == (size_t)(port - service) &&
		    !strncmp(service, kind_names[i], port - service)) {
			end_new(bench_listen(bench_port(port + 1)), i, true);
			return;
		}
	errx(2, "not KIND=PORT: %s", service);
}

int main(int argc, char **argv)
{
	struct epoll_event events[EVENTS];
	int i, n;

	if (argc < 2)
		errx(2, "usage: bench_server KIND=PORT...");
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0)
		err(1, "epoll_create1");
	for (i = 1; i < argc; i++)
		serve(argv[i]);
	for (;;) {
		n = epoll_wait(epoll_fd, events, EVENTS, -1);
		for (i = 0; i < n; i++)
			handle(events[i].data.ptr);
	}
}
