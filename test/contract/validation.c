/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The self-test of Istio's init container istio-validation, which every CNI-mode pod runs before
 * its application: listen on loopback ports 15001 and 15006, connect from loopback to
 * 127.0.0.6:15002 (::6 for IPv6), expect the connection on 15006 and expect SO_ORIGINAL_DST to give
 * port 15002. Run as the proxy's uid.
 *
 *   validation 4|6
 *
 * Exit code 0, or 126 as Istio's when redirection does not work, with the reason on standard error.
 */
#include "endpoint.h"

#include <errno.h>
#include <linux/netfilter_ipv4.h>
#include <poll.h>
#include <unistd.h>

enum { OUTBOUND = 15001, INBOUND = 15006, PROBED = 15002, PATIENCE_S = 5, NOT_REDIRECTED = 126 };

static int open_at(const char *address, unsigned port)
{
	union endpoint at;
	int on = 1, fd;

	endpoint_from_address(address, port, &at);
	fd = socket(at.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
	    bind(fd, &at.any, endpoint_size(&at)) < 0)
		err(1, "bind %s:%u", address, port);
	return fd;
}

static int listen_at(const char *address, unsigned port)
{
	int fd = open_at(address, port);

	if (listen(fd, 128) < 0)
		err(1, "listen %s:%u", address, port);
	return fd;
}

static int accept_one(const int listeners[2])
{
	struct pollfd wait[2] = {{.fd = listeners[0], .events = POLLIN},
				 {.fd = listeners[1], .events = POLLIN}};

	if (poll(wait, 2, PATIENCE_S * 1000) <= 0)
		errx(NOT_REDIRECTED, "no connection within %d s", PATIENCE_S);
	if (wait[0].revents)
		errx(NOT_REDIRECTED, "the connection arrived on port %d", OUTBOUND);
	return accept(listeners[1], NULL, NULL);
}

int main(int argc, char **argv)
{
	bool v6 = argc == 2 && !strcmp(argv[1], "6");
	const char *loopback = v6 ? "::1" : "127.0.0.1";
	struct timeval patience = {.tv_sec = PATIENCE_S};
	int listeners[2] = {listen_at(loopback, OUTBOUND), listen_at(loopback, INBOUND)};
	int client = open_at(loopback, 0), accepted;
	union endpoint to, original;
	socklen_t size;

	endpoint_from_address(v6 ? "::6" : "127.0.0.6", PROBED, &to);
	setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	if (connect(client, &to.any, endpoint_size(&to)) < 0)
		err(NOT_REDIRECTED, "connect to port %d", PROBED);
	accepted = accept_one(listeners);
	size = v6 ? sizeof(original.v6) : sizeof(original.v4);
	if (getsockopt(accepted, v6 ? SOL_IPV6 : SOL_IP, SO_ORIGINAL_DST, &original, &size) < 0)
		err(NOT_REDIRECTED, "SO_ORIGINAL_DST");
	if (endpoint_port(&original) != PROBED)
		errx(NOT_REDIRECTED, "the original port is %u, not %d", endpoint_port(&original),
		     PROBED);
	return 0;
}
