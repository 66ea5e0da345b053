/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ztunnel as far as the agent's protocol goes: connects, says hello, takes every pod that it is
 * told of (and closes its namespace), and acknowledges each message. Ends when the agent does, or
 * stays and connects again with --again, if it is away for ten minutes at most. Prints "connected"
 * once it is, and of each message its texts: "told UID NAME NAMESPACE SERVICE-ACCOUNT" when a pod
 * is added, "told UID" when one is kept or deleted.
 *
 *   zds_ack [--again] SOCKET
 */
#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { PACKET_MAX = 1024, FDS_MAX = 4, RETRY_MS = 20, CONNECT_TRIES = 500, AGAIN_TRIES = 30000 };

/* ZdsHello with version V1; WorkloadResponse with an Ack without an error. */
static const unsigned char hello[] = {0x08, 0x01}, ack[] = {0x0a, 0x00};

static void pause_ms(long ms)
{
	nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

static int connect_to(const char *path, int tries)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	for (int i = 0; i < tries; i++) {
		int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

		if (fd < 0)
			return -1;
		if (!connect(fd, (struct sockaddr *)&address, sizeof(address)))
			return fd;
		close(fd);
		pause_ms(RETRY_MS);
	}
	return -1;
}

static void close_all(struct msghdr *msg)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c)) {
		int fds[FDS_MAX];
		size_t n = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS || n > FDS_MAX)
			continue;
		memcpy(fds, CMSG_DATA(c), n * sizeof(int));
		for (size_t i = 0; i < n; i++)
			close(fds[i]);
	}
}

/* Every name is longer than what stands between two, which is a field's number and length. */
static void print_texts(const unsigned char *packet, size_t n)
{
	bool between = true;

	printf("told");
	for (size_t i = 0; i < n; i++) {
		bool is_text = isalnum(packet[i]) || packet[i] == '-';

		/* A length may look like a letter: one alone is none. */
		if (is_text && between &&
		    (i + 1 == n || (!isalnum(packet[i + 1]) && packet[i + 1] != '-')))
			is_text = false;
		if (is_text && between)
			putchar(' ');
		if (is_text)
			putchar(packet[i]);
		between = !is_text;
	}
	putchar('\n');
	fflush(stdout);
}

/* False at the end of the connection. */
static bool take_one(int fd)
{
	unsigned char packet[PACKET_MAX];
	char control[CMSG_SPACE(FDS_MAX * sizeof(int))];
	struct iovec part = {.iov_base = packet, .iov_len = sizeof(packet)};
	struct msghdr msg = {.msg_iov = &part,
			     .msg_iovlen = 1,
			     .msg_control = control,
			     .msg_controllen = sizeof(control)};
	ssize_t n = recvmsg(fd, &msg, MSG_CMSG_CLOEXEC);

	if (n <= 0)
		return n < 0 && errno == EINTR;
	close_all(&msg);
	print_texts(packet, (size_t)n);
	return send(fd, ack, sizeof(ack), MSG_NOSIGNAL) == sizeof(ack);
}

int main(int argc, char **argv)
{
	bool again = argc == 3 && strcmp(argv[1], "--again") == 0;
	const char *path = argv[argc - 1];

	if (argc != 2 && !again) {
		fprintf(stderr, "usage: zds_ack [--again] SOCKET\n");
		return 2;
	}
	do {
		int fd = connect_to(path, again ? AGAIN_TRIES : CONNECT_TRIES);

		if (fd < 0) {
			fprintf(stderr, "zds_ack: connect to %s: %s\n", path, strerror(errno));
			return 1;
		}
		if (send(fd, hello, sizeof(hello), MSG_NOSIGNAL) == sizeof(hello)) {
			printf("connected\n");
			fflush(stdout);
			while (take_one(fd))
				;
		}
		close(fd);
	} while (again);
	return 0;
}
