/* SPDX-License-Identifier: Apache-2.0 */
#include "locked_memory.h"

#include "error.h"
#include "scoped.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <linux/types.h>
#include <sys/resource.h>

enum { PAGE = 4096, LARGE = 2048 /* pages: 8 MiB */ };

static int create_map(unsigned pages)
{
	return bpf_map_create(BPF_MAP_TYPE_ARRAY, "sockmesh_probe", sizeof(__u32), PAGE, pages,
			      NULL);
}

/* Where bpf() is refused altogether, it is so for a small map too. */
int locked_memory_check(struct error *err)
{
	scoped_fd int large = create_map(LARGE), small = -1;
	struct rlimit limit = {0};

	if (large >= 0 || errno != EPERM)
		return 0;
	small = create_map(1);
	if (small < 0 || getrlimit(RLIMIT_MEMLOCK, &limit))
		return 0;
	return error_set(err, EPERM,
			 "locked memory is limited to %llu KiB, which this kernel counts maps "
			 "against: raise RLIMIT_MEMLOCK or grant CAP_SYS_RESOURCE",
			 (unsigned long long)limit.rlim_cur / 1024);
}
