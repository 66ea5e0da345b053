/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Kubelet's probes of ambient pods: programs on kubelet's cgroup that note its connections to those
 * pods (bpf/kubelet.bpf.c), and the set of the pods' addresses. Kubelet is looked for before each
 * ambient pod is added and every HEAL_PERIOD_MS: one that starts again has another cgroup, or
 * another process.
 */
#include "ebpf_engine.h"

#include "cgroup.h"
#include "error.h"
#include "log.h"
#include "monotonic.h"
#include "scoped.h"

#include <bpf/bpf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* Where there is none, not every pod of many is worth a walk over all processes. */
enum { SEARCH_PERIOD_MS = 250 };

/* ---- addresses ------------------------------------------------------------------------------ */

/* What kubelet may connect to, and what can be nobody else's. */
static bool is_target(const struct ip_address *a)
{
	static const struct ip_address passthrough = {.bytes = {[15] = 6}};

	return !ip_address_is_loopback(a) && !ip_address_is_link_local(a) &&
	       !ip_address_equal(a, &passthrough);
}

static bool has_address(const struct ebpf_pod *pod, const struct ip_address *a)
{
	for (size_t i = 0; i < pod->n_addresses; i++)
		if (ip_address_equal(&pod->addresses[i], a))
			return true;
	return false;
}

/* An address can be several pods' for a moment, while one ends and the next one begins. */
static bool is_anybodys(const struct ebpf *e, const struct ip_address *a)
{
	for (size_t i = 0; i < POD_BUCKETS; i++)
		for (const struct ebpf_pod *pod = e->pods[i]; pod; pod = pod->next)
			if (pod->ambient && has_address(pod, a))
				return true;
	return false;
}

static int targets_fd(const struct ebpf *e)
{
	return bpf_map__fd(e->datapath->maps.probe_targets);
}

int ebpf_kubelet_target(struct ebpf *e, const struct ip_address *a, struct error *err)
{
	struct addr16 key = addr16_of(a);
	__u8 one = 1;

	if (!is_target(a))
		return 0;
	if (bpf_map_update_elem(targets_fd(e), &key, &one, BPF_ANY))
		return ebpf_limit_error(err, "addresses of ambient pods (--max-pods)");
	return 0;
}

void ebpf_kubelet_no_target(struct ebpf *e, const struct ip_address *a)
{
	struct addr16 key = addr16_of(a);

	if (!is_anybodys(e, a))
		bpf_map_delete_elem(targets_fd(e), &key);
}

int ebpf_kubelet_pod(struct ebpf *e, struct ebpf_pod *pod, bool ambient, struct error *err)
{
	int r = 0;

	pod->ambient = ambient;
	for (size_t i = 0; !r && i < pod->n_addresses; i++)
		if (ambient)
			r = ebpf_kubelet_target(e, &pod->addresses[i], err);
		else
			ebpf_kubelet_no_target(e, &pod->addresses[i]);
	return r;
}

/* At start: what an agent that was killed has left. */
static void forget_targets(struct ebpf *e)
{
	enum { AT_ONCE = 64 };
	struct addr16 stale[AT_ONCE], key;
	size_t n;

	do {
		n = 0;
		for_each_map_key (targets_fd(e), &key) {
			struct ip_address a;

			memcpy(&a, &key, sizeof(a));
			if (n < AT_ONCE && !is_anybodys(e, &a))
				stale[n++] = key;
		}
		for (size_t i = 0; i < n; i++)
			bpf_map_delete_elem(targets_fd(e), &stale[i]);
	} while (n == AT_ONCE);
}

int ebpf_kubelet_load_targets(struct ebpf *e, struct error *err)
{
	int r = 0;

	for (size_t i = 0; !r && i < POD_BUCKETS; i++)
		for (struct ebpf_pod *pod = e->pods[i]; !r && pod; pod = pod->next) {
			struct pod_config cfg;

			if (ebpf_pods_config(e, pod->cookie, &cfg))
				r = ebpf_kubelet_pod(e, pod, cfg.flags & POD_IS_AMBIENT, err);
		}
	if (!r)
		forget_targets(e);
	return r;
}

/* ---- programs ------------------------------------------------------------------------------- */

int ebpf_kubelet_open(struct ebpf *e, struct error *err)
{
	int r;

	e->kubelet = kubelet_bpf__open();
	if (!e->kubelet)
		return error_set(err, errno, "open the programs that watch kubelet");
	r = ebpf_share_maps(e->kubelet->obj, e->datapath->obj, err);
	if (r)
		return r;
	r = kubelet_bpf__load(e->kubelet);
	return r ? error_set(err, -r, "load the programs that watch kubelet") : 0;
}

static bool any_ambient(const struct ebpf *e)
{
	for (size_t i = 0; i < POD_BUCKETS; i++)
		for (const struct ebpf_pod *pod = e->pods[i]; pod; pod = pod->next)
			if (pod->ambient)
				return true;
	return false;
}

static uint64_t inode_of(const char *path)
{
	struct stat st;

	return stat(path, &st) < 0 ? 0 : st.st_ino;
}

/* In the ticks of /proc/PID/stat, where it is the 22nd field; 0: there is no such process. */
static uint64_t started_at(pid_t pid)
{
	enum { FIELDS_BEHIND_NAME = 20 };
	char path[32], text[1024];
	scoped_fd int fd = -1;
	const char *at;
	ssize_t n;

	snprintf(path, sizeof(path), "/proc/%d/stat", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
	if (n <= 0)
		return 0;
	text[n] = '\0';
	at = strrchr(text, ')'); /* the name may have any character */
	for (int i = 0; at && i < FIELDS_BEHIND_NAME; i++)
		at = strchr(at + 1, ' ');
	return at ? strtoull(at, NULL, 10) : 0;
}

/* Nobody walks over all processes while the one that was found still runs where it did. */
static bool is_where_it_was(const struct ebpf *e)
{
	const struct kubelet *k = &e->kubelet_is;

	return k->pid && e->kubelet_start && started_at(k->pid) == e->kubelet_start &&
	       inode_of(k->cgroup) == e->kubelet_cgroup;
}

/*
 * Below --cgroup-root when that is the root of cgroup2, else where that is mounted. *ret is all 0
 * before the call, and stays so where there is no kubelet.
 */
static int find(struct ebpf *e, struct kubelet *ret, struct error *err)
{
	int r;

	if (is_where_it_was(e)) {
		*ret = e->kubelet_is;
		return 0;
	}
	if (e->kubelet_missed_at_ms && monotonic_ms() - e->kubelet_missed_at_ms < SEARCH_PERIOD_MS)
		return 0; /* *ret says that it is not known */
	r = kubelet_find(e->cfg->kubelet_cgroup, e->cfg->cgroup_root, ret, err);
	if (!r && ret->source == KUBELET_PROCESS)
		r = kubelet_find(e->cfg->kubelet_cgroup, NULL, ret, err);
	if (!r && ret->source == KUBELET_PROCESS)
		r = cgroup2_find(NULL, ret->cgroup, sizeof(ret->cgroup), err);
	e->kubelet_missed_at_ms = !r && ret->source == KUBELET_UNKNOWN ? monotonic_ms() : 0;
	return r;
}

static int links_check(struct ebpf *e, uint64_t cgroup_ino, struct error *err)
{
	struct bpf_program *prog;
	int r = 0;

	bpf_object__for_each_program (prog, e->kubelet->obj) {
		char path[PIN_PATH_MAX];

		ebpf_pins_link_path(&e->pins, bpf_program__name(prog), path);
		if (!r)
			r = ebpf_pins_check(path, cgroup_ino, NULL, err);
	}
	return r;
}

static int links_attach(struct ebpf *e, const char *cgroup, struct error *err)
{
	scoped_fd int fd = open(cgroup, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	struct bpf_program *prog;
	struct stat st;

	if (fd < 0 || fstat(fd, &st) < 0)
		return error_set(err, errno, "open kubelet's cgroup %s", cgroup);
	bpf_object__for_each_program (prog, e->kubelet->obj) {
		char path[PIN_PATH_MAX];
		int r;

		ebpf_pins_link_path(&e->pins, bpf_program__name(prog), path);
		r = ebpf_pins_attach(path, prog, fd, st.st_ino, err);
		if (r)
			return r;
	}
	e->kubelet_cgroup = st.st_ino;
	return 0;
}

static void links_remove(struct ebpf *e)
{
	struct bpf_program *prog;

	bpf_object__for_each_program (prog, e->kubelet->obj) {
		char path[PIN_PATH_MAX];

		ebpf_pins_link_path(&e->pins, bpf_program__name(prog), path);
		unlink(path);
	}
	e->kubelet_cgroup = 0;
}

/* Once for each change. */
static void say(struct ebpf *e, const struct kubelet *k, enum kubelet_said now)
{
	if (now == e->kubelet_said)
		return;
	e->kubelet_said = now;
	if (now == KUBELET_SAID_FOUND)
		log_write(LOG_INFO, "kubelet's probes reach ambient pods directly", "known-by",
			  kubelet_source_words(k->source), "cgroup", k->cgroup, NULL);
	else
		log_write(LOG_WARN,
			  "kubelet was not found: its probes of ambient pods go to ztunnel, like "
			  "any other connection",
			  "kubelet-cgroup", k->cgroup, NULL);
}

/* The start before the number, which is what the program looks at first. */
static void set_process(struct ebpf *e, const struct kubelet *k)
{
	struct kubelet_bpf__bss *bss = e->kubelet->bss;

	e->kubelet_is = *k;
	e->kubelet_start = k->pid ? started_at(k->pid) : 0;
	bss->kubelet_tick_ns = 1000000000ull / (__u64)sysconf(_SC_CLK_TCK);
	if (k->source == KUBELET_PROCESS)
		bss->kubelet_start = e->kubelet_start;
	bss->kubelet_tgid = k->source == KUBELET_PROCESS ? (__u32)k->pid : 0;
}

/* Not to find kubelet is no error: it may not have started, and nothing is let past ztunnel. */
int ebpf_kubelet_ensure(struct ebpf *e, struct error *err)
{
	struct error why = {0};
	struct kubelet k = {0};
	uint64_t ino;
	int r;

	if (!e->kubelet)
		return 0;
	if (!any_ambient(e)) {
		links_remove(e);
		return 0;
	}
	r = find(e, &k, err);
	if (r)
		return r;
	ino = *k.cgroup ? inode_of(k.cgroup) : 0;
	if (!ino) {
		links_remove(e);
		say(e, &k, KUBELET_SAID_MISSING);
		return 0;
	}
	set_process(e, &k);
	if (e->kubelet_cgroup == ino && !links_check(e, ino, &why))
		return 0;
	r = links_attach(e, k.cgroup, err);
	if (!r)
		say(e, &k, KUBELET_SAID_FOUND);
	return r;
}

/* A kubelet that runs has its connections noted. */
int ebpf_kubelet_verify(struct ebpf *e, struct error *err)
{
	struct kubelet k = {0};
	uint64_t ino;
	int r = e->kubelet ? find(e, &k, err) : -ENODEV;

	if (r)
		return r;
	ino = *k.cgroup ? inode_of(k.cgroup) : 0;
	return ino ? links_check(e, ino, err) : 0;
}

enum kubelet_known ebpf_kubelet_known(void *state, struct kubelet *ret)
{
	struct error ignored = {0};
	struct ebpf *e = state;

	*ret = (struct kubelet){.source = KUBELET_UNKNOWN};
	if (find(e, ret, &ignored) || !e->kubelet || !*ret->cgroup || !inode_of(ret->cgroup))
		return KUBELET_KNOWN_NOT;
	return ret->source == KUBELET_PROCESS ? KUBELET_KNOWN_PROCESS : KUBELET_KNOWN_CGROUP;
}

/* ---- leftovers ------------------------------------------------------------------------------ */

/* Of kubelet's sockets that ended while no program was there to see it. */
void ebpf_kubelet_sweep(struct ebpf *e)
{
	enum { AT_ONCE = 64 };
	int fd = bpf_map__fd(e->datapath->maps.probes);
	struct handover_key stale[AT_ONCE], key;
	struct timespec now;
	size_t n = 0;

	clock_gettime(CLOCK_MONOTONIC, &now);
	for_each_map_key (fd, &key) {
		struct probe probe;

		if (n == AT_ONCE)
			break;
		if (!bpf_map_lookup_elem(fd, &key, &probe) &&
		    (__u64)now.tv_sec * 1000000000ull > probe.at_ns + PROBE_NS)
			stale[n++] = key;
	}
	for (size_t i = 0; i < n; i++)
		bpf_map_delete_elem(fd, &stale[i]);
}
