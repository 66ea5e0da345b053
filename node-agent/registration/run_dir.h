/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_RUN_DIR_H
#define SOCKMESH_RUN_DIR_H

/*
 * The run directory: root's, mode 0700, and held by at most one agent, through a lock on a file in
 * it that ends with the process that took it.
 */
#include <stdint.h>
#include <sys/types.h>

struct error;

#define RUN_DIR_SOCKET	   "agent.sock"
#define RUN_DIR_LOCK	   "agent.lock"
#define RUN_DIR_STATE	   "state.json"
#define RUN_DIR_ACCELERATE "accelerate.json"

/* Makes it when it is not there; its parent must be. Refuses what is not a directory of ours. */
int run_dir_make(const char *dir, struct error *err);

/* -EBUSY: another process holds it, err names its pid. -ENOENT: there is no such directory. */
int run_dir_lock(const char *dir, int *ret_fd, struct error *err);

/* A number that tells the agents of one machine apart by their run directories. */
uint32_t run_dir_instance(const char *dir);

/* Removes our files and then the directory, unless others put something into it. */
int run_dir_remove(const char *dir, struct error *err);

#endif
