/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_HTTP_STREAM_H
#define SOCKMESH_HTTP_STREAM_H

/*
 * As much HTTP/1.1 as the test programs need, over a socket that is read in whichever way the
 * program is there to show. Bodies are coded by position and by a seed, so that a byte that is
 * lost, doubled, out of place or another request's is seen.
 */
#include <errno.h>
#include <poll.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>

enum { HTTP_BODY_MAX = 4 << 20, HTTP_LINE_MAX = 512 };

struct http_stream {
	int fd;
	/* Bytes, 0 at the end, or -errno. */
	ssize_t (*receive)(struct http_stream *, void *, size_t);
	int timeout_ms;
	bool exact;	    /* ask for as many bytes as are needed, never for more */
	int pipe[2], epoll; /* for receive() */
	size_t start, end;
	char data[65536];
};

struct http_message {
	char first[HTTP_LINE_MAX];
	long long length; /* -1: not said */
	bool chunked, close;
};

static inline unsigned char http_byte(size_t position, uint32_t seed)
{
	return position ^ (position >> 8) * 31 ^ (position >> 16) * 57 ^ seed * 101;
}

static inline void http_fill(unsigned char *body, size_t size, uint32_t seed)
{
	for (size_t i = 0; i < size; i++)
		body[i] = http_byte(i, seed);
}

static inline int http_wait(const struct http_stream *s, short events)
{
	struct pollfd p = {.fd = s->fd, .events = events};
	int n = poll(&p, 1, s->timeout_ms);

	if (n < 0)
		return -errno;
	return n ? 0 : -ETIMEDOUT;
}

static inline ssize_t http_take(struct http_stream *s, void *to, size_t size)
{
	size_t n = s->end - s->start;

	if (!n && (s->exact || size >= sizeof(s->data)))
		return s->receive(s, to, size);
	if (!n) {
		ssize_t got = s->receive(s, s->data, sizeof(s->data));

		if (got <= 0)
			return got;
		s->start = 0;
		s->end = n = got;
	}
	if (n > size)
		n = size;
	memcpy(to, s->data + s->start, n);
	s->start += n;
	return n;
}

/* Without its CR LF. -ENODATA: the end came before the first byte. */
static inline int http_line(struct http_stream *s, char line[static HTTP_LINE_MAX])
{
	size_t n = 0;

	while (n < HTTP_LINE_MAX - 1) {
		ssize_t got = http_take(s, line + n, 1);

		if (got < 0)
			return got;
		if (!got)
			return n ? -EPIPE : -ENODATA;
		if (line[n] == '\n') {
			line[n && line[n - 1] == '\r' ? n - 1 : n] = 0;
			return 0;
		}
		n++;
	}
	return -EMSGSIZE;
}

static inline int http_head(struct http_stream *s, struct http_message *ret)
{
	struct http_message m = {.length = -1};
	char line[HTTP_LINE_MAX];
	int rc = http_line(s, m.first);

	while (!rc) {
		rc = http_line(s, line);
		if (rc)
			return rc == -ENODATA ? -EPIPE : rc;
		if (!*line) {
			*ret = m;
			return 0;
		}
		if (!strncasecmp(line, "content-length:", 15))
			m.length = strtoll(line + 15, NULL, 10);
		else if (!strncasecmp(line, "transfer-encoding:", 18))
			m.chunked = strcasestr(line, "chunked");
		else if (!strncasecmp(line, "connection:", 11))
			m.close = strcasestr(line, "close");
	}
	return rc;
}

static inline int http_part(struct http_stream *s, unsigned char *body, size_t size)
{
	for (size_t at = 0; at < size;) {
		ssize_t got = http_take(s, body + at, size - at);

		if (got < 0)
			return got;
		if (!got)
			return -EPIPE;
		at += got;
	}
	return 0;
}

/* Into `body`, of HTTP_BODY_MAX bytes. */
static inline int http_body(struct http_stream *s, const struct http_message *m,
			    unsigned char *body, size_t *ret_size)
{
	char line[HTTP_LINE_MAX];
	size_t at = 0, n;
	int rc;

	if (!m->chunked) {
		n = m->length < 0 ? 0 : m->length;
		if (n > HTTP_BODY_MAX)
			return -EMSGSIZE;
		rc = http_part(s, body, n);
		if (!rc)
			*ret_size = n;
		return rc;
	}
	do {
		rc = http_line(s, line);
		if (rc)
			return rc == -ENODATA ? -EPIPE : rc;
		n = strtoul(line, NULL, 16);
		if (n > HTTP_BODY_MAX - at)
			return -EMSGSIZE;
		rc = http_part(s, body + at, n);
		if (!rc)
			rc = http_line(s, line); /* the chunk's end, or that of the trailer */
		if (rc)
			return rc;
		at += n;
	} while (n);
	*ret_size = at;
	return 0;
}

static inline int http_send(struct http_stream *s, const void *data, size_t size, int flags)
{
	for (size_t at = 0; at < size;) {
		ssize_t n = send(s->fd, (const char *)data + at, size - at, flags | MSG_NOSIGNAL);
		int rc;

		if (n >= 0) {
			at += n;
			continue;
		}
		if (errno != EAGAIN)
			return -errno;
		rc = http_wait(s, POLLOUT);
		if (rc)
			return rc;
	}
	return 0;
}

/* In chunks that are no power of two, each sent by itself. */
static inline int http_send_chunks(struct http_stream *s, const unsigned char *body, size_t size)
{
	enum { CHUNK = 5000 };
	char line[32 + CHUNK];
	int rc = 0;

	for (size_t at = 0; at < size && !rc;) {
		size_t n = size - at < CHUNK ? size - at : CHUNK;
		int len = sprintf(line, "%zx\r\n", n);

		memcpy(line + len, body + at, n);
		memcpy(line + len + n, "\r\n", 2);
		rc = http_send(s, line, len + n + 2, 0);
		at += n;
	}
	return rc ? rc : http_send(s, "0\r\n\r\n", 5, 0);
}

#endif
