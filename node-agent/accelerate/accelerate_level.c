/* SPDX-License-Identifier: Apache-2.0 */
#include "accelerate_level.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define ANNOTATION "annotation sockmesh.io/accelerate"

static const char *const policies[] = {
	[ACCELERATE_OFF] = "off",   [ACCELERATE_PROXY] = "proxy",
	[ACCELERATE_AUTO] = "auto", [ACCELERATE_FULL_ADVISED] = "full-advised",
	[ACCELERATE_FULL] = "full",
};

static const struct {
	const char *text;
	enum accelerate_wish wish;
} wishes[] = {
	{"auto", ACCELERATE_WISH_NONE},
	{"off", ACCELERATE_WISH_OFF},
	{"proxy", ACCELERATE_WISH_PROXY},
	{"full", ACCELERATE_WISH_FULL},
};

bool accelerate_policy_parse(const char *text, enum accelerate_policy *ret)
{
	for (size_t i = 0; i < sizeof(policies) / sizeof(policies[0]); i++)
		if (!strcmp(text, policies[i])) {
			*ret = (enum accelerate_policy)i;
			return true;
		}
	return false;
}

const char *accelerate_policy_name(enum accelerate_policy policy)
{
	return policies[policy];
}

bool accelerate_wish_parse(const char *text, enum accelerate_wish *ret)
{
	for (size_t i = 0; i < sizeof(wishes) / sizeof(wishes[0]); i++)
		if (!strcmp(text, wishes[i].text)) {
			*ret = wishes[i].wish;
			return true;
		}
	return false;
}

const char *accelerate_level_name(enum accel_level level)
{
	switch (level) {
	case ACCEL_PROXY:
		return "proxy";
	case ACCEL_FULL:
		return "full";
	case ACCEL_OFF:
		break;
	}
	return "off";
}

enum accel_level accelerate_most(enum accelerate_policy policy)
{
	switch (policy) {
	case ACCELERATE_PROXY:
		return ACCEL_PROXY;
	case ACCELERATE_AUTO:
	case ACCELERATE_FULL_ADVISED:
	case ACCELERATE_FULL:
		return ACCEL_FULL;
	case ACCELERATE_OFF:
		break;
	}
	return ACCEL_OFF;
}

__attribute__((format(printf, 3, 4))) static enum accel_level
decided(enum accel_level level, char *ret_reason, const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vsnprintf(ret_reason, ACCELERATE_REASON_MAX, format, args);
	va_end(args);
	return level;
}

void accelerate_explain(enum accelerate_policy policy, bool unknown_proxy, const char *probed,
			char ret_reason[static ACCELERATE_REASON_MAX])
{
	static const char *const whom[] = {
		[ACCELERATE_OFF] = "nothing",
		[ACCELERATE_PROXY] = "proxy for all pods, and full for none",
		[ACCELERATE_AUTO] = "proxy for all pods, full for those that ask",
		[ACCELERATE_FULL_ADVISED] =
			"proxy for all pods, full for those that ask or are cleared",
		[ACCELERATE_FULL] = "full for all pods",
	};
	bool asked =
		unknown_proxy && (policy == ACCELERATE_AUTO || policy == ACCELERATE_FULL_ADVISED);

	snprintf(ret_reason, ACCELERATE_REASON_MAX, "--accelerate %s: %s%s%s",
		 accelerate_policy_name(policy),
		 asked ? "only pods that ask, as this mesh's proxy is not known" : whom[policy],
		 policy == ACCELERATE_PROXY ? "" : "; here ",
		 policy == ACCELERATE_PROXY ? "" : probed);
}

/* A pod that has not asked for less, on a node that may go beyond proxy. */
static enum accel_level decide_full(const struct accelerate_facts *facts, char *ret_reason)
{
	if (facts->wish == ACCELERATE_WISH_FULL)
		return decided(ACCEL_FULL, ret_reason, ANNOTATION " is full");
	if (facts->policy == ACCELERATE_FULL)
		return decided(ACCEL_FULL, ret_reason,
			       "--accelerate full: every pod, at the operator's own risk");
	if (facts->policy == ACCELERATE_AUTO)
		return decided(ACCEL_PROXY, ret_reason,
			       "--accelerate auto: full is for pods that ask for it");
	if (facts->cleared)
		return decided(ACCEL_FULL, ret_reason, "the adviser has cleared workload %s",
			       facts->workload);
	return decided(ACCEL_PROXY, ret_reason,
		       "the adviser has not cleared workload %s for full: sockmeshctl accelerate "
		       "--advise",
		       facts->workload);
}

enum accel_level accelerate_decide(const struct accelerate_facts *facts,
				   char ret_reason[static ACCELERATE_REASON_MAX])
{
	if (facts->not_here)
		return decided(ACCEL_OFF, ret_reason, "%s", facts->not_here);
	if (facts->wish == ACCELERATE_WISH_OFF)
		return decided(ACCEL_OFF, ret_reason, ANNOTATION " is off");
	if (facts->wish == ACCELERATE_WISH_PROXY)
		return decided(ACCEL_PROXY, ret_reason, ANNOTATION " is proxy");
	/* One that splices, or takes a short read for the last, would stall: nobody's guess. */
	if (facts->unknown_proxy && facts->wish == ACCELERATE_WISH_NONE &&
	    (facts->policy == ACCELERATE_AUTO || facts->policy == ACCELERATE_FULL_ADVISED))
		return decided(
			ACCEL_OFF, ret_reason,
			"it is not known that this mesh's proxy reads until there is nothing "
			"left and never splices; --accelerate proxy or " ANNOTATION " says so");
	if (facts->policy != ACCELERATE_PROXY)
		return decide_full(facts, ret_reason);
	if (facts->wish == ACCELERATE_WISH_FULL)
		return decided(ACCEL_PROXY, ret_reason,
			       ANNOTATION " is full, which this node's --accelerate proxy does not "
					  "allow");
	return decided(ACCEL_PROXY, ret_reason, "--accelerate proxy");
}
