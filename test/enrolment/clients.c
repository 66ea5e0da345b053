/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Clients that keep connecting while a pod is moved into the mesh and out of it again, and that
 * know where each connection may go at that moment.
 *
 *   clients phase FILE direct|enrolled|either
 *   clients wait FILE SLOTS COUNT SECONDS
 *   clients run [--mark N] [--source ADDR:PORT] [--peer] [--pause MS] --slot N --clients N
 *               --direct LABEL --enrolled LABEL FILE ADDR:PORT...
 *
 * FILE is shared by all of them. `phase` says what the agent has reported: the pod is not enrolled,
 * it is, or it is being changed, when a connection may go either way. `run` connects until SIGTERM,
 * to the destinations in turn: the server (reporter --echo) must be one of the two, must have seen
 * the address dialled as SO_ORIGINAL_DST (or as its own), with --peer also the client's own
 * address; then bytes that are this connection's alone must come back a few times. A connection is
 * held to the phase in which it begins if that phase still lasts when the server has answered. Then
 * `run` prints its counters as JSON. `wait` returns when in each of the first SLOTS slots COUNT
 * more connections were held to the phase, or fails after SECONDS.
 */
#include "../contract/speaker.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum {
	SLOTS_MAX = 16,
	CLIENTS_MAX = 256,
	DESTINATIONS_MAX = 16,
	LINE_MAX_BYTES = 512,
	PAYLOAD_WORDS = 64,
	ROUNDS = 4,
	ROUND_PAUSE_MS = 8,
	PATIENCE_S = 5,
	SLOW_MS = 900, /* a SYN was lost */
	EXAMPLES = 5,
	POLL_MS = 2,
};

enum phase { EITHER, DIRECT, ENROLLED, PHASES };

/* The phase in the low bits, how many there were before it above. */
struct shared {
	uint64_t phase;
	uint64_t held_to[SLOTS_MAX];
};

enum outcome {
	GOOD,
	REFUSED,
	RESET,
	TIMED_OUT,
	CUT,
	OTHER_ERROR,
	WRONG_BYTES,
	MISDIRECTED,
	BYPASSED, /* enrolled, and went direct */
	CAPTURED, /* not enrolled, and went to ztunnel */
	OUTCOMES,
};
static const char *const outcome_names[OUTCOMES] = {
	"good",	      "refused",    "reset",	   "timedOut", "cut",
	"otherError", "wrongBytes", "misdirected", "bypassed", "captured",
};

static struct {
	struct speaker as;
	bool peer;
	long pause_ms;
	unsigned slot, clients, n_to;
	const char *direct, *enrolled;
	union endpoint to[DESTINATIONS_MAX];
	struct shared *shared;
	uint64_t outcomes[OUTCOMES], held_to[PHASES], slow, max_ms;
	unsigned examples;
} run = {.pause_ms = 20};

static volatile sig_atomic_t told_to_end;

static void on_signal(int signal)
{
	(void)signal;
	told_to_end = 1;
}

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void pause_ms(long ms)
{
	nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000}, NULL);
}

static struct shared *share(const char *path)
{
	int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
	struct shared *shared;

	if (fd < 0 || ftruncate(fd, sizeof(*shared)) < 0)
		err(2, "%s", path);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (shared == MAP_FAILED)
		err(2, "%s", path);
	close(fd);
	return shared;
}

static void add(uint64_t *counter)
{
	__atomic_add_fetch(counter, 1, __ATOMIC_SEQ_CST);
}

/* ---- one connection -------------------------------------------------------------------------- */

struct attempt {
	int fd;
	const union endpoint *to;
	union endpoint own;
	uint64_t phase; /* when it began */
	uint32_t serial;
	char line[LINE_MAX_BYTES];
	char why[64];
};

static enum outcome failed(struct attempt *a, const char *what, ssize_t n)
{
	int error = n ? errno : 0;

	snprintf(a->why, sizeof(a->why), "%s: %s", what, error ? strerror(error) : "end of file");
	switch (error) {
	case 0:
		return CUT;
	case ECONNREFUSED:
		return REFUSED;
	case ECONNRESET:
	case EPIPE:
		return RESET;
	case EAGAIN:
	case EINPROGRESS:
	case ETIMEDOUT:
		return TIMED_OUT;
	default:
		return OTHER_ERROR;
	}
}

static enum outcome read_line(struct attempt *a)
{
	size_t used = 0;

	while (!memchr(a->line, '\n', used) && used < sizeof(a->line) - 1) {
		ssize_t n = read(a->fd, a->line + used, sizeof(a->line) - 1 - used);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return failed(a, "no report", n);
		used += (size_t)n;
	}
	a->line[strcspn(a->line, "\n")] = '\0';
	return GOOD;
}

static bool says(const struct attempt *a, const char *name, const char *value)
{
	char want[160];
	const char *at;

	snprintf(want, sizeof(want), "%s=%s", name, value);
	at = strstr(a->line, want);
	return at && (at == a->line || at[-1] == ' ') &&
	       (at[strlen(want)] == ' ' || at[strlen(want)] == '\0');
}

/* Has ztunnel's place seen what was dialled, or the server itself been the address dialled? */
static bool saw_destination(const struct attempt *a, bool captured)
{
	bool v4 = a->to->any.sa_family == AF_INET || IN6_IS_ADDR_V4MAPPED(&a->to->v6.sin6_addr);
	char text[ENDPOINT_TEXT], original[128];

	endpoint_format(a->to, text);
	if (!captured)
		return says(a, "local", text);
	snprintf(original, sizeof(original), "%d:%s", v4 ? 16 : 28, text);
	return says(a, v4 ? "odst4" : "odst6", original);
}

static bool saw_peer(const struct attempt *a)
{
	char text[ENDPOINT_TEXT];

	return says(a, "peer", endpoint_format(&a->own, text));
}

static enum outcome judge(struct attempt *a)
{
	uint64_t now = __atomic_load_n(&run.shared->phase, __ATOMIC_SEQ_CST);
	enum phase phase = now == a->phase ? (enum phase)(now % PHASES) : EITHER;
	bool same = strcmp(run.direct, run.enrolled) == 0;
	bool captured = !same && says(a, "label", run.enrolled);

	if (!captured && !says(a, "label", run.direct))
		return MISDIRECTED;
	if (!saw_destination(a, captured) || (run.peer && !saw_peer(a)))
		return MISDIRECTED;
	add(&run.held_to[phase]);
	if (phase == EITHER || same)
		return GOOD;
	if (phase == ENROLLED && !captured)
		return BYPASSED;
	return phase == DIRECT && captured ? CAPTURED : GOOD;
}

static enum outcome exchange(struct attempt *a, unsigned round)
{
	uint32_t sent[PAYLOAD_WORDS], got[PAYLOAD_WORDS];
	size_t used = 0;

	for (unsigned i = 0; i < PAYLOAD_WORDS; i++)
		sent[i] = (a->serial * 4 + round) * 2654435761u ^ i * 40503u;
	if (send(a->fd, sent, sizeof(sent), MSG_NOSIGNAL) != sizeof(sent))
		return failed(a, "write", -1);
	while (used < sizeof(got)) {
		ssize_t n = read(a->fd, (char *)got + used, sizeof(got) - used);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return failed(a, "no echo", n);
		used += (size_t)n;
	}
	return memcmp(sent, got, sizeof(got)) ? WRONG_BYTES : GOOD;
}

static enum outcome converse(struct attempt *a)
{
	enum outcome judged, result = GOOD;
	socklen_t size = sizeof(a->own);

	if (connect(a->fd, &a->to->any, endpoint_size(a->to)) < 0)
		return failed(a, "connect", -1);
	getsockname(a->fd, &a->own.any, &size);
	result = read_line(a);
	if (result != GOOD)
		return result;
	judged = judge(a);
	for (unsigned round = 0; result == GOOD && round < ROUNDS; round++) {
		result = exchange(a, round);
		pause_ms((long)(a->serial * 2654435761u >> 16) % ROUND_PAUSE_MS);
	}
	return judged != GOOD ? judged : result;
}

static void note_example(const struct attempt *a, enum outcome outcome, int64_t took)
{
	static const char *const phases[PHASES] = {"either", "direct", "enrolled"};
	uint64_t now = __atomic_load_n(&run.shared->phase, __ATOMIC_SEQ_CST);
	char own[ENDPOINT_TEXT], to[ENDPOINT_TEXT];

	if (__atomic_add_fetch(&run.examples, 1, __ATOMIC_SEQ_CST) > EXAMPLES)
		return;
	fprintf(stderr,
		"%s from %s to %s after %lld ms, began in phase %llu (%s), ended in %llu (%s): "
		"%s %s\n",
		outcome_names[outcome], endpoint_format(&a->own, own), endpoint_format(a->to, to),
		(long long)took, (unsigned long long)a->phase / PHASES, phases[a->phase % PHASES],
		(unsigned long long)now / PHASES, phases[now % PHASES], a->why, a->line);
}

static void connect_once(uint32_t serial)
{
	const struct timeval patience = {.tv_sec = PATIENCE_S};
	struct attempt a = {.serial = serial, .to = &run.to[serial % run.n_to]};
	int64_t start = now_ms();
	enum outcome outcome;
	uint64_t took;

	a.fd = socket(a.to->any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (a.fd < 0)
		err(2, "socket");
	setsockopt(a.fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	setsockopt(a.fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof(patience));
	speaker_prepare(&run.as, a.fd, a.to->any.sa_family);
	a.phase = __atomic_load_n(&run.shared->phase, __ATOMIC_SEQ_CST);
	outcome = converse(&a);
	close(a.fd);
	took = (uint64_t)(now_ms() - start);
	add(&run.outcomes[outcome]);
	if (took >= SLOW_MS)
		add(&run.slow);
	if (took > run.max_ms)
		run.max_ms = took; /* one of several at once may be lost: it is for the reader */
	if (outcome != GOOD)
		note_example(&a, outcome, (int64_t)took);
	else if (a.phase % PHASES != EITHER &&
		 a.phase == __atomic_load_n(&run.shared->phase, __ATOMIC_SEQ_CST))
		add(&run.shared->held_to[run.slot]);
}

static void *client(void *arg)
{
	uint32_t serial = (uint32_t)(uintptr_t)arg;

	for (; !told_to_end; serial += run.clients) {
		connect_once(serial);
		pause_ms(run.pause_ms);
	}
	return NULL;
}

/* ---- commands -------------------------------------------------------------------------------- */

static int command_phase(const char *path, const char *name)
{
	struct shared *shared = share(path);
	enum phase phase = !strcmp(name, "direct")     ? DIRECT
			   : !strcmp(name, "enrolled") ? ENROLLED
						       : EITHER;

	__atomic_store_n(&shared->phase, (shared->phase / PHASES + 1) * PHASES + phase,
			 __ATOMIC_SEQ_CST);
	return 0;
}

static int command_wait(const char *path, unsigned slots, uint64_t count, long seconds)
{
	struct shared *shared = share(path);
	int64_t end = now_ms() + seconds * 1000;
	uint64_t before[SLOTS_MAX];

	memcpy(before, shared->held_to, sizeof(before));
	for (unsigned slot = 0; slot < slots && slot < SLOTS_MAX; slot++)
		while (__atomic_load_n(&shared->held_to[slot], __ATOMIC_SEQ_CST) <
		       before[slot] + count) {
			if (now_ms() > end) {
				printf("slot %u has no %llu more connections after %ld s\n", slot,
				       (unsigned long long)count, seconds);
				return 1;
			}
			pause_ms(POLL_MS);
		}
	return 0;
}

static void print_counters(void)
{
	printf("{\"heldToDirect\":%llu,\"heldToEnrolled\":%llu,\"either\":%llu,\"slow\":%llu,"
	       "\"maxMs\":%llu",
	       (unsigned long long)run.held_to[DIRECT], (unsigned long long)run.held_to[ENROLLED],
	       (unsigned long long)run.held_to[EITHER], (unsigned long long)run.slow,
	       (unsigned long long)run.max_ms);
	for (unsigned i = 0; i < OUTCOMES; i++)
		printf(",\"%s\":%llu", outcome_names[i], (unsigned long long)run.outcomes[i]);
	printf("}\n");
}

static bool take_option(const char *name, const char *value)
{
	if (speaker_option(&run.as, name, value))
		return true;
	if (!strcmp(name, "--pause"))
		run.pause_ms = atoi(value);
	else if (!strcmp(name, "--slot"))
		run.slot = (unsigned)atoi(value) % SLOTS_MAX;
	else if (!strcmp(name, "--clients"))
		run.clients = (unsigned)atoi(value);
	else if (!strcmp(name, "--direct"))
		run.direct = value;
	else if (!strcmp(name, "--enrolled"))
		run.enrolled = value;
	else
		return false;
	return true;
}

static void parse(int argc, char **argv)
{
	int i = 2;

	for (; i < argc && !strncmp(argv[i], "--", 2); i++) {
		if (!strcmp(argv[i], "--peer"))
			run.peer = true;
		else if (i + 1 < argc && take_option(argv[i], argv[i + 1]))
			i++;
		else
			errx(2, "unknown option %s", argv[i]);
	}
	if (i < argc)
		run.shared = share(argv[i++]);
	for (; i < argc && run.n_to < DESTINATIONS_MAX; i++)
		endpoint_parse(argv[i], &run.to[run.n_to++]);
	if (!run.n_to || !run.direct || !run.enrolled || !run.clients || run.clients > CLIENTS_MAX)
		errx(2, "usage: clients run [OPTION...] --slot N --clients N --direct LABEL "
			"--enrolled LABEL FILE ADDR:PORT...");
}

static int command_run(int argc, char **argv)
{
	pthread_t threads[CLIENTS_MAX];
	struct sigaction action = {.sa_handler = on_signal};

	parse(argc, argv);
	sigaction(SIGTERM, &action, NULL);
	printf("runs, pid %d\n", getpid());
	fflush(stdout);
	for (unsigned i = 0; i < run.clients; i++)
		if (pthread_create(&threads[i], NULL, client, (void *)(uintptr_t)i))
			errx(2, "cannot start client %u", i);
	for (unsigned i = 0; i < run.clients; i++)
		pthread_join(threads[i], NULL);
	print_counters();
	return 0;
}

int main(int argc, char **argv)
{
	const char *command = argc > 1 ? argv[1] : "";

	if (!strcmp(command, "phase") && argc == 4)
		return command_phase(argv[2], argv[3]);
	if (!strcmp(command, "wait") && argc == 6)
		return command_wait(argv[2], (unsigned)atoi(argv[3]), strtoull(argv[4], NULL, 10),
				    atol(argv[5]));
	if (!strcmp(command, "run"))
		return command_run(argc, argv);
	errx(2, "usage: clients phase FILE PHASE | wait FILE SLOTS COUNT SECONDS | run ...");
}
