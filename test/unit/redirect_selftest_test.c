/* SPDX-License-Identifier: Apache-2.0 */
#include "redirect_selftest.h"

#include "cgroup.h"
#include "error.h"
#include "event_loop.h"
#include "monotonic.h"
#include "netns.h"
#include "redirect_engine.h"
#include "scoped.h"
#include "test.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* ---- engines that are made up --------------------------------------------------------------- */

struct fake {
	const char *nft; /* a table's content, for the pod's namespace; NULL: none */
	int apply_code, remove_code;
	int n_applied, n_removed;
};

#define REDIRECT_OUT                                                                               \
	"chain o { type nat hook output priority -100;"                                            \
	" oif != lo meta l4proto tcp redirect to :15001; };"
#define REDIRECT_IN                                                                                \
	"chain p { type nat hook prerouting priority -100;"                                        \
	" meta l4proto tcp redirect to :15006; };"

static int run_nft(void *arg, struct error *err)
{
	struct fake *fake = arg;
	char command[1024];

	snprintf(command, sizeof(command),
		 "printf 'table inet t\\ndelete table inet t\\ntable inet t { %%s }' '%s' | nft -f "
		 "-",
		 fake->nft);
	return system(command) ? error_set(err, EIO, "nft") : 0; /* NOLINT(cert-env33-c) */
}

static int fake_apply(void *state, const struct redirect_pod *pod, struct error *err)
{
	struct fake *fake = state;

	fake->n_applied++;
	if (fake->apply_code)
		return error_set(err, fake->apply_code, "as told");
	return fake->nft ? netns_run(pod->netns_fd, run_nft, fake, err) : 0;
}

static int fake_remove(void *state, uint64_t cookie, int netns_fd, struct error *err)
{
	struct fake *fake = state;

	(void)cookie;
	fake->n_removed += netns_fd >= 0;
	return fake->remove_code ? error_set(err, fake->remove_code, "as told") : 0;
}

static const struct redirect_engine_ops fake_ops = {
	.name = "fake",
	.apply = fake_apply,
	.remove = fake_remove,
};

/* ---- what a test must leave as it was ------------------------------------------------------- */

static int entries(const char *path)
{
	scoped_dir DIR *dir = opendir(path);
	int n = 0;

	while (dir && readdir(dir))
		n++;
	return n;
}

static int cgroups_left(const char *path)
{
	scoped_dir DIR *dir = opendir(path);
	struct dirent *entry;
	int n = 0;

	while (dir && (entry = readdir(dir)))
		n += !strncmp(entry->d_name, "sockmesh-selftest.", 18);
	return n;
}

static bool clean(int fds_before)
{
	return waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD &&
	       entries("/proc/self/fd") == fds_before;
}

static bool namespaces_cannot_be_made(void)
{
	struct error err = {0};
	scoped_fd int fd = -1;

	return netns_new(&fd, &err) != 0;
}

TEST(an_engine_that_redirects_passes)
{
	struct fake fake = {.nft = REDIRECT_OUT REDIRECT_IN};
	struct selftest_result result = {0};
	struct error err = {0};
	int fds = entries("/proc/self/fd");

	if (namespaces_cannot_be_made())
		return TEST_SKIP;
	CHECK_EQ(redirect_selftest(&fake_ops, &fake, NULL, &result, &err), 0);
	printf("# %s\n", result.detail);
	CHECK(result.passed);
	CHECK_HAS(result.detail, "4 connections in ");
	CHECK_EQ(fake.n_applied, 2);
	CHECK_EQ(fake.n_removed, 1);
	CHECK(clean(fds));
	return TEST_OK;
}

TEST(an_engine_that_does_less_is_found_out)
{
	static const struct {
		struct fake fake;
		const char *detail;
	} cases[] = {
		{{.nft = NULL},
		 "an outbound IPv4 connection did not reach the proxy's listener: Connection "
		 "refused"},
		{{.nft = REDIRECT_OUT},
		 "an inbound IPv4 connection did not reach the proxy's listener: Connection "
		 "refused"},
		{{.nft = "chain o { type nat hook output priority -100;"
			 " meta nfproto ipv4 meta l4proto tcp oif != lo redirect to :15001; };"},
		 "an outbound IPv6 connection did not reach the proxy's listener: Connection "
		 "refused"},
		{{.nft = "chain o { type nat hook output priority -100;"
			 " oif != lo meta l4proto tcp redirect to :15001; };"
			 "chain i { type filter hook input priority 0;"
			 " tcp dport 15001 tcp flags & (syn | psh) == psh drop; };"},
		 "an outbound IPv4 connection reached the proxy's listener but carries no data: "
		 "Connection timed out"},
		/* Headers rewritten behind conntrack's back: it does not know what was dialled. */
		{{.nft = "chain o { type route hook output priority -300; tcp dport 80"
			 " ip daddr set 192.0.2.1 tcp dport set 15001; };"
			 "chain i { type filter hook input priority 0; tcp sport 15001"
			 " ip saddr set 192.0.2.2 tcp sport set 80; };"},
		 "an outbound IPv4 connection reached the proxy's listener without its original "
		 "destination: "},
		{{.nft = REDIRECT_OUT "chain r { type filter hook output priority -300;"
				      " tcp dport 80 tcp dport set 81; };"
				      "chain i { type filter hook input priority 200;"
				      " tcp sport 81 tcp sport set 80; };"},
		 "an outbound IPv4 connection reached the proxy's listener with a wrong original "
		 "destination"},
		{{.nft = "chain o { type filter hook output priority 0; drop; };"},
		 "an outbound IPv4 connection did not reach the proxy's listener: "
		 "Connection timed out"},
		{{.apply_code = ENOSPC}, "apply: as told: No space left on device"},
		{{.nft = REDIRECT_OUT REDIRECT_IN, .remove_code = EBUSY},
		 "remove: as told: Device or resource busy"},
	};

	if (namespaces_cannot_be_made())
		return TEST_SKIP;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct fake fake = cases[i].fake;
		struct selftest_result result = {0};
		struct error err = {0};
		int fds = entries("/proc/self/fd");
		int64_t start = monotonic_ms();

		CHECK_EQ(redirect_selftest(&fake_ops, &fake, NULL, &result, &err), 0);
		CHECK(!result.passed);
		CHECK_HAS(result.detail, cases[i].detail);
		CHECK_EQ(fake.n_removed, 1);
		CHECK(monotonic_ms() - start < 10000);
		CHECK(clean(fds));
	}
	return TEST_OK;
}

/* ---- cgroups -------------------------------------------------------------------------------- */

static bool make_cgroup(char path[static PATH_MAX])
{
	char root[PATH_MAX - 64];
	struct error err = {0};

	if (cgroup2_find(NULL, root, sizeof(root), &err))
		return false;
	snprintf(path, PATH_MAX, "%s/sockmesh-unit.XXXXXX", root);
	return mkdtemp(path) != NULL;
}

static bool remove_cgroup(const char *path)
{
	for (int i = 0; i < 1000; i++) {
		if (!rmdir(path))
			return true;
		usleep(1000);
	}
	return false;
}

TEST(the_cgroup_goes_and_so_does_one_that_a_killed_agent_left)
{
	struct fake fake = {.nft = REDIRECT_OUT REDIRECT_IN};
	struct selftest_result result = {0};
	struct error err = {0};
	char path[PATH_MAX], left[PATH_MAX + 64], used[PATH_MAX + 64];

	if (namespaces_cannot_be_made() || !make_cgroup(path))
		return TEST_SKIP;
	snprintf(left, sizeof(left), "%s/sockmesh-selftest.4194305", path); /* above any pid_max */
	snprintf(used, sizeof(used), "%s/sockmesh-selftest.1", path);
	CHECK(!mkdir(left, 0755) && !mkdir(used, 0755));
	CHECK_EQ(redirect_selftest(&fake_ops, &fake, path, &result, &err), 0);
	CHECK(result.passed);
	CHECK_EQ(cgroups_left(path), 1);
	CHECK(!rmdir(used));
	CHECK(remove_cgroup(path));
	return TEST_OK;
}

TEST(a_test_that_cannot_be_made_says_nothing_about_the_engine)
{
	struct fake fake = {0};
	struct selftest_result result = {0};
	struct error err = {0};
	int fds = entries("/proc/self/fd");

	if (namespaces_cannot_be_made())
		return TEST_SKIP;
	CHECK_EQ(redirect_selftest(&fake_ops, &fake, "/proc/nothing", &result, &err), -ENOENT);
	CHECK(!result.passed);
	CHECK_STR(result.detail, "the self-test could not be made: open cgroup /proc/nothing: "
				 "No such file or directory");
	CHECK_EQ(fake.n_applied, 0);
	CHECK(clean(fds));
	return TEST_OK;
}

/* ---- the engines ---------------------------------------------------------------------------- */

static enum test_result passes_on(const struct redirect_engine_ops *ops, void *state,
				  const char *cgroup)
{
	uint64_t *cookies = NULL;
	struct error err = {0};
	size_t n = 0;

	for (int i = 0; i < 5; i++) {
		struct selftest_result result = {0};
		int64_t start = monotonic_ms();

		CHECK_EQ(redirect_selftest(ops, state, cgroup, &result, &err), 0);
		printf("# %s: %s, %d ms in all\n", ops->name, result.detail,
		       (int)(monotonic_ms() - start));
		CHECK(result.passed);
		CHECK_EQ(cgroups_left(cgroup), 0);
	}
	if (ops->recovered) {
		CHECK_EQ(ops->recovered(state, &cookies, &n, &err), 0);
		free(cookies);
		CHECK_EQ(n, 0);
	}
	return TEST_OK;
}

/* What the programs are not attached to is not captured, and that is noticed. */
static enum test_result fails_outside(const struct redirect_engine_ops *ops, void *state)
{
	struct selftest_result result = {0};
	struct error err = {0};

	CHECK_EQ(redirect_selftest(ops, state, NULL, &result, &err), 0);
	CHECK(!result.passed);
	CHECK_STR(result.detail, "an outbound IPv4 connection did not reach the proxy's listener: "
				 "Connection refused");
	return TEST_OK;
}

static enum test_result open_and_test(const struct redirect_engine_ops *ops, const char *cgroup,
				      const char *dir)
{
	const struct redirect_config cfg = {
		.bpffs_dir = dir,
		.cgroup_root = cgroup,
		.max_pods = 16,
		.max_handovers = 256,
		.max_handovers_per_pod = 64,
		.max_rule_entries = 256,
		.iptables = "auto",
	};
	struct event_loop *loop = NULL;
	enum test_result result;
	struct error err = {0};
	void *state = NULL;

	CHECK_EQ(event_loop_new(&loop, &err), 0);
	if (ops->open(&cfg, loop, &state, &err)) {
		printf("# %s: %s\n", ops->name, err.text);
		event_loop_free(loop);
		return TEST_FAILED;
	}
	result = passes_on(ops, state, cgroup);
	if (result == TEST_OK && ops == &redirect_ebpf_ops)
		result = fails_outside(ops, state);
	ops->close(state);
	event_loop_free(loop);
	CHECK_EQ(ops->uninstall(&cfg, NULL, 0, &err), 0);
	return result;
}

static enum test_result real_engine(const struct redirect_engine_ops *ops)
{
	char dir[] = "/tmp/selftest_test.XXXXXX", bpffs[64], cgroup[PATH_MAX];
	enum test_result result;

	if (namespaces_cannot_be_made() || !make_cgroup(cgroup))
		return TEST_SKIP;
	CHECK(mkdtemp(dir));
	snprintf(bpffs, sizeof(bpffs), "%s/bpf", dir);
	result = open_and_test(ops, cgroup, bpffs);
	umount2(bpffs, MNT_DETACH); /* what a failed test has left */
	rmdir(bpffs);
	CHECK(!rmdir(dir));
	CHECK(remove_cgroup(cgroup));
	return result;
}

TEST(the_ebpf_engine_passes_for_its_cgroup)
{
	return real_engine(&redirect_ebpf_ops);
}

TEST(the_nftables_engine_passes)
{
	return real_engine(&redirect_nftables_ops);
}

TEST(the_iptables_engine_passes)
{
	return real_engine(&redirect_iptables_ops);
}
