/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Speaks the plugin's protocol to an agent, without the plugin.
 *
 *   enrol RUN-DIR add ID NETNS-FILE NAME IPS ANNOTATION=VALUE...
 *   enrol RUN-DIR check|del ID NETNS-FILE NAME IPS
 *   enrol RUN-DIR status
 *
 * IPS is a list of ADDR/LEN with commas. The agent's answer goes to standard output; the exit code
 * is 0 when it says ok and, after add, that the pod is redirected. With ENROL_TIMES=FILE in the
 * environment a line "OP MICROSECONDS" is added to that file, from the first byte to the answer.
 */
#include "endpoint.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { PACKET_MAX = 64 * 1024, PATIENCE_S = 10 };

static char packet[PACKET_MAX + 1];
static size_t used;

static void __attribute__((format(printf, 1, 2))) add(const char *fmt, ...)
{
	va_list args;

	va_start(args, fmt);
	used += (size_t)vsnprintf(packet + used, sizeof(packet) - used, fmt, args);
	va_end(args);
	if (used >= sizeof(packet))
		errx(2, "the request is longer than a packet");
}

static void add_ips(const char *list)
{
	add(",\"ips\":[");
	for (const char *at = list; *at;) {
		int length = (int)strcspn(at, ",");

		add("%s\"%.*s\"", at == list ? "" : ",", length, at);
		at += length + (at[length] == ',');
	}
	add("]");
}

static void add_annotations(int argc, char **argv)
{
	add(",\"annotations\":{");
	for (int i = 0; i < argc; i++) {
		int key = (int)strcspn(argv[i], "=");

		if (strpbrk(argv[i], "\"\\") || !argv[i][key])
			errx(2, "%s: not KEY=VALUE, or not plain text", argv[i]);
		add("%s\"%.*s\":\"%s\"", i ? "," : "", key, argv[i], argv[i] + key + 1);
	}
	add("}");
}

static void build(int argc, char **argv)
{
	const char *op = argv[2];

	add("{\"v\":1,\"op\":\"%s\"", op);
	if (argc >= 7) {
		add(",\"containerId\":\"%s\",\"ifName\":\"eth0\",\"netns\":\"%s\"", argv[3],
		    argv[4]);
		add(",\"pod\":{\"namespace\":\"contract\",\"name\":\"%s\",\"uid\":\"uid-%s\"}",
		    argv[5], argv[3]);
		add_ips(argv[6]);
		add_annotations(argc - 7, argv + 7);
		add(",\"labels\":{},\"cgroup\":null");
	}
	add("}");
}

static int connect_agent(const char *run_dir)
{
	struct sockaddr_un at = {.sun_family = AF_UNIX};
	struct timeval patience = {.tv_sec = PATIENCE_S};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

	if ((size_t)snprintf(at.sun_path, sizeof(at.sun_path), "%s/agent.sock", run_dir) >=
	    sizeof(at.sun_path))
		errx(2, "%s is too long for a socket", run_dir);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience)); /* connect too */
	if (fd < 0 || connect(fd, (struct sockaddr *)&at, sizeof(at)) < 0)
		err(3, "%s", at.sun_path);
	return fd;
}

static void send_request(int sock, const char *netns)
{
	union {
		char space[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} control = {.space = {0}};
	struct iovec iov = {packet, used};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	struct cmsghdr *c;
	int fd;

	if (netns) {
		fd = open(netns, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			err(2, "%s", netns);
		msg.msg_control = &control;
		msg.msg_controllen = sizeof(control);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(fd));
	}
	if (sendmsg(sock, &msg, 0) < 0)
		err(3, "send");
}

static long now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

/* Lines of processes that end at the same time do not mix: each is one write. */
static void note_time(const char *op, long us)
{
	const char *file = getenv("ENROL_TIMES");
	char line[64];
	int fd, length;

	if (!file)
		return;
	fd = open(file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
	length = snprintf(line, sizeof(line), "%s %ld\n", op, us);
	if (fd < 0 || write(fd, line, (size_t)length) != length)
		err(2, "%s", file);
	close(fd);
}

int main(int argc, char **argv)
{
	ssize_t n;
	long start;
	int sock;

	if (argc < 3 || (argc < 7 && strcmp(argv[2], "status") != 0))
		errx(2, "usage: enrol RUN-DIR OP [ID NETNS NAME IPS [ANNOTATION=VALUE...]]");
	build(argc, argv);
	sock = connect_agent(argv[1]);
	start = now_us();
	send_request(sock, argc >= 7 ? argv[4] : NULL);
	n = recv(sock, packet, PACKET_MAX, 0);
	note_time(argv[2], now_us() - start);
	if (n <= 0)
		errx(3, "no answer from the agent: %s", n ? strerror(errno) : "it hung up");
	packet[n] = '\0';
	puts(packet);
	if (!strstr(packet, "\"ok\":true") && !strstr(packet, "\"ok\": true"))
		return 1;
	if (!strcmp(argv[2], "add") && !strstr(packet, "\"redirect\""))
		return 1;
	return 0;
}
