/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Many connections, each checked: the server (reporter --echo) first says the original destination
 * that it sees, then echoes.
 *
 *   flood [--workers N] [--payload BYTES] [--bind-from PORT] [--hold] [--any-original]
 *         [--mark N] [--source ADDR:PORT] --count N --concurrency N --label L ADDR:PORT...
 *
 * COUNT connections to the destinations in turn, CONCURRENCY of them open at a time. Of each: the
 * server's label must be L and its SO_ORIGINAL_DST the address dialled; PAYLOAD bytes that no other
 * connection sends must come back unchanged; then it is closed. With --hold all COUNT connections
 * are opened before the first one is used, and stay until every one is checked. --bind-from binds
 * the connections' ports from PORT on. With --any-original the destination that the server sees is
 * not looked at. Workers are processes, each with its share.
 *
 * Prints "ok N connections" and exits 0, or says what went wrong how often and exits 1.
 */
#include "speaker.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum {
	DESTINATIONS_MAX = 32,
	PAYLOAD_MAX = 4096,
	LINE_MAX_BYTES = 512,
	EVENTS = 256,
	STALL_S = 30, /* without any progress: give up */
};

enum state { CONNECTING, READING_LINE, HELD, ECHOING };

struct connection {
	int fd;
	enum state state;
	unsigned serial;
	size_t got;
	char line[LINE_MAX_BYTES];
};

/* Shared by the workers. */
struct tally {
	unsigned done, held;
	unsigned connect_failed, wrong_place, wrong_payload, cut;
	int last_errno;
	char example[LINE_MAX_BYTES];
};

static struct {
	unsigned workers, payload, count, concurrency, bind_from;
	bool hold, any_original;
	struct speaker as;
	const char *label;
	union endpoint to[DESTINATIONS_MAX];
	unsigned n_to;
	struct tally *tally;
} flood = {.workers = 1, .payload = 64, .concurrency = 1};

static int epoll_fd;
static unsigned in_flight; /* of this worker: open and not held */

static void fail(unsigned *counter, const char *example)
{
	__atomic_add_fetch(counter, 1, __ATOMIC_RELAXED);
	if (!flood.tally->example[0])
		snprintf(flood.tally->example, LINE_MAX_BYTES, "%s", example);
}

static void finish(struct connection *c)
{
	close(c->fd);
	c->fd = -1;
	in_flight -= c->state != HELD;
	__atomic_add_fetch(&flood.tally->done, 1, __ATOMIC_RELAXED);
}

static const union endpoint *destination(const struct connection *c)
{
	return &flood.to[c->serial % flood.n_to];
}

static void start(struct connection *c, unsigned serial)
{
	const union endpoint *to;
	struct epoll_event event = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
	union endpoint from;
	int on = 1;

	*c = (struct connection){.serial = serial, .state = CONNECTING};
	to = destination(c);
	c->fd = socket(to->any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (c->fd < 0)
		err(1, "socket");
	in_flight++;
	speaker_prepare(&flood.as, c->fd, to->any.sa_family);
	if (flood.bind_from) {
		endpoint_from_address(to->any.sa_family == AF_INET ? "0.0.0.0" : "::",
				      flood.bind_from + serial, &from);
		setsockopt(c->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
		if (bind(c->fd, &from.any, endpoint_size(&from)) < 0)
			err(1, "bind port %u", flood.bind_from + serial);
	}
	if (connect(c->fd, &to->any, endpoint_size(to)) < 0 && errno != EINPROGRESS) {
		flood.tally->last_errno = errno;
		fail(&flood.tally->connect_failed, "connect");
		finish(c);
		return;
	}
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &event) < 0)
		err(1, "epoll_ctl");
}

static void wait_for_input(struct connection *c)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = c};

	epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &event);
}

/* Every 4 bytes of a connection's payload depend on the connection and on their place. */
static void fill(const struct connection *c, char *payload)
{
	for (unsigned i = 0; i < flood.payload; i += 4) {
		unsigned word = (c->serial + 1) * 2654435761u ^ i * 40503u;

		memcpy(payload + i, &word, 4);
	}
}

static void send_payload(struct connection *c)
{
	char payload[PAYLOAD_MAX];

	fill(c, payload);
	c->state = ECHOING;
	c->got = 0;
	if (write(c->fd, payload, flood.payload) != (ssize_t)flood.payload) {
		fail(&flood.tally->cut, "write");
		finish(c);
	}
}

static bool line_is_right(const struct connection *c)
{
	const union endpoint *to = destination(c);
	char want_label[64], want_dst[128], text[ENDPOINT_TEXT];
	bool v4 = to->any.sa_family == AF_INET;

	snprintf(want_label, sizeof(want_label), "label=%s ", flood.label);
	snprintf(want_dst, sizeof(want_dst), " odst%d=%d:%s ", v4 ? 4 : 6, v4 ? 16 : 28,
		 endpoint_format(to, text));
	return strstr(c->line, want_label) && (flood.any_original || strstr(c->line, want_dst));
}

static void read_line(struct connection *c)
{
	ssize_t n = read(c->fd, c->line + c->got, sizeof(c->line) - 1 - c->got);

	if (n < 0 && errno == EAGAIN)
		return;
	if (n <= 0) {
		flood.tally->last_errno = n ? errno : 0;
		fail(&flood.tally->cut, "no report");
		finish(c);
		return;
	}
	c->got += (size_t)n;
	if (!strchr(c->line, '\n'))
		return;
	if (!line_is_right(c)) {
		fail(&flood.tally->wrong_place, c->line);
		finish(c);
	} else if (flood.hold) {
		c->state = HELD;
		in_flight--;
		__atomic_add_fetch(&flood.tally->held, 1, __ATOMIC_RELAXED);
	} else {
		send_payload(c);
	}
}

static void read_echo(struct connection *c)
{
	char got[PAYLOAD_MAX], want[PAYLOAD_MAX];
	ssize_t n = read(c->fd, got, flood.payload - c->got);

	if (n < 0 && errno == EAGAIN)
		return;
	fill(c, want);
	if (n <= 0)
		fail(&flood.tally->cut, "no echo");
	else if (memcmp(got, want + c->got, (size_t)n) != 0)
		fail(&flood.tally->wrong_payload, c->line);
	else if ((c->got += (size_t)n) < flood.payload)
		return;
	finish(c);
}

static void progress(struct connection *c)
{
	int error = 0;
	socklen_t size = sizeof(error);

	if (c->state == CONNECTING) {
		getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
		if (error) {
			flood.tally->last_errno = error;
			fail(&flood.tally->connect_failed, "connect");
			finish(c);
			return;
		}
		c->state = READING_LINE;
		wait_for_input(c);
	} else if (c->state == READING_LINE) {
		read_line(c);
	} else if (c->state == ECHOING) {
		read_echo(c);
	} else {
		fail(&flood.tally->cut, "cut while held");
		finish(c);
	}
}

/* Everyone's connections are open, or have failed: now use mine, one after the other. */
static void release_held(struct connection *connections, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (connections[i].fd >= 0 && connections[i].state == HELD) {
			in_flight++;
			send_payload(&connections[i]);
		}
}

static void wait_and_progress(void)
{
	static time_t last;
	struct epoll_event events[EVENTS];
	int n = epoll_wait(epoll_fd, events, EVENTS, 200);

	if (n > 0 || !last)
		last = time(NULL);
	if (time(NULL) - last > STALL_S)
		errx(1, "nothing happened for %d s", STALL_S);
	for (int i = 0; i < n; i++)
		progress(events[i].data.ptr);
}

static void work(unsigned worker)
{
	unsigned slots = flood.hold ? flood.count / flood.workers + 1
				    : (flood.concurrency + flood.workers - 1) / flood.workers;
	/* A burst of connections beyond the listener's backlog would only measure SYN retries. */
	unsigned burst = (flood.concurrency + flood.workers - 1) / flood.workers;
	struct connection *connections = calloc(slots, sizeof(*connections));
	unsigned serial = worker, started = 0;

	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (!connections || epoll_fd < 0)
		err(1, "worker");
	for (unsigned i = 0; i < slots; i++)
		connections[i].fd = -1;
	while (serial < flood.count || in_flight) {
		for (unsigned i = flood.hold ? started : 0;
		     i < slots && in_flight < burst && serial < flood.count; i++) {
			if (connections[i].fd >= 0)
				continue;
			start(&connections[i], serial);
			serial += flood.workers;
			started++;
		}
		wait_and_progress();
	}
	while (flood.hold && flood.tally->held + flood.tally->done < flood.count)
		wait_and_progress();
	if (flood.hold)
		release_held(connections, slots);
	while (in_flight)
		wait_and_progress();
	_exit(0);
}

static int report(bool workers_died)
{
	const struct tally *t = flood.tally;
	unsigned wrong = t->connect_failed + t->wrong_place + t->wrong_payload + t->cut;

	if (!wrong && !workers_died && t->done == flood.count) {
		printf("ok %u connections\n", t->done);
		return 0;
	}
	printf("%u of %u done, %u refused (%s), %u at the wrong place, %u with wrong bytes, %u "
	       "cut; "
	       "for example: %s\n",
	       t->done, flood.count, t->connect_failed, strerror(t->last_errno), t->wrong_place,
	       t->wrong_payload, t->cut, t->example);
	return 1;
}

static void parse(int argc, char **argv)
{
	int i = 1;

	for (; i < argc && !strncmp(argv[i], "--", 2); i++) {
		const char *value = i + 1 < argc ? argv[i + 1] : "";

		if (!strcmp(argv[i], "--hold")) {
			flood.hold = true;
			continue;
		}
		if (!strcmp(argv[i], "--any-original")) {
			flood.any_original = true;
			continue;
		}
		if (!strcmp(argv[i], "--workers"))
			flood.workers = (unsigned)atoi(value);
		else if (!strcmp(argv[i], "--payload"))
			flood.payload = (unsigned)atoi(value);
		else if (!strcmp(argv[i], "--count"))
			flood.count = (unsigned)atoi(value);
		else if (!strcmp(argv[i], "--concurrency"))
			flood.concurrency = (unsigned)atoi(value);
		else if (!strcmp(argv[i], "--bind-from"))
			flood.bind_from = (unsigned)atoi(value);
		else if (!strcmp(argv[i], "--label"))
			flood.label = value;
		else if (!speaker_option(&flood.as, argv[i], value))
			errx(2, "unknown option %s", argv[i]);
		i++;
	}
	for (; i < argc && flood.n_to < DESTINATIONS_MAX; i++)
		endpoint_parse(argv[i], &flood.to[flood.n_to++]);
	if (!flood.label || !flood.count || !flood.n_to || flood.payload > PAYLOAD_MAX ||
	    flood.payload % 4 || !flood.workers)
		errx(2,
		     "usage: flood [OPTION...] --count N --concurrency N --label L ADDR:PORT...");
}

int main(int argc, char **argv)
{
	struct rlimit limit;
	bool died = false;
	int status;

	parse(argc, argv);
	signal(SIGPIPE, SIG_IGN);
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	flood.tally = mmap(NULL, sizeof(*flood.tally), PROT_READ | PROT_WRITE,
			   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (flood.tally == MAP_FAILED)
		err(1, "mmap");
	for (unsigned w = 0; w < flood.workers; w++) {
		pid_t pid = fork();

		if (pid < 0)
			err(1, "fork");
		if (!pid)
			work(w);
	}
	while (wait(&status) > 0)
		died = died || status != 0;
	return report(died);
}
