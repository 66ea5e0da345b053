/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Streams in which a byte that is wrong, missing, moved or too many shows. What a stream carries is
 * a part of one table of random bytes that begins at an offset of its own, so every byte says where
 * in which stream it belongs.
 *
 *   stream server PORT
 *   stream client [--count N] [--concurrency N] [--run N] [--mapped yes] [--largest BYTES]
 *                 [--seconds N] ADDRESS PORT
 *
 * One thread each, non-blocking. Connections differ in sizes (1 byte to --largest, log-uniform,
 * each way), in the sizes of single sends, in how fast either side reads, and in how they end:
 *
 *   both    both directions at once, each side shuts its own down when it has sent everything
 *   close   the client closes right after its last send
 *   reply   the server closes right after its last send
 *   reset, reset-back   the client or the server resets in the middle; what came must be right
 *
 * The server keeps sums for each --run (0-63), which the client asks for at the end: without a
 * reset, all that was sent must have arrived, followed by the end of the stream and by nothing
 * else. Prints "ok N connections, B bytes" and exits 0, or says what went wrong and exits 1.
 */
#include "bench_net.h"

#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>

enum {
	TABLE = 4 << 20,
	LARGEST = 1 << 20,
	CHUNK = 64 << 10,
	EVENTS = 256,
	RUNS = 64,
	SLOW_CHUNK = 8 << 10, /* a millisecond */
	PATIENCE_MS = 30000,  /* without any progress */
	MAGIC = 0x534d5354,
};

enum mode { MODE_BOTH, MODE_CLOSE, MODE_REPLY, MODE_RESET, MODE_RESET_BACK, MODE_SUMS, MODES };

static const char *const mode_names[MODES] = {"both", "close", "reply", "reset", "reset-back"};

struct header {
	uint32_t magic, run, mode, slow_server;
	uint32_t up, down, up_at, down_at;
};

struct sums {
	uint64_t whole, cut, bad, bytes;
	char example[96];
};

struct stream {
	int fd;
	bool is_server, connecting, slow, got_end, sent_all, dead;
	bool is_calm, waits; /* sends nothing but its header before the first answer */
	struct header header;
	size_t n_header;
	size_t sent, received, to_send, to_receive;
	const unsigned char *out, *in;
	struct stream *next, *prev; /* in the list of slow ones */
	struct stream *next_dead;
};

static unsigned char table[TABLE];
static struct sums sums[RUNS];
static struct stream slow_ones = {.next = &slow_ones, .prev = &slow_ones}, *dead;
static int epoll_fd, listener = -1;
static unsigned open_streams;
static unsigned open_by_mode[MODES]; /* of the client */
static uint64_t last_progress_ns;

static uint64_t next_random(void)
{
	static uint64_t x = 0x9e3779b97f4a7c15;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return x;
}

/* 1 to `largest`: as many from 2^n to 2^(n+1) for every n. */
static uint32_t log_uniform(uint32_t largest)
{
	int bits = 32 - __builtin_clz(largest);
	uint32_t least = 1u << (next_random() % (unsigned)bits);
	uint32_t size = least + (uint32_t)(next_random() % least);

	return size > largest ? largest : size;
}

/* The same in every process. */
static void fill_table(void)
{
	for (size_t i = 0; i < TABLE; i += 8) {
		uint64_t word = next_random();

		memcpy(table + i, &word, 8);
	}
}

static void went_wrong(struct stream *s, const char *what, size_t at)
{
	struct sums *sum = &sums[s->header.run % RUNS];

	if (!sum->bad++)
		snprintf(sum->example, sizeof(sum->example), "%s, %s: %s at %zu of %zu",
			 s->header.mode < MODE_SUMS ? mode_names[s->header.mode] : "?",
			 s->is_server ? "server" : "client", what, at, s->to_receive);
}

static void watch(struct stream *s, int op)
{
	struct epoll_event event = {.data.ptr = s, .events = EPOLLRDHUP};

	if (!s->slow && !s->got_end)
		event.events = EPOLLIN;
	if (s->connecting || (s->out && !s->sent_all && !s->waits))
		event.events |= EPOLLOUT;
	if (s->slow || s->got_end)
		event.events &= ~(uint32_t)EPOLLRDHUP;
	if (epoll_ctl(epoll_fd, op, s->fd, &event))
		err(1, "epoll_ctl");
}

static struct stream *stream_new(int fd, bool is_server)
{
	struct stream *s = calloc(1, sizeof(*s));

	if (!s)
		err(1, "calloc");
	s->fd = fd;
	s->is_server = is_server;
	open_streams++;
	return s;
}

static void set_slow(struct stream *s)
{
	s->slow = true;
	s->next = &slow_ones;
	s->prev = slow_ones.prev;
	s->prev->next = s;
	slow_ones.prev = s;
}

static void stream_end(struct stream *s, bool reset)
{
	struct linger linger = {.l_onoff = 1};

	if (s->dead)
		return;
	if (reset)
		setsockopt(s->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof(linger));
	close(s->fd);
	if (s->next) {
		s->prev->next = s->next;
		s->next->prev = s->prev;
	}
	s->dead = true;
	s->next_dead = dead;
	dead = s;
	open_streams--;
	if (!s->is_server)
		open_by_mode[s->header.mode]--;
}

static void bury(void)
{
	struct stream *s;

	while ((s = dead)) {
		dead = s->next_dead;
		free(s);
	}
}

static void is_whole(struct stream *s)
{
	sums[s->header.run % RUNS].whole++;
	stream_end(s, false);
}

/* The connection is gone before its end. */
static void is_cut(struct stream *s, const char *what)
{
	bool may = s->header.mode == MODE_RESET || s->header.mode == MODE_RESET_BACK ||
		   (s->is_server && s->n_header < sizeof(s->header));

	if (may)
		sums[s->header.run % RUNS].cut++;
	else
		went_wrong(s, what, s->received);
	stream_end(s, false);
}

static bool resets_here(const struct stream *s)
{
	return s->header.mode == (s->is_server ? MODE_RESET_BACK : MODE_RESET);
}

/* All that it has to send is sent. */
static void after_sending(struct stream *s)
{
	bool closes = s->header.mode == (s->is_server ? MODE_REPLY : MODE_CLOSE);

	s->sent_all = true;
	if (resets_here(s)) {
		sums[s->header.run % RUNS].cut++;
		stream_end(s, true);
	} else if (closes || s->header.mode == MODE_SUMS) {
		is_whole(s);
	} else {
		shutdown(s->fd, SHUT_WR);
		if (s->got_end)
			is_whole(s);
	}
}

static void writable(struct stream *s)
{
	size_t header = s->is_server ? sizeof(s->header) : s->n_header;
	const void *from;
	size_t size;
	ssize_t n;

	for (int i = 0; i < 8 && !s->sent_all; i++) {
		if (header < sizeof(s->header)) {
			from = (const char *)&s->header + header;
			size = sizeof(s->header) - header;
		} else {
			s->waits = s->is_calm && !s->received;
			if (s->waits)
				break;
			from = s->out + s->sent;
			size = s->to_send - s->sent;
			if (size > 1) {
				size_t most = log_uniform(CHUNK);

				size = size > most && next_random() % 4 ? most : size;
			}
		}
		n = size ? send(s->fd, from, size, MSG_NOSIGNAL) : 0;
		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {
			is_cut(s, strerror(errno));
			return;
		}
		if (header < sizeof(s->header))
			header = s->n_header += (size_t)n;
		else
			s->sent += (size_t)n;
		if (header == sizeof(s->header) && s->sent == s->to_send) {
			after_sending(s);
			break;
		}
	}
	if (!s->dead)
		watch(s, EPOLL_CTL_MOD);
}

/* The server's side of a connection is known. */
static void begin_answer(struct stream *s)
{
	static uint32_t last_run; /* what a header that is not one is counted for */
	struct header *h = &s->header;

	if (h->magic != MAGIC || h->mode >= MODES || h->up > LARGEST || h->down > LARGEST ||
	    h->up_at > TABLE - LARGEST || h->down_at > TABLE - LARGEST || h->run >= RUNS) {
		h->run = last_run;
		h->mode = MODE_BOTH;
		went_wrong(s, "its header", 0);
		stream_end(s, true);
		return;
	}
	last_run = h->run;
	s->to_receive = h->up;
	s->in = table + h->up_at;
	s->to_send = h->mode == MODE_RESET_BACK ? h->down / 2 : h->down;
	s->out = table + h->down_at;
	if (h->mode == MODE_SUMS) {
		s->out = (const unsigned char *)&sums[h->run];
		s->to_send = sizeof(sums[0]);
	}
	if (h->slow_server)
		set_slow(s);
	writable(s);
}

static void at_end(struct stream *s)
{
	s->got_end = true;
	if (s->n_header < sizeof(s->header) || s->received < s->to_receive) {
		is_cut(s, "the end too early");
		return;
	}
	if (s->sent_all || s->to_send == 0)
		is_whole(s);
	else if (s->header.mode == MODE_RESET && s->is_server)
		is_cut(s, "");
	else
		watch(s, EPOLL_CTL_MOD);
}

static bool check(struct stream *s, const unsigned char *data, size_t n)
{
	if (s->received + n > s->to_receive) {
		went_wrong(s, "more than was sent", s->received);
		return false;
	}
	if (memcmp(data, s->in + s->received, n) != 0) {
		size_t i = 0;

		while (data[i] == s->in[s->received + i])
			i++;
		went_wrong(s, "another byte", s->received + i);
		return false;
	}
	s->received += n;
	sums[s->header.run % RUNS].bytes += n;
	if (s->waits) {
		s->waits = false;
		watch(s, EPOLL_CTL_MOD);
	}
	return true;
}

static void readable(struct stream *s)
{
	static unsigned char buf[CHUNK];
	size_t want = s->slow ? SLOW_CHUNK : next_random() % 8 ? CHUNK : log_uniform(CHUNK);
	ssize_t n;

	if (s->is_server && s->n_header < sizeof(s->header)) {
		n = recv(s->fd, (char *)&s->header + s->n_header, sizeof(s->header) - s->n_header,
			 0);
		if (n > 0 && (s->n_header += (size_t)n) == sizeof(s->header))
			begin_answer(s);
	} else {
		n = recv(s->fd, buf, want, 0);
		if (n > 0 && !check(s, buf, (size_t)n))
			stream_end(s, true);
	}
	if (n < 0 && errno == EAGAIN)
		return;
	last_progress_ns = bench_now_ns();
	if (n < 0)
		is_cut(s, strerror(errno));
	else if (!n)
		at_end(s);
}

static void accept_all(void)
{
	int fd;

	while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
		bench_no_delay(fd);
		watch(stream_new(fd, true), EPOLL_CTL_ADD);
	}
}

static void handle(struct stream *s, uint32_t events)
{
	int error = 0;
	socklen_t size = sizeof(error);

	if (!s) {
		accept_all();
		return;
	}
	if (s->dead)
		return;
	if (s->connecting && !(events & (EPOLLOUT | EPOLLERR | EPOLLHUP)))
		return;
	if (s->connecting) {
		s->connecting = false;
		getsockopt(s->fd, SOL_SOCKET, SO_ERROR, &error, &size);
		if (error) {
			is_cut(s, strerror(error));
			return;
		}
	}
	if ((events & EPOLLOUT) && s->out && !s->sent_all)
		writable(s);
	if (!s->dead && (events & (EPOLLIN | EPOLLERR | EPOLLHUP)))
		readable(s);
}

static void turn(void)
{
	struct epoll_event events[EVENTS];
	bool has_slow = slow_ones.next != &slow_ones;
	static uint64_t ticked_ns;
	int n = epoll_wait(epoll_fd, events, EVENTS, has_slow ? 1 : 100);

	for (int i = 0; i < n; i++)
		handle(events[i].data.ptr, events[i].events);
	if (has_slow && bench_now_ns() - ticked_ns > 1000000) {
		ticked_ns = bench_now_ns();
		for (struct stream *s = slow_ones.next, *next; s != &slow_ones; s = next) {
			next = s->next;
			if (!s->dead && !s->connecting && !s->got_end)
				readable(s);
		}
	}
	bury();
}

static int serve(const char *port)
{
	struct epoll_event event = {.events = EPOLLIN};

	listener = bench_listen(bench_port(port));
	if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &event))
		err(1, "epoll_ctl");
	for (;;)
		turn();
}

/* ---- the client ------------------------------------------------------------------------------ */

static struct {
	unsigned long count, concurrency, run, largest, seconds;
	union bench_address to;
} client = {.count = 1000, .concurrency = 64, .largest = LARGEST, .seconds = 600};

static struct header next_header(enum mode mode)
{
	struct header h = {.magic = MAGIC, .run = (uint32_t)client.run, .mode = mode};

	h.up_at = (uint32_t)(next_random() % (TABLE - LARGEST));
	h.down_at = (uint32_t)(next_random() % (TABLE - LARGEST));
	if (mode != MODE_REPLY && mode != MODE_SUMS)
		h.up = log_uniform((uint32_t)client.largest);
	if (mode != MODE_CLOSE && mode != MODE_SUMS)
		h.down = log_uniform((uint32_t)client.largest);
	h.slow_server = next_random() % 16 == 0;
	return h;
}

static enum mode next_mode(void)
{
	unsigned at = next_random() % 16;

	return at < 9	 ? MODE_BOTH
	       : at < 11 ? MODE_CLOSE
	       : at < 14 ? MODE_REPLY
	       : at < 15 ? MODE_RESET
			 : MODE_RESET_BACK;
}

static int dial(int flags)
{
	int fd = socket(client.to.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);

	if (fd < 0)
		err(1, "socket");
	bench_no_delay(fd);
	if (connect(fd, &client.to.any, bench_address_size(&client.to)) && errno != EINPROGRESS) {
		close(fd);
		return -1;
	}
	return fd;
}

static bool begin(unsigned long modes[MODES])
{
	enum mode mode = next_mode();
	int fd = dial(SOCK_NONBLOCK);
	struct stream *s;

	if (fd < 0) {
		warn("connect");
		return false;
	}
	modes[mode]++;
	s = stream_new(fd, false);
	s->header = next_header(mode);
	open_by_mode[mode]++;
	s->connecting = true;
	s->is_calm = mode == MODE_BOTH && next_random() % 8;
	s->to_send = mode == MODE_RESET ? s->header.up / 2 : s->header.up;
	s->out = table + s->header.up_at;
	s->to_receive = s->header.down;
	s->in = table + s->header.down_at;
	if (next_random() % 16 == 0)
		set_slow(s);
	watch(s, EPOLL_CTL_ADD);
	return true;
}

/* On a blocking connection of its own. */
static bool ask_server(struct sums *ret)
{
	struct timeval patience = {.tv_sec = 10};
	struct header h = next_header(MODE_SUMS);
	size_t got = 0;
	ssize_t n = 1;
	int fd = dial(0);

	if (fd < 0)
		return false;
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (send(fd, &h, sizeof(h), MSG_NOSIGNAL) == (ssize_t)sizeof(h))
		while (got < sizeof(*ret) && n > 0) {
			n = recv(fd, (char *)ret + got, sizeof(*ret) - got, 0);
			got += n > 0 ? (size_t)n : 0;
		}
	close(fd);
	return got == sizeof(*ret);
}

/* What was closed at once arrives a little later; each question is a whole connection itself. */
static int judge(const unsigned long modes[MODES], const struct sums *before)
{
	unsigned long wanted = modes[MODE_BOTH] + modes[MODE_CLOSE] + modes[MODE_REPLY];
	uint64_t deadline = bench_now_ns() + 15000000000ull, whole = 0;
	struct sums *mine = &sums[client.run], server = {0};
	struct timespec pause = {.tv_nsec = 20000000};
	unsigned long asked = 1; /* before */

	for (;;) {
		if (!ask_server(&server)) {
			printf("the server does not answer\n");
			return 1;
		}
		whole = server.whole - before->whole - asked++;
		if (whole >= wanted || server.bad != before->bad || bench_now_ns() > deadline)
			break;
		nanosleep(&pause, NULL);
	}
	if (mine->bad)
		printf("%llu wrong: %s\n", (unsigned long long)mine->bad, mine->example);
	if (server.bad != before->bad)
		printf("%llu wrong: %s\n", (unsigned long long)(server.bad - before->bad),
		       server.example);
	if (whole != wanted)
		printf("%llu of %lu streams reached the server whole\n", (unsigned long long)whole,
		       wanted);
	if (mine->bad || server.bad != before->bad || whole != wanted)
		return 1;
	printf("ok %lu connections, %llu bytes\n",
	       wanted + modes[MODE_RESET] + modes[MODE_RESET_BACK],
	       (unsigned long long)(mine->bytes + server.bytes - before->bytes));
	return 0;
}

/* Packets that this machine has dropped before they were looked at: the second column. */
static uint64_t dropped_packets(void)
{
	FILE *f = fopen("/proc/net/softnet_stat", "re");
	uint64_t sum = 0;
	char line[256];

	if (!f)
		err(1, "/proc/net/softnet_stat");
	while (fgets(line, sizeof(line), f)) {
		const char *second = strchr(line, ' ');

		if (second)
			sum += strtoull(second, NULL, 16);
	}
	fclose(f);
	return sum;
}

/*
 * TCP does not repeat a reset. One that is among the packets that the machine dropped leaves its
 * stream open for ever, whatever the way that it went; this forgives as many as were dropped, when
 * they are few among those that end like that.
 */
static bool are_lost_resets(const unsigned open[MODES], const unsigned long begun[MODES],
			    uint64_t dropped)
{
	const unsigned few = 2 + (unsigned)(begun[MODE_RESET_BACK] / 100);

	for (int mode = 0; mode < MODES; mode++)
		if (open[mode] && mode != MODE_RESET_BACK)
			return false;
	return open[MODE_RESET_BACK] <= dropped && open[MODE_RESET_BACK] <= few;
}

static void say_what_stands_still(const unsigned open[MODES])
{
	for (int mode = 0; mode < MODE_SUMS; mode++)
		if (open[mode])
			printf("%u streams stand still (%s)\n", open[mode], mode_names[mode]);
}

static int run_client(void)
{
	uint64_t dropped_before = dropped_packets();
	uint64_t end = bench_now_ns() + client.seconds * 1000000000ull;
	unsigned long modes[MODES] = {0}, begun = 0;
	struct sums before = {0};

	if (!ask_server(&before)) {
		printf("the server does not answer\n");
		return 1;
	}
	last_progress_ns = bench_now_ns();
	while (open_streams || (begun < client.count && bench_now_ns() < end)) {
		for (int i = 0; i < 16 && open_streams < client.concurrency &&
				begun < client.count && bench_now_ns() < end;
		     i++, begun++)
			if (!begin(modes))
				return 1;
		turn();
		if (bench_now_ns() - last_progress_ns > PATIENCE_MS * 1000000ull) {
			if (are_lost_resets(open_by_mode, modes,
					    dropped_packets() - dropped_before))
				break;
			say_what_stands_still(open_by_mode);
			return 1;
		}
	}
	return judge(modes, &before);
}

static void map_address(union bench_address *a)
{
	union bench_address mapped = {.v6.sin6_family = AF_INET6, .v6.sin6_port = a->v4.sin_port};

	mapped.v6.sin6_addr.s6_addr[10] = mapped.v6.sin6_addr.s6_addr[11] = 0xff;
	memcpy(&mapped.v6.sin6_addr.s6_addr[12], &a->v4.sin_addr, 4);
	*a = mapped;
}

int main(int argc, char **argv)
{
	bool mapped = false;
	int i = 2;

	fill_table();
	signal(SIGPIPE, SIG_IGN);
	setvbuf(stdout, NULL, _IOLBF, 0);
	epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (epoll_fd < 0)
		err(1, "epoll_create1");
	if (argc == 3 && !strcmp(argv[1], "server"))
		return serve(argv[2]);
	for (; i + 1 < argc && !strncmp(argv[i], "--", 2); i += 2) {
		unsigned long value = strtoul(argv[i + 1], NULL, 10);

		if (!strcmp(argv[i], "--count"))
			client.count = value;
		else if (!strcmp(argv[i], "--concurrency"))
			client.concurrency = value;
		else if (!strcmp(argv[i], "--run"))
			client.run = value % RUNS;
		else if (!strcmp(argv[i], "--largest"))
			client.largest = value < LARGEST ? value : LARGEST;
		else if (!strcmp(argv[i], "--seconds"))
			client.seconds = value;
		else if (!strcmp(argv[i], "--mapped"))
			mapped = !strcmp(argv[i + 1], "yes");
		else
			errx(2, "unknown option %s", argv[i]);
	}
	if (argc != i + 2 || strcmp(argv[1], "client") != 0)
		errx(2, "usage: stream server PORT | stream client [OPTION...] ADDRESS PORT");
	for (int skip = (int)((bench_now_ns() >> 8) & 0xffff); skip; skip--)
		next_random();
	client.to = bench_address(argv[i], bench_port(argv[i + 1]));
	if (mapped)
		map_address(&client.to);
	return run_client();
}
