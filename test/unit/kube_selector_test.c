/* SPDX-License-Identifier: Apache-2.0 */
#include "kube_selector.h"

#include "error.h"
#include "json.h"
#include "quoted_json.h"
#include "test.h"

#include <errno.h>

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))
#define WHAT	     "--enablement-selectors"

static int read_selector(const char *text, struct kube_selector *ret, struct error *err)
{
	scoped_json json_t *value = quoted_json(text);

	memset(err, 0, sizeof(*err));
	return kube_selector_read(value, "selector", ret, err);
}

static int read_enablement(const char *text, struct kube_selectors *ret, struct error *err)
{
	char *json = quoted(text);
	int r;

	memset(err, 0, sizeof(*err));
	r = kube_enablement_read(json, WHAT, ret, err);
	free(json);
	return r;
}

static int read_discovery(const char *text, struct kube_selectors *ret, struct error *err)
{
	char *json = quoted(text);
	int r;

	memset(err, 0, sizeof(*err));
	r = kube_discovery_read(json, "--discovery-selectors", ret, err);
	free(json);
	return r;
}

static enum test_result check_match(const char *selector_text, const char *labels_text, bool wanted)
{
	scoped_json json_t *labels = labels_text ? quoted_json(labels_text) : NULL;
	struct kube_selector selector = {0};
	struct error err;
	bool matches;

	CHECK_EQ(read_selector(selector_text, &selector, &err), 0);
	matches = kube_selector_matches(&selector, labels);
	kube_selector_done(&selector);
	if (matches != wanted)
		printf("# %s on %s\n", selector_text, labels_text ? labels_text : "(none)");
	CHECK_EQ(matches, wanted);
	return TEST_OK;
}

#define EXPRESSION(operator, values)                                                               \
	"{'matchExpressions':[{'key':'app','operator':'" operator"','values':[" values "]}]}"
#define PLAIN_EXPRESSION(operator) "{'matchExpressions':[{'key':'app','operator':'" operator"'}]}"

TEST(every_operator_matches_as_kubernetes_defines_it)
{
	static const struct {
		const char *selector, *labels;
		bool matches;
	} rows[] = {
		{"{'matchLabels':{'app':'web'}}", "{'app':'web'}", true},
		{"{'matchLabels':{'app':'web'}}", "{'app':'db'}", false},
		{"{'matchLabels':{'app':'web'}}", "{}", false},
		{"{'matchLabels':{'app':'web'}}", NULL, false},
		{"{'matchLabels':{'app':''}}", "{'app':''}", true},
		{"{'matchLabels':{'app':''}}", "{}", false},
		{"{'matchLabels':{'app':'web','tier':'1'}}", "{'app':'web','tier':'1'}", true},
		{"{'matchLabels':{'app':'web','tier':'1'}}", "{'app':'web','tier':'2'}", false},
		{EXPRESSION("In", "'a','b'"), "{'app':'b'}", true},
		{EXPRESSION("In", "'a','b'"), "{'app':'c'}", false},
		{EXPRESSION("In", "'a','b'"), "{'other':'a'}", false},
		{EXPRESSION("In", "'a','b'"), NULL, false},
		{EXPRESSION("NotIn", "'a','b'"), "{'app':'b'}", false},
		{EXPRESSION("NotIn", "'a','b'"), "{'app':'c'}", true},
		{EXPRESSION("NotIn", "'a','b'"), "{'other':'a'}", true},
		{EXPRESSION("NotIn", "'a','b'"), NULL, true},
		{PLAIN_EXPRESSION("Exists"), "{'app':''}", true},
		{PLAIN_EXPRESSION("Exists"), "{'apps':'a'}", false},
		{PLAIN_EXPRESSION("Exists"), NULL, false},
		{PLAIN_EXPRESSION("DoesNotExist"), "{'app':''}", false},
		{PLAIN_EXPRESSION("DoesNotExist"), "{'apps':'a'}", true},
		{PLAIN_EXPRESSION("DoesNotExist"), NULL, true},
		{EXPRESSION("Exists", ""), "{'app':'x'}", true},
		/* Labels and expressions must all hold. */
		{"{'matchLabels':{'a':'1'},'matchExpressions':[{'key':'b','operator':'Exists'}]}",
		 "{'a':'1','b':'2'}", true},
		{"{'matchLabels':{'a':'1'},'matchExpressions':[{'key':'b','operator':'Exists'}]}",
		 "{'a':'1'}", false},
		{"{'matchLabels':{'a':'1'},'matchExpressions':[{'key':'b','operator':'Exists'}]}",
		 "{'b':'1'}", false},
		/* Empty in every way: everything. */
		{"{}", "{'app':'web'}", true},
		{"{}", NULL, true},
		{"null", "{'app':'web'}", true},
		{"{'matchLabels':null,'matchExpressions':null}", NULL, true},
		{"{'matchLabels':{},'matchExpressions':[]}", NULL, true},
	};

	for (size_t i = 0; i < COUNT(rows); i++) {
		enum test_result result =
			check_match(rows[i].selector, rows[i].labels, rows[i].matches);

		if (result != TEST_OK)
			return result;
	}
	return TEST_OK;
}

TEST(what_the_api_server_would_refuse_is_refused_by_its_field)
{
	static const struct {
		const char *selector, *error;
	} rows[] = {
		{EXPRESSION("In", ""),
		 "selector.matchExpressions[0].values: must be given when the "
		 "operator is In or NotIn"},
		{PLAIN_EXPRESSION("NotIn"), "selector.matchExpressions[0].values: must be given "},
		{EXPRESSION("Exists", "'a'"), "selector.matchExpressions[0].values: may not be "
					      "given when the operator is Exists or DoesNotExist"},
		{EXPRESSION("DoesNotExist", "'a'"), "selector.matchExpressions[0].values: may not"},
		{EXPRESSION("Equals", "'a'"), "selector.matchExpressions[0].operator: \"Equals\" "
					      "is not In, NotIn, Exists or DoesNotExist"},
		{EXPRESSION("in", "'a'"), "selector.matchExpressions[0].operator: \"in\" is not"},
		{"{'matchExpressions':[{'key':'a'}]}",
		 "selector.matchExpressions[0].operator: absent is not In"},
		{"{'matchExpressions':[{'operator':'Exists'}]}",
		 "selector.matchExpressions[0].key: absent is not a label's name"},
		{"{'matchExpressions':[{'key':'a','operator':'Exists'},{'key':'b c','operator':"
		 "'Exists'}]}",
		 "selector.matchExpressions[1].key: \"b c\" is not a label's name"},
		{"{'matchExpressions':[{'key':'a','operator':'In','values':['ok','no good']}]}",
		 "selector.matchExpressions[0].values[1]: \"no good\" is not a label value"},
		{"{'matchExpressions':[{'key':'a','operator':'In','values':'x'}]}",
		 "selector.matchExpressions[0].values: \"x\" is not an array"},
		{"{'matchExpressions':[{'key':'a','operator':'In','values':[1]}]}",
		 "selector.matchExpressions[0].values[0]: 1 is not a label value"},
		{"{'matchExpressions':[7]}", "selector.matchExpressions[0]: 7 is not an object"},
		{"{'matchExpressions':{}}", "selector.matchExpressions: {} is not an array"},
		{"{'matchExpressions':[{'key':'a','operator':'Exists','value':'x'}]}",
		 "selector.matchExpressions[0]: unknown field \"value\""},
		{"{'matchLabels':[]}", "selector.matchLabels: [] is not an object"},
		{"{'matchLabels':{'a':1}}", "selector.matchLabels.a: 1 is not a label value"},
		{"{'matchLabels':{'a':'-b'}}", "selector.matchLabels.a: \"-b\" is not a label"},
		{"{'matchLabels':{'':'b'}}", "selector.matchLabels: \"\" is not a label's name"},
		{"{'matchLabels':{'a/b/c':'d'}}", "selector.matchLabels: \"a/b/c\" is not a label"},
		{"{'matchLabels':{'Istio.io/x':'d'}}", "\"Istio.io/x\" is not a label's name"},
		{"{'matchLabels':{'-.io/x':'d'}}", "\"-.io/x\" is not a label's name"},
		{"{'matchLabels':{'/x':'d'}}", "\"/x\" is not a label's name"},
		{"{'matchlabels':{}}", "selector: unknown field \"matchlabels\""},
		{"'app=web'", "selector: \"app=web\" is not an object"},
		{"[]", "selector: [] is not an object"},
	};

	for (size_t i = 0; i < COUNT(rows); i++) {
		struct kube_selector selector = {0};
		struct error err;

		if (read_selector(rows[i].selector, &selector, &err) == 0)
			printf("# %s\n", rows[i].selector);
		CHECK_EQ(err.code, EINVAL);
		CHECK_HAS(err.text, rows[i].error);
		CHECK_EQ(selector.n, 0);
	}
	return TEST_OK;
}

static enum test_result check_key(const char *prefix, size_t prefix_n, size_t name_n, bool valid)
{
	scoped_json json_t *selector = json_object(), *labels = json_object();
	struct kube_selector read = {0};
	struct error err = {0};
	char key[512];
	size_t n = prefix_n ? (size_t)snprintf(key, sizeof(key), "%s", prefix) : 0;
	int r;

	for (; prefix_n && n < prefix_n; n++)
		key[n] = 'a';
	if (prefix_n)
		key[n++] = '/';
	for (size_t i = 0; i < name_n; i++)
		key[n++] = 'x';
	key[n] = '\0';
	json_object_set_new(labels, key, json_string("v"));
	json_object_set(selector, "matchLabels", labels);
	r = kube_selector_read(selector, "selector", &read, &err);
	kube_selector_done(&read);
	CHECK_EQ(r, valid ? 0 : -EINVAL);
	return TEST_OK;
}

TEST(names_of_labels_have_the_lengths_that_kubernetes_allows)
{
	CHECK_EQ(check_key("", 0, 63, true), TEST_OK);
	CHECK_EQ(check_key("", 0, 64, false), TEST_OK);
	CHECK_EQ(check_key("a.b-c.", 253, 63, true), TEST_OK);
	CHECK_EQ(check_key("a.b-c.", 254, 63, false), TEST_OK);
	CHECK_EQ(check_key("a..b", 10, 1, false), TEST_OK);
	CHECK_EQ(check_key("a.-b", 10, 1, false), TEST_OK);
	CHECK_EQ(check_key("a-.b", 10, 1, false), TEST_OK);
	CHECK_EQ(check_key(".a", 10, 1, false), TEST_OK);
	CHECK_EQ(check_key("a_b", 10, 1, false), TEST_OK);
	CHECK_EQ(check_key("a", 1, 0, false), TEST_OK);
	return TEST_OK;
}

/* An array of n copies of item. */
static char *repeated(const char *before, const char *item, size_t n, const char *after)
{
	size_t size = strlen(before) + n * (strlen(item) + 1) + strlen(after) + 1;
	char *text = malloc(size), *end = text;

	if (!text)
		abort();
	end = stpcpy(end, before);
	for (size_t i = 0; i < n; i++) {
		end = stpcpy(end, i ? "," : "");
		end = stpcpy(end, item);
	}
	stpcpy(end, after);
	return text;
}

static enum test_result check_count(const char *before, const char *item, size_t n,
				    const char *after, const char *error)
{
	struct kube_selectors selectors = {0};
	char *text = repeated(before, item, n, after);
	struct error err;
	int r = read_discovery(text, &selectors, &err);

	free(text);
	kube_selectors_done(&selectors);
	CHECK_EQ(r, error ? -EINVAL : 0);
	if (error)
		CHECK_HAS(err.text, error);
	return TEST_OK;
}

TEST(lists_are_bounded)
{
	static const char exists[] = "{'key':'a','operator':'Exists'}";
	static const char values[] = "[{'matchExpressions':[{'key':'a','operator':'In','values':[";

	CHECK_EQ(check_count("[", "{}", KUBE_SELECTORS_MAX, "]", NULL), TEST_OK);
	CHECK_EQ(check_count("[", "{}", KUBE_SELECTORS_MAX + 1, "]", "65 selectors, at most 64"),
		 TEST_OK);
	CHECK_EQ(check_count("[{'matchExpressions':[", exists, KUBE_REQUIREMENTS_MAX, "]}]", NULL),
		 TEST_OK);
	CHECK_EQ(check_count("[{'matchExpressions':[", exists, KUBE_REQUIREMENTS_MAX + 1, "]}]",
			     "[0]: 65 labels and expressions, at most 64"),
		 TEST_OK);
	CHECK_EQ(check_count(values, "'v'", KUBE_VALUES_MAX, "]}]}]", NULL), TEST_OK);
	CHECK_EQ(check_count(values, "'v'", KUBE_VALUES_MAX + 1, "]}]}]",
			     "values: 257 values, at most 256"),
		 TEST_OK);
	return TEST_OK;
}

TEST(the_default_selects_what_istio_selects)
{
	static const struct {
		const char *ns, *pod;
		int selected;
	} rows[] = {
		{"{}", "{'istio.io/dataplane-mode':'ambient'}", 0},
		{"{'istio.io/dataplane-mode':'none'}", "{'istio.io/dataplane-mode':'ambient'}", 0},
		{"{'istio.io/dataplane-mode':'ambient'}", "{'istio.io/dataplane-mode':'ambient'}",
		 0},
		{"{'istio.io/dataplane-mode':'ambient'}", "{}", 1},
		{"{'istio.io/dataplane-mode':'ambient'}", "{'istio.io/dataplane-mode':''}", 1},
		{"{'istio.io/dataplane-mode':'ambient'}", "{'istio.io/dataplane-mode':'x'}", 1},
		{"{'istio.io/dataplane-mode':'ambient'}", "{'istio.io/dataplane-mode':'none'}", -1},
		{"{'istio.io/dataplane-mode':'Ambient'}", "{}", -1},
		{"{'istio.io/dataplane-mode':'none'}", "{}", -1},
		{"{}", "{}", -1},
		{"{}", "{'istio.io/dataplane-mode':'none'}", -1},
	};
	struct kube_selectors selectors = {0};
	struct error err = {0};

	CHECK_EQ(kube_enablement_read(kube_enablement_default, WHAT, &selectors, &err), 0);
	for (size_t i = 0; i < COUNT(rows); i++) {
		scoped_json json_t *ns = quoted_json(rows[i].ns), *pod = quoted_json(rows[i].pod);

		CHECK_EQ(kube_selectors_select(&selectors, kube_selectors_namespace(&selectors, ns),
					       pod),
			 rows[i].selected);
	}
	CHECK(kube_selectors_ask_pod(&selectors, "istio.io/dataplane-mode"));
	CHECK(!kube_selectors_ask_pod(&selectors, "app"));
	kube_selectors_done(&selectors);
	return TEST_OK;
}

TEST(an_enablement_needs_both_of_its_selectors)
{
	scoped_json json_t *prod = quoted_json("{'env':'prod'}"), *web = quoted_json("{'app':'w'}");
	struct kube_selectors s = {0};
	struct error err;

	CHECK_EQ(read_enablement("[{'podSelector':{'matchLabels':{'app':'w'}},"
				 "'namespaceSelector':{'matchLabels':{'env':'prod'}}},"
				 "{'podSelector':{'matchLabels':{'app':'x'}}},"
				 "{'namespaceSelector':{'matchLabels':{'env':'all'}}}]",
				 &s, &err),
		 0);
	CHECK_EQ(kube_selectors_namespace(&s, prod), 3);
	CHECK_EQ(kube_selectors_namespace(&s, NULL), 2);
	CHECK_EQ(kube_selectors_select(&s, 3, web), 0);
	CHECK_EQ(kube_selectors_select(&s, 2, web), -1);
	CHECK_EQ(kube_selectors_select(&s, 3, NULL), -1);
	CHECK_EQ(kube_selectors_select(&s, 4, NULL), 2);
	CHECK(kube_selectors_ask_pod(&s, "app"));
	CHECK(!kube_selectors_ask_pod(&s, "env"));
	/* One that has both empty selects every pod; a list without any, none. */
	CHECK_EQ(read_enablement("[{}]", &s, &err), 0);
	CHECK_EQ(kube_selectors_select(&s, kube_selectors_namespace(&s, NULL), NULL), 0);
	CHECK_EQ(read_enablement("[]", &s, &err), 0);
	CHECK_EQ(kube_selectors_select(&s, kube_selectors_namespace(&s, prod), web), -1);
	kube_selectors_done(&s);
	return TEST_OK;
}

TEST(all_64_enablements_have_their_bit)
{
	struct kube_selectors s = {0};
	char *text = repeated("[", "{'podSelector':{'matchLabels':{'a':'b'}}}",
			      KUBE_SELECTORS_MAX - 1, ",{}]");
	struct error err;

	CHECK_EQ(read_enablement(text, &s, &err), 0);
	free(text);
	CHECK_EQ(kube_selectors_namespace(&s, NULL), UINT64_MAX);
	CHECK_EQ(kube_selectors_select(&s, UINT64_MAX, NULL), 63);
	kube_selectors_done(&s);
	return TEST_OK;
}

TEST(a_namespace_is_discovered_by_any_selector_or_when_there_is_none)
{
	scoped_json json_t *a = quoted_json("{'a':'1'}"), *b = quoted_json("{'b':'1'}");
	struct kube_selectors s = {0};
	struct error err;

	CHECK(kube_selectors_discover(&s, NULL));
	CHECK_EQ(read_discovery("[]", &s, &err), 0);
	CHECK(kube_selectors_discover(&s, a));
	CHECK_EQ(read_discovery("[{'matchLabels':{'a':'1'}},{'matchExpressions':"
				"[{'key':'b','operator':'Exists'}]}]",
				&s, &err),
		 0);
	CHECK(kube_selectors_discover(&s, a));
	CHECK(kube_selectors_discover(&s, b));
	CHECK(!kube_selectors_discover(&s, NULL));
	kube_selectors_done(&s);
	return TEST_OK;
}

TEST(lists_that_are_wrong_are_refused_and_what_was_there_stays)
{
	static const struct {
		const char *text, *error;
	} rows[] = {
		{"{}", WHAT ": {} is not an array of selectors"},
		{"[1]", WHAT ": [0]: 1 is not an object"},
		{"[{},{'podselector':{}}]", WHAT ": [1]: unknown field \"podselector\""},
		{"[{'podSelector':{'matchLabels':{'a b':'c'}}}]",
		 WHAT ": [0].podSelector.matchLabels: \"a b\" is not"},
		{"[{},{'namespaceSelector':{'matchExpressions':[{'key':'a','operator':'In'}]}}]",
		 WHAT ": [1].namespaceSelector.matchExpressions[0].values: must be given"},
		{"[", WHAT ": line 1, column 1: "},
		{"", WHAT ": no JSON"},
	};
	struct kube_selectors s = {0};
	struct error err;

	CHECK_EQ(read_enablement("[{},{}]", &s, &err), 0);
	for (size_t i = 0; i < COUNT(rows); i++) {
		CHECK_EQ(read_enablement(rows[i].text, &s, &err), -EINVAL);
		CHECK_HAS(err.text, rows[i].error);
		CHECK_EQ(s.n_enablement, 2);
	}
	CHECK_EQ(read_discovery("[{'podSelector':{}}]", &s, &err), -EINVAL);
	CHECK_STR(err.text, "--discovery-selectors: [0]: unknown field \"podSelector\"");
	kube_selectors_done(&s);
	return TEST_OK;
}
