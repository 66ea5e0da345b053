/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_TEST_IDENTITY_H
#define SOCKMESH_TEST_IDENTITY_H

/* Becoming another user, with no supplementary groups, and perhaps with CAP_NET_ADMIN kept. */
#include <err.h>
#include <grp.h>
#include <linux/capability.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* What a transparent proxy has; ambient, so that the programs which it executes have it too. */
static inline void identity_raise_net_admin(void)
{
	struct __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3};
	struct __user_cap_data_struct caps[2] = {{.effective = 1u << CAP_NET_ADMIN,
						  .permitted = 1u << CAP_NET_ADMIN,
						  .inheritable = 1u << CAP_NET_ADMIN}};

	if (syscall(SYS_capset, &header, caps) < 0 ||
	    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_NET_ADMIN, 0, 0) < 0)
		err(1, "keep CAP_NET_ADMIN");
}

/* -1: that id stays as it is. */
static inline void identity_become(long uid, long gid, bool net_admin)
{
	if ((gid >= 0 || uid >= 0) && setgroups(0, NULL) < 0)
		err(1, "setgroups");
	if (gid >= 0 && setresgid((gid_t)gid, (gid_t)gid, (gid_t)gid) < 0)
		err(1, "setresgid");
	if (net_admin && prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0)
		err(1, "PR_SET_KEEPCAPS");
	if (uid >= 0 && setresuid((uid_t)uid, (uid_t)uid, (uid_t)uid) < 0)
		err(1, "setresuid");
	if (net_admin)
		identity_raise_net_admin();
}

#endif
