/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Copies between two connections as Go's io.Copy does between two TCPConn: splice_copier PORT
 * ADDRESS PORT. Non-blocking sockets registered once and edge-triggered; a direction splices from
 * socket to pipe until that says EAGAIN, then from pipe to socket, and only then waits.
 */
#include "bench_net.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>

enum { AT_ONCE = 1 << 20 };

struct connection {
	int client, server;
	int ends; /* directions that have ended */
};

struct direction {
	struct connection *connection;
	int from, to;
};

static union bench_address target;

static int watch(int fd, uint32_t events)
{
	struct epoll_event e = {.events = events | EPOLLRDHUP | EPOLLET};
	int epoll = epoll_create1(EPOLL_CLOEXEC);

	if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e))
		err(1, "epoll");
	return epoll;
}

/* -1: an error, or nothing for too long. */
static ssize_t move(int from, int to, size_t n, int epoll)
{
	struct epoll_event e;

	for (;;) {
		ssize_t got = splice(from, NULL, to, NULL, n, SPLICE_F_NONBLOCK | SPLICE_F_MOVE);

		if (got >= 0 || errno != EAGAIN)
			return got;
		if (epoll_wait(epoll, &e, 1, 60000) != 1)
			return -1;
	}
}

static void *copy(void *arg)
{
	struct direction *d = arg;
	int readable = watch(d->from, EPOLLIN), writable = watch(d->to, EPOLLOUT);
	ssize_t in, out;
	int tube[2];

	if (pipe2(tube, O_CLOEXEC | O_NONBLOCK))
		err(1, "pipe");
	while ((in = move(d->from, tube[1], AT_ONCE, readable)) > 0) {
		for (out = 0; in; in -= out) {
			out = move(tube[0], d->to, in, writable);
			if (out <= 0)
				goto end;
		}
	}
end:
	shutdown(d->to, SHUT_WR);
	close(tube[0]);
	close(tube[1]);
	close(readable);
	close(writable);
	if (__atomic_add_fetch(&d->connection->ends, 1, __ATOMIC_ACQ_REL) == 2) {
		close(d->connection->client);
		close(d->connection->server);
		free(d->connection);
	}
	free(d);
	return NULL;
}

static void start(struct connection *c, int from, int to)
{
	struct direction *d = malloc(sizeof(*d));
	pthread_attr_t attr;
	pthread_t thread;

	if (!d)
		err(1, "malloc");
	*d = (struct direction){.connection = c, .from = from, .to = to};
	pthread_attr_init(&attr);
	pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
	pthread_attr_setstacksize(&attr, 256 << 10);
	if (pthread_create(&thread, &attr, copy, d))
		errx(1, "no thread");
	pthread_attr_destroy(&attr);
}

static void serve(int client)
{
	int fd = socket(target.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	struct connection *c = calloc(1, sizeof(*c));
	struct pollfd p = {.fd = fd, .events = POLLOUT};
	int error = 0;
	socklen_t len = sizeof(error);

	if (fd < 0 || !c)
		err(1, "socket");
	bench_no_delay(client);
	bench_no_delay(fd);
	if (connect(fd, &target.any, bench_address_size(&target)) && errno != EINPROGRESS)
		err(1, "connect");
	if (poll(&p, 1, 10000) != 1 || getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) ||
	    error) {
		warnx("connect: %s", strerror(error));
		close(fd);
		close(client);
		free(c);
		return;
	}
	*c = (struct connection){.client = client, .server = fd};
	start(c, client, fd);
	start(c, fd, client);
}

int main(int argc, char **argv)
{
	int listener;

	if (argc != 4)
		errx(2, "usage: splice_copier PORT ADDRESS PORT");
	signal(SIGPIPE, SIG_IGN);
	listener = bench_listen(bench_port(argv[1]));
	target = bench_address(argv[2], bench_port(argv[3]));
	for (;;) {
		int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);

		if (client >= 0)
			serve(client);
		else if (errno != EAGAIN)
			err(1, "accept");
		else
			poll(&(struct pollfd){.fd = listener, .events = POLLIN}, 1, -1);
	}
}
