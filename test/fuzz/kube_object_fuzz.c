/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Objects as a hostile pod's owner, or a broken API server, would have them: through the readers,
 * the store, the policy, repair and enrolment. Input: one line of enablement selectors, then an
 * object, and behind a line "=" another one that takes its place.
 */
#include "enrol_action.h"
#include "error.h"
#include "json.h"
#include "kube_pod.h"
#include "kube_repair.h"
#include "kube_store.h"
#include "pod_policy.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define REQUIRE(cond)                                                                              \
	do {                                                                                       \
		if (!(cond))                                                                       \
			abort();                                                                   \
	} while (0)

static void check_error(int r, const struct error *err)
{
	REQUIRE(r == -EINVAL && err->code == EINVAL && err->text[0]);
	for (const char *c = err->text; *c; c++)
		REQUIRE(*c != '\n');
}

static void check_text(const char *text, size_t max)
{
	size_t n = strlen(text);

	REQUIRE(n > 0 && n <= max);
	for (size_t i = 0; i < n; i++)
		REQUIRE(text[i] > ' ' && text[i] < 0x7f && text[i] != '/');
}

static void check_bounds(const struct kube_pod *pod)
{
	check_text(pod->ns, KUBE_NAMESPACE_NAME_MAX);
	check_text(pod->name, KUBE_NAME_MAX);
	check_text(pod->uid, KUBE_UID_MAX);
	if (pod->node)
		check_text(pod->node, KUBE_NAME_MAX);
	if (pod->service_account)
		check_text(pod->service_account, KUBE_NAME_MAX);
	REQUIRE(pod->n_ips <= KUBE_POD_IPS_MAX && pod->n_containers <= KUBE_CONTAINERS_MAX);
	for (size_t i = 0; i < pod->n_containers; i++)
		check_text(pod->containers[i].id, KUBE_CONTAINER_ID_MAX);
	REQUIRE(!pod->status || strlen(pod->status) <= KUBE_STATUS_TEXT_MAX);
	REQUIRE(kube_pod_is(pod, pod->uid));
	REQUIRE(kube_pod_diff(pod, pod) == 0);
}

static void check_repair(const struct kube_pod *pod)
{
	static const struct kube_repair_config cfg = {.redirect = true, .exit_code = 126};
	const char *reason = NULL;

	REQUIRE(kube_repair_decide(&cfg, pod, true, &reason) == KUBE_REPAIR_NONE && reason);
	kube_repair_decide(&cfg, pod, false, &reason);
	REQUIRE(*reason);
}

static void check_decision(const struct kube_selectors *selectors, const struct pod_facts *facts)
{
	struct policy_config cfg = {.mesh = mesh_presets[MESH_ISTIO], .selectors = selectors};
	struct enrol_view view = {.has_ips = true, .netns_known = true};
	scoped_json json_t *memory = NULL;
	struct pod_decision d;
	struct error err = {0};
	int r = pod_policy_decide(&cfg, facts, &d, &err);

	if (r < 0) {
		check_error(r, &err);
		return;
	}
	REQUIRE(d.reason[0] && (!d.hold || d.mode == POD_UNDECIDED));
	view.wanted = d.mode;
	view.hold = d.hold;
	REQUIRE(enrol_next(&view).reason);
	memory = pod_facts_remember(facts, &d);
	REQUIRE(memory);
	pod_decision_done(&d);
}

static void check_pod(const struct kube_selectors *selectors, const struct kube_store *store,
		      const struct kube_pod *pod)
{
	struct pod_facts facts = {.kube_pod = pod};

	check_bounds(pod);
	check_repair(pod);
	REQUIRE(kube_store_pod(store, pod->ns, pod->name) == pod);
	facts.kube_ns = kube_store_namespace(store, pod->ns);
	check_decision(selectors, &facts);
}

static void put(struct kube_store *store, const json_t *object)
{
	struct error err = {0};

	for (int kind = 0; kind < KUBE_KIND_COUNT_; kind++) {
		int r = kube_store_put(store, (enum kube_kind)kind, object, NULL, &err);

		if (r < 0)
			check_error(r, &err);
	}
}

static void check_objects(const struct kube_selectors *selectors, json_t *const objects[2])
{
	const struct kube_store_config cfg = {.keep = {.selectors = selectors}};
	const struct kube_pod *const *pods;
	struct kube_store *store = NULL;
	struct error err = {0};
	size_t n;

	REQUIRE(kube_store_new(&cfg, &store, &err) == 0);
	for (int i = 0; i < 2; i++)
		if (objects[i])
			put(store, objects[i]);
	pods = kube_store_pods(store, NULL, &n);
	REQUIRE(n <= 2);
	for (size_t i = 0; i < n; i++)
		check_pod(selectors, store, pods[i]);
	for (int i = 0; i < 2; i++)
		if (objects[i])
			kube_store_remove(store, KUBE_PODS, objects[i], &err);
	kube_store_list_begin(store, KUBE_NAMESPACES);
	kube_store_list_end(store, KUBE_NAMESPACES);
	kube_store_free(store);
}

static json_t *parse(const char *text, size_t size)
{
	json_t *value = NULL;
	struct error err = {0};

	json_parse(text, size, "object", &value, &err);
	return value;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	const char *text = (const char *)data;
	const char *newline = size ? memchr(text, '\n', size) : NULL;
	size_t first = newline ? (size_t)(newline - text) : size;
	size_t rest = newline ? size - first - 1 : 0;
	char *line = strndup(text, first);
	const char *next = rest ? memmem(newline + 1, rest, "\n=\n", 3) : NULL;
	size_t one = next ? (size_t)(next - newline - 1) : rest;
	struct kube_selectors selectors = {0};
	json_t *objects[2] = {NULL, NULL};
	struct error err = {0};

	REQUIRE(line);
	if (kube_enablement_read(line, "selectors", &selectors, &err) < 0)
		check_error(-err.code, &err);
	memset(&err, 0, sizeof(err));
	if (kube_discovery_read(line, "selectors", &selectors, &err) < 0)
		check_error(-err.code, &err);
	if (one)
		objects[0] = parse(newline + 1, one);
	if (next)
		objects[1] = parse(next + 3, rest - one - 3);
	check_objects(&selectors, objects);
	json_decref(objects[0]);
	json_decref(objects[1]);
	kube_selectors_done(&selectors);
	free(line);
	return 0;
}
