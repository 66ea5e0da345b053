/* SPDX-License-Identifier: Apache-2.0 */

/*
 * An application's server: http_server [--blocking] [--sendfile] PORT. Sockets that it accepts are
 * non-blocking unless it is told otherwise; a thread for each.
 *
 *	GET .../bytes/SIZE/SEED      SIZE bytes, see http_stream.h
 *	GET .../chunked/SIZE/SEED    the same in chunks
 *	POST .../echo/SIZE/SEED      the body that came
 */
#include "bench_net.h"
#include "http_stream.h"

#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/sendfile.h>

static bool blocking, with_sendfile;

static ssize_t receive(struct http_stream *s, void *to, size_t size)
{
	for (;;) {
		ssize_t n = recv(s->fd, to, size, 0);
		int rc;

		if (n >= 0)
			return n;
		/* A blocking socket has no business to say this. */
		if (errno != EAGAIN || blocking)
			return -errno;
		rc = http_wait(s, POLLIN);
		if (rc)
			return rc;
	}
}

static int send_file(struct http_stream *s, const unsigned char *body, size_t size)
{
	int rc = 0, fd = memfd_create("body", MFD_CLOEXEC);
	off_t at = 0;

	if (fd < 0 || pwrite(fd, body, size, 0) != (ssize_t)size)
		err(1, "memfd");
	while ((size_t)at < size && !rc) {
		ssize_t n = sendfile(s->fd, fd, &at, size - at);

		if (n < 0)
			rc = errno == EAGAIN ? http_wait(s, POLLOUT) : -errno;
	}
	close(fd);
	return rc;
}

static int answer(struct http_stream *s, const unsigned char *body, size_t size, bool chunked)
{
	char head[128];
	int len, rc;

	if (chunked) {
		len = sprintf(head, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
		rc = http_send(s, head, len, MSG_MORE);
		return rc ? rc : http_send_chunks(s, body, size);
	}
	len = sprintf(head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", size);
	rc = http_send(s, head, len, size ? MSG_MORE : 0);
	if (rc)
		return rc;
	return with_sendfile ? send_file(s, body, size) : http_send(s, body, size, 0);
}

static int serve_one(struct http_stream *s, unsigned char *body, bool *ret_close)
{
	struct http_message m;
	unsigned size, seed;
	const char *what;
	size_t n;
	int rc = http_head(s, &m);

	if (!rc)
		rc = http_body(s, &m, body, &n);
	if (rc)
		return rc;
	*ret_close = m.close;
	if (strstr(m.first, "/echo/"))
		return answer(s, body, n, m.chunked);
	what = strstr(m.first, "/bytes/");
	if (!what)
		what = strstr(m.first, "/chunked/");
	if (!what || sscanf(strchr(what + 1, '/'), "/%u/%u", &size, &seed) != 2 ||
	    size > HTTP_BODY_MAX)
		return -EPROTO;
	http_fill(body, size, seed);
	return answer(s, body, size, what[1] == 'c');
}

static void *serve(void *arg)
{
	struct http_stream *s = arg;
	unsigned char *body = malloc(HTTP_BODY_MAX);
	bool last = false;
	int rc = body ? 0 : -ENOMEM;

	while (!rc && !last)
		rc = serve_one(s, body, &last);
	/* The end between requests, and proxies that drop idle connections, are ordinary. */
	if (rc && rc != -ENODATA && rc != -ECONNRESET)
		fprintf(stderr, "connection ended: %s\n", strerror(-rc));
	close(s->fd);
	free(body);
	free(s);
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_attr_t attr;
	int listener;

	for (; argc > 2; argc--, argv++) {
		if (!strcmp(argv[1], "--blocking"))
			blocking = true;
		else if (!strcmp(argv[1], "--sendfile"))
			with_sendfile = true;
		else
			errx(2, "unknown option %s", argv[1]);
	}
	if (argc != 2)
		errx(2, "usage: http_server [--blocking] [--sendfile] PORT");
	signal(SIGPIPE, SIG_IGN);
	listener = bench_listen(bench_port(argv[1]));
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, 256 << 10);
	for (;;) {
		struct http_stream *s;
		pthread_t thread;
		struct pollfd p = {.fd = listener, .events = POLLIN};
		int fd = accept4(listener, NULL, NULL,
				 SOCK_CLOEXEC | (blocking ? 0 : SOCK_NONBLOCK));

		if (fd < 0 && errno == EAGAIN) {
			poll(&p, 1, -1);
			continue;
		}
		s = calloc(1, sizeof(*s));
		if (fd < 0 || !s)
			err(1, "accept");
		bench_no_delay(fd);
		s->fd = fd;
		s->receive = receive;
		s->timeout_ms = 60000;
		if (pthread_create(&thread, &attr, serve, s))
			errx(1, "no thread");
	}
}
