/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Keeps connections open while something happens to the pod, and says whether each one lived.
 *
 *   hold [--idle N] [--busy N] [--original] [--mark N] [--source ADDR:PORT] --label L ADDR:PORT...
 *
 * Opens the connections to the destinations in turn; the server (reporter --echo) must be L, and
 * with --original must have seen the address dialled as SO_ORIGINAL_DST. Then it prints "holds N
 * connections, pid P". Busy connections exchange bytes that are theirs alone all the time, idle
 * ones only when it has been told to end, with SIGTERM. SIGUSR1 prints how many rounds there were.
 *
 * Prints "ok N connections, R rounds, longest M ms" and exits 0, or says what broke and exits 1.
 */
#include "speaker.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <time.h>
#include <unistd.h>

enum {
	CONNECTIONS_MAX = 1024,
	DESTINATIONS_MAX = 16,
	LINE_MAX_BYTES = 512,
	PAYLOAD = 64,
	PAUSE_MS = 2,
	PATIENCE_S = 10,
	LAST_ROUNDS = 3,
};

static struct {
	unsigned idle, busy, n_to;
	bool original;
	struct speaker as;
	const char *label;
	union endpoint to[DESTINATIONS_MAX];
	int fds[CONNECTIONS_MAX];
	unsigned broken, rounds;
	long longest_ms;
	char example[LINE_MAX_BYTES];
} held;

static volatile sig_atomic_t told_to_end, asked;

static void on_signal(int signal)
{
	if (signal == SIGUSR1)
		asked = 1;
	else
		told_to_end = 1;
}

static long now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void break_off(unsigned serial, const char *what, int error)
{
	char to[ENDPOINT_TEXT];

	if (!held.broken++)
		snprintf(held.example, sizeof(held.example), "to %s: %s%s%s",
			 endpoint_format(&held.to[serial % held.n_to], to), what, error ? ": " : "",
			 error ? strerror(error) : "");
	close(held.fds[serial]);
	held.fds[serial] = -1;
}

static bool line_is_right(unsigned serial, const char *line)
{
	const union endpoint *to = &held.to[serial % held.n_to];
	bool v4 = to->any.sa_family == AF_INET;
	char label[64], original[128], text[ENDPOINT_TEXT];

	snprintf(label, sizeof(label), "label=%s ", held.label);
	snprintf(original, sizeof(original), " odst%d=%d:%s ", v4 ? 4 : 6, v4 ? 16 : 28,
		 endpoint_format(to, text));
	return strstr(line, label) && (!held.original || strstr(line, original));
}

static void open_one(unsigned serial)
{
	const union endpoint *to = &held.to[serial % held.n_to];
	struct timeval patience = {.tv_sec = PATIENCE_S};
	char line[LINE_MAX_BYTES] = "";
	size_t used = 0;
	ssize_t n;
	int fd = socket(to->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (fd < 0)
		err(1, "socket");
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	held.fds[serial] = fd;
	speaker_prepare(&held.as, fd, to->any.sa_family);
	if (connect(fd, &to->any, endpoint_size(to)) < 0) {
		break_off(serial, "connect", errno);
		return;
	}
	while (!strchr(line, '\n') && used < sizeof(line) - 1) {
		n = read(fd, line + used, sizeof(line) - 1 - used);
		if (n <= 0) {
			break_off(serial, "no report", n ? errno : 0);
			return;
		}
		used += (size_t)n;
		line[used] = '\0';
	}
	if (!line_is_right(serial, line))
		break_off(serial, line, 0);
}

static ssize_t read_all(int fd, char *buf, size_t size)
{
	size_t used = 0;

	while (used < size) {
		ssize_t n = read(fd, buf + used, size - used);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n;
		used += (size_t)n;
	}
	return (ssize_t)used;
}

/* Bytes that no other connection and no other round sends must come back. */
static void exchange(unsigned serial)
{
	unsigned sent[PAYLOAD / sizeof(unsigned)], got[PAYLOAD / sizeof(unsigned)];
	long start = now_ms();
	ssize_t n;

	if (held.fds[serial] < 0)
		return;
	for (unsigned i = 0; i < PAYLOAD / sizeof(unsigned); i++)
		sent[i] = (serial + 1) * 2654435761u ^ held.rounds * 97u ^ i * 40503u;
	if (write(held.fds[serial], sent, sizeof(sent)) != sizeof(sent)) {
		break_off(serial, "write", errno);
		return;
	}
	n = read_all(held.fds[serial], (char *)got, sizeof(got));
	if (n <= 0)
		break_off(serial, n ? "read" : "the server ended it", n ? errno : 0);
	else if (memcmp(sent, got, sizeof(got)) != 0)
		break_off(serial, "wrong bytes", 0);
	if (now_ms() - start > held.longest_ms)
		held.longest_ms = now_ms() - start;
}

static void parse(int argc, char **argv)
{
	int i = 1;

	for (; i < argc && !strncmp(argv[i], "--", 2); i++) {
		if (!strcmp(argv[i], "--original"))
			held.original = true;
		else if (!strcmp(argv[i], "--idle") && i + 1 < argc)
			held.idle = (unsigned)atoi(argv[++i]);
		else if (!strcmp(argv[i], "--busy") && i + 1 < argc)
			held.busy = (unsigned)atoi(argv[++i]);
		else if (!strcmp(argv[i], "--label") && i + 1 < argc)
			held.label = argv[++i];
		else if (i + 1 < argc && speaker_option(&held.as, argv[i], argv[i + 1]))
			i++;
		else
			errx(2, "unknown option %s", argv[i]);
	}
	for (; i < argc && held.n_to < DESTINATIONS_MAX; i++)
		endpoint_parse(argv[i], &held.to[held.n_to++]);
	if (!held.label || !held.n_to || !(held.idle + held.busy) ||
	    held.idle + held.busy > CONNECTIONS_MAX)
		errx(2, "usage: hold [OPTION...] --label L ADDR:PORT...");
}

int main(int argc, char **argv)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
	unsigned n;

	parse(argc, argv);
	n = held.idle + held.busy;
	setvbuf(stdout, NULL, _IOLBF, 0);
	signal(SIGPIPE, SIG_IGN);
	sigaction(SIGTERM, &action, NULL);
	sigaction(SIGUSR1, &action, NULL);
	for (unsigned i = 0; i < n; i++)
		open_one(i);
	printf("holds %u connections, pid %d\n", n - held.broken, getpid());
	while (!told_to_end) {
		for (unsigned i = 0; i < held.busy; i++)
			exchange(i);
		held.rounds++;
		if (asked) {
			asked = 0;
			printf("rounds %u, %u broken\n", held.rounds, held.broken);
		}
		poll(NULL, 0, PAUSE_MS);
	}
	for (unsigned last = 0; last < LAST_ROUNDS; last++, held.rounds++)
		for (unsigned i = 0; i < n; i++)
			exchange(i);
	if (held.broken) {
		printf("%u of %u broken in %u rounds, %s\n", held.broken, n, held.rounds,
		       held.example);
		return 1;
	}
	printf("ok %u connections, %u rounds, longest %ld ms\n", n, held.rounds, held.longest_ms);
	return 0;
}
