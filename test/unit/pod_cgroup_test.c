/* SPDX-License-Identifier: Apache-2.0 */
#include "pod_cgroup.h"

#include "error.h"
#include "scoped.h"
#include "test.h"

#include <errno.h>
#include <ftw.h>
#include <limits.h>
#include <stdbool.h>
#include <sys/stat.h>

static const char uid[] = "11112222-3333-4444-5555-666677778888";

/* A directory that stands for the cgroup2 root: directories are all that the code looks at. */
struct tree {
	char root[64];
};

static int remove_entry(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
	(void)st;
	(void)type;
	(void)ftw;
	return remove(path);
}

static void tree_done(struct tree *tree)
{
	if (tree->root[0])
		nftw(tree->root, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
}

static bool tree_init(struct tree *tree)
{
	snprintf(tree->root, sizeof(tree->root), "/tmp/pod_cgroup_test.XXXXXX");
	return mkdtemp(tree->root) != NULL;
}

/* mkdir -p below the root. */
static bool tree_add(const struct tree *tree, const char *path)
{
	char full[PATH_MAX];

	snprintf(full, sizeof(full), "%s%s", tree->root, path);
	for (char *slash = full + strlen(tree->root) + 1; (slash = strchr(slash, '/')); slash++) {
		*slash = '\0';
		if (mkdir(full, 0755) < 0 && errno != EEXIST)
			return false;
		*slash = '/';
	}
	return mkdir(full, 0755) == 0 || errno == EEXIST;
}

/* What is found, or "" for nothing. The buffer is the caller's. */
static const char *find(const struct tree *tree, struct pod_cgroup_query query,
			char buf[static PATH_MAX])
{
	struct error err;

	return pod_cgroup_find(tree->root, &query, buf, PATH_MAX, &err) == 0 ? buf : "";
}

TEST(a_slice_expands_to_the_slices_around_it)
{
	static const char *const bad[] = {
		"",	      ".slice",	   "-.slice", "-a.slice",	 "a-.slice",
		"a--b.slice", "a/b.slice", "a",	      "kubepods-.slice",
	};
	char path[PATH_MAX], tiny[16];
	struct error err;

	CHECK_EQ(pod_cgroup_expand_slice("kubepods-burstable-pod1_2.slice", path, sizeof(path),
					 &err),
		 0);
	CHECK_STR(path, "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice");
	CHECK_EQ(pod_cgroup_expand_slice("a.slice", path, sizeof(path), &err), 0);
	CHECK_STR(path, "/a.slice");
	CHECK_EQ(pod_cgroup_expand_slice("aaaa-bbbb.slice", tiny, sizeof(tiny), &err),
		 -ENAMETOOLONG);
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		CHECK_EQ(pod_cgroup_expand_slice(bad[i], path, sizeof(path), &err), -EINVAL);
	return TEST_OK;
}

TEST(the_runtime_path_is_taken_where_it_exists)
{
	static const char pod[] = "/kubepods/burstable/podX";
	static const char slice[] = "/kubepods.slice/kubepods-pod1.slice";
	scoped(tree_done) struct tree tree = {""};
	char buf[PATH_MAX];

	CHECK(tree_init(&tree) && tree_add(&tree, pod) && tree_add(&tree, slice));
	CHECK_STR(find(&tree, (struct pod_cgroup_query){.cgroup_path = pod}, buf), pod);
	CHECK_STR(find(&tree, (struct pod_cgroup_query){.cgroup_path = "kubepods/burstable/podX//"},
		       buf),
		  pod);
	CHECK_STR(find(&tree, (struct pod_cgroup_query){.cgroup_path = "kubepods-pod1.slice"}, buf),
		  slice);
	CHECK_STR(find(&tree, (struct pod_cgroup_query){.cgroup_path = slice}, buf), slice);
	return TEST_OK;
}

TEST(a_runtime_path_never_leaves_the_root_nor_is_it)
{
	static const char *const bad[] = {"",	    "/",
					  "//",	    "/kubepods/..",
					  "../tmp", "/kubepods/../../",
					  "/.",	    "/kubepods/./x",
					  "-.slice"};
	scoped(tree_done) struct tree tree = {""};
	char buf[PATH_MAX];

	CHECK(tree_init(&tree) && tree_add(&tree, "/kubepods/x"));
	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		CHECK_STR(find(&tree, (struct pod_cgroup_query){.cgroup_path = bad[i]}, buf), "");
	return TEST_OK;
}

TEST(both_drivers_and_all_classes_are_found_by_uid)
{
	static const char *const places[] = {
		"/kubepods/pod11112222-3333-4444-5555-666677778888",
		"/kubepods/burstable/pod11112222-3333-4444-5555-666677778888",
		"/kubepods/besteffort/pod11112222-3333-4444-5555-666677778888",
		"/kubepods.slice/kubepods-pod11112222_3333_4444_5555_666677778888.slice",
		"/kubepods.slice/kubepods-burstable.slice/"
		"kubepods-burstable-pod11112222_3333_4444_5555_666677778888.slice",
		"/kubepods.slice/kubepods-besteffort.slice/"
		"kubepods-besteffort-pod11112222_3333_4444_5555_666677778888.slice",
		/* kubelet below another root: found by looking */
		"/kubelet/kubepods/burstable/pod11112222-3333-4444-5555-666677778888",
		"/kubelet.slice/kubelet-kubepods.slice/"
		"kubelet-kubepods-pod11112222_3333_4444_5555_666677778888.slice",
	};

	for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
		scoped(tree_done) struct tree tree = {""};
		char buf[PATH_MAX];

		CHECK(tree_init(&tree) && tree_add(&tree, places[i]));
		CHECK(tree_add(&tree, "/kubepods/pod99992222-3333-4444-5555-666677778888"));
		CHECK_STR(find(&tree, (struct pod_cgroup_query){.pod_uid = uid}, buf), places[i]);
		CHECK_STR(find(&tree,
			       (struct pod_cgroup_query){.cgroup_path = "/gone", .pod_uid = uid},
			       buf),
			  places[i]);
	}
	return TEST_OK;
}

TEST(without_a_uid_the_container_leads_to_its_pod)
{
	scoped(tree_done) struct tree tree = {""};
	char buf[PATH_MAX];

	CHECK(tree_init(&tree));
	CHECK(tree_add(&tree, "/kubepods/burstable/podA/0123abcd"));
	CHECK(tree_add(&tree, "/kubepods.slice/kubepods-podB.slice/cri-containerd-4567abcd.scope"));
	CHECK(tree_add(&tree, "/system.slice/docker-89ababcd.scope"));
	CHECK_STR(find(&tree, (struct pod_cgroup_query){.container_id = "0123abcd"}, buf),
		  "/kubepods/burstable/podA");
	CHECK_STR(find(&tree, (struct pod_cgroup_query){.container_id = "4567abcd"}, buf),
		  "/kubepods.slice/kubepods-podB.slice");
	CHECK_STR(find(&tree, (struct pod_cgroup_query){.container_id = "89ababcd"}, buf),
		  "/system.slice/docker-89ababcd.scope");
	/* A part of an id is another id. */
	CHECK_STR(find(&tree, (struct pod_cgroup_query){.container_id = "abcd"}, buf), "");
	CHECK_STR(find(&tree, (struct pod_cgroup_query){.container_id = "0123"}, buf), "");
	/* With a uid, another pod's container does not count. */
	CHECK_STR(find(&tree, (struct pod_cgroup_query){.pod_uid = uid, .container_id = "0123abcd"},
		       buf),
		  "");
	return TEST_OK;
}

TEST(the_search_is_bounded_in_depth)
{
	scoped(tree_done) struct tree tree = {""};
	char buf[PATH_MAX];

	CHECK(tree_init(&tree) && tree_add(&tree, "/1/2/3/4/5/6/7/c0ffee"));
	CHECK(tree_add(&tree, "/1/2/3/4/5/6/7/8/9/deadbeef"));
	CHECK_STR(find(&tree, (struct pod_cgroup_query){.container_id = "c0ffee"}, buf),
		  "/1/2/3/4/5/6/7/c0ffee");
	CHECK_STR(find(&tree, (struct pod_cgroup_query){.container_id = "deadbeef"}, buf), "");
	return TEST_OK;
}

TEST(the_mount_is_read_from_mountinfo)
{
	static const struct {
		const char *text, *want;
	} cases[] = {
		{"30 20 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw\n",
		 "/sys/fs/cgroup"},
		{"25 20 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
		 "31 25 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n"
		 "32 25 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
		 "/sys/fs/cgroup/unified"},
		{"30 20 0:26 / /mnt/a\\040b\\134c rw - cgroup2 none rw\n", "/mnt/a b\\c"},
		{"31 25 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n", NULL},
		{"garbage - cgroup2 x\n\n - cgroup2 \n", NULL},
		{"", NULL},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		char path[] = "/tmp/pod_cgroup_test.XXXXXX", got[PATH_MAX];
		scoped_fd int fd = mkstemp(path);
		struct error err;
		int rc;

		CHECK(fd >= 0);
		CHECK_EQ(write(fd, cases[i].text, strlen(cases[i].text)), strlen(cases[i].text));
		rc = pod_cgroup_mount(path, got, sizeof(got), &err);
		unlink(path);
		CHECK_EQ(rc, cases[i].want ? 0 : -ENOENT);
		if (cases[i].want)
			CHECK_STR(got, cases[i].want);
	}
	return TEST_OK;
}
