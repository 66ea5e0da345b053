/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_LOCKED_MEMORY_H
#define SOCKMESH_LOCKED_MEMORY_H

/*
 * Before Linux 5.11 the memory of BPF maps and programs counts as locked memory of whoever made
 * them. libbpf raises the limit where the kernel needs it, if it may.
 */
struct error;

/*
 * Why large maps cannot be made: -EPERM when it is the limit of locked memory, err naming it. 0
 * when they can be made, or when that is not the reason.
 */
int locked_memory_check(struct error *err);

#endif
