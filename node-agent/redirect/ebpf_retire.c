/* SPDX-License-Identifier: Apache-2.0 */

/* What the choice between engines asks of this one: what it has, cannot do, and how it leaves. */
#include "ebpf_engine.h"

#include "error.h"
#include "monotonic.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

/* Connections that hang on their way to accept() for longer than this are not waited for. */
enum { HANDOVER_PATIENCE_MS = 120 * 1000 };

bool ebpf_is_installed(const struct redirect_config *cfg, uint64_t cookie)
{
	struct ebpf_pins pins = {0};
	char path[PIN_PATH_MAX];
	bool found = false;
	DIR *dir;

	snprintf(pins.root, sizeof(pins.root), "%s", cfg->bpffs_dir);
	if (cookie) {
		ebpf_pins_pod_path(&pins, cookie, path);
		return !access(path, F_OK);
	}
	snprintf(path, sizeof(path), "%s/pods", cfg->bpffs_dir);
	dir = opendir(path);
	for (struct dirent *entry; dir && !found && (entry = readdir(dir));)
		found = entry->d_name[0] != '.';
	if (dir)
		closedir(dir);
	return found;
}

static char ambient_why[sizeof(((struct error *)NULL)->text)]; /* the engine is not open for all */

void ebpf_cannot_ambient(const struct error *why)
{
	snprintf(ambient_why, sizeof(ambient_why), "%s", why->text);
}

const char *ebpf_cannot(const struct redirect_plan *plan)
{
	if (plan->ambient && *ambient_why)
		return ambient_why;
	if (plan->tproxy)
		return "interception mode TPROXY needs netfilter: its packets are routed by mark";
	if (plan->reroute_interfaces.n)
		return "rules about rerouted virtual interfaces need netfilter: a guest's packets "
		       "are forwarded and have no socket here";
	if (plan->exclude_interfaces.n)
		return "rules about excluded interfaces need netfilter: a socket does not know by "
		       "which interface its packets will leave";
	return NULL;
}

int ebpf_presence(void *state, uint64_t cookie, int netns_fd, enum redirect_presence *ret,
		  struct error *err)
{
	struct ebpf *e = state;
	struct pod_config cfg;

	(void)netns_fd;
	(void)err;
	if (!ebpf_pods_config(e, cookie, &cfg))
		*ret = ebpf_attach_pod_is_live(e, cookie) ? REDIRECT_ACTIVE : REDIRECT_ABSENT;
	else
		*ret = cfg.flags & POD_ACTIVE ? REDIRECT_ACTIVE : REDIRECT_DRAINING;
	return 0;
}

bool ebpf_owns_passthrough(void *state, uint64_t cookie, int netns_fd)
{
	struct pod_config cfg;

	(void)netns_fd;
	return ebpf_pods_config(state, cookie, &cfg) && (cfg.flags & POD_ADDED_PASSTHROUGH);
}

/* Switches capture off, and keeps the pod's entry for what is on its way to the proxy. */
static int switch_off(struct ebpf *e, const struct redirect_pod *pod, struct pod_config *cfg,
		      struct error *err)
{
	struct ebpf_pod *known = ebpf_pods_get(e, pod->cookie);

	if (!known)
		return error_set(err, ENOMEM, "remember the pod");
	cfg->flags &= ~(__u32)POD_ACTIVE;
	if (pod->leaves && (cfg->flags & POD_IS_AMBIENT))
		cfg->flags |= POD_LEAVES;
	known->retired_at_ms = monotonic_ms();
	return ebpf_pods_config_write(e, pod->cookie, cfg, err);
}

/* It joined again, and another engine has it now. */
static int stays(struct ebpf *e, uint64_t cookie, struct pod_config *cfg, struct error *err)
{
	cfg->flags &= ~(__u32)POD_LEAVES;
	return ebpf_pods_config_write(e, cookie, cfg, err);
}

static bool hands_over(struct ebpf *e, uint64_t cookie)
{
	struct gauge gauge = {0};

	return !bpf_map_lookup_elem(bpf_map__fd(e->datapath->maps.gauges), &cookie, &gauge) &&
	       (__s32)gauge.handovers > 0;
}

/*
 * A move leaves routing to the next engine; a pod that leaves needs it as long as ztunnel has a
 * connection that it opened for a client. Where the kernel cannot tell, it has a while.
 */
static bool needs_routes(const struct redirect_pod *pod, const struct pod_config *cfg, bool patient)
{
	struct error ignored = {0};
	bool found = false;

	if (!pod->leaves || pod->netns_fd < 0 || !(cfg->flags & POD_ADDED_ROUTES))
		return false;
	return ebpf_ambient_has_connections(pod->netns_fd, &found, &ignored) ? patient : found;
}

static bool is_drained(struct ebpf *e, const struct redirect_pod *pod, const struct pod_config *cfg)
{
	const struct ebpf_pod *known = ebpf_pods_find(e, pod->cookie);
	bool patient = known && monotonic_ms() - known->retired_at_ms <= HANDOVER_PATIENCE_MS;

	if (pod->lingers || needs_routes(pod, cfg, patient))
		return false;
	return !hands_over(e, pod->cookie) || !patient;
}

/* The rule and the route are the next engine's too, as long as the pod is ambient; so is ::6. */
static int leave_namespace(struct ebpf *e, const struct redirect_pod *pod, struct error *err)
{
	bool keep_routes = pod->plan && pod->plan->ambient;

	if (pod->leaves)
		return ebpf_remove(e, pod->cookie, pod->netns_fd, err);
	if (pod->netns_fd >= 0) {
		int r = ebpf_ambient_leave(e, pod->cookie, pod->netns_fd,
					   keep_routes ? POD_AMBIENT_SYSCTLS : POD_AMBIENT_CHANGES,
					   err);
		if (r)
			return r;
	}
	return ebpf_remove(e, pod->cookie, -1, err);
}

int ebpf_retire(void *state, const struct redirect_pod *pod, bool *ret_done, struct error *err)
{
	struct ebpf *e = state;
	struct pod_config cfg;
	int r = 0;

	if (!ebpf_pods_config(e, pod->cookie, &cfg)) {
		r = ebpf_remove(e, pod->cookie, -1, err);
		*ret_done = !r;
		return r;
	}
	/* A connect() that was decided just before is counted at the earliest by the next look. */
	if (cfg.flags & POD_ACTIVE) {
		r = switch_off(e, pod, &cfg, err);
		*ret_done = false;
		return r;
	}
	if ((cfg.flags & POD_LEAVES) && !pod->leaves) {
		r = stays(e, pod->cookie, &cfg, err);
		if (r)
			return r;
	}
	if (!is_drained(e, pod, &cfg)) {
		*ret_done = false;
		return 0;
	}
	r = leave_namespace(e, pod, err);
	*ret_done = !r;
	return r;
}
