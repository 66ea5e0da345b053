/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The measuring client: one thread, epoll, non-blocking sockets, every answer compared with what
 * was asked.
 *
 *	bench_client pingpong ADDRESS PORT MILLISECONDS CONNECTIONS SIZE
 *	bench_client connect ADDRESS PORT MILLISECONDS CONNECTIONS
 *	bench_client http ADDRESS PORT MILLISECONDS CONNECTIONS
 *	bench_client bulk ADDRESS PORT MILLISECONDS
 *	bench_client idle MILLISECONDS
 *
 * pingpong: messages of SIZE bytes there and back, one at a time on each connection. connect: the
 * same with 64 bytes and a new connection for each. http: GET on connections that are kept. bulk:
 * one way, as fast as it goes; the server says how much it got. idle: nothing, which is what the
 * rest of the machine needs meanwhile.
 *
 * Some connections with some exchanges go ahead and are not measured: caches get warm, and who
 * accepts has been seen by an accelerator that learns. Prints one JSON object. Exits with a status
 * other than 0 when nothing could be measured or an answer was wrong.
 */
#include "bench_samples.h"

#include <sys/epoll.h>

enum {
	SIZE_MAX_ = 65536,
	CONNECTIONS_MAX = 1024,
	CONNECT_SIZE = 64,
	HTTP_BODY = 64,
	ANSWER_MAX = 4096, /* of an HTTP answer: proxies add headers */
	BULK_CHUNK = 131072,
	WARM_CONNECTIONS = 8,
	WARM_EXCHANGES = 8, /* on each of these */
	PATIENCE_MS = 10000,
	ERRORS_MAX = 1000, /* then there is nothing to measure */
};

enum kind { PINGPONG, CONNECT, HTTP };

struct load {
	enum kind kind;
	union bench_address to;
	size_t n, size;		 /* connections; bytes of a message */
	uint64_t per_connection; /* exchanges, then a new one; 0: never */
};

/* One connection, with one exchange under way. */
struct slot {
	int fd;
	bool connecting, wants_out;
	uint32_t serial;
	uint64_t started_ns, exchanges;
	size_t n_out, sent, n_in;
	char *out, *in;
};

static struct bench_samples samples;
static bool sampling;
static uint64_t completed; /* also those that are not sampled */
static int epoll_fd;

static void watch(struct slot *slot, int op, uint32_t events)
{
	struct epoll_event event = {.events = events, .data.ptr = slot};

	if (epoll_ctl(epoll_fd, op, slot->fd, &event))
		err(1, "epoll_ctl");
	slot->wants_out = events & EPOLLOUT;
}

/* A connection that fails is an error of one exchange; the reason is shown once. */
static void failed(const char *what)
{
	if (!samples.errors++)
		warn("%s", what);
	if (samples.errors > ERRORS_MAX)
		errx(1, "more than %d exchanges failed", ERRORS_MAX);
}

static int dial(const union bench_address *to)
{
	int fd = socket(to->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	if (fd < 0)
		err(1, "socket");
	bench_no_delay(fd);
	if (connect(fd, &to->any, bench_address_size(to)) && errno != EINPROGRESS)
		err(1, "connect");
	return fd;
}

/* Each message differs from the one before, so that a stale or misplaced answer shows. */
static void compose(const struct load *load, struct slot *slot)
{
	static uint32_t serial;

	slot->serial = ++serial;
	slot->sent = slot->n_in = 0;
	if (load->kind == HTTP) {
		slot->n_out = snprintf(slot->out, load->size,
				       "GET /%010u HTTP/1.1\r\nHost: bench\r\n\r\n", slot->serial);
		return;
	}
	slot->n_out = load->size;
	memset(slot->out, (int)slot->serial, load->size);
	memcpy(slot->out, &slot->serial, sizeof(slot->serial));
}

static bool send_rest(struct slot *slot)
{
	ssize_t n;

	while (slot->sent < slot->n_out) {
		n = send(slot->fd, slot->out + slot->sent, slot->n_out - slot->sent, MSG_NOSIGNAL);
		if (n < 0 && errno == EAGAIN) {
			if (!slot->wants_out)
				watch(slot, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
			return true;
		}
		if (n < 0)
			return false;
		slot->sent += n;
	}
	if (slot->wants_out)
		watch(slot, EPOLL_CTL_MOD, EPOLLIN);
	return true;
}

static void slot_open(const struct load *load, struct slot *slot)
{
	slot->started_ns = bench_now_ns();
	slot->fd = dial(&load->to);
	slot->connecting = true;
	slot->exchanges = 0;
	watch(slot, EPOLL_CTL_ADD, EPOLLOUT);
}

static void slot_reopen(const struct load *load, struct slot *slot)
{
	close(slot->fd);
	slot_open(load, slot);
}

/* Bytes of a whole answer that begins at `in`; 0: it is not complete. */
static size_t http_answer_size(const struct slot *slot)
{
	static const char status[] = "HTTP/1.1 200 ", length[] = "content-length:";
	const char *end = memmem(slot->in, slot->n_in, "\r\n\r\n", 4), *line;
	size_t body = 0;

	if (!end)
		return 0;
	if (strncmp(slot->in, status, sizeof(status) - 1))
		errx(1, "not the answer expected: %.*s", (int)(end - slot->in), slot->in);
	for (line = slot->in; line && line < end; line = memchr(line, '\n', end - line)) {
		line += *line == '\n';
		if (!strncasecmp(line, length, sizeof(length) - 1))
			body = strtoul(line + sizeof(length) - 1, NULL, 10);
	}
	if (body != HTTP_BODY)
		errx(1, "an answer with a body of %zu bytes", body);
	return slot->n_in < end + 4 - slot->in + body ? 0 : end + 4 - slot->in + body;
}

/* True when the answer is complete; a wrong one ends everything. */
static bool answered(const struct load *load, const struct slot *slot)
{
	char path[16];
	size_t size;

	if (load->kind != HTTP) {
		if (slot->n_in == load->size && memcmp(slot->in, slot->out, load->size))
			errx(1, "the answer is not what was sent");
		return slot->n_in == load->size;
	}
	size = http_answer_size(slot);
	if (!size)
		return false;
	snprintf(path, sizeof(path), "/%010u", slot->serial);
	if (size != slot->n_in || memcmp(slot->in + size - HTTP_BODY, path, strlen(path)))
		errx(1, "not the answer to what was asked");
	return true;
}

static void exchange_begin(const struct load *load, struct slot *slot)
{
	compose(load, slot);
	if (!send_rest(slot)) {
		failed("send");
		slot_reopen(load, slot);
	}
}

static void exchange_end(const struct load *load, struct slot *slot)
{
	uint64_t now = bench_now_ns();

	completed++;
	if (sampling)
		bench_sample(&samples, now - slot->started_ns);
	if (load->per_connection && ++slot->exchanges == load->per_connection) {
		slot_reopen(load, slot);
		return;
	}
	slot->started_ns = now;
	exchange_begin(load, slot);
}

static void connected(const struct load *load, struct slot *slot)
{
	socklen_t size = sizeof(errno);

	errno = 0;
	getsockopt(slot->fd, SOL_SOCKET, SO_ERROR, &errno, &size);
	if (errno) {
		failed("connect");
		slot_reopen(load, slot);
		return;
	}
	slot->connecting = false;
	watch(slot, EPOLL_CTL_MOD, EPOLLIN);
	if (load->kind != CONNECT)
		slot->started_ns = bench_now_ns();
	exchange_begin(load, slot);
}

static void readable(const struct load *load, struct slot *slot)
{
	size_t room = (load->kind == HTTP ? ANSWER_MAX : load->size) - slot->n_in;
	ssize_t n = recv(slot->fd, slot->in + slot->n_in, room, 0);

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		errno = n ? errno : ECONNRESET;
		failed("receive");
		slot_reopen(load, slot);
		return;
	}
	slot->n_in += n;
	if (answered(load, slot))
		exchange_end(load, slot);
}

static void handle(const struct load *load, struct slot *slot, uint32_t events)
{
	if (slot->connecting) {
		connected(load, slot);
	} else if (slot->wants_out && (events & EPOLLOUT) && !send_rest(slot)) {
		failed("send");
		slot_reopen(load, slot);
	} else if (events & (EPOLLIN | EPOLLERR | EPOLLHUP)) {
		readable(load, slot);
	}
}

/* Until then, or until that many exchanges are done, whatever is first. */
static void drive(const struct load *load, uint64_t until_ns, uint64_t count)
{
	struct epoll_event events[CONNECTIONS_MAX];
	uint64_t last = completed + count;
	int i, n;

	while (bench_now_ns() < until_ns && completed < last) {
		n = epoll_wait(epoll_fd, events, CONNECTIONS_MAX, PATIENCE_MS);
		if (!n)
			errx(1, "no answer within %d ms", PATIENCE_MS);
		for (i = 0; i < n; i++)
			handle(load, events[i].data.ptr, events[i].events);
	}
}

static struct slot *slots_open(const struct load *load)
{
	struct slot *slots = calloc(load->n, sizeof(*slots));
	size_t i, room = load->size > ANSWER_MAX ? load->size : ANSWER_MAX;

	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (!slots || epoll_fd < 0)
		err(1, "cannot begin");
	for (i = 0; i < load->n; i++) {
		slots[i].out = malloc(room);
		slots[i].in = malloc(room);
		if (!slots[i].out || !slots[i].in)
			err(1, "malloc");
		slot_open(load, &slots[i]);
	}
	return slots;
}

static void slots_close(struct slot *slots, size_t n)
{
	size_t i;

	for (i = 0; i < n; i++) {
		close(slots[i].fd);
		free(slots[i].out);
		free(slots[i].in);
	}
	close(epoll_fd);
	free(slots);
}

static void exchanges(const struct load *load, uint64_t duration_ns)
{
	struct load warm_up = *load;
	struct slot *slots;

	warm_up.n = 1;
	warm_up.per_connection = WARM_EXCHANGES;
	slots = slots_open(&warm_up);
	drive(&warm_up, UINT64_MAX, WARM_CONNECTIONS * WARM_EXCHANGES);
	slots_close(slots, warm_up.n);

	slots = slots_open(load);
	drive(load, bench_now_ns() + duration_ns / 8, UINT64_MAX - completed);
	bench_samples_start(&samples);
	sampling = true;
	drive(load, samples.started_ns + duration_ns, UINT64_MAX - completed);
	bench_samples_end(&samples);
	slots_close(slots, load->n);
	bench_samples_print(&samples, load->kind == CONNECT ? "conns_per_s" : "rps");
}

/* ---- bulk -------------------------------------------------------------------------------------
 */

static void wait_for(int fd, short events)
{
	struct epoll_event event = {.events = events};

	if (epoll_ctl(epoll_fd, EPOLL_CTL_MOD, fd, &event))
		err(1, "epoll_ctl");
	if (epoll_wait(epoll_fd, &event, 1, PATIENCE_MS) != 1)
		errx(1, "no progress within %d ms", PATIENCE_MS);
}

/* What the server says it got. */
static uint64_t bulk_answer(int fd)
{
	uint64_t count;
	ssize_t n;

	while ((n = recv(fd, &count, sizeof(count), 0)) < 0 && errno == EAGAIN)
		wait_for(fd, EPOLLIN);
	if (n != sizeof(count))
		errx(1, "the server did not say how much it got");
	return count;
}

/* Sends until then, at least once, at most `limit` bytes. Returns what has arrived. */
static uint64_t bulk_send(const union bench_address *to, uint64_t until_ns, uint64_t limit)
{
	static char data[BULK_CHUNK];
	struct epoll_event event = {.events = EPOLLOUT};
	int fd = dial(to);
	uint64_t sent = 0, count;
	ssize_t n;

	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event))
		err(1, "epoll_ctl");
	wait_for(fd, EPOLLOUT);
	do {
		n = send(fd, data, sizeof(data), MSG_NOSIGNAL);
		if (n >= 0)
			sent += n;
		else if (errno == EAGAIN)
			wait_for(fd, EPOLLOUT);
		else
			err(1, "send");
	} while (!sent || (bench_now_ns() < until_ns && sent < limit));
	if (shutdown(fd, SHUT_WR))
		err(1, "shutdown");
	count = bulk_answer(fd);
	close(fd);
	if (count != sent)
		errx(1, "%" PRIu64 " bytes arrived of %" PRIu64, count, sent);
	return count;
}

/* The CPU's time is for each MiB. */
static void bulk(const union bench_address *to, uint64_t duration_ns)
{
	uint64_t bytes;
	double seconds, requests;
	int i;

	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0)
		err(1, "epoll_create1");
	for (i = 0; i < WARM_CONNECTIONS; i++)
		bulk_send(to, UINT64_MAX, 4 * BULK_CHUNK);
	bench_samples_start(&samples);
	bytes = bulk_send(to, samples.started_ns + duration_ns, UINT64_MAX);
	bench_samples_end(&samples);
	seconds = (double)(samples.ended_ns - samples.started_ns) / 1e9;
	requests = (double)bytes / (1024 * 1024);
	printf("{\"metrics\":{\"bytes_per_s\":%.0f,\"cpu_us_per_req\":%.3f},\"count\":%.0f,"
	       "\"errors\":0}\n",
	       (double)bytes / seconds, (double)samples.cpu_ns / 1e3 / requests, requests);
}

static void idle(uint64_t duration_ns)
{
	struct timespec ts = {.tv_sec = (time_t)(duration_ns / 1000000000),
			      .tv_nsec = (long)(duration_ns % 1000000000)};

	bench_samples_start(&samples);
	nanosleep(&ts, NULL);
	bench_samples_end(&samples);
	printf("{\"busy_us_per_s\":%.1f}\n",
	       (double)samples.cpu_ns * 1e6 / (double)(samples.ended_ns - samples.started_ns));
}

/* ---- arguments --------------------------------------------------------------------------------
 */

static _Noreturn void usage(void)
{
	errx(2, "usage: bench_client pingpong ADDRESS PORT MILLISECONDS CONNECTIONS SIZE\n"
		"       bench_client connect|http ADDRESS PORT MILLISECONDS CONNECTIONS\n"
		"       bench_client bulk ADDRESS PORT MILLISECONDS\n"
		"       bench_client idle MILLISECONDS");
}

static uint64_t number(const char *text, uint64_t min, uint64_t max)
{
	char *end;
	uint64_t n = strtoull(text, &end, 10);

	if (*end || n < min || n > max)
		errx(2, "not a number from %" PRIu64 " to %" PRIu64 ": %s", min, max, text);
	return n;
}

static void exchanges_by(int argc, char **argv)
{
	struct load load = {.to = bench_address(argv[2], bench_port(argv[3])),
			    .size = CONNECT_SIZE};

	if (!strcmp(argv[1], "pingpong") && argc == 7)
		load.size = number(argv[6], sizeof(uint32_t), SIZE_MAX_);
	else if (!strcmp(argv[1], "connect") && argc == 6)
		load = (struct load){CONNECT, load.to, 0, CONNECT_SIZE, 1};
	else if (!strcmp(argv[1], "http") && argc == 6)
		load.kind = HTTP;
	else
		usage();
	load.n = number(argv[5], 1, CONNECTIONS_MAX);
	exchanges(&load, number(argv[4], 1, 3600000) * 1000000);
}

int main(int argc, char **argv)
{
	bench_samples_init(&samples);
	if (argc == 3 && !strcmp(argv[1], "idle")) {
		idle(number(argv[2], 1, 3600000) * 1000000);
	} else if (argc == 5 && !strcmp(argv[1], "bulk")) {
		union bench_address to = bench_address(argv[2], bench_port(argv[3]));

		bulk(&to, number(argv[4], 1, 3600000) * 1000000);
	} else if (argc >= 6) {
		exchanges_by(argc, argv);
	} else {
		usage();
	}
	return 0;
}
