/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_NETNS_H
#define SOCKMESH_NETNS_H

/* Network namespaces by descriptor: identity, ownership, and working inside one. */
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

struct error;

struct netns_id {
	uint64_t cookie; /* its number, see netns_numbered_by_inode() */
	dev_t dev;
	ino_t ino;
};

/* Refuses what is not a network namespace (NSFS_MAGIC, then NS_GET_NSTYPE == CLONE_NEWNET). */
int netns_open(const char *path, int *ret_fd, struct error *err);
int netns_check_fd(int fd, struct error *err);
int netns_identify(int fd, struct netns_id *ret, struct error *err);

/*
 * How this kernel lets us number namespaces: by SO_NETNS_COOKIE (Linux 5.14), which is never used
 * twice, or where there is none by inode number, which is used again as soon as a namespace has
 * ended. Then whoever keeps a number keeps a descriptor of its namespace too. This is the one place
 * that decides; the BPF programs are told.
 */
int netns_numbered_by_inode(bool *ret, struct error *err);

bool netns_is_own(int fd);  /* the namespace that this process itself is in */
bool netns_is_host(int fd); /* the same, or the one that process 1 is in */

/*
 * Runs fn inside the namespace on a thread of its own, so that the caller's namespace never
 * changes; returns fn's result. Sockets that fn opens stay in that namespace.
 */
typedef int (*netns_fn)(void *arg, struct error *err);
int netns_run(int fd, netns_fn fn, void *arg, struct error *err);

/* A new one, with lo down; it ends when the descriptor is closed and nothing runs in it. */
int netns_new(int *ret_fd, struct error *err);

/*
 * Every network namespace that can be found: bound somewhere (mountinfo) or that of a process
 * (/proc/PID/ns/net), each once, not our own and not process 1's. fn gets a descriptor that is
 * closed after it; not 0 ends the walk and is returned. For what is left when no record says whose
 * it is; one open and one stat per process.
 */
typedef int (*netns_visit_fn)(int netns_fd, void *arg, struct error *err);
int netns_each(netns_visit_fn fn, void *arg, struct error *err);

/*
 * Maps a uid or gid of the namespace's owning user namespace to ours (user_namespaces(7)); ids of
 * pods without a user namespace come back unchanged. -ENOENT: not mapped.
 */
int netns_map_ids(int fd, const uint32_t *ids, size_t n, bool groups, uint32_t *ret,
		  struct error *err);

#endif
