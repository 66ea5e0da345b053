/* SPDX-License-Identifier: Apache-2.0 */
#include "accelerate_probe.h"

#include "accelerate_probe.skel.h"
#include "accelerate_probe_private.h"
#include "monotonic.h"
#include "netns.h"
#include "scoped.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <net/if.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/utsname.h>

/*
 * The trials take some tens of milliseconds. Only what is waited for in vain counts against the
 * patience: a slow node gets to the end of them, and so does a kernel that answers nothing.
 */
enum { PATIENCE_MS = 3000, ATTEMPTS = 3, BACKLOG = 4 };

static void bpf_free_at(struct accelerate_probe_bpf **bpf)
{
	accelerate_probe_bpf__destroy(*bpf);
}

static int load(struct accelerate_probe_bpf **ret, struct error *err)
{
	scoped(bpf_free_at) struct accelerate_probe_bpf *bpf =
		accelerate_probe_bpf__open_and_load();
	const struct bpf_map *maps[2];
	int prog;

	if (!bpf)
		return error_set(err, errno, "load the probe's program");
	prog = bpf_program__fd(bpf->progs.probe_verdict);
	maps[0] = bpf->maps.probe_sockets;
	maps[1] = bpf->maps.probe_others;
	for (int i = 0; i < 2; i++)
		if (bpf_prog_attach(prog, bpf_map__fd(maps[i]), BPF_SK_MSG_VERDICT, 0))
			return error_set(err, errno, "attach a program to a sockmap");
	*ret = take_ptr(bpf);
	return 0;
}

/* ---- in the scratch namespace, on a thread of its own --------------------------------------- */

static int set_lo_up(struct error *err)
{
	scoped_fd int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq lo = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};

	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &lo) < 0)
		return error_set(err, errno, "set a scratch namespace's lo up");
	return 0;
}

static int open_listener(struct probe_bench *bench, struct error *err)
{
	socklen_t size = sizeof(bench->address);

	bench->address.sin_family = AF_INET;
	bench->address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	bench->listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (bench->listener < 0 ||
	    bind(bench->listener, (const struct sockaddr *)&bench->address, size) < 0 ||
	    listen(bench->listener, BACKLOG) < 0 ||
	    getsockname(bench->listener, (struct sockaddr *)&bench->address, &size) < 0)
		return error_set(err, errno, "listen in a scratch namespace");
	return 0;
}

/* What came too late may be the processor's fault: it is tried again, with twice the time. */
static int attempt(struct probe_bench *bench, const struct probe_trial *trial, struct error *err)
{
	int r = error_set(err, ETIMEDOUT, "no time left");

	bench->step_ms = PROBE_STEP_MS;
	for (int i = 0; i < ATTEMPTS && bench->patience_ms >= bench->step_ms; i++) {
		int64_t started_ms = monotonic_ms();

		r = trial->run(bench, err);
		if (r != -ETIMEDOUT)
			break;
		bench->patience_ms -= (int)(monotonic_ms() - started_ms);
		bench->step_ms *= 2;
	}
	return r;
}

static void run_trial(struct probe_bench *bench, const struct probe_trial *trial)
{
	struct accelerate_result *results = bench->probe->results;
	struct error err = {0};
	char why[sizeof(results->detail) - sizeof("not tried: ")];

	if (!attempt(bench, trial, &err))
		return;
	error_format(&err, why, sizeof(why));
	for (unsigned test = trial->first; test <= trial->last; test++)
		snprintf(results[test].detail, sizeof(results[test].detail), "not tried: %s", why);
}

static int run_trials(void *arg, struct error *err)
{
	struct probe_bench *bench = arg;
	sigset_t all;
	int r;

	/* Signals are the agent's: they would end calls that we time. */
	sigfillset(&all);
	pthread_sigmask(SIG_BLOCK, &all, NULL);
	r = set_lo_up(err);
	if (!r)
		r = open_listener(bench, err);
	bench->patience_ms = PATIENCE_MS;
	for (unsigned i = 0; !r && i < n_probe_trials; i++)
		run_trial(bench, &probe_trials[i]);
	scoped_close(&bench->listener);
	return r;
}

/* ---- the whole ------------------------------------------------------------------------------ */

static long long monotonic_us(void)
{
	struct timespec now = {0};

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

int accelerate_probe_run(struct accelerate_probe *ret, struct error *err)
{
	scoped(bpf_free_at) struct accelerate_probe_bpf *bpf = NULL;
	struct accelerate_probe probe = {0};
	struct probe_bench bench = {.listener = -1, .probe = &probe};
	long long started_us = monotonic_us();
	scoped_fd int netns = -1;
	struct utsname name = {0};
	int r;

	uname(&name);
	snprintf(probe.release, sizeof(probe.release), "%s", name.release);
	probe.known_bug = accelerate_release_bug(name.release, name.version);
	r = load(&bpf, err);
	if (!r)
		r = netns_new(&netns, err);
	bench.bpf = bpf;
	if (!r)
		r = netns_run(netns, run_trials, &bench, err);
	if (r)
		return r;
	probe.took_us = monotonic_us() - started_us;
	*ret = probe;
	return 0;
}
