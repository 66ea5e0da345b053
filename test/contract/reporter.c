/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The server of the contract test: tells every client what it sees of the connection.
 *
 *   reporter [--echo] [--workers N] [--reuseport] [--transparent] [--mark N [--mark-late]] LABEL
 *            tcp:ADDR:PORT udp:ADDR:PORT dual:PORT ...
 *
 * A TCP client is sent one line and the end of the connection:
 *
 *   label=LABEL odst4=16:10.99.0.1:80 odst6=!92 peer=10.244.0.5:40000 local=127.0.0.1:15001
 *
 * odst4 and odst6 are SO_ORIGINAL_DST on SOL_IP and on SOL_IPV6: the length that came back and the
 * address, or "!" and the errno. A UDP client is sent the same line as a datagram from the address
 * it asked, without the odst fields. With --echo the TCP connection stays, and whatever comes back
 * after the line is echoed until the client ends. With --transparent the listeners have
 * IP_TRANSPARENT, as TPROXY needs them; with --mark they have that SO_MARK, as ztunnel's do, set
 * before they are bound, or with --mark-late once they listen.
 *
 * The program returns once every socket listens; the server goes on in the background, and its
 * process id (the process group's, with several workers) is on standard output.
 */
#include "endpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/netfilter_ipv4.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

enum {
	BACKLOG = 4096,
	EVENTS = 64,
	ACCEPT_BURST = 16, /* connections taken per wake-up, so that every worker gets some */
	LISTENERS_MAX = 64,
	LINE_MAX_BYTES = 512,
	SPARE_FDS = 64, /* left of a worker's descriptors when it stops accepting */
};

struct listener {
	int fd;
	bool udp;
};

static struct {
	const char *label;
	bool echo, reuseport, transparent, mark_late;
	int workers, mark;
	struct listener listeners[LISTENERS_MAX];
	int n_listeners;
	bool *is_connection; /* by descriptor */
	int max_fds;
	int n_connections;
	bool accepting; /* this worker has descriptors left, so its epoll has the listeners */
} server = {.workers = 1};

static int must(int rc, const char *what)
{
	if (rc < 0)
		err(1, "%s", what);
	return rc;
}

static void set_option(int fd, int level, int name)
{
	int on = 1;

	must(setsockopt(fd, level, name, &on, sizeof(on)), "setsockopt");
}

/* A dual-stack listener needs only the one of its own family: both set the same flag. */
static void make_transparent(int fd, int family)
{
	if (family == AF_INET)
		set_option(fd, SOL_IP, IP_TRANSPARENT);
	else
		set_option(fd, SOL_IPV6, IPV6_TRANSPARENT);
}

static void set_mark(int fd)
{
	must(setsockopt(fd, SOL_SOCKET, SO_MARK, &server.mark, sizeof(server.mark)), "SO_MARK");
}

static void open_listener(const char *spec)
{
	struct listener *l = &server.listeners[server.n_listeners++];
	bool dual = strncmp(spec, "dual:", 5) == 0;
	union endpoint at;
	int off = 0;

	if (server.n_listeners > LISTENERS_MAX)
		errx(2, "more than %d listeners", LISTENERS_MAX);
	l->udp = strncmp(spec, "udp:", 4) == 0;
	if (dual)
		endpoint_from_address("::", (unsigned)atoi(spec + 5), &at);
	else
		endpoint_parse(strchr(spec, ':') + 1, &at);
	l->fd = must(socket(at.any.sa_family,
			    (l->udp ? SOCK_DGRAM : SOCK_STREAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0),
		     "socket");
	set_option(l->fd, SOL_SOCKET, SO_REUSEADDR);
	if (server.reuseport)
		set_option(l->fd, SOL_SOCKET, SO_REUSEPORT);
	if (server.transparent)
		make_transparent(l->fd, at.any.sa_family);
	if (server.mark && !server.mark_late)
		set_mark(l->fd);
	if (dual)
		must(setsockopt(l->fd, SOL_IPV6, IPV6_V6ONLY, &off, sizeof(off)), "V6ONLY");
	else if (at.any.sa_family == AF_INET6)
		set_option(l->fd, SOL_IPV6, IPV6_V6ONLY);
	if (l->udp && at.any.sa_family == AF_INET6)
		set_option(l->fd, SOL_IPV6, IPV6_RECVPKTINFO);
	else if (l->udp)
		set_option(l->fd, SOL_IP, IP_PKTINFO);
	if (bind(l->fd, &at.any, endpoint_size(&at)) < 0)
		err(1, "bind %s", spec);
	if (!l->udp)
		must(listen(l->fd, BACKLOG), "listen");
	if (server.mark && server.mark_late)
		set_mark(l->fd);
}

/* Asks with exactly the sockaddr's size, then with Envoy's 128 bytes: the answers must agree. */
static const char *original_dst(int fd, int level, char *buf, size_t size)
{
	union {
		union endpoint e;
		char envoy[sizeof(struct sockaddr_storage)];
	} exact, wide;
	socklen_t length = level == SOL_IP ? sizeof(exact.e.v4) : sizeof(exact.e.v6);
	socklen_t wide_length = sizeof(wide);
	char text[ENDPOINT_TEXT];
	int rc, wide_rc;

	memset(&exact, 0, sizeof(exact));
	memset(&wide, 0, sizeof(wide));
	wide_rc = getsockopt(fd, level, SO_ORIGINAL_DST, &wide, &wide_length);
	rc = getsockopt(fd, level, SO_ORIGINAL_DST, &exact, &length);
	if (rc != wide_rc || (!rc && !endpoint_same(&exact.e, &wide.e)))
		snprintf(buf, size, "!differs-by-buffer-size");
	else if (rc < 0)
		snprintf(buf, size, "!%d", errno);
	else
		snprintf(buf, size, "%u:%s", length, endpoint_format(&exact.e, text));
	return buf;
}

static size_t describe_connection(int fd, const union endpoint *peer, char *line)
{
	char odst4[80], odst6[80], peer_text[ENDPOINT_TEXT], local_text[ENDPOINT_TEXT];
	union endpoint local;
	socklen_t size = sizeof(local);

	must(getsockname(fd, &local.any, &size), "getsockname");
	return (size_t)snprintf(
		line, LINE_MAX_BYTES, "label=%s odst4=%s odst6=%s peer=%s local=%s\n", server.label,
		original_dst(fd, SOL_IP, odst4, sizeof(odst4)),
		original_dst(fd, SOL_IPV6, odst6, sizeof(odst6)), endpoint_format(peer, peer_text),
		endpoint_format(&local, local_text));
}

static void listen_on(int epoll, bool accepting)
{
	if (server.accepting == accepting)
		return;
	server.accepting = accepting;
	for (int i = 0; i < server.n_listeners; i++) {
		struct epoll_event event = {.events = EPOLLIN | EPOLLEXCLUSIVE,
					    .data.fd = server.listeners[i].fd};

		must(epoll_ctl(epoll, accepting ? EPOLL_CTL_ADD : EPOLL_CTL_DEL, event.data.fd,
			       &event),
		     "epoll_ctl");
	}
}

static void forget_connection(int epoll, int fd)
{
	server.is_connection[fd] = false;
	server.n_connections--;
	close(fd);
	listen_on(epoll, true);
}

static void accept_some(int epoll, int listener)
{
	for (int i = 0; i < ACCEPT_BURST; i++) {
		char line[LINE_MAX_BYTES];
		union endpoint peer;
		socklen_t size = sizeof(peer);
		struct epoll_event event = {.events = EPOLLIN};
		int fd;

		if (server.n_connections > server.max_fds - SPARE_FDS) {
			listen_on(epoll, false); /* the other workers' turn */
			return;
		}
		fd = accept4(listener, &peer.any, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd < 0)
			return;
		(void)!write(fd, line, describe_connection(fd, &peer, line));
		if (!server.echo) {
			close(fd);
			continue;
		}
		event.data.fd = fd;
		must(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event), "epoll_ctl");
		server.is_connection[fd] = true;
		server.n_connections++;
	}
}

static void echo(int epoll, int fd)
{
	char buf[16384];
	ssize_t n = read(fd, buf, sizeof(buf));

	if (n < 0 && errno == EAGAIN)
		return;
	/* Clients wait for each echo, so a full send buffer is a broken client's. */
	if (n <= 0 || write(fd, buf, (size_t)n) != n)
		forget_connection(epoll, fd);
}

/* Where a datagram was sent to, from its IP_PKTINFO or IPV6_PKTINFO; the port is the socket's. */
static void datagram_local(int fd, struct msghdr *msg, union endpoint *ret)
{
	socklen_t size = sizeof(*ret);

	must(getsockname(fd, &ret->any, &size), "getsockname");
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		if (c->cmsg_level == SOL_IP && c->cmsg_type == IP_PKTINFO)
			ret->v4.sin_addr = ((struct in_pktinfo *)CMSG_DATA(c))->ipi_addr;
		else if (c->cmsg_level == SOL_IPV6 && c->cmsg_type == IPV6_PKTINFO)
			ret->v6.sin6_addr = ((struct in6_pktinfo *)CMSG_DATA(c))->ipi6_addr;
	}
}

static void answer_datagram(int fd)
{
	char line[LINE_MAX_BYTES], peer_text[ENDPOINT_TEXT], local_text[ENDPOINT_TEXT];
	char control[CMSG_SPACE(sizeof(struct in6_pktinfo)) + 64];
	union endpoint peer, local;
	struct iovec iov = {line, sizeof(line)};
	struct msghdr msg = {.msg_name = &peer,
			     .msg_namelen = sizeof(peer),
			     .msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = control,
			     .msg_controllen = sizeof(control)};

	if (recvmsg(fd, &msg, 0) < 0)
		return;
	datagram_local(fd, &msg, &local);
	/* The control message goes back as it came: the answer leaves from the address asked. */
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c))
		if (c->cmsg_level == SOL_IP)
			((struct in_pktinfo *)CMSG_DATA(c))->ipi_ifindex = 0;
		else
			((struct in6_pktinfo *)CMSG_DATA(c))->ipi6_ifindex = 0;
	iov.iov_len = (size_t)snprintf(line, sizeof(line), "label=%s peer=%s local=%s\n",
				       server.label, endpoint_format(&peer, peer_text),
				       endpoint_format(&local, local_text));
	msg.msg_flags = 0;
	if (sendmsg(fd, &msg, 0) < 0)
		warn("answer to %s from %s", peer_text, local_text);
}

static void __attribute__((noreturn)) serve(void)
{
	int epoll = must(epoll_create1(EPOLL_CLOEXEC), "epoll_create1");
	struct epoll_event events[EVENTS];

	listen_on(epoll, true);
	for (;;) {
		int n = epoll_wait(epoll, events, EVENTS, -1);

		for (int i = 0; i < n; i++) {
			int fd = events[i].data.fd, l = 0;

			if (server.is_connection[fd]) {
				echo(epoll, fd);
				continue;
			}
			while (server.listeners[l].fd != fd)
				l++;
			if (server.listeners[l].udp)
				answer_datagram(fd);
			else
				accept_some(epoll, fd);
		}
	}
}

static void raise_fd_limit(void)
{
	struct rlimit limit;

	must(getrlimit(RLIMIT_NOFILE, &limit), "getrlimit");
	limit.rlim_cur = limit.rlim_max;
	must(setrlimit(RLIMIT_NOFILE, &limit), "setrlimit");
	server.max_fds = limit.rlim_max > 1000000 ? 1000000 : (int)limit.rlim_max;
	server.is_connection = calloc((size_t)server.max_fds, sizeof(bool));
	if (!server.is_connection)
		err(1, "calloc");
}

static void go_to_background(void)
{
	pid_t pid = must(fork(), "fork");
	int null;

	if (pid) {
		printf("%d\n", pid);
		exit(0);
	}
	setsid();
	null = must(open("/dev/null", O_RDWR), "/dev/null");
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	/* A descriptor that the shell's substitution waits for must not stay open either. */
	if (!getenv("REPORTER_STDERR"))
		dup2(null, STDERR_FILENO);
}

int main(int argc, char **argv)
{
	int i = 1;

	for (; i < argc && !strncmp(argv[i], "--", 2); i++) {
		if (!strcmp(argv[i], "--echo"))
			server.echo = true;
		else if (!strcmp(argv[i], "--reuseport"))
			server.reuseport = true;
		else if (!strcmp(argv[i], "--transparent"))
			server.transparent = true;
		else if (!strcmp(argv[i], "--mark-late"))
			server.mark_late = true;
		else if (!strcmp(argv[i], "--workers") && i + 1 < argc)
			server.workers = atoi(argv[++i]);
		else if (!strcmp(argv[i], "--mark") && i + 1 < argc)
			server.mark = (int)strtol(argv[++i], NULL, 0);
		else
			errx(2, "unknown option %s", argv[i]);
	}
	if (argc - i < 2)
		errx(2, "usage: reporter [--echo] [--workers N] [--reuseport] [--transparent] "
			"[--mark N [--mark-late]] LABEL SPEC...");
	server.label = argv[i++];
	raise_fd_limit();
	for (; i < argc; i++)
		open_listener(argv[i]);
	signal(SIGPIPE, SIG_IGN);
	go_to_background();
	for (int w = 1; w < server.workers; w++)
		if (!must(fork(), "fork"))
			serve();
	serve();
}
