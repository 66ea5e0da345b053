/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The floors: the least that messages between two processes cost on this machine, with nothing
 * between them and blocking calls.
 *
 *	bench_floor tcp|unix|pipe MILLISECONDS SIZE CPU PEER-CPU
 *
 * A message of SIZE bytes there and back over TCP on loopback, a stream AF_UNIX socket, or two
 * pipes; the two processes are bound to their CPUs. Prints what bench_client prints.
 */
#include "bench_samples.h"

#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>

enum { MESSAGE_MAX = 65536, WARM_UP = 500 };

/* Where one side reads and writes. */
struct side {
	int in, out;
};

static void pin(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		err(1, "CPU %d", cpu);
}

static void pair_tcp(struct side *a, struct side *b)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(to);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	a->in = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (listener < 0 || a->in < 0 || bind(listener, (struct sockaddr *)&to, sizeof(to)) ||
	    listen(listener, 1) || getsockname(listener, (struct sockaddr *)&to, &size) ||
	    connect(a->in, (struct sockaddr *)&to, sizeof(to)))
		err(1, "TCP on loopback");
	b->in = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
	if (b->in < 0)
		err(1, "accept");
	bench_no_delay(a->in);
	bench_no_delay(b->in);
	close(listener);
	a->out = a->in;
	b->out = b->in;
}

static void pair_unix(struct side *a, struct side *b)
{
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds))
		err(1, "socketpair");
	*a = (struct side){fds[0], fds[0]};
	*b = (struct side){fds[1], fds[1]};
}

static void pair_pipe(struct side *a, struct side *b)
{
	int there[2], back[2];

	if (pipe2(there, O_CLOEXEC) || pipe2(back, O_CLOEXEC))
		err(1, "pipe");
	*a = (struct side){back[0], there[1]};
	*b = (struct side){there[0], back[1]};
}

static const struct {
	const char *name;
	void (*make)(struct side *a, struct side *b);
} floors[] = {{"tcp", pair_tcp}, {"unix", pair_unix}, {"pipe", pair_pipe}};

/* False at the end of what comes. */
static bool receive(const struct side *side, char *data, size_t size)
{
	size_t done = 0;
	ssize_t n;

	for (; done < size; done += n) {
		n = read(side->in, data + done, size - done);
		if (n <= 0)
			return false;
	}
	return true;
}

static void transmit(const struct side *side, const char *data, size_t size)
{
	size_t done = 0;
	ssize_t n;

	for (; done < size; done += n) {
		n = write(side->out, data + done, size - done);
		if (n < 0)
			err(1, "write");
	}
}

static _Noreturn void answer(const struct side *side, size_t size, int cpu)
{
	static char data[MESSAGE_MAX];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	pin(cpu);
	while (receive(side, data, size))
		transmit(side, data, size);
	_exit(0);
}

static void exchange(const struct side *side, size_t size)
{
	static char out[MESSAGE_MAX], in[MESSAGE_MAX];
	static uint32_t serial;

	serial++;
	memset(out, (int)serial, size);
	memcpy(out, &serial, sizeof(serial));
	transmit(side, out, size);
	if (!receive(side, in, size))
		errx(1, "no answer");
	if (memcmp(in, out, size))
		errx(1, "the answer is not what was sent");
}

static void measure(const struct side *side, size_t size, uint64_t duration_ns)
{
	static struct bench_samples samples;
	uint64_t before, now;
	int i;

	bench_samples_init(&samples);
	for (i = 0; i < WARM_UP; i++)
		exchange(side, size);
	bench_samples_start(&samples);
	for (before = samples.started_ns; before - samples.started_ns < duration_ns; before = now) {
		exchange(side, size);
		now = bench_now_ns();
		bench_sample(&samples, now - before);
	}
	bench_samples_end(&samples);
	bench_samples_print(&samples, "rps");
}

int main(int argc, char **argv)
{
	struct side here, there;
	size_t i, size = argc == 6 ? strtoul(argv[3], NULL, 10) : 0;
	pid_t pid;

	for (i = 0; argc == 6 && i < sizeof(floors) / sizeof(*floors); i++)
		if (!strcmp(argv[1], floors[i].name))
			break;
	if (size < sizeof(uint32_t) || size > MESSAGE_MAX || i == sizeof(floors) / sizeof(*floors))
		errx(2, "usage: bench_floor tcp|unix|pipe MILLISECONDS SIZE CPU PEER-CPU");
	floors[i].make(&here, &there);
	pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (!pid)
		answer(&there, size, atoi(argv[5]));
	pin(atoi(argv[4]));
	measure(&here, size, strtoull(argv[2], NULL, 10) * 1000000);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return 0;
}
