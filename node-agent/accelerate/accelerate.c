/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The accelerator's surface: whether it runs on this node and how far it goes. The programs do the
 * work; see docs/acceleration.md.
 */
#include "accelerate.h"

#include "accelerate_private.h"
#include "ebpf_pins.h"
#include "error.h"
#include "event_loop.h"
#include "log.h"
#include "monotonic.h"
#include "scoped.h"

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum {
	RETIRE_PERIOD_MS = 1000,
	DRAIN_MAX_MS = 2000, /* of uninstall: how long sockets are given to end */
	DRAIN_STEP_MS = 20,
};

__attribute__((format(printf, 2, 3))) static void set_off(struct accelerate *a, const char *format,
							  ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(a->reason, sizeof(a->reason), format, args);
	va_end(args);
	a->most = ACCEL_OFF;
}

/* ---- what earlier agents left --------------------------------------------------------------- */

static void on_retire(void *arg)
{
	struct accelerate *a = arg;
	struct error err = {0};

	if (accelerate_pins_retire(a->cfg.bpffs_dir, a, &a->retiring, &err))
		log_error(LOG_WARN, &err, "cannot remove an accelerator whose turn is over", NULL);
	if (a->retiring)
		return;
	event_loop_remove(a->retire_source);
	a->retire_source = NULL;
}

/*
 * Every accelerator but this agent's stops at once and goes when the last of its sockets has been
 * closed: until then its sockets may hold what their readers have yet to read.
 */
static int retire_others(struct accelerate *a, struct error *err)
{
	struct error why = {0};

	accelerate_pins_stop(a->cfg.bpffs_dir, a);
	if (accelerate_pins_retire(a->cfg.bpffs_dir, a, &a->retiring, &why))
		log_error(LOG_WARN, &why, "cannot remove an accelerator whose turn is over", NULL);
	if (!a->retiring)
		return 0;
	log_write(LOG_INFO,
		  "an earlier accelerator has stopped, and goes when its last socket is closed",
		  NULL);
	return event_loop_add_timer(a->loop, RETIRE_PERIOD_MS, RETIRE_PERIOD_MS, on_retire, a,
				    &a->retire_source, err);
}

/* ---- open ----------------------------------------------------------------------------------- */

static void unload(struct accelerate *a)
{
	accelerate_bpf__destroy(a->skel);
	a->skel = NULL;
}

static void probe(struct accelerate *a)
{
	char text[sizeof(((struct error *)NULL)->text) + 64];
	struct error err = {0};

	if (accelerate_probe_run(&a->probe, &err)) {
		set_off(a, "the probe could not run: %s", error_format(&err, text, sizeof(text)));
		return;
	}
	a->probed = true;
}

/* That they load is one of the probe's tests. */
static void load(struct accelerate *a)
{
	struct accelerate_result *result = &a->probe.results[TEST_LOADS];
	char text[sizeof(((struct error *)NULL)->text) + 64];
	struct error err = {0};

	if (!accelerate_pins_load(a, &err)) {
		result->finding = FINDING_AS_TCP;
		snprintf(result->detail, sizeof(result->detail), "loaded and attached");
		return;
	}
	unload(a);
	error_format(&err, text, sizeof(text));
	result->finding = FINDING_DIFFERS;
	snprintf(result->detail, sizeof(result->detail), "%.119s", text);
	set_off(a, "%.255s", text);
}

static void explain(struct accelerate *a)
{
	a->most = accelerate_most(a->cfg.policy);
	accelerate_explain(a->cfg.policy, a->cfg.unknown_proxy, a->probe.reason, a->reason);
	if (a->cfg.policy == ACCELERATE_FULL)
		log_write(LOG_WARN,
			  "--accelerate full is at the operator's own risk: applications that this "
			  "kernel's sockmap serves wrongly may hang or lose data",
			  "probe", a->probe.reason, NULL);
}

/* Leaves a->most and a->reason; what fails is a reason and not an error. */
static void start(struct accelerate *a)
{
	probe(a);
	if (!a->probed)
		return;
	accelerate_probe_judge(&a->probe, a->cfg.ignore_known_bugs);
	if (a->probe.proxy)
		load(a);
	accelerate_probe_judge(&a->probe, a->cfg.ignore_known_bugs);
	if (a->skel)
		explain(a);
	else if (!*a->reason)
		set_off(a, "%s", a->probe.reason);
}

static int take_host(struct accelerate *a, const struct accelerate_host *host, struct error *err)
{
	int fd = fcntl(host->cgroup_fd, F_DUPFD_CLOEXEC, 0);

	if (fd < 0)
		return error_set(err, errno, "open the pods' cgroup once more");
	if (a->cgroup_fd >= 0)
		close(a->cgroup_fd);
	a->cgroup_fd = fd;
	a->host = *host;
	return 0;
}

static void choose(struct accelerate *a, const struct accelerate_host *host)
{
	struct error err = {0};

	/* It is in the names of the pins, also of those that are only retired. */
	if (host)
		a->host.netns_by_inode = host->netns_by_inode;
	if (a->cfg.policy == ACCELERATE_OFF)
		set_off(a, "--accelerate off");
	else if (!host)
		set_off(a, "the eBPF engine is not this node's, and the accelerator rides on it");
	else if (take_host(a, host, &err))
		set_off(a, "%s", err.text);
	else
		start(a);
}

int accelerate_open(const struct accelerate_config *cfg, const struct accelerate_host *host,
		    struct event_loop *loop, struct accelerate **ret, struct error *err)
{
	struct accelerate *a = calloc(1, sizeof(*a));
	int r;

	if (!a)
		return error_set(err, ENOMEM, "open the accelerator");
	a->cfg = *cfg;
	a->loop = loop;
	a->cgroup_fd = -1;
	a->recount = true;
	choose(a, host);
	r = retire_others(a, err);
	if (!r)
		r = accelerate_workloads_load(a, err);
	if (!r && a->skel)
		r = accelerate_pairs_open(a, &a->pairs, err);
	if (r) {
		accelerate_close(a);
		return r;
	}
	log_write(a->most == ACCEL_OFF && cfg->policy != ACCELERATE_OFF ? LOG_WARN : LOG_INFO,
		  "accelerator", "policy", accelerate_policy_name(cfg->policy), "up-to",
		  accelerate_level_name(a->most), "reason", a->reason, NULL);
	*ret = a;
	return 0;
}

void accelerate_close(struct accelerate *a)
{
	if (!a)
		return;
	accelerate_pairs_close(a->pairs);
	event_loop_remove(a->retire_source);
	accelerate_workloads_done(a);
	accelerate_pods_done(a);
	unload(a);
	if (a->cgroup_fd >= 0)
		close(a->cgroup_fd);
	free(a);
}

void accelerate_heal(struct accelerate *a, const struct accelerate_host *host)
{
	struct error err = {0};
	int r;

	if (!a->skel || !host)
		return;
	r = take_host(a, host, &err);
	if (!r)
		r = accelerate_pins_heal(a, &err);
	accelerate_pods_settle(a);
	if (r)
		log_error(a->heal_failed ? LOG_DEBUG : LOG_ERROR, &err,
			  "the accelerator is not complete", NULL);
	a->heal_failed = r;
}

/* ---- uninstall ------------------------------------------------------------------------------ */

/*
 * Once stopped, nothing more goes the short way, and sockets that were on it end or read on. Those
 * that are still there after a moment keep their map and the program that serves them in the kernel
 * until they are closed: nothing that they hold is lost with the pins.
 */
static int drain(const char *bpffs_dir, struct error *err)
{
	const struct timespec pause = {.tv_nsec = DRAIN_STEP_MS * 1000 * 1000L};
	int64_t end_ms = monotonic_ms() + DRAIN_MAX_MS;
	size_t left = 0;
	int r;

	accelerate_pins_stop(bpffs_dir, NULL);
	while (!(r = accelerate_pins_retire(bpffs_dir, NULL, &left, err)) && left &&
	       monotonic_ms() < end_ms)
		nanosleep(&pause, NULL);
	return r;
}

int accelerate_uninstall(const char *bpffs_dir, struct error *err)
{
	scoped_fd int lock = -1;
	size_t sockets = 0;
	char text[24];
	int r = ebpf_pins_lock(bpffs_dir, &lock, err);

	if (r)
		return r == -ENOENT ? 0 : r;
	r = drain(bpffs_dir, err);
	if (!r)
		r = accelerate_pins_remove(bpffs_dir, &sockets, err);
	if (r || !sockets)
		return r;
	snprintf(text, sizeof(text), "%zu", sockets);
	log_write(LOG_INFO,
		  "connections that were accelerated go on by TCP; the kernel keeps their programs "
		  "until they are closed",
		  "sockets", text, NULL);
	return 0;
}
