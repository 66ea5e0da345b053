/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Taking over from an agent that ended: the state file says whose namespaces were redirected, the
 * kernel says which ones are. And the sweep, which finds namespaces that ended without a del.
 */
#include "accelerate.h"
#include "error.h"
#include "netns.h"
#include "pod_state.h"
#include "registration_private.h"
#include "run_dir.h"
#include "scoped.h"
#include "write_file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static void log_dropped(const struct pod *pod, const char *why)
{
	log_write(LOG_INFO, "pod removed", "namespace", pod->ns, "pod", pod->name, "container",
		  pod->container_id, "interface", pod->if_name, "reason", why, NULL);
}

/* ---- the state file ------------------------------------------------------------------------- */

static int read_state(const char *path, struct pod ***ret, size_t *ret_n, struct error *err)
{
	scoped_free char *text = NULL;
	size_t size;
	int r = read_file(path, POD_STATE_MAX, &text, &size, err);

	return r ? r : pod_state_decode(text, size, ret, ret_n, err);
}

/* Kept for a person to look at; what it said is recovered from the kernel as far as it goes. */
static void set_corrupt_aside(const char *path, const struct error *why)
{
	scoped_free char *aside = NULL;

	if (asprintf(&aside, "%s.corrupt", path) < 0 || rename(path, aside) < 0)
		log_error(LOG_ERROR, why, "cannot read the state file, nor move it aside", NULL);
	else
		log_error(LOG_ERROR, why, "cannot read the state file; it was moved aside", "to",
			  aside, NULL);
}

static int load_state(struct registration *reg, struct error *err)
{
	struct pod **pods = NULL;
	size_t n = 0;
	int r = read_state(reg->state_path, &pods, &n, err);

	if (r == -ENOENT)
		return 0;
	if (r == -ENOMEM)
		return r;
	if (r) {
		set_corrupt_aside(reg->state_path, err);
		return 0;
	}
	for (size_t i = 0; i < n; i++) {
		if (!r)
			r = pod_table_put(reg->table, pods[i], err);
		if (r)
			pod_free(pods[i]);
	}
	free(pods);
	return r;
}

int registration_saved_pods(const char *run_dir, struct redirect_pod **ret, size_t *ret_n,
			    struct error *err)
{
	scoped_free char *path = NULL;
	struct redirect_pod *found;
	struct pod **pods = NULL;
	size_t n = 0, n_found = 0;
	int r;

	*ret = NULL;
	*ret_n = 0;
	if (asprintf(&path, "%s/" RUN_DIR_STATE, run_dir) < 0)
		return error_set(err, ENOMEM, "state path");
	r = read_state(path, &pods, &n, err);
	if (r)
		return r == -ENOENT ? 0 : r;
	found = calloc(n + 1, sizeof(*found));
	for (size_t i = 0; i < n; i++) {
		if (found && pods[i]->mode != POD_SKIP) {
			found[n_found].cookie = pods[i]->cookie;
			found[n_found].netns_fd = registration_open_netns(pods[i]);
			n_found += found[n_found].netns_fd >= 0;
		}
		pod_free(pods[i]);
	}
	free(pods);
	if (!found)
		return error_set(err, ENOMEM, "saved pods");
	*ret = found;
	*ret_n = n_found;
	return 0;
}

/* ---- reconciling ---------------------------------------------------------------------------- */

struct recovered {
	uint64_t *cookies;
	size_t n;
};

static bool kernel_has(const struct recovered *kernel, uint64_t cookie)
{
	for (size_t i = 0; i < kernel->n; i++)
		if (kernel->cookies[i] == cookie)
			return true;
	return false;
}

/* The file at the pod's path still is the namespace that it was; cheaper than reading a cookie. */
static bool path_is_same(const struct pod *pod)
{
	struct stat st;

	return pod->netns && !stat(pod->netns, &st) && st.st_dev == pod->netns_dev &&
	       st.st_ino == pod->netns_ino;
}

/*
 * What the kernel does for this pod is right, or is made right. A pod that is to have another
 * engine keeps its own for now: the reconciler moves one after the other.
 */
static int restore(struct registration *reg, const struct pod *pod, int netns_fd, struct error *err)
{
	struct engine_pod engine_pod;
	int r;

	registration_engine_pod(reg, pod, netns_fd, &engine_pod);
	r = redirect_adopt(reg->cfg.redirect, &engine_pod.pod, err);
	if (!r)
		r = redirect_verify(reg->cfg.redirect, &engine_pod.pod, err);
	if (r != -ENODEV)
		return r;
	log_error(LOG_INFO, err, "a pod's redirection is brought up to date", "namespace", pod->ns,
		  "pod", pod->name, NULL);
	return redirect_apply(reg->cfg.redirect, &engine_pod.pod, err);
}

/*
 * Redirected as before, by programs in the kernel that need no agent, until its del or the end of
 * its namespace; but its plan is not known, so it can be neither checked nor explained. was: what
 * it was redirected as, which says to whom.
 */
static void make_orphan(struct pod *pod, enum pod_mode was, const struct error *why)
{
	struct error ignored = {0};
	char reason[sizeof(why->text) + 64];

	snprintf(reason, sizeof(reason), "kept as it was before the agent's restart: %s",
		 why->text);
	registration_set_reason(pod, reason, &ignored); /* without memory the old one stays */
	if (pod->engine_plan != pod->plan)
		redirect_plan_free(pod->engine_plan);
	redirect_plan_free(pod->plan);
	pod->plan = pod->engine_plan = NULL;
	pod->mode = was;
	pod->orphan = true;
}

/*
 * The plan follows from the annotations and the configuration of today. That a pod is redirected
 * was decided at its start: a restart does not take it back, which would bypass its proxy.
 */
static int take_over(struct registration *reg, struct pod *pod, int netns_fd, bool *ret_gone,
		     struct error *err)
{
	int r;

	*ret_gone = netns_fd < 0 && redirect_netns_gone(reg->cfg.redirect, pod->cookie);
	if (*ret_gone)
		return redirect_remove(reg->cfg.redirect, pod->cookie, -1, err);
	if (netns_fd < 0)
		return error_set(err, ENOENT, "its network namespace lives but is not at %s",
				 pod->netns ?: "a known path");
	r = registration_decide(reg, pod, NULL, netns_fd, err);
	if (r)
		return r;
	if (pod->mode == POD_SKIP)
		return error_set(err, EPERM, "the configuration now says: %s", pod->reason);
	return restore(reg, pod, netns_fd, err);
}

/* Returns false when the pod is to be forgotten. */
static bool recover_redirected(struct registration *reg, struct pod *pod,
			       const struct recovered *kernel)
{
	scoped_fd int netns_fd = registration_open_netns(pod);
	bool in_kernel = kernel_has(kernel, pod->cookie), gone = false, keep;
	enum pod_mode was = pod->mode; /* not POD_SKIP */
	struct error err = {0};

	if (!take_over(reg, pod, netns_fd, &gone, &err)) {
		if (!gone)
			registration_accelerate(reg, pod);
		return !gone;
	}
	/* Not in new maps, it may still be redirected by what an earlier agent attached. */
	keep = in_kernel || netns_fd >= 0 || !redirect_netns_gone(reg->cfg.redirect, pod->cookie);
	log_error(LOG_WARN, &err, "cannot take a pod over", "namespace", pod->ns, "pod", pod->name,
		  "container", pod->container_id, "kept", keep ? "yes" : "no", NULL);
	make_orphan(pod, was, &err);
	return keep;
}

static int add_orphan(struct registration *reg, uint64_t cookie, struct error *err)
{
	char id[48];
	struct pod *pod;
	int r;

	snprintf(id, sizeof(id), "recovered-%" PRIu64, cookie);
	pod = pod_new(id, "-");
	if (!pod)
		return error_set(err, ENOMEM, "orphan");
	pod->name = strdup(RECOVERED_NAME);
	pod->reason = strdup("redirected by an earlier agent, whose state file does not name it");
	pod->mode = POD_SIDECAR;
	pod->orphan = true;
	pod->cookie = cookie;
	pod->since_s = time(NULL);
	r = pod->name && pod->reason ? pod_table_put(reg->table, pod, err)
				     : error_set(err, ENOMEM, "orphan");
	if (r)
		pod_free(pod);
	return r;
}

/*
 * The last agent had let a pod go that lives on, and ended before the kernel had: what it captured
 * was to go on to its end, and ends now.
 */
static bool finish_leaving(struct registration *reg, uint64_t cookie)
{
	for (size_t i = 0; i < pod_table_count(reg->table); i++) {
		const struct pod *pod = pod_table_at(reg->table, i);
		scoped_fd int netns_fd = -1;
		struct error err = {0};

		if (pod->cookie != cookie || pod->mode != POD_SKIP)
			continue;
		netns_fd = registration_open_netns(pod);
		if (redirect_remove(reg->cfg.redirect, cookie, netns_fd, &err))
			log_error(LOG_ERROR, &err,
				  "cannot remove what is left of a pod's redirection", "namespace",
				  pod->ns, "pod", pod->name, NULL);
		return true;
	}
	return false;
}

static int recover_orphans(struct registration *reg, const struct recovered *kernel,
			   struct error *err)
{
	int r = 0;

	for (size_t i = 0; !r && i < kernel->n; i++) {
		uint64_t cookie = kernel->cookies[i];
		char text[24];

		if (pod_table_redirected(reg->table, cookie, NULL) || finish_leaving(reg, cookie))
			continue;
		snprintf(text, sizeof(text), "%" PRIu64, cookie);
		if (redirect_netns_gone(reg->cfg.redirect, cookie)) {
			if (redirect_remove(reg->cfg.redirect, cookie, -1, err))
				log_error(LOG_ERROR, err, "cannot remove what an ended pod left",
					  "cookie", text, NULL);
			continue;
		}
		r = add_orphan(reg, cookie, err);
		if (!r)
			log_write(LOG_WARN, "a redirected pod is not in the state file", "cookie",
				  text, NULL);
	}
	return r;
}

static void save(struct registration *reg)
{
	struct error err = {0};

	if (registration_save(reg, NULL, NULL, &err))
		log_error(LOG_ERROR, &err, "cannot write the state file", NULL);
}

int registration_recover(struct registration *reg, struct error *err)
{
	struct recovered kernel = {0};
	int r = redirect_recovered(reg->cfg.redirect, &kernel.cookies, &kernel.n, err);

	if (!r)
		r = load_state(reg, err);
	/* Backwards, because entries are removed on the way. */
	for (size_t i = pod_table_count(reg->table); !r && i > 0; i--) {
		struct pod *pod = pod_table_at(reg->table, i - 1);
		bool keep = pod->mode == POD_SKIP ? path_is_same(pod)
						  : recover_redirected(reg, pod, &kernel);

		json_decref(pod->annotations);
		json_decref(pod->labels);
		pod->annotations = pod->labels = NULL;
		if (keep)
			continue;
		log_dropped(pod, "ended while no agent ran");
		pod_table_remove(reg->table, pod);
	}
	if (!r)
		r = recover_orphans(reg, &kernel, err);
	free(kernel.cookies);
	if (!r)
		save(reg);
	return r;
}

bool registration_has_ended(const struct registration *reg, const struct pod *pod)
{
	return !path_is_same(pod) &&
	       (pod->mode == POD_SKIP || redirect_netns_gone(reg->cfg.redirect, pod->cookie));
}

void registration_sweep(struct registration *reg)
{
	bool changed = false;

	for (size_t i = pod_table_count(reg->table); i > 0; i--) {
		struct pod *pod = pod_table_at(reg->table, i - 1);
		struct error err = {0};

		if (!registration_has_ended(reg, pod))
			continue;
		if (pod->mode != POD_SKIP &&
		    redirect_remove(reg->cfg.redirect, pod->cookie, -1, &err)) {
			log_error(LOG_ERROR, &err, "cannot remove what an ended pod left",
				  "namespace", pod->ns, "pod", pod->name, NULL);
			continue;
		}
		if (reg->cfg.accelerate && pod->mode != POD_SKIP)
			accelerate_pod_remove(reg->cfg.accelerate, pod->cookie);
		log_dropped(pod, "its network namespace has ended");
		registration_drop(reg, pod);
		changed = true;
	}
	if (changed)
		save(reg);
}
