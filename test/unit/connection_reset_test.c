/* SPDX-License-Identifier: Apache-2.0 */
/* Real connections of a namespace of its own. Needs root and CONFIG_INET_DIAG_DESTROY. */
#include "connection_reset.h"

#include "error.h"
#include "netlink.h"
#include "netns.h"
#include "scoped.h"
#include "test.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MARK = 0x539, MASK = 0xfff };

/*
 * In one namespace, because lo is all it has: a "remote" end has another local address than its
 * peer, which is what tells the pod's connections with others from those with itself.
 */
struct connections {
	uint16_t port;
	int listener;
	int within, foreign, marked; /* the connecting ends */
};

static int lo_up(void)
{
	scoped_fd int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq request = {.ifr_name = "lo"};
	struct sockaddr_in *address = (struct sockaddr_in *)&request.ifr_addr;

	if (ioctl(fd, SIOCGIFFLAGS, &request) < 0)
		return -errno;
	request.ifr_flags |= IFF_UP;
	if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
		return -errno;
	memset(&request, 0, sizeof(request));
	strcpy(request.ifr_name, "lo:1");
	address->sin_family = AF_INET;
	address->sin_addr.s_addr = inet_addr("10.9.9.1");
	if (ioctl(fd, SIOCSIFADDR, &request) < 0)
		return -errno;
	strcpy(request.ifr_name, "lo:2");
	address->sin_addr.s_addr = inet_addr("10.9.9.2");
	return ioctl(fd, SIOCSIFADDR, &request) < 0 ? -errno : 0;
}

static struct sockaddr_in at(const char *address, uint16_t port)
{
	return (struct sockaddr_in){.sin_family = AF_INET,
				    .sin_addr.s_addr = inet_addr(address),
				    .sin_port = htons(port)};
}

static int connect_from(const char *from, const char *to, uint16_t port, uint32_t mark)
{
	struct sockaddr_in source = at(from, 0), target = at(to, port);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)) < 0 ||
	    bind(fd, (struct sockaddr *)&source, sizeof(source)) < 0 ||
	    connect(fd, (struct sockaddr *)&target, sizeof(target)) < 0) {
		close(fd);
		return -1;
	}
	return fd;
}

static int open_inside(void *arg, struct error *err)
{
	struct connections *c = arg;
	struct sockaddr_in any = at("0.0.0.0", 0);
	socklen_t size = sizeof(any);
	int r = lo_up();

	if (r)
		return error_set(err, -r, "lo up");
	c->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (bind(c->listener, (struct sockaddr *)&any, sizeof(any)) < 0 ||
	    listen(c->listener, 16) < 0 ||
	    getsockname(c->listener, (struct sockaddr *)&any, &size) < 0)
		return error_set(err, errno, "listen");
	c->port = ntohs(any.sin_port);
	c->within = connect_from("10.9.9.1", "10.9.9.1", c->port, 0);
	c->foreign = connect_from("10.9.9.1", "10.9.9.2", c->port, 0);
	c->marked = connect_from("10.9.9.1", "10.9.9.2", c->port, 0x7000 | MARK);
	if (c->within < 0 || c->foreign < 0 || c->marked < 0)
		return error_set(err, errno, "connect");
	return 0;
}

/* The socket's pending error; 0: it is as it was. */
static int error_of(int fd)
{
	struct pollfd p = {.fd = fd, .events = POLLIN};
	int code = 0;
	socklen_t size = sizeof(code);

	if (poll(&p, 1, 0) > 0)
		getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &size);
	return code;
}

/* By whichever of its ends is cut first: here, unlike in life, both are in this namespace. */
static bool is_cut(int fd)
{
	int code = error_of(fd);

	return code == ECONNABORTED || code == ECONNRESET;
}

TEST(connections_with_others_are_cut)
{
	struct connections c = {.listener = -1, .within = -1, .foreign = -1, .marked = -1};
	scoped_fd int netns = -1;
	struct error err = {0};
	size_t n = 99;

	CHECK(!netns_new(&netns, &err));
	CHECK(!netns_run(netns, open_inside, &c, &err));
	CHECK(!connection_reset(netns, MARK, MASK, &n, &err));
	CHECK(is_cut(c.foreign));
	CHECK_EQ(error_of(c.within), 0);
	/* The accepted end of the marked one has no mark, and is a connection with another. */
	CHECK(error_of(c.marked) != ECONNABORTED); /* but by its other end */
	CHECK_EQ(n, 3);				   /* both ends of the one, and that end */
	CHECK(!connection_reset(netns, MARK, MASK, &n, &err));
	CHECK_EQ(n, 0);
	close(c.listener);
	close(c.within);
	close(c.foreign);
	close(c.marked);
	return TEST_OK;
}
