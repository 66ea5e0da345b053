/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_ENROLMENT_PRIVATE_H
#define SOCKMESH_ENROLMENT_PRIVATE_H

/*
 * What the files of enrolment share. enrolment.c keeps the members and their turns;
 * enrolment_sources.c hears (API server, processes, ztunnel); enrolment_adds.c holds the plugin's
 * requests that wait; enrolment_act.c looks at one pod and does what is due.
 */
#include "cgroup_pod.h"
#include "enrolment.h"
#include "kube_backoff.h"
#include "kube_pod.h"
#include "kube_store.h"
#include "log.h"
#include "pod_table.h"
#include "zds_server.h"

enum { MEMBER_BUCKETS = 256 };

struct event_source;
struct kube_watch;
struct pod_repair;
struct pod_search;
struct pod_status;
struct process_watch;

/* A plugin's add that cannot be answered yet. */
struct waiting_add {
	struct waiting_add *next;
	struct agent_call *call;
	struct agent_request *req; /* owned */
	int netns_fd;		   /* owned */
	int64_t until_ms;	   /* monotonic: then it is decided from what is known */
	bool presumed;		   /* struct pod_facts' */
	bool asks_ztunnel;	   /* its member's turn it is; not in the list of those that wait */
};

struct member { /* a pod, by the uid that the API has for it */
	struct member *next;
	struct member *next_due;
	bool is_due;
	char *uid, *ns, *name;

	/* its namespace, found by its processes; until it is registered */
	int found_fd;
	char *found_netns, *found_cgroup;
	char searched[POD_UID_SIZE]; /* the uid that its processes are looked for by; "": no */

	bool is_expected;	 /* the API has it, or should: if it does not, the pod is gone */
	bool has_warned;	 /* of what the pod says and nobody can read */
	bool asks_ztunnel;	 /* an Add is under way */
	bool looks_again;	 /* something has changed meanwhile */
	struct waiting_add *add; /* that is answered when ztunnel has answered */

	int64_t not_before_ms;	  /* monotonic: after a failure */
	int64_t lingers_until_ms; /* monotonic: when ztunnel is told that the pod has left; 0: at
				     once */
	struct kube_backoff backoff;
	char trouble[192]; /* why it is not as it should be; "": it is */

	char *status; /* as it was written last, without its generation */
	unsigned generation;
	bool wrote_redirection;
};

/* What the API server was when it was asked last, for one kind of objects. */
enum api_state {
	API_UNTRIED, /* the first answer may come at any moment */
	API_HEARD,
	API_AWAY, /* it has failed, and has not answered since */
};

struct enrolment {
	struct enrolment_config cfg;

	struct kube_store *store; /* these three only with a client */
	struct kube_watch *watches[KUBE_KIND_COUNT_];
	struct pod_status *status;
	struct pod_repair *repair;
	enum api_state api[KUBE_KIND_COUNT_];
	bool is_elsewhere; /* as it seems: the API has none of the pods that were taken over */

	struct zds_server *zds; /* NULL: not opened, or not possible yet */
	struct event_source *zds_timer;
	bool wants_zds;
	unsigned ztunnels;
	struct log_limit zds_failures;

	struct pod_search *search;
	struct process_watch *processes;
	struct event_source *search_timer;

	struct member *members[MEMBER_BUCKETS];
	size_t n_members;
	struct member *due, **due_end;
	struct event_source *due_timer;
	struct event_source *retry_timer;
	int64_t retry_at_ms;

	struct waiting_add *adds;
	size_t n_adds;
	struct event_source *adds_timer;
	int64_t adds_at_ms; /* when it fires */
	bool is_closing;

	uint64_t joined, left, changed, refused, found, admitted_unknown, admitted_without_ztunnel;
};

/* ---- enrolment.c ---- */

struct member *enrolment_member(struct enrolment *e, const char *uid); /* NULL: none */
/* The same, made when there is none; NULL without memory. */
struct member *enrolment_member_get(struct enrolment *e, const char *uid, const char *ns,
				    const char *name);
void enrolment_member_drop(struct enrolment *e, struct member *m);
void enrolment_due(struct enrolment *e, struct member *m); /* it is looked at soon */
void enrolment_due_all(struct enrolment *e);
void enrolment_retry(struct enrolment *e, struct member *m);  /* later, and later each time */
void enrolment_linger(struct enrolment *e, struct member *m); /* ztunnel has it a while longer */

/*
 * The entry of the member's pod; NULL: none. It may name the pod otherwise than the API does: by
 * kubelet's uid of a static pod, by its sandbox where the runtime said no uid, or not at all.
 */
const struct pod *enrolment_entry(const struct enrolment *e, const struct kube_pod *kp,
				  const char *uid);

/* ---- enrolment_sources.c ---- */

int enrolment_sources_open(struct enrolment *e, struct error *err);
void enrolment_sources_close(struct enrolment *e);
/* Is what the API server said a moment ago still what it says, or may it be about to speak? */
bool enrolment_is_current(const struct enrolment *e);
/* The API has a pod that is registered here: what it does not have is gone. */
void enrolment_is_here(struct enrolment *e);
/* Does it seem to speak of another node? Not any more when the pods that it lacked have ended. */
bool enrolment_is_elsewhere(struct enrolment *e);
void enrolment_search(struct enrolment *e, struct member *m, const struct kube_pod *kp);
void enrolment_search_end(struct enrolment *e, struct member *m);
/* Serves it from now on, if it does not yet; not where the proxy is another one. */
void enrolment_want_ztunnel(struct enrolment *e);

/* ---- enrolment_adds.c ---- */

void enrolment_adds_look(struct enrolment *e); /* at all that wait */
/* At those that wait for this object. */
void enrolment_adds_told(struct enrolment *e, enum kube_kind kind, const json_t *object);
void enrolment_adds_answer_all(struct enrolment *e);
void enrolment_add_answer(struct enrolment *e, struct waiting_add *add, json_t *reply); /* frees */
/* The same, with what was decided: a refusal is counted, and told where the API knows the pod. */
void enrolment_add_decided(struct enrolment *e, struct waiting_add *add, json_t *reply);

/* ---- enrolment_act.c ---- */

void enrolment_look_at(struct enrolment *e, struct member *m);
void enrolment_join(struct enrolment *e, struct member *m, const struct kube_pod *kp, int netns_fd);
void enrolment_facts(const struct enrolment *e, const struct kube_pod *kp, const struct pod *entry,
		     const struct agent_request *req, struct pod_facts *ret);
void enrolment_leave_ztunnel(struct enrolment *e, const char *uid);

#endif
