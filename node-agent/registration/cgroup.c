/* SPDX-License-Identifier: Apache-2.0 */
#include "cgroup.h"

#include "error.h"
#include "mountinfo.h"
#include "scoped.h"

#include <errno.h>
#include <linux/magic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>

int cgroup2_find(const char *mountinfo_path, char *ret, size_t size, struct error *err)
{
	const char *path = mountinfo_path ? mountinfo_path : "/proc/self/mountinfo";
	scoped_file FILE *file = fopen(path, "re");
	scoped_free char *line = NULL;
	size_t capacity = 0;

	if (!file)
		return error_set(err, errno, "open %s", path);
	while (getline(&line, &capacity, file) >= 0) {
		const char *point = mountinfo_mount_point(line, "cgroup2", NULL);

		if (!point)
			continue;
		if (strlen(point) >= size)
			return error_set(err, ENAMETOOLONG, "cgroup2 mount point %s", point);
		strcpy(ret, point); /* NOLINT(clang-analyzer-security.insecureAPI.strcpy) */
		return 0;
	}
	return error_set(err, ENOENT, "no cgroup2 file system is mounted");
}

static bool is_cgroup2_dir(const char *path)
{
	struct statfs fs;
	struct stat st;

	return !statfs(path, &fs) && fs.f_type == CGROUP2_SUPER_MAGIC && !stat(path, &st) &&
	       S_ISDIR(st.st_mode);
}

int cgroup_attach_dir(const char *root, char *ret, size_t size, struct error *err)
{
	/* The names that kubelet's two cgroup drivers give to the parent of all pods. */
	static const char *const children[] = {"/kubepods.slice", "/kubepods", ""};

	if (!root)
		return error_set(err, ENOENT, "no cgroup2 file system is mounted");
	if (!is_cgroup2_dir(root))
		return error_set(err, EINVAL, "%s is not a cgroup2 directory", root);
	for (size_t i = 0; i < sizeof(children) / sizeof(children[0]); i++) {
		int n = snprintf(ret, size, "%s%s", root, children[i]);

		if (n < 0 || (size_t)n >= size)
			return error_set(err, ENAMETOOLONG, "cgroup path under %s", root);
		if (is_cgroup2_dir(ret))
			return 0;
	}
	return error_set(err, ENOENT, "%s has vanished", root);
}
