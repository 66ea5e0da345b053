/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs the rows of one pod of the conformance matrix (matrix.txt has the format) with real sockets
 * and says, row by row, whether the connection went where the table says.
 *
 *   matrix --file F --pod NAME --engine E --pod-netns F --world-netns F [--guest-netns F]
 *          [--cgroup DIR] [--kubelet-cgroup DIR] [--pod-userns F] [--settle-ms N] [--only TEXT]
 *
 * Output: one "ok - ..." or "not ok - ..." line a row, unnumbered; what differs follows as "# ...".
 */
#include "endpoint.h"
#include "identity.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <poll.h>
#include <sched.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif

enum {
	ROW_FIELDS = 10,
	ROWS_MAX = 512,
	DEVIATIONS_MAX = 64,
	REPORT_MAX = 512,
	ANSWERS_MAX = 3,
	FIRST_BOUND_PORT = 21000,
	BOUND_PORTS = 8192, /* below the kernel's own range */
	CLOSED_PORT = 9,
	PATIENCE_MS = 2000,
	TIMEOUT_MS = 300, /* where silence is what the table expects */
	CLIENT_S = 60, /* for all that a client does; io_uring's connect has no limit of its own */
	REASON_MAX = 256,
	PROXY_MARK = 1337, /* of TPROXY's proxy and of ztunnel, 0x539 */
	PORT_RETRIES = 6,
};

/* ---- names of the table ------------------------------------------------------------------------
 */

static const struct {
	const char *name, *v4, *v6;
} addresses[] = {
	{"pod", "10.244.0.5", "fd00:10::5"},	  /* the pod's own, from the CNI result */
	{"second", "10.244.0.55", "fd00:10::55"}, /* the pod's own, added after enrolment */
	{"client", "10.244.0.1", "fd00:10::1"},	  /* outside the pod, on its subnet */
	{"ext", "10.99.0.1", "fd00:99::1"},
	{"ext2", "10.99.0.2", "fd00:99::2"},
	{"far", "10.99.1.1", "fd00:99:1::1"}, /* another prefix than ext and ext2 */
	{"resolver", "10.99.0.53", "fd00:99::53"},
	{"resolver2", "10.99.0.54", "fd00:99::54"},
	{"resolver3", "10.99.0.55", "fd00:99::55"},
	{"lo", "127.0.0.1", "::1"},
	{"lo2", "127.0.0.2", NULL},
	{"p6", "127.0.0.6", "::6"},
	{"any", "0.0.0.0", "::"},
	{"guest", "10.250.0.2", "fd00:250::2"},	   /* behind an interface of the pod, like a VM's */
	{"gate", "10.250.0.1", "fd00:250::1"},	   /* the pod's end of that interface */
	{"nodeproxy", "10.245.0.2", "fd00:45::2"}, /* a proxy in a namespace of its own */
	/* Stands for kubelet where netfilter redirects: outside the pod. */
	{"probe", "169.254.7.127", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff"},
};

struct ids {
	int uid, gid;
};

static const struct who {
	const char *name;
	/* BESIDE_POD: ztunnel, which works in the pod's network namespace and marks its sockets */
	enum { IN_POD, BESIDE_POD, IN_WORLD, IN_KUBELET, IN_GUEST } place;
	struct ids opens, connects;
} identities[] = {
	{"app", IN_POD, {1000, 1000}, {1000, 1000}},
	{"root", IN_POD, {0, 0}, {0, 0}},
	{"proxy", IN_POD, {1337, 1337}, {1337, 1337}},
	{"proxy-g1000", IN_POD, {1337, 1000}, {1337, 1000}},
	{"app-g1337", IN_POD, {1000, 1337}, {1000, 1337}},
	{"root-g1337", IN_POD, {0, 1337}, {0, 1337}},
	{"proxy2", IN_POD, {1338, 1338}, {1338, 1338}},
	{"app-g2000", IN_POD, {1000, 2000}, {1000, 2000}},
	{"proxy>app", IN_POD, {1337, 1337}, {1000, 1000}}, /* opened by the first, */
	{"app>proxy", IN_POD, {1000, 1000}, {1337, 1337}}, /* connected by the second */
	{"ztunnel", BESIDE_POD, {0, 1337}, {0, 1337}},
	{"client", IN_WORLD, {1000, 1000}, {1000, 1000}},
	{"kubelet", IN_KUBELET, {0, 0}, {0, 0}},
	{"host", IN_WORLD, {0, 0}, {0, 0}}, /* the same user, but not in kubelet's cgroup */
	{"guest", IN_GUEST, {1000, 1000}, {1000, 1000}},
};

enum how {
	TCP,
	NONBLOCK,    /* connect answers EINPROGRESS */
	DEVICE,	     /* SO_BINDTODEVICE eth0 */
	URING,	     /* IORING_OP_CONNECT */
	URING_ASYNC, /* the same on a worker thread of the kernel */
	FASTOPEN,    /* sendto with MSG_FASTOPEN instead of connect */
	MPTCP,
	RETRY,	     /* the socket was refused once, elsewhere, before */
	TRANSPARENT, /* IP_TRANSPARENT and the mark, as a proxy that keeps the client's address */
	FOREIGN,     /* IP_TRANSPARENT without the mark */
	UDP,	     /* sendto on an unconnected socket */
	UDP_CONNECTED,
	UDP_MANY, /* one socket asks the next two resolvers too, before it reads (musl's resolver)
		   */
};
static const char *const how_names[] = {
	"tcp",	 "nonblock",	"device",  "uring", "uring-async", "fastopen", "mptcp",
	"retry", "transparent", "foreign", "udp",   "udpc",	   "udp-many"};

/* ---- one row -----------------------------------------------------------------------------------
 */

struct row {
	int line;
	char *who, *forms, *source, *to, *how, *reached, *odst, *peer, *local, *deviations;
};

struct deviation {
	char *name, *engine, *what, *reason;
};

static struct {
	const char *file, *pod, *engine, *pod_netns, *world_netns, *guest_netns;
	const char *cgroup, *kubelet_cgroup, *pod_userns, *only;
	int settle_ms; /* this and patience_ms: times SOCKMESH_TEST_PATIENCE */
	int patience_ms;
	struct row rows[ROWS_MAX];
	int n_rows;
	struct deviation deviations[DEVIATIONS_MAX];
	int n_deviations;
	unsigned next_port;
} test;

/* One connection to try: a row in one of its forms. */
struct attempt {
	const struct row *row;
	const struct who *who;
	enum how how;
	char form; /* '4', '6', 'm' */
	union endpoint dial, source;
	bool bind_address, bind_port;
};

/* What the client saw; travels through a pipe from the child that was the client. */
struct outcome {
	enum { SAW_FAILURE, SAW_ANSWER, SAW_SKIP } kind;
	int error;
	char step[32];
	union endpoint own, peername;
	int n_answers;
	char report[ANSWERS_MAX][REPORT_MAX];
	union endpoint answered_by[ANSWERS_MAX];
};

static const char *address_text(const char *name, char form)
{
	for (size_t i = 0; i < sizeof(addresses) / sizeof(addresses[0]); i++)
		if (!strcmp(addresses[i].name, name))
			return form == '6' ? addresses[i].v6 : addresses[i].v4;
	errx(2, "%s: no address is called %s", test.file, name);
}

static void resolve(const char *name, char form, unsigned port, union endpoint *ret)
{
	const char *text = address_text(name, form);

	if (!text || !endpoint_from_address(text, port, ret))
		errx(2, "%s: %s has no address of form %c", test.file, name, form);
	if (form == 'm')
		endpoint_map(ret);
}

/* "NAME:PORT", either part may be missing: "-" is no bind at all, "+" a port of its own. */
static void resolve_source(struct attempt *a)
{
	char name[32];
	const char *colon = strchr(a->row->source, ':');
	unsigned port = 0;

	if (!strcmp(a->row->source, "-"))
		return;
	snprintf(name, sizeof(name), "%.*s",
		 colon ? (int)(colon - a->row->source) : (int)strlen(a->row->source),
		 a->row->source);
	a->bind_address = name[0] != '\0';
	if (colon) {
		a->bind_port = true;
		port = colon[1] == '+' ? test.next_port++ : (unsigned)atoi(colon + 1);
	}
	resolve(a->bind_address ? name : "any", a->form, port, &a->source);
	if (a->form == 'm' && !a->bind_address)
		memset(&a->source.v6.sin6_addr, 0, sizeof(a->source.v6.sin6_addr));
}

static void split_endpoint(const char *text, char *name, size_t size, unsigned *ret_port)
{
	const char *colon = strchr(text, ':');

	if (!colon)
		errx(2, "%s: %s has no port", test.file, text);
	snprintf(name, size, "%.*s", (int)(colon - text), text);
	*ret_port = (unsigned)atoi(colon + 1);
}

static void prepare(const struct row *row, char form, struct attempt *ret)
{
	char name[32];
	unsigned port;
	size_t i;

	*ret = (struct attempt){.row = row, .form = form};
	for (i = 0; i < sizeof(identities) / sizeof(identities[0]); i++)
		if (!strcmp(identities[i].name, row->who))
			ret->who = &identities[i];
	for (i = 0; i < sizeof(how_names) / sizeof(how_names[0]); i++)
		if (!strcmp(how_names[i], row->how))
			break;
	if (!ret->who || i == sizeof(how_names) / sizeof(how_names[0]))
		errx(2, "%s:%d: unknown %s", test.file, row->line, ret->who ? row->how : row->who);
	ret->how = (enum how)i;
	split_endpoint(row->to, name, sizeof(name), &port);
	resolve(name, form, port, &ret->dial);
	resolve_source(ret);
}

/* "nat" is what rests on the kernel's NAT, which is every engine but eBPF. */
static bool is_of_engine(const struct deviation *d)
{
	return !strcmp(d->engine, test.engine) ||
	       (!strcmp(d->engine, "nat") && strcmp(test.engine, "ebpf") != 0);
}

static const struct deviation *deviation_of(const struct row *row, const char *field)
{
	char names[REASON_MAX], *save = NULL;
	size_t length = strlen(field);

	snprintf(names, sizeof(names), "%s", row->deviations ? row->deviations : "");
	for (char *name = strtok_r(names, ",", &save); name; name = strtok_r(NULL, ",", &save)) {
		bool known = false;

		for (int i = 0; i < test.n_deviations; i++) {
			const struct deviation *d = &test.deviations[i];

			if (strcmp(d->name, name) != 0)
				continue;
			known = true;
			if (is_of_engine(d) && !strncmp(d->what, field, length) &&
			    (d->what[length] == '=' || !d->what[length]))
				return d;
		}
		if (!known)
			errx(2, "%s:%d: no deviation is called %s", test.file, row->line, name);
	}
	return NULL;
}

static const char *expected(const struct row *row, const char *field, const char *common)
{
	const struct deviation *d = deviation_of(row, field);

	return d ? d->what + strlen(field) + 1 : common;
}

/* ---- the client --------------------------------------------------------------------------------
 */

static void failed(struct outcome *seen, const char *step, int error)
{
	seen->kind = SAW_FAILURE;
	seen->error = error;
	snprintf(seen->step, sizeof(seen->step), "%s", step);
}

static void enter(const char *file, int type)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, type) < 0)
		err(2, "enter %s", file);
	close(fd);
}

static void join_cgroup(const char *dir)
{
	char path[4096];
	int fd;

	if (!dir)
		return;
	snprintf(path, sizeof(path), "%s/cgroup.procs", dir);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "0", 1) < 0)
		err(2, "join %s", path);
	close(fd);
}

static void enter_place(const struct who *who)
{
	switch (who->place) {
	case IN_GUEST:
		enter(test.guest_netns, CLONE_NEWNET);
		break;
	case IN_KUBELET:
		if (!test.kubelet_cgroup)
			errx(2, "%s: kubelet needs --kubelet-cgroup", test.file);
		join_cgroup(test.kubelet_cgroup);
		enter(test.world_netns, CLONE_NEWNET);
		break;
	case IN_WORLD:
		enter(test.world_netns, CLONE_NEWNET);
		break;
	case IN_POD:
	case BESIDE_POD:
		join_cgroup(test.cgroup);
		if (test.pod_userns && who->place == IN_POD)
			enter(test.pod_userns, CLONE_NEWUSER);
		enter(test.pod_netns, CLONE_NEWNET);
		break;
	}
}

static bool needs_net_admin(const struct attempt *a)
{
	return a->how == TRANSPARENT || a->how == FOREIGN || a->who->place == BESIDE_POD;
}

static bool is_udp(enum how how)
{
	return how == UDP || how == UDP_CONNECTED || how == UDP_MANY;
}

static int open_socket(const struct attempt *a)
{
	int fd = socket(a->dial.any.sa_family,
			(is_udp(a->how) ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC,
			a->how == MPTCP ? IPPROTO_MPTCP : 0);
	int mark = PROXY_MARK;

	if (fd < 0 && a->how != MPTCP)
		err(2, "socket");
	if (a->who->place == BESIDE_POD &&
	    setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)) < 0)
		err(2, "SO_MARK");
	return fd;
}

union fd_message {
	char space[CMSG_SPACE(sizeof(int))];
	struct cmsghdr align;
};

/* The socket is opened by a process of the first identity and handed to one of the second. */
static int open_socket_elsewhere(const struct attempt *a)
{
	int pair[2], fd;
	char byte = 0;
	struct iovec iov = {&byte, 1};
	union fd_message control;
	struct msghdr msg = {.msg_iov = &iov,
			     .msg_iovlen = 1,
			     .msg_control = &control,
			     .msg_controllen = sizeof(control)};
	struct cmsghdr *c;

	memset(&control, 0, sizeof(control));
	if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) < 0)
		err(2, "socketpair");
	if (!fork()) {
		alarm(CLIENT_S);
		identity_become(a->who->opens.uid, a->who->opens.gid, needs_net_admin(a));
		fd = open_socket(a);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
		_exit(sendmsg(pair[1], &msg, 0) != 1);
	}
	close(pair[1]); /* or nobody would tell us that it has ended before it sent anything */
	if (recvmsg(pair[0], &msg, 0) != 1 || !(c = CMSG_FIRSTHDR(&msg)))
		err(2, "receive the socket");
	memcpy(&fd, CMSG_DATA(c), sizeof(fd));
	close(pair[0]);
	return fd;
}

/* IORING_OP_CONNECT by hand, so that a static program needs no library. 0 or -errno. */
static int uring_connect(int fd, const union endpoint *to, bool async, bool *ret_refused)
{
	struct io_uring_params p = {0};
	int ring = (int)syscall(SYS_io_uring_setup, 1, &p);
	struct io_uring_sqe *sqe;
	struct io_uring_cqe *cqe;
	char *sq, *cq;

	*ret_refused = ring < 0;
	if (ring < 0)
		return -errno;
	sq = mmap(NULL, p.sq_off.array + p.sq_entries * sizeof(__u32), PROT_READ | PROT_WRITE,
		  MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
	cq = mmap(NULL, p.cq_off.cqes + p.cq_entries * sizeof(*cqe), PROT_READ | PROT_WRITE,
		  MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_CQ_RING);
	sqe = mmap(NULL, p.sq_entries * sizeof(*sqe), PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || sqe == MAP_FAILED)
		return -errno;
	memset(sqe, 0, sizeof(*sqe));
	sqe->opcode = IORING_OP_CONNECT;
	sqe->flags = async ? IOSQE_ASYNC : 0;
	sqe->fd = fd;
	sqe->addr = (unsigned long)to;
	sqe->off = endpoint_size(to);
	((__u32 *)(void *)(sq + p.sq_off.array))[0] = 0;
	__atomic_store_n((__u32 *)(void *)(sq + p.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return -errno;
	cqe = (struct io_uring_cqe *)(void *)(cq + p.cq_off.cqes);
	return cqe->res;
}

static int connect_nonblocking(int fd, const union endpoint *to)
{
	struct pollfd wait = {.fd = fd, .events = POLLOUT};
	int flags = fcntl(fd, F_GETFL), error = 0;
	socklen_t size = sizeof(error);

	fcntl(fd, F_SETFL, flags | O_NONBLOCK);
	if (connect(fd, &to->any, endpoint_size(to)) < 0 && errno != EINPROGRESS)
		return -errno;
	if (poll(&wait, 1, test.patience_ms) != 1)
		return -ETIMEDOUT;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0)
		return -errno;
	fcntl(fd, F_SETFL, flags);
	return -error;
}

static int connect_again(int fd, const struct attempt *a)
{
	union endpoint closed;

	resolve("lo", a->form, CLOSED_PORT, &closed);
	if (connect(fd, &closed.any, endpoint_size(&closed)) == 0 || errno != ECONNREFUSED)
		return -EPROTO;
	return connect(fd, &a->dial.any, endpoint_size(&a->dial)) < 0 ? -errno : 0;
}

static int establish(int fd, const struct attempt *a, struct outcome *seen)
{
	bool refused;
	int rc;

	switch (a->how) {
	case NONBLOCK:
		return connect_nonblocking(fd, &a->dial);
	case URING:
	case URING_ASYNC:
		rc = uring_connect(fd, &a->dial, a->how == URING_ASYNC, &refused);
		if (refused)
			seen->kind = SAW_SKIP;
		return rc;
	case FASTOPEN:
		return sendto(fd, NULL, 0, MSG_FASTOPEN, &a->dial.any, endpoint_size(&a->dial)) < 0
			       ? -errno
			       : 0;
	case RETRY:
		return connect_again(fd, a);
	default:
		return connect(fd, &a->dial.any, endpoint_size(&a->dial)) < 0 ? -errno : 0;
	}
}

static void read_report(int fd, struct outcome *seen)
{
	size_t used = 0;
	ssize_t n;

	do {
		n = read(fd, seen->report[0] + used, REPORT_MAX - 1 - used);
		if (n > 0)
			used += (size_t)n;
	} while (n > 0 && !strchr(seen->report[0], '\n'));
	if (n <= 0 && !strchr(seen->report[0], '\n')) {
		failed(seen, "read", n < 0 ? errno : EPIPE);
		return;
	}
	seen->n_answers = 1;
	seen->kind = SAW_ANSWER;
}

static void note_names(int fd, struct outcome *seen)
{
	socklen_t size = sizeof(seen->own);

	getsockname(fd, &seen->own.any, &size);
	size = sizeof(seen->peername);
	if (getpeername(fd, &seen->peername.any, &size) < 0)
		memset(&seen->peername, 0, sizeof(seen->peername));
}

static void ask_tcp(int fd, const struct attempt *a, struct outcome *seen)
{
	int rc = establish(fd, a, seen);

	if (seen->kind == SAW_SKIP)
		return;
	if (rc < 0) {
		failed(seen, "connect", rc == -EINPROGRESS ? ETIMEDOUT : -rc);
		return;
	}
	note_names(fd, seen);
	read_report(fd, seen);
}

static int send_question(int fd, const struct attempt *a, const char *to_name)
{
	union endpoint to = a->dial;

	if (a->how == UDP_CONNECTED)
		return connect(fd, &to.any, endpoint_size(&to)) < 0 || send(fd, "?", 1, 0) != 1;
	if (to_name)
		resolve(to_name, a->form, endpoint_port(&a->dial), &to);
	return sendto(fd, "?", 1, 0, &to.any, endpoint_size(&to)) != 1;
}

static void ask_udp(int fd, const struct attempt *a, struct outcome *seen)
{
	static const char *const more[] = {NULL, "resolver2", "resolver3"};
	int wanted = a->how == UDP_MANY ? ANSWERS_MAX : 1;

	for (int i = 0; i < wanted; i++)
		if (send_question(fd, a, more[i])) {
			failed(seen, "send", errno);
			return;
		}
	note_names(fd, seen);
	for (int i = 0; i < wanted; i++) {
		socklen_t size = sizeof(seen->answered_by[i]);
		ssize_t n = recvfrom(fd, seen->report[i], REPORT_MAX - 1, 0,
				     &seen->answered_by[i].any, &size);

		if (n < 0) {
			failed(seen, "receive", errno == EAGAIN ? ETIMEDOUT : errno);
			return;
		}
		seen->n_answers++;
	}
	seen->kind = SAW_ANSWER;
}

static int make_transparent(int fd, const struct attempt *a)
{
	int on = 1, mark = PROXY_MARK;
	bool v6 = a->dial.any.sa_family == AF_INET6;

	if (a->how == TRANSPARENT && setsockopt(fd, SOL_SOCKET, SO_MARK, &mark, sizeof(mark)) < 0)
		return -1;
	return setsockopt(fd, v6 ? SOL_IPV6 : SOL_IP, v6 ? IPV6_TRANSPARENT : IP_TRANSPARENT, &on,
			  sizeof(on));
}

static void be_the_client(const struct attempt *a, struct outcome *seen)
{
	bool silence = !strcmp(expected(a->row, "reached", a->row->reached), "timeout");
	int ms = silence ? TIMEOUT_MS : test.patience_ms;
	struct timeval patience = {.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
	int fd, on = 1;

	enter_place(a->who);
	if (memcmp(&a->who->opens, &a->who->connects, sizeof(struct ids)) != 0) {
		fd = open_socket_elsewhere(a);
		identity_become(a->who->connects.uid, a->who->connects.gid, needs_net_admin(a));
	} else {
		identity_become(a->who->connects.uid, a->who->connects.gid, needs_net_admin(a));
		fd = open_socket(a);
	}
	if (fd < 0) {
		seen->kind = SAW_SKIP;
		return;
	}
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (a->how == DEVICE && setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "eth0", 5) < 0) {
		failed(seen, "bind to device", errno);
		return;
	}
	if ((a->how == TRANSPARENT || a->how == FOREIGN) && make_transparent(fd, a) < 0) {
		failed(seen, "make transparent", errno);
		return;
	}
	if ((a->bind_address || a->bind_port) &&
	    bind(fd, &a->source.any, endpoint_size(&a->source)) < 0) {
		failed(seen, "bind", errno);
		return;
	}
	if (is_udp(a->how))
		ask_udp(fd, a, seen);
	else
		ask_tcp(fd, a, seen);
}

static void try(const struct attempt *a, struct outcome *ret)
{
	int result[2];
	pid_t pid;

	memset(ret, 0, sizeof(*ret));
	if (pipe2(result, O_CLOEXEC) < 0 || (pid = fork()) < 0)
		err(2, "fork");
	if (!pid) {
		alarm(CLIENT_S);
		be_the_client(a, ret);
		_exit(write(result[1], ret, sizeof(*ret)) != sizeof(*ret));
	}
	close(result[1]);
	if (read(result[0], ret, sizeof(*ret)) != sizeof(*ret))
		failed(ret, "client died", EPROTO);
	close(result[0]);
	waitpid(pid, NULL, 0);
}

/* ---- the judge ---------------------------------------------------------------------------------
 */

struct judgement {
	bool wrong;
	bool other_port; /* the listener sees the right address with another port */
	char text[2048];
};

static void __attribute__((format(printf, 2, 3))) differs(struct judgement *j, const char *fmt, ...)
{
	size_t used = strlen(j->text);
	va_list args;

	j->wrong = true;
	snprintf(j->text + used, sizeof(j->text) - used, "#   ");
	used = strlen(j->text);
	va_start(args, fmt);
	vsnprintf(j->text + used, sizeof(j->text) - used, fmt, args);
	va_end(args);
	used = strlen(j->text);
	snprintf(j->text + used, sizeof(j->text) - used, "\n");
}

static void report_field(const char *report, const char *name, char *ret, size_t size)
{
	char key[16];
	const char *at;

	snprintf(key, sizeof(key), "%s=", name);
	at = strstr(report, key);
	snprintf(ret, size, "%.*s", at ? (int)strcspn(at + strlen(key), " \n") : 0,
		 at ? at + strlen(key) : "");
}

/* An unspecified destination is the loopback address: the kernel says so before any hook. */
static void destination_of(const struct attempt *a, union endpoint *ret)
{
	*ret = a->dial;
	if (!strncmp(a->row->to, "any:", 4))
		resolve("lo", a->form, endpoint_port(&a->dial), ret);
}

static void judge_reached(struct judgement *j, const char *report, const char *want)
{
	char label[32];
	bool right;

	report_field(report, "label", label, sizeof(label));
	right = strcmp(want, "direct") == 0 ? !strcmp(label, "app") || !strcmp(label, "world")
					    : !strcmp(label, want);
	if (!right)
		differs(j, "reached %s, not %s", label, want);
}

/* The level of the connection's own family answers; the other one never does. */
static void judge_odst(struct judgement *j, const struct attempt *a, const char *report,
		       const char *want)
{
	bool v6 = a->form == '6';
	char got[96], other[96], dialled[ENDPOINT_TEXT], right[96];
	union endpoint to;

	destination_of(a, &to);
	report_field(report, v6 ? "odst6" : "odst4", got, sizeof(got));
	report_field(report, v6 ? "odst4" : "odst6", other, sizeof(other));
	snprintf(right, sizeof(right), "%d:%s", v6 ? 28 : 16, endpoint_format(&to, dialled));
	if (strcmp(want, "dialled") == 0 ? strcmp(got, right) != 0
	    : strcmp(want, "none") == 0	 ? got[0] != '!'
					 : got[0] != '!' && strcmp(got, right) != 0)
		differs(j, "SO_ORIGINAL_DST is %s, not %s", got,
			strcmp(want, "dialled") == 0 ? right : "an error or the address dialled");
	/* ENOENT: no entry; ENOPROTOOPT, EOPNOTSUPP: the family has nobody who could know one. */
	if (strcmp(other, "!2") != 0 && strcmp(other, "!92") != 0 && strcmp(other, "!95") != 0)
		differs(j, "SO_ORIGINAL_DST on the other family's level is %s, not an error",
			other);
}

static void judge_peer(struct judgement *j, const struct attempt *a, const struct outcome *seen,
		       const char *report, const char *want)
{
	char got[ENDPOINT_TEXT], right[ENDPOINT_TEXT], own[ENDPOINT_TEXT], name[32];
	bool any_port = strstr(want, ":*");
	union endpoint peer;

	if (!strcmp(want, "*"))
		return;
	report_field(report, "peer", got, sizeof(got));
	snprintf(name, sizeof(name), "%.*s", (int)strcspn(want, ":"), want);
	resolve(name, a->form, endpoint_port(&seen->own), &peer);
	if (any_port && strrchr(got, ':'))
		endpoint_set_port(&peer, (unsigned)atoi(strrchr(got, ':') + 1));
	endpoint_format(&peer, right);
	endpoint_format(&seen->own, own);
	if (strcmp(got, right) != 0) {
		differs(j, "peer is %s, not %s", got, right);
		j->other_port = !strncmp(got, right, (size_t)(strrchr(right, ':') - right + 1));
	}
	endpoint_set_port(&peer, endpoint_port(&seen->own));
	endpoint_format(&peer, right);
	if (!is_udp(a->how) && strcmp(own, right) != 0)
		differs(j, "the client's own address is %s, not %s", own, right);
	if (a->bind_port && endpoint_port(&seen->own) != endpoint_port(&a->source))
		differs(j, "the client's port is %u, not %u", endpoint_port(&seen->own),
			endpoint_port(&a->source));
}

/* The own address that an IPv6 connection goes to: the one that was dialled, or the pod's first. */
static const char *own_address_name(const struct attempt *a)
{
	return strncmp(a->row->to, "second:", strlen("second:")) ? "pod" : "second";
}

static void judge_local(struct judgement *j, const struct attempt *a, const char *report,
			const char *want)
{
	char got[ENDPOINT_TEXT], right[ENDPOINT_TEXT], name[32];
	union endpoint local;
	unsigned port;

	if (!strcmp(want, "*"))
		return;
	report_field(report, "local", got, sizeof(got));
	if (!strcmp(want, "dialled")) {
		destination_of(a, &local);
	} else {
		split_endpoint(want, name, sizeof(name), &port);
		if (!strcmp(name, "lo*") && a->form != '6') { /* anywhere in 127.0.0.0/8 */
			char suffix[16];

			snprintf(suffix, sizeof(suffix), ":%u", port);
			if (strncmp(got, "127.", 4) != 0 || !strstr(got, suffix))
				differs(j, "local is %s, not 127.x.x.x%s", got, suffix);
			return;
		}
		resolve(strcmp(name, "lo*") ? name : own_address_name(a), a->form, port, &local);
	}
	if (strcmp(got, endpoint_format(&local, right)) != 0)
		differs(j, "local is %s, not %s", got, right);
}

/* Whatever happened below, the client must believe that it talks to whom it dialled. */
static void judge_client_view(struct judgement *j, const struct attempt *a,
			      const struct outcome *seen)
{
	static const char *const more[] = {NULL, "resolver2", "resolver3"};
	char got[ENDPOINT_TEXT], right[ENDPOINT_TEXT];
	union endpoint to;

	destination_of(a, &to);
	if ((!is_udp(a->how) || a->how == UDP_CONNECTED) && !deviation_of(a->row, "getpeername"))
		if (!endpoint_same(&seen->peername, &to))
			differs(j, "getpeername is %s, not %s",
				endpoint_format(&seen->peername, got), endpoint_format(&to, right));
	for (int i = 0; is_udp(a->how) && i < seen->n_answers; i++) {
		if (more[i])
			resolve(more[i], a->form, endpoint_port(&a->dial), &to);
		if (!endpoint_same(&seen->answered_by[i], &to))
			differs(j, "answer %d comes from %s, not %s", i + 1,
				endpoint_format(&seen->answered_by[i], got),
				endpoint_format(&to, right));
	}
}

static void judge(const struct attempt *a, const struct outcome *seen, struct judgement *j)
{
	const struct row *row = a->row;
	const char *reached = expected(row, "reached", row->reached);
	const char *report = seen->report[0];

	memset(j, 0, sizeof(*j));
	if (!strcmp(reached, "refused") || !strcmp(reached, "timeout")) {
		int want = strcmp(reached, "refused") == 0 ? ECONNREFUSED : ETIMEDOUT;

		if (seen->kind != SAW_FAILURE)
			differs(j, "not %s but: %s", reached, report);
		else if (seen->error != want)
			differs(j, "%s: %s, not %s", seen->step, strerror(seen->error), reached);
		return;
	}
	if (seen->kind == SAW_FAILURE) {
		differs(j, "%s: %s", seen->step, strerror(seen->error));
		return;
	}
	for (int i = 0; i < seen->n_answers; i++)
		judge_reached(j, seen->report[i], reached);
	if (!is_udp(a->how))
		judge_odst(j, a, report, expected(row, "odst", row->odst));
	judge_peer(j, a, seen, report, expected(row, "peer", row->peer));
	judge_local(j, a, report, expected(row, "local", row->local));
	judge_client_view(j, a, seen);
	if (j->wrong)
		differs(j, "report: %.*s", (int)strcspn(report, "\n"), report);
}

/* ---- the table ---------------------------------------------------------------------------------
 */

static long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static bool run_form(const struct row *row, char form)
{
	const struct deviation *skip = deviation_of(row, "skip");
	long deadline = now_ms() + test.settle_ms;
	struct judgement j;
	struct outcome seen;
	struct attempt a;
	char name[256];
	int retries = 0;

	snprintf(name, sizeof(name), "%s: %s %s %s -> %s %s: %s", test.pod, row->who,
		 form == 'm'   ? "mapped"
		 : form == '6' ? "v6"
			       : "v4",
		 strcmp(row->source, "-") ? row->source : "", row->to, row->how,
		 expected(row, "reached", row->reached));
	if (test.only && !strstr(name, test.only))
		return true;
	if (skip) {
		printf("ok - %s # SKIP %s\n", name, skip->reason);
		return true;
	}
	for (;;) {
		prepare(row, form, &a);
		try(&a, &seen);
		if (seen.kind == SAW_SKIP) {
			printf("ok - %s # SKIP the kernel has no %s\n", name, row->how);
			return true;
		}
		judge(&a, &seen, &j);
		/*
		 * Connections that NAT would make the same get another port. The kernel's choice
		 * ascends for each destination, so where two overlap it can be some in a row.
		 */
		if (j.other_port && retries++ < PORT_RETRIES)
			continue;
		if (!j.wrong || now_ms() >= deadline)
			break;
		poll(NULL, 0, 10);
	}
	printf("%s - %s\n", j.wrong ? "not ok" : "ok", name);
	if (j.wrong)
		printf("#   %s:%d\n%s", test.file, row->line, j.text);
	return !j.wrong;
}

static void parse_row(char *text, int line)
{
	struct row *row = &test.rows[test.n_rows++];
	char **fields[ROW_FIELDS] = {&row->who,	  &row->forms,	   &row->source, &row->to,
				     &row->how,	  &row->reached,   &row->odst,	 &row->peer,
				     &row->local, &row->deviations};
	char *save = NULL;
	int n = 0;

	if (test.n_rows > ROWS_MAX)
		errx(2, "%s: more than %d rows", test.file, ROWS_MAX);
	row->line = line;
	for (char *f = strtok_r(text, " \t\n", &save); f; f = strtok_r(NULL, " \t\n", &save)) {
		if (n == ROW_FIELDS)
			errx(2, "%s:%d: more than %d fields", test.file, line, ROW_FIELDS);
		*fields[n++] = strdup(f);
	}
	if (n < ROW_FIELDS - 1)
		errx(2, "%s:%d: a row has %d fields and may name deviations", test.file, line,
		     ROW_FIELDS - 1);
}

static void parse_deviation(char *text, int line)
{
	struct deviation *d = &test.deviations[test.n_deviations++];
	char *save = NULL;

	if (test.n_deviations > DEVIATIONS_MAX)
		errx(2, "%s: more than %d deviations", test.file, DEVIATIONS_MAX);
	strtok_r(text, " \t", &save);
	d->name = strtok_r(NULL, " \t", &save);
	d->engine = strtok_r(NULL, " \t", &save);
	d->what = strtok_r(NULL, " \t", &save);
	d->reason = strtok_r(NULL, "\n", &save);
	if (!d->reason)
		errx(2, "%s:%d: deviation NAME ENGINE FIELD=VALUE REASON", test.file, line);
	d->name = strdup(d->name);
	d->engine = strdup(d->engine);
	d->what = strdup(d->what);
	d->reason = strdup(d->reason);
}

/* A row of the pod itself about the same connection counts in place of one that it inherits. */
static bool is_replaced(const struct row *inherited, int n_own)
{
	for (int i = 0; i < n_own; i++) {
		const struct row *own = &test.rows[i];

		if (!strcmp(own->who, inherited->who) && !strcmp(own->source, inherited->source) &&
		    !strcmp(own->to, inherited->to) && !strcmp(own->how, inherited->how) &&
		    !strcmp(own->forms, inherited->forms))
			return true;
	}
	return false;
}

/* "like=POD" of a pod's line. */
static void parse_settings(const char *text, char ret_like[static 64])
{
	const char *like = strstr(text, " like=");

	if (like)
		sscanf(like, " like=%63s", ret_like);
}

/* The rows of one pod; its deviations are everyone's, and read with the first pod. */
static void load_pod(FILE *f, const char *pod, char ret_like[static 64])
{
	int n_own = test.n_rows, line = 0;
	bool mine = false;
	char text[1024];

	rewind(f);
	while (fgets(text, sizeof(text), f)) {
		char first[16] = "", name[64] = "";

		line++;
		if (sscanf(text, "%15s %63s", first, name) < 1 || first[0] == '#')
			continue;
		if (!strcmp(first, "pod")) {
			mine = !strcmp(name, pod);
			if (mine)
				parse_settings(text, ret_like);
		} else if (!strcmp(first, "deviation")) {
			if (!n_own)
				parse_deviation(text, line);
		} else if (mine) {
			parse_row(text, line);
			if (is_replaced(&test.rows[test.n_rows - 1], n_own))
				test.n_rows--;
		}
	}
	if (test.n_rows == n_own)
		errx(2, "%s has no rows of pod %s", test.file, pod);
}

static void load(void)
{
	FILE *f = fopen(test.file, "re");
	char like[64] = "", unused[64];

	if (!f)
		err(2, "%s", test.file);
	load_pod(f, test.pod, like);
	if (like[0])
		load_pod(f, like, unused);
	fclose(f);
}

static void parse_options(int argc, char **argv)
{
	const struct {
		const char *name;
		const char **value;
	} options[] = {
		{"--file", &test.file},
		{"--pod", &test.pod},
		{"--engine", &test.engine},
		{"--pod-netns", &test.pod_netns},
		{"--world-netns", &test.world_netns},
		{"--guest-netns", &test.guest_netns},
		{"--cgroup", &test.cgroup},
		{"--kubelet-cgroup", &test.kubelet_cgroup},
		{"--pod-userns", &test.pod_userns},
		{"--only", &test.only},
	};
	const size_t n = sizeof(options) / sizeof(options[0]);
	const char *patience = getenv("SOCKMESH_TEST_PATIENCE");

	for (int i = 1; i + 1 < argc; i += 2) {
		size_t o = 0;

		if (!strcmp(argv[i], "--settle-ms")) {
			test.settle_ms = atoi(argv[i + 1]);
			continue;
		}
		while (o < n && strcmp(options[o].name, argv[i]) != 0)
			o++;
		if (o == n)
			errx(2, "unknown option %s", argv[i]);
		*options[o].value = argv[i + 1];
	}
	test.patience_ms = PATIENCE_MS * (patience && atoi(patience) > 0 ? atoi(patience) : 1);
	test.settle_ms *= test.patience_ms / PATIENCE_MS;
	if (!test.file || !test.pod || !test.engine || !test.pod_netns || !test.world_netns)
		errx(2, "--file, --pod, --engine, --pod-netns and --world-netns are needed");
}

int main(int argc, char **argv)
{
	bool all_right = true;

	setvbuf(stdout, NULL, _IOLBF, 0);
	parse_options(argc, argv);
	load();
	/* Not those of the run before, whose connections the kernel may still remember. */
	test.next_port = FIRST_BOUND_PORT + (unsigned)getpid() * 31 % BOUND_PORTS;
	for (int r = 0; r < test.n_rows; r++)
		for (const char *form = test.rows[r].forms; *form; form++)
			all_right = run_form(&test.rows[r], *form) && all_right;
	return all_right ? 0 : 1;
}
