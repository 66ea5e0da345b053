/* SPDX-License-Identifier: Apache-2.0 */
#include "accelerate_probe.skel.h"
#include "accelerate_probe_private.h"
#include "monotonic.h"
#include "scoped.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

enum { MAX_PAIRS = 64, RETRY_US = 500 };

/* ---- making one ----------------------------------------------------------------------------- */

/* For the end of it: an orphaned socket on its way out would keep the namespace. */
static int tune(int fd, struct error *err)
{
	const struct linger reset = {.l_onoff = 1};
	const int on = 1;

	if (setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset)) < 0 ||
	    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0)
		return error_set(err, errno, "set up a socket");
	return 0;
}

static struct timeval timeval_of(int ms)
{
	return (struct timeval){
		.tv_sec = ms / 1000,
		.tv_usec = (suseconds_t)ms % 1000 * 1000,
	};
}

/* To a listener on lo that has room: when this returns, it can be accepted. */
static int connect_to(struct probe_pair *pair, struct error *err)
{
	const struct timeval patience = timeval_of(pair->bench->step_ms);
	struct sockaddr_in own = {0};
	socklen_t size = sizeof(own);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), r;

	pair->fds[CONNECTED] = fd;
	if (fd < 0)
		return error_set(err, errno, "make a socket");
	r = tune(fd, err);
	if (r)
		return r;
	if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)) < 0 ||
	    connect(fd, (const struct sockaddr *)&pair->bench->address,
		    sizeof(pair->bench->address)) < 0)
		/* EINPROGRESS: SO_SNDTIMEO is over. */
		return error_set(err, errno == EINPROGRESS ? ETIMEDOUT : errno, "connect on lo");
	if (getsockname(fd, (struct sockaddr *)&own, &size) < 0 ||
	    fcntl(fd, F_SETFL, O_NONBLOCK) < 0)
		return error_set(err, errno, "set up a connection on lo");
	pair->port = ntohs(own.sin_port);
	return 0;
}

/* What an earlier attempt gave up waiting for may come first, and goes. */
static int accept_from(const struct probe_bench *bench, uint16_t port, int *ret, struct error *err)
{
	struct pollfd listener = {.fd = bench->listener, .events = POLLIN};

	for (unsigned i = 0; i <= bench->n_pairs; i++) {
		struct sockaddr_in peer = {0};
		socklen_t size = sizeof(peer);
		scoped_fd int fd = -1;

		poll(&listener, 1, bench->step_ms);
		fd = accept4(bench->listener, (struct sockaddr *)&peer, &size,
			     SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0)
			return error_set(err, errno == EAGAIN ? ETIMEDOUT : errno,
					 "accept a connection on lo");
		if (ntohs(peer.sin_port) == port) {
			*ret = take_fd(&fd);
			return 0;
		}
	}
	return error_set(err, ETIMEDOUT, "accept a connection on lo");
}

int probe_pair_connect(struct probe_pair *ret, struct probe_bench *bench, struct error *err)
{
	int r;

	*ret = (struct probe_pair){.bench = bench, .fds = {-1, -1}};
	if (bench->n_pairs == MAX_PAIRS)
		return error_set(err, E2BIG, "no room for another connection");
	ret->first_slot = N_SIDES * bench->n_pairs++;
	r = connect_to(ret, err);
	if (r)
		return r;
	r = accept_from(bench, ret->port, &ret->fds[ACCEPTED], err);
	return r ? r : tune(ret->fds[ACCEPTED], err);
}

int probe_pair_insert(const struct probe_pair *pair, struct error *err)
{
	struct accelerate_probe_bpf *bpf = pair->bench->bpf;
	int map = bpf_map__fd(bpf->maps.probe_sockets);

	for (uint32_t side = 0; side < N_SIDES; side++) {
		const uint32_t slot = pair->first_slot + side;

		if (bpf_map_update_elem(map, &slot, &pair->fds[side], BPF_ANY))
			return error_set(err, errno, "put a socket into a sockmap");
	}
	bpf->bss->first_slot = pair->first_slot;
	bpf->bss->connected_port = pair->port;
	return 0;
}

int probe_pair_open(struct probe_pair *ret, struct probe_bench *bench, struct error *err)
{
	int r = probe_pair_connect(ret, bench, err);

	return r ? r : probe_pair_insert(ret, err);
}

int probe_pair_remove(const struct probe_pair *pair, enum probe_side side, struct error *err)
{
	const uint32_t slot = pair->first_slot + side;

	if (bpf_map_delete_elem(bpf_map__fd(pair->bench->bpf->maps.probe_sockets), &slot))
		return error_set(err, errno, "remove a socket from a sockmap");
	return 0;
}

void probe_pair_close(struct probe_pair *pair)
{
	scoped_close(&pair->fds[CONNECTED]);
	scoped_close(&pair->fds[ACCEPTED]);
}

/* ---- using it ------------------------------------------------------------------------------- */

void probe_choose(const struct probe_pair *pair, enum probe_side side, enum probe_way way)
{
	pair->bench->bpf->bss->short_way[side] = way == THE_SHORT_WAY;
}

int probe_say(const struct probe_pair *pair, enum probe_side side, enum probe_way way,
	      const char *text, struct error *err)
{
	size_t size = strlen(text);
	ssize_t n;

	probe_choose(pair, side, way);
	n = send(pair->fds[side], text, size, MSG_DONTWAIT | MSG_NOSIGNAL);
	if (n < 0)
		return error_set(err, errno, "send %zu bytes", size);
	if ((size_t)n != size)
		return error_set(err, EIO, "sent %zd of %zu bytes", n, size);
	return 0;
}

/* As poll(). */
static int await_until(int fd, short events, int64_t until_ms)
{
	struct pollfd pollfd = {.fd = fd, .events = events};

	for (;;) {
		int64_t left = until_ms - monotonic_ms();
		int n = poll(&pollfd, 1, left > 0 ? (int)left : 0);

		if (n > 0 && !(pollfd.revents & events)) {
			/* An end that nobody asked about, which poll() reports at once. */
			if (left <= 0)
				return 0;
			usleep(RETRY_US);
			continue;
		}
		if (n >= 0 || errno != EINTR)
			return n;
	}
}

int probe_await(const struct probe_pair *pair, enum probe_side side, short events,
		struct error *err)
{
	int n = await_until(pair->fds[side], events, monotonic_ms() + pair->bench->step_ms);

	if (n < 0)
		return error_set(err, errno, "poll");
	return n ? 0 : error_set(err, ETIMEDOUT, "poll() does not tell what happened");
}

int probe_hear(const struct probe_pair *pair, enum probe_side side, size_t n, char *ret,
	       struct error *err)
{
	int64_t until = monotonic_ms() + pair->bench->step_ms;
	char text[PROBE_TEXT_MAX + 1] = "";
	size_t heard = 0;

	while (heard < n) {
		bool late = monotonic_ms() >= until; /* known before the last look */
		ssize_t got = recv(pair->fds[side], text + heard, n - heard, MSG_DONTWAIT);

		if (got > 0) {
			heard += (size_t)got;
			continue;
		}
		if (got == 0 || errno == ECONNRESET)
			break;
		if (errno != EAGAIN && errno != EINTR)
			return error_set(err, errno, "receive");
		/* On some kernels it is readable although there is nothing to read. */
		if (late)
			return error_set(err, ETIMEDOUT, "read %s, and then nothing",
					 heard ? text : "nothing");
		if (await_until(pair->fds[side], POLLIN, until) < 0)
			return error_set(err, errno, "poll");
	}
	memcpy(ret, text, heard + 1);
	return 0;
}

int probe_close(struct probe_pair *pair, enum probe_side side, enum probe_close how,
		struct error *err)
{
	const struct linger orderly = {0};

	if (how == CLOSE_ORDERLY &&
	    setsockopt(pair->fds[side], SOL_SOCKET, SO_LINGER, &orderly, sizeof(orderly)) < 0)
		return error_set(err, errno, "SO_LINGER");
	close(pair->fds[side]);
	pair->fds[side] = -1;
	return 0;
}

int probe_make_blocking(const struct probe_pair *pair, enum probe_side side, int timeout_ms,
			struct error *err)
{
	const struct timeval timeout = timeval_of(timeout_ms);

	if (setsockopt(pair->fds[side], SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)) < 0 ||
	    fcntl(pair->fds[side], F_SETFL, 0) < 0)
		return error_set(err, errno, "make a socket blocking");
	return 0;
}

int probe_tell(struct probe_bench *bench, enum accelerate_test test, bool as_tcp, const char *fmt,
	       ...)
{
	struct accelerate_result *result = &bench->probe->results[test];
	va_list args;

	result->finding = as_tcp ? FINDING_AS_TCP : FINDING_DIFFERS;
	va_start(args, fmt);
	vsnprintf(result->detail, sizeof(result->detail), fmt, args);
	va_end(args);
	return 0;
}
