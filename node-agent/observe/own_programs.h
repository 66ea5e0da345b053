/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_OWN_PROGRAMS_H
#define SOCKMESH_OWN_PROGRAMS_H

/* Which BPF programs of the kernel are ours: those behind the links pinned below our directory. */
#include <stddef.h>
#include <stdint.h>

struct error;

/* *ret is the caller's to free. No directory is no programs. */
int own_programs(const char *bpffs_dir, uint32_t **ret, size_t *ret_n, struct error *err);

#endif
