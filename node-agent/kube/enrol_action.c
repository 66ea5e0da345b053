/* SPDX-License-Identifier: Apache-2.0 */
#include "enrol_action.h"

static struct enrol_step step(enum enrol_action action, enum enrol_status status,
			      const char *reason)
{
	return (struct enrol_step){.action = action, .status = status, .reason = reason};
}

/* What the kernel has of the pod, as the annotation tells it. */
static enum enrol_status status_of(const struct enrol_view *v)
{
	if (v->enrolled != POD_AMBIENT)
		return ENROL_STATUS_NONE;
	return v->broken || v->ztunnel == ENROL_ZTUNNEL_REFUSED ? ENROL_STATUS_PENDING
								: ENROL_STATUS_ENABLED;
}

/* Of a pod that is in nobody's hands but perhaps another agent's, its annotation is that agent's.
 */
static enum enrol_status no_status(const struct enrol_view *v)
{
	return v->foreign ? ENROL_STATUS_KEEP : ENROL_STATUS_NONE;
}

/* What it has refused it was told all the same, tries again, and gets in each snapshot. */
static bool is_told(const struct enrol_view *v)
{
	return v->ztunnel == ENROL_ZTUNNEL_HAS_IT || v->ztunnel == ENROL_ZTUNNEL_REFUSED;
}

/* ---- the end of a pod ---------------------------------------------------------------------- */

/*
 * Neither the namespace's object nor the API's answer to anything else is needed here, or what
 * ztunnel and the probes' set hold would outlive the pod. That its containers have ended is only
 * what the API says: what runs on, if it does, must not bypass the proxy.
 */
static struct enrol_step next_of_ended(const struct enrol_view *v)
{
	if (v->enrolled == POD_SKIP && !is_told(v))
		return step(ENROL_NOTHING, v->gone ? ENROL_STATUS_KEEP : no_status(v),
			    "the pod has ended and is not enrolled");
	return step(v->enrolled == POD_SIDECAR ? ENROL_NOTHING : ENROL_RELEASE,
		    v->gone ? ENROL_STATUS_KEEP : ENROL_STATUS_NONE,
		    v->gone ? "the pod is deleted: what redirection it has ends with its network "
			      "namespace"
			    : "the pod's containers have ended: what redirection it has ends with "
			      "its network namespace");
}

/* ---- opt-out ------------------------------------------------------------------------------- */

static struct enrol_step next_of_unwanted(const struct enrol_view *v)
{
	/* A ztunnel that is told cuts every connection of the pod at once. */
	if (v->enrolled == POD_SKIP && is_told(v) && v->lingers)
		return step(ENROL_NOTHING, ENROL_STATUS_NONE,
			    "the pod is not redirected any more; ztunnel ends what it has of it");
	if (v->enrolled == POD_SKIP && is_told(v))
		return step(ENROL_RELEASE, ENROL_STATUS_NONE,
			    "the pod is not to be redirected, and ztunnel still has it");
	/* What it says of itself stays as long as it may be true. */
	if (v->enrolled == POD_SKIP && v->perhaps_orphan)
		return step(ENROL_WAIT, ENROL_STATUS_KEEP,
			    "the pod is not to be redirected, and may be one that the kernel still "
			    "redirects: its network namespace is not found yet");
	if (v->enrolled == POD_SKIP)
		return step(ENROL_NOTHING, no_status(v), "the pod is not to be redirected");
	if (!v->netns_known)
		return step(ENROL_WAIT, status_of(v),
			    "the pod is not to be redirected, but its network namespace, where the "
			    "redirection is to be taken back, cannot be opened yet");
	return step(ENROL_WITHDRAW, ENROL_STATUS_NONE, "the pod is not to be redirected any more");
}

/* ---- opt-in -------------------------------------------------------------------------------- */

static struct enrol_step next_without_ztunnel(const struct enrol_view *v)
{
	if (!v->creating)
		return step(ENROL_WAIT, ENROL_STATUS_PENDING,
			    "the pod waits for ztunnel, which is not connected");
	if (v->admit_without_ztunnel)
		return step(
			ENROL_WAIT, ENROL_STATUS_PENDING,
			"ztunnel is not connected: the pod is admitted and redirected when it is");
	return step(ENROL_REFUSE, ENROL_STATUS_KEEP, "ztunnel is not connected");
}

/* What both modes need, in the order in which it comes. NULL: it is there. */
static const char *missing(const struct enrol_view *v)
{
	if (!v->has_ips)
		return "the pod has no address yet";
	if (!v->netns_known)
		return "the pod's network namespace is not found yet";
	return NULL;
}

static struct enrol_step next_of_new_ambient(const struct enrol_view *v)
{
	const char *lacks = missing(v);

	if (lacks)
		return step(ENROL_WAIT, ENROL_STATUS_NONE, lacks);
	if (v->ztunnel == ENROL_ZTUNNEL_ABSENT)
		return next_without_ztunnel(v);
	if (v->ztunnel == ENROL_ZTUNNEL_REFUSED && v->creating)
		return step(ENROL_REFUSE, ENROL_STATUS_KEEP, "ztunnel did not take the pod");
	if (v->enrolled == POD_SIDECAR)
		return step(ENROL_ENROL, ENROL_STATUS_ENABLED,
			    "the pod goes from its sidecar to ztunnel");
	if (v->ours)
		return step(ENROL_ENROL, ENROL_STATUS_ENABLED,
			    "the pod was redirected, and the kernel has nothing of it any more");
	if (v->ztunnel == ENROL_ZTUNNEL_UNNEEDED)
		return step(ENROL_ENROL, ENROL_STATUS_ENABLED,
			    "the pod is to be redirected to the node's proxy");
	return step(ENROL_ENROL, ENROL_STATUS_ENABLED, "the pod is to be redirected to ztunnel");
}

/* It is redirected, and neither can be checked nor given to a ztunnel that connects. */
static struct enrol_step next_without_netns(const struct enrol_view *v)
{
	if (v->ztunnel == ENROL_ZTUNNEL_UNTOLD || v->ztunnel == ENROL_ZTUNNEL_REFUSED)
		return step(ENROL_WAIT, ENROL_STATUS_PENDING,
			    "ztunnel does not have the pod, and its network namespace cannot be "
			    "opened yet");
	return step(ENROL_WAIT, status_of(v),
		    "redirected, but the pod's network namespace cannot be opened for the next "
		    "ztunnel");
}

static struct enrol_step next_of_ambient(const struct enrol_view *v)
{
	if (v->enrolled != POD_AMBIENT)
		return next_of_new_ambient(v);
	/* One that has connected meanwhile could not be given the namespace. */
	if (v->netns_moved && v->ztunnel == ENROL_ZTUNNEL_HAS_IT)
		return step(ENROL_ENROL, ENROL_STATUS_ENABLED,
			    "redirected, but ztunnel may lack the pod's network namespace");
	/* The kernel's part first: it holds whether or not a ztunnel is there to be told. */
	if (v->plan_differs && !v->netns_known)
		return step(ENROL_WAIT, status_of(v),
			    "the pod's plan has changed, but its network namespace cannot be "
			    "opened yet");
	if (v->plan_differs)
		return step(ENROL_UPDATE, status_of(v), "the pod's plan has changed");
	if (v->addresses_differ && v->has_ips)
		return step(ENROL_UPDATE, status_of(v), "the pod's addresses have changed");
	if (!v->netns_known)
		return next_without_netns(v);
	if (v->ztunnel == ENROL_ZTUNNEL_UNTOLD || v->ztunnel == ENROL_ZTUNNEL_REFUSED)
		return step(ENROL_ENROL, ENROL_STATUS_ENABLED,
			    "redirected, but ztunnel does not have the pod");
	if (v->netns_moved)
		return step(ENROL_UPDATE, status_of(v),
			    "the pod's network namespace is reached by another path");
	return step(ENROL_NOTHING, status_of(v),
		    v->ztunnel == ENROL_ZTUNNEL_ABSENT
			    ? "redirected; the next ztunnel learns of the pod when it connects"
			    : "redirected");
}

/*
 * A sidecar pod whose test of the redirection has passed is redirected by somebody else; a second
 * capture would only come in between, unless the pod asks for ours by name.
 */
static bool redirected_elsewhere(const struct enrol_view *v)
{
	return !v->creating && !v->ours && !v->asked && v->validation == ENROL_VALIDATION_PASSED;
}

static struct enrol_step next_of_new_sidecar(const struct enrol_view *v)
{
	const char *lacks = missing(v);

	if (redirected_elsewhere(v))
		return step(ENROL_NOTHING, ENROL_STATUS_NONE,
			    "the pod has found itself redirected, by another than this agent");
	if (!v->creating && !v->ours && !v->asked && !v->repairs)
		return step(ENROL_NOTHING, ENROL_STATUS_NONE,
			    "the pod has started without redirection, and that is not repaired");
	if (lacks)
		return step(ENROL_WAIT, ENROL_STATUS_NONE, lacks);
	if (v->ours)
		return step(ENROL_ENROL, ENROL_STATUS_NONE,
			    "the pod was redirected, and the kernel has nothing of it any more");
	if (v->validation == ENROL_VALIDATION_DUE && !v->creating)
		return step(ENROL_ENROL, ENROL_STATUS_NONE,
			    "the pod has started without redirection, and is about to test for it");
	return step(ENROL_ENROL, ENROL_STATUS_NONE, "the pod is to be redirected to its sidecar");
}

static struct enrol_step next_of_sidecar(const struct enrol_view *v)
{
	if (v->enrolled == POD_SKIP)
		return next_of_new_sidecar(v);
	if (v->enrolled == POD_SIDECAR && is_told(v))
		return step(ENROL_RELEASE, ENROL_STATUS_NONE,
			    "the pod has a sidecar, and ztunnel still has it");
	if (v->enrolled == POD_SIDECAR && !v->plan_differs && !v->addresses_differ)
		return step(ENROL_NOTHING, ENROL_STATUS_NONE, "redirected");
	if (!v->netns_known)
		return step(ENROL_WAIT, status_of(v),
			    "the pod's plan has changed, but its network namespace cannot be "
			    "opened yet");
	if (v->enrolled == POD_AMBIENT)
		return step(ENROL_UPDATE, ENROL_STATUS_NONE,
			    "the pod goes from ztunnel to its sidecar");
	return step(ENROL_UPDATE, ENROL_STATUS_NONE, "the pod's plan has changed");
}

/* ---- not known ----------------------------------------------------------------------------- */

static struct enrol_step next_of_undecided(const struct enrol_view *v)
{
	if (v->enrolled != POD_SKIP)
		return step(ENROL_NOTHING, ENROL_STATUS_KEEP,
			    "what the API server says of the pod is not known: it stays redirected "
			    "as it is");
	if (v->creating && v->hold)
		return step(ENROL_REFUSE, ENROL_STATUS_KEEP,
			    "the pod's namespace is ambient, and what the API server says of the "
			    "pod is not known yet");
	return step(ENROL_WAIT, ENROL_STATUS_KEEP,
		    "what the API server says of the pod is not known yet");
}

struct enrol_step enrol_next(const struct enrol_view *view)
{
	if (view->gone || view->ended)
		return next_of_ended(view);
	switch (view->wanted) {
	case POD_SKIP:
		return next_of_unwanted(view);
	case POD_SIDECAR:
		return next_of_sidecar(view);
	case POD_AMBIENT:
		return next_of_ambient(view);
	case POD_UNDECIDED:
		break;
	}
	return next_of_undecided(view);
}

/* ---- when ---------------------------------------------------------------------------------- */

bool enrol_is_due(int64_t now_ms, int64_t not_before_ms, int64_t lingers_until_ms,
		  int64_t *ret_next_ms)
{
	const int64_t times[] = {not_before_ms, lingers_until_ms};
	bool is_due = false;

	*ret_next_ms = INT64_MAX;
	for (size_t i = 0; i < sizeof(times) / sizeof(times[0]); i++) {
		if (!times[i])
			continue;
		if (times[i] <= now_ms)
			is_due = true;
		else if (times[i] < *ret_next_ms)
			*ret_next_ms = times[i];
	}
	return is_due;
}

const char *enrol_action_name(enum enrol_action action)
{
	static const char *const names[] = {
		[ENROL_NOTHING] = "nothing",   [ENROL_ENROL] = "enrol",
		[ENROL_WITHDRAW] = "withdraw", [ENROL_RELEASE] = "release",
		[ENROL_UPDATE] = "update",     [ENROL_WAIT] = "wait",
		[ENROL_REFUSE] = "refuse",
	};

	return names[action];
}
