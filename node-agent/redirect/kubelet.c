/* SPDX-License-Identifier: Apache-2.0 */
#include "kubelet.h"

#include "cgroup.h"
#include "error.h"
#include "json.h"
#include "scoped.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { CGROUP_ROOT_INODE = 1, LEVELS_MAX = 64 };
static const ino_t first_cgroup_namespace = 0xeffffffb; /* PROC_CGROUP_INIT_INO */

const char *kubelet_source_words(enum kubelet_source source)
{
	switch (source) {
	case KUBELET_GIVEN:
		return "the cgroup that --kubelet-cgroup names";
	case KUBELET_CGROUP:
		return "the cgroup of kubelet's process";
	case KUBELET_PROCESS:
		return "the user of kubelet's process, which is in no cgroup of its own";
	case KUBELET_UNKNOWN:
		break;
	}
	return "user 0, because no kubelet was found";
}

/* ---- for people ------------------------------------------------------------------------------ */

static void describe(const struct kubelet *k, enum kubelet_known known, char *text, size_t size)
{
	switch (known) {
	case KUBELET_KNOWN_CGROUP:
		snprintf(text, size, "%s, %s", kubelet_source_words(k->source), k->cgroup);
		return;
	case KUBELET_KNOWN_PROCESS:
		snprintf(text, size, "process %d, which is in no cgroup of its own", k->pid);
		return;
	case KUBELET_KNOWN_USER:
		snprintf(text, size,
			 "every process of user %u on this node reaches ambient pods directly: %s",
			 k->uid,
			 *k->cgroup ? "its cgroup cannot be matched here"
				    : kubelet_source_words(k->source));
		return;
	case KUBELET_KNOWN_NOT:
		break;
	}
	if (k->source == KUBELET_GIVEN)
		snprintf(text, size, "the cgroup that --kubelet-cgroup names, %s, is not there",
			 k->cgroup);
	else
		snprintf(text, size, "no kubelet was found, or its connections cannot be watched");
}

json_t *kubelet_json(const struct kubelet *k, enum kubelet_known known)
{
	static const char *const names[] = {[KUBELET_KNOWN_NOT] = "nothing",
					    [KUBELET_KNOWN_CGROUP] = "cgroup",
					    [KUBELET_KNOWN_PROCESS] = "process",
					    [KUBELET_KNOWN_USER] = "user"};
	bool has_user = k->pid || known == KUBELET_KNOWN_USER;
	char detail[PATH_MAX + 128];

	describe(k, known, detail, sizeof(detail));
	return json_pack("{s:s, s:o, s:o, s:o, s:o}", "knownBy", names[known], "detail",
			 json_string_lossy(detail), "cgroup",
			 *k->cgroup ? json_string_lossy(k->cgroup) : json_null(), "pid",
			 k->pid ? json_integer(k->pid) : json_null(), "uid",
			 has_user ? json_integer(k->uid) : json_null());
}

/* ---- its cgroup ------------------------------------------------------------------------------ */

/*
 * How many levels above the directory the other one is, 0 being itself; -1 where it is not above,
 * or cannot be reached, as from a mount of a part of the hierarchy.
 */
static int levels_up(int dir_fd, dev_t dev, ino_t ino)
{
	scoped_fd int fd = dup(dir_fd);
	struct stat here;

	for (int level = 0; level < LEVELS_MAX; level++) {
		int up;

		if (fd < 0 || fstat(fd, &here) < 0 || here.st_dev != dev)
			return -1;
		if (here.st_ino == ino)
			return level;
		if (here.st_ino == CGROUP_ROOT_INODE)
			return -1;
		up = openat(fd, "..", O_PATH | O_DIRECTORY | O_CLOEXEC);
		close(fd);
		fd = up;
	}
	return -1;
}

/* The inode number of a cgroup's directory is its id. */
static void identify(struct kubelet *k)
{
	scoped_fd int fd = open(k->cgroup, O_PATH | O_DIRECTORY | O_CLOEXEC);
	struct stat st;
	int levels;

	if (fd < 0 || fstat(fd, &st) < 0)
		return;
	levels = levels_up(fd, st.st_dev, CGROUP_ROOT_INODE);
	k->cgroup_id = st.st_ino;
	k->level = levels > 0 ? (uint32_t)levels : 0;
}

/* Are the pods in it as well? Then each of their processes would be taken for kubelet. */
static bool holds_pods(const char *cgroup, const char *cgroup_root)
{
	char root[PATH_MAX], pods[PATH_MAX];
	struct error ignored = {0};
	scoped_fd int fd = -1;
	struct stat st;

	if (stat(cgroup, &st) < 0)
		return false;
	if (!cgroup_root && cgroup2_find(NULL, root, sizeof(root), &ignored))
		return false;
	if (cgroup_attach_dir(cgroup_root ?: root, pods, sizeof(pods), &ignored))
		return false;
	fd = open(pods, O_PATH | O_DIRECTORY | O_CLOEXEC);
	return fd >= 0 && levels_up(fd, st.st_dev, st.st_ino) >= 0;
}

int kubelet_check(const char *given, const char *cgroup_root, struct error *err)
{
	if (!given || !*given || !holds_pods(given, cgroup_root))
		return 0;
	return error_set(err, EINVAL,
			 "--kubelet-cgroup %s is not kubelet's alone: the pods are in it, and each "
			 "of them would pass for kubelet",
			 given);
}

bool kubelet_see_cgroups_of_node(void)
{
	struct stat ours, nodes;
	int fd, r;

	if (stat("/proc/thread-self/ns/cgroup", &ours) < 0)
		return true; /* before Linux 4.6 there is only one */
	if (ours.st_ino == first_cgroup_namespace)
		return true;
	fd = open("/proc/1/ns/cgroup", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	r = fstat(fd, &nodes) < 0 || nodes.st_ino != first_cgroup_namespace
		    ? -1
		    : setns(fd, CLONE_NEWCGROUP);
	close(fd);
	return r == 0;
}

/* ---- its process ----------------------------------------------------------------------------- */

static bool read_file(pid_t pid, const char *name, char *ret, size_t size)
{
	char path[64];
	scoped_fd int fd = -1;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, ret, size - 1);
	if (n < 0)
		return false;
	ret[n] = '\0';
	return true;
}

static bool has_its_name(pid_t pid)
{
	char comm[32];

	if (!read_file(pid, "comm", comm, sizeof(comm)))
		return false;
	comm[strcspn(comm, "\n")] = '\0';
	return !strcmp(comm, "kubelet") || !strcmp(comm, "kubelite") || !strcmp(comm, "k3s") ||
	       !strcmp(comm, "k3s-server") || !strcmp(comm, "k3s-agent");
}

static bool is_in_our_netns(pid_t pid)
{
	struct stat ours, theirs;
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/ns/net", pid);
	return !stat("/proc/self/ns/net", &ours) && !stat(path, &theirs) &&
	       ours.st_dev == theirs.st_dev && ours.st_ino == theirs.st_ino;
}

/*
 * The path behind "0::". Seen from a cgroup namespace, what is outside begins with as many "/.." as
 * there are levels to the root.
 */
static bool unified_path(pid_t pid, char *ret, size_t size)
{
	char text[8192], *line = NULL;

	if (!read_file(pid, "cgroup", text, sizeof(text)))
		return false;
	if (!strncmp(text, "0::", 3))
		line = text;
	else
		line = strstr(text, "\n0::");
	if (!line)
		return false;
	line += *line == '\n' ? 4 : 3;
	line[strcspn(line, "\n")] = '\0';
	while (!strncmp(line, "/..", 3))
		line += 3;
	return snprintf(ret, size, "%s", line) < (int)size;
}

static bool is_in_pod(pid_t pid)
{
	char text[8192];

	return !read_file(pid, "cgroup", text, sizeof(text)) || strstr(text, "kubepods");
}

/* 0: not a process's directory. */
static pid_t pid_of(const char *name)
{
	char *end;
	long pid = strtol(name, &end, 10);

	return isdigit((unsigned char)*name) && !*end && pid <= INT_MAX ? (pid_t)pid : 0;
}

static bool find_process(struct kubelet *k)
{
	scoped_dir DIR *proc = opendir("/proc");
	const struct dirent *entry;

	while (proc && (entry = readdir(proc))) {
		pid_t pid = pid_of(entry->d_name);
		struct stat st;
		char path[64];

		if (!pid || !has_its_name(pid) || !is_in_our_netns(pid) || is_in_pod(pid))
			continue;
		snprintf(path, sizeof(path), "/proc/%d", pid);
		if (stat(path, &st) < 0)
			continue;
		k->pid = pid;
		k->uid = st.st_uid;
		return true;
	}
	return false;
}

static void find_its_cgroup(struct kubelet *k, const char *root)
{
	char path[PATH_MAX];

	if (!unified_path(k->pid, path, sizeof(path)) || !strcmp(path, "/") || !*path)
		return;
	if (snprintf(k->cgroup, sizeof(k->cgroup), "%s%s", root, path) >= (int)sizeof(k->cgroup)) {
		k->cgroup[0] = '\0';
		return;
	}
	if (!holds_pods(k->cgroup, root))
		identify(k);
	if (k->cgroup_id)
		k->source = KUBELET_CGROUP;
	else
		k->cgroup[0] = '\0';
}

int kubelet_find(const char *given, const char *cgroup_root, struct kubelet *ret, struct error *err)
{
	struct kubelet k = {.source = KUBELET_UNKNOWN};
	struct error ignored = {0};
	char root[PATH_MAX];

	if (given && *given) {
		k.source = KUBELET_GIVEN;
		if (snprintf(k.cgroup, sizeof(k.cgroup), "%s", given) >= (int)sizeof(k.cgroup))
			return error_set(err, ENAMETOOLONG, "kubelet's cgroup %.100s...", given);
		/* Since the start of the agent, which refuses it then. */
		if (kubelet_check(given, cgroup_root, &ignored))
			k = (struct kubelet){.source = KUBELET_UNKNOWN};
		else
			identify(&k);
		*ret = k;
		return 0;
	}
	if (find_process(&k)) {
		k.source = KUBELET_PROCESS;
		if (cgroup_root)
			find_its_cgroup(&k, cgroup_root);
		else if (!cgroup2_find(NULL, root, sizeof(root), &ignored))
			find_its_cgroup(&k, root);
	}
	*ret = k;
	return 0;
}
