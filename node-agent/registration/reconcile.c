/* SPDX-License-Identifier: Apache-2.0 */

/*
 * The kernel can be changed by others behind our back. Every so often each pod is compared with
 * what was decided for it, and what differs is put right, counted and logged.
 */
#include "error.h"
#include "json.h"
#include "monotonic.h"
#include "registration_private.h"
#include "scoped.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SLICE_MS = 40 };

/* text: why it is not redirected as it should be, NULL: it is. Without memory it is told later. */
static void set_broken(struct registration *reg, struct pod *pod, const char *text)
{
	/* What was found may have names in it that somebody in the pod has given. */
	scoped_json json_t *valid = text ? json_string_lossy(text) : NULL;
	char *broken = valid ? strdup(json_string_value(valid)) : NULL;
	bool changed = !broken != !pod->broken;

	free(pod->broken);
	pod->broken = broken;
	if (changed && reg->cfg.broken)
		reg->cfg.broken(reg->cfg.hooks_arg, pod);
}

static void heal_failed(struct registration *reg, struct pod *pod, const struct error *found,
			const struct error *err)
{
	char why[sizeof(err->text) + 64], text[sizeof(found->text) + sizeof(why) + 64];

	log_error(pod->heal_failed ? LOG_DEBUG : LOG_ERROR, err,
		  "cannot put a pod's redirection right", "namespace", pod->ns, "pod", pod->name,
		  "container", pod->container_id, found->code ? "found" : NULL, found->text, NULL);
	pod->heal_failed = true;
	if (!found->code)
		return;
	snprintf(text, sizeof(text),
		 "not redirected as planned: %s; and it cannot be put right: %s", found->text,
		 error_format(err, why, sizeof(why)));
	set_broken(reg, pod, text);
}

static void reconcile_pod(struct registration *reg, struct pod *pod)
{
	static const char *const said[] = {
		[REDIRECT_HEALED] =
			"a pod's redirection was changed from outside, and is put right",
		[REDIRECT_MOVED] = "a pod has moved to another engine",
	};
	scoped_fd int netns_fd = registration_open_netns(pod);
	enum redirect_healing done = REDIRECT_AS_PLANNED;
	struct engine_pod engine_pod;
	struct error err = {0}, why = {0};

	if (netns_fd < 0)
		return; /* the sweep finds out whether it has ended */
	registration_engine_pod(reg, pod, netns_fd, &engine_pod);
	if (redirect_heal(reg->cfg.redirect, &engine_pod.pod, &done, &why, &err)) {
		heal_failed(reg, pod, &why, &err);
		return;
	}
	pod->heal_failed = false;
	set_broken(reg, pod, NULL);
	if (done == REDIRECT_MOVED)
		registration_accelerate(reg, pod);
	if (done != REDIRECT_AS_PLANNED)
		log_write(done == REDIRECT_HEALED ? LOG_WARN : LOG_INFO, said[done], "namespace",
			  pod->ns, "pod", pod->name, "engine",
			  redirect_pod_engine(reg->cfg.redirect, pod->cookie), "found", why.text,
			  NULL);
}

/* A table that changes between two slices only makes a pod wait for the next round. */
bool registration_reconcile(struct registration *reg)
{
	int64_t end_ms = monotonic_ms() + SLICE_MS;

	while (reg->reconciled < pod_table_count(reg->table)) {
		struct pod *pod = pod_table_at(reg->table, reg->reconciled++);

		/* A namespace counts once, at its first entry; nobody knows an orphan's plan. */
		if (pod->mode != POD_SKIP && pod->plan &&
		    pod_table_redirected(reg->table, pod->cookie, NULL) == pod)
			reconcile_pod(reg, pod);
		if (monotonic_ms() >= end_ms)
			return true;
	}
	reg->reconciled = 0;
	return false;
}
