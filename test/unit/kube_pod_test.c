/* SPDX-License-Identifier: Apache-2.0 */
#include "kube_pod.h"

#include "error.h"
#include "json.h"
#include "quoted_json.h"
#include "test.h"

#include <errno.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define UID	     "0e2c4f5a-9d2b-4c8e-8f60-2b1d3c4e5f60"
#define METADATA     "'metadata':{'namespace':'shop','name':'web-0','uid':'" UID "'}"

/* As a kubelet and an injector in CNI mode leave it. */
static const char injected[] =
	"{'kind':'Pod','apiVersion':'v1','metadata':{'name':'web-7d4b9c6f5-x2x7q',"
	"'generateName':'web-7d4b9c6f5-','namespace':'shop','uid':'" UID "',"
	"'resourceVersion':'48211','creationTimestamp':'2024-05-01T10:00:00Z',"
	"'labels':{'app':'web','pod-template-hash':'7d4b9c6f5','tier':'front',"
	"'service.istio.io/canonical-name':'web'},"
	"'annotations':{'sidecar.istio.io/status':'{}','kubectl.kubernetes.io/restartedAt':'x',"
	"'traffic.sidecar.istio.io/excludeInboundPorts':'9000',"
	"'ambient.istio.io/redirection':'pending','sockmesh.io/status':'S',"
	"'sockmesh.io/accelerate':'off'},"
	"'ownerReferences':[{'kind':'ReplicaSet','name':'web-7d4b9c6f5'}]},"
	"'spec':{'nodeName':'node-1','serviceAccountName':'web','restartPolicy':'Always',"
	"'hostUsers':false,'initContainers':[{'name':'istio-validation','image':'i',"
	"'args':['istio-iptables']},{'name':'istio-proxy','restartPolicy':'Always',"
	"'args':['proxy','sidecar','--domain','x'],'env':[{'name':'POD_NAME','valueFrom':"
	"{'fieldRef':{'fieldPath':'metadata.name'}}},{'name':'ISTIO_META_DNS_CAPTURE',"
	"'value':'true'},{'name':'INVALID_DROP','value':'F'},{'name':'ISTIO_DUAL_STACK',"
	"'value':'yes'}],'securityContext':{'runAsUser':2000,'runAsGroup':3000,"
	"'runAsNonRoot':true}}],'containers':[{'name':'app','image':'app'}]},"
	"'status':{'phase':'Running','podIP':'10.1.2.3','podIPs':[{'ip':'10.1.2.3'},"
	"{'ip':'fd00::7'}],'initContainerStatuses':[{'name':'istio-validation',"
	"'containerID':'containerd://aaa','state':{'waiting':{'reason':'CrashLoopBackOff'}},"
	"'lastState':{'terminated':{'exitCode':126,'reason':'Error','message':'no redirect'}}},"
	"{'name':'istio-proxy','containerID':'containerd://bbb',"
	"'state':{'running':{'startedAt':'2024-05-01T10:00:01Z'}}}],"
	"'containerStatuses':[{'name':'app','containerID':'cri-o://ccc','state':{'running':{}}},"
	"{'name':'new','state':{'waiting':{}}}]}}";

static struct kube_selectors selectors_of(const char *text)
{
	struct kube_selectors selectors = {0};
	struct error err = {0};
	char *json = quoted(text);

	if (kube_enablement_read(json, "selectors", &selectors, &err) < 0)
		abort();
	free(json);
	return selectors;
}

static int read_value(const json_t *value, struct kube_pod **ret, struct error *err)
{
	struct kube_selectors selectors =
		selectors_of("[{'podSelector':{'matchLabels':{'tier':'front'}}}]");
	const struct kube_keep keep = {.selectors = &selectors};
	int r;

	memset(err, 0, sizeof(*err));
	r = kube_pod_read(value, &keep, ret, err);
	kube_selectors_done(&selectors);
	return r;
}

static int read_pod(const char *text, struct kube_pod **ret, struct error *err)
{
	scoped_json json_t *value = quoted_json(text);

	return read_value(value, ret, err);
}

/* A pod whose spec and status hold this; the caller frees. NULL on failure. */
static struct kube_pod *pod_with(const char *spec, const char *status)
{
	struct kube_pod *pod = NULL;
	struct error err;
	char text[4096];

	snprintf(text, sizeof(text), "{" METADATA ",'spec':{%s},'status':{%s}}", spec, status);
	if (read_pod(text, &pod, &err) < 0) {
		printf("# %s\n", err.text);
		abort();
	}
	return pod;
}

static const char *ip_text(const struct kube_pod *pod, size_t i)
{
	static char buf[IP_ADDRESS_TEXT_MAX];

	return ip_address_format(&pod->ips[i], buf);
}

TEST(metadata_and_spec_of_an_injected_pod_are_read)
{
	struct kube_pod *pod;
	struct error err;

	CHECK_EQ(read_pod(injected, &pod, &err), 0);
	CHECK_STR(pod->ns, "shop");
	CHECK_STR(pod->name, "web-7d4b9c6f5-x2x7q");
	CHECK_STR(pod->uid, UID);
	CHECK(!pod->local_uid);
	CHECK_STR(pod->resource_version, "48211");
	CHECK_STR(pod->node, "node-1");
	CHECK_STR(pod->service_account, "web");
	CHECK(!pod->deleting);
	CHECK(!pod->host_network);
	CHECK(!pod->host_users);
	CHECK_EQ(pod->restart, KUBE_RESTART_ALWAYS);
	CHECK(!pod->istio_init);
	CHECK(pod->proxy.present && pod->proxy.native && !pod->proxy.other_type);
	CHECK_EQ(pod->proxy.run_as_user, 2000);
	CHECK_EQ(pod->proxy.run_as_group, 3000);
	CHECK_EQ(pod->proxy.dns_capture, KUBE_ENV_TRUE);
	CHECK_EQ(pod->proxy.invalid_drop, KUBE_ENV_FALSE);
	CHECK_EQ(pod->proxy.dual_stack, KUBE_ENV_ILLEGIBLE);
	CHECK_EQ(pod->proxy.disable_envoy, KUBE_ENV_ABSENT);
	kube_pod_free(pod);
	return TEST_OK;
}

TEST(only_what_somebody_asks_for_is_kept_of_labels_and_annotations)
{
	struct kube_pod *pod;
	struct error err;

	CHECK_EQ(read_pod(injected, &pod, &err), 0);
	CHECK_EQ(json_object_size(pod->labels), 3);
	CHECK_STR(json_string_value(json_object_get(pod->labels, "tier")), "front");
	CHECK_STR(json_string_value(json_object_get(pod->labels, "app")), "web");
	CHECK(json_object_get(pod->labels, "service.istio.io/canonical-name"));
	CHECK_EQ(json_object_size(pod->annotations), 3);
	CHECK(json_object_get(pod->annotations, "sidecar.istio.io/status"));
	CHECK(json_object_get(pod->annotations, "sockmesh.io/accelerate"));
	CHECK(json_object_get(pod->annotations, "traffic.sidecar.istio.io/excludeInboundPorts"));
	CHECK_STR(pod->redirection, "pending");
	CHECK_STR(pod->status, "S");
	kube_pod_free(pod);
	return TEST_OK;
}

TEST(status_of_an_injected_pod_is_read)
{
	struct kube_pod *pod;
	struct error err;

	CHECK_EQ(read_pod(injected, &pod, &err), 0);
	CHECK_EQ(pod->phase, KUBE_PHASE_RUNNING);
	CHECK(!kube_pod_ended(pod));
	CHECK_EQ(pod->n_ips, 2);
	CHECK_STR(ip_text(pod, 0), "10.1.2.3");
	CHECK_STR(ip_text(pod, 1), "fd00::7");
	CHECK_EQ(pod->n_containers, 3);
	CHECK_STR(pod->containers[0].id, "aaa");
	CHECK(!pod->containers[0].running && !pod->containers[0].proxy);
	CHECK_STR(pod->containers[1].id, "bbb");
	CHECK(pod->containers[1].running && pod->containers[1].proxy);
	CHECK_STR(pod->containers[2].id, "ccc");
	CHECK(pod->containers[2].running && !pod->containers[2].proxy);
	CHECK_EQ(pod->validation.state, KUBE_VALIDATION_WAITING);
	CHECK(!pod->validation.current.known);
	CHECK(pod->validation.last.known);
	CHECK_EQ(pod->validation.last.exit_code, 126);
	CHECK_STR(pod->validation.last.message, "no redirect");
	kube_pod_free(pod);
	return TEST_OK;
}

TEST(a_pod_that_says_next_to_nothing_is_read)
{
	struct kube_pod *pod;
	struct error err;

	CHECK_EQ(read_pod("{" METADATA ",'spec':{}}", &pod, &err), 0);
	CHECK(!pod->node && !pod->service_account && !pod->resource_version);
	CHECK(!pod->redirection && !pod->status);
	CHECK(pod->host_users && !pod->host_network && !pod->proxy.present);
	CHECK_EQ(pod->phase, KUBE_PHASE_UNKNOWN);
	CHECK_EQ(pod->n_ips, 0);
	CHECK_EQ(pod->n_containers, 0);
	CHECK_EQ(pod->validation.state, KUBE_VALIDATION_ABSENT);
	CHECK_EQ(json_object_size(pod->labels), 0);
	CHECK_EQ(json_object_size(pod->annotations), 0);
	kube_pod_free(pod);
	kube_pod_free(NULL);
	return TEST_OK;
}

TEST(null_is_as_good_as_absent)
{
	struct kube_pod *pod;
	struct error err;

	CHECK_EQ(read_pod("{'kind':null,'metadata':{'namespace':'shop','name':'web-0','uid':'u',"
			  "'labels':null,'annotations':null,'deletionTimestamp':null},"
			  "'spec':{'nodeName':null,'hostUsers':null,'initContainers':null,"
			  "'containers':[{'name':'istio-proxy','securityContext':null,'env':null,"
			  "'args':null}]},'status':null}",
			  &pod, &err),
		 0);
	CHECK(!pod->deleting && pod->host_users && pod->proxy.present && !pod->proxy.native);
	kube_pod_free(pod);
	return TEST_OK;
}

/* ---- the proxy's container ----------------------------------------------------------------- */

#define PROXY(members) "'containers':[{'name':'app'},{'name':'istio-proxy'," members "}]"

static enum test_result check_type(const char *args, bool other)
{
	char spec[256];
	struct kube_pod *pod;
	bool found;

	snprintf(spec, sizeof(spec), PROXY("'args':%s"), args);
	pod = pod_with(spec, "");
	found = pod->proxy.other_type;
	kube_pod_free(pod);
	if (found != other)
		printf("# %s\n", args);
	CHECK_EQ(found, other);
	return TEST_OK;
}

TEST(a_gateway_is_told_from_a_sidecar_by_its_arguments)
{
	static const struct {
		const char *args;
		bool other;
	} rows[] = {
		{"['proxy','sidecar','--domain','x']", false},
		{"['proxy','router','--domain','x']", true},
		{"['proxy','waypoint']", true},
		{"['proxy']", false},
		{"[]", false},
		{"['proxy','']", false},
		{"['proxy','--domain','router']", false},
		{"['istio-agent','router']", false},
		{"['proxy',7]", false},
	};

	for (size_t i = 0; i < COUNT(rows); i++)
		CHECK_EQ(check_type(rows[i].args, rows[i].other), TEST_OK);
	return TEST_OK;
}

TEST(booleans_of_the_environment_are_read_as_go_reads_them)
{
	static const struct {
		const char *value;
		enum kube_env wanted;
	} rows[] = {
		{"'value':'true'", KUBE_ENV_TRUE},
		{"'value':'1'", KUBE_ENV_TRUE},
		{"'value':'T'", KUBE_ENV_TRUE},
		{"'value':'False'", KUBE_ENV_FALSE},
		{"'value':'0'", KUBE_ENV_FALSE},
		{"'value':'tRue'", KUBE_ENV_ILLEGIBLE},
		{"'value':''", KUBE_ENV_ILLEGIBLE},
		{"'valueFrom':{'configMapKeyRef':{'name':'a','key':'b'}}", KUBE_ENV_ILLEGIBLE},
	};

	for (size_t i = 0; i < COUNT(rows); i++) {
		char spec[256];
		struct kube_pod *pod;
		enum kube_env found;

		snprintf(spec, sizeof(spec), PROXY("'env':[{'name':'DISABLE_ENVOY',%s}]"),
			 rows[i].value);
		pod = pod_with(spec, "");
		found = pod->proxy.disable_envoy;
		kube_pod_free(pod);
		CHECK_EQ(found, rows[i].wanted);
	}
	return TEST_OK;
}

TEST(the_last_of_two_variables_counts_and_only_the_proxys_do)
{
	struct kube_pod *pod = pod_with(
		"'initContainers':[{'name':'istio-init'}],"
		"'containers':[{'name':'app','env':[{'name':'DISABLE_ENVOY','value':'1'}],"
		"'securityContext':{'runAsUser':7}},{'name':'istio-proxy','env':["
		"{'name':'INVALID_DROP','value':'true'},{'name':'INVALID_DROP','value':'false'}]}]",
		"");

	CHECK(pod->istio_init);
	CHECK_EQ(pod->proxy.disable_envoy, KUBE_ENV_ABSENT);
	CHECK_EQ(pod->proxy.invalid_drop, KUBE_ENV_FALSE);
	CHECK_EQ(pod->proxy.run_as_user, 0);
	CHECK(!pod->proxy.native);
	kube_pod_free(pod);
	return TEST_OK;
}

/* ---- the validation container -------------------------------------------------------------- */

#define TERMINATED(code, reason)                                                                   \
	"'state':{'terminated':{'exitCode':" #code ",'reason':'" reason "'}}"

TEST(the_state_of_the_validation_container_is_known)
{
	static const struct {
		const char *status;
		enum kube_validation_state wanted;
	} rows[] = {
		{"", KUBE_VALIDATION_WAITING},
		{"'state':{}", KUBE_VALIDATION_WAITING},
		{"'state':{'waiting':{'reason':'PodInitializing'}}", KUBE_VALIDATION_WAITING},
		{"'state':{'running':{'startedAt':'x'}}", KUBE_VALIDATION_RUNNING},
		{TERMINATED(0, "Completed"), KUBE_VALIDATION_PASSED},
		{TERMINATED(0, "Error"), KUBE_VALIDATION_PASSED},
		{TERMINATED(1, "Completed"), KUBE_VALIDATION_PASSED},
		{TERMINATED(126, "Error"), KUBE_VALIDATION_FAILED},
	};

	for (size_t i = 0; i < COUNT(rows); i++) {
		char status[256];
		struct kube_pod *pod;
		enum kube_validation_state found;

		snprintf(status, sizeof(status),
			 "'initContainerStatuses':[{'name':'istio-validation'%s%s}]",
			 *rows[i].status ? "," : "", rows[i].status);
		pod = pod_with("'initContainers':[{'name':'istio-validation'}]", status);
		found = pod->validation.state;
		CHECK_EQ(pod->validation.current.known,
			 found == KUBE_VALIDATION_PASSED || found == KUBE_VALIDATION_FAILED);
		kube_pod_free(pod);
		CHECK_EQ(found, rows[i].wanted);
	}
	return TEST_OK;
}

TEST(the_validation_container_may_have_another_name)
{
	struct kube_selectors selectors = {0};
	const struct kube_keep keep = {.selectors = &selectors, .validation = "check"};
	scoped_json json_t *value = quoted_json(
		"{" METADATA ",'spec':{'initContainers':[{'name':'check'}],"
		"'containers':[{'name':'istio-validation'}]},'status':{'containerStatuses':["
		"{'name':'check','state':{'running':{}}}]}}");
	struct error err = {0};
	struct kube_pod *pod;

	CHECK_EQ(kube_pod_read(value, &keep, &pod, &err), 0);
	/* The status of an ordinary container by that name is not it. */
	CHECK_EQ(pod->validation.state, KUBE_VALIDATION_WAITING);
	kube_pod_free(pod);
	/* Nor is an ordinary container. */
	pod = pod_with("'containers':[{'name':'istio-validation'}]",
		       "'containerStatuses':[{'name':'istio-validation','state':{'running':{}}}]");
	CHECK_EQ(pod->validation.state, KUBE_VALIDATION_ABSENT);
	kube_pod_free(pod);
	return TEST_OK;
}

/* ---- what cannot be used ------------------------------------------------------------------- */

TEST(a_wrong_type_is_refused_by_the_fields_name)
{
	static const struct {
		const char *text, *error;
	} rows[] = {
		{"[]", "a pod: [] is not an object"},
		{"{'kind':'Node'}", "a pod: kind: \"Node\" is not Pod"},
		{"{}", "a pod: metadata is missing"},
		{"{'metadata':[]}", "a pod: metadata is [], not an object"},
		{"{'metadata':{}}", "a pod: metadata.name: \"\" is not a name"},
		{"{'metadata':{'name':'../x','namespace':'a'}}", "metadata.name: \"../x\" is not"},
		{"{'metadata':{'name':'x','namespace':'A'}}", "metadata.namespace: \"A\" is not"},
		{"{'metadata':{'name':'x'}}", "pod x: metadata.namespace is missing"},
		{"{'metadata':{'name':'x','namespace':'a'}}", "pod a/x: metadata.uid is missing"},
		{"{'metadata':{'name':'x','namespace':'a','uid':'b/c'}}",
		 "pod a/x: metadata.uid: \"b/c\" is not a name"},
		{"{'metadata':{'name':'x','namespace':'a','uid':'b','labels':{'c':1}}}",
		 "pod a/x: metadata.labels: \"c\" is 1, not a string"},
		{"{'metadata':{'name':'x','namespace':'a','uid':'b','annotations':['c']}}",
		 "pod a/x: metadata.annotations is [\"c\"], not an object"},
		{"{'metadata':{'name':'x','namespace':'a','uid':'b','resourceVersion':7}}",
		 "pod a/x: metadata.resourceVersion is 7, not a string"},
		{"{'metadata':{'name':'x','namespace':'a','uid':'b','resourceVersion':'a b'}}",
		 "metadata.resourceVersion: \"a b\" is not a version"},
		{"{'metadata':{'name':'x','namespace':'a','uid':'b','deletionTimestamp':{}}}",
		 "metadata.deletionTimestamp is {}, not a string"},
		{"{" METADATA "}", "pod shop/web-0: spec is missing"},
		{"{" METADATA ",'spec':7}", "pod shop/web-0: spec is 7, not an object"},
	};

	for (size_t i = 0; i < COUNT(rows); i++) {
		struct kube_pod *pod = NULL;
		struct error err;

		CHECK_EQ(read_pod(rows[i].text, &pod, &err), -EINVAL);
		CHECK_HAS(err.text, rows[i].error);
		CHECK(!pod);
	}
	return TEST_OK;
}

TEST(a_wrong_type_in_spec_or_status_is_refused_by_the_fields_name)
{
	static const struct {
		const char *spec, *status, *error;
	} rows[] = {
		{"'hostNetwork':1", "", "spec.hostNetwork is 1, not true or false"},
		{"'hostUsers':'no'", "", "spec.hostUsers is \"no\", not true or false"},
		{"'nodeName':7", "", "spec.nodeName is 7, not a string"},
		{"'nodeName':'a/b'", "", "spec.nodeName: \"a/b\" is not a name"},
		{"'serviceAccountName':{}", "", "spec.serviceAccountName is {}, not a string"},
		{"'restartPolicy':[]", "", "spec.restartPolicy is [], not a string"},
		{"'containers':{}", "", "spec.containers is {}, not an array"},
		{"'containers':[7]", "", "spec.containers[0] is not an object"},
		{"'initContainers':[{'name':7}]", "", "spec.initContainers[0].name is 7, not"},
		{PROXY("'securityContext':7"), "", "spec.containers[1].securityContext is 7, not"},
		{PROXY("'securityContext':{'runAsUser':-1}"), "",
		 "spec.containers[1].securityContext.runAsUser is -1, not from 0 to 4294967294"},
		{PROXY("'securityContext':{'runAsGroup':4294967295}"), "",
		 "spec.containers[1].securityContext.runAsGroup is 4294967295, not from 0 to"},
		{PROXY("'args':'proxy'"), "", "spec.containers[1].args is \"proxy\", not an array"},
		{PROXY("'env':{}"), "", "spec.containers[1].env is {}, not an array"},
		{PROXY("'env':[{'name':1}]"), "", "spec.containers[1].env[0].name is 1, not a"},
		{PROXY("'env':[{'name':'INVALID_DROP','value':true}]"), "",
		 "spec.containers[1].env[0].value is true, not a string"},
		{"", "'phase':1", "status.phase is 1, not a string"},
		{"", "'podIP':1", "status.podIP is 1, not a string"},
		{"", "'podIP':'1.2.3'", "status.podIP: "},
		{"", "'podIPs':'1.2.3.4'", "status.podIPs is \"1.2.3.4\", not an array"},
		{"", "'podIPs':[{'ip':'::1'},{'ip':'x'}]", "status.podIPs[1].ip: "},
		{"", "'containerStatuses':{}", "status.containerStatuses is {}, not an array"},
		{"", "'containerStatuses':[{'containerID':7}]",
		 "status.containerStatuses[0].containerID is 7, not a string"},
		{"", "'containerStatuses':[{'state':7}]", "status.containerStatuses[0].state is 7"},
		{"",
		 "'initContainerStatuses':[{},{'name':'istio-validation','state':"
		 "{'terminated':{'exitCode':'1'}}}]",
		 "status.initContainerStatuses[1].exitCode is \"1\", not an integer"},
		{"",
		 "'initContainerStatuses':[{'name':'istio-validation','lastState':"
		 "{'terminated':{'message':1}}}]",
		 "status.initContainerStatuses[0].message is 1, not a string"},
	};

	for (size_t i = 0; i < COUNT(rows); i++) {
		struct kube_pod *pod = NULL;
		struct error err;
		char text[512];

		snprintf(text, sizeof(text), "{" METADATA ",'spec':{%s},'status':{%s}}",
			 rows[i].spec, rows[i].status);
		CHECK_EQ(read_pod(text, &pod, &err), -EINVAL);
		CHECK_HAS(err.text, "pod shop/web-0: ");
		CHECK_HAS(err.text, rows[i].error);
		CHECK(!pod);
	}
	return TEST_OK;
}

/* ---- bounds -------------------------------------------------------------------------------- */

/* An injected pod with this member of an object in it replaced. */
static json_t *changed(const char *const *path, json_t *value)
{
	json_t *pod = quoted_json(injected), *at = pod;

	for (; path[1]; path++)
		at = json_object_get(at, path[0]);
	if (!at || json_object_set_new(at, path[0], value) < 0)
		abort();
	return pod;
}
#define CHANGED(value, ...) changed((const char *const[]){__VA_ARGS__, NULL}, value)

static json_t *long_text(size_t n)
{
	char *text = malloc(n + 1);
	json_t *value;

	if (!text)
		abort();
	memset(text, 'x', n);
	text[n] = '\0';
	value = json_string(text);
	free(text);
	return value;
}

TEST(annotations_that_nobody_could_send_are_refused_and_others_may_be_large)
{
	static const char name[] = "sockmesh.io/x";
	size_t most = KUBE_ANNOTATIONS_BYTES_MAX - strlen(name);
	scoped_json json_t *foreign = json_pack("{s:o}", "example.com/x", long_text(200000));
	scoped_json json_t *large = json_pack("{s:o}", name, long_text(most));
	scoped_json json_t *larger = json_pack("{s:o}", name, long_text(most + 1));
	scoped_json json_t *a = CHANGED(json_incref(foreign), "metadata", "annotations");
	scoped_json json_t *b = CHANGED(json_incref(large), "metadata", "annotations");
	scoped_json json_t *c = CHANGED(json_incref(larger), "metadata", "annotations");
	struct kube_pod *pod = NULL;
	struct error err;

	CHECK_EQ(read_value(a, &pod, &err), 0);
	CHECK_EQ(json_object_size(pod->annotations), 0);
	kube_pod_free(pod);
	CHECK_EQ(read_value(b, &pod, &err), 0);
	kube_pod_free(pod);
	CHECK_EQ(read_value(c, &pod, &err), -EINVAL);
	CHECK_HAS(err.text, "metadata.annotations: those of the mesh hold more than 65536 bytes");
	return TEST_OK;
}

TEST(long_texts_are_cut_or_refused)
{
	scoped_json json_t *status =
		json_pack("{s:o}", "sockmesh.io/status", long_text(KUBE_STATUS_TEXT_MAX + 1));
	scoped_json json_t *a = CHANGED(json_incref(status), "metadata", "annotations");
	scoped_json json_t *b = CHANGED(long_text(KUBE_UID_MAX + 1), "metadata", "uid");
	scoped_json json_t *c = CHANGED(long_text(KUBE_NAME_MAX + 1), "metadata", "name");
	scoped_json json_t *d = CHANGED(long_text(64), "metadata", "namespace");
	scoped_json json_t *e =
		CHANGED(long_text(KUBE_VERSION_MAX + 1), "metadata", "resourceVersion");
	struct kube_pod *pod = NULL;
	struct error err;

	CHECK_EQ(read_value(a, &pod, &err), 0);
	CHECK_EQ(strlen(pod->status), KUBE_STATUS_TEXT_MAX);
	kube_pod_free(pod);
	CHECK_EQ(read_value(b, &pod, &err), -EINVAL);
	CHECK_HAS(err.text, "metadata.uid");
	CHECK_EQ(read_value(c, &pod, &err), -EINVAL);
	CHECK_HAS(err.text, "metadata.name");
	CHECK_EQ(read_value(d, &pod, &err), -EINVAL);
	CHECK_HAS(err.text, "metadata.namespace");
	CHECK_EQ(read_value(e, &pod, &err), -EINVAL);
	CHECK_HAS(err.text, "metadata.resourceVersion");
	return TEST_OK;
}

static json_t *many_ips(int n)
{
	json_t *ips = json_array();

	for (int i = 0; i < n; i++) {
		char text[32];

		snprintf(text, sizeof(text), "10.0.0.%d", i);
		json_array_append_new(ips, json_pack("{s:s}", "ip", text));
	}
	return ips;
}

TEST(addresses_are_unique_and_bounded)
{
	scoped_json json_t *most = CHANGED(many_ips(KUBE_POD_IPS_MAX - 1), "status", "podIPs");
	scoped_json json_t *more = CHANGED(many_ips(KUBE_POD_IPS_MAX), "status", "podIPs");
	struct kube_pod *pod = NULL;
	struct error err;

	CHECK_EQ(read_value(most, &pod, &err), 0);
	CHECK_EQ(pod->n_ips, KUBE_POD_IPS_MAX);
	CHECK_STR(ip_text(pod, 0), "10.1.2.3");
	CHECK_STR(ip_text(pod, 1), "10.0.0.0");
	kube_pod_free(pod);
	CHECK_EQ(read_value(more, &pod, &err), -EINVAL);
	CHECK_HAS(err.text, "status.podIPs: more than 16 addresses");
	pod = pod_with("", "'podIP':'::ffff:10.0.0.1','podIPs':[{'ip':'10.0.0.1'},{'ip':''}]");
	CHECK_EQ(pod->n_ips, 1);
	CHECK_STR(ip_text(pod, 0), "10.0.0.1");
	kube_pod_free(pod);
	return TEST_OK;
}

TEST(container_ids_of_no_runtimes_form_are_left_out)
{
	struct kube_pod *pod =
		pod_with("", "'containerStatuses':[{'containerID':'abc'},{'containerID':'x://'},"
			     "{'containerID':'x://../../etc'},{'containerID':'x://a_b.C-9'},"
			     "{'containerID':''},{'containerID':null}],"
			     "'ephemeralContainerStatuses':[{'containerID':'containerd://ddd'}]");

	CHECK_EQ(pod->n_containers, 2);
	CHECK_STR(pod->containers[0].id, "a_b.C-9");
	CHECK_STR(pod->containers[1].id, "ddd");
	kube_pod_free(pod);
	return TEST_OK;
}

TEST(container_ids_are_bounded_in_number)
{
	json_t *statuses = json_array();
	scoped_json json_t *object = CHANGED(statuses, "status", "containerStatuses");
	struct kube_pod *pod = NULL;
	struct error err;

	for (int i = 0; i < 2 * KUBE_CONTAINERS_MAX; i++)
		json_array_append_new(statuses, json_pack("{s:s}", "containerID", "x://a"));
	CHECK_EQ(read_value(object, &pod, &err), 0);
	CHECK_EQ(pod->n_containers, KUBE_CONTAINERS_MAX);
	kube_pod_free(pod);
	return TEST_OK;
}

/* ---- static pods --------------------------------------------------------------------------- */

#define HASH "d41d8cd98f00b204e9800998ecf8427e"

TEST(a_static_pod_is_known_by_both_of_its_uids)
{
	static const char annotation[] = "kubernetes.io/config.mirror";
	/* What could be another pod's uid is not believed. */
	static const char *const fakes[] = {UID, HASH "0", HASH "-", "d41d8cd9", ""};
	scoped_json json_t *mirror =
		CHANGED(json_string(HASH), "metadata", "annotations", annotation);
	struct kube_pod *pod = NULL;
	struct error err;

	CHECK_EQ(read_value(mirror, &pod, &err), 0);
	CHECK_STR(pod->local_uid, HASH);
	CHECK(kube_pod_is(pod, UID));
	CHECK(kube_pod_is(pod, HASH));
	CHECK(!kube_pod_is(pod, "other"));
	kube_pod_free(pod);
	for (size_t i = 0; i < COUNT(fakes); i++) {
		scoped_json json_t *fake =
			CHANGED(json_string(fakes[i]), "metadata", "annotations", annotation);

		CHECK_EQ(read_value(fake, &pod, &err), 0);
		CHECK(!pod->local_uid);
		CHECK(!kube_pod_is(pod, HASH));
		kube_pod_free(pod);
	}
	return TEST_OK;
}

/* ---- differences --------------------------------------------------------------------------- */

/* What differs between the injected pod and itself with this member replaced. */
static uint32_t diff_with(const char *const *path, const char *value)
{
	scoped_json json_t *before = quoted_json(injected);
	scoped_json json_t *after = changed(path, quoted_json(value));
	struct kube_pod *was, *now;
	struct error err;
	uint32_t diff;

	if (read_value(before, &was, &err) < 0 || read_value(after, &now, &err) < 0) {
		printf("# %s\n", err.text);
		abort();
	}
	diff = kube_pod_diff(was, now);
	kube_pod_free(was);
	kube_pod_free(now);
	return diff;
}
#define DIFF(value, ...) diff_with((const char *const[]){__VA_ARGS__, NULL}, value)

TEST(a_difference_says_what_it_is_about)
{
	CHECK_EQ(DIFF("'49000'", "metadata", "resourceVersion"), 0);
	CHECK_EQ(DIFF("{'app':'web','pod-template-hash':'other','tier':'front',"
		      "'service.istio.io/canonical-name':'web'}",
		      "metadata", "labels"),
		 0);
	CHECK_EQ(DIFF("'back'", "metadata", "labels", "tier"), KUBE_CHANGED_MEMBERSHIP);
	CHECK_EQ(DIFF("'full'", "metadata", "annotations", "sockmesh.io/accelerate"),
		 KUBE_CHANGED_MEMBERSHIP);
	CHECK_EQ(DIFF("'x'", "metadata", "annotations", "example.com/other"), 0);
	CHECK_EQ(DIFF("'enabled'", "metadata", "annotations", "ambient.istio.io/redirection"),
		 KUBE_CHANGED_STATUS);
	CHECK_EQ(DIFF("'T'", "metadata", "annotations", "sockmesh.io/status"), KUBE_CHANGED_STATUS);
	CHECK_EQ(DIFF("'2024-05-01T11:00:00Z'", "metadata", "deletionTimestamp"),
		 KUBE_CHANGED_PHASE);
	CHECK_EQ(DIFF("'Failed'", "status", "phase"), KUBE_CHANGED_PHASE);
	CHECK_EQ(DIFF("[{'ip':'10.1.2.3'}]", "status", "podIPs"), KUBE_CHANGED_ADDRESSES);
	CHECK_EQ(DIFF("'10.1.2.4'", "status", "podIP"), KUBE_CHANGED_ADDRESSES);
	CHECK_EQ(DIFF("[]", "status", "containerStatuses"), KUBE_CHANGED_CONTAINERS);
	CHECK_EQ(DIFF("[]", "status", "initContainerStatuses"),
		 KUBE_CHANGED_CONTAINERS | KUBE_CHANGED_VALIDATION);
	CHECK_EQ(DIFF("true", "spec", "hostNetwork"), KUBE_CHANGED_MEMBERSHIP);
	CHECK_EQ(DIFF("[{'type':'Ready'}]", "status", "conditions"), 0);
	return TEST_OK;
}

TEST(every_fact_about_the_proxy_is_compared)
{
	static const char *const proxies[] = {
		"{'name':'istio-proxy'}",
		"{'name':'istio-proxy','args':['proxy','router']}",
		"{'name':'istio-proxy','securityContext':{'runAsUser':1}}",
		"{'name':'istio-proxy','securityContext':{'runAsGroup':1}}",
		"{'name':'istio-proxy','env':[{'name':'DISABLE_ENVOY','value':'1'}]}",
		"{'name':'istio-proxy','env':[{'name':'ISTIO_META_DNS_CAPTURE','value':'1'}]}",
		"{'name':'istio-proxy','env':[{'name':'ISTIO_DUAL_STACK','value':'1'}]}",
		"{'name':'istio-proxy','env':[{'name':'INVALID_DROP','value':'1'}]}",
		"{'name':'app'}",
		"{'name':'istio-init'}",
	};
	struct kube_pod *pods[COUNT(proxies)];

	for (size_t i = 0; i < COUNT(proxies); i++) {
		char spec[256];

		snprintf(spec, sizeof(spec), "'containers':[%s]", proxies[i]);
		pods[i] = pod_with(spec, "");
	}
	for (size_t i = 0; i < COUNT(proxies); i++)
		for (size_t k = 0; k < COUNT(proxies); k++)
			CHECK_EQ(kube_pod_diff(pods[i], pods[k]),
				 i == k ? 0 : KUBE_CHANGED_MEMBERSHIP);
	for (size_t i = 0; i < COUNT(proxies); i++)
		kube_pod_free(pods[i]);
	return TEST_OK;
}

/* ---- namespaces ---------------------------------------------------------------------------- */

TEST(a_namespace_is_its_name_and_its_answers)
{
	struct kube_selectors selectors = selectors_of(
		"[{},{'namespaceSelector':{'matchLabels':{'istio.io/dataplane-mode':'ambient'}}}]");
	scoped_json json_t *ambient =
		quoted_json("{'kind':'Namespace','metadata':{'name':'shop','labels':"
			    "{'istio.io/dataplane-mode':'ambient'}}}");
	scoped_json json_t *other =
		quoted_json("{'metadata':{'name':'x','deletionTimestamp':'2024-05-01T11:00:00Z'}}");
	struct kube_namespace *ns = NULL;
	struct error err = {0};

	CHECK_EQ(kube_namespace_read(ambient, &selectors, &ns, &err), 0);
	CHECK_STR(ns->name, "shop");
	CHECK_EQ(ns->selected, 3);
	CHECK(ns->discovered && !ns->deleting);
	free(ns);
	CHECK_EQ(
		kube_discovery_read("[{\"matchLabels\":{\"istio.io/dataplane-mode\":\"ambient\"}}]",
				    "discovery", &selectors, &err),
		0);
	CHECK_EQ(kube_namespace_read(other, &selectors, &ns, &err), 0);
	CHECK_EQ(ns->selected, 1);
	CHECK(!ns->discovered && ns->deleting);
	free(ns);
	kube_selectors_done(&selectors);
	return TEST_OK;
}

TEST(a_namespace_of_wrong_types_is_refused)
{
	static const struct {
		const char *text, *error;
	} rows[] = {
		{"7", "a namespace: 7 is not an object"},
		{"{'kind':'Pod','metadata':{'name':'a'}}", "kind: \"Pod\" is not Namespace"},
		{"{'metadata':{'name':7}}", "a namespace: metadata.name is 7, not a string"},
		{"{'metadata':{'name':'a','labels':[]}}",
		 "namespace a: metadata.labels is [], not an object"},
		{"{'metadata':{'name':'a','labels':{'b':null}}}",
		 "namespace a: metadata.labels: \"b\" is null, not a string"},
		{"{'metadata':{'name':"
		 "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa'}}",
		 "metadata.name is too long"},
	};
	struct kube_selectors selectors = {0};

	for (size_t i = 0; i < COUNT(rows); i++) {
		scoped_json json_t *value = quoted_json(rows[i].text);
		struct kube_namespace *ns = NULL;
		struct error err = {0};

		CHECK_EQ(kube_namespace_read(value, &selectors, &ns, &err), -EINVAL);
		CHECK_HAS(err.text, rows[i].error);
		CHECK(!ns);
	}
	return TEST_OK;
}
