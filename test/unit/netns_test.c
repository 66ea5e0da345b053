/* SPDX-License-Identifier: Apache-2.0 */
#include "netns.h"

#include "error.h"
#include "scoped.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * A network namespace, and a user namespace that owns it when id_map is not NULL, in which a child
 * sleeps. id_map is the content of its uid_map and gid_map.
 */
struct nested {
	pid_t pid;
	int netns_fd;
};

static int write_map(pid_t pid, const char *name, const char *content)
{
	char path[64];
	int fd;
	bool written;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -1;
	written = write(fd, content, strlen(content)) == (ssize_t)strlen(content);
	close(fd);
	return written ? 0 : -1;
}

static int nested_new(struct nested *n, const char *id_map)
{
	int ready[2];
	char path[64], byte;

	if (pipe2(ready, O_CLOEXEC) < 0)
		return -1;
	n->pid = fork();
	if (n->pid == 0) {
		if (unshare((id_map ? CLONE_NEWUSER : 0) | CLONE_NEWNET) < 0)
			_exit(1);
		if (write(ready[1], "x", 1) == 1)
			pause();
		_exit(1);
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1)
		n->pid = waitpid(n->pid, NULL, 0) < 0 ? -1 : 0;
	close(ready[0]);
	if (n->pid <= 0)
		return -1;
	if (id_map &&
	    (write_map(n->pid, "uid_map", id_map) || write_map(n->pid, "gid_map", id_map)))
		return -1;
	snprintf(path, sizeof(path), "/proc/%d/ns/net", (int)n->pid);
	n->netns_fd = open(path, O_RDONLY | O_CLOEXEC);
	return n->netns_fd < 0 ? -1 : 0;
}

static void nested_free(struct nested *n)
{
	close(n->netns_fd);
	kill(n->pid, SIGKILL);
	waitpid(n->pid, NULL, 0);
}

TEST(only_network_namespaces_are_taken)
{
	struct error err = {0};
	int fd = -1;

	CHECK(netns_open("/dev/null", &fd, &err) == -EINVAL);
	CHECK_HAS(err.text, "/dev/null");
	CHECK(netns_open("/proc/self/ns/uts", &fd, &err) == -EINVAL);
	CHECK_HAS(err.text, "not a network namespace");
	CHECK(netns_open("/nonexistent/netns", &fd, &err) == -ENOENT);
	CHECK_EQ(fd, -1);
	CHECK(!netns_open("/proc/self/ns/net", &fd, &err));
	CHECK(!netns_check_fd(fd, &err));
	close(fd);
	return TEST_OK;
}

TEST(a_fifo_in_the_place_of_a_namespace_does_not_block)
{
	struct error err = {0};
	char path[64];
	int fd = -1;

	snprintf(path, sizeof(path), "/tmp/netns_test_fifo_%d", (int)getpid());
	CHECK(!mkfifo(path, 0600));
	CHECK(netns_open(path, &fd, &err) == -EINVAL);
	unlink(path);
	return TEST_OK;
}

TEST(our_own_namespace_is_recognised_and_another_is_not)
{
	struct error err = {0};
	struct nested n;
	int fd = -1;

	CHECK(!netns_open("/proc/self/ns/net", &fd, &err));
	CHECK(netns_is_own(fd));
	CHECK(netns_is_host(fd));
	close(fd);
	if (nested_new(&n, NULL))
		return TEST_SKIP;
	CHECK(!netns_is_own(n.netns_fd));
	CHECK(!netns_is_host(n.netns_fd));
	nested_free(&n);
	return TEST_OK;
}

TEST(two_namespaces_have_two_cookies_and_one_has_one)
{
	struct error err = {0};
	struct netns_id a, again, b;
	struct nested first, second;

	if (nested_new(&first, NULL))
		return TEST_SKIP;
	CHECK(!nested_new(&second, NULL));
	CHECK(!netns_identify(first.netns_fd, &a, &err));
	CHECK(!netns_identify(first.netns_fd, &again, &err));
	CHECK(!netns_identify(second.netns_fd, &b, &err));
	CHECK(a.cookie != 0 && a.cookie == again.cookie && a.ino == again.ino);
	CHECK(a.cookie != b.cookie && a.ino != b.ino);
	nested_free(&first);
	nested_free(&second);
	return TEST_OK;
}

struct visit {
	ino_t seen;
	int result;
};

static int visit(void *arg, struct error *err)
{
	struct visit *v = arg;
	struct stat st;

	if (stat("/proc/thread-self/ns/net", &st) < 0)
		return -errno;
	v->seen = st.st_ino;
	return v->result ? error_set(err, -v->result, "as asked") : 0;
}

TEST(a_function_runs_inside_and_the_caller_stays_outside)
{
	struct error err = {0};
	struct visit v = {0};
	struct stat before, after, inside;
	struct nested n;

	if (nested_new(&n, NULL))
		return TEST_SKIP;
	CHECK(!stat("/proc/thread-self/ns/net", &before) && !fstat(n.netns_fd, &inside));
	CHECK(!netns_run(n.netns_fd, visit, &v, &err));
	CHECK_EQ(v.seen, inside.st_ino);
	CHECK(!stat("/proc/thread-self/ns/net", &after));
	CHECK_EQ(after.st_ino, before.st_ino);
	v.result = -EXDEV;
	CHECK_EQ(netns_run(n.netns_fd, visit, &v, &err), -EXDEV);
	CHECK_STR(err.text, "as asked");
	CHECK(netns_run(-1, visit, &v, &err) == -EBADF);
	nested_free(&n);
	return TEST_OK;
}

TEST(ids_of_our_own_user_namespace_stay_as_they_are)
{
	struct error err = {0};
	const uint32_t ids[] = {0, 1337, 4294967294u};
	uint32_t mapped[3];
	int fd = -1;

	CHECK(!netns_open("/proc/self/ns/net", &fd, &err));
	CHECK(!netns_map_ids(fd, ids, 3, false, mapped, &err));
	CHECK(!memcmp(ids, mapped, sizeof(ids)));
	close(fd);
	return TEST_OK;
}

TEST(ids_of_a_user_namespace_are_mapped_to_ours)
{
	struct error err = {0};
	const uint32_t ids[] = {0, 1337, 65535}, outside[] = {65536};
	uint32_t mapped[3];
	struct nested n;

	if (nested_new(&n, "0 100000 1000\n1000 500000 64536\n"))
		return TEST_SKIP;
	for (int groups = 0; groups < 2; groups++) {
		CHECK(!netns_map_ids(n.netns_fd, ids, 3, groups, mapped, &err));
		CHECK_EQ(mapped[0], 100000);
		CHECK_EQ(mapped[1], 500337);
		CHECK_EQ(mapped[2], 564535);
		CHECK_EQ(netns_map_ids(n.netns_fd, outside, 1, groups, mapped, &err), -ENOENT);
		CHECK_HAS(err.text, groups ? "gid 65536" : "uid 65536");
	}
	nested_free(&n);
	return TEST_OK;
}

TEST(mapping_ids_leaves_no_child_behind)
{
	struct error err = {0};
	uint32_t id = 1;
	struct nested n;

	if (nested_new(&n, "0 100000 1000\n"))
		return TEST_SKIP;
	CHECK(!netns_map_ids(n.netns_fd, &id, 1, false, &id, &err));
	nested_free(&n);
	CHECK(waitpid(-1, NULL, WNOHANG) == -1 && errno == ECHILD);
	return TEST_OK;
}

TEST(namespaces_are_numbered_as_the_kernel_can)
{
	struct error err = {0};
	bool by_inode = false;
	struct netns_id id;
	struct stat st;
	struct nested n;

	if (nested_new(&n, NULL))
		return TEST_SKIP;
	CHECK(!netns_numbered_by_inode(&by_inode, &err));
	CHECK(!netns_identify(n.netns_fd, &id, &err) && !fstat(n.netns_fd, &st));
	CHECK(id.ino == st.st_ino && id.dev == st.st_dev);
	/* Cookies are counted from one; inode numbers of namespaces begin at 0xf0000000. */
	CHECK_EQ(id.cookie == id.ino, by_inode);
	nested_free(&n);
	return TEST_OK;
}
