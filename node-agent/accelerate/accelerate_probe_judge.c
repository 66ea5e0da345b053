/* SPDX-License-Identifier: Apache-2.0 */
#include "accelerate_probe.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* What a test decides when it does not come out as TCP. */
enum decides {
	NOTHING, /* known, and worked around everywhere */
	ALL,	 /* without it there is no short way at all */
	WARNING, /* of level full: applications may rely on it, non-blocking proxies do not */
};

struct test_facts {
	const char *name;
	enum decides decides;
	const char *differs; /* in a list of what differs */
	const char *why;
};

static const struct test_facts facts[TEST_COUNT_] = {
	[TEST_LOADS] = {"loads", ALL, "the programs do not load",
			"the accelerator's own programs have to pass this kernel's verifier"},
	[TEST_ORDER] = {"order", NOTHING, "the short way overtakes TCP",
			"a control: what goes the short way overtakes what TCP has delivered and "
			"nobody has read, so a direction changes over only when it is drained"},
	[TEST_ORDER_DRAINED] = {"order-drained", ALL, "order",
				"once TCP's bytes are read the short way keeps the order, and "
				"TCP after it does too"},
	[TEST_COPIED_SEQ] = {"copied-seq", ALL, "copied_seq",
			     "the receiver's copied_seq, which proves that TCP's bytes were read, "
			     "counts these and no others"},
	[TEST_EOF] = {"eof", ALL, "bytes before the end of file",
		      "what was sent before close() is read before the end of file"},
	[TEST_HALF_CLOSE] = {"half-close", ALL, "half-close",
			     "the same for shutdown(), and the other direction goes on"},
	[TEST_RST] = {"rst", ALL, "bytes before a reset",
		      "what was sent before a reset is read before the reset is told"},
	[TEST_MEMORY] = {"memory", NOTHING, "unread bytes are not charged to the receiver",
			 "unread bytes are charged to the receiver's socket; where they are not, "
			 "our own limits are the only ones"},
	[TEST_ACCOUNTED] = {"accounted", ALL, "charged memory does not return",
			    "what was charged returns when the bytes are read, or the connection "
			    "would come to a stop"},
	[TEST_SECOND_OWNER] = {"second-owner", ALL, "a second owner is not refused",
			       "somebody else's sockmap and ours cannot take one socket from each "
			       "other"},
	[TEST_ENTRY_REMOVED] = {"entry-removed", NOTHING, "removing an entry loses bytes",
				"removing a socket's entry loses its unread bytes, so none is ever "
				"removed"},
	[TEST_FIONREAD_SHORT] = {"fionread-short", WARNING, "FIONREAD",
				 "FIONREAD counts what came the short way"},
	[TEST_FIONREAD_TCP] = {"fionread-tcp", WARNING, "FIONREAD of TCP's bytes",
			       "FIONREAD counts what came by TCP to a socket in the map"},
	[TEST_SPLICE] = {"splice", WARNING, "splice()", "splice() finds what came the short way"},
	[TEST_ZEROCOPY] = {"zerocopy", WARNING, "MSG_ZEROCOPY",
			   "MSG_ZEROCOPY tells when the pages are free again"},
	[TEST_WAITALL] = {"waitall", WARNING, "MSG_WAITALL", "MSG_WAITALL waits for all"},
	[TEST_BLOCKING] = {"blocking", WARNING, "blocking recv()",
			   "a blocking recv() waits for data, whatever else wakes it"},
};

const char *accelerate_test_name(enum accelerate_test test)
{
	return facts[test].name;
}

const char *accelerate_test_why(enum accelerate_test test)
{
	return facts[test].why;
}

const char *accelerate_test_decides(enum accelerate_test test)
{
	static const char *const names[] = {
		[NOTHING] = "nothing", [ALL] = "proxy", [WARNING] = "full"};

	return names[facts[test].decides];
}

const char *accelerate_finding_name(enum accelerate_finding finding)
{
	static const char *const names[] = {
		[FINDING_UNKNOWN] = "unknown",
		[FINDING_AS_TCP] = "as-tcp",
		[FINDING_DIFFERS] = "differs",
	};

	return names[finding];
}

/* ---- judging -------------------------------------------------------------------------------- */

/* The first test that everything needs and that did not come out right; TEST_COUNT_: none. */
static enum accelerate_test first_failed(const struct accelerate_probe *probe)
{
	enum accelerate_test test;

	for (test = 0; test < TEST_COUNT_; test++) {
		enum accelerate_finding finding = probe->results[test].finding;

		/* Whoever judges before loading does not know yet. */
		if (test == TEST_LOADS && finding == FINDING_UNKNOWN)
			continue;
		if (facts[test].decides == ALL && finding != FINDING_AS_TCP)
			break;
	}
	return test;
}

__attribute__((format(printf, 3, 4))) static void append(char *text, size_t size, const char *fmt,
							 ...)
{
	size_t used = strlen(text);
	va_list args;

	va_start(args, fmt);
	vsnprintf(text + used, size - used, fmt, args);
	va_end(args);
}

/* Into the reason: what applications have to do without at level full. */
static void warn_of_full(struct accelerate_probe *probe)
{
	bool first = true;

	for (enum accelerate_test test = 0; test < TEST_COUNT_; test++) {
		if (facts[test].decides != WARNING ||
		    probe->results[test].finding == FINDING_AS_TCP)
			continue;
		append(probe->reason, sizeof(probe->reason), "%s%s",
		       first ? "full is unsafe for programs that use " : ", ", facts[test].differs);
		first = false;
	}
	if (first)
		append(probe->reason, sizeof(probe->reason), "nothing differs that programs use");
}

static void give_reason(struct accelerate_probe *probe, enum accelerate_test failed)
{
	const struct accelerate_result *result = &probe->results[failed];
	const char *name = facts[failed].name;

	if (result->finding == FINDING_UNKNOWN)
		snprintf(probe->reason, sizeof(probe->reason), "%s: %s", name,
			 *result->detail ? result->detail : "not tried");
	else
		snprintf(probe->reason, sizeof(probe->reason),
			 "%s: this kernel does it otherwise: %s; %s", name, result->detail,
			 facts[failed].why);
}

void accelerate_probe_judge(struct accelerate_probe *probe, bool ignore_known_bugs)
{
	enum accelerate_test failed = first_failed(probe);

	probe->proxy = probe->full = false;
	probe->reason[0] = '\0';
	/* Holds whatever was seen. */
	if (probe->known_bug && !ignore_known_bugs) {
		snprintf(probe->reason, sizeof(probe->reason), "this kernel has a known bug: %s",
			 probe->known_bug);
		return;
	}
	if (failed != TEST_COUNT_) {
		give_reason(probe, failed);
		return;
	}
	probe->proxy = probe->full = true;
	warn_of_full(probe);
}

/* ---- telling -------------------------------------------------------------------------------- */

static json_t *tests_json(const struct accelerate_probe *probe)
{
	json_t *tests = json_array();

	for (enum accelerate_test test = 0; test < TEST_COUNT_; test++) {
		const struct accelerate_result *result = &probe->results[test];

		json_array_append_new(
			tests, json_pack("{s:s,s:s,s:s,s:s,s:s}", "name", facts[test].name,
					 "finding", accelerate_finding_name(result->finding),
					 "detail", result->detail, "decides",
					 accelerate_test_decides(test), "why", facts[test].why));
	}
	return tests;
}

json_t *accelerate_probe_to_json(const struct accelerate_probe *probe)
{
	const char *level = probe->full ? "full" : probe->proxy ? "proxy" : "off";

	return json_pack("{s:s,s:I,s:s,s:s,s:s?,s:o}", "release", probe->release, "tookUs",
			 (json_int_t)probe->took_us, "level", level, "reason", probe->reason,
			 "knownBug", probe->known_bug, "tests", tests_json(probe));
}
