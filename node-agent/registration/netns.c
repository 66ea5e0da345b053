/* SPDX-License-Identifier: Apache-2.0 */
#include "netns.h"

#include "error.h"
#include "mountinfo.h"
#include "scoped.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <linux/nsfs.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71
#endif

int netns_check_fd(int fd, struct error *err)
{
	struct statfs fs;

	if (fstatfs(fd, &fs) < 0)
		return error_set(err, errno, "stat the namespace descriptor");
	if (fs.f_type != NSFS_MAGIC || ioctl(fd, NS_GET_NSTYPE) != CLONE_NEWNET)
		return error_set(err, EINVAL, "the descriptor is not a network namespace");
	return 0;
}

int netns_open(const char *path, int *ret_fd, struct error *err)
{
	/* O_NONBLOCK: a FIFO put in the path's place must not hold the caller up. */
	scoped_fd int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	int r;

	if (fd < 0)
		return error_set(err, errno, "open network namespace %s", path);
	r = netns_check_fd(fd, err);
	if (r)
		return error_wrap(err, "%s", path);
	*ret_fd = take_fd(&fd);
	return 0;
}

static bool same_as_file(int fd, const char *path)
{
	struct stat ours, theirs;

	return !fstat(fd, &theirs) && !stat(path, &ours) && ours.st_dev == theirs.st_dev &&
	       ours.st_ino == theirs.st_ino;
}

bool netns_is_own(int fd)
{
	return same_as_file(fd, "/proc/self/ns/net");
}

bool netns_is_host(int fd)
{
	return netns_is_own(fd) || same_as_file(fd, "/proc/1/ns/net");
}

struct netns_call {
	int fd, result;
	netns_fn fn;
	void *arg;
	struct error *err;
};

static void *run_in_netns(void *arg)
{
	struct netns_call *call = arg;

	if (setns(call->fd, CLONE_NEWNET) < 0)
		call->result = error_set(call->err, errno, "enter the network namespace");
	else
		call->result = call->fn(call->arg, call->err);
	return NULL;
}

int netns_run(int fd, netns_fn fn, void *arg, struct error *err)
{
	struct netns_call call = {.fd = fd, .fn = fn, .arg = arg, .err = err};
	pthread_t thread;
	int code = pthread_create(&thread, NULL, run_in_netns, &call);

	if (code)
		return error_set(err, code, "start a thread for the network namespace");
	pthread_join(thread, NULL);
	return call.result;
}

struct new_netns {
	int fd;
	struct error *err;
};

static void *make_netns(void *arg)
{
	struct new_netns *new = arg;

	if (unshare(CLONE_NEWNET) < 0)
		error_set(new->err, errno, "make a network namespace");
	else
		netns_open("/proc/thread-self/ns/net", &new->fd, new->err);
	return NULL;
}

int netns_new(int *ret_fd, struct error *err)
{
	struct new_netns new = {.fd = -1, .err = err};
	pthread_t thread;
	int code = pthread_create(&thread, NULL, make_netns, &new);

	if (code)
		return error_set(err, code, "start a thread to make a network namespace");
	pthread_join(thread, NULL);
	if (new.fd < 0)
		return -err->code;
	*ret_fd = new.fd;
	return 0;
}

/* -ENOPROTOOPT: this kernel has none. */
static int read_cookie(void *arg, struct error *err)
{
	uint64_t *cookie = arg;
	socklen_t size = sizeof(*cookie);
	scoped_fd int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (sock < 0)
		return error_set(err, errno, "open a socket in the network namespace");
	if (getsockopt(sock, SOL_SOCKET, SO_NETNS_COOKIE, cookie, &size) < 0)
		return error_set(err, errno, "read the network namespace cookie");
	return 0;
}

int netns_identify(int fd, struct netns_id *ret, struct error *err)
{
	struct netns_id id = {0};
	struct stat st;
	int r;

	if (fstat(fd, &st) < 0)
		return error_set(err, errno, "stat the network namespace");
	id.dev = st.st_dev;
	id.ino = st.st_ino;
	r = netns_run(fd, read_cookie, &id.cookie, err);
	if (r && r != -ENOPROTOOPT)
		return r;
	if (r)
		id.cookie = id.ino;
	*ret = id;
	return 0;
}

int netns_numbered_by_inode(bool *ret, struct error *err)
{
	struct error why = {0};
	uint64_t cookie;
	int r = read_cookie(&cookie, &why);

	if (r && r != -ENOPROTOOPT) {
		*err = why;
		return r;
	}
	*ret = r != 0;
	return 0;
}

/* ---- all of them ---------------------------------------------------------------------------- */

enum { NAMESPACES_MAX = 65536 };

struct walk {
	struct file_id {
		dev_t dev;
		ino_t ino;
	} * seen;
	size_t n, size;
	netns_visit_fn fn;
	void *arg;
};

static bool was_seen(const struct walk *walk, const struct stat *st)
{
	for (size_t i = 0; i < walk->n; i++)
		if (walk->seen[i].ino == st->st_ino && walk->seen[i].dev == st->st_dev)
			return true;
	return false;
}

static int remember(struct walk *walk, const struct stat *st, struct error *err)
{
	if (walk->n == NAMESPACES_MAX)
		return error_set(err, E2BIG, "more than %d network namespaces", NAMESPACES_MAX);
	if (walk->n == walk->size) {
		size_t size = walk->size ? 2 * walk->size : 64;
		struct file_id *grown = reallocarray(walk->seen, size, sizeof(*grown));

		if (!grown)
			return error_set(err, ENOMEM, "remember network namespaces");
		walk->seen = grown;
		walk->size = size;
	}
	walk->seen[walk->n++] = (struct file_id){.dev = st->st_dev, .ino = st->st_ino};
	return 0;
}

static int remember_file(struct walk *walk, const char *path, struct error *err)
{
	struct stat st;

	if (stat(path, &st) < 0)
		return error_set(err, errno, "stat %s", path);
	return was_seen(walk, &st) ? 0 : remember(walk, &st, err);
}

/* What has gone meanwhile, and what is no network namespace after all, is not there. */
static int visit_path(struct walk *walk, const char *path, struct error *err)
{
	scoped_fd int fd = -1;
	struct error ignored = {0};
	struct stat st;
	int r;

	/* Most processes share a few namespaces: looking is cheaper than opening. */
	if (stat(path, &st) < 0 || was_seen(walk, &st) || netns_open(path, &fd, &ignored) ||
	    fstat(fd, &st) < 0 || was_seen(walk, &st))
		return 0;
	r = remember(walk, &st, err);
	return r ? r : walk->fn(fd, walk->arg, err);
}

static int visit_mounts(struct walk *walk, struct error *err)
{
	static const char path[] = "/proc/self/mountinfo";
	scoped_file FILE *file = fopen(path, "re");
	scoped_free char *line = NULL;
	size_t capacity = 0;
	int r = 0;

	if (!file)
		return error_set(err, errno, "open %s", path);
	while (!r && getline(&line, &capacity, file) >= 0) {
		char *root, *point = mountinfo_mount_point(line, "nsfs", &root);

		if (point && !strncmp(root, "net:", 4))
			r = visit_path(walk, point, err);
	}
	if (!r && ferror(file))
		return error_set(err, EIO, "read %s", path);
	return r;
}

static int visit_processes(struct walk *walk, struct error *err)
{
	scoped_dir DIR *proc = opendir("/proc");
	struct dirent *entry;
	int r = 0;

	if (!proc)
		return error_set(err, errno, "open /proc");
	while (!r && (entry = readdir(proc))) {
		char path[sizeof("/proc//ns/net") + sizeof(entry->d_name)];

		if (!isdigit((unsigned char)entry->d_name[0]))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/ns/net", entry->d_name);
		r = visit_path(walk, path, err);
	}
	return r;
}

int netns_each(netns_visit_fn fn, void *arg, struct error *err)
{
	struct walk walk = {.fn = fn, .arg = arg};
	struct error ignored = {0};
	int r = remember_file(&walk, "/proc/self/ns/net", err);

	/* Where process 1 may not be looked at, as by some sandboxes, it is not met below either.
	 */
	if (!r)
		remember_file(&walk, "/proc/1/ns/net", &ignored);
	if (!r)
		r = visit_mounts(&walk, err);
	if (!r)
		r = visit_processes(&walk, err);
	free(walk.seen);
	return r;
}

/* ---- ids ------------------------------------------------------------------------------------ */

/* The file's second column is in terms of the reader's user namespace (user_namespaces(7)). */
static int read_id_map(pid_t pid, bool groups, char *buf, size_t size, struct error *err)
{
	char path[64];
	scoped_file FILE *file = NULL;
	size_t n;

	snprintf(path, sizeof(path), "/proc/%d/%cid_map", (int)pid, groups ? 'g' : 'u');
	file = fopen(path, "re");
	if (!file)
		return error_set(err, errno, "open %s", path);
	n = fread(buf, 1, size - 1, file);
	if (ferror(file) || !feof(file))
		return error_set(err, EIO, "read %s", path);
	buf[n] = '\0';
	return 0;
}

static int map_id(const char *map, uint32_t id, uint32_t *ret)
{
	const char *line = map;

	while (line && *line) {
		unsigned inside, outside, count;

		/* At most 340 lines of three numbers, written by the kernel. */
		if (sscanf(line, "%u %u %u", &inside, &outside, &count) != 3) /* NOLINT */
			return -EIO;
		if (id >= inside && id - inside < count) {
			*ret = outside + (id - inside);
			return 0;
		}
		line = strchr(line, '\n');
		line = line ? line + 1 : NULL;
	}
	return -ENOENT;
}

/*
 * There is no call that maps an id through a user namespace given by descriptor. A child that
 * joins it can be looked at through /proc; it waits until the parent has read its maps.
 */
static pid_t child_in_userns(int userns_fd, const int ready[2], const int release[2])
{
	pid_t pid = fork();
	char byte = 0;

	if (pid)
		return pid;
	close(release[1]); /* so that the parent's death ends the wait below */
	byte = setns(userns_fd, CLONE_NEWUSER) < 0 ? (char)errno : 0;
	if (write(ready[1], &byte, 1) == 1)
		while (read(release[0], &byte, 1) < 0 && errno == EINTR)
			;
	_exit(0);
}

static int await_ready(int fd, struct error *err)
{
	char code = 0;
	ssize_t n;

	do
		n = read(fd, &code, 1);
	while (n < 0 && errno == EINTR);
	if (n != 1)
		return error_set(err, EIO, "the user namespace helper died");
	if (code)
		return error_set(err, code, "enter the pod's user namespace");
	return 0;
}

static int read_userns_map(int userns_fd, bool groups, char *buf, size_t size, struct error *err)
{
	int ready[2], release[2], r;
	pid_t pid;

	if (pipe2(ready, O_CLOEXEC) < 0)
		return error_set(err, errno, "pipe");
	if (pipe2(release, O_CLOEXEC) < 0) {
		r = error_set(err, errno, "pipe");
		goto close_ready;
	}
	pid = child_in_userns(userns_fd, ready, release);
	if (pid < 0) {
		r = error_set(err, errno, "fork");
	} else {
		close(ready[1]); /* a child that dies then reads as end of file */
		ready[1] = -1;
		r = await_ready(ready[0], err);
		if (!r)
			r = read_id_map(pid, groups, buf, size, err);
		close(release[1]);
		release[1] = -1;
		while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
			;
	}
	close(release[0]);
	scoped_close(&release[1]);
close_ready:
	close(ready[0]);
	scoped_close(&ready[1]);
	return r;
}

static int map_each(const char *map, const uint32_t *ids, size_t n, bool groups, uint32_t *ret,
		    struct error *err)
{
	int r = 0;

	for (size_t i = 0; !r && i < n; i++) {
		r = map_id(map, ids[i], &ret[i]);
		if (r)
			error_set(err, -r, "%s %u has no mapping in the pod's user namespace",
				  groups ? "gid" : "uid", ids[i]);
	}
	return r;
}

int netns_map_ids(int fd, const uint32_t *ids, size_t n, bool groups, uint32_t *ret,
		  struct error *err)
{
	enum { ID_MAP_MAX = 340 * 36 }; /* the kernel's limit of lines, each of three columns */
	scoped_fd int userns = ioctl(fd, NS_GET_USERNS);
	char *map;
	int r;

	if (userns < 0)
		return error_set(err, errno, "find the namespace's user namespace");
	if (same_as_file(userns, "/proc/self/ns/user")) {
		memmove(ret, ids, n * sizeof(*ids));
		return 0;
	}
	map = calloc(1, ID_MAP_MAX);
	if (!map)
		return error_set(err, ENOMEM, "id map");
	r = read_userns_map(userns, groups, map, ID_MAP_MAX, err);
	if (!r)
		r = map_each(map, ids, n, groups, ret, err);
	free(map);
	return r;
}
