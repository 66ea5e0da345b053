/* SPDX-License-Identifier: Apache-2.0 */
#include "kernel_probe.h"

#include "cgroup.h"
#include "error.h"
#include "scoped.h"
#include "test.h"

#include <bpf/bpf.h>
#include <dirent.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/bpf.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { NOBODY = 65534 };

static void probe_free_at(struct kernel_probe **probe)
{
	kernel_probe_free(*probe);
}
#define scoped_probe scoped(probe_free_at)

static const struct probe_facility *facility(const struct kernel_probe *probe, const char *name)
{
	for (size_t i = 0; i < probe->n_facilities; i++)
		if (strcmp(probe->facilities[i].name, name) == 0)
			return &probe->facilities[i];
	return NULL;
}

static const struct foreign_program *foreign(const struct kernel_probe *probe, uint32_t id)
{
	for (size_t i = 0; i < probe->n_foreign; i++)
		if (probe->foreign[i].id == id)
			return &probe->foreign[i];
	return NULL;
}

/* A tree of cgroups of our own: top/middle/bottom. */
struct tree {
	char top[PATH_MAX], middle[PATH_MAX], bottom[PATH_MAX];
};

static void tree_remove(struct tree *tree)
{
	rmdir(tree->bottom);
	rmdir(tree->middle);
	rmdir(tree->top);
}

static int tree_make(struct tree *ret)
{
	char root[PATH_MAX / 2];
	struct error err = {0};

	if (geteuid() != 0 || cgroup2_find(NULL, root, sizeof(root), &err) < 0)
		return -1;
	snprintf(ret->top, sizeof(ret->top), "%s/sockmesh-probe-%d", root, (int)getpid());
	snprintf(ret->middle, sizeof(ret->middle), "%s/sockmesh-probe-%d/middle", root,
		 (int)getpid());
	snprintf(ret->bottom, sizeof(ret->bottom), "%s/sockmesh-probe-%d/middle/bottom", root,
		 (int)getpid());
	if (mkdir(ret->top, 0755) < 0 || mkdir(ret->middle, 0755) < 0 ||
	    mkdir(ret->bottom, 0755) < 0) {
		tree_remove(ret);
		return -1;
	}
	return 0;
}

/* Attaches a connect4 program that does nothing; the link's fd, and the program's id. */
static int attach(const char *cgroup, const char *name, uint32_t *ret_id)
{
	const struct bpf_insn insns[] = {
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = BPF_REG_0, .imm = 1},
		{.code = BPF_JMP | BPF_EXIT},
	};
	LIBBPF_OPTS(bpf_prog_load_opts, opts, .expected_attach_type = BPF_CGROUP_INET4_CONNECT);
	scoped_fd int cgroup_fd = open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	scoped_fd int prog =
		bpf_prog_load(BPF_PROG_TYPE_CGROUP_SOCK_ADDR, name, "GPL", insns, 2, &opts);
	struct bpf_prog_info info = {0};
	__u32 length = sizeof(info);

	if (prog < 0 || bpf_obj_get_info_by_fd(prog, &info, &length) < 0)
		return -1;
	*ret_id = info.id;
	return bpf_link_create(prog, cgroup_fd, BPF_CGROUP_INET4_CONNECT, NULL);
}

TEST(finds_what_this_kernel_has)
{
	scoped_probe struct kernel_probe *probe = NULL;
	struct error err = {0};

	if (geteuid() != 0)
		return TEST_SKIP;
	CHECK_EQ(kernel_probe_run(NULL, "/sys/fs/bpf/sockmesh", NULL, 0, &probe, &err), 0);
	CHECK(probe->release[0]);
	CHECK(probe->cgroup[0] == '/');
	/* These are in every kernel that runs this test at all. */
	CHECK(facility(probe, "cgroup/connect4")->found);
	CHECK(facility(probe, "cgroup/connect6")->found);
	CHECK(facility(probe, "bpf_bind")->found);
	CHECK(facility(probe, "LPM trie")->found);
	CHECK(facility(probe, "socket storage")->found);
	CHECK_EQ(facility(probe, "BTF")->found, access("/sys/kernel/btf/vmlinux", R_OK) == 0);
	CHECK(probe->summary[0]);
	return TEST_OK;
}

TEST(every_facility_says_how_and_what_follows)
{
	scoped_probe struct kernel_probe *probe = NULL;
	struct error err = {0};

	CHECK_EQ(kernel_probe_run(NULL, "/sys/fs/bpf/sockmesh", NULL, 0, &probe, &err), 0);
	CHECK(probe->n_facilities > 20);
	for (size_t i = 0; i < probe->n_facilities; i++) {
		CHECK(probe->facilities[i].how[0]);
		CHECK(probe->facilities[i].without[0]);
		CHECK(facility(probe, probe->facilities[i].name) == &probe->facilities[i]);
	}
	return TEST_OK;
}

TEST(what_has_a_stand_in_is_not_required)
{
	scoped_probe struct kernel_probe *probe = NULL;
	const struct probe_facility *cookie, *iterator;
	struct error err = {0};

	if (geteuid() != 0)
		return TEST_SKIP;
	CHECK_EQ(kernel_probe_run(NULL, "/sys/fs/bpf/sockmesh", NULL, 0, &probe, &err), 0);
	cookie = facility(probe, "SO_NETNS_COOKIE");
	CHECK(!cookie->required);
	CHECK_EQ(facility(probe, "netns cookie in connect")->required, cookie->found);
	CHECK_EQ(facility(probe, "netns cookie in sockops")->required, cookie->found);
	iterator = facility(probe, "iter/tcp");
	CHECK(!iterator->required);
	CHECK_EQ(facility(probe, "listener lookup")->required, !iterator->found);
	/* Since Linux 5.8, and so on every kernel that this test runs on. */
	CHECK(facility(probe, "listener lookup")->found);
	return TEST_OK;
}

TEST(no_cgroup2_is_named_and_not_usable)
{
	scoped_probe struct kernel_probe *probe = NULL;
	struct error err = {0};

	CHECK_EQ(kernel_probe_run("/proc", "/sys/fs/bpf/sockmesh", NULL, 0, &probe, &err), 0);
	CHECK(!probe->ebpf);
	CHECK(!facility(probe, "cgroup2")->found);
	CHECK(facility(probe, "cgroup2")->detail[0]);
	CHECK(!probe->cgroup[0]);
	CHECK_HAS(probe->summary, "cgroup2");
	CHECK_EQ(probe->n_foreign, 0);
	return TEST_OK;
}

static size_t count_descriptors(void)
{
	scoped_dir DIR *dir = opendir("/proc/self/fd");
	size_t n = 0;

	while (dir && readdir(dir))
		n++;
	return n;
}

/* In a child, because it gives its rights away: 0 when the probe said what it has to. */
static int probe_without_rights(void)
{
	scoped_probe struct kernel_probe *probe = NULL;
	struct error err = {0};

	if (setresuid(NOBODY, NOBODY, NOBODY) < 0 ||
	    kernel_probe_run(NULL, "/proc/sockmesh", NULL, 0, &probe, &err) < 0)
		return 2;
	if (probe->ebpf || facility(probe, "cgroup/connect4")->found ||
	    facility(probe, "bpf_bind")->found || facility(probe, "bpffs")->found ||
	    facility(probe, "ring buffer")->found)
		return 3;
	return facility(probe, "bpf_bind")->detail[0] ? 0 : 4;
}

TEST(without_rights_nothing_is_taken_for_there)
{
	int status;
	pid_t child;

	if (geteuid() != 0)
		return TEST_SKIP;
	child = fork();
	if (child == 0)
		_exit(probe_without_rights());
	CHECK(child > 0 && waitpid(child, &status, 0) == child);
	CHECK(WIFEXITED(status));
	CHECK_EQ(WEXITSTATUS(status), 0);
	return TEST_OK;
}

TEST(leaves_no_descriptor_behind)
{
	size_t before = count_descriptors();
	struct kernel_probe *probe = NULL;
	struct error err = {0};

	CHECK_EQ(kernel_probe_run(NULL, "/sys/fs/bpf/sockmesh", NULL, 0, &probe, &err), 0);
	kernel_probe_free(probe);
	CHECK_EQ(count_descriptors(), before);
	return TEST_OK;
}

/* Before we are attached: same cgroup and below run before, ancestors after. */
TEST(order_of_others_before_we_attach)
{
	scoped(tree_remove) struct tree tree = {0};
	scoped_probe struct kernel_probe *probe = NULL;
	scoped_fd int top = -1, middle = -1, bottom = -1;
	const struct foreign_program *above, *same, *below;
	uint32_t top_id, middle_id, bottom_id;
	struct error err = {0};

	if (tree_make(&tree) < 0)
		return TEST_SKIP;
	top = attach(tree.top, "on_top", &top_id);
	middle = attach(tree.middle, "on_middle", &middle_id);
	bottom = attach(tree.bottom, "on_bottom", &bottom_id);
	CHECK(top >= 0 && middle >= 0 && bottom >= 0);
	CHECK_EQ(kernel_probe_run(tree.middle, "/sys/fs/bpf/x", NULL, 0, &probe, &err), 0);
	CHECK_STR(probe->cgroup, tree.middle);

	above = foreign(probe, top_id);
	same = foreign(probe, middle_id);
	below = foreign(probe, bottom_id);
	CHECK(above && same && below);
	CHECK(!above->runs_before_ours);
	CHECK(same->runs_before_ours);
	CHECK(below->runs_before_ours);
	CHECK_STR(above->cgroup, tree.top);
	CHECK_STR(above->name, "on_top");
	CHECK_STR(above->attach_type, "connect4");
	CHECK_STR(below->cgroup, tree.bottom);
	return TEST_OK;
}

TEST(order_of_others_on_our_cgroup_is_the_kernels)
{
	scoped(tree_remove) struct tree tree = {0};
	scoped_probe struct kernel_probe *probe = NULL;
	scoped_fd int top = -1, first = -1, ours = -1, last = -1;
	uint32_t top_id, first_id, our_id, last_id;
	struct error err = {0};

	if (tree_make(&tree) < 0)
		return TEST_SKIP;
	top = attach(tree.top, "on_top", &top_id);
	first = attach(tree.middle, "first", &first_id);
	ours = attach(tree.middle, "ours", &our_id);
	last = attach(tree.middle, "last", &last_id);
	CHECK(top >= 0 && first >= 0 && ours >= 0 && last >= 0);
	CHECK_EQ(kernel_probe_run(tree.middle, "/sys/fs/bpf/x", &our_id, 1, &probe, &err), 0);

	CHECK(!foreign(probe, our_id));
	CHECK(foreign(probe, first_id)->runs_before_ours);
	CHECK(!foreign(probe, last_id)->runs_before_ours);
	CHECK(!foreign(probe, top_id)->runs_before_ours);
	return TEST_OK;
}

TEST(json_has_every_member)
{
	scoped_probe struct kernel_probe *probe = NULL;
	struct error err = {0};
	json_t *json;

	CHECK_EQ(kernel_probe_run(NULL, "/sys/fs/bpf/sockmesh", NULL, 0, &probe, &err), 0);
	json = kernel_probe_json(probe, NULL);
	CHECK(json);
	CHECK_STR(json_string_value(json_object_get(json, "release")), probe->release);
	CHECK_EQ(json_is_true(json_object_get(json, "ebpf")), probe->ebpf);
	CHECK_EQ(json_array_size(json_object_get(json, "facilities")), probe->n_facilities);
	CHECK(json_is_array(json_object_get(json, "foreign")));
	CHECK(json_is_string(json_object_get(json_array_get(json_object_get(json, "facilities"), 0),
					     "without")));
	json_decref(json);
	return TEST_OK;
}
