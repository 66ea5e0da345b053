/* SPDX-License-Identifier: Apache-2.0 */
#include "pod_finder.h"

#include "cgroup_pod.h"
#include "error.h"
#include "monotonic.h"
#include "mountinfo.h"
#include "netlink.h"
#include "netns.h"
#include "scoped.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
	CGROUP_TEXT_MAX = 8192, /* a dozen hierarchies, each a path of a few hundred bytes */
	ADDRESSES_MAX = 64,
};

struct wanted {
	struct wanted *next;
	char uid[POD_UID_SIZE];
	struct ip_address *addresses;
	size_t n_addresses;
	uint64_t first_walk; /* that began after it was wanted with these addresses */

	/* the best that the walk has found so far */
	int netns_fd;
	pid_t pid;
	uint64_t started; /* clock ticks after boot */
	char *cgroup;
};

struct seen { /* a namespace that needs no second look in this walk, or is nobody's */
	dev_t dev;
	ino_t ino;
};

struct pod_search {
	char *proc_path;
	DIR *proc;	   /* a walk is under way */
	uint64_t walk;	   /* its number, or the last one's */
	bool again;	   /* and one is to follow */
	struct seen host;  /* our own namespace and process 1's are no pod's */
	struct seen first; /* of process 1 */
	struct wanted *wanted;
	size_t n_wanted;
};

int pod_search_new(const char *proc, struct pod_search **ret, struct error *err)
{
	struct pod_search *search = calloc(1, sizeof(*search));

	if (search)
		search->proc_path = strdup(proc ?: "/proc");
	if (!search || !search->proc_path) {
		free(search);
		return error_set(err, ENOMEM, "search for pods");
	}
	*ret = search;
	return 0;
}

static void forget_candidate(struct wanted *w)
{
	scoped_close(&w->netns_fd);
	w->netns_fd = -1;
	free(w->cgroup);
	w->cgroup = NULL;
}

static void wanted_free(struct wanted *w)
{
	forget_candidate(w);
	free(w->addresses);
	free(w);
}

static void end_walk(struct pod_search *search)
{
	if (search->proc)
		closedir(search->proc);
	search->proc = NULL;
	for (struct wanted *w = search->wanted; w; w = w->next)
		forget_candidate(w);
}

void pod_search_free(struct pod_search *search)
{
	if (!search)
		return;
	end_walk(search);
	while (search->wanted) {
		struct wanted *next = search->wanted->next;

		wanted_free(search->wanted);
		search->wanted = next;
	}
	free(search->proc_path);
	free(search);
}

/* ---- who is wanted -------------------------------------------------------------------------- */

static struct wanted **find_wanted(struct pod_search *search, const char *uid)
{
	struct wanted **link = &search->wanted;

	while (*link && strcmp((*link)->uid, uid) != 0)
		link = &(*link)->next;
	return link;
}

static bool has_addresses(const struct wanted *w, const struct ip_address *addresses, size_t n)
{
	bool same = w->addresses && w->n_addresses == n;

	for (size_t i = 0; same && i < n; i++)
		same = ip_address_equal(&w->addresses[i], &addresses[i]);
	return same;
}

int pod_search_want(struct pod_search *search, const char *uid, const struct ip_address *addresses,
		    size_t n, struct error *err)
{
	struct wanted *w = *find_wanted(search, uid);
	struct ip_address *copy;

	if (strlen(uid) >= POD_UID_SIZE)
		return error_set(err, EINVAL, "pod uid \"%.64s\" is too long", uid);
	n = n < ADDRESSES_MAX ? n : ADDRESSES_MAX;
	copy = calloc(n + 1, sizeof(*copy));
	if (!copy)
		return error_set(err, ENOMEM, "search for a pod");
	if (n)
		memcpy(copy, addresses, n * sizeof(*copy));
	if (!w) {
		w = calloc(1, sizeof(*w));
		if (!w) {
			free(copy);
			return error_set(err, ENOMEM, "search for a pod");
		}
		snprintf(w->uid, sizeof(w->uid), "%s", uid);
		w->netns_fd = -1;
		w->next = search->wanted;
		search->wanted = w;
		search->n_wanted++;
	}
	search->again = true;
	if (has_addresses(w, addresses, n)) {
		free(copy);
		return 0;
	}
	forget_candidate(w);
	free(w->addresses);
	w->addresses = copy;
	w->n_addresses = n;
	w->first_walk = search->walk + 1;
	return 0;
}

void pod_search_forget(struct pod_search *search, const char *uid)
{
	struct wanted **link = find_wanted(search, uid), *w = *link;

	if (!w)
		return;
	*link = w->next;
	wanted_free(w);
	search->n_wanted--;
}

size_t pod_search_wanted(const struct pod_search *search)
{
	return search->n_wanted;
}

/* ---- one process ---------------------------------------------------------------------------- */

static int read_text(const char *path, char *buf, size_t size)
{
	scoped_file FILE *file = fopen(path, "re");
	size_t n;

	if (!file)
		return -errno;
	n = fread(buf, 1, size - 1, file);
	if (ferror(file) || !feof(file))
		return -EIO; /* more than there is room for is no cgroup of a pod */
	buf[n] = '\0';
	return 0;
}

/* The 22nd field of /proc/PID/stat (proc(5)); the second, in brackets, may hold anything. */
static uint64_t start_of(const struct pod_search *search, pid_t pid)
{
	char path[PATH_MAX], text[1024];
	const char *at;

	snprintf(path, sizeof(path), "%s/%d/stat", search->proc_path, (int)pid);
	if (read_text(path, text, sizeof(text)))
		return UINT64_MAX;
	at = strrchr(text, ')');
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	return at ? strtoull(at + 1, NULL, 10) : UINT64_MAX;
}

/* The line of cgroup2, "0::PATH"; NULL without memory, or where there is none. */
static char *cgroup2_of(const char *text)
{
	for (const char *line = text; line && *line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (strncmp(line, "0::", 3) == 0)
			return strndup(line + 3, strcspn(line + 3, "\n"));
	}
	return NULL;
}

static bool is_same(const struct seen *seen, const struct stat *st)
{
	return seen->dev == st->st_dev && seen->ino == st->st_ino;
}

static bool has_address_of(int netns_fd, const struct wanted *w)
{
	scoped_free struct ip_address *there = NULL;
	struct error ignored = {0};
	size_t n = 0;

	if (netlink_list_addresses(netns_fd, &there, &n, &ignored))
		return false;
	for (size_t i = 0; i < n; i++)
		for (size_t j = 0; j < w->n_addresses; j++)
			if (ip_address_equal(&there[i], &w->addresses[j]))
				return true;
	return false;
}

static bool is_known_already(const struct wanted *w, const struct stat *st)
{
	struct stat known;

	return w->netns_fd >= 0 && !fstat(w->netns_fd, &known) && known.st_dev == st->st_dev &&
	       known.st_ino == st->st_ino;
}

struct process {
	pid_t pid;
	struct wanted *pod;
	struct stat netns;
	char netns_path[PATH_MAX], cgroups[CGROUP_TEXT_MAX];
};

/* Is it one of a wanted pod's, in a namespace other than the host's? */
static bool identify(struct pod_search *search, pid_t pid, struct process *ret)
{
	char path[PATH_MAX], uid[POD_UID_SIZE];

	ret->pid = pid;
	snprintf(path, sizeof(path), "%s/%d/cgroup", search->proc_path, (int)pid);
	if (read_text(path, ret->cgroups, sizeof(ret->cgroups)) ||
	    !cgroup_pod_uid(ret->cgroups, uid))
		return false;
	ret->pod = *find_wanted(search, uid);
	if (!ret->pod)
		return false;
	snprintf(ret->netns_path, sizeof(ret->netns_path), "%s/%d/ns/net", search->proc_path,
		 (int)pid);
	return !stat(ret->netns_path, &ret->netns) && !is_same(&search->host, &ret->netns) &&
	       !is_same(&search->first, &ret->netns);
}

/* Its namespace, if that has an address of the pod; else -1. */
static int open_netns_of(const struct process *process)
{
	scoped_fd int netns_fd = -1;
	struct error ignored = {0};

	if (netns_open(process->netns_path, &netns_fd, &ignored) ||
	    !has_address_of(netns_fd, process->pod))
		return -1;
	return take_fd(&netns_fd);
}

/* Will the walk that is under way, if one is, have seen all of the pod's processes? */
static bool is_in_walk(const struct pod_search *search, const struct wanted *w)
{
	return search->proc && w->first_walk <= search->walk;
}

/* It is the best so far, or is not. */
static void compare(const struct pod_search *search, const struct process *process)
{
	struct wanted *w = process->pod;
	uint64_t started = start_of(search, process->pid);

	if (w->netns_fd >= 0 && started >= w->started)
		return;
	if (!is_known_already(w, &process->netns)) {
		int netns_fd = open_netns_of(process);

		if (netns_fd < 0)
			return;
		scoped_close(&w->netns_fd);
		w->netns_fd = netns_fd;
	}
	free(w->cgroup);
	w->cgroup = cgroup2_of(process->cgroups);
	w->pid = process->pid;
	w->started = started;
}

/* ---- what was found ------------------------------------------------------------------------- */

/* Namespaces that are bound to files of ours, for all that were found in one walk. */
struct bound {
	ino_t ino;
	char *path;
};

struct bounds {
	struct bound *list;
	size_t n;
};

static bool bounds_add(struct bounds *bounds, const char *root, const char *path)
{
	struct bound *grown = reallocarray(bounds->list, bounds->n + 1, sizeof(*grown));
	char *copy = grown ? strdup(path) : NULL;

	if (grown)
		bounds->list = grown;
	if (!copy)
		return false;
	bounds->list[bounds->n++] = (struct bound){
		.ino = (ino_t)strtoull(root + strlen("net:["), NULL, 10), .path = copy};
	return true;
}

static void bounds_read(struct bounds *bounds)
{
	scoped_file FILE *file = fopen("/proc/self/mountinfo", "re");
	scoped_free char *line = NULL;
	size_t capacity = 0;
	bool room = true;

	while (room && file && getline(&line, &capacity, file) > 0) {
		char *root = NULL;
		const char *at = mountinfo_mount_point(line, "nsfs", &root);

		if (at && root && strncmp(root, "net:[", strlen("net:[")) == 0)
			room = bounds_add(bounds, root, at);
	}
}

static void bounds_done(struct bounds *bounds)
{
	for (size_t i = 0; i < bounds->n; i++)
		free(bounds->list[i].path);
	free(bounds->list);
}

/* Where this namespace is bound; NULL: nowhere. */
static const char *bound_path(const struct bounds *bounds, const struct stat *st)
{
	struct stat there;

	for (size_t i = 0; i < bounds->n; i++)
		if (bounds->list[i].ino == st->st_ino && !stat(bounds->list[i].path, &there) &&
		    there.st_dev == st->st_dev && there.st_ino == st->st_ino)
			return bounds->list[i].path;
	return NULL;
}

static void report(const struct pod_search *search, const struct wanted *w, const char *bound,
		   pod_found_fn fn, void *arg)
{
	char of_process[PATH_MAX];

	snprintf(of_process, sizeof(of_process), "%s/%d/ns/net", search->proc_path, (int)w->pid);
	fn(&(struct pod_found){.uid = w->uid,
			       .netns_fd = w->netns_fd,
			       .netns = bound ?: of_process,
			       .cgroup = w->cgroup,
			       .pid = w->pid},
	   arg);
}

/* Takes them out first: fn may change what is wanted. */
static void report_found(struct pod_search *search, pod_found_fn fn, void *arg)
{
	struct wanted *found = NULL, **link = &search->wanted;
	struct bounds bounds = {0};

	while (*link) {
		struct wanted *w = *link;

		if (w->netns_fd < 0) {
			link = &w->next;
			continue;
		}
		*link = w->next;
		search->n_wanted--;
		w->next = found;
		found = w;
	}
	if (found)
		bounds_read(&bounds);
	while (found) {
		struct wanted *next = found->next;
		struct stat st;

		report(search, found, fstat(found->netns_fd, &st) ? NULL : bound_path(&bounds, &st),
		       fn, arg);
		wanted_free(found);
		found = next;
	}
	bounds_done(&bounds);
}

/* ---- all processes -------------------------------------------------------------------------- */

static void note_host(struct pod_search *search)
{
	char path[PATH_MAX];
	struct stat st;

	snprintf(path, sizeof(path), "%s/1/ns/net", search->proc_path);
	if (!stat("/proc/self/ns/net", &st))
		search->host = (struct seen){st.st_dev, st.st_ino};
	if (!stat(path, &st))
		search->first = (struct seen){st.st_dev, st.st_ino};
}

static bool begin_walk(struct pod_search *search)
{
	note_host(search);
	search->proc = search->n_wanted ? opendir(search->proc_path) : NULL;
	if (!search->proc)
		return false;
	search->walk++;
	search->again = false;
	return true;
}

bool pod_search_step(struct pod_search *search, unsigned slice_ms, pod_found_fn fn, void *arg)
{
	int64_t end_ms = monotonic_ms() + slice_ms;
	const struct dirent *entry;
	struct process process;

	if (!search->proc && !begin_walk(search))
		return false;
	while ((entry = readdir(search->proc))) {
		if (isdigit((unsigned char)entry->d_name[0]) &&
		    identify(search, (pid_t)strtol(entry->d_name, NULL, 10), &process) &&
		    is_in_walk(search, process.pod))
			compare(search, &process);
		if (monotonic_ms() >= end_ms)
			return true;
	}
	closedir(search->proc);
	search->proc = NULL;
	report_found(search, fn, arg);
	return search->again && search->n_wanted > 0;
}

bool pod_search_look_at(struct pod_search *search, pid_t pid)
{
	scoped_fd int netns_fd = -1;
	struct process process;

	if (!search->proc)
		note_host(search);
	if (!identify(search, pid, &process))
		return false;
	/* The walk may have passed by where it is. */
	if (is_in_walk(search, process.pod)) {
		compare(search, &process);
		return true;
	}
	/* Wanted while one was under way, it has another follow. */
	netns_fd = open_netns_of(&process);
	return netns_fd >= 0;
}

void pod_search_again(struct pod_search *search)
{
	search->again = true;
}
