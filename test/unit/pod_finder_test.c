/* SPDX-License-Identifier: Apache-2.0 */
/* Real namespaces, behind a /proc of our own making in which processes are whose we like. */
#include "pod_finder.h"

#include "error.h"
#include "netlink.h"
#include "netns.h"
#include "scoped.h"
#include "test.h"

#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define POD_A "0b7a2f3e-1c2d-4e5f-8a9b-0c1d2e3f4a5b"
#define POD_B "1b7a2f3e-1c2d-4e5f-8a9b-0c1d2e3f4a5b"

struct found {
	unsigned n;
	char uid[64], netns[PATH_MAX], cgroup[PATH_MAX];
	struct netns_id id;
	pid_t pid;
};

static void on_found(const struct pod_found *found, void *arg)
{
	struct found *f = arg;
	struct error err = {0};

	f->n++;
	snprintf(f->uid, sizeof(f->uid), "%s", found->uid);
	snprintf(f->netns, sizeof(f->netns), "%s", found->netns);
	snprintf(f->cgroup, sizeof(f->cgroup), "%s", found->cgroup ?: "(none)");
	f->pid = found->pid;
	if (netns_identify(found->netns_fd, &f->id, &err))
		abort();
}

static char *make_proc(void)
{
	static char path[] = "/tmp/sockmesh-proc-XXXXXX";

	memcpy(path + sizeof(path) - 7, "XXXXXX", 6);
	if (!mkdtemp(path))
		abort();
	return path;
}

static void write_text(const char *path, const char *text)
{
	FILE *file = fopen(path, "we");

	if (!file || fputs(text, file) < 0 || fclose(file))
		abort();
}

/* A process of that pod in that namespace. started: clock ticks after boot. */
static void add_process(const char *proc, int pid, const char *pod, int netns_fd, unsigned started)
{
	char dir[PATH_MAX - 64], path[PATH_MAX], text[512];

	snprintf(dir, sizeof(dir), "%s/%d", proc, pid);
	snprintf(path, sizeof(path), "%s/ns", dir);
	if (mkdir(dir, 0700) || mkdir(path, 0700))
		abort();
	snprintf(path, sizeof(path), "%s/cgroup", dir);
	snprintf(text, sizeof(text), "1:cpu:/kubepods/pod%s/c1\n0::/kubepods/pod%s/c1\n", pod, pod);
	write_text(path, text);
	snprintf(path, sizeof(path), "%s/stat", dir);
	snprintf(text, sizeof(text),
		 "%d (a ) name) S 1 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 %u 1 1\n", pid,
		 started);
	write_text(path, text);
	snprintf(path, sizeof(path), "%s/ns/net", dir);
	snprintf(text, sizeof(text), "/proc/self/fd/%d", netns_fd);
	if (symlink(text, path))
		abort();
}

static int remove_one(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static void remove_proc(const char *proc)
{
	nftw(proc, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

/* With the address ::6, which is what this test's pods have. */
static int new_pod_netns(void)
{
	struct error err = {0};
	int fd = -1;

	if (netns_new(&fd, &err) || netlink_set_passthrough_address(fd, true, NULL, &err))
		abort();
	return fd;
}

static void want(struct pod_search *search, const char *uid, const char *address)
{
	struct ip_address a;
	struct error err = {0};

	if (ip_address_parse(address, &a, &err) || pod_search_want(search, uid, &a, 1, &err))
		abort();
}

static struct pod_search *search_in(const char *proc)
{
	struct pod_search *search = NULL;
	struct error err = {0};

	if (pod_search_new(proc, &search, &err))
		abort();
	return search;
}

/* A search and what it walks over, which go at the end of the test. */
struct bench {
	const char *proc;
	struct pod_search *search;
};

static struct bench bench_open(void)
{
	const char *proc = make_proc();

	return (struct bench){proc, search_in(proc)};
}

static void bench_close(struct bench *bench)
{
	pod_search_free(bench->search);
	remove_proc(bench->proc);
}

static struct found walk(struct pod_search *search)
{
	struct found found = {0};

	while (pod_search_step(search, 1, on_found, &found))
		;
	return found;
}

TEST(a_pod_is_found_by_cgroup_and_address)
{
	scoped(bench_close) struct bench bench = bench_open();
	scoped_fd int fd = new_pod_netns();
	struct netns_id id;
	struct error err = {0};
	struct found found;

	CHECK(!netns_identify(fd, &id, &err));
	add_process(bench.proc, 70, POD_A, fd, 500);
	want(bench.search, POD_A, "::6");
	want(bench.search, POD_B, "::6");
	found = walk(bench.search);
	CHECK_EQ(found.n, 1);
	CHECK_STR(found.uid, POD_A);
	CHECK_STR(found.cgroup, "/kubepods/pod" POD_A "/c1");
	CHECK_EQ(found.pid, 70);
	CHECK(found.id.cookie == id.cookie);
	CHECK_EQ(pod_search_wanted(bench.search), 1);
	CHECK_EQ(walk(bench.search).n, 0); /* once */
	return TEST_OK;
}

TEST(a_namespace_without_the_pods_address_is_not_the_pods)
{
	scoped(bench_close) struct bench bench = bench_open();
	scoped_fd int foreign = new_pod_netns();

	add_process(bench.proc, 70, POD_A, foreign, 500);
	want(bench.search, POD_A, "10.1.2.3");
	CHECK_EQ(walk(bench.search).n, 0);
	CHECK(!pod_search_want(bench.search, POD_A, NULL, 0, &(struct error){0}));
	CHECK_EQ(walk(bench.search).n, 0); /* nor is any, of a pod that has none yet */
	want(bench.search, POD_A, "::6");
	CHECK_EQ(walk(bench.search).n, 1);
	return TEST_OK;
}

TEST(what_had_another_address_of_the_pod_is_not_the_pods)
{
	scoped(bench_close) struct bench bench = bench_open();
	scoped_fd int foreign = new_pod_netns();
	struct found found = {0};

	add_process(bench.proc, 70, POD_A, foreign, 500);
	want(bench.search, POD_A, "::6");
	for (int entries = 0; entries < 3; entries++)
		CHECK(pod_search_step(bench.search, 0, on_found, &found));
	want(bench.search, POD_A, "10.1.2.3");
	CHECK_EQ(walk(bench.search).n, 0);
	return TEST_OK;
}

TEST(the_process_that_started_first_tells_the_namespace)
{
	scoped(bench_close) struct bench bench = bench_open();
	scoped_fd int sandbox = new_pod_netns();
	scoped_fd int later = new_pod_netns();
	struct netns_id id;
	struct error err = {0};
	struct found found;

	CHECK(!netns_identify(sandbox, &id, &err));
	add_process(bench.proc, 70, POD_A, later, 900);
	add_process(bench.proc, 71, POD_A, sandbox, 500);
	add_process(bench.proc, 72, POD_A, sandbox, 700);
	add_process(bench.proc, 73, POD_A, later, 800);
	want(bench.search, POD_A, "::6");
	found = walk(bench.search);
	CHECK_EQ(found.n, 1);
	CHECK_EQ(found.pid, 71);
	CHECK(found.id.cookie == id.cookie);
	return TEST_OK;
}

TEST(the_hosts_own_namespace_is_no_pods)
{
	scoped(bench_close) struct bench bench = bench_open();
	scoped_fd int own = -1;
	struct error err = {0};

	CHECK(!netns_open("/proc/self/ns/net", &own, &err));
	add_process(bench.proc, 70, POD_A, own, 500);
	want(bench.search, POD_A, "127.0.0.1");
	CHECK_EQ(walk(bench.search).n, 0);
	return TEST_OK;
}

/* In the middle of a walk, after this many of its entries: where the sandbox is nobody knows. */
static struct found wanted_after(const char *proc, unsigned entries, const char *before,
				 const char *address)
{
	struct pod_search *search = search_in(proc);
	struct found found = {0};

	want(search, before, address);
	for (unsigned i = 0; i < entries; i++)
		if (!pod_search_step(search, 0, on_found, &found))
			abort();
	want(search, POD_A, "::6");
	found = walk(search);
	pod_search_free(search);
	return found;
}

TEST(a_walk_that_began_before_a_pod_was_wanted_does_not_tell_its_namespace)
{
	for (int first = 70; first <= 71; first++) {
		const char *proc = make_proc();
		scoped_fd int sandbox = new_pod_netns();
		scoped_fd int later = new_pod_netns();
		struct netns_id id;
		struct error err = {0};

		CHECK(!netns_identify(sandbox, &id, &err));
		add_process(proc, first, POD_A, sandbox, 500);
		add_process(proc, first == 70 ? 71 : 70, POD_A, later, 900);
		/* With both of its processes the directory has four entries. */
		for (unsigned entries = 1; entries <= 4; entries++) {
			struct found found = wanted_after(proc, entries, POD_B, "::6");

			CHECK_EQ(found.n, 1);
			CHECK(found.id.cookie == id.cookie);
			/* Nor does one that was for another address. */
			found = wanted_after(proc, entries, POD_A, "10.1.2.3");
			CHECK_EQ(found.n, 1);
			CHECK(found.id.cookie == id.cookie);
		}
		remove_proc(proc);
	}
	return TEST_OK;
}

TEST(a_pod_that_is_wanted_again_and_again_is_found)
{
	scoped(bench_close) struct bench bench = bench_open();
	scoped_fd int fd = new_pod_netns();
	struct found found = {0};

	add_process(bench.proc, 70, POD_A, fd, 500);
	for (int i = 0; i < 8 && !found.n; i++) {
		want(bench.search, POD_A, "::6");
		pod_search_step(bench.search, 0, on_found, &found);
	}
	CHECK_EQ(found.n, 1);
	return TEST_OK;
}

TEST(one_process_says_that_a_pod_is_there_and_a_walk_where)
{
	scoped(bench_close) struct bench bench = bench_open();
	scoped_fd int sandbox = new_pod_netns();
	scoped_fd int later = new_pod_netns();
	struct netns_id id;
	struct error err = {0};
	struct found found;

	CHECK(!netns_identify(sandbox, &id, &err));
	want(bench.search, POD_A, "::6");
	CHECK(!pod_search_look_at(bench.search, 71));
	add_process(bench.proc, 70, POD_A, sandbox, 500);
	add_process(bench.proc, 71, POD_A, later, 900);
	CHECK(pod_search_look_at(bench.search, 71));
	CHECK_EQ(pod_search_wanted(bench.search), 1);
	found = walk(bench.search);
	CHECK_EQ(found.n, 1);
	CHECK_EQ(found.pid, 70);
	CHECK(found.id.cookie == id.cookie);
	CHECK(!pod_search_look_at(bench.search, 71));
	return TEST_OK;
}

TEST(a_process_that_starts_during_a_walk_takes_part_in_it)
{
	scoped(bench_close) struct bench bench = bench_open();
	scoped_fd int fd = new_pod_netns();
	struct found found = {0};

	want(bench.search, POD_A, "::6");
	CHECK(pod_search_step(bench.search, 0, on_found, &found));
	add_process(bench.proc, 70, POD_A, fd, 500);
	CHECK(pod_search_look_at(bench.search, 70));
	CHECK_EQ(found.n, 0);
	CHECK_EQ(walk(bench.search).n, 1);
	return TEST_OK;
}

TEST(a_pod_that_this_walk_is_not_for_has_another_one_follow)
{
	scoped(bench_close) struct bench bench = bench_open();
	scoped_fd int fd = new_pod_netns();
	struct found found = {0};

	want(bench.search, POD_B, "::6");
	CHECK(pod_search_step(bench.search, 0, on_found, &found));
	want(bench.search, POD_A, "::6");
	add_process(bench.proc, 70, POD_A, fd, 500);
	CHECK(pod_search_look_at(bench.search, 70));
	found = walk(bench.search);
	CHECK_EQ(found.n, 1);
	CHECK_EQ(found.pid, 70);
	return TEST_OK;
}

TEST(what_started_unheard_during_a_walk_is_found_by_another)
{
	scoped(bench_close) struct bench bench = bench_open();
	scoped_fd int fd = new_pod_netns();
	struct found found = {0};

	want(bench.search, POD_A, "::6");
	CHECK(pod_search_step(bench.search, 0, on_found, &found));
	CHECK(pod_search_step(bench.search, 0, on_found, &found)); /* that was all of them */
	add_process(bench.proc, 70, POD_A, fd, 500);
	pod_search_again(bench.search);
	CHECK_EQ(walk(bench.search).n, 1);
	return TEST_OK;
}

TEST(a_pod_that_is_forgotten_is_not_found)
{
	scoped(bench_close) struct bench bench = bench_open();
	scoped_fd int fd = new_pod_netns();

	add_process(bench.proc, 70, POD_A, fd, 500);
	want(bench.search, POD_A, "::6");
	pod_search_forget(bench.search, POD_A);
	pod_search_forget(bench.search, POD_B);
	CHECK_EQ(walk(bench.search).n, 0);
	return TEST_OK;
}
