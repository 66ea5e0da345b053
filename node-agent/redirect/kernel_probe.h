/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_KERNEL_PROBE_H
#define SOCKMESH_KERNEL_PROBE_H

/*
 * What this kernel and node can do, found by trying (program types, helpers, attach types, a
 * getsockopt, transactions of nf_tables, runs of iptables), never by version number; and who else
 * is on our cgroups. Leaves nothing behind.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;
struct netfilter_probe;

struct probe_facility {
	const char *name;    /* "cgroup/connect4", "netns cookie", "BTF", ... */
	const char *how;     /* how it was tried, in words */
	const char *without; /* what follows when it is missing */
	const char *engine;  /* that it is for */
	bool required;	     /* by that engine */
	bool found;
	char detail[160]; /* errno text or what was seen */
};

struct foreign_program { /* on the cgroup that we attach to, an ancestor or a descendant of it */
	char attach_type[32], name[32], cgroup[512];
	uint32_t id;
	bool runs_before_ours;
};

struct kernel_probe {
	char release[128];
	struct probe_facility *facilities;
	size_t n_facilities;
	struct foreign_program *foreign;
	size_t n_foreign;
	char cgroup[512];  /* where programs attach, "" when there is no cgroup2 */
	bool ebpf;	   /* everything required is there */
	char summary[256]; /* one line: the consequence */
};

/* our_program_ids: to tell our programs from others'. -errno only when it could not run at all. */
int kernel_probe_run(const char *cgroup_root, const char *bpffs_dir,
		     const uint32_t *our_program_ids, size_t n_ours, struct kernel_probe **ret,
		     struct error *err);
void kernel_probe_free(struct kernel_probe *probe);

/* A new reference. netfilter: what netfilter_probe_run() found, NULL: it could not run. */
json_t *kernel_probe_json(const struct kernel_probe *probe,
			  const struct netfilter_probe *netfilter);

#endif
