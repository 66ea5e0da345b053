/* SPDX-License-Identifier: Apache-2.0 */
#include "mountinfo.h"

#include "test.h"

TEST(the_mount_point_of_the_wanted_type_is_read)
{
	char net[] =
		"94 23 0:4 net:[4026532281] /run/netns/a\\040b\\134c rw shared:5 - nsfs nsfs rw\n";
	char untagged[] = "31 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
	char *root = NULL;

	CHECK_STR(mountinfo_mount_point(net, "nsfs", &root), "/run/netns/a b\\c");
	CHECK_STR(root, "net:[4026532281]");
	CHECK_STR(mountinfo_mount_point(untagged, "cgroup2", NULL), "/sys/fs/cgroup/unified");
	return TEST_OK;
}

TEST(other_types_and_broken_lines_have_none)
{
	char other[] = "31 23 0:27 / /mnt rw - cgroup2 cgroup2 rw\n";
	char prefix[] = "31 23 0:27 / /mnt rw - nsfsx nsfs rw\n";
	char cut[] = "31 23 - nsfs nsfs rw\n";
	char none[] = "31 23 0:27 / /mnt rw\n";
	char empty[] = "";

	CHECK(!mountinfo_mount_point(other, "nsfs", NULL));
	CHECK(!mountinfo_mount_point(prefix, "nsfs", NULL));
	CHECK(!mountinfo_mount_point(cut, "nsfs", NULL));
	CHECK(!mountinfo_mount_point(none, "nsfs", NULL));
	CHECK(!mountinfo_mount_point(empty, "nsfs", NULL));
	return TEST_OK;
}

TEST(what_only_looks_like_an_escape_stays)
{
	char line[] = "1 2 0:3 / /a\\9\\01\\400\\ rw - nsfs x y\n";

	CHECK_STR(mountinfo_mount_point(line, "nsfs", NULL), "/a\\9\\01\\400\\");
	return TEST_OK;
}
