/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Who was reached, and for whom it was meant.
 *
 *	who serve PORT=NAME...	on both families; each connection gets one line and is closed:
 *				NAME original=ADDRESS:PORT peer=ADDRESS
 *	who dial ADDRESS PORT	prints the line that whoever is reached sends
 *
 * `original` is SO_ORIGINAL_DST, or `none` when the kernel has no answer.
 */
#include "bench_net.h"

#include <linux/netfilter_ipv4.h>
#include <linux/netfilter_ipv6/ip6_tables.h>
#include <poll.h>
#include <stdio.h>

enum { LISTENERS_MAX = 8, LINE_MAX_ = 256, DIAL_LIMIT_S = 5, TEXT_MAX = INET6_ADDRSTRLEN + 10 };

/* IPv4 peers of a dual-stack socket are shown, and asked for, as IPv4. */
static bool is_ipv4(const union bench_address *a)
{
	return a->any.sa_family == AF_INET || IN6_IS_ADDR_V4MAPPED(&a->v6.sin6_addr);
}

static const char *address_text(const union bench_address *a, char text[TEXT_MAX])
{
	char host[INET6_ADDRSTRLEN];

	if (a->any.sa_family == AF_INET)
		inet_ntop(AF_INET, &a->v4.sin_addr, host, sizeof(host));
	else if (is_ipv4(a))
		inet_ntop(AF_INET, &a->v6.sin6_addr.s6_addr[12], host, sizeof(host));
	else
		inet_ntop(AF_INET6, &a->v6.sin6_addr, host, sizeof(host));
	snprintf(text, TEXT_MAX, "%s", host);
	return text;
}

static void original_text(int fd, bool ipv4, char text[TEXT_MAX])
{
	union bench_address original = {0};
	socklen_t size = ipv4 ? sizeof(original.v4) : sizeof(original.v6);
	char host[TEXT_MAX];
	int failed;

	if (ipv4)
		failed = getsockopt(fd, SOL_IP, SO_ORIGINAL_DST, &original, &size);
	else
		failed = getsockopt(fd, SOL_IPV6, IP6T_SO_ORIGINAL_DST, &original, &size);
	if (failed)
		snprintf(text, TEXT_MAX, "none");
	else
		snprintf(text, TEXT_MAX, "%.*s:%u", INET6_ADDRSTRLEN, address_text(&original, host),
			 ntohs(ipv4 ? original.v4.sin_port : original.v6.sin6_port));
}

static void answer(int listener, const char *name)
{
	union bench_address peer = {0};
	socklen_t size = sizeof(peer);
	char line[LINE_MAX_], original[TEXT_MAX], from[TEXT_MAX];
	int n, fd = accept4(listener, &peer.any, &size, SOCK_CLOEXEC);

	if (fd < 0)
		return;
	original_text(fd, is_ipv4(&peer), original);
	n = snprintf(line, sizeof(line), "%s original=%s peer=%s\n", name, original,
		     address_text(&peer, from));
	if (send(fd, line, n, MSG_NOSIGNAL) != n)
		warn("send");
	close(fd);
}

static void serve(int n, char **listeners)
{
	struct pollfd fds[LISTENERS_MAX];
	char *names[LISTENERS_MAX];
	int i;

	if (n > LISTENERS_MAX)
		errx(2, "more than %d listeners", LISTENERS_MAX);
	for (i = 0; i < n; i++) {
		names[i] = strchr(listeners[i], '=');
		if (!names[i])
			errx(2, "not PORT=NAME: %s", listeners[i]);
		*names[i]++ = '\0';
		fds[i] = (struct pollfd){bench_listen(bench_port(listeners[i])), POLLIN, 0};
	}
	for (;;) {
		if (poll(fds, n, -1) < 0)
			err(1, "poll");
		for (i = 0; i < n; i++)
			if (fds[i].revents)
				answer(fds[i].fd, names[i]);
	}
}

static void dial(const char *host, uint16_t port)
{
	union bench_address to = bench_address(host, port);
	int fd = socket(to.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct timeval limit = {.tv_sec = DIAL_LIMIT_S};
	char buf[LINE_MAX_];
	ssize_t n;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit)) ||
	    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit)) ||
	    connect(fd, &to.any, bench_address_size(&to)))
		err(1, "connect to %s", host);
	while ((n = recv(fd, buf, sizeof(buf), 0)) > 0)
		fwrite(buf, 1, n, stdout);
	if (n < 0)
		err(1, "receive from %s", host);
}

int main(int argc, char **argv)
{
	if (argc > 2 && !strcmp(argv[1], "serve"))
		serve(argc - 2, argv + 2);
	else if (argc == 4 && !strcmp(argv[1], "dial"))
		dial(argv[2], bench_port(argv[3]));
	else
		errx(2, "usage: who serve PORT=NAME... | who dial ADDRESS PORT");
	return 0;
}
