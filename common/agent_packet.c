/* SPDX-License-Identifier: Apache-2.0 */
#include "agent_protocol.h"

#include "error.h"
#include "json.h"
#include "monotonic.h"
#include "scoped.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

enum {
	FDS_ROOM = 4, /* accepted from the kernel, so that a second one is seen and closed */
	MS_PER_S = 1000,
	US_PER_MS = 1000,
};

union control { /* aligned as cmsg(3) asks */
	char buf[CMSG_SPACE(FDS_ROOM * sizeof(int))];
	struct cmsghdr align;
};

int agent_packet_send(int sock, const char *text, size_t size, int fd, struct error *err)
{
	struct iovec iov = {.iov_base = (void *)text, .iov_len = size};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};
	union control control = {0};
	ssize_t n;

	/* The receiver could not tell an empty packet from the end. */
	if (size == 0)
		return error_set(err, EINVAL, "send a packet: it is empty");
	if (size > AGENT_PACKET_MAX)
		return error_set(err, EMSGSIZE, "send a packet of %zu bytes, the limit is %d", size,
				 AGENT_PACKET_MAX);
	if (fd >= 0) {
		struct cmsghdr *header;

		msg.msg_control = control.buf;
		msg.msg_controllen = CMSG_SPACE(sizeof(fd));
		header = CMSG_FIRSTHDR(&msg);
		header->cmsg_level = SOL_SOCKET;
		header->cmsg_type = SCM_RIGHTS;
		header->cmsg_len = CMSG_LEN(sizeof(fd));
		memcpy(CMSG_DATA(header), &fd, sizeof(fd));
	}
	do
		n = sendmsg(sock, &msg, MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	return n < 0 ? error_set(err, errno, "send a packet") : 0;
}

/* Keeps the first descriptor in *ret_fd, closes the others; returns how many there were. */
static unsigned collect_fds(struct msghdr *msg, int *ret_fd)
{
	unsigned n = 0;

	for (struct cmsghdr *h = CMSG_FIRSTHDR(msg); h; h = CMSG_NXTHDR(msg, h)) {
		size_t count;

		if (h->cmsg_level != SOL_SOCKET || h->cmsg_type != SCM_RIGHTS)
			continue;
		count = (h->cmsg_len - CMSG_LEN(0)) / sizeof(int);
		for (size_t i = 0; i < count; i++) {
			int fd;

			memcpy(&fd, CMSG_DATA(h) + i * sizeof(fd), sizeof(fd));
			if (n++ == 0)
				*ret_fd = fd;
			else
				close(fd);
		}
	}
	return n;
}

int agent_packet_receive(int sock, char *buf, size_t buf_size, size_t *ret_size, int *ret_fd,
			 struct error *err)
{
	struct iovec iov = {.iov_base = buf, .iov_len = buf_size - 1};
	union control control = {0};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = control.buf};
	scoped_fd int fd = -1;
	unsigned n_fds;
	ssize_t n;

	do {
		msg.msg_controllen = sizeof(control.buf);
		n = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);
	} while (n < 0 && errno == EINTR);
	if (n < 0)
		return error_set(err, errno, "receive a packet");

	n_fds = collect_fds(&msg, &fd);
	if ((msg.msg_flags & MSG_TRUNC) || n > AGENT_PACKET_MAX)
		return error_set(err, EMSGSIZE, "receive a packet: longer than %d bytes",
				 AGENT_PACKET_MAX);
	if (n_fds > 1)
		return error_set(err, EINVAL, "receive a packet: more than one file descriptor");
	/* More than there was room for, or this process has no descriptor left. */
	if (msg.msg_flags & MSG_CTRUNC)
		return error_set(err, EINVAL,
				 "receive a packet: its file descriptors could not be taken over");
	if (n == 0 && n_fds)
		return error_set(err, EINVAL, "receive a packet: a file descriptor and no text");
	buf[n] = '\0';
	*ret_size = (size_t)n;
	*ret_fd = take_fd(&fd);
	return 0;
}

/* ---- client ---- */

static int timed_out(struct error *err)
{
	return error_set(err, ETIMEDOUT, "the agent did not answer in time");
}

static int connect_until(int sock, const struct sockaddr_un *address, int64_t deadline_ms,
			 struct error *err)
{
	for (;;) {
		int64_t left_ms = deadline_ms - monotonic_ms();
		struct timeval timeout = {.tv_sec = left_ms / MS_PER_S,
					  .tv_usec = left_ms % MS_PER_S * US_PER_MS};

		if (left_ms <= 0)
			return timed_out(err);
		/*
		 * With a full backlog a non-blocking connect() of AF_UNIX gives up at once with
		 * EAGAIN, and poll() does not wait for room. A blocking one queues, for as long
		 * as SO_SNDTIMEO says (0 would be for ever).
		 */
		if (setsockopt(sock, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)) < 0)
			return error_set(err, errno, "set a timeout");
		if (connect(sock, (const struct sockaddr *)address, sizeof(*address)) == 0)
			return 0;
		if (errno == EAGAIN)
			return timed_out(err);
		if (errno != EINTR)
			return error_set(err, errno, "connect to %s", address->sun_path);
	}
}

static int open_connection(const char *run_dir, int64_t deadline_ms, int *ret_sock,
			   struct error *err)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	scoped_fd int sock = -1;
	int n, r;

	n = snprintf(address.sun_path, sizeof(address.sun_path), "%s/agent.sock", run_dir);
	if (n < 0 || (size_t)n >= sizeof(address.sun_path))
		return error_set(err, ENAMETOOLONG, "connect to %s/agent.sock", run_dir);
	sock = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return error_set(err, errno, "open a socket");
	r = connect_until(sock, &address, deadline_ms, err);
	if (r < 0)
		return r;
	if (fcntl(sock, F_SETFL, O_NONBLOCK) < 0)
		return error_set(err, errno, "make a socket non-blocking");
	*ret_sock = take_fd(&sock);
	return 0;
}

static int wait_until(int sock, short events, int64_t deadline_ms, struct error *err)
{
	for (;;) {
		struct pollfd p = {.fd = sock, .events = events};
		int64_t left_ms = deadline_ms - monotonic_ms();
		int n;

		if (left_ms <= 0)
			return timed_out(err);
		n = poll(&p, 1, (int)left_ms);
		if (n > 0)
			return 0;
		if (n < 0 && errno != EINTR)
			return error_set(err, errno, "wait for the agent");
	}
}

static int send_until(int sock, const char *text, size_t size, int fd, int64_t deadline_ms,
		      struct error *err)
{
	int r;

	while ((r = agent_packet_send(sock, text, size, fd, err)) == -EAGAIN) {
		r = wait_until(sock, POLLOUT, deadline_ms, err);
		if (r < 0)
			return r;
	}
	/*
	 * An agent that is full answers "busy" and closes without reading. Its answer may be
	 * waiting; if not, the read that follows reports the loss.
	 */
	return r == -EPIPE || r == -ECONNRESET ? 0 : r;
}

static int receive_until(int sock, char *buf, size_t *ret_size, int64_t deadline_ms,
			 struct error *err)
{
	bool was_reset = false;
	int r, fd = -1;

	for (;;) {
		r = agent_packet_receive(sock, buf, AGENT_PACKET_MAX + 1, ret_size, &fd, err);
		/* A close with our request unread is reported once, before what was sent to us. */
		if (r == -ECONNRESET && !was_reset)
			was_reset = true;
		else if (r != -EAGAIN)
			break;
		else if ((r = wait_until(sock, POLLIN, deadline_ms, err)) < 0)
			return r;
	}
	if (r < 0)
		return r;
	/* No answer carries a descriptor. */
	scoped_close(&fd);
	if (*ret_size == 0)
		return error_set(err, ECONNRESET, "the agent closed the connection unanswered");
	return 0;
}

struct answer {
	char *text;
	size_t size;
};

static int append(struct answer *answer, const char *text, size_t size, struct error *err)
{
	char *grown;

	if (size > AGENT_ANSWER_MAX - answer->size)
		return error_set(err, EMSGSIZE, "the agent's answer is longer than %d bytes",
				 AGENT_ANSWER_MAX);
	grown = realloc(answer->text, answer->size + size + 1);
	if (!grown)
		return error_set(err, ENOMEM, "hold the agent's answer");
	memcpy(grown + answer->size, text, size);
	answer->text = grown;
	answer->size += size;
	grown[answer->size] = '\0';
	return 0;
}

/* Adds what one packet holds: a part (*ret_more says if others follow) or the whole answer. */
static int append_packet(struct answer *answer, const char *packet, size_t size, bool *ret_more,
			 struct error *err)
{
	scoped_json json_t *body = NULL;
	const char *part = NULL;
	bool more = false;
	int r;

	r = json_parse(packet, size, "the agent's answer", &body, err);
	if (r < 0)
		return r;
	if (!json_object_get(body, "part") && !answer->text) {
		*ret_more = false;
		return append(answer, packet, size, err);
	}
	r = json_get_string(body, "part", "", &part, err);
	if (r == 0)
		r = json_get_bool(body, "more", "", &more, err);
	if (r < 0)
		return error_wrap(err, "the agent's answer");
	if (!part)
		return error_set(err, EINVAL, "the agent's answer breaks off: a part is missing");
	*ret_more = more;
	return append(answer, part, strlen(part), err);
}

int agent_call(const char *run_dir, const char *request, size_t size, int fd, int timeout_ms,
	       char **ret_text, size_t *ret_size, struct error *err)
{
	int64_t deadline_ms = monotonic_ms() + timeout_ms;
	char packet[AGENT_PACKET_MAX + 1];
	struct answer answer = {0};
	scoped_fd int sock = -1;
	size_t packet_size = 0;
	bool more = true;
	int r;

	r = open_connection(run_dir, deadline_ms, &sock, err);
	if (r == 0)
		r = send_until(sock, request, size, fd, deadline_ms, err);
	while (r == 0 && more) {
		r = receive_until(sock, packet, &packet_size, deadline_ms, err);
		if (r == 0)
			r = append_packet(&answer, packet, packet_size, &more, err);
	}
	if (r < 0) {
		free(answer.text);
		return r;
	}
	*ret_text = answer.text;
	*ret_size = answer.size;
	return 0;
}
