/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The probe on the running kernel: what comes out the same on every kernel that it can run on, and
 * that it leaves nothing behind.
 */
#include "accelerate_probe.h"
#include "error.h"
#include "monotonic.h"
#include "netns.h"
#include "scoped.h"
#include "test.h"

#include <bpf/bpf.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { RUNS = 30, LEFT_AT_MOST = RUNS / 2, PATIENCE_MS = 20000, PAUSE_US = 20000 };

static bool namespaces_cannot_be_made(void)
{
	struct error err = {0};
	scoped_fd int fd = -1;

	return netns_new(&fd, &err) != 0;
}

static int entries(const char *path)
{
	scoped_dir DIR *dir = opendir(path);
	int n = 0;

	while (dir && readdir(dir))
		n++;
	return n;
}

static int run(struct accelerate_probe *probe)
{
	struct error err = {0};
	char text[sizeof(err.text) + 64];
	int r = accelerate_probe_run(probe, &err);

	if (r)
		printf("# %s\n", error_format(&err, text, sizeof(text)));
	return r;
}

TEST(what_every_kernel_does_is_found)
{
	static const struct {
		enum accelerate_test test;
		enum accelerate_finding want;
		const char *detail;
	} same[] = {
		{TEST_LOADS, FINDING_UNKNOWN, ""},
		{TEST_ORDER, FINDING_DIFFERS, "read 22221111"},
		{TEST_ORDER_DRAINED, FINDING_AS_TCP, "read 222233334444"},
		{TEST_COPIED_SEQ, FINDING_AS_TCP, "moved it by 0"},
		{TEST_EOF, FINDING_AS_TCP, "read 12345, then end of file"},
		{TEST_HALF_CLOSE, FINDING_AS_TCP, "then end of file; 678 back: read 678"},
		{TEST_RST, FINDING_AS_TCP, "read 12345, then a reset"},
		{TEST_ACCOUNTED, FINDING_AS_TCP, "0 once everything was read"},
		{TEST_SECOND_OWNER, FINDING_AS_TCP, "Device or resource busy"},
		{TEST_ENTRY_REMOVED, FINDING_DIFFERS, "read nothing"},
	};
	struct accelerate_probe probe = {0};

	if (namespaces_cannot_be_made())
		return TEST_SKIP;
	CHECK_EQ(run(&probe), 0);
	for (enum accelerate_test test = 0; test < TEST_COUNT_; test++)
		printf("# %s: %s: %s\n", accelerate_test_name(test),
		       accelerate_finding_name(probe.results[test].finding),
		       probe.results[test].detail);
	printf("# %lld us on %s\n", probe.took_us, probe.release);
	for (size_t i = 0; i < sizeof(same) / sizeof(*same); i++) {
		CHECK_EQ(probe.results[same[i].test].finding, same[i].want);
		CHECK_HAS(probe.results[same[i].test].detail, same[i].detail);
	}
	/* These differ from kernel to kernel, but all can be tried. */
	for (enum accelerate_test test = TEST_LOADS + 1; test < TEST_COUNT_; test++)
		CHECK(probe.results[test].finding != FINDING_UNKNOWN);
	CHECK(probe.took_us > 0 && *probe.release);
	return TEST_OK;
}

/* ---- nothing is left ------------------------------------------------------------------------ */

/* Objects of the kernel's cache of network namespaces; -1: it does not tell. */
static int namespaces(void)
{
	scoped_file FILE *file = fopen("/proc/slabinfo", "re");
	char line[256];
	int n;

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "net_namespace %d", &n) == 1)
			return n;
	return -1;
}

static int programs(void)
{
	__u32 id = 0;
	int n = 0;

	while (!bpf_prog_get_next_id(id, &id)) {
		scoped_fd int fd = bpf_prog_get_fd_by_id(id);
		struct bpf_prog_info info = {0};
		__u32 size = sizeof(info);

		n += fd >= 0 && !bpf_obj_get_info_by_fd(fd, &info, &size) &&
		     !strcmp(info.name, "probe_verdict");
	}
	return n;
}

/* The kernel takes its time to end what nobody holds any more. */
static bool falls_to(int (*count)(void), int limit)
{
	int64_t deadline = monotonic_ms() + PATIENCE_MS;

	while (count() > limit) {
		if (monotonic_ms() > deadline) {
			printf("# %d left, more than %d\n", count(), limit);
			return false;
		}
		usleep(PAUSE_US);
	}
	return true;
}

TEST(nothing_is_left_behind)
{
	int fds = entries("/proc/self/fd"), threads = entries("/proc/self/task");
	int before = namespaces();
	struct accelerate_probe probe;

	if (namespaces_cannot_be_made())
		return TEST_SKIP;
	for (int i = 0; i < RUNS; i++)
		CHECK_EQ(run(&probe), 0);
	CHECK_EQ(entries("/proc/self/fd"), fds);
	CHECK_EQ(entries("/proc/self/task"), threads);
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
	CHECK(falls_to(programs, 0));
	/* The cache counts what it keeps for the next one, too, and others make namespaces. */
	CHECK(falls_to(namespaces, before + LEFT_AT_MOST));
	return TEST_OK;
}

TEST(the_caller_is_not_touched)
{
	struct stat before, after;
	sigset_t mask = {0}, mask_after = {0};
	struct accelerate_probe probe;

	if (namespaces_cannot_be_made())
		return TEST_SKIP;
	CHECK_EQ(stat("/proc/thread-self/ns/net", &before), 0);
	pthread_sigmask(SIG_SETMASK, NULL, &mask);
	CHECK_EQ(run(&probe), 0);
	pthread_sigmask(SIG_SETMASK, NULL, &mask_after);
	CHECK_EQ(stat("/proc/thread-self/ns/net", &after), 0);
	CHECK_EQ(before.st_ino, after.st_ino);
	CHECK(!memcmp(&mask, &mask_after, sizeof(mask)));
	return TEST_OK;
}

/* ---- on a busy machine ---------------------------------------------------------------------- */

static void on_alarm(int signal)
{
	(void)signal;
}

/* The agent's signals are its own business: they end no call that the probe times. */
TEST(signals_do_not_change_what_is_found)
{
	struct sigaction action = {.sa_handler = on_alarm}, old;
	struct accelerate_probe quiet, noisy;
	timer_t timer;
	struct itimerspec often = {{0, 1000000}, {0, 1000000}};
	struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};

	if (namespaces_cannot_be_made())
		return TEST_SKIP;
	CHECK_EQ(run(&quiet), 0);
	CHECK_EQ(sigaction(SIGALRM, &action, &old), 0);
	CHECK_EQ(timer_create(CLOCK_MONOTONIC, &event, &timer), 0);
	CHECK_EQ(timer_settime(timer, 0, &often, NULL), 0);
	CHECK_EQ(run(&noisy), 0);
	timer_delete(timer);
	sigaction(SIGALRM, &old, NULL);
	for (enum accelerate_test test = 0; test < TEST_COUNT_; test++)
		CHECK_EQ(noisy.results[test].finding, quiet.results[test].finding);
	return TEST_OK;
}
