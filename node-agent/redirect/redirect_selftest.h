/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_REDIRECT_SELFTEST_H
#define SOCKMESH_REDIRECT_SELFTEST_H

/*
 * Does an open engine really redirect on this node? Two scratch network namespaces joined by a
 * veth pair; in one, a pod that the engine is given; real connections out of it and into it, IPv4
 * and IPv6, and what the proxy's listener sees of them. Leaves nothing behind, whatever happens.
 */
#include <stdbool.h>

struct error;
struct redirect_engine_ops;

struct selftest_result {
	bool passed;
	char detail[200]; /* the first thing that went wrong, or "4 connections in 12 ms" */
};

/*
 * cgroup_dir: where the test's process is put (a child directory is made and removed), NULL for an
 * engine that needs none. Bounded to a few seconds. -errno only when the test could not be set up
 * (no network namespaces, no veth); *ret says then why, and nothing is known about the engine.
 */
int redirect_selftest(const struct redirect_engine_ops *ops, void *state, const char *cgroup_dir,
		      struct selftest_result *ret, struct error *err);

#endif
