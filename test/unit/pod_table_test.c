/* SPDX-License-Identifier: Apache-2.0 */
#include "pod_table.h"

#include "error.h"
#include "test.h"

#include <stdlib.h>

static struct pod *make(const char *id, const char *if_name, uint64_t cookie, enum pod_mode mode)
{
	struct pod *pod = pod_new(id, if_name);

	pod->cookie = cookie;
	pod->mode = mode;
	return pod;
}

TEST(an_entry_is_found_by_both_ids_only)
{
	struct error err = {0};
	struct pod_table *table;
	struct pod *pod = make("a", "bc", 1, POD_SKIP);

	CHECK(!pod_table_new(&table, &err));
	CHECK(!pod_table_put(table, pod, &err));
	CHECK(pod_table_find(table, "a", "bc") == pod);
	CHECK(!pod_table_find(table, "ab", "c"));
	CHECK(!pod_table_find(table, "a", "b"));
	CHECK(!pod_table_find(table, "", "abc"));
	pod_table_free(table);
	return TEST_OK;
}

TEST(a_second_put_of_a_key_replaces_in_place)
{
	struct error err = {0};
	struct pod_table *table;
	struct pod *old = make("a", "eth0", 1, POD_SIDECAR), *new = make("a", "eth0", 2, POD_SKIP);

	CHECK(!pod_table_new(&table, &err));
	CHECK(!pod_table_put(table, old, &err));
	CHECK(!pod_table_put(table, make("b", "eth0", 3, POD_SKIP), &err));
	CHECK(!pod_table_put(table, new, &err));
	CHECK_EQ(pod_table_count(table), 2);
	CHECK(pod_table_at(table, 0) == new);
	CHECK(pod_table_find(table, "a", "eth0") == new);
	CHECK(!pod_table_put(table, new, &err)); /* itself: nothing is freed */
	CHECK_EQ(pod_table_at(table, 0)->cookie, 2);
	pod_table_free(table);
	return TEST_OK;
}

TEST(a_thousand_entries_are_found_and_removed_in_any_order)
{
	struct error err = {0};
	struct pod_table *table;
	char id[16];

	CHECK(!pod_table_new(&table, &err));
	for (int i = 0; i < 1000; i++) {
		snprintf(id, sizeof(id), "pod-%d", i);
		CHECK(!pod_table_put(table, make(id, "eth0", (uint64_t)i, POD_SIDECAR), &err));
	}
	for (int i = 0; i < 1000; i += 3) {
		snprintf(id, sizeof(id), "pod-%d", i);
		pod_table_remove(table, pod_table_find(table, id, "eth0"));
	}
	CHECK_EQ(pod_table_count(table), 666);
	for (int i = 0; i < 1000; i++) {
		struct pod *pod;

		snprintf(id, sizeof(id), "pod-%d", i);
		pod = pod_table_find(table, id, "eth0");
		CHECK(i % 3 ? pod && pod->cookie == (uint64_t)i : !pod);
	}
	for (size_t i = 1; i < pod_table_count(table); i++)
		CHECK(pod_table_at(table, i - 1)->cookie < pod_table_at(table, i)->cookie);
	pod_table_free(table);
	return TEST_OK;
}

TEST(a_namespace_is_redirected_while_any_entry_holds_it)
{
	struct error err = {0};
	struct pod_table *table;
	struct pod *first = make("a", "eth0", 7, POD_SIDECAR);
	struct pod *second = make("a", "net1", 7, POD_SIDECAR);

	CHECK(!pod_table_new(&table, &err));
	CHECK(!pod_table_put(table, make("a", "net0", 7, POD_SKIP), &err));
	CHECK(!pod_table_redirected(table, 7, NULL)); /* a skipped one does not */
	CHECK(!pod_table_put(table, first, &err));
	CHECK(!pod_table_redirected(table, 7, first));
	CHECK(!pod_table_put(table, second, &err));
	CHECK(pod_table_redirected(table, 7, first) == second);
	CHECK(pod_table_redirected(table, 7, NULL) == first);
	CHECK(!pod_table_redirected(table, 8, NULL));
	pod_table_remove(table, first);
	CHECK(pod_table_redirected(table, 7, NULL) == second);
	pod_table_free(table);
	pod_table_free(NULL);
	return TEST_OK;
}

TEST(a_pod_is_found_by_its_name_when_it_has_one)
{
	struct error err = {0};
	struct pod_table *table;
	struct pod *nameless = make("a", "eth0", 1, POD_SKIP);
	struct pod *named = make("b", "eth0", 2, POD_SKIP);

	named->ns = strdup("shop");
	named->name = strdup("web-0");
	CHECK(!pod_table_new(&table, &err));
	CHECK(!pod_table_put(table, nameless, &err));
	CHECK(!pod_table_put(table, named, &err));
	CHECK(pod_table_find_name(table, "shop", "web-0") == named);
	CHECK(!pod_table_find_name(table, "shop", "web-1"));
	CHECK(!pod_table_find_name(table, "web-0", "shop"));
	pod_table_free(table);
	pod_free(NULL);
	return TEST_OK;
}
