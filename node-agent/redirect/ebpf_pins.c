/* SPDX-License-Identifier: Apache-2.0 */
#include "ebpf_pins.h"

#include "error.h"
#include "lock_file.h"
#include "scoped.h"
#include "sockmesh_abi.h"

#include <bpf/bpf.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define SYSTEM_BPFFS "/sys/fs/bpf"

/* ---- directories ---------------------------------------------------------------------------- */

static bool is_bpffs(const char *path)
{
	struct statfs fs;

	return !statfs(path, &fs) && fs.f_type == BPF_FS_MAGIC;
}

static int make_directory(const char *path, struct error *err)
{
	if (mkdir(path, 0700) < 0 && errno != EEXIST)
		return error_set(err, errno, "create %s", path);
	return 0;
}

static int make_directories(const char *path, struct error *err)
{
	char part[PIN_PATH_MAX];
	int r;

	snprintf(part, sizeof(part), "%s", path);
	for (char *slash = strchr(part + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
		*slash = '\0';
		r = make_directory(part, err);
		if (r)
			return r;
		*slash = '/';
	}
	return make_directory(part, err);
}

static int mount_bpffs(const char *where, struct error *err)
{
	if (mount("bpf", where, "bpf", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=0700") < 0)
		return error_set(err, errno, "mount bpffs on %s", where);
	return 0;
}

static bool is_below(const char *path, const char *directory)
{
	size_t n = strlen(directory);

	return !strncmp(path, directory, n) && (path[n] == '/' || !path[n]);
}

/* The name of the maps' directory. */
static void maps_name(const struct ebpf_pins *pins, char *ret, size_t size)
{
	snprintf(ret, size, "maps-v%d%s", SOCKMESH_ABI_VERSION, pins->by_inode ? "-inode" : "");
}

static void map_path(const struct ebpf_pins *pins, const char *name, char ret[static PIN_PATH_MAX])
{
	char maps[32];

	maps_name(pins, maps, sizeof(maps));
	snprintf(ret, PIN_PATH_MAX, "%s/%s/%s", pins->root, maps, name);
}

int ebpf_pins_open(const char *bpffs_dir, bool by_inode, struct ebpf_pins *ret, struct error *err)
{
	static const char *const parts[] = {"links", "pods"};
	char path[PIN_PATH_MAX];
	int r = 0;

	if (strlen(bpffs_dir) >= sizeof(ret->root))
		return error_set(err, ENAMETOOLONG, "--bpffs-dir %.64s...", bpffs_dir);
	if (is_below(bpffs_dir, SYSTEM_BPFFS) && !is_bpffs(SYSTEM_BPFFS))
		r = mount_bpffs(SYSTEM_BPFFS, err);
	if (!r)
		r = make_directories(bpffs_dir, err);
	if (!r && !is_bpffs(bpffs_dir))
		r = mount_bpffs(bpffs_dir, err);
	if (r)
		return r;
	snprintf(ret->root, sizeof(ret->root), "%s", bpffs_dir);
	ret->by_inode = by_inode;
	for (size_t i = 0; !r && i < sizeof(parts) / sizeof(parts[0]); i++) {
		snprintf(path, sizeof(path), "%s/%s", ret->root, parts[i]);
		r = make_directory(path, err);
	}
	map_path(ret, "", path);
	return r ? r : make_directory(path, err);
}

int ebpf_pins_lock(const char *bpffs_dir, int *ret_fd, struct error *err)
{
	scoped_fd int fd = open(bpffs_dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	int r;

	if (fd < 0)
		return error_set(err, errno, "open %s", bpffs_dir);
	r = lock_file_soon(fd);
	if (r)
		return error_set(err, r == -EWOULDBLOCK ? EBUSY : -r,
				 "another agent uses --bpffs-dir %s", bpffs_dir);
	*ret_fd = take_fd(&fd);
	return 0;
}

/* ---- maps ----------------------------------------------------------------------------------- */

int ebpf_pins_map(const struct ebpf_pins *pins, const char *name, int *ret_fd)
{
	char path[PIN_PATH_MAX];
	int fd;

	map_path(pins, name, path);
	fd = bpf_obj_get(path);
	if (fd < 0)
		return -errno;
	*ret_fd = fd;
	return 0;
}

/* A compiler's constants (.rodata.cst16) and knobs belong to one load of the object. */
static bool is_internal(const struct bpf_map *map)
{
	return bpf_map__is_internal(map) || strchr(bpf_map__name(map), '.');
}

static bool same_layout(const struct bpf_map *map, const struct bpf_map_info *info)
{
	return info->type == bpf_map__type(map) && info->key_size == bpf_map__key_size(map) &&
	       info->value_size == bpf_map__value_size(map) &&
	       info->map_flags == bpf_map__map_flags(map);
}

static int map_info(int fd, struct bpf_map_info *ret)
{
	__u32 size = sizeof(*ret);

	memset(ret, 0, sizeof(*ret));
	return bpf_obj_get_info_by_fd(fd, ret, &size) ? -errno : 0;
}

int ebpf_pins_reuse_maps(const struct ebpf_pins *pins, struct bpf_object *obj, struct error *err)
{
	struct bpf_map *map;

	bpf_object__for_each_map (map, obj) {
		struct bpf_map_info info;
		scoped_fd int fd = -1;

		if (is_internal(map) || ebpf_pins_map(pins, bpf_map__name(map), &fd))
			continue;
		if (map_info(fd, &info) || !same_layout(map, &info) ||
		    info.max_entries != bpf_map__max_entries(map))
			continue;
		if (bpf_map__reuse_fd(map, fd))
			return error_set(err, errno, "take over the pinned map %s",
					 bpf_map__name(map));
	}
	return 0;
}

/*
 * Hand-overs last as long as a handshake and old programs go on taking them out of the old map, so
 * a copy would keep entries that nobody removes any more.
 */
static bool can_copy(const struct bpf_map_info *info)
{
	return strcmp(info->name, "handovers") != 0 && strcmp(info->name, "gauges") != 0 &&
	       (info->type == BPF_MAP_TYPE_HASH || info->type == BPF_MAP_TYPE_LPM_TRIE ||
		info->type == BPF_MAP_TYPE_PERCPU_HASH);
}

/* Entry by entry; a key that disappears on the way ends its walk early, so it starts anew. */
static int copy_entries(int from, int to, const struct bpf_map_info *info, struct error *err)
{
	bool per_cpu = info->type == BPF_MAP_TYPE_PERCPU_HASH;
	size_t value_size = (info->value_size + 7ul) / 8 * 8;
	scoped_free void *key = calloc(1, info->key_size);
	scoped_free void *next = calloc(1, info->key_size);
	scoped_free void *value =
		calloc(per_cpu ? (size_t)libbpf_num_possible_cpus() : 1, value_size);
	void *at = NULL;

	if (!key || !next || !value)
		return error_set(err, ENOMEM, "copy map %s", info->name);
	while (!bpf_map_get_next_key(from, at, next)) {
		if (!bpf_map_lookup_elem(from, next, value) &&
		    bpf_map_update_elem(to, next, value, BPF_ANY))
			return error_set(err, errno, "copy map %s to its new size", info->name);
		memcpy(key, next, info->key_size);
		at = key;
	}
	return 0;
}

static int keep_map(const struct ebpf_pins *pins, struct bpf_map *map, bool *ret_fresh,
		    struct error *err)
{
	char path[PIN_PATH_MAX], new_path[PIN_PATH_MAX + 8];
	struct bpf_map_info old, ours;
	scoped_fd int fd = -1;
	int r;

	map_path(pins, bpf_map__name(map), path);
	*ret_fresh = ebpf_pins_map(pins, bpf_map__name(map), &fd) != 0;
	if (!*ret_fresh && !map_info(fd, &old)) {
		if (!map_info(bpf_map__fd(map), &ours) && ours.id == old.id)
			return 0;
		*ret_fresh = !same_layout(map, &old) || !can_copy(&old);
		if (!*ret_fresh) {
			r = copy_entries(fd, bpf_map__fd(map), &old, err);
			if (r == -E2BIG)
				return error_set(err, ENOSPC,
						 "map %s holds more than the new limit of %u: keep "
						 "--max-pods and --max-rule-entries as they were",
						 old.name, bpf_map__max_entries(map));
			if (r)
				return r;
		}
	}
	snprintf(new_path, sizeof(new_path), "%s_new", path);
	unlink(new_path);
	if (bpf_obj_pin(bpf_map__fd(map), new_path) || rename(new_path, path) < 0)
		return error_set(err, errno, "pin %s", path);
	return 0;
}

int ebpf_pins_keep_maps(const struct ebpf_pins *pins, struct bpf_object *obj,
			struct ebpf_fresh_maps *ret, struct error *err)
{
	struct ebpf_fresh_maps fresh = {0};
	struct bpf_map *map;

	bpf_object__for_each_map (map, obj) {
		const char *name = bpf_map__name(map);
		bool is_fresh = false;
		int r;

		if (is_internal(map))
			continue;
		r = keep_map(pins, map, &is_fresh, err);
		if (r)
			return r;
		fresh.pods |= is_fresh && !strcmp(name, "pods");
		fresh.handovers |=
			is_fresh && (!strcmp(name, "handovers") || !strcmp(name, "gauges"));
	}
	*ret = fresh;
	return 0;
}

/* ---- links ---------------------------------------------------------------------------------- */

void ebpf_pins_link_path(const struct ebpf_pins *pins, const char *program,
			 char ret[static PIN_PATH_MAX])
{
	snprintf(ret, PIN_PATH_MAX, "%s/links/%s", pins->root, program);
}

void ebpf_pins_pod_path(const struct ebpf_pins *pins, uint64_t cookie,
			char ret[static PIN_PATH_MAX])
{
	snprintf(ret, PIN_PATH_MAX, "%s/pods/%" PRIu64, pins->root, cookie);
}

static int link_target(int fd, uint64_t *ret_target, uint32_t *ret_prog_id)
{
	struct bpf_link_info info = {0};
	__u32 size = sizeof(info);

	if (bpf_obj_get_info_by_fd(fd, &info, &size))
		return -errno;
	if (info.type != BPF_LINK_TYPE_CGROUP && info.type != BPF_LINK_TYPE_NETNS)
		return -EINVAL;
	/* Both become 0 when the kernel detaches the link because its target has ended. */
	*ret_target =
		info.type == BPF_LINK_TYPE_CGROUP ? info.cgroup.cgroup_id : info.netns.netns_ino;
	*ret_prog_id = info.prog_id;
	return 0;
}

int ebpf_pins_check(const char *path, uint64_t target_ino, uint32_t *ret_prog_id, struct error *err)
{
	uint64_t target = 0;
	uint32_t id = 0;
	scoped_fd int fd = bpf_obj_get(path);

	if (fd < 0)
		return error_set(err, ENODEV, "link %s is gone", path);
	if (link_target(fd, &target, &id))
		return error_set(err, ENODEV, "%s is not a link of ours", path);
	if (!target_ino ? !target : target != target_ino)
		return error_set(err, ENODEV, "link %s is %s", path,
				 target ? "attached elsewhere" : "detached");
	if (ret_prog_id)
		*ret_prog_id = id;
	return 0;
}

enum netns_state ebpf_pins_netns_state(const char *path)
{
	uint64_t target = 0;
	uint32_t id;
	scoped_fd int fd = bpf_obj_get(path);

	if (fd < 0 || link_target(fd, &target, &id))
		return NETNS_UNKNOWN;
	return target ? NETNS_LIVES : NETNS_ENDED;
}

bool ebpf_pins_uses_map(const char *path, int map_fd)
{
	__u32 map_ids[64], size = sizeof(struct bpf_prog_info), prog_id = 0;
	struct bpf_prog_info info = {
		.map_ids = (__u64)(uintptr_t)map_ids,
		.nr_map_ids = sizeof(map_ids) / sizeof(map_ids[0]),
	};
	struct bpf_map_info map;
	uint64_t target;
	scoped_fd int link = bpf_obj_get(path), prog = -1;

	if (link < 0 || link_target(link, &target, &prog_id) || map_info(map_fd, &map))
		return false;
	prog = bpf_prog_get_fd_by_id(prog_id);
	if (prog < 0 || bpf_obj_get_info_by_fd(prog, &info, &size))
		return false;
	for (__u32 i = 0; i < info.nr_map_ids && i < sizeof(map_ids) / sizeof(map_ids[0]); i++)
		if (map_ids[i] == map.id)
			return true;
	return false;
}

/* A link that was pinned under another name first, by an agent that ended before the rename. */
static bool is_half_pinned(const char *name)
{
	size_t n = strlen(name);

	return n > 4 && !strcmp(name + n - 4, "_new");
}

int ebpf_pins_each_pod(const struct ebpf_pins *pins, void (*fn)(uint64_t cookie, void *arg),
		       void *arg)
{
	char path[PIN_PATH_MAX];
	scoped_dir DIR *dir = NULL;
	struct dirent *entry;

	snprintf(path, sizeof(path), "%s/pods", pins->root);
	dir = opendir(path);
	if (!dir)
		return -errno;
	while ((entry = readdir(dir))) {
		char *end;
		uint64_t cookie = strtoull(entry->d_name, &end, 10);

		if (cookie && !*end)
			fn(cookie, arg);
		else if (is_half_pinned(entry->d_name))
			unlinkat(dirfd(dir), entry->d_name, 0);
	}
	return 0;
}

int ebpf_pins_attach(const char *path, const struct bpf_program *prog, int target_fd,
		     uint64_t target_ino, struct error *err)
{
	char new_path[PIN_PATH_MAX + 8];
	struct error ignored;
	scoped_fd int old = -1, link = -1;

	if (!ebpf_pins_check(path, target_ino, NULL, &ignored)) {
		old = bpf_obj_get(path);
		if (old >= 0 && !bpf_link_update(old, bpf_program__fd(prog), NULL))
			return 0;
		/* Another type of program: fall through to a new link. */
	}
	link = bpf_link_create(bpf_program__fd(prog), target_fd,
			       bpf_program__expected_attach_type(prog), NULL);
	if (link < 0)
		return error_set(err, errno, "attach %s", bpf_program__name(prog));
	snprintf(new_path, sizeof(new_path), "%s_new", path);
	unlink(new_path);
	/* Both are attached for a moment; the second lets pass what the first has decided. */
	if (bpf_obj_pin(link, new_path) || rename(new_path, path) < 0)
		return error_set(err, errno, "pin %s", path);
	return 0;
}

/* ---- removal -------------------------------------------------------------------------------- */

int ebpf_pins_remove_directory(const char *path, struct error *err)
{
	scoped_dir DIR *dir = opendir(path);
	struct dirent *entry;

	if (!dir)
		return errno == ENOENT ? 0 : error_set(err, errno, "open %s", path);
	while ((entry = readdir(dir)))
		if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0 &&
		    unlinkat(dirfd(dir), entry->d_name, 0) < 0 && errno != ENOENT)
			return error_set(err, errno, "remove %s/%s", path, entry->d_name);
	if (rmdir(path) < 0 && errno != ENOENT)
		return error_set(err, errno, "remove %s", path);
	return 0;
}

/* keep: the name of the one that stays, "" for none. */
static int remove_map_directories(const char *root, const char *keep, struct error *err)
{
	scoped_dir DIR *dir = opendir(root);
	struct dirent *entry;
	int r = 0;

	if (!dir)
		return errno == ENOENT ? 0 : error_set(err, errno, "open %s", root);
	while (!r && (entry = readdir(dir))) {
		char path[PIN_PATH_MAX];

		if (strncmp(entry->d_name, "maps-v", 6) != 0 || !strcmp(entry->d_name, keep))
			continue;
		snprintf(path, sizeof(path), "%.250s/%.250s", root, entry->d_name);
		r = ebpf_pins_remove_directory(path, err);
	}
	return r;
}

static bool has_program(const struct bpf_object *const objects[], const char *name)
{
	for (; *objects; objects++)
		if (bpf_object__find_program_by_name(*objects, name))
			return true;
	return false;
}

void ebpf_pins_drop_old(const struct ebpf_pins *pins, const struct bpf_object *const objects[])
{
	char path[PIN_PATH_MAX], maps[32];
	struct error ignored;
	struct dirent *entry;
	scoped_dir DIR *dir = NULL;

	maps_name(pins, maps, sizeof(maps));
	remove_map_directories(pins->root, maps, &ignored);
	snprintf(path, sizeof(path), "%s/links", pins->root);
	dir = opendir(path);
	while (dir && (entry = readdir(dir)))
		if (entry->d_name[0] != '.' && !has_program(objects, entry->d_name))
			unlinkat(dirfd(dir), entry->d_name, 0);
}

int ebpf_pins_remove_all(const char *bpffs_dir, struct error *err)
{
	static const char *const parts[] = {"links", "pods"};
	struct stat self, parent;
	char path[PIN_PATH_MAX];
	int r = 0;

	if (access(bpffs_dir, F_OK) < 0)
		return errno == ENOENT ? 0 : error_set(err, errno, "open %s", bpffs_dir);
	if (!is_bpffs(bpffs_dir))
		return 0; /* what we would remove can only be on bpffs */
	/* Links first: without them nothing is captured, whatever the maps say. */
	for (size_t i = 0; !r && i < sizeof(parts) / sizeof(parts[0]); i++) {
		snprintf(path, sizeof(path), "%.400s/%s", bpffs_dir, parts[i]);
		r = ebpf_pins_remove_directory(path, err);
	}
	if (!r)
		r = remove_map_directories(bpffs_dir, "", err);
	if (r)
		return r;
	snprintf(path, sizeof(path), "%.400s/..", bpffs_dir);
	if (!stat(bpffs_dir, &self) && !stat(path, &parent) && self.st_dev != parent.st_dev &&
	    strcmp(bpffs_dir, SYSTEM_BPFFS) != 0 && umount2(bpffs_dir, UMOUNT_NOFOLLOW) < 0 &&
	    errno != EBUSY)
		return error_set(err, errno, "unmount %s", bpffs_dir);
	if (rmdir(bpffs_dir) < 0 && errno != ENOENT && errno != EBUSY && errno != ENOTEMPTY)
		return error_set(err, errno, "remove %s", bpffs_dir);
	return 0;
}
