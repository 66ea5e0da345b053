/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What outlives the agent, below its directory of bpffs:
 *
 *	accelerate-v1/maps/NAME		one map; v1 is ACCELERATE_ABI_VERSION, with "-inode" where
 *					namespaces are numbered by inode
 *	accelerate-v1/links/PROGRAM	one program on the pods' cgroup
 *
 * The map of sockets is never emptied, nor made anew while a socket is in it: a socket that leaves
 * the map loses what it has received the short way and not read yet. A version whose turn is over
 * is told to stop, keeps its programs until the last of its sockets has been closed, and then goes.
 */
#include "accelerate_guards.h"
#include "accelerate_private.h"
#include "ebpf_pins.h"
#include "error.h"
#include "log.h"
#include "scoped.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
	PODS_MIN =
		4096, /* the same for any usual --max-pods: a map that is in use keeps its size */
	ADDRESSES_PER_POD = 4,
	KEY_MAX = 64,
	NAME_LENGTH_MAX = 64,
};

#define DIRECTORY_PREFIX "accelerate-v"

/* ---- paths ---------------------------------------------------------------------------------- */

static void own_name(const struct accelerate *a, char ret[static NAME_LENGTH_MAX])
{
	snprintf(ret, NAME_LENGTH_MAX, DIRECTORY_PREFIX "%d%s", ACCELERATE_ABI_VERSION,
		 a->host.netns_by_inode ? "-inode" : "");
}

static void path_in(const char *bpffs_dir, const char *name, const char *part, const char *file,
		    char ret[static ACCELERATE_PATH_MAX])
{
	snprintf(ret, ACCELERATE_PATH_MAX, "%.250s/%.64s%s%s%s%.64s", bpffs_dir, name,
		 *part ? "/" : "", part, *file ? "/" : "", file);
}

static void own_path(const struct accelerate *a, const char *part, const char *file,
		     char ret[static ACCELERATE_PATH_MAX])
{
	char name[NAME_LENGTH_MAX];

	own_name(a, name);
	path_in(a->cfg.bpffs_dir, name, part, file, ret);
}

static int make_directories(const struct accelerate *a, struct error *err)
{
	static const char *const parts[] = {"", "maps", "links"};
	char path[ACCELERATE_PATH_MAX];

	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		own_path(a, parts[i], "", path);
		if (mkdir(path, 0700) < 0 && errno != EEXIST)
			return error_set(err, errno, "create %s", path);
	}
	return 0;
}

/* ---- maps ----------------------------------------------------------------------------------- */

static int map_info(int fd, struct bpf_map_info *ret)
{
	__u32 size = sizeof(*ret);

	memset(ret, 0, sizeof(*ret));
	return bpf_obj_get_info_by_fd(fd, ret, &size) ? -errno : 0;
}

/* -1: not there. */
static int open_map(const char *bpffs_dir, const char *name, const char *map)
{
	char path[ACCELERATE_PATH_MAX];

	path_in(bpffs_dir, name, "maps", map, path);
	return bpf_obj_get(path);
}

static bool is_internal(const struct bpf_map *map)
{
	return bpf_map__is_internal(map) || strchr(bpf_map__name(map), '.');
}

static struct bpf_map *host_map(const struct accelerate *a, const struct bpf_map *map)
{
	return bpf_object__find_map_by_name(a->host.datapath, bpf_map__name(map));
}

static int open_own_map(const struct accelerate *a, const struct bpf_map *map)
{
	char name[NAME_LENGTH_MAX];

	own_name(a, name);
	return open_map(a->cfg.bpffs_dir, name, bpf_map__name(map));
}

static bool same_layout(const struct bpf_map *map, const struct bpf_map_info *info)
{
	return info->type == bpf_map__type(map) && info->key_size == bpf_map__key_size(map) &&
	       info->value_size == bpf_map__value_size(map) &&
	       info->map_flags == bpf_map__map_flags(map);
}

static bool all_pinned_fit(const struct accelerate *a)
{
	struct bpf_map *map;

	bpf_object__for_each_map (map, a->skel->obj) {
		struct bpf_map_info info;
		scoped_fd int fd = -1;

		if (is_internal(map) || host_map(a, map))
			continue;
		fd = open_own_map(a, map);
		if (fd >= 0 && (map_info(fd, &info) || !same_layout(map, &info)))
			return false;
	}
	return true;
}

/*
 * Pins of our own version with another layout, as of a build on the way to a release. They become a
 * version of their own, which is let run out.
 */
static int set_misfits_aside(const struct accelerate *a, struct error *err)
{
	char from[ACCELERATE_PATH_MAX], to[ACCELERATE_PATH_MAX + 8];

	own_path(a, "", "", from);
	for (int i = 0; i < 100; i++) {
		/* bpffs refuses names with a dot. */
		snprintf(to, sizeof(to), "%s-old%d", from, i);
		if (access(to, F_OK) == 0)
			continue;
		if (rename(from, to) < 0)
			break;
		log_write(LOG_WARN,
			  "the accelerator that is pinned has other maps: it is let run "
			  "out beside the new one",
			  "pins", to, NULL);
		return make_directories(a, err);
	}
	return error_set(err, errno, "set %s aside", from);
}

int accelerate_pins_map(const struct accelerate *a, const char *name, size_t key_size,
			size_t value_size)
{
	char version[NAME_LENGTH_MAX];
	struct bpf_map_info info;
	scoped_fd int fd = -1;

	own_name(a, version);
	fd = open_map(a->cfg.bpffs_dir, version, name);
	if (fd < 0 || map_info(fd, &info) || info.key_size != key_size ||
	    info.value_size != value_size)
		return -1;
	return take_fd(&fd);
}

/* What is in it is in use: the map stays as large as it was made. */
static void take_size(struct accelerate *a, const struct bpf_map *map,
		      const struct bpf_map_info *info)
{
	char entries[16], asked[16];

	if (info->max_entries >= bpf_map__max_entries(map))
		return;
	if (map == a->skel->maps.accel_sockets)
		a->max_sockets = info->max_entries;
	snprintf(entries, sizeof(entries), "%u", info->max_entries);
	snprintf(asked, sizeof(asked), "%u", bpf_map__max_entries(map));
	log_write(
		LOG_WARN,
		"a map of the accelerator is in use and smaller than asked for: it stays so until "
		"an agent has run with --accelerate off and its last socket was closed",
		"map", bpf_map__name(map), "entries", entries, "asked", asked, NULL);
}

static int share_map(struct accelerate *a, struct bpf_map *map, struct error *err)
{
	struct bpf_map *shared = host_map(a, map);
	struct bpf_map_info info;
	scoped_fd int fd = -1;

	if (shared) {
		if (bpf_map__reuse_fd(map, bpf_map__fd(shared)))
			return error_set(err, errno, "share map %s", bpf_map__name(map));
		return 0;
	}
	fd = open_own_map(a, map);
	if (fd < 0)
		return 0;
	if (!map_info(fd, &info))
		take_size(a, map, &info);
	if (bpf_map__reuse_fd(map, fd))
		return error_set(err, errno, "take over the pinned map %s", bpf_map__name(map));
	return 0;
}

static int share_maps(struct accelerate *a, struct error *err)
{
	struct bpf_map *map;
	int r = 0;

	if (!all_pinned_fit(a))
		r = set_misfits_aside(a, err);
	if (r)
		return r;
	bpf_object__for_each_map (map, a->skel->obj) {
		r = is_internal(map) ? 0 : share_map(a, map, err);
		if (r)
			return r;
	}
	return 0;
}

static int keep_maps(const struct accelerate *a, struct error *err)
{
	struct bpf_map *map;

	bpf_object__for_each_map (map, a->skel->obj) {
		char path[ACCELERATE_PATH_MAX];

		if (is_internal(map) || host_map(a, map))
			continue;
		own_path(a, "maps", bpf_map__name(map), path);
		if (access(path, F_OK) < 0 && bpf_obj_pin(bpf_map__fd(map), path))
			return error_set(err, errno, "pin %s", path);
	}
	return 0;
}

/* ---- programs ------------------------------------------------------------------------------- */

static uint32_t at_least(uint32_t n, uint32_t min)
{
	return n < min ? min : n;
}

static int set_sizes(struct accelerate *a, struct error *err)
{
	const struct accelerate_config *cfg = &a->cfg;
	struct accelerate_bpf *s = a->skel;
	uint32_t pods = at_least(cfg->max_pods, PODS_MIN);
	const struct {
		struct bpf_map *map;
		uint32_t entries;
	} sizes[] = {
		{s->maps.accel_pods, pods},
		{s->maps.accel_usage, pods + 1},
		{s->maps.accel_addresses, pods * ADDRESSES_PER_POD},
		{s->maps.accel_sockets, cfg->max_sockets},
		{s->maps.accel_ends, cfg->max_sockets},
		{s->maps.accel_carried, cfg->max_sockets},
	};

	for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++)
		if (bpf_map__set_max_entries(sizes[i].map, sizes[i].entries))
			return error_set(err, errno, "size map %s", bpf_map__name(sizes[i].map));
	return 0;
}

static void set_knobs(struct accelerate *a)
{
	const struct accelerate_config *cfg = &a->cfg;

	a->skel->rodata->max_sockets = a->max_sockets;
	a->skel->rodata->max_sockets_per_pod = cfg->max_sockets_per_pod;
	a->skel->rodata->max_bytes = cfg->max_bytes;
	a->skel->rodata->max_messages = cfg->max_messages;
	a->skel->rodata->budget = cfg->budget;
	a->skel->rodata->pod_budget = cfg->pod_budget;
	a->skel->rodata->learning = cfg->learning;
	a->skel->rodata->guards = accelerate_guards();
	a->skel->rodata->netns_by_inode = a->host.netns_by_inode;
	a->skel->rodata->rmem_is_exact = a->probe.results[TEST_MEMORY].finding == FINDING_AS_TCP &&
					 a->probe.results[TEST_ACCOUNTED].finding == FINDING_AS_TCP;
}

static bool is_on_cgroup(const struct bpf_program *prog)
{
	enum bpf_prog_type type = bpf_program__type(prog);

	return type == BPF_PROG_TYPE_SOCK_OPS || type == BPF_PROG_TYPE_CGROUP_SOCKOPT ||
	       type == BPF_PROG_TYPE_CGROUP_SOCK;
}

typedef int (*link_fn)(const struct accelerate *a, const struct bpf_program *prog, const char *path,
		       uint64_t cgroup_ino, struct error *err);

/* For each program that belongs on the pods' cgroup, until one fails; path is its link's pin. */
static int each_link(const struct accelerate *a, link_fn fn, struct error *err)
{
	struct bpf_program *prog;
	struct stat st;

	if (fstat(a->cgroup_fd, &st) < 0)
		return error_set(err, errno, "stat the pods' cgroup");
	bpf_object__for_each_program (prog, a->skel->obj) {
		char path[ACCELERATE_PATH_MAX];
		int r;

		if (!is_on_cgroup(prog) || !bpf_program__autoload(prog))
			continue;
		own_path(a, "links", bpf_program__name(prog), path);
		r = fn(a, prog, path, st.st_ino, err);
		if (r)
			return r;
	}
	return 0;
}

static int attach_link(const struct accelerate *a, const struct bpf_program *prog, const char *path,
		       uint64_t cgroup_ino, struct error *err)
{
	return ebpf_pins_attach(path, prog, a->cgroup_fd, cgroup_ino, err);
}

static int attach_verdict(const struct accelerate *a, struct error *err)
{
	if (bpf_prog_attach(bpf_program__fd(a->skel->progs.accelerate_verdict),
			    bpf_map__fd(a->skel->maps.accel_sockets), BPF_SK_MSG_VERDICT, 0))
		return error_set(err, errno, "attach accelerate_verdict");
	return 0;
}

/*
 * The verdict first: a socket that enters brings the program that the map has at that moment, and
 * keeps it until it is closed.
 */
static int attach(struct accelerate *a, struct error *err)
{
	int r = attach_verdict(a, err);

	return r ? r : each_link(a, attach_link, err);
}

int accelerate_pins_brake(struct accelerate *a, bool stopped, struct error *err)
{
	struct accel_control control = {.stopped = stopped};
	__u32 zero = 0;

	if (bpf_map_update_elem(bpf_map__fd(a->skel->maps.accel_control), &zero, &control, BPF_ANY))
		return error_set(err, errno, "%s the accelerator", stopped ? "stop" : "start");
	return 0;
}

int accelerate_pins_load(struct accelerate *a, struct error *err)
{
	int r = make_directories(a, err);

	if (r)
		return r;
	a->max_sockets = a->cfg.max_sockets;
	a->skel = accelerate_bpf__open();
	if (!a->skel)
		return error_set(err, errno, "open the accelerator's programs");
	r = set_sizes(a, err);
	if (!r)
		r = share_maps(a, err);
	if (r)
		return r;
	set_knobs(a);
	r = accelerate_bpf__load(a->skel);
	if (r)
		return error_set(err, -r, "load the accelerator's programs");
	r = keep_maps(a, err);
	if (!r)
		r = attach(a, err);
	return r ? r : accelerate_pins_brake(a, false, err);
}

static int check_link(const struct accelerate *a, const struct bpf_program *prog, const char *path,
		      uint64_t cgroup_ino, struct error *ret_why)
{
	(void)a;
	(void)prog;
	return ebpf_pins_check(path, cgroup_ino, NULL, ret_why);
}

/*
 * Without the verdict whatever enters stays on TCP until it is closed, and nothing else shows it.
 * Linux says since 5.18 which program a map of sockets has; before, to attach ours once more is as
 * cheap as to ask, and puts the same one in its own place.
 */
static int check_verdict(const struct accelerate *a, struct error *ret_why)
{
	__u32 id = 0, n = 1, size = sizeof(struct bpf_prog_info);
	struct bpf_prog_info own = {0};

	if (bpf_prog_query(bpf_map__fd(a->skel->maps.accel_sockets), BPF_SK_MSG_VERDICT, 0, NULL,
			   &id, &n))
		return attach_verdict(a, ret_why);
	if (bpf_obj_get_info_by_fd(bpf_program__fd(a->skel->progs.accelerate_verdict), &own, &size))
		return error_set(ret_why, errno, "look at accelerate_verdict");
	if (!n)
		return error_set(ret_why, ENOENT, "accelerate_verdict was detached");
	return id == own.id ? 0 : error_set(ret_why, EEXIST, "accelerate_verdict was replaced");
}

static int check_maps(const struct accelerate *a, struct error *ret_why)
{
	struct bpf_map *map;

	bpf_object__for_each_map (map, a->skel->obj) {
		char path[ACCELERATE_PATH_MAX];

		own_path(a, "maps", bpf_map__name(map), path);
		if (!is_internal(map) && !host_map(a, map) && access(path, F_OK) < 0)
			return error_set(ret_why, ENODEV, "map %s is gone", path);
	}
	return 0;
}

static int check_brake(const struct accelerate *a, struct error *ret_why)
{
	struct accel_control control = {0};
	__u32 zero = 0;

	if (!bpf_map_lookup_elem(bpf_map__fd(a->skel->maps.accel_control), &zero, &control) &&
	    control.stopped)
		return error_set(ret_why, ECANCELED, "the accelerator was stopped");
	return 0;
}

int accelerate_pins_heal(struct accelerate *a, struct error *err)
{
	struct error why = {0};
	int r = each_link(a, check_link, &why);

	/* What ended meanwhile was not seen to end. */
	if (r)
		a->recount = true;
	else
		r = check_maps(a, &why);
	if (!r)
		r = check_verdict(a, &why);
	if (!r)
		r = check_brake(a, &why);
	if (!r)
		return 0;
	/* The directories too may have been removed. */
	r = make_directories(a, err);
	if (!r)
		r = keep_maps(a, err);
	if (!r)
		r = attach(a, err);
	if (!r)
		r = accelerate_pins_brake(a, false, err);
	if (r)
		return error_wrap(err, "%s, attaching again", why.text);
	log_error(LOG_WARN, &why,
		  "somebody else changed the accelerator: it is attached again and goes on", NULL);
	return 0;
}

/* ---- the end -------------------------------------------------------------------------------- */

static void stop(const char *bpffs_dir, const char *name)
{
	scoped_fd int fd = open_map(bpffs_dir, name, "accel_control");
	scoped_free __u32 *control = NULL;
	struct bpf_map_info info;
	__u32 zero = 0;

	/* The first word, whatever a version has behind it. */
	if (fd < 0 || map_info(fd, &info) || info.key_size != sizeof(zero) ||
	    info.value_size < sizeof(*control))
		return;
	control = calloc(1, info.value_size);
	if (!control || bpf_map_lookup_elem(fd, &zero, control))
		return;
	*control = 1;
	bpf_map_update_elem(fd, &zero, control, BPF_ANY);
}

static size_t count_sockets(const char *bpffs_dir, const char *name, size_t max)
{
	scoped_fd int fd = open_map(bpffs_dir, name, "accel_sockets");
	unsigned char key[KEY_MAX];
	struct bpf_map_info info;
	size_t n = 0;

	if (fd < 0 || map_info(fd, &info) || info.key_size > sizeof(key))
		return 0;
	for_each_accel_key(fd, key)
	{
		if (++n == max)
			break;
	}
	return n;
}

/* Links first, so that nothing enters a map that is about to go. */
static int remove_version(const char *bpffs_dir, const char *name, struct error *err)
{
	static const char *const parts[] = {"links", "maps"};
	char path[ACCELERATE_PATH_MAX];

	for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
		int r;

		path_in(bpffs_dir, name, parts[i], "", path);
		r = ebpf_pins_remove_directory(path, err);
		if (r)
			return r;
	}
	path_in(bpffs_dir, name, "", "", path);
	if (rmdir(path) < 0 && errno != ENOENT)
		return error_set(err, errno, "remove %s", path);
	return 0;
}

/*
 * Each version's directory but `a`'s own. Their names are read first: the function may remove its
 * directory, and what readdir() then returns is not said anywhere.
 */
typedef int (*version_fn)(const char *bpffs_dir, const char *name, void *arg, struct error *err);
static int for_each_version(const char *bpffs_dir, const struct accelerate *a, version_fn fn,
			    void *arg, struct error *err)
{
	enum { VERSIONS_MAX = 128 };
	char own[NAME_LENGTH_MAX] = "", (*names)[NAME_LENGTH_MAX];
	scoped_dir DIR *dir = opendir(bpffs_dir);
	struct dirent *entry;
	size_t n = 0;
	int r = 0;

	if (!dir)
		return errno == ENOENT ? 0 : error_set(err, errno, "open %s", bpffs_dir);
	names = calloc(VERSIONS_MAX, sizeof(*names));
	if (!names)
		return error_set(err, ENOMEM, "list %s", bpffs_dir);
	if (a && a->skel)
		own_name(a, own);
	while (n < VERSIONS_MAX && (entry = readdir(dir)))
		if (!strncmp(entry->d_name, DIRECTORY_PREFIX, strlen(DIRECTORY_PREFIX)) &&
		    strlen(entry->d_name) < NAME_LENGTH_MAX && strcmp(entry->d_name, own) != 0)
			memcpy(names[n++], entry->d_name, strlen(entry->d_name) + 1);
	for (size_t i = 0; i < n; i++) {
		struct error why = {0};

		if (fn(bpffs_dir, names[i], arg, &why) && !r) {
			*err = why;
			r = -err->code;
		}
	}
	free(names);
	return r;
}

static int stop_version(const char *bpffs_dir, const char *name, void *arg, struct error *err)
{
	(void)arg;
	(void)err;
	stop(bpffs_dir, name);
	return 0;
}

void accelerate_pins_stop(const char *bpffs_dir, const struct accelerate *a)
{
	struct error ignored = {0};

	for_each_version(bpffs_dir, a, stop_version, NULL, &ignored);
}

static int retire_version(const char *bpffs_dir, const char *name, void *arg, struct error *err)
{
	size_t *left = arg;

	if (count_sockets(bpffs_dir, name, 1)) {
		(*left)++;
		return 0;
	}
	return remove_version(bpffs_dir, name, err);
}

int accelerate_pins_retire(const char *bpffs_dir, const struct accelerate *a, size_t *ret_left,
			   struct error *err)
{
	size_t left = 0;
	int r = for_each_version(bpffs_dir, a, retire_version, &left, err);

	*ret_left = left;
	return r;
}

static int remove_counted(const char *bpffs_dir, const char *name, void *arg, struct error *err)
{
	size_t *sockets = arg;

	*sockets += count_sockets(bpffs_dir, name, SIZE_MAX);
	return remove_version(bpffs_dir, name, err);
}

int accelerate_pins_remove(const char *bpffs_dir, size_t *ret_sockets, struct error *err)
{
	size_t sockets = 0;
	int r = for_each_version(bpffs_dir, NULL, remove_counted, &sockets, err);

	*ret_sockets = sockets;
	return r;
}
