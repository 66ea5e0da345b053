/* SPDX-License-Identifier: Apache-2.0 */
#include "ebpf_engine.h"

#include "cgroup.h"
#include "error.h"
#include "event_loop.h"
#include "log.h"
#include "scoped.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>

int ebpf_attach_open_cgroup(struct ebpf *e, struct error *err)
{
	char path[PIN_PATH_MAX];
	struct stat st;
	int r = cgroup_attach_dir(e->cfg->cgroup_root, path, sizeof(path), err);

	if (r)
		return r;
	e->cgroup_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (e->cgroup_fd < 0 || fstat(e->cgroup_fd, &st) < 0)
		return error_set(err, errno, "open cgroup %s", path);
	e->cgroup_ino = st.st_ino; /* on cgroup2 the inode number is the cgroup's id */
	return 0;
}

/*
 * The kernel detaches links some time after their cgroup was removed, so the links alone do not
 * tell that another one is in its place.
 */
static int verify_cgroup(struct ebpf *e, struct error *err)
{
	char path[PIN_PATH_MAX];
	struct stat st;
	int r = cgroup_attach_dir(e->cfg->cgroup_root, path, sizeof(path), err);

	if (r)
		return r;
	if (stat(path, &st) < 0)
		return error_set(err, errno, "stat cgroup %s", path);
	if (st.st_ino != e->cgroup_ino)
		return error_set(err, ENODEV, "the programs are not on cgroup %s", path);
	return 0;
}

int ebpf_attach_verify(struct ebpf *e, struct error *err)
{
	struct bpf_program *prog;
	int r = verify_cgroup(e, err);

	if (r)
		return r;
	bpf_object__for_each_program (prog, e->datapath->obj) {
		char path[PIN_PATH_MAX];

		ebpf_pins_link_path(&e->pins, bpf_program__name(prog), path);
		r = ebpf_pins_check(path, e->cgroup_ino, NULL, err);
		if (r)
			return r;
	}
	return 0;
}

bool ebpf_attach_pod_is_live(struct ebpf *e, uint64_t cookie)
{
	char path[PIN_PATH_MAX];

	ebpf_pins_pod_path(&e->pins, cookie, path);
	return ebpf_pins_netns_state(path) == NETNS_LIVES;
}

/*
 * A pod whose pinned program looks into our maps loses nothing when the others do too, whatever is
 * in them: an add that was killed leaves one without a plan.
 */
bool ebpf_attach_pod_is_known(struct ebpf *e, uint64_t cookie)
{
	char path[PIN_PATH_MAX];
	struct pod_config cfg;

	if (ebpf_pods_config(e, cookie, &cfg) && (cfg.flags & POD_ACTIVE))
		return true;
	ebpf_pins_pod_path(&e->pins, cookie, path);
	return ebpf_pins_netns_state(path) == NETNS_ENDED ||
	       ebpf_pins_uses_map(path, bpf_map__fd(e->datapath->maps.pods));
}

static int attach(struct ebpf *e, struct error *err)
{
	const struct bpf_object *const objects[] = {e->datapath->obj,
						    e->kubelet ? e->kubelet->obj : NULL, NULL};
	struct bpf_program *prog;

	bpf_object__for_each_program (prog, e->datapath->obj) {
		char path[PIN_PATH_MAX];
		int r;

		ebpf_pins_link_path(&e->pins, bpf_program__name(prog), path);
		r = ebpf_pins_attach(path, prog, e->cgroup_fd, e->cgroup_ino, err);
		if (r)
			return r;
	}
	e->attached = true;
	ebpf_pins_drop_old(&e->pins, objects);
	return 0;
}

struct missing {
	struct ebpf *engine;
	uint64_t except;
	size_t n;
};

static void count_missing(uint64_t cookie, void *arg)
{
	struct missing *missing = arg;

	if (cookie != missing->except && !ebpf_attach_pod_is_known(missing->engine, cookie))
		missing->n++;
}

/*
 * Pods that some agent redirects and that are not in our maps. With programs that look into our
 * maps they would go past their proxies. `except` is a pod that is being put there; 0: none.
 */
static size_t missing_pods(struct ebpf *e, uint64_t except)
{
	struct missing missing = {.engine = e, .except = except};

	/* What cannot be looked at may be anything. */
	if (ebpf_pins_each_pod(&e->pins, count_missing, &missing))
		missing.n++;
	return missing.n;
}

int ebpf_attach_allowed(struct ebpf *e, uint64_t except, struct error *err)
{
	size_t missing = e->start_source || e->attached ? 0 : missing_pods(e, except);

	if (missing)
		return error_set(err, EAGAIN,
				 "an earlier agent's programs stay in place: they redirect %zu "
				 "pod(s) that this agent does not know",
				 missing);
	return 0;
}

static int attach_when_complete(struct ebpf *e, uint64_t except, struct error *err)
{
	int r = ebpf_attach_allowed(e, except, err);

	return r ? r : attach(e, err);
}

static void attach_late(void *arg)
{
	struct ebpf *e = arg;
	struct error err = {0};

	e->start_source = NULL;
	if (attach_when_complete(e, 0, &err))
		log_error(LOG_ERROR, &err, "programs not replaced", NULL);
}

/*
 * Programs replace their predecessors at once when every pod is in the maps that ours use. When the
 * maps are new it is not so: the old programs go on with the old maps until registration has put
 * every pod into the new ones, which it does before the event loop runs.
 */
int ebpf_attach_start(struct ebpf *e, bool fresh, struct error *err)
{
	char path[PIN_PATH_MAX];
	struct error ignored;

	ebpf_pins_link_path(&e->pins, "sockmesh_connect4", path);
	if (ebpf_pins_check(path, 0, NULL, &ignored) == -ENODEV)
		return attach(e, err); /* there are no old ones, or they are detached */
	if (!fresh && !missing_pods(e, 0))
		return attach(e, err);
	return event_loop_add_timer(e->loop, 1, 0, attach_late, e, &e->start_source, err);
}

/* The cgroup may have been removed and made again, as by a kubelet that starts over. */
static int reattach(struct ebpf *e, struct error *err)
{
	int r;

	scoped_close(&e->cgroup_fd);
	e->cgroup_fd = -1;
	r = ebpf_attach_open_cgroup(e, err);
	return r ? r : attach(e, err);
}

/* Before a pod is promised anything: our programs are where its processes are. */
int ebpf_attach_ensure(struct ebpf *e, uint64_t except, struct error *err)
{
	struct error why = {0};
	int r;

	if (e->start_source)
		return 0; /* recovery: see ebpf_attach_start() */
	if (!e->attached)
		return attach_when_complete(e, except, err);
	if (!ebpf_attach_verify(e, &why))
		return 0;
	r = reattach(e, err);
	if (r)
		return error_wrap(err, "%s, attaching again", why.text);
	log_error(LOG_WARN, &why, "programs were detached by somebody else and attached again",
		  NULL);
	return 0;
}

void ebpf_attach_heal(void *arg)
{
	struct ebpf *e = arg;
	struct error err = {0};

	if (ebpf_attach_ensure(e, 0, &err))
		log_error(LOG_ERROR, &err, "the data path is not complete", NULL);
	if (ebpf_kubelet_ensure(e, &err))
		log_error(LOG_ERROR, &err, "kubelet's probes of ambient pods go to ztunnel", NULL);
	ebpf_kubelet_sweep(e);
}
