/* SPDX-License-Identifier: Apache-2.0 */

/* Echo server: one thread, epoll. Usage: bench_server PORT */
#include "bench_net.h"

#include <sys/epoll.h>

enum { CHUNK = 65536, EVENTS = 64 };

static void watch(int epoll, int fd)
{
	struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		err(1, "epoll_ctl");
}

static void accept_all(int epoll, int listener)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
		bench_no_delay(fd);
		watch(epoll, fd);
	}
}

/*
 * Sockets are blocking and level-triggered: one read for each wake-up; a write blocks only while
 * the client does not read, which the benchmark's client never does.
 */
static void echo(int fd)
{
	static char buf[CHUNK];
	ssize_t n = recv(fd, buf, sizeof(buf), MSG_DONTWAIT);
	ssize_t sent, done = 0;

	if (n < 0 && errno == EAGAIN)
		return;
	for (; n > 0 && done < n; done += sent) {
		sent = send(fd, buf + done, n - done, MSG_NOSIGNAL);
		if (sent < 0)
			break;
	}
	if (n <= 0 || done < n)
		close(fd);
}

int main(int argc, char **argv)
{
	struct epoll_event events[EVENTS];
	int epoll, listener, i, n;

	if (argc != 2)
		errx(2, "usage: bench_server PORT");
	listener = bench_listen(bench_port(argv[1]));
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0)
		err(1, "epoll_create1");
	watch(epoll, listener);
	for (;;) {
		n = epoll_wait(epoll, events, EVENTS, -1);
		for (i = 0; i < n; i++) {
			if (events[i].data.fd == listener)
				accept_all(epoll, listener);
			else
				echo(events[i].data.fd);
		}
	}
}
