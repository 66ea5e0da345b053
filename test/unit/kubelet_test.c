/* SPDX-License-Identifier: Apache-2.0 */
#include "kubelet.h"

#include "cgroup.h"
#include "error.h"
#include "test.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Cgroups of our own: the node's, and in it kubelet's and the pods'. */
struct cgroups {
	char mount[PATH_MAX], node[PATH_MAX + 64];
	char kubelet[PATH_MAX + 80], pods[PATH_MAX + 80], pod[PATH_MAX + 96];
};

static void cgroups_remove(const struct cgroups *c)
{
	rmdir(c->pod);
	rmdir(c->pods);
	rmdir(c->kubelet);
	rmdir(c->node);
}

/* False: not on this machine, or not by this user. */
static bool cgroups_make(struct cgroups *c)
{
	struct error err = {0};

	if (cgroup2_find(NULL, c->mount, sizeof(c->mount), &err))
		return false;
	snprintf(c->node, sizeof(c->node), "%s/kubelet-test-%d", c->mount, getpid());
	snprintf(c->kubelet, sizeof(c->kubelet), "%s/kubelet", c->node);
	snprintf(c->pods, sizeof(c->pods), "%s/kubepods", c->node);
	snprintf(c->pod, sizeof(c->pod), "%s/pod1", c->pods);
	if (!mkdir(c->node, 0755) && !mkdir(c->kubelet, 0755) && !mkdir(c->pods, 0755) &&
	    !mkdir(c->pod, 0755))
		return true;
	cgroups_remove(c);
	return false;
}

static enum test_result check_who(const struct cgroups *c, const char *given, bool good)
{
	struct error err = {0};
	struct kubelet k = {0};

	CHECK_EQ(kubelet_check(given, c->node, &err), good ? 0 : -EINVAL);
	CHECK_EQ(kubelet_find(given, c->node, &k, &err), 0);
	CHECK_EQ(k.source, good ? KUBELET_GIVEN : KUBELET_UNKNOWN);
	CHECK_EQ(k.cgroup_id != 0, good);
	CHECK_STR(k.cgroup, good ? given : "");
	return TEST_OK;
}

TEST(a_cgroup_that_holds_the_pods_is_not_kubelets)
{
	struct error err = {0};
	char indirect[PATH_MAX + 96];
	struct cgroups c;
	bool good;

	if (!cgroups_make(&c))
		return TEST_SKIP;
	snprintf(indirect, sizeof(indirect), "%s/..", c.kubelet);
	good = check_who(&c, c.kubelet, true) == TEST_OK &&
	       check_who(&c, c.pods, false) == TEST_OK && check_who(&c, c.node, false) == TEST_OK &&
	       check_who(&c, c.mount, false) == TEST_OK &&
	       check_who(&c, indirect, false) == TEST_OK;
	/* While there is no kubepods, pods are looked for in all of the node's cgroup. */
	rmdir(c.pod);
	rmdir(c.pods);
	good = good && check_who(&c, c.kubelet, true) == TEST_OK &&
	       check_who(&c, c.node, false) == TEST_OK;
	rmdir(c.kubelet);
	good = good && !kubelet_check(c.kubelet, c.node, &err) && !kubelet_check("", c.node, &err);
	cgroups_remove(&c);
	CHECK(good);
	return TEST_OK;
}
