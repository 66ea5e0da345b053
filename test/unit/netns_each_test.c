/* SPDX-License-Identifier: Apache-2.0 */
#include "error.h"
#include "netns.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/* How often the walk met a namespace, or ours. */
struct search {
	ino_t wanted;
	int met, met_own, visits, stop_after;
};

static int look(int netns_fd, void *arg, struct error *err)
{
	struct search *search = arg;
	struct stat st;

	if (netns_check_fd(netns_fd, err) || fstat(netns_fd, &st) < 0)
		return -EINVAL;
	search->met += st.st_ino == search->wanted;
	search->met_own += netns_is_host(netns_fd);
	search->visits++;
	return search->visits == search->stop_after ? error_set(err, ECANCELED, "enough") : 0;
}

static ino_t inode_of(int fd)
{
	struct stat st = {0};

	fstat(fd, &st);
	return st.st_ino;
}

/* A process that waits inside. */
static pid_t child_in(int netns_fd)
{
	pid_t parent = getpid(), pid = fork();

	if (pid)
		return pid;
	if (setns(netns_fd, CLONE_NEWNET) < 0)
		_exit(1);
	close(netns_fd);
	prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that fails leaves nobody behind */
	if (getppid() == parent)
		pause();
	_exit(0);
}

static bool met_once_within(struct search *search, struct error *err)
{
	for (int i = 0; i < 2000; i++) {
		search->met = search->met_own = search->visits = 0;
		if (netns_each(look, search, err))
			return false;
		if (search->met)
			return search->met == 1;
		usleep(1000); /* until the child has entered it */
	}
	return false;
}

TEST(the_namespace_of_a_process_is_found_once)
{
	struct search search = {0};
	struct error err = {0};
	pid_t first, second;
	int fd = -1;

	if (netns_new(&fd, &err))
		return TEST_SKIP;
	search.wanted = inode_of(fd);
	CHECK_EQ(netns_each(look, &search, &err), 0);
	CHECK_EQ(search.met, 0); /* only a descriptor holds it */
	first = child_in(fd);
	second = child_in(fd);
	CHECK(first > 0 && second > 0);
	CHECK(met_once_within(&search, &err));
	CHECK_EQ(search.met_own, 0);
	kill(first, SIGKILL);
	kill(second, SIGKILL);
	CHECK(waitpid(first, NULL, 0) == first && waitpid(second, NULL, 0) == second);
	close(fd);
	return TEST_OK;
}

static enum test_result find_bound(int fd, const char *file)
{
	struct search search = {.wanted = inode_of(fd)};
	struct error err = {0};
	char link[32];

	CHECK(!unshare(CLONE_NEWNS) && !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL));
	CHECK(!mount("tmpfs", "/mnt", "tmpfs", 0, NULL));
	CHECK(close(open(file, O_CREAT | O_CLOEXEC, 0600)) == 0);
	snprintf(link, sizeof(link), "/proc/self/fd/%d", fd);
	CHECK(!mount(link, file, NULL, MS_BIND, NULL));
	CHECK_EQ(netns_each(look, &search, &err), 0);
	CHECK_EQ(search.met, 1);
	CHECK_EQ(search.met_own, 0);
	search.met = 0;
	search.stop_after = search.visits; /* it ends the walk, with that result */
	search.visits = 0;
	CHECK_EQ(netns_each(look, &search, &err), -ECANCELED);
	CHECK_STR(err.text, "enough");
	/* Another kind of namespace, bound too, is not given to anybody. */
	CHECK(close(open("/mnt/uts", O_CREAT | O_CLOEXEC, 0600)) == 0);
	CHECK(!mount("/proc/self/ns/uts", "/mnt/uts", NULL, MS_BIND, NULL));
	search = (struct search){.wanted = inode_of(fd)};
	CHECK_EQ(netns_each(look, &search, &err), 0);
	CHECK_EQ(search.met, 1);
	CHECK(!umount(file));
	search = (struct search){.wanted = inode_of(fd)};
	CHECK_EQ(netns_each(look, &search, &err), 0);
	CHECK_EQ(search.met, 0);
	return TEST_OK;
}

TEST(a_bound_namespace_is_found_also_under_an_odd_name)
{
	struct error err = {0};
	int fd = -1, status = -1;
	pid_t pid;

	if (netns_new(&fd, &err))
		return TEST_SKIP;
	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		enum test_result result = find_bound(fd, "/mnt/a pod's\\net");

		fflush(stdout);
		_exit(result);
	}
	CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
	close(fd);
	CHECK_EQ(status, 0);
	return TEST_OK;
}
