/* SPDX-License-Identifier: Apache-2.0 */
#include "kube_store.h"

#include "error.h"
#include "json.h"
#include "quoted_json.h"
#include "test.h"

#include <errno.h>
#include <malloc.h>
#include <stdarg.h>

#define NODE   "node-1"
#define COMMON "'spec':{'nodeName':'" NODE "'}"

/* What the store has told, as text: "+shop/a" new, "-shop/a" gone, "~shop/a:2" changed. */
struct diary {
	char text[4096];
};

__attribute__((format(printf, 2, 3))) static void note(struct diary *diary, const char *format, ...)
{
	size_t used = strlen(diary->text);
	va_list args;

	va_start(args, format);
	vsnprintf(diary->text + used, sizeof(diary->text) - used, format, args);
	va_end(args);
}

static void on_pod(void *arg, const struct kube_pod *was, const struct kube_pod *now,
		   uint32_t changed)
{
	const struct kube_pod *pod = now ? now : was;

	note(arg, "%c%s/%s", !was ? '+' : !now ? '-' : '~', pod->ns, pod->name);
	if (was && now)
		note(arg, ":%u", changed);
	note(arg, " ");
}

static void on_namespace(void *arg, const struct kube_namespace *was,
			 const struct kube_namespace *now)
{
	note(arg, "%c%s ", !was ? '+' : !now ? '-' : '~', (now ? now : was)->name);
}

static void on_unreadable(void *arg, const char *ns, const char *name, const char *uid,
			  const struct error *why)
{
	note(arg, "%s%s/%s:%s ", why ? "?" : "!", ns, name, uid ?: "-");
}

struct fixture {
	struct diary diary;
	struct kube_selectors selectors;
	struct kube_store *store;
	struct error err;
};

static void fixture_open(struct fixture *f)
{
	struct kube_store_config cfg = {
		.keep = {.selectors = &f->selectors},
		.node = NODE,
		.events = {.pod = on_pod,
			   .ns = on_namespace,
			   .unreadable = on_unreadable,
			   .arg = &f->diary},
	};

	memset(f, 0, sizeof(*f));
	if (kube_enablement_read(kube_enablement_default, "selectors", &f->selectors, &f->err) ||
	    kube_store_new(&cfg, &f->store, &f->err))
		abort();
}

static void fixture_close(struct fixture *f)
{
	kube_store_free(f->store);
	kube_selectors_done(&f->selectors);
}

/* The diary since the last call. */
static const char *told(struct fixture *f)
{
	static char text[sizeof(f->diary.text)];

	strcpy(text, f->diary.text);
	f->diary.text[0] = '\0';
	return text;
}

static int put(struct fixture *f, enum kube_kind kind, const char *text)
{
	scoped_json json_t *object = quoted_json(text);

	memset(&f->err, 0, sizeof(f->err));
	return kube_store_put(f->store, kind, object, NULL, &f->err);
}

static int drop(struct fixture *f, enum kube_kind kind, const char *text)
{
	scoped_json json_t *object = quoted_json(text);

	return kube_store_remove(f->store, kind, object, &f->err);
}

#define POD(ns, name, uid)	   "{'metadata':{'namespace':'" ns "','name':'" name "','uid':'" uid "'},"
#define PUT_POD(f, ns, name, uid)  put(f, KUBE_PODS, POD(ns, name, uid) COMMON "}")
#define DROP_POD(f, ns, name, uid) drop(f, KUBE_PODS, POD(ns, name, uid) COMMON "}")
#define NAMESPACE(name, mode)                                                                      \
	"{'metadata':{'name':'" name "','labels':{'istio.io/dataplane-mode':'" mode "'}}}"

TEST(a_pod_is_told_when_it_comes_changes_and_goes)
{
	struct fixture f;

	fixture_open(&f);
	CHECK_EQ(PUT_POD(&f, "shop", "a", "1"), 0);
	CHECK_STR(told(&f), "+shop/a ");
	CHECK_STR(kube_store_pod(f.store, "shop", "a")->uid, "1");
	/* Nothing that matters: not told, but the newest version is kept. */
	CHECK_EQ(put(&f, KUBE_PODS,
		     "{'metadata':{'namespace':'shop','name':'a','uid':'1','resourceVersion':'8',"
		     "'labels':{'nobody':'asks'}}," COMMON "}"),
		 0);
	CHECK_STR(told(&f), "");
	CHECK_STR(kube_store_pod(f.store, "shop", "a")->resource_version, "8");
	CHECK_EQ(put(&f, KUBE_PODS, POD("shop", "a", "1") COMMON ",'status':{'phase':'Failed'}}"),
		 0);
	CHECK_STR(told(&f), "~shop/a:4 ");
	CHECK_EQ(DROP_POD(&f, "shop", "a", "1"), 0);
	CHECK_STR(told(&f), "-shop/a ");
	CHECK(!kube_store_pod(f.store, "shop", "a"));
	CHECK_EQ(DROP_POD(&f, "shop", "a", "1"), 0);
	CHECK_STR(told(&f), "");
	fixture_close(&f);
	return TEST_OK;
}

TEST(a_pod_that_came_back_under_its_name_is_another_pod)
{
	struct fixture f;

	fixture_open(&f);
	CHECK_EQ(PUT_POD(&f, "shop", "a", "1"), 0);
	CHECK_EQ(PUT_POD(&f, "shop", "a", "2"), 0);
	CHECK_STR(told(&f), "+shop/a -shop/a +shop/a ");
	CHECK(!kube_store_pod_uid(f.store, "1"));
	CHECK_STR(kube_store_pod_uid(f.store, "2")->name, "a");
	/* The end of the first one comes late. */
	CHECK_EQ(DROP_POD(&f, "shop", "a", "1"), 0);
	CHECK_STR(told(&f), "");
	CHECK(kube_store_pod(f.store, "shop", "a"));
	fixture_close(&f);
	return TEST_OK;
}

TEST(pods_of_other_nodes_are_none_of_ours)
{
	struct fixture f;

	fixture_open(&f);
	CHECK_EQ(put(&f, KUBE_PODS, POD("shop", "a", "1") "'spec':{'nodeName':'node-2'}}"), 0);
	CHECK_EQ(put(&f, KUBE_PODS, POD("shop", "b", "2") "'spec':{}}"), 0);
	CHECK_STR(told(&f), "");
	CHECK_EQ(PUT_POD(&f, "shop", "a", "1"), 0);
	CHECK_EQ(put(&f, KUBE_PODS, POD("shop", "a", "1") "'spec':{'nodeName':'node-2'}}"), 0);
	CHECK_STR(told(&f), "+shop/a -shop/a ");
	fixture_close(&f);
	return TEST_OK;
}

/* ---- lists --------------------------------------------------------------------------------- */

TEST(what_is_not_in_a_new_list_is_gone)
{
	struct kube_store_counts counts;
	struct fixture f;

	fixture_open(&f);
	CHECK(!kube_store_complete(f.store, KUBE_PODS));
	kube_store_list_begin(f.store, KUBE_PODS);
	CHECK_EQ(PUT_POD(&f, "shop", "a", "1"), 0);
	CHECK_EQ(PUT_POD(&f, "shop", "b", "2"), 0);
	CHECK_EQ(PUT_POD(&f, "shop", "c", "3"), 0);
	CHECK_EQ(PUT_POD(&f, "shop", "d", "4"), 0);
	kube_store_list_end(f.store, KUBE_PODS);
	CHECK(kube_store_complete(f.store, KUBE_PODS));
	CHECK(!kube_store_complete(f.store, KUBE_NAMESPACES));
	told(&f);
	kube_store_list_begin(f.store, KUBE_PODS);
	CHECK_EQ(PUT_POD(&f, "shop", "b", "2"), 0);
	CHECK_EQ(PUT_POD(&f, "shop", "d", "9"), 0);
	CHECK_STR(told(&f), "-shop/d +shop/d ");
	kube_store_list_end(f.store, KUBE_PODS);
	CHECK_STR(told(&f), "-shop/c -shop/a ");
	kube_store_count(f.store, &counts);
	CHECK_EQ(counts.pods, 2);
	CHECK(kube_store_pod(f.store, "shop", "b") && kube_store_pod(f.store, "shop", "d"));
	fixture_close(&f);
	return TEST_OK;
}

TEST(a_list_that_breaks_off_takes_nothing_away)
{
	struct fixture f;

	fixture_open(&f);
	kube_store_list_begin(f.store, KUBE_PODS);
	CHECK_EQ(PUT_POD(&f, "shop", "a", "1"), 0);
	CHECK_EQ(PUT_POD(&f, "shop", "b", "2"), 0);
	kube_store_list_end(f.store, KUBE_PODS);
	told(&f);
	kube_store_list_begin(f.store, KUBE_PODS);
	CHECK_EQ(PUT_POD(&f, "shop", "b", "2"), 0);
	kube_store_list_begin(f.store, KUBE_PODS);
	CHECK_EQ(PUT_POD(&f, "shop", "a", "1"), 0);
	CHECK_STR(told(&f), "");
	kube_store_list_end(f.store, KUBE_PODS);
	CHECK_STR(told(&f), "-shop/b ");
	fixture_close(&f);
	return TEST_OK;
}

TEST(an_object_that_cannot_be_read_is_not_gone)
{
	static const struct error too_large = {EMSGSIZE, "more than 16777216 bytes"};
	scoped_json json_t *identity = quoted_json(POD("shop", "a", "1") "'x':1}");
	scoped_json json_t *other = quoted_json(POD("shop", "a", "2") "'x':1}");
	struct kube_store_counts counts;
	struct fixture f;

	fixture_open(&f);
	CHECK_EQ(PUT_POD(&f, "shop", "a", "1"), 0);
	CHECK_EQ(PUT_POD(&f, "shop", "b", "2"), 0);
	told(&f);
	kube_store_list_begin(f.store, KUBE_PODS);
	CHECK_EQ(kube_store_put(f.store, KUBE_PODS, identity, &too_large, &f.err), -EINVAL);
	CHECK_HAS(f.err.text, "more than 16777216 bytes");
	CHECK_EQ(put(&f, KUBE_PODS, POD("shop", "b", "2") "'spec':{'hostNetwork':1}}"), -EINVAL);
	CHECK_HAS(f.err.text, "pod shop/b: spec.hostNetwork is 1");
	kube_store_list_end(f.store, KUBE_PODS);
	CHECK_STR(told(&f), "");
	/* But one that has taken its name is another. */
	CHECK_EQ(kube_store_put(f.store, KUBE_PODS, other, &too_large, &f.err), -EINVAL);
	CHECK_STR(told(&f), "-shop/a ?shop/a:2 ");
	CHECK_EQ(put(&f, KUBE_PODS, "{'metadata':7}"), -EINVAL);
	CHECK_EQ(put(&f, KUBE_NAMESPACES, "{'metadata':{'name':'x','labels':7}}"), -EINVAL);
	kube_store_count(f.store, &counts);
	CHECK_EQ(counts.unreadable, 5);
	CHECK_EQ(counts.refused, 0);
	fixture_close(&f);
	return TEST_OK;
}

#define ILLEGIBLE "'spec':{'hostNetwork':1}}"

TEST(that_an_unreadable_pod_is_there_is_known)
{
	struct fixture f;

	fixture_open(&f);
	kube_store_list_begin(f.store, KUBE_PODS);
	CHECK_EQ(put(&f, KUBE_PODS, POD("shop", "a", "1") ILLEGIBLE), -EINVAL);
	CHECK_STR(told(&f), "?shop/a:1 ");
	CHECK_EQ(put(&f, KUBE_PODS, POD("shop", "b", "2") ILLEGIBLE), -EINVAL);
	CHECK_EQ(put(&f, KUBE_PODS, "{'metadata':{'namespace':'shop','name':'c'}," ILLEGIBLE),
		 -EINVAL);
	CHECK_STR(told(&f), "?shop/b:2 ?shop/c:- ");
	kube_store_list_end(f.store, KUBE_PODS);
	CHECK(kube_store_pod_unreadable(f.store, "shop", "a"));
	CHECK(!kube_store_pod_unreadable(f.store, "shop", "d"));
	CHECK(!kube_store_pod(f.store, "shop", "a"));
	/* Once, however often it is seen, and another one of its name once more. */
	CHECK_EQ(put(&f, KUBE_PODS, POD("shop", "a", "1") ILLEGIBLE), -EINVAL);
	CHECK_STR(told(&f), "");
	CHECK_EQ(put(&f, KUBE_PODS, POD("shop", "a", "7") ILLEGIBLE), -EINVAL);
	CHECK_STR(told(&f), "!shop/a:1 ?shop/a:7 ");
	/* Until it can be read, is deleted, or is not listed any more. */
	CHECK_EQ(PUT_POD(&f, "shop", "a", "7"), 0);
	CHECK_STR(told(&f), "+shop/a !shop/a:7 ");
	CHECK(!kube_store_pod_unreadable(f.store, "shop", "a"));
	CHECK_EQ(DROP_POD(&f, "shop", "b", "8"), 0);
	CHECK_STR(told(&f), "");
	CHECK_EQ(DROP_POD(&f, "shop", "b", "2"), 0);
	CHECK_STR(told(&f), "!shop/b:2 ");
	kube_store_list_begin(f.store, KUBE_PODS);
	CHECK_EQ(PUT_POD(&f, "shop", "a", "7"), 0);
	CHECK(kube_store_pod_unreadable(f.store, "shop", "c"));
	kube_store_list_end(f.store, KUBE_PODS);
	CHECK_STR(told(&f), "!shop/c:- ");
	CHECK(!kube_store_pod_unreadable(f.store, "shop", "c"));
	fixture_close(&f);
	return TEST_OK;
}

/* ---- questions ----------------------------------------------------------------------------- */

TEST(pods_of_one_namespace_are_found_in_order)
{
	const struct kube_pod *const *pods;
	struct fixture f;
	size_t n;

	fixture_open(&f);
	kube_store_pods(f.store, NULL, &n);
	CHECK_EQ(n, 0);
	CHECK_EQ(PUT_POD(&f, "shop", "b", "1"), 0);
	CHECK_EQ(PUT_POD(&f, "shop-2", "x", "2"), 0);
	CHECK_EQ(PUT_POD(&f, "bank", "z", "3"), 0);
	CHECK_EQ(PUT_POD(&f, "shop", "a", "4"), 0);
	pods = kube_store_pods(f.store, "shop", &n);
	CHECK_EQ(n, 2);
	CHECK_STR(pods[0]->name, "a");
	CHECK_STR(pods[1]->name, "b");
	pods = kube_store_pods(f.store, NULL, &n);
	CHECK_EQ(n, 4);
	CHECK_STR(pods[0]->ns, "bank");
	CHECK_STR(pods[3]->ns, "shop-2");
	kube_store_pods(f.store, "none", &n);
	CHECK_EQ(n, 0);
	kube_store_pods(f.store, "zoo", &n);
	CHECK_EQ(n, 0);
	fixture_close(&f);
	return TEST_OK;
}

#define STATIC_POD(name, uid)                                                                      \
	"{'metadata':{'namespace':'kube-system','name':'" name "','uid':'" uid "',"                \
	"'annotations':{'kubernetes.io/"                                                           \
	"config.mirror':'d41d8cd98f00b204e9800998ecf8427e'}}," COMMON "}"

TEST(a_static_pod_is_found_by_kubelets_uid_while_only_one_claims_it)
{
	struct fixture f;

	fixture_open(&f);
	CHECK_EQ(put(&f, KUBE_PODS, STATIC_POD("etcd", "1")), 0);
	CHECK_STR(kube_store_pod_uid(f.store, "d41d8cd98f00b204e9800998ecf8427e")->name, "etcd");
	CHECK_EQ(put(&f, KUBE_PODS, STATIC_POD("thief", "2")), 0);
	CHECK(!kube_store_pod_uid(f.store, "d41d8cd98f00b204e9800998ecf8427e"));
	CHECK_STR(kube_store_pod_uid(f.store, "2")->name, "thief");
	CHECK(!kube_store_pod_uid(f.store, "3"));
	fixture_close(&f);
	return TEST_OK;
}

TEST(a_namespace_is_told_only_when_its_answers_change)
{
	struct fixture f;

	fixture_open(&f);
	CHECK_EQ(put(&f, KUBE_NAMESPACES, "{'metadata':{'name':'shop'}}"), 0);
	CHECK_STR(told(&f), "+shop ");
	CHECK_EQ(kube_store_namespace(f.store, "shop")->selected, 1);
	CHECK_EQ(put(&f, KUBE_NAMESPACES, "{'metadata':{'name':'shop','labels':{'a':'b'}}}"), 0);
	CHECK_STR(told(&f), "");
	CHECK_EQ(put(&f, KUBE_NAMESPACES, NAMESPACE("shop", "ambient")), 0);
	CHECK_STR(told(&f), "~shop ");
	CHECK_EQ(kube_store_namespace(f.store, "shop")->selected, 3);
	CHECK_EQ(put(&f, KUBE_NAMESPACES, NAMESPACE("shop", "none")), 0);
	CHECK_STR(told(&f), "~shop ");
	/* Its pods are not gone with it: each of them ends by itself. */
	CHECK_EQ(PUT_POD(&f, "shop", "a", "1"), 0);
	told(&f);
	CHECK_EQ(drop(&f, KUBE_NAMESPACES, NAMESPACE("shop", "none")), 0);
	CHECK_STR(told(&f), "-shop ");
	CHECK(!kube_store_namespace(f.store, "shop"));
	CHECK(kube_store_pod(f.store, "shop", "a"));
	fixture_close(&f);
	return TEST_OK;
}

TEST(pods_are_bounded_and_one_more_is_refused)
{
	struct kube_store_counts counts;
	struct fixture f;
	char text[256];

	fixture_open(&f);
	for (int i = 0; i < KUBE_STORE_PODS_MAX; i++) {
		snprintf(text, sizeof(text), POD("shop", "p-%d", "u-%d") COMMON "}", i, i);
		CHECK_EQ(put(&f, KUBE_PODS, text), 0);
	}
	CHECK_EQ(PUT_POD(&f, "shop", "more", "u"), -ENOSPC);
	CHECK_HAS(f.err.text, "more than 4096 pods");
	/* Those that are known can change, and one that goes makes room. */
	CHECK_EQ(PUT_POD(&f, "shop", "p-7", "u-7"), 0);
	CHECK_EQ(DROP_POD(&f, "shop", "p-7", "u-7"), 0);
	CHECK_EQ(PUT_POD(&f, "shop", "more", "u"), 0);
	kube_store_count(f.store, &counts);
	CHECK_EQ(counts.pods, KUBE_STORE_PODS_MAX);
	CHECK_EQ(counts.refused, 1);
	fixture_close(&f);
	return TEST_OK;
}

/* ---- memory -------------------------------------------------------------------------------- */

static int put_typical_pod(struct fixture *f, int i)
{
	char text[4096];

	snprintf(
		text, sizeof(text),
		"{'metadata':{'namespace':'team-%d','name':'web-7d4b9c6f5-x%04d','uid':"
		"'0e2c4f5a-9d2b-4c8e-8f60-2b1d3c4e%04d','resourceVersion':'48%05d','labels':{"
		"'app':'web','pod-template-hash':'7d4b9c6f5','service.istio.io/canonical-name':"
		"'web','service.istio.io/canonical-revision':'v1','topology.istio.io/network':'n'},"
		"'annotations':{'sidecar.istio.io/status':'{x:[istio-validation,istio-proxy],y:["
		"workload-socket,credential-socket,istio-envoy,istio-data,istio-podinfo]}',"
		"'ambient.istio.io/redirection':'enabled','prometheus.io/scrape':'true'}},"
		"'spec':{'nodeName':'node-1','serviceAccountName':'web','initContainers':[{'name':"
		"'istio-validation'},{'name':'istio-proxy','env':[{'name':'A','value':'b'}]}],"
		"'containers':[{'name':'app'}]},'status':{'phase':'Running','podIP':'10.0.0.1',"
		"'podIPs':[{'ip':'10.0.0.1'},{'ip':'fd00::1'}],'containerStatuses':[{'name':'app',"
		"'containerID':'containerd://%064d','state':{'running':{}}}],"
		"'initContainerStatuses':[{'name':'istio-proxy','containerID':'containerd://%064d',"
		"'state':{'running':{}}}]}}",
		i % 50, i, i, i, i, i);
	return put(f, KUBE_PODS, text);
}

static int put_typical_namespace(struct fixture *f, int i)
{
	char text[512];

	snprintf(text, sizeof(text),
		 "{'metadata':{'name':'team-%d-production','uid':'u-%d','labels':{"
		 "'kubernetes.io/metadata.name':'team-%d-production','team':'t%d','env':'prod',"
		 "'pod-security.kubernetes.io/enforce':'restricted'}},'spec':{'finalizers':["
		 "'kubernetes']},'status':{'phase':'Active'}}",
		 i, i, i, i);
	return put(f, KUBE_NAMESPACES, text);
}

/* The sanitizers have an allocator of their own, which mallinfo2() knows nothing of. */
#if defined(__SANITIZE_ADDRESS__)
#define BYTES_ARE_KNOWN 0
#elif defined(__has_feature)
#define BYTES_ARE_KNOWN !__has_feature(address_sanitizer)
#else
#define BYTES_ARE_KNOWN 1
#endif

TEST(a_full_node_in_a_large_cluster_fits_into_a_megabyte)
{
	enum { PODS = 250, NAMESPACES = 5000, PODS_BYTES = 600000, NAMESPACES_BYTES = 450000 };
	struct kube_store_counts counts;
	size_t before, after_pods, after;
	struct fixture f;

	fixture_open(&f);
	before = mallinfo2().uordblks;
	for (int i = 0; i < PODS; i++)
		CHECK_EQ(put_typical_pod(&f, i), 0);
	after_pods = mallinfo2().uordblks;
	for (int i = 0; i < NAMESPACES; i++)
		CHECK_EQ(put_typical_namespace(&f, i), 0);
	after = mallinfo2().uordblks;
	kube_store_count(f.store, &counts);
	CHECK_EQ(counts.pods, PODS);
	CHECK_EQ(counts.namespaces, NAMESPACES);
	printf("# %d pods: %zu bytes, %d namespaces: %zu bytes\n", PODS, after_pods - before,
	       NAMESPACES, after - after_pods);
	if (BYTES_ARE_KNOWN) {
		CHECK(after_pods > before && after_pods - before < PODS_BYTES);
		CHECK(after > after_pods && after - after_pods < NAMESPACES_BYTES);
	}
	fixture_close(&f);
	return TEST_OK;
}
