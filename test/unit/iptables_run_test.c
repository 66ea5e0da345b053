/* SPDX-License-Identifier: Apache-2.0 */
#include "iptables_run.h"

#include "error.h"
#include "netns.h"
#include "scoped.h"
#include "test.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static const char one_chain[] = "*nat\n:SOCKMESH_T - [0:0]\n"
				"-A SOCKMESH_T -p tcp -m owner --uid-owner 7 -j RETURN\nCOMMIT\n";

/* A script in the place of a program; 0 when it is there. */
static int script(char path[static PATH_MAX], const char *text)
{
	int fd;
	ssize_t n;

	snprintf(path, PATH_MAX, "/tmp/iptables_run_test.XXXXXX");
	fd = mkstemp(path);
	if (fd < 0)
		return -1;
	n = write(fd, text, strlen(text));
	fchmod(fd, 0700);
	close(fd);
	return n == (ssize_t)strlen(text) ? 0 : -1;
}

/* What a script in iptables-restore's place makes of a run with this input. */
static int run_script(const char *text, const char *input, struct error *err)
{
	struct iptables_programs programs = {0};
	scoped_fd int netns_fd = -1;
	int r = netns_new(&netns_fd, err);

	if (r || script(programs.restore[0], text))
		return r ? r : -1;
	r = iptables_run_restore(&programs, false, netns_fd, input, err);
	unlink(programs.restore[0]);
	return r;
}

TEST(a_programs_complaint_is_one_line_of_the_error)
{
	struct error err = {0};

	if (geteuid())
		return TEST_SKIP;
	CHECK_EQ(run_script("#!/bin/sh\nprintf 'line 3 failed\\n\\n\\tTry  -h\\n' >&2\nexit 2\n",
			    "", &err),
		 -EIO);
	CHECK_HAS(err.text, ": line 3 failed Try -h");
	CHECK_EQ(run_script("#!/bin/sh\nexit 3\n", "", &err), -EIO);
	CHECK_HAS(err.text, "exit status 3");
	CHECK_EQ(run_script("#!/bin/sh\nkill -9 $$\n", "", &err), -EIO);
	CHECK_HAS(err.text, "ended by signal 9");
	CHECK_EQ(run_script("#!/does/not/exist\n", "", &err), -ENOENT);
	CHECK_HAS(err.text, "execute it");
	return TEST_OK;
}

TEST(a_program_gets_its_input_and_nothing_of_ours)
{
	static const char check[] =
		"#!/bin/sh\n"
		"[ \"$(cat)\" = 'some input' ] || { echo input >&2; exit 1; }\n"
		"[ -z \"$SOCKMESH_TEST_SECRET\" ] || { echo env >&2; exit 1; }\n"
		"[ \"$LC_ALL\" = C ] || { echo locale >&2; exit 1; }\n"
		"[ ! -e /proc/self/fd/77 ] || { echo fd >&2; exit 1; }\n"
		"[ ! -s /etc/nsswitch.conf ] || { echo nss >&2; exit 1; }\n"
		"grep -q '^SigBlk:.*[1-9a-f]' /proc/self/status && "
		"{ echo signals >&2; exit 1; }\n"
		"[ \"$*\" = '--noflush --wait=5' ]\n";
	struct error err = {0};
	struct stat before, after;
	sigset_t set;
	int r;

	if (geteuid())
		return TEST_SKIP;
	setenv("SOCKMESH_TEST_SECRET", "x", 1);
	CHECK_EQ(dup2(STDERR_FILENO, 77), 77);
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigprocmask(SIG_BLOCK, &set, NULL);
	CHECK(!stat("/etc/nsswitch.conf", &before));
	r = run_script(check, "some input", &err);
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	close(77);
	unsetenv("SOCKMESH_TEST_SECRET");
	CHECK_STR(err.text, "");
	CHECK_EQ(r, 0);
	CHECK(!stat("/etc/nsswitch.conf", &after));
	CHECK(before.st_ino == after.st_ino && before.st_size == after.st_size);
	return TEST_OK;
}

TEST(the_lock_is_of_the_namespace)
{
	static const char check[] = "#!/bin/sh\n"
				    "[ \"$(stat -Lc %i $XTABLES_LOCKFILE)\" = "
				    "\"$(stat -Lc %i /proc/self/ns/net)\" ] || exit 1\n"
				    "[ ! -e /run/xtables.lock ] || "
				    "[ /run/xtables.lock -ef /proc/self/ns/net ]\n";
	struct error err = {0};

	if (geteuid())
		return TEST_SKIP;
	CHECK_EQ(run_script(check, "", &err), 0);
	return TEST_OK;
}

TEST(a_program_that_hangs_is_ended)
{
	struct error err = {0};

	if (geteuid())
		return TEST_SKIP;
	CHECK_EQ(run_script("#!/bin/sh\nexec sleep 60\n", "", &err), -ETIMEDOUT);
	CHECK_HAS(err.text, "did not end in 10 s");
	return TEST_OK;
}

TEST(no_program_is_an_error_of_its_own)
{
	const struct iptables_programs none = {0};
	scoped_free char *saved = NULL;
	struct error err = {0};

	CHECK_EQ(iptables_run_restore(&none, true, -1, "", &err), -ENOENT);
	CHECK_HAS(err.text, "no ip6tables-restore in PATH");
	CHECK_EQ(iptables_run_save(&none, false, -1, &saved, &err), -ENOENT);
	return TEST_OK;
}

/* Makes the chain in a namespace and looks for it. */
static enum test_result round_trip(enum iptables_backend backend, bool ipv6, int netns_fd)
{
	struct iptables_programs programs;
	scoped_free char *saved = NULL;
	struct error err = {0};
	bool there[2];

	iptables_find_programs(backend, &programs);
	if (!*programs.restore[ipv6])
		return TEST_SKIP;
	iptables_may_be_there(backend, netns_fd, there);
	CHECK(!there[ipv6]);
	if (iptables_run_restore(&programs, ipv6, netns_fd, one_chain, &err))
		printf("# %s\n", err.text);
	CHECK_STR(err.text, "");
	if (iptables_run_save(&programs, ipv6, netns_fd, &saved, &err))
		printf("# %s\n", err.text);
	CHECK_STR(err.text, "");
	CHECK_HAS(saved, "] -A SOCKMESH_T ");
	iptables_may_be_there(backend, netns_fd, there);
	CHECK(there[ipv6]);
	CHECK(!there[!ipv6]);
	return TEST_OK;
}

TEST(what_is_restored_is_saved_and_seen_by_both_backends)
{
	if (geteuid())
		return TEST_SKIP;
	for (int i = 0; i < 4; i++) {
		scoped_fd int netns_fd = -1;
		struct error err = {0};
		enum test_result r;

		CHECK(!netns_new(&netns_fd, &err));
		r = round_trip(i & 1 ? IPTABLES_NFT : IPTABLES_LEGACY, i & 2, netns_fd);
		if (r != TEST_OK)
			return r;
	}
	return TEST_OK;
}

static int write_file(pid_t pid, const char *name, const char *content)
{
	char path[64];
	int fd;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : write(fd, content, strlen(content));
	if (fd >= 0)
		close(fd);
	return n > 0 ? 0 : -1;
}

/* A network namespace of a user namespace whose user 0 is our user 100000; its process sleeps. */
static pid_t foreign_netns(int *ret_fd)
{
	int ready[2];
	char path[64], byte;
	pid_t pid;

	if (pipe2(ready, O_CLOEXEC) < 0)
		return -1;
	pid = fork();
	if (pid == 0) {
		if (!unshare(CLONE_NEWUSER | CLONE_NEWNET) && write(ready[1], "x", 1) == 1)
			pause();
		_exit(1);
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1 || write_file(pid, "uid_map", "0 100000 65536\n") ||
	    write_file(pid, "gid_map", "0 100000 65536\n"))
		*ret_fd = -1;
	else {
		snprintf(path, sizeof(path), "/proc/%d/ns/net", (int)pid);
		*ret_fd = open(path, O_RDONLY | O_CLOEXEC);
	}
	close(ready[0]);
	return pid;
}

TEST(a_pod_of_another_user_namespace_takes_owner_rules)
{
	enum test_result r = TEST_SKIP;
	int netns_fd = -1;
	pid_t pid;

	if (geteuid())
		return TEST_SKIP;
	pid = foreign_netns(&netns_fd);
	if (netns_fd >= 0) {
		r = round_trip(IPTABLES_LEGACY, false, netns_fd);
		if (r == TEST_OK)
			r = round_trip(IPTABLES_NFT, true, netns_fd);
		close(netns_fd);
	}
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return r;
}
