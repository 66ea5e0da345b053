/* SPDX-License-Identifier: Apache-2.0 */
#include "redirect_selftest.h"

#include "error.h"
#include "ip_address.h"
#include "monotonic.h"
#include "netns.h"
#include "redirect_engine.h"
#include "redirect_plan.h"
#include "scoped.h"
#include "selftest_network.h"
#include "selftest_process.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* The process takes two seconds for a step at most, so a hanging connection is reported as one. */
enum { DEADLINE_MS = 6000, CGROUP_REMOVE_TRIES = 200, CGROUP_REMOVE_PAUSE_US = 1000 };

#define CGROUP_PREFIX "sockmesh-selftest."

struct selftest {
	const struct redirect_engine_ops *ops;
	void *state;
	struct selftest_network net;
	struct selftest_process process;
	struct netns_id netns;
	struct selftest_result result;
	int64_t started_ms;
	int n_connections;
	int cgroup_fd; /* the directory that ours is in */
	char cgroup[48];
};

/* ---- cgroup --------------------------------------------------------------------------------- */

/* Of an agent that was killed in its self-test. */
static void remove_leftovers(int dir_fd)
{
	int fd = openat(dir_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	scoped_dir DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	struct dirent *entry;

	while (dir && (entry = readdir(dir))) {
		long pid;

		if (strncmp(entry->d_name, CGROUP_PREFIX, strlen(CGROUP_PREFIX)) != 0)
			continue;
		pid = strtol(entry->d_name + strlen(CGROUP_PREFIX), NULL, 10);
		if (pid > 0 && kill((pid_t)pid, 0) < 0 && errno == ESRCH)
			unlinkat(dir_fd, entry->d_name, AT_REMOVEDIR);
	}
	if (!dir && fd >= 0)
		close(fd);
}

static int cgroup_make(struct selftest *t, const char *dir, int *ret_procs_fd, struct error *err)
{
	char procs[sizeof(t->cgroup) + sizeof("/cgroup.procs")];
	int fd;

	if (!dir)
		return 0;
	t->cgroup_fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (t->cgroup_fd < 0)
		return error_set(err, errno, "open cgroup %s", dir);
	remove_leftovers(t->cgroup_fd);
	snprintf(t->cgroup, sizeof(t->cgroup), CGROUP_PREFIX "%d", (int)getpid());
	if (mkdirat(t->cgroup_fd, t->cgroup, 0755) < 0 && errno != EEXIST)
		return error_set(err, errno, "make cgroup %s/%s", dir, t->cgroup);
	snprintf(procs, sizeof(procs), "%s/cgroup.procs", t->cgroup);
	fd = openat(t->cgroup_fd, procs, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return error_set(err, errno, "open %s/%s", dir, procs);
	*ret_procs_fd = fd;
	return 0;
}

/* A process that was reaped can be in its cgroup for some milliseconds more. */
static void cgroup_remove(struct selftest *t)
{
	if (t->cgroup_fd < 0)
		return;
	for (int i = 0; t->cgroup[0] && i < CGROUP_REMOVE_TRIES; i++) {
		if (!unlinkat(t->cgroup_fd, t->cgroup, AT_REMOVEDIR) || errno != EBUSY)
			break;
		usleep(CGROUP_REMOVE_PAUSE_US);
	}
	close(t->cgroup_fd);
}

/* ---- the pod -------------------------------------------------------------------------------- */

/*
 * Istio's rules without exceptions. We cannot change our ids, so outbound the proxy is somebody
 * else, which makes us the application, and inbound it is us, so that our listener is the proxy's.
 */
static int build_plan(bool we_are_proxy, bool ipv6, struct redirect_plan **ret, struct error *err)
{
	uint32_t uid = geteuid() + !we_are_proxy, gid = getegid() + 1;
	struct redirect_settings s = {
		.outbound_port = SELFTEST_OUTBOUND_PORT,
		.inbound_port = SELFTEST_INBOUND_PORT,
		.capture_ipv6 = ipv6,
		.loopback4 = {.length = 128},
		.proxy_uids = {&uid, 1},
		.proxy_gids = {&gid, 1},
		.outbound_include_all = true,
		.inbound_include_all = true,
	};

	ip_address_from_v4(htonl(INADDR_LOOPBACK), &s.loopback4.address);
	return redirect_plan_build(&s, ret, err);
}

static bool failed(struct selftest *t, const char *what, const struct error *err)
{
	char buf[sizeof(err->text) + 64];

	snprintf(t->result.detail, sizeof(t->result.detail), "%s: %s", what,
		 error_format(err, buf, sizeof(buf)));
	return false;
}

static void plan_free_at(struct redirect_plan **plan)
{
	redirect_plan_free(*plan);
}

static bool apply(struct selftest *t, const struct redirect_plan *plan)
{
	struct ip_address addresses[2] = {0};
	struct redirect_pod pod = {
		.cookie = t->netns.cookie,
		.netns_fd = t->net.pod_fd,
		.plan = plan,
		.pod_plan = plan,
		.addresses = addresses,
		.n_addresses = t->net.ipv6 ? 2 : 1,
	};
	struct error err = {0};

	if (ip_address_parse(SELFTEST_POD_V4, &addresses[0], &err) ||
	    ip_address_parse(SELFTEST_POD_V6, &addresses[1], &err) ||
	    t->ops->apply(t->state, &pod, &err))
		return failed(t, "apply", &err);
	return true;
}

/* ---- connections ---------------------------------------------------------------------------- */

static const char *outcome_sentence(const struct selftest_report *report)
{
	switch (report->outcome) {
	case SELFTEST_NOT_CONNECTED:
	case SELFTEST_NOT_ACCEPTED:
		return "did not reach the proxy's listener";
	case SELFTEST_NO_ORIGINAL:
		return "reached the proxy's listener without its original destination";
	case SELFTEST_OTHER_ORIGINAL:
		return "reached the proxy's listener with a wrong original destination";
	case SELFTEST_NO_DATA:
		return "reached the proxy's listener but carries no data";
	default:
		return NULL;
	}
}

/* A busy node can make a good connection late; a broken engine is so again. */
static bool was_late(const struct selftest_report *report)
{
	return report->outcome != SELFTEST_PASSED &&
	       (report->code == ETIMEDOUT || report->code == EINPROGRESS || report->code == EAGAIN);
}

/* -errno only when it cannot be known; else *ret_passed, or t->result says why not. */
static int connect_once(struct selftest *t, const struct selftest_connection *c, bool *ret_passed,
			struct error *err)
{
	const char *direction = c->inbound ? "inbound" : "outbound";
	const char *family = c->ipv6 ? "IPv6" : "IPv4", *sentence;
	struct selftest_report report;
	int64_t deadline_ms = t->started_ms + DEADLINE_MS;
	int r = selftest_process_connect(&t->process, c, deadline_ms, &report, err);

	if (!r && was_late(&report))
		r = selftest_process_connect(&t->process, c, deadline_ms, &report, err);
	if (r)
		return error_wrap(err, "%s %s", direction, family);
	if (report.outcome == SELFTEST_NOT_SET_UP)
		return error_set(err, report.code ? report.code : EIO,
				 "set up the self-test's %s %s connection", direction, family);
	t->n_connections++;
	*ret_passed = report.outcome == SELFTEST_PASSED;
	sentence = outcome_sentence(&report);
	if (sentence)
		snprintf(t->result.detail, sizeof(t->result.detail), "an %s %s connection %s%s%s",
			 direction, family, sentence, report.code ? ": " : "",
			 report.code ? strerror(report.code) : "");
	return 0;
}

static int try_direction(struct selftest *t, bool inbound, bool *ret_passed, struct error *err)
{
	scoped(plan_free_at) struct redirect_plan *plan = NULL;
	bool passed = false;
	int r = build_plan(inbound, t->net.ipv6, &plan, err);

	if (r)
		return r;
	if (apply(t, plan)) {
		passed = true;
		for (int ipv6 = 0; !r && passed && ipv6 <= t->net.ipv6; ipv6++) {
			struct selftest_connection c = {.inbound = inbound, .ipv6 = ipv6};

			r = connect_once(t, &c, &passed, err);
		}
	}
	if (!r)
		*ret_passed = passed;
	return r;
}

/* ---- the whole ------------------------------------------------------------------------------ */

static int try_engine(struct selftest *t, struct error *err)
{
	struct error failure = {0};
	bool passed = false;
	int r = try_direction(t, false, &passed, err);

	if (!r && passed)
		r = try_direction(t, true, &passed, err);
	if (t->ops->remove(t->state, t->netns.cookie, t->net.pod_fd, &failure) && !r && passed)
		passed = failed(t, "remove", &failure);
	if (r || !passed)
		return r;
	t->result.passed = true;
	snprintf(t->result.detail, sizeof(t->result.detail), "%d connections in %" PRId64 " ms",
		 t->n_connections, monotonic_ms() - t->started_ms);
	return 0;
}

static int run(struct selftest *t, const char *cgroup_dir, struct error *err)
{
	scoped_fd int procs_fd = -1;
	int r = selftest_network_open(&t->net, err);

	if (!r)
		r = netns_identify(t->net.pod_fd, &t->netns, err);
	if (!r)
		r = cgroup_make(t, cgroup_dir, &procs_fd, err);
	if (!r)
		r = selftest_process_start(&t->net, procs_fd, &t->process, err);
	return r ? r : try_engine(t, err);
}

int redirect_selftest(const struct redirect_engine_ops *ops, void *state, const char *cgroup_dir,
		      struct selftest_result *ret, struct error *err)
{
	struct selftest t = {
		.ops = ops,
		.state = state,
		.net = {.pod_fd = -1, .peer_fd = -1},
		.process = {.pid = -1, .channel = -1},
		.cgroup_fd = -1,
		.started_ms = monotonic_ms(),
	};
	int r = run(&t, cgroup_dir, err);

	selftest_process_end(&t.process);
	cgroup_remove(&t);
	selftest_network_close(&t.net);
	if (r)
		failed(&t, "the self-test could not be made", err);
	*ret = t.result;
	return r;
}
