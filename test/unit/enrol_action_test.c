/* SPDX-License-Identifier: Apache-2.0 */
#include "enrol_action.h"

#include "test.h"

/* A running ambient pod, with all that it needs at hand, and nothing done yet. */
static const struct enrol_view ready = {
	.wanted = POD_AMBIENT,
	.enrolled = POD_SKIP,
	.has_ips = true,
	.netns_known = true,
	.ztunnel = ENROL_ZTUNNEL_UNTOLD,
	.repairs = true,
};

/* The same, enrolled. */
static const struct enrol_view enrolled = {
	.wanted = POD_AMBIENT,
	.enrolled = POD_AMBIENT,
	.ours = true,
	.has_ips = true,
	.netns_known = true,
	.ztunnel = ENROL_ZTUNNEL_HAS_IT,
	.repairs = true,
};

/* A running sidecar pod, enrolled. */
static const struct enrol_view sidecar = {
	.wanted = POD_SIDECAR,
	.enrolled = POD_SIDECAR,
	.ours = true,
	.has_ips = true,
	.netns_known = true,
	.ztunnel = ENROL_ZTUNNEL_UNTOLD,
	.repairs = true,
};

#define CHECK_STEP(view, wanted_action, wanted_status, part)                                       \
	do {                                                                                       \
		struct enrol_step step_ = enrol_next(view);                                        \
		CHECK_STR(enrol_action_name(step_.action), enrol_action_name(wanted_action));      \
		CHECK_EQ(step_.status, wanted_status);                                             \
		CHECK_HAS(step_.reason, part);                                                     \
	} while (0)

/* ---- rows of the lifecycle table (docs/ambient.md) ----------------------------------------- */

TEST(new_pod_with_the_plugin_present)
{
	struct enrol_view v = ready;

	v.creating = true;
	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_ENABLED, "is to be redirected to ztunnel");
	v.ztunnel = ENROL_ZTUNNEL_ABSENT;
	CHECK_STEP(&v, ENROL_REFUSE, ENROL_STATUS_KEEP, "ztunnel is not connected");
	v.ztunnel = ENROL_ZTUNNEL_REFUSED;
	CHECK_STEP(&v, ENROL_REFUSE, ENROL_STATUS_KEEP, "did not take the pod");
	v = sidecar;
	v.creating = true;
	v.ours = false;
	v.enrolled = POD_SKIP;
	v.ztunnel = ENROL_ZTUNNEL_ABSENT;
	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_NONE, "is to be redirected to its sidecar");
	v.wanted = POD_SKIP;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_NONE, "not to be redirected");
	return TEST_OK;
}

TEST(a_pod_whose_record_is_lost_is_not_called_clean_before_it_is_found)
{
	struct enrol_view v = ready;

	v.wanted = POD_SKIP;
	v.ours = true;
	v.netns_known = false;
	v.perhaps_orphan = true;
	CHECK_STEP(&v, ENROL_WAIT, ENROL_STATUS_KEEP, "still redirects");
	v.netns_known = true; /* found, and it was one */
	v.perhaps_orphan = false;
	v.enrolled = POD_SIDECAR;
	CHECK_STEP(&v, ENROL_WITHDRAW, ENROL_STATUS_NONE, "not to be redirected any more");
	v.enrolled = POD_SKIP; /* or was none */
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_NONE, "not to be redirected");
	return TEST_OK;
}

TEST(what_cannot_be_put_right_is_pending_until_it_is)
{
	struct enrol_view v = enrolled;

	v.broken = true;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_PENDING, "redirected");
	v.ztunnel = ENROL_ZTUNNEL_ABSENT;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_PENDING, "redirected");
	v.broken = false;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_ENABLED, "redirected");
	v = sidecar;
	v.broken = true;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_NONE, "redirected");
	return TEST_OK;
}

TEST(new_pod_while_ztunnel_is_absent_may_be_admitted)
{
	struct enrol_view v = ready;

	v.creating = true;
	v.admit_without_ztunnel = true;
	v.ztunnel = ENROL_ZTUNNEL_ABSENT;
	CHECK_STEP(&v, ENROL_WAIT, ENROL_STATUS_PENDING, "admitted");
	v.creating = false;
	CHECK_STEP(&v, ENROL_WAIT, ENROL_STATUS_PENDING, "waits for ztunnel");
	v.ztunnel = ENROL_ZTUNNEL_UNTOLD;
	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_ENABLED, "to be redirected to ztunnel");
	return TEST_OK;
}

TEST(new_pod_that_the_api_does_not_know_yet)
{
	struct enrol_view v = ready;

	v.creating = true;
	v.wanted = POD_UNDECIDED;
	CHECK_STEP(&v, ENROL_WAIT, ENROL_STATUS_KEEP, "not known yet");
	v.hold = true;
	CHECK_STEP(&v, ENROL_REFUSE, ENROL_STATUS_KEEP, "namespace is ambient");
	v.creating = false;
	CHECK_STEP(&v, ENROL_WAIT, ENROL_STATUS_KEEP, "not known yet");
	return TEST_OK;
}

TEST(running_pod_label_added)
{
	struct enrol_view v = ready;

	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_ENABLED, "is to be redirected to ztunnel");
	v.ztunnel = ENROL_ZTUNNEL_REFUSED;
	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_ENABLED, "is to be redirected to ztunnel");
	v.ztunnel = ENROL_ZTUNNEL_HAS_IT;
	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_ENABLED, "is to be redirected to ztunnel");
	return TEST_OK;
}

TEST(running_pod_label_added_before_it_has_addresses_or_its_netns_is_found)
{
	struct enrol_view v = ready;

	v.has_ips = false;
	CHECK_STEP(&v, ENROL_WAIT, ENROL_STATUS_NONE, "no address yet");
	v.has_ips = true;
	v.netns_known = false;
	CHECK_STEP(&v, ENROL_WAIT, ENROL_STATUS_NONE, "not found yet");
	return TEST_OK;
}

TEST(label_removed)
{
	struct enrol_view v = enrolled;

	v.wanted = POD_SKIP;
	CHECK_STEP(&v, ENROL_WITHDRAW, ENROL_STATUS_NONE, "not to be redirected any more");
	/* The kernel has let it go, ztunnel is still to be told: the step that was cut short. */
	v.enrolled = POD_SKIP;
	CHECK_STEP(&v, ENROL_RELEASE, ENROL_STATUS_NONE, "ztunnel still has it");
	v.ztunnel = ENROL_ZTUNNEL_UNTOLD;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_NONE, "not to be redirected");
	return TEST_OK;
}

TEST(what_others_may_have_is_not_told_about)
{
	struct enrol_view v = ready;

	v.wanted = POD_SKIP;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_NONE, "not to be redirected");
	v.foreign = true;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_KEEP, "not to be redirected");
	v.ended = true;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_KEEP, "has ended");
	v = enrolled;
	v.wanted = POD_SKIP;
	v.foreign = true;
	CHECK_STEP(&v, ENROL_WITHDRAW, ENROL_STATUS_NONE, "not to be redirected any more");
	return TEST_OK;
}

TEST(ztunnel_keeps_for_a_while_what_it_has_of_a_pod_that_left)
{
	struct enrol_view v = enrolled;

	v.wanted = POD_SKIP;
	v.enrolled = POD_SKIP;
	v.lingers = true;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_NONE, "ztunnel ends what it has of it");
	v.gone = true;
	CHECK_STEP(&v, ENROL_RELEASE, ENROL_STATUS_KEEP, "is deleted");
	v.gone = false;
	v.wanted = POD_AMBIENT;
	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_ENABLED, "redirected");
	return TEST_OK;
}

/* Anybody who may write the pod's status can say so: what runs on must not bypass the proxy. */
TEST(job_completes)
{
	struct enrol_view v = enrolled;

	v.ended = true;
	CHECK_STEP(&v, ENROL_RELEASE, ENROL_STATUS_NONE, "containers have ended");
	v.ztunnel = ENROL_ZTUNNEL_UNTOLD;
	v.netns_known = false;
	CHECK_STEP(&v, ENROL_RELEASE, ENROL_STATUS_NONE, "ends with its network namespace");
	v.enrolled = POD_SKIP;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_NONE, "has ended");
	v = sidecar;
	v.ended = true;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_NONE, "containers have ended");
	return TEST_OK;
}

TEST(pod_deleted)
{
	struct enrol_view v = enrolled;

	v.gone = true;
	/* Forced: its processes may run on, and must not bypass the proxy. */
	CHECK_STEP(&v, ENROL_RELEASE, ENROL_STATUS_KEEP, "ends with its network namespace");
	v.enrolled = POD_SKIP;
	v.ztunnel = ENROL_ZTUNNEL_ABSENT;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_KEEP, "not enrolled");
	v = sidecar;
	v.gone = true;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_KEEP, "ends with its network namespace");
	return TEST_OK;
}

/* D10: what is left of a pod must not depend on what is known of its namespace. */
TEST(pod_deleted_after_its_namespace)
{
	struct enrol_view v = enrolled;

	v.gone = true;
	v.wanted = POD_UNDECIDED;
	CHECK_STEP(&v, ENROL_RELEASE, ENROL_STATUS_KEEP, "deleted");
	v.gone = false;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_KEEP, "stays redirected");
	return TEST_OK;
}

TEST(agent_starts_and_the_api_is_down)
{
	struct enrol_view v = enrolled;

	v.wanted = POD_UNDECIDED;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_KEEP, "stays redirected as it is");
	return TEST_OK;
}

TEST(agent_starts_with_another_plan)
{
	struct enrol_view v = enrolled;

	v.plan_differs = true;
	CHECK_STEP(&v, ENROL_UPDATE, ENROL_STATUS_ENABLED, "plan has changed");
	v.ztunnel = ENROL_ZTUNNEL_ABSENT;
	CHECK_STEP(&v, ENROL_UPDATE, ENROL_STATUS_ENABLED, "plan has changed");
	v.netns_known = false;
	CHECK_STEP(&v, ENROL_WAIT, ENROL_STATUS_ENABLED, "cannot be opened yet");
	v = sidecar;
	v.plan_differs = true;
	CHECK_STEP(&v, ENROL_UPDATE, ENROL_STATUS_NONE, "plan has changed");
	v.netns_known = false;
	CHECK_STEP(&v, ENROL_WAIT, ENROL_STATUS_NONE, "cannot be opened yet");
	return TEST_OK;
}

/* D3: the annotation says enabled, the kernel has nothing; the annotation is not even asked. */
TEST(node_reboot)
{
	struct enrol_view v = ready;

	v.ours = true;
	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_ENABLED, "the kernel has nothing of it any more");
	v.netns_known = false;
	CHECK_STEP(&v, ENROL_WAIT, ENROL_STATUS_NONE, "not found yet");
	v = sidecar;
	v.enrolled = POD_SKIP;
	v.validation = ENROL_VALIDATION_PASSED;
	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_NONE, "the kernel has nothing of it any more");
	return TEST_OK;
}

TEST(ztunnel_restarts)
{
	struct enrol_view v = enrolled;

	v.ztunnel = ENROL_ZTUNNEL_ABSENT;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_ENABLED, "the next ztunnel learns of the pod");
	v.ztunnel = ENROL_ZTUNNEL_HAS_IT;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_ENABLED, "redirected");
	return TEST_OK;
}

TEST(ztunnel_did_not_take_a_pod_that_is_redirected)
{
	struct enrol_view v = enrolled;

	v.ztunnel = ENROL_ZTUNNEL_REFUSED;
	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_ENABLED, "ztunnel does not have the pod");
	v.netns_known = false;
	CHECK_STEP(&v, ENROL_WAIT, ENROL_STATUS_PENDING, "ztunnel does not have the pod");
	v.ztunnel = ENROL_ZTUNNEL_UNTOLD;
	CHECK_STEP(&v, ENROL_WAIT, ENROL_STATUS_PENDING, "ztunnel does not have the pod");
	v.netns_known = true;
	v.plan_differs = true;
	v.ztunnel = ENROL_ZTUNNEL_REFUSED;
	CHECK_STEP(&v, ENROL_UPDATE, ENROL_STATUS_PENDING, "plan has changed");
	return TEST_OK;
}

/* The process whose namespace it was found as has ended, and others live on there. */
TEST(a_netns_that_cannot_be_opened_any_more_is_looked_for)
{
	struct enrol_view v = enrolled;

	v.netns_known = false;
	CHECK_STEP(&v, ENROL_WAIT, ENROL_STATUS_ENABLED, "cannot be opened for the next ztunnel");
	v.ztunnel = ENROL_ZTUNNEL_ABSENT;
	CHECK_STEP(&v, ENROL_WAIT, ENROL_STATUS_ENABLED, "cannot be opened for the next ztunnel");
	v.netns_known = v.netns_moved = true;
	CHECK_STEP(&v, ENROL_UPDATE, ENROL_STATUS_ENABLED, "another path");
	v.ztunnel = ENROL_ZTUNNEL_UNNEEDED;
	CHECK_STEP(&v, ENROL_UPDATE, ENROL_STATUS_ENABLED, "another path");
	v.ztunnel = ENROL_ZTUNNEL_HAS_IT;
	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_ENABLED, "may lack");
	/* Once it is updated nobody knows that any more. */
	v.plan_differs = true;
	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_ENABLED, "may lack");
	v.plan_differs = false;
	v.netns_moved = false;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_ENABLED, "redirected");
	return TEST_OK;
}

TEST(addresses_changed)
{
	struct enrol_view v = enrolled;

	v.addresses_differ = true;
	CHECK_STEP(&v, ENROL_UPDATE, ENROL_STATUS_ENABLED, "addresses have changed");
	/* None at all is no change: they are not known at the moment. */
	v.has_ips = false;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_ENABLED, "redirected");
	return TEST_OK;
}

/* ---- defects that are not to be repeated --------------------------------------------------- */

/* D4: rules that cannot be taken back now are still there, and so is what is said of them. */
TEST(opt_out_waits_for_the_netns_and_forgets_nothing)
{
	struct enrol_view v = enrolled;

	v.wanted = POD_SKIP;
	v.netns_known = false;
	CHECK_STEP(&v, ENROL_WAIT, ENROL_STATUS_ENABLED, "cannot be opened yet");
	v.ztunnel = ENROL_ZTUNNEL_REFUSED;
	CHECK_STEP(&v, ENROL_WAIT, ENROL_STATUS_PENDING, "cannot be opened yet");
	v.netns_known = true;
	CHECK_STEP(&v, ENROL_WITHDRAW, ENROL_STATUS_NONE, "not to be redirected any more");
	return TEST_OK;
}

/* It has been told of it, and tries again by itself. */
TEST(what_ztunnel_has_refused_is_taken_from_it_all_the_same)
{
	struct enrol_view v = ready;

	v.wanted = POD_SKIP;
	v.ztunnel = ENROL_ZTUNNEL_REFUSED;
	CHECK_STEP(&v, ENROL_RELEASE, ENROL_STATUS_NONE, "ztunnel still has it");
	v.lingers = true;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_NONE, "not redirected any more");
	v = sidecar;
	v.ztunnel = ENROL_ZTUNNEL_REFUSED;
	CHECK_STEP(&v, ENROL_RELEASE, ENROL_STATUS_NONE, "has a sidecar");
	return TEST_OK;
}

/* ---- from one mode to the other ------------------------------------------------------------ */

TEST(a_pod_goes_from_its_sidecar_to_ztunnel)
{
	struct enrol_view v = sidecar;

	v.wanted = POD_AMBIENT;
	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_ENABLED, "from its sidecar to ztunnel");
	v.ztunnel = ENROL_ZTUNNEL_ABSENT;
	CHECK_STEP(&v, ENROL_WAIT, ENROL_STATUS_PENDING, "waits for ztunnel");
	return TEST_OK;
}

TEST(a_pod_goes_from_ztunnel_to_its_sidecar)
{
	struct enrol_view v = enrolled;

	v.wanted = POD_SIDECAR;
	CHECK_STEP(&v, ENROL_UPDATE, ENROL_STATUS_NONE, "from ztunnel to its sidecar");
	v.enrolled = POD_SIDECAR;
	CHECK_STEP(&v, ENROL_RELEASE, ENROL_STATUS_NONE, "ztunnel still has it");
	v.ztunnel = ENROL_ZTUNNEL_UNTOLD;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_NONE, "redirected");
	return TEST_OK;
}

/* ---- sidecar pods that the plugin has not seen --------------------------------------------- */

TEST(a_sidecar_pod_that_started_without_redirection_is_redirected_before_its_test)
{
	struct enrol_view v = sidecar;

	v.enrolled = POD_SKIP;
	v.ours = false;
	v.validation = ENROL_VALIDATION_DUE;
	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_NONE, "about to test for it");
	v.netns_known = false;
	CHECK_STEP(&v, ENROL_WAIT, ENROL_STATUS_NONE, "not found yet");
	v.repairs = false;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_NONE, "not repaired");
	v.asked = true;
	v.netns_known = true;
	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_NONE, "without redirection");
	return TEST_OK;
}

TEST(a_sidecar_pod_that_somebody_else_redirects_is_left_alone)
{
	struct enrol_view v = sidecar;

	v.enrolled = POD_SKIP;
	v.ours = false;
	v.validation = ENROL_VALIDATION_PASSED;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_NONE, "by another than this agent");
	v.asked = true;
	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_NONE, "is to be redirected to its sidecar");
	v.asked = false;
	v.validation = ENROL_VALIDATION_NONE;
	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_NONE, "is to be redirected to its sidecar");
	return TEST_OK;
}

/* ---- all of them --------------------------------------------------------------------------- */

static struct enrol_view view_number(unsigned n)
{
	struct enrol_view v = {0};

	v.wanted = (enum pod_mode)(n & 3);
	v.enrolled = (enum pod_mode)((n >> 2) % 3);
	n /= 12;
	v.ztunnel = (enum enrol_ztunnel)(n & 3);
	v.validation = (enum enrol_validation)((n >> 2) % 3);
	n /= 12;
	v.hold = n & 1;
	v.asked = n & 2;
	v.ours = n & 4;
	v.plan_differs = n & 8;
	v.addresses_differ = n & 16;
	v.creating = n & 32;
	v.gone = n & 64;
	v.ended = n & 128;
	v.has_ips = n & 256;
	v.netns_known = n & 512;
	v.admit_without_ztunnel = n & 1024;
	v.repairs = n & 2048;
	v.netns_moved = v.netns_known && n & 4096;
	return v;
}

/* What holds whatever the view. */
static enum test_result check_promises(const struct enrol_view *v)
{
	struct enrol_step s = enrol_next(v);

	CHECK(s.reason && *s.reason);
	/* Nothing is begun that lacks what it needs. */
	if (s.action == ENROL_ENROL)
		CHECK(v->netns_known && !v->gone && !v->ended && v->wanted != POD_SKIP &&
		      v->wanted != POD_UNDECIDED);
	if (s.action == ENROL_UPDATE)
		CHECK(v->enrolled != POD_SKIP && !v->gone && !v->ended);
	if (s.action == ENROL_WITHDRAW)
		CHECK(v->wanted == POD_SKIP && v->enrolled != POD_SKIP && !v->gone && !v->ended);
	/* Nobody but a plugin can be refused. */
	if (s.action == ENROL_REFUSE)
		CHECK(v->creating);
	/* No ambient pod is enrolled without a ztunnel. */
	if (s.action == ENROL_ENROL && v->wanted == POD_AMBIENT)
		CHECK(v->ztunnel != ENROL_ZTUNNEL_ABSENT);
	/* "enabled" is said only of what is, or of what the step makes so. */
	if (s.status == ENROL_STATUS_ENABLED)
		CHECK(v->enrolled == POD_AMBIENT || s.action == ENROL_ENROL);
	if (v->enrolled == POD_AMBIENT && s.status == ENROL_STATUS_NONE)
		CHECK(s.action == ENROL_WITHDRAW || s.action == ENROL_UPDATE || v->ended);
	return TEST_OK;
}

TEST(every_view_gets_a_step_that_keeps_its_promises)
{
	for (unsigned n = 0; n < 12 * 12 * 8192; n++) {
		struct enrol_view v = view_number(n);

		if (check_promises(&v) != TEST_OK) {
			printf("# view %u: %s\n", n, enrol_action_name(enrol_next(&v).action));
			return TEST_FAILED;
		}
	}
	return TEST_OK;
}

TEST(a_pod_is_looked_at_again_when_any_of_its_times_has_come)
{
	int64_t next = 0;

	CHECK(!enrol_is_due(100, 0, 0, &next));
	CHECK_EQ(next, INT64_MAX);
	CHECK(!enrol_is_due(100, 101, 0, &next));
	CHECK_EQ(next, 101);
	CHECK(!enrol_is_due(100, 300, 200, &next));
	CHECK_EQ(next, 200);
	CHECK(enrol_is_due(100, 0, 100, &next));
	CHECK_EQ(next, INT64_MAX);
	/* That one is over says nothing about the other. */
	CHECK(enrol_is_due(100, 50, 200, &next));
	CHECK_EQ(next, 200);
	CHECK(enrol_is_due(100, 200, 50, &next));
	CHECK_EQ(next, 200);
	return TEST_OK;
}

TEST(a_proxy_of_the_node_is_told_nothing)
{
	struct enrol_view v = ready;

	v.ztunnel = ENROL_ZTUNNEL_UNNEEDED;
	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_ENABLED, "to the node's proxy");
	v.creating = true;
	CHECK_STEP(&v, ENROL_ENROL, ENROL_STATUS_ENABLED, "to the node's proxy");
	v = enrolled;
	v.ztunnel = ENROL_ZTUNNEL_UNNEEDED;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_ENABLED, "redirected");
	v.plan_differs = true;
	CHECK_STEP(&v, ENROL_UPDATE, ENROL_STATUS_ENABLED, "plan has changed");
	v.plan_differs = false;
	v.wanted = POD_SKIP;
	CHECK_STEP(&v, ENROL_WITHDRAW, ENROL_STATUS_NONE, "not to be redirected any more");
	v.enrolled = POD_SKIP;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_NONE, "not to be redirected");
	v.gone = true;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_KEEP, "has ended");
	v = sidecar;
	v.ztunnel = ENROL_ZTUNNEL_UNNEEDED;
	CHECK_STEP(&v, ENROL_NOTHING, ENROL_STATUS_NONE, "redirected");
	return TEST_OK;
}
