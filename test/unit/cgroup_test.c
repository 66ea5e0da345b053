/* SPDX-License-Identifier: Apache-2.0 */
#include "cgroup.h"

#include "error.h"
#include "test.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Writes the text to a temporary file and looks for cgroup2 in it. */
static int find_in(const char *mountinfo, char *ret, size_t size, struct error *err)
{
	char path[] = "/tmp/cgroup_test.XXXXXX";
	int fd = mkstemp(path), r;

	if (fd < 0 || write(fd, mountinfo, strlen(mountinfo)) != (ssize_t)strlen(mountinfo))
		return -EIO;
	close(fd);
	r = cgroup2_find(path, ret, size, err);
	unlink(path);
	return r;
}

TEST(the_first_cgroup2_mount_is_found_on_a_hybrid_host)
{
	struct error err = {0};
	char found[64];

	CHECK(!find_in(
		"24 1 0:21 / /sys/fs/cgroup ro,nosuid shared:9 - tmpfs tmpfs ro\n"
		"25 24 0:22 / /sys/fs/cgroup/cpu rw shared:10 - cgroup cgroup rw,cpu\n"
		"26 24 0:23 / /sys/fs/cgroup/unified rw shared:11 master:3 - cgroup2 cgroup2 rw\n"
		"27 1 0:23 / /mnt/other rw - cgroup2 cgroup2 rw\n",
		found, sizeof(found), &err));
	CHECK_STR(found, "/sys/fs/cgroup/unified");
	return TEST_OK;
}

TEST(a_mount_point_with_escapes_is_unescaped)
{
	struct error err = {0};
	char found[64];

	CHECK(!find_in("26 24 0:23 / /a\\040b\\134c\\0 rw - cgroup2 none rw\n", found,
		       sizeof(found), &err));
	CHECK_STR(found, "/a b\\c\\0");
	return TEST_OK;
}

TEST(names_that_only_look_like_cgroup2_are_not_taken)
{
	struct error err = {0};
	char found[64] = "untouched";

	CHECK_EQ(find_in("26 24 0:23 / /cgroup2 rw - tmpfs cgroup2 rw\n"
			 "26 24 0:23 / /x rw - cgroup2fs cgroup2 rw\n"
			 "short - cgroup2 x\n"
			 "\n"
			 "no separator at all\n",
			 found, sizeof(found), &err),
		 -ENOENT);
	CHECK_STR(found, "untouched");
	CHECK_EQ(cgroup2_find("/nonexistent/mountinfo", found, sizeof(found), &err), -ENOENT);
	return TEST_OK;
}

TEST(a_path_that_does_not_fit_is_an_error)
{
	struct error err = {0};
	char found[8];

	CHECK_EQ(find_in("26 24 0:23 / /12345678 rw - cgroup2 none rw\n", found, sizeof(found),
			 &err),
		 -ENAMETOOLONG);
	return TEST_OK;
}

TEST(a_directory_of_another_file_system_is_refused)
{
	struct error err = {0};
	char found[PATH_MAX];

	CHECK_EQ(cgroup_attach_dir("/proc", found, sizeof(found), &err), -EINVAL);
	CHECK_HAS(err.text, "/proc");
	CHECK_EQ(cgroup_attach_dir("/nonexistent", found, sizeof(found), &err), -EINVAL);
	return TEST_OK;
}

TEST(programs_attach_to_kubepods_when_it_exists_else_to_the_root)
{
	struct error err = {0};
	char mount[PATH_MAX], root[PATH_MAX + 32], child[PATH_MAX + 64], found[PATH_MAX + 64];

	if (geteuid() != 0 || cgroup2_find(NULL, mount, sizeof(mount), &err))
		return TEST_SKIP;
	snprintf(root, sizeof(root), "%s/cgroup_test_%d", mount, (int)getpid());
	if (mkdir(root, 0755) < 0)
		return TEST_SKIP;
	CHECK(!cgroup_attach_dir(root, found, sizeof(found), &err));
	CHECK_STR(found, root);
	snprintf(child, sizeof(child), "%s/kubepods", root);
	CHECK(!mkdir(child, 0755));
	CHECK(!cgroup_attach_dir(root, found, sizeof(found), &err));
	CHECK_STR(found, child);
	CHECK_EQ(cgroup_attach_dir(root, found, 16, &err), -ENAMETOOLONG);
	CHECK(!rmdir(child));
	snprintf(child, sizeof(child), "%s/kubepods.slice", root);
	CHECK(!mkdir(child, 0755));
	CHECK(!cgroup_attach_dir(root, found, sizeof(found), &err));
	CHECK_STR(found, child);
	CHECK(!rmdir(child) && !rmdir(root));
	return TEST_OK;
}
