/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_CTL_H
#define SOCKMESH_CTL_H

/*
 * sockmeshctl: each verb is one request to the agent and one way to show its answer. main.c reads
 * the command line and dispatches; ctl_<verb>.c holds a verb; ctl_print.c prints.
 */
#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

struct agent_request;
struct ctl_out;
struct error;

enum ctl_exit {
	CTL_OK = 0,
	CTL_NO = 1, /* no, not found, degraded */
	CTL_USAGE = 2,
	CTL_UNREACHABLE = 3,
	CTL_AGENT_ERROR = 4,
};

/* What the command line said. Strings are borrowed from argv or the environment. */
struct ctl_options {
	const char *run_dir;
	int timeout_ms;
	bool json;
	const char *pod;  /* --pod, or the argument of `pod`: "NAMESPACE/NAME" */
	const char *to;	  /* "ADDR:PORT" */
	int64_t uid, gid; /* -1: not given */
	bool udp;
	const char *interface; /* NULL: not given */
	const char *advise;    /* "NAMESPACE/NAME" of a workload; NULL: not given */
	unsigned seconds;      /* 0: not given */
};

enum ctl_option_set { /* which options a verb takes besides the common ones */
		      CTL_TAKES_NOTHING = 0,
		      CTL_TAKES_POD_ARGUMENT = 1 << 0,
		      CTL_TAKES_FLOW = 1 << 1,
		      CTL_TAKES_ADVICE = 1 << 2,
};

struct ctl_verb {
	const char *name;
	const char *arguments; /* as the usage line shows them, "" for none */
	const char *help;
	unsigned takes; /* enum ctl_option_set */

	/* Fills the request's strings (owned by it). -EINVAL is a usage error. */
	int (*request)(const struct ctl_options *opt, struct agent_request *req, struct error *err);
	/* The exit status of an ok answer, and the answer for people. */
	enum ctl_exit (*status)(const json_t *answer);
	void (*show)(const struct ctl_options *opt, const json_t *answer, struct ctl_out *out);
	/*
	 * For answers that take longer than a request may: how many seconds are left at most, and
	 * in words what is waited for; 0: this is the answer. NULL: every answer is.
	 */
	unsigned (*left_s)(const json_t *answer, char *ret_what, size_t size);
};

extern const struct ctl_verb ctl_status, ctl_pods, ctl_pod, ctl_explain, ctl_probe, ctl_accelerate;

/* For verbs whose answer, when there is one, is always a yes. */
enum ctl_exit ctl_always_ok(const json_t *answer);

/* Splits "NAMESPACE/NAME" into the request. -EINVAL names the text. */
int ctl_set_pod(const char *text, struct agent_request *req, struct error *err);

#endif
