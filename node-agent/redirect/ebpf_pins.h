/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_EBPF_PINS_H
#define SOCKMESH_EBPF_PINS_H

/*
 * What stays in the kernel when the agent is gone: maps and links, pinned below one directory of
 * bpffs.
 *
 *	maps-v2/NAME	one map; v2 is SOCKMESH_ABI_VERSION. maps-v2-inode where namespaces are
 *			numbered by inode: the two kinds of number never share a map
 *	links/PROGRAM	one program on the pods' cgroup, or on kubelet's
 *	pods/COOKIE	the inbound program on one pod's network namespace
 *
 * A new agent takes pinned maps over when their layout is its own, and replaces the programs
 * behind the links in place, so no connection sees a moment without them.
 */
#include <bpf/libbpf.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

enum { PIN_PATH_MAX = 512 };

struct ebpf_pins {
	char root[PIN_PATH_MAX - 128];
	bool by_inode; /* see netns_numbered_by_inode() */
};

/*
 * One agent, or one uninstall, at a time: a lock on the directory that ends with the descriptor.
 * -EBUSY: somebody has it; -ENOENT: there is no directory.
 */
int ebpf_pins_lock(const char *bpffs_dir, int *ret_fd, struct error *err);

/* Makes the directories, and mounts bpffs when there is none: on /sys/fs/bpf for paths below it,
 * else on the directory itself. */
int ebpf_pins_open(const char *bpffs_dir, bool by_inode, struct ebpf_pins *ret, struct error *err);

/*
 * Before load: each map of the object (but the internal ones) is the pinned one where that has the
 * same layout and size. After load: pins what is new, having copied what a pinned map of another
 * size holds.
 */
struct ebpf_fresh_maps { /* those that hold nothing of what was pinned before */
	bool pods, handovers /* or their gauges */;
};
int ebpf_pins_reuse_maps(const struct ebpf_pins *pins, struct bpf_object *obj, struct error *err);
int ebpf_pins_keep_maps(const struct ebpf_pins *pins, struct bpf_object *obj,
			struct ebpf_fresh_maps *ret, struct error *err);

/*
 * Once the programs are this agent's: maps of other ABI versions, links of programs it has not.
 * objects: NULL-terminated, those whose programs are linked.
 */
void ebpf_pins_drop_old(const struct ebpf_pins *pins, const struct bpf_object *const objects[]);

/*
 * Puts prog behind the pinned link `path`: in place when the pinned link is on this very target,
 * else by a new link that then takes the pin. target_ino is the cgroup's or namespace's inode.
 */
int ebpf_pins_attach(const char *path, const struct bpf_program *prog, int target_fd,
		     uint64_t target_ino, struct error *err);

/*
 * Is the pinned link there and on this target? -ENODEV with err naming what is not. A target of 0
 * asks whether it is attached anywhere.
 */
int ebpf_pins_check(const char *path, uint64_t target_ino, uint32_t *ret_prog_id,
		    struct error *err);

/* What a pinned link knows of its namespace. Ended is only what the kernel says has ended. */
enum netns_state { NETNS_UNKNOWN, NETNS_LIVES, NETNS_ENDED };
enum netns_state ebpf_pins_netns_state(const char *path);

/* -errno when the directory could not be read. */
int ebpf_pins_each_pod(const struct ebpf_pins *pins, void (*fn)(uint64_t cookie, void *arg),
		       void *arg);

/* Does the program behind the pinned link use this very map? False also when it cannot be told. */
bool ebpf_pins_uses_map(const char *path, int map_fd);

void ebpf_pins_link_path(const struct ebpf_pins *pins, const char *program,
			 char ret[static PIN_PATH_MAX]);
void ebpf_pins_pod_path(const struct ebpf_pins *pins, uint64_t cookie,
			char ret[static PIN_PATH_MAX]);

/* A pinned map, opened for uninstall or recovery. -ENOENT: not there. */
int ebpf_pins_map(const struct ebpf_pins *pins, const char *name, int *ret_fd);

/* With the pins in it. Not there is success. */
int ebpf_pins_remove_directory(const char *path, struct error *err);

/* Unpins everything, removes the directories, and a mount that is on the directory itself. */
int ebpf_pins_remove_all(const char *bpffs_dir, struct error *err);

#endif
