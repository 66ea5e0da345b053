/* SPDX-License-Identifier: Apache-2.0 */

/*
 * advise_calls WHAT [ROUNDS]: an application that does one thing to TCP sockets, ROUNDS times
 * (300), over a connection with itself on the loopback, under the process name "call-WHAT". But for
 * that one thing everything is non-blocking receives after epoll. Prints "done".
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#ifndef TCP_INQ
#define TCP_INQ 36
#endif
#ifndef SO_PEEK_OFF
#define SO_PEEK_OFF 42
#endif

enum { TIMEOUT_MS = 5000 };

struct connection {
	int near, far; /* near is the one under test; both are non-blocking */
	int epoll;     /* waits for near */
	int pipe[2], file;
};

static void die(const char *what)
{
	perror(what);
	exit(1);
}

static void check(int ok, const char *what)
{
	if (!ok)
		die(what);
}

static void make_pair(struct connection *c)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	struct epoll_event event = {.events = EPOLLIN};
	socklen_t size = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	check(listener >= 0 && !bind(listener, (struct sockaddr *)&address, size) &&
		      !listen(listener, 1) &&
		      !getsockname(listener, (struct sockaddr *)&address, &size),
	      "listen");
	c->near = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	check(c->near >= 0 && !connect(c->near, (struct sockaddr *)&address, size), "connect");
	c->far = accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	check(c->far >= 0 && !fcntl(c->near, F_SETFL, O_NONBLOCK), "accept");
	close(listener);
	c->epoll = epoll_create1(EPOLL_CLOEXEC);
	c->file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
	check(c->epoll >= 0 && !epoll_ctl(c->epoll, EPOLL_CTL_ADD, c->near, &event) &&
		      !pipe2(c->pipe, O_CLOEXEC) && c->file >= 0,
	      "epoll");
}

/* One byte to near, and near knows of it. */
static void arrive(struct connection *c)
{
	struct epoll_event event;

	check(write(c->far, "x", 1) == 1, "write");
	check(epoll_wait(c->epoll, &event, 1, TIMEOUT_MS) == 1, "epoll_wait");
}

/* The clean way, which is also what puts the others over the number of calls that are needed. */
static void receive(struct connection *c)
{
	char byte;

	arrive(c);
	check(read(c->near, &byte, 1) == 1, "read");
}

/* ---- one function a thing ------------------------------------------------------------------- */

static void do_clean(struct connection *c)
{
	struct iovec part = {&(char){0}, 1};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	receive(c);
	arrive(c);
	check(recvmsg(c->near, &message, 0) == 1, "recvmsg");
	/* Blocking calls on what is no TCP socket, and one that is not to wait. */
	check(write(c->pipe[1], "x", 1) == 1 && read(c->pipe[0], part.iov_base, 1) == 1, "pipe");
	check(!fcntl(c->near, F_SETFL, 0), "fcntl");
	check(recv(c->near, part.iov_base, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN, "recv");
	check(!fcntl(c->near, F_SETFL, O_NONBLOCK), "fcntl");
	check(sendfile(c->far, c->file, &(off_t){0}, 1) == 1, "sendfile");
	check(epoll_wait(c->epoll, &(struct epoll_event){0}, 1, TIMEOUT_MS) == 1, "epoll_wait");
	check(readv(c->near, &part, 1) == 1, "readv");
}

static void do_splice(struct connection *c)
{
	char byte;

	arrive(c);
	check(splice(c->near, NULL, c->pipe[1], NULL, 1, 0) == 1, "splice");
	check(read(c->pipe[0], &byte, 1) == 1, "pipe");
}

static void do_fionread(struct connection *c)
{
	int bytes = 0;

	check(!ioctl(c->near, FIONREAD, &bytes), "FIONREAD");
	receive(c);
}

static void do_waitall(struct connection *c)
{
	char byte;

	arrive(c);
	check(recv(c->near, &byte, 1, MSG_WAITALL) == 1, "MSG_WAITALL");
}

static void do_blocking(struct connection *c)
{
	char byte;

	check(!fcntl(c->near, F_SETFL, 0), "fcntl");
	arrive(c);
	check(recv(c->near, &byte, 1, 0) == 1, "recv");
}

static void do_rcvlowat(struct connection *c)
{
	check(!setsockopt(c->near, SOL_SOCKET, SO_RCVLOWAT, &(int){2}, sizeof(int)), "SO_RCVLOWAT");
	check(!setsockopt(c->near, SOL_SOCKET, SO_RCVLOWAT, &(int){1}, sizeof(int)), "SO_RCVLOWAT");
	receive(c);
}

static void do_zerocopy(struct connection *c)
{
	char byte, control[256];
	struct msghdr message = {.msg_control = control, .msg_controllen = sizeof(control)};

	check(!setsockopt(c->far, SOL_SOCKET, SO_ZEROCOPY, &(int){1}, sizeof(int)), "SO_ZEROCOPY");
	check(send(c->far, "x", 1, MSG_ZEROCOPY) == 1, "MSG_ZEROCOPY");
	check(epoll_wait(c->epoll, &(struct epoll_event){0}, 1, TIMEOUT_MS) == 1, "epoll_wait");
	check(read(c->near, &byte, 1) == 1, "read");
	recvmsg(c->far, &message, MSG_ERRQUEUE | MSG_DONTWAIT);
}

static void do_oob(struct connection *c)
{
	char byte;

	check(send(c->far, "x", 1, MSG_OOB) == 1, "MSG_OOB");
	recv(c->near, &byte, 1, MSG_OOB);
}

static void do_ulp(struct connection *c)
{
	/* A name that no kernel has: the call counts, not what comes of it. */
	setsockopt(c->near, IPPROTO_TCP, TCP_ULP, "none", 4);
	receive(c);
}

static void do_discard(struct connection *c)
{
	char byte;

	arrive(c);
	check(recv(c->near, &byte, 1, MSG_TRUNC) == 1, "MSG_TRUNC");
}

static void do_inq(struct connection *c)
{
	check(!setsockopt(c->near, IPPROTO_TCP, TCP_INQ, &(int){1}, sizeof(int)), "TCP_INQ");
	receive(c);
}

static void do_peek_off(struct connection *c)
{
	/* TCP has it since Linux 6.9. */
	setsockopt(c->near, SOL_SOCKET, SO_PEEK_OFF, &(int){0}, sizeof(int));
	receive(c);
}

static void do_zc_receive(struct connection *c)
{
	char zero[64] = {0};
	socklen_t size = sizeof(zero);

	getsockopt(c->near, IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE, zero, &size);
	receive(c);
}

static void do_io_uring(struct connection *c)
{
	/* Refused for its arguments: enough to be unknown. */
	syscall(__NR_io_uring_enter, -1, 1, 0, 0, NULL, 0);
	receive(c);
}

static void do_io_submit(struct connection *c)
{
	syscall(__NR_io_submit, (aio_context_t)0, 0L, (struct iocb **)NULL);
	receive(c);
}

static void do_32bit(struct connection *c)
{
#ifdef __x86_64__
	/* i386's read(), as a 32-bit program calls it; needs its buffer below 4 GB. */
	char *low = mmap(NULL, 4096, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
	long r = 3;

	check(low != MAP_FAILED, "mmap");
	arrive(c);
	__asm__ volatile("int $0x80"
			 : "+a"(r)
			 : "b"((long)c->near), "c"(low), "d"(1L)
			 : "memory", "r8", "r9", "r10", "r11");
	check(r == 1, "read of i386");
	munmap(low, 4096);
#else
	receive(c);
#endif
}

static const struct {
	const char *name;
	void (*run)(struct connection *c);
} things[] = {
	{"clean", do_clean},	   {"splice", do_splice},     {"fionread", do_fionread},
	{"waitall", do_waitall},   {"blocking", do_blocking}, {"rcvlowat", do_rcvlowat},
	{"zerocopy", do_zerocopy}, {"oob", do_oob},	      {"ulp", do_ulp},
	{"discard", do_discard},   {"inq", do_inq},	      {"peek-off", do_peek_off},
	{"zc-rcv", do_zc_receive}, {"io-uring", do_io_uring}, {"io-submit", do_io_submit},
	{"32bit", do_32bit},
};

int main(int argc, char **argv)
{
	int rounds = argc > 2 ? atoi(argv[2]) : 300;
	struct connection connection;
	char name[16];

	for (size_t i = 0; argc > 1 && i < sizeof(things) / sizeof(things[0]); i++) {
		if (strcmp(things[i].name, argv[1]) != 0)
			continue;
		snprintf(name, sizeof(name), "call-%s", argv[1]);
		prctl(PR_SET_NAME, name);
		make_pair(&connection);
		while (rounds-- > 0)
			things[i].run(&connection);
		puts("done");
		return 0;
	}
	fprintf(stderr, "usage: advise_calls WHAT [ROUNDS]\n");
	return 2;
}
