/* SPDX-License-Identifier: Apache-2.0 */
#include "pod_cgroup.h"

#include "error.h"
#include "mountinfo.h"
#include "scoped.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>

enum {
	/* kubelet nests four levels below its root; kind and k3s put a level or two above that. */
	SEARCH_DEPTH_MAX = 8,
	SEARCH_DIRS_MAX = 8192,
	NAME_SIZE = 512,
};

/* ---- the mount ---------------------------------------------------------------------------- */

int pod_cgroup_mount(const char *mountinfo_path, char *ret, size_t size, struct error *err)
{
	scoped_file FILE *file = fopen(mountinfo_path, "re");
	scoped_free char *line = NULL;
	size_t capacity = 0;

	if (!file)
		return error_set(err, errno, "open %s", mountinfo_path);
	while (getline(&line, &capacity, file) > 0) {
		const char *mount_point = mountinfo_mount_point(line, "cgroup2", NULL);

		if (!mount_point)
			continue;
		if ((size_t)snprintf(ret, size, "%s", mount_point) >= size)
			return error_set(err, ENAMETOOLONG, "cgroup2 mount point");
		return 0;
	}
	return error_set(err, ENOENT, "no cgroup2 mount in %s", mountinfo_path);
}

/* ---- names -------------------------------------------------------------------------------- */

static bool has_suffix(const char *text, const char *suffix)
{
	size_t size = strlen(text), suffix_size = strlen(suffix);

	return size > suffix_size && strcmp(text + size - suffix_size, suffix) == 0;
}

int pod_cgroup_expand_slice(const char *slice, char *ret, size_t size, struct error *err)
{
	size_t stem = strlen(slice) - (has_suffix(slice, ".slice") ? strlen(".slice") : 0);
	size_t used = 0;

	if (!slice[stem] || strchr(slice, '/') || slice[0] == '-' || slice[stem - 1] == '-' ||
	    strstr(slice, "--"))
		return error_set(err, EINVAL, "\"%.128s\" is not a slice", slice);
	for (size_t i = 1; i <= stem; i++) {
		int n;

		if (i < stem && slice[i] != '-')
			continue;
		n = snprintf(ret + used, size - used, "/%.*s.slice", (int)i, slice);
		if (n < 0 || (size_t)n >= size - used)
			return error_set(err, ENAMETOOLONG, "slice \"%.128s\"", slice);
		used += (size_t)n;
	}
	return 0;
}

/* No component of the path is "." or "..": what a runtime passes stays below the root. */
static bool is_plain_path(const char *path)
{
	while (*path) {
		size_t size = strcspn(path, "/");

		if ((size == 1 && path[0] == '.') || (size == 2 && memcmp(path, "..", 2) == 0))
			return false;
		path += size + strspn(path + size, "/");
	}
	return true;
}

static bool is_directory(int root_fd, const char *path)
{
	struct stat st;

	return fstatat(root_fd, path[1] ? path + 1 : ".", &st, AT_SYMLINK_NOFOLLOW) == 0 &&
	       S_ISDIR(st.st_mode);
}

/* systemd's names hold '_' where the uid has '-'. */
static void systemd_uid(const char *uid, char *ret, size_t size)
{
	snprintf(ret, size, "%s", uid);
	for (char *c = ret; *c; c++)
		if (*c == '-')
			*c = '_';
}

/* ---- where it should be ------------------------------------------------------------------- */

static bool find_by_path(int root_fd, const char *cgroup_path, char *ret, size_t size)
{
	struct error ignored;
	int n;

	if (!strchr(cgroup_path, '/') && has_suffix(cgroup_path, ".slice"))
		return pod_cgroup_expand_slice(cgroup_path, ret, size, &ignored) == 0 &&
		       is_directory(root_fd, ret);
	cgroup_path += strspn(cgroup_path, "/");
	/* The root itself is no pod's: what runs there is the whole host. */
	if (!*cgroup_path || !is_plain_path(cgroup_path))
		return false;
	n = snprintf(ret, size, "/%s", cgroup_path);
	if (n < 0 || (size_t)n >= size)
		return false;
	while (n > 1 && ret[n - 1] == '/')
		ret[--n] = '\0';
	return is_directory(root_fd, ret);
}

static bool find_by_uid(int root_fd, const char *uid, char *ret, size_t size)
{
	static const char *const classes[] = {"", "burstable", "besteffort"};
	char name[NAME_SIZE], uid_[NAME_SIZE / 2];
	struct error ignored;

	systemd_uid(uid, uid_, sizeof(uid_));
	for (size_t i = 0; i < sizeof(classes) / sizeof(*classes); i++) {
		const char *class = classes[i];

		snprintf(name, sizeof(name), "kubepods%s%s-pod%s.slice", *class ? "-" : "", class,
			 uid_);
		if (pod_cgroup_expand_slice(name, ret, size, &ignored) == 0 &&
		    is_directory(root_fd, ret))
			return true;
		if ((size_t)snprintf(ret, size, "/kubepods%s%s/pod%s", *class ? "/" : "", class,
				     uid) < size &&
		    is_directory(root_fd, ret))
			return true;
	}
	return false;
}

/* ---- looking for it ----------------------------------------------------------------------- */

static bool is_pod_name(const char *name)
{
	return strncmp(name, "pod", 3) == 0 || (strstr(name, "-pod") && has_suffix(name, ".slice"));
}

static bool matches_uid(const char *name, const struct pod_cgroup_query *query)
{
	char end[NAME_SIZE], uid_[NAME_SIZE / 2];

	if (strncmp(name, "pod", 3) == 0 && strcmp(name + 3, query->pod_uid) == 0)
		return true;
	systemd_uid(query->pod_uid, uid_, sizeof(uid_));
	snprintf(end, sizeof(end), "-pod%s.slice", uid_);
	return has_suffix(name, end);
}

/* "ID", "cri-containerd-ID.scope", "crio-ID", "docker-ID.scope" and so on. */
static bool matches_container(const char *name, const struct pod_cgroup_query *query)
{
	const char *id = strstr(name, query->container_id);
	const char *after;

	if (!id || (id > name && id[-1] != '-' && id[-1] != ':'))
		return false;
	after = id + strlen(query->container_id);
	return !*after || strcmp(after, ".scope") == 0;
}

/* Breadth first, so that a directory near the root is found before a deep one is opened. */
struct search {
	int root_fd;
	const struct pod_cgroup_query *query;
	bool (*matches)(const char *name, const struct pod_cgroup_query *query);
	struct visit {
		char *path; /* "" is the root */
		int depth;
	} * queue;
	size_t first, last;
	char *found; /* owned */
};

static void search_done(struct search *s)
{
	for (size_t i = 0; s->queue && i < s->last; i++)
		free(s->queue[i].path);
	free(s->queue);
	free(s->found);
}

static void search_entry(struct search *s, const struct visit *parent, const char *name)
{
	char *path;

	if (name[0] == '.' || asprintf(&path, "%s/%s", parent->path, name) < 0)
		return;
	if (s->matches(name, s->query))
		s->found = path;
	else if (parent->depth + 1 < SEARCH_DEPTH_MAX && s->last < SEARCH_DIRS_MAX)
		s->queue[s->last++] = (struct visit){path, parent->depth + 1};
	else
		free(path);
}

/* A directory that vanished meanwhile, or cannot be read, holds nothing that we look for. */
static void search_directory(struct search *s, const struct visit *visit)
{
	scoped_fd int fd = openat(s->root_fd, visit->path[0] ? visit->path + 1 : ".",
				  O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	scoped_dir DIR *dir = fd < 0 ? NULL : fdopendir(fd);
	const struct dirent *entry;

	if (!dir)
		return;
	take_fd(&fd);
	while (!s->found && (entry = readdir(dir)))
		if (entry->d_type == DT_DIR)
			search_entry(s, visit, entry->d_name);
}

static bool find_by_search(int root_fd, const struct pod_cgroup_query *query, char *ret,
			   size_t size)
{
	scoped(search_done) struct search s = {.root_fd = root_fd, .query = query};
	char *slash;
	int n;

	s.matches = query->pod_uid ? matches_uid : matches_container;
	s.queue = calloc(SEARCH_DIRS_MAX, sizeof(*s.queue));
	if (!s.queue)
		return false;
	s.queue[s.last++] = (struct visit){strdup(""), 0};
	if (!s.queue[0].path)
		return false;
	while (!s.found && s.first < s.last)
		search_directory(&s, &s.queue[s.first++]);
	if (!s.found)
		return false;
	slash = strrchr(s.found, '/');
	if (s.matches == matches_container && slash > s.found) {
		/* A container found by name: its pod is the directory around it. */
		*slash = '\0';
		if (!is_pod_name(strrchr(s.found, '/') + 1))
			*slash = '/';
	}
	n = snprintf(ret, size, "%s", s.found);
	return n > 0 && (size_t)n < size;
}

int pod_cgroup_find(const char *root, const struct pod_cgroup_query *query, char *ret, size_t size,
		    struct error *err)
{
	scoped_fd int root_fd = open(root, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	char found[PATH_MAX] = "";

	if (root_fd < 0)
		return error_set(err, errno, "open %s", root);
	if (!(query->cgroup_path &&
	      find_by_path(root_fd, query->cgroup_path, found, sizeof(found))) &&
	    !(query->pod_uid && find_by_uid(root_fd, query->pod_uid, found, sizeof(found))) &&
	    !((query->pod_uid || query->container_id) &&
	      find_by_search(root_fd, query, found, sizeof(found))))
		return error_set(err, ENOENT, "no cgroup of the pod in %s", root);
	if ((size_t)snprintf(ret, size, "%s", found) >= size)
		return error_set(err, ENAMETOOLONG, "cgroup %.128s", found);
	return 0;
}
