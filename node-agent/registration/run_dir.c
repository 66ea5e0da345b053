/* SPDX-License-Identifier: Apache-2.0 */
#include "run_dir.h"

#include "error.h"
#include "lock_file.h"
#include "scoped.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int run_dir_make(const char *dir, struct error *err)
{
	struct stat st;

	if (mkdir(dir, 0700) < 0 && errno != EEXIST)
		return error_set(err, errno, "make run directory %s", dir);
	/* /run is root's, so nobody can change the answer between this and the use. */
	if (lstat(dir, &st) < 0)
		return error_set(err, errno, "stat run directory %s", dir);
	if (!S_ISDIR(st.st_mode) || st.st_uid != geteuid())
		return error_set(err, EPERM, "%s is not a directory of this user", dir);
	if ((st.st_mode & 07777) != 0700 && chmod(dir, 0700) < 0)
		return error_set(err, errno, "chmod 0700 %s", dir);
	return 0;
}

static int locked_by_other(int fd, const char *path, struct error *err)
{
	char pid[16] = "";
	ssize_t n = pread(fd, pid, sizeof(pid) - 1, 0);

	pid[n > 0 ? n : 0] = '\0';
	pid[strspn(pid, "0123456789")] = '\0';
	return error_set(err, EBUSY, "another agent holds %s (pid %s)", path,
			 *pid ? pid : "not known");
}

int run_dir_lock(const char *dir, int *ret_fd, struct error *err)
{
	char path[PATH_MAX], pid[16];
	scoped_fd int fd = -1;
	int n;

	snprintf(path, sizeof(path), "%s/" RUN_DIR_LOCK, dir);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return error_set(err, errno, "open %s", path);
	if (lock_file_soon(fd) == -EWOULDBLOCK)
		return locked_by_other(fd, path, err);
	n = snprintf(pid, sizeof(pid), "%d\n", (int)getpid());
	if (ftruncate(fd, 0) < 0 || pwrite(fd, pid, (size_t)n, 0) != n)
		return error_set(err, errno, "write %s", path);
	*ret_fd = take_fd(&fd);
	return 0;
}

/* FNV-1a of the path, without slashes at its end: the same for a next agent of this directory. */
uint32_t run_dir_instance(const char *dir)
{
	size_t length = strlen(dir);
	uint32_t hash = 2166136261u;

	while (length > 1 && dir[length - 1] == '/')
		length--;
	for (size_t i = 0; i < length; i++)
		hash = (hash ^ (uint8_t)dir[i]) * 16777619u;
	return hash;
}

/* write_file_atomic()'s temporary files carry the name that they were to replace. */
static bool is_ours(const char *name)
{
	return !strcmp(name, RUN_DIR_SOCKET) || !strcmp(name, RUN_DIR_LOCK) ||
	       strstr(name, RUN_DIR_STATE) || strstr(name, RUN_DIR_SOCKET) ||
	       strstr(name, RUN_DIR_ACCELERATE);
}

int run_dir_remove(const char *dir, struct error *err)
{
	scoped_dir DIR *entries = opendir(dir);
	struct dirent *entry;

	if (!entries)
		return errno == ENOENT ? 0 : error_set(err, errno, "open run directory %s", dir);
	while ((entry = readdir(entries)))
		if (is_ours(entry->d_name) && unlinkat(dirfd(entries), entry->d_name, 0) < 0 &&
		    errno != ENOENT)
			return error_set(err, errno, "remove %s/%s", dir, entry->d_name);
	if (rmdir(dir) < 0 && errno != ENOENT)
		return error_set(err, errno, "remove run directory %s", dir);
	return 0;
}
