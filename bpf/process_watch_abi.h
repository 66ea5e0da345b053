/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_PROCESS_WATCH_ABI_H
#define SOCKMESH_PROCESS_WATCH_ABI_H

/* Types that the watch over new processes shares with user space. Nothing of it is ever pinned. */
#include <linux/types.h>

enum { PROCESS_PLACES = 4096, PROCESS_NOTICES = 64 * 1024 };

/* Where a process runs: one notice for each, not one for each process. */
struct process_place {
	__u64 cgroup; /* its id in cgroup2 */
	__u32 netns;  /* inode number */
	__u32 pad;
};

struct process_notice {
	struct process_place place;
	__u32 pid; /* in the initial pid namespace */
	__u32 pad;
};

_Static_assert(sizeof(struct process_place) == 16, "process_place layout");
_Static_assert(sizeof(struct process_notice) == 24, "process_notice layout");

#endif
