/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Runs a command the way a pod's process runs: in a cgroup, a user namespace, a network namespace,
 * with a uid and gid and no supplementary groups.
 *
 *   as [--cgroup DIR] [--userns FILE] [--netns FILE] [--uid N] [--gid N] [--net-admin yes]
 *      COMMAND...
 *   as --make SHIFT USERNS-FILE NETNS-FILE
 *
 * --make creates a user namespace in which ids 0-65535 are SHIFT-(SHIFT+65535) outside, and a
 * network namespace that it owns, and keeps both alive by mounting them on the two files.
 */
#include "endpoint.h"
#include "identity.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/wait.h>
#include <unistd.h>

static void write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, text, strlen(text)) < 0)
		err(1, "write %s", path);
	close(fd);
}

static void join_cgroup(const char *dir)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/cgroup.procs", dir);
	write_text(path, "0");
}

static void enter(const char *file, int type)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC);

	if (fd < 0 || setns(fd, type) < 0)
		err(1, "enter %s", file);
	close(fd);
}

static void keep(pid_t pid, const char *type, const char *file)
{
	char path[64];
	int fd = open(file, O_CREAT | O_RDONLY | O_CLOEXEC, 0600);

	if (fd < 0)
		err(1, "%s", file);
	close(fd);
	snprintf(path, sizeof(path), "/proc/%d/ns/%s", pid, type);
	if (mount(path, file, NULL, MS_BIND, NULL) < 0)
		err(1, "mount %s on %s", path, file);
}

static int make_namespaces(const char *shift, const char *userns, const char *netns)
{
	char path[64], map[64];
	int ready[2];
	char byte;
	pid_t pid;

	if (pipe2(ready, O_CLOEXEC) < 0)
		err(1, "pipe");
	pid = fork();
	if (pid < 0)
		err(1, "fork");
	if (!pid) {
		if (unshare(CLONE_NEWUSER | CLONE_NEWNET) < 0)
			err(1, "unshare");
		(void)!write(ready[1], "r", 1);
		pause();
		_exit(0);
	}
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1)
		errx(1, "the kernel gives no user namespace");
	snprintf(map, sizeof(map), "0 %s 65536\n", shift);
	snprintf(path, sizeof(path), "/proc/%d/uid_map", pid);
	write_text(path, map);
	snprintf(path, sizeof(path), "/proc/%d/gid_map", pid);
	write_text(path, map);
	keep(pid, "user", userns);
	keep(pid, "net", netns);
	kill(pid, SIGKILL);
	waitpid(pid, NULL, 0);
	return 0;
}

int main(int argc, char **argv)
{
	const char *cgroup = NULL, *userns = NULL, *netns = NULL;
	long uid = -1, gid = -1;
	bool net_admin = false;
	int i = 1;

	if (argc == 5 && !strcmp(argv[1], "--make"))
		return make_namespaces(argv[2], argv[3], argv[4]);
	for (; i + 1 < argc && !strncmp(argv[i], "--", 2); i += 2) {
		if (!strcmp(argv[i], "--cgroup"))
			cgroup = argv[i + 1];
		else if (!strcmp(argv[i], "--userns"))
			userns = argv[i + 1];
		else if (!strcmp(argv[i], "--netns"))
			netns = argv[i + 1];
		else if (!strcmp(argv[i], "--uid"))
			uid = atol(argv[i + 1]);
		else if (!strcmp(argv[i], "--gid"))
			gid = atol(argv[i + 1]);
		else if (!strcmp(argv[i], "--net-admin"))
			net_admin = !strcmp(argv[i + 1], "yes");
		else
			errx(2, "unknown option %s", argv[i]);
	}
	if (i >= argc)
		errx(2,
		     "usage: as [--cgroup DIR] [--userns FILE] [--netns FILE] [--uid N] [--gid N] "
		     "[--net-admin yes] COMMAND...");
	if (cgroup)
		join_cgroup(cgroup);
	if (userns)
		enter(userns, CLONE_NEWUSER);
	if (netns)
		enter(netns, CLONE_NEWNET);
	identity_become(uid, gid, net_admin);
	execvp(argv[i], argv + i);
	err(127, "%s", argv[i]);
}
