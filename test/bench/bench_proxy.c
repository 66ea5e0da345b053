/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The least that a sidecar does, so that redirection is what is measured: one thread, epoll,
 * accepts on the outbound and the inbound port, asks SO_ORIGINAL_DST, connects there, copies both
 * ways. The inbound side connects from 127.0.0.6 or ::6 as Envoy's passthrough clusters do.
 * It loses nothing: an end that has hung up may still have to be read, and one that cannot be
 * written to is read all the same.
 *
 * Usage: bench_proxy OUTBOUND-PORT INBOUND-PORT
 */
#include "bench_net.h"

#include <linux/netfilter_ipv4.h>
#include <linux/netfilter_ipv6/ip6_tables.h>
#include <stdio.h>
#include <sys/epoll.h>

enum { CHUNK = 65536, EVENTS = 64 };

/* One end of a proxied connection, or a listener when it has no peer. */
struct end {
	int fd;
	uint16_t listens; /* port; 0 for connections */
	struct end *peer;
	bool connecting, eof, closed, paused, watched;
	char *held; /* read from the peer, not yet written here */
	size_t n_held;
	struct end *next_dead;
};

static int epoll_fd;
static uint16_t inbound_port;
static struct end *dead; /* freed after the batch of events that may still name them */

static void watch(struct end *end, int op)
{
	struct epoll_event event = {.data.ptr = end};

	if (end->listens || (!end->paused && !end->eof))
		event.events |= EPOLLIN;
	if (end->connecting || end->n_held)
		event.events |= EPOLLOUT;
	if (op == EPOLL_CTL_MOD && !end->watched)
		op = EPOLL_CTL_ADD;
	end->watched = true;
	if (epoll_ctl(epoll_fd, op, end->fd, &event))
		err(1, "epoll_ctl");
}

/* Hung up, which epoll says again and again, and there is nothing to do about it now. */
static void unwatch(struct end *end)
{
	end->watched = false;
	if (epoll_ctl(epoll_fd, EPOLL_CTL_DEL, end->fd, NULL))
		err(1, "epoll_ctl");
}

static struct end *end_new(int fd, uint16_t listens)
{
	struct end *end = calloc(1, sizeof(*end));

	if (!end)
		err(1, "calloc");
	end->fd = fd;
	end->listens = listens;
	return end;
}

static void end_close(struct end *end)
{
	if (end->closed)
		return;
	end->closed = true;
	close(end->fd);
	end->next_dead = dead;
	dead = end;
}

static void pair_close(struct end *end)
{
	end_close(end->peer);
	end_close(end);
}

static void bury(void)
{
	struct end *end;

	while ((end = dead)) {
		dead = end->next_dead;
		free(end->held);
		free(end);
	}
}

static bool original_destination(int fd, union bench_address *ret)
{
	socklen_t size = sizeof(ret->v4);

	if (!getsockopt(fd, SOL_IP, SO_ORIGINAL_DST, &ret->v4, &size))
		return true;
	size = sizeof(ret->v6);
	return !getsockopt(fd, SOL_IPV6, IP6T_SO_ORIGINAL_DST, &ret->v6, &size);
}

/* Connects to the original destination; -1 when that cannot even begin. */
static int connect_on(const union bench_address *to, bool inbound)
{
	int fd = socket(to->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	union bench_address from =
		bench_address(to->any.sa_family == AF_INET6 ? "::6" : "127.0.0.6", 0);
	int on = 1;

	if (fd < 0)
		return -1;
	bench_no_delay(fd);
	if (inbound && (setsockopt(fd, SOL_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof(on)) ||
			bind(fd, &from.any, bench_address_size(&from))))
		warn("bind the passthrough source");
	if (connect(fd, &to->any, bench_address_size(to)) && errno != EINPROGRESS) {
		close(fd);
		return -1;
	}
	return fd;
}

static void accept_one(struct end *listener, int fd)
{
	union bench_address to = {0};
	struct end *client, *server;
	int server_fd = -1;

	bench_no_delay(fd);
	if (original_destination(fd, &to))
		server_fd = connect_on(&to, listener->listens == inbound_port);
	if (server_fd < 0) {
		close(fd);
		return;
	}
	client = end_new(fd, 0);
	server = end_new(server_fd, 0);
	client->peer = server;
	server->peer = client;
	server->connecting = true;
	client->paused = true; /* until the server side is connected */
	watch(client, EPOLL_CTL_ADD);
	watch(server, EPOLL_CTL_ADD);
}

static void accept_all(struct end *listener)
{
	int fd;

	while ((fd = accept4(listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
		accept_one(listener, fd);
}

/* What `to` cannot take now is held, and nothing more is read for it. */
static bool forward(struct end *from, struct end *to, const char *data, size_t size)
{
	ssize_t sent = send(to->fd, data, size, MSG_NOSIGNAL);

	if (sent < 0 && errno != EAGAIN)
		return false;
	if (sent < 0)
		sent = 0;
	if ((size_t)sent == size)
		return true;
	to->held = malloc(size - sent);
	if (!to->held)
		err(1, "malloc");
	to->n_held = size - sent;
	memcpy(to->held, data + sent, to->n_held);
	from->paused = true;
	watch(to, EPOLL_CTL_MOD);
	watch(from, EPOLL_CTL_MOD);
	return true;
}

static void readable(struct end *end)
{
	static char buf[CHUNK];
	ssize_t n = recv(end->fd, buf, sizeof(buf), 0);

	if (n < 0 && errno == EAGAIN)
		return;
	if (n < 0 || (n > 0 && !forward(end, end->peer, buf, n))) {
		pair_close(end);
		return;
	}
	if (n)
		return;
	end->eof = true;
	if (end->peer->eof) {
		pair_close(end);
		return;
	}
	shutdown(end->peer->fd, SHUT_WR);
	watch(end, EPOLL_CTL_MOD);
}

static void writable(struct end *end)
{
	size_t size = end->n_held;
	char *data = end->held;
	int error = 0;
	socklen_t error_size = sizeof(error);

	if (end->connecting) {
		getsockopt(end->fd, SOL_SOCKET, SO_ERROR, &error, &error_size);
		end->connecting = false;
	}
	end->held = NULL;
	end->n_held = 0;
	end->peer->paused = false;
	if (error || (size && !forward(end->peer, end, data, size))) {
		free(data);
		pair_close(end);
		return;
	}
	free(data);
	watch(end, EPOLL_CTL_MOD);
	watch(end->peer, EPOLL_CTL_MOD);
}

static void handle(struct end *end, uint32_t events)
{
	if (end->closed)
		return;
	if (end->listens) {
		accept_all(end);
		return;
	}
	if ((end->connecting || end->n_held) && (events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) {
		writable(end);
		return;
	}
	/* What it cannot take must not keep us from reading it: its other end may do the same. */
	if (end->connecting || !(events & (EPOLLIN | EPOLLERR | EPOLLHUP)))
		return;
	/* A pause is over when the peer is writable; then it is seen again. */
	if (!end->paused && (!end->eof || (events & EPOLLERR)))
		readable(end);
	else if (!end->n_held)
		unwatch(end);
}

int main(int argc, char **argv)
{
	struct epoll_event events[EVENTS];
	int i, n;

	if (argc != 3)
		errx(2, "usage: bench_proxy OUTBOUND-PORT INBOUND-PORT");
	inbound_port = bench_port(argv[2]);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0)
		err(1, "epoll_create1");
	for (i = 1; i <= 2; i++) {
		uint16_t port = bench_port(argv[i]);

		watch(end_new(bench_listen(port), port), EPOLL_CTL_ADD);
	}
	for (;;) {
		n = epoll_wait(epoll_fd, events, EVENTS, -1);
		for (i = 0; i < n; i++)
			handle(events[i].data.ptr, events[i].events);
		bury();
	}
}
