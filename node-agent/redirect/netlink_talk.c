/* SPDX-License-Identifier: Apache-2.0 */
#include "netlink_talk.h"

#include "monotonic.h"
#include "scoped.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>

enum { RECEIVE_BUFFER_BYTES = 64 * 1024, DEADLINE_MS = 2000, DUMP_ATTEMPTS = 5 };

#define scoped_mnl scoped(mnl_close_at)
static void mnl_close_at(struct mnl_socket **nl)
{
	if (*nl)
		mnl_socket_close(*nl);
}

struct nlmsghdr *netlink_request_start(struct netlink_request *request, uint16_t type,
				       uint16_t flags, size_t extra_size, void *ret_extra)
{
	struct nlmsghdr *nlh = mnl_nlmsg_put_header(request->bytes);

	nlh->nlmsg_type = type;
	nlh->nlmsg_flags = NLM_F_REQUEST | flags;
	nlh->nlmsg_seq = 1;
	*(void **)ret_extra = mnl_nlmsg_put_extra_header(nlh, extra_size);
	return nlh;
}

static int open_socket(int bus, struct mnl_socket **ret)
{
	struct mnl_socket *nl = mnl_socket_open2(bus, SOCK_CLOEXEC);
	struct timeval timeout = {.tv_sec = DEADLINE_MS / 1000};

	if (!nl)
		return -errno;
	if (mnl_socket_bind(nl, 0, MNL_SOCKET_AUTOPID) < 0 ||
	    setsockopt(mnl_socket_get_fd(nl), SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout))) {
		int code = errno;

		mnl_socket_close(nl);
		return -code;
	}
	*ret = nl;
	return 0;
}

int netlink_talk(int bus, const struct nlmsghdr *request, mnl_cb_t fn, void *arg)
{
	int64_t deadline = monotonic_ms() + DEADLINE_MS;
	scoped_mnl struct mnl_socket *nl = NULL;
	scoped_free char *buf = malloc(RECEIVE_BUFFER_BYTES);
	unsigned int port;
	int r;

	if (!buf)
		return -ENOMEM;
	r = open_socket(bus, &nl);
	if (r)
		return r;
	port = mnl_socket_get_portid(nl);
	if (mnl_socket_sendto(nl, request, request->nlmsg_len) < 0)
		return -errno;
	do {
		ssize_t n = mnl_socket_recvfrom(nl, buf, RECEIVE_BUFFER_BYTES);

		if (n < 0)
			return errno == EAGAIN ? -ETIMEDOUT : -errno;
		r = mnl_cb_run(buf, (size_t)n, request->nlmsg_seq, port, fn, arg);
		if (r < 0)
			return -errno;
		if (r > MNL_CB_STOP && monotonic_ms() > deadline)
			return -ETIMEDOUT;
	} while (r > MNL_CB_STOP);
	return 0;
}

int netlink_dump(int bus, const struct nlmsghdr *request, mnl_cb_t fn, void (*reset)(void *arg),
		 void *arg)
{
	int r = -EINTR;

	for (int i = 0; i < DUMP_ATTEMPTS && r == -EINTR; i++) {
		if (reset)
			reset(arg);
		r = netlink_talk(bus, request, fn, arg);
	}
	return r;
}
