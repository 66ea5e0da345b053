/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_ENROL_ACTION_H
#define SOCKMESH_ENROL_ACTION_H

/*
 * What to do next about one pod: what is wanted, what the kernel and ztunnel have, and what can be
 * done now, in; one step and its reason in words out. Pure.
 *
 * What is enrolled is read from the kernel, never from an annotation: annotations survive what they
 * tell of (a reboot, a crash between two steps). Nothing that cannot be finished is begun, and
 * nothing is called done that is not: a pod that waits is looked at again at the next event and by
 * the next round of the reconciler.
 */
#include "pod_policy.h"

#include <stdbool.h>
#include <stdint.h>

enum enrol_ztunnel {			   /* what the connected ztunnels know of the pod */
		     ENROL_ZTUNNEL_ABSENT, /* none is connected */
		     ENROL_ZTUNNEL_UNTOLD, /* connected, and this pod is not there, or as another */
		     ENROL_ZTUNNEL_REFUSED, /* it was told, and answered with an error or not at all
					     */
		     ENROL_ZTUNNEL_HAS_IT,
		     ENROL_ZTUNNEL_UNNEEDED, /* the proxy is another, and is told nothing */
};

enum enrol_validation { /* the init container that tests whether the pod is redirected */
			ENROL_VALIDATION_NONE,
			ENROL_VALIDATION_DUE, /* it runs, will run or will run again */
			ENROL_VALIDATION_PASSED,
};

struct enrol_view {
	enum pod_mode wanted; /* pod_policy_decide(), POD_UNDECIDED too */
	bool hold;	      /* struct pod_decision's */
	bool asked;	      /* wanted because of sockmesh.io/redirection */
	bool foreign;	      /* the same, and nothing is written on it that would be ours */

	enum pod_mode enrolled; /* what the kernel has; POD_SKIP: nothing. Never POD_UNDECIDED */
	bool ours;		/* this agent, or one before it, had enrolled the pod */
	bool plan_differs;	/* the kernel's plan is not today's */
	bool perhaps_orphan;	/* it may be one of those that the kernel has and nobody knows */
	bool broken;		/* the kernel does not do it, and cannot be brought to do it yet */
	bool addresses_differ;	/* what is kept by address (probes) is not today's */

	bool creating; /* the CNI plugin waits for an answer; there is no API object yet */
	bool gone;     /* deleted from the API */
	bool ended;    /* Succeeded or Failed */
	bool has_ips;
	bool netns_known; /* and open, or can be opened */
	bool netns_moved; /* enrolled, and where it was opened before nothing leads there any more
			   */

	enum enrol_ztunnel ztunnel;
	bool lingers; /* the pod has just left, and ztunnel may end what it has of it */
	bool admit_without_ztunnel; /* --without-ztunnel admit */
	enum enrol_validation validation;
	bool repairs; /* sidecar pods that have started without redirection are to get it */
};

enum enrol_action {
	ENROL_NOTHING,
	ENROL_ENROL, /* ambient: hand it to ztunnel, then redirect; else redirect */
	/* Take back the redirection and what the probes' set has; ENROL_RELEASE follows. */
	ENROL_WITHDRAW,
	/*
	 * Tell ztunnel and the probes' set only: the namespace may live, and as long as it does its
	 * connections stay redirected, rather than bypass the proxy.
	 */
	ENROL_RELEASE,
	ENROL_UPDATE, /* replace the plan in place, and what is kept by address */
	ENROL_WAIT,   /* cannot be done now */
	ENROL_REFUSE, /* while creating: "try again later" */
};

/* What annotation ambient.istio.io/redirection is to say once the step is done. */
enum enrol_status {
	ENROL_STATUS_KEEP, /* as it is: nothing is known that could be said */
	ENROL_STATUS_NONE, /* no such annotation */
	ENROL_STATUS_PENDING,
	ENROL_STATUS_ENABLED,
};

struct enrol_step {
	enum enrol_action action;
	enum enrol_status status;
	const char *reason; /* a literal */
};

struct enrol_step enrol_next(const struct enrol_view *view);

/*
 * Is a pod to be looked at again now? Each time is 0 for none; the first that is still to come is
 * in *ret_next_ms, INT64_MAX if there is none.
 */
bool enrol_is_due(int64_t now_ms, int64_t not_before_ms, int64_t lingers_until_ms,
		  int64_t *ret_next_ms);

const char *enrol_action_name(enum enrol_action action); /* "enrol", for logs and counters */

#endif
