/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Is a blocking recv() woken with nothing to read? Whoever waits for data waits on the same queue
 * as whoever waits for room to send, so a socket whose send buffer fills and drains while a thread
 * is in recv() has a wake-up without data, every time. The thread has to sleep before the buffer is
 * full: a late acknowledgement makes room by itself, and then nothing else does.
 */
#include "accelerate_probe_private.h"
#include "monotonic.h"
#include "scoped.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>

enum {
	RECV_STEPS = 5, /* that recv() takes at most; filling and draining is one or two */
	PAUSE_US = 50,
	SEND_BUFFER = 16 << 10,
	CHUNK = 16 << 10,
	MAX_CHUNKS = 1024, /* 16 MB: more than any send and receive buffer that fits SEND_BUFFER */
};

struct receiver {
	int fd;
	int timeout_ms; /* of the socket */
	ssize_t n;
	int code; /* errno of recv(), ETIMEDOUT when its time was up; written before `ended` */
	_Atomic pid_t tid;
	atomic_bool ended;
};

static void *receive(void *arg)
{
	struct receiver *receiver = arg;
	int64_t started_ms = monotonic_ms();
	char byte;

	atomic_store(&receiver->tid, (pid_t)syscall(SYS_gettid));
	receiver->n = recv(receiver->fd, &byte, 1, 0);
	receiver->code = errno;
	if (receiver->n < 0 && errno == EAGAIN &&
	    monotonic_ms() >= started_ms + receiver->timeout_ms)
		receiver->code = ETIMEDOUT;
	atomic_store(&receiver->ended, true);
	return NULL;
}

/* Once it has said its id, the receiver has nothing to wait for but recv(). */
struct sleep_state {
	bool asleep;
	unsigned long times; /* that it went to sleep */
};

static bool read_sleep(pid_t tid, struct sleep_state *ret)
{
	static const char state_mark[] = "\nState:\t",
			  times_mark[] = "\nvoluntary_ctxt_switches:\t";
	char path[64], text[4096];
	const char *state, *times;
	scoped_fd int fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/self/task/%d/status", (int)tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (n <= 0)
		return false;
	text[n] = '\0';
	state = strstr(text, state_mark);
	times = strstr(text, times_mark);
	if (!state || !times)
		return false;
	ret->asleep = state[strlen(state_mark)] == 'S';
	ret->times = strtoul(times + strlen(times_mark), NULL, 10);
	return true;
}

static bool await_asleep(struct receiver *receiver, int step_ms, struct sleep_state *ret)
{
	int64_t until = monotonic_ms() + step_ms;
	bool late;

	do {
		pid_t tid = atomic_load(&receiver->tid);

		late = monotonic_ms() >= until;
		if (atomic_load(&receiver->ended))
			return false;
		if (tid && read_sleep(tid, ret) && ret->asleep)
			return true;
		usleep(PAUSE_US);
	} while (!late);
	return false;
}

/* It has returned, or looked around and gone back to sleep. */
static bool await_woken(struct receiver *receiver, int step_ms, const struct sleep_state *before)
{
	int64_t until = monotonic_ms() + step_ms;
	struct sleep_state now;
	bool late;

	do {
		late = monotonic_ms() >= until;
		if (atomic_load(&receiver->ended))
			return true;
		if (read_sleep(atomic_load(&receiver->tid), &now) && now.asleep &&
		    now.times != before->times)
			return true;
		usleep(PAUSE_US);
	} while (!late);
	return false;
}

/* By TCP, until the socket waits for room. */
static int fill(const struct probe_pair *pair, size_t *ret_sent, struct error *err)
{
	const int size = SEND_BUFFER;
	scoped_free char *chunk = calloc(1, CHUNK);
	size_t sent = 0;

	if (!chunk)
		return error_set(err, ENOMEM, "a chunk to send");
	if (setsockopt(pair->fds[ACCEPTED], SOL_SOCKET, SO_SNDBUF, &size, sizeof(size)) < 0)
		return error_set(err, errno, "SO_SNDBUF");
	probe_choose(pair, ACCEPTED, BY_TCP);
	for (int i = 0; i < MAX_CHUNKS; i++) {
		ssize_t n = send(pair->fds[ACCEPTED], chunk, CHUNK, MSG_DONTWAIT | MSG_NOSIGNAL);

		if (n < 0 && errno == EAGAIN) {
			*ret_sent = sent;
			return 0;
		}
		if (n < 0)
			return error_set(err, errno, "fill a socket");
		sent += (size_t)n;
	}
	return error_set(err, ENOBUFS, "a socket does not fill");
}

static int drain(const struct probe_pair *pair, size_t size, struct error *err)
{
	scoped_free char *chunk = calloc(1, CHUNK);

	if (!chunk)
		return error_set(err, ENOMEM, "a chunk to receive");
	while (size > 0) {
		ssize_t n = recv(pair->fds[CONNECTED], chunk, CHUNK, MSG_DONTWAIT);
		int r = 0;

		if (n > 0)
			size -= (size_t)n < size ? (size_t)n : size;
		else if (n < 0 && errno == EAGAIN)
			r = probe_await(pair, CONNECTED, POLLIN, err);
		else
			return error_set(err, n ? errno : EIO, "drain a socket");
		if (r)
			return r;
	}
	return 0;
}

/* The receiver is woken by room to send first, and by a byte after that. */
static int wake(const struct probe_pair *pair, struct receiver *receiver, struct error *err)
{
	const int step_ms = pair->bench->step_ms;
	struct sleep_state asleep;
	size_t to_drain = 0;
	int r;

	if (!await_asleep(receiver, step_ms, &asleep))
		return error_set(err, ETIMEDOUT, "a receiver does not go to sleep");
	r = fill(pair, &to_drain, err);
	if (!r)
		r = drain(pair, to_drain, err);
	if (!r && !await_woken(receiver, step_ms, &asleep))
		r = error_set(err, ETIMEDOUT, "a receiver is not woken by room to send");
	return r;
}

int probe_try_blocking(struct probe_bench *bench, struct error *err)
{
	scoped_pair struct probe_pair pair;
	struct receiver receiver = {.timeout_ms = RECV_STEPS * bench->step_ms};
	struct error ignored = {0};
	pthread_t thread;
	int code, last, r = probe_pair_open(&pair, bench, err);

	if (!r)
		r = probe_make_blocking(&pair, ACCEPTED, receiver.timeout_ms, err);
	if (r)
		return r;
	receiver.fd = pair.fds[ACCEPTED];
	code = pthread_create(&thread, NULL, receive, &receiver);
	if (code)
		return error_set(err, code, "start a thread");
	r = wake(&pair, &receiver, err);
	/* Whatever came of it, the receiver is not to wait until its time is up. */
	last = probe_say(&pair, CONNECTED, THE_SHORT_WAY, ".", r ? &ignored : err);
	pthread_join(thread, NULL);
	if (r || last)
		return r ? r : last;
	if (receiver.n < 0 && receiver.code != EAGAIN)
		return error_set(err, receiver.code, "receive");
	return probe_tell(bench, TEST_BLOCKING, receiver.n == 1, "woken by room to send: %s",
			  receiver.n == 1 ? "went on to wait for data" : strerror(receiver.code));
}
