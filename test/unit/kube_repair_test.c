/* SPDX-License-Identifier: Apache-2.0 */
#include "kube_repair.h"

#include "error.h"
#include "json.h"
#include "quoted_json.h"
#include "test.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define WAITING	     "'state':{'waiting':{'reason':'CrashLoopBackOff'}}"
#define RUNNING	     "'state':{'running':{}}"
#define ENDED(code)  "'state':{'terminated':{'exitCode':" #code ",'message':' no way\\n'}}"
#define LAST(code)   "'lastState':{'terminated':{'exitCode':" #code ",'message':' no way\\n'}}"
#define ALWAYS	     "'restartPolicy':'Always'"
#define NEVER	     "'restartPolicy':'Never'"
#define WITH_SIDECAR "'sidecar.istio.io/status':'{}'"
#define ADDRESS	     "'podIP':'10.0.0.1'"

static const struct kube_repair_config redirect = {.redirect = true, .exit_code = 126};

/* validation: members of the status of istio-validation; NULL: the pod has no such container. */
static struct kube_pod *pod_of(const char *annotations, const char *spec, const char *status,
			       const char *validation)
{
	struct kube_selectors selectors = {0};
	const struct kube_keep keep = {.selectors = &selectors};
	struct error err = {0};
	struct kube_pod *pod = NULL;
	scoped_json json_t *object = NULL;
	char text[2048];

	snprintf(text, sizeof(text),
		 "{'metadata':{'namespace':'shop','name':'a','uid':'1','annotations':{%s}},"
		 "'spec':{%s%s},'status':{%s,'initContainerStatuses':[{'name':'%s',%s}]}}",
		 annotations, spec,
		 validation ? ",'initContainers':[{'name':'istio-validation'}]" : "", status,
		 validation ? "istio-validation" : "other", validation ? validation : WAITING);
	object = quoted_json(text);
	if (kube_pod_read(object, &keep, &pod, &err) < 0) {
		printf("# %s\n", err.text);
		abort();
	}
	return pod;
}

static enum kube_repair decide(const struct kube_repair_config *cfg, struct kube_pod *pod,
			       const char **ret_reason)
{
	enum kube_repair repair = kube_repair_decide(cfg, pod, false, ret_reason);

	kube_pod_free(pod);
	return repair;
}

TEST(a_pod_whose_validation_failed_is_repaired)
{
	static const struct {
		const char *annotations, *spec, *status, *validation;
		enum kube_repair wanted;
		const char *reason;
	} rows[] = {
		{WITH_SIDECAR, ALWAYS, ADDRESS, WAITING "," LAST(126), KUBE_REPAIR_REDIRECT,
		 "found no redirection"},
		{WITH_SIDECAR, ALWAYS, ADDRESS, RUNNING "," LAST(126), KUBE_REPAIR_REDIRECT,
		 "found no redirection"},
		{WITH_SIDECAR, ALWAYS, ADDRESS, ENDED(126), KUBE_REPAIR_REDIRECT,
		 "found no redirection"},
		{WITH_SIDECAR, ALWAYS, ADDRESS, ENDED(1) "," LAST(126), KUBE_REPAIR_REDIRECT,
		 "found no redirection"},
		{WITH_SIDECAR, ALWAYS, ADDRESS, WAITING "," LAST(1), KUBE_REPAIR_NONE,
		 "nothing wrong so far"},
		{WITH_SIDECAR, ALWAYS, ADDRESS, WAITING, KUBE_REPAIR_NONE, "nothing wrong so far"},
		/* Once it has passed, its history is no reason any more. */
		{WITH_SIDECAR, ALWAYS, ADDRESS, ENDED(0) "," LAST(126), KUBE_REPAIR_NONE,
		 "found it redirected"},
		{"'a':'b'", ALWAYS, ADDRESS, WAITING "," LAST(126), KUBE_REPAIR_NONE,
		 "it has no sidecar"},
		{WITH_SIDECAR, ALWAYS, ADDRESS, NULL, KUBE_REPAIR_NONE, "does not test"},
		{WITH_SIDECAR, ALWAYS, "'phase':'Failed'," ADDRESS, ENDED(126), KUBE_REPAIR_NONE,
		 "it has ended"},
	};

	for (size_t i = 0; i < COUNT(rows); i++) {
		const char *reason;
		enum kube_repair found = decide(&redirect,
						pod_of(rows[i].annotations, rows[i].spec,
						       rows[i].status, rows[i].validation),
						&reason);

		CHECK_EQ(found, rows[i].wanted);
		CHECK_HAS(reason, rows[i].reason);
	}
	return TEST_OK;
}

/* istio#49210: it fails for good at its first test, so the test must not be waited for. */
TEST(a_pod_that_is_never_restarted_is_repaired_before_its_test)
{
	const struct kube_repair_config delete = {.delete = true, .exit_code = 126};
	const char *reason;

	CHECK_EQ(decide(&redirect, pod_of(WITH_SIDECAR, NEVER, ADDRESS, WAITING), &reason),
		 KUBE_REPAIR_REDIRECT);
	CHECK_HAS(reason, "never restarted");
	CHECK_EQ(decide(&redirect, pod_of(WITH_SIDECAR, NEVER, ADDRESS, RUNNING), &reason),
		 KUBE_REPAIR_REDIRECT);
	CHECK_EQ(decide(&redirect, pod_of(WITH_SIDECAR, NEVER, "'podIP':''", RUNNING), &reason),
		 KUBE_REPAIR_NONE);
	CHECK_EQ(decide(&delete, pod_of(WITH_SIDECAR, NEVER, ADDRESS, RUNNING), &reason),
		 KUBE_REPAIR_NONE);
	return TEST_OK;
}

TEST(one_repair_is_done_in_the_order_of_their_priority)
{
	static const struct {
		struct kube_repair_config cfg;
		enum kube_repair wanted;
	} rows[] = {
		{{.redirect = true, .delete = true, .label = true}, KUBE_REPAIR_REDIRECT},
		{{.delete = true, .label = true}, KUBE_REPAIR_DELETE},
		{{.label = true}, KUBE_REPAIR_LABEL},
		{{0}, KUBE_REPAIR_NONE},
	};

	for (size_t i = 0; i < COUNT(rows); i++) {
		const char *reason;

		CHECK_EQ(decide(&rows[i].cfg, pod_of(WITH_SIDECAR, ALWAYS, ADDRESS, LAST(3)),
				&reason),
			 rows[i].wanted);
		CHECK(*reason);
	}
	return TEST_OK;
}

TEST(the_end_that_counts_is_configured)
{
	static const struct {
		int exit_code;
		const char *message;
		enum kube_repair wanted;
	} rows[] = {
		{0, NULL, KUBE_REPAIR_DELETE},	      {7, NULL, KUBE_REPAIR_DELETE},
		{8, NULL, KUBE_REPAIR_NONE},	      {7, "no way", KUBE_REPAIR_DELETE},
		{7, "  no way ", KUBE_REPAIR_DELETE}, {7, " \n", KUBE_REPAIR_DELETE},
		{7, "no  way", KUBE_REPAIR_NONE},     {7, "no way!", KUBE_REPAIR_NONE},
		{0, "no", KUBE_REPAIR_NONE},
	};

	for (size_t i = 0; i < COUNT(rows); i++) {
		const struct kube_repair_config cfg = {
			.delete = true, .exit_code = rows[i].exit_code, .message = rows[i].message};
		const char *reason;

		CHECK_EQ(decide(&cfg, pod_of(WITH_SIDECAR, ALWAYS, ADDRESS, WAITING "," LAST(7)),
				&reason),
			 rows[i].wanted);
	}
	return TEST_OK;
}

TEST(the_annotation_of_a_sidecar_is_configured)
{
	const struct kube_repair_config cfg = {.delete = true, .annotation = "kuma.io/sidecar"};
	const char *reason;

	CHECK_EQ(decide(&cfg, pod_of(WITH_SIDECAR, ALWAYS, ADDRESS, LAST(1)), &reason),
		 KUBE_REPAIR_NONE);
	CHECK_EQ(decide(&cfg, pod_of("'kuma.io/sidecar':''", ALWAYS, ADDRESS, LAST(1)), &reason),
		 KUBE_REPAIR_DELETE);
	return TEST_OK;
}

TEST(a_pod_that_is_redirected_by_now_or_goes_away_is_left_alone)
{
	const struct kube_repair_config cfg = {.delete = true, .exit_code = 126};
	struct kube_pod *pod = pod_of(WITH_SIDECAR, ALWAYS, ADDRESS, WAITING "," LAST(126));
	const char *reason;

	CHECK_EQ(kube_repair_decide(&cfg, pod, false, &reason), KUBE_REPAIR_DELETE);
	CHECK_EQ(kube_repair_decide(&cfg, pod, true, &reason), KUBE_REPAIR_NONE);
	CHECK_STR(reason, "it is redirected by now");
	pod->deleting = true;
	CHECK_EQ(kube_repair_decide(&cfg, pod, false, &reason), KUBE_REPAIR_NONE);
	CHECK_STR(reason, "it is being deleted");
	kube_pod_free(pod);
	return TEST_OK;
}
