/* SPDX-License-Identifier: Apache-2.0 */
#include "accelerate_probe.h"
#include "ctl.h"
#include "ctl_print.h"
#include "scoped.h"
#include "test.h"

#include <stdlib.h>

/* ---- judging -------------------------------------------------------------------------------- */

/* A kernel whose sockmap is TCP in every way. */
static struct accelerate_probe perfect(void)
{
	struct accelerate_probe probe = {.release = "6.99.0"};

	for (int i = 0; i < TEST_COUNT_; i++)
		probe.results[i] = (struct accelerate_result){FINDING_AS_TCP, "as it should"};
	return probe;
}

/* What is found on Linux 6.18. */
static struct accelerate_probe usual(void)
{
	static const enum accelerate_test differ[] = {
		TEST_ORDER,    TEST_ENTRY_REMOVED, TEST_FIONREAD_TCP, TEST_SPLICE,
		TEST_ZEROCOPY, TEST_WAITALL,	   TEST_BLOCKING,
	};
	struct accelerate_probe probe = perfect();

	for (size_t i = 0; i < sizeof(differ) / sizeof(*differ); i++)
		probe.results[differ[i]].finding = FINDING_DIFFERS;
	return probe;
}

TEST(a_kernel_as_they_are_may_do_both_with_a_warning_of_full)
{
	struct accelerate_probe probe = usual();

	accelerate_probe_judge(&probe, false);
	CHECK(probe.proxy && probe.full);
	CHECK_STR(probe.reason, "full is unsafe for programs that use "
				"FIONREAD of TCP's bytes, splice(), MSG_ZEROCOPY, MSG_WAITALL, "
				"blocking recv()");
	return TEST_OK;
}

TEST(a_kernel_without_faults_is_not_warned_of)
{
	struct accelerate_probe probe = perfect();

	accelerate_probe_judge(&probe, false);
	CHECK(probe.proxy && probe.full);
	CHECK_STR(probe.reason, "nothing differs that programs use");
	return TEST_OK;
}

TEST(what_proxies_rely_on_decides_alone)
{
	static const enum accelerate_test needed[] = {
		TEST_LOADS,	 TEST_ORDER_DRAINED, TEST_COPIED_SEQ, TEST_EOF,
		TEST_HALF_CLOSE, TEST_RST,	     TEST_ACCOUNTED,  TEST_SECOND_OWNER,
	};

	for (enum accelerate_test test = 0; test < TEST_COUNT_; test++) {
		struct accelerate_probe probe = usual();
		bool decides = false;

		for (size_t i = 0; i < sizeof(needed) / sizeof(*needed); i++)
			decides = decides || needed[i] == test;
		CHECK_EQ(!strcmp(accelerate_test_decides(test), "proxy"), decides);
		probe.results[test] = (struct accelerate_result){FINDING_DIFFERS, "read nothing"};
		accelerate_probe_judge(&probe, false);
		CHECK_EQ(probe.proxy, !decides);
		CHECK_EQ(probe.full, !decides);
		if (!decides)
			continue;
		CHECK_HAS(probe.reason, accelerate_test_name(test));
		CHECK_HAS(probe.reason, "read nothing");
	}
	return TEST_OK;
}

/* Where nothing is known nothing is allowed, but for what is tried later. */
TEST(what_could_not_be_tried_is_not_relied_on)
{
	struct accelerate_probe probe = usual();

	probe.results[TEST_LOADS] = (struct accelerate_result){FINDING_UNKNOWN, ""};
	accelerate_probe_judge(&probe, false);
	CHECK(probe.proxy && probe.full);

	probe.results[TEST_EOF] =
		(struct accelerate_result){FINDING_UNKNOWN, "not tried: no time left"};
	accelerate_probe_judge(&probe, false);
	CHECK(!probe.proxy && !probe.full);
	CHECK_HAS(probe.reason, "eof: not tried: no time left");

	/* Judged again, it is as if it had been the first time. */
	probe = usual();
	probe.results[TEST_SPLICE] = (struct accelerate_result){FINDING_UNKNOWN, ""};
	accelerate_probe_judge(&probe, false);
	accelerate_probe_judge(&probe, false);
	CHECK(probe.proxy && probe.full);
	CHECK_HAS(probe.reason, "splice()");
	return TEST_OK;
}

TEST(a_known_bug_turns_everything_off_unless_it_is_to_be_ignored)
{
	struct accelerate_probe probe = usual();

	probe.known_bug = "a hole";
	accelerate_probe_judge(&probe, false);
	CHECK(!probe.proxy && !probe.full);
	CHECK_STR(probe.reason, "this kernel has a known bug: a hole");
	accelerate_probe_judge(&probe, true);
	CHECK(probe.proxy && probe.full);

	/* It only ever lowers. */
	probe.results[TEST_EOF].finding = FINDING_DIFFERS;
	accelerate_probe_judge(&probe, true);
	CHECK(!probe.proxy && !probe.full);

	/* And it holds whatever was seen, or could not be tried. */
	accelerate_probe_judge(&probe, false);
	CHECK_STR(probe.reason, "this kernel has a known bug: a hole");
	return TEST_OK;
}

TEST(the_longest_reason_is_cut_in_its_place)
{
	struct accelerate_probe probe = perfect();

	for (int i = 0; i < TEST_COUNT_; i++) {
		memset(probe.results[i].detail, 'x', sizeof(probe.results[i].detail) - 1);
		probe.results[i].finding = FINDING_DIFFERS;
	}
	accelerate_probe_judge(&probe, false);
	CHECK(!probe.proxy);
	CHECK(strlen(probe.reason) < sizeof(probe.reason));
	return TEST_OK;
}

/* ---- telling -------------------------------------------------------------------------------- */

TEST(every_test_has_a_name_and_a_reason_of_its_own)
{
	for (enum accelerate_test a = 0; a < TEST_COUNT_; a++) {
		CHECK(accelerate_test_name(a) && *accelerate_test_name(a));
		CHECK(accelerate_test_why(a) && *accelerate_test_why(a));
		for (enum accelerate_test b = 0; b < a; b++) {
			CHECK(strcmp(accelerate_test_name(a), accelerate_test_name(b)) != 0);
			CHECK(strcmp(accelerate_test_why(a), accelerate_test_why(b)) != 0);
		}
	}
	return TEST_OK;
}

TEST(the_result_is_told_as_json)
{
	struct accelerate_probe probe = usual();
	const char *finding = NULL, *decides = NULL, *name = NULL, *level = NULL;
	json_t *json, *tests, *known_bug = NULL;
	json_int_t took = 0;

	probe.took_us = 32097;
	accelerate_probe_judge(&probe, false);
	json = accelerate_probe_to_json(&probe);
	CHECK(json);
	CHECK_EQ(json_unpack(json, "{s:s,s:I,s:o,s:o}", "level", &level, "tookUs", &took, "tests",
			     &tests, "knownBug", &known_bug),
		 0);
	CHECK_STR(level, "full");
	CHECK_EQ(took, 32097);
	CHECK(json_is_null(known_bug));
	CHECK_EQ(json_array_size(tests), TEST_COUNT_);
	CHECK_EQ(json_unpack(json_array_get(tests, TEST_SPLICE), "{s:s,s:s,s:s}", "name", &name,
			     "finding", &finding, "decides", &decides),
		 0);
	CHECK_STR(name, "splice");
	CHECK_STR(finding, "differs");
	CHECK_STR(decides, "full");
	json_decref(json);

	probe.known_bug = "a hole";
	accelerate_probe_judge(&probe, false);
	json = accelerate_probe_to_json(&probe);
	CHECK_STR(json_string_value(json_object_get(json, "level")), "off");
	CHECK_STR(json_string_value(json_object_get(json, "knownBug")), "a hole");
	json_decref(json);
	return TEST_OK;
}

static void show(json_t *answer, char **ret_text)
{
	const struct ctl_options opt = {0};
	size_t size;
	struct ctl_out out = {open_memstream(ret_text, &size), false};

	ctl_probe.show(&opt, answer, &out);
	fclose(out.file);
	json_decref(answer);
}

TEST(the_command_line_shows_each_test_with_what_it_decides)
{
	struct accelerate_probe probe = usual();
	scoped_free char *text = NULL, *bug = NULL, *none = NULL, *odd = NULL;

	accelerate_probe_judge(&probe, false);
	show(json_pack("{s:{},s:o}", "probe", "accelerate", accelerate_probe_to_json(&probe)),
	     &text);
	CHECK_HAS(text, "Allows          full\n");
	CHECK_HAS(text, "full is unsafe for programs that use");
	CHECK_HAS(text, "  order-drained   as-tcp   the accelerator     as it should\n");
	CHECK_HAS(text, "  entry-removed   differs  nothing             as it should\n");
	CHECK_HAS(text, "  splice          differs  a warning for full  as it should\n");
	CHECK(!strstr(text, "Known bug"));

	probe.known_bug = "a hole";
	accelerate_probe_judge(&probe, false);
	show(json_pack("{s:{},s:o}", "probe", "accelerate", accelerate_probe_to_json(&probe)),
	     &bug);
	CHECK_HAS(bug, "Allows          off\n");
	CHECK_HAS(bug, "Known bug       a hole\n");

	/* Agents of other versions. */
	show(json_pack("{s:{}}", "probe"), &none);
	CHECK(!strstr(none, "sockmap"));
	show(json_pack("{s:{},s:{s:[i,{}],s:i}}", "probe", "accelerate", "tests", 1, "level", 2),
	     &odd);
	CHECK_HAS(odd, "Allows          off\n");
	return TEST_OK;
}

/* ---- releases ------------------------------------------------------------------------------- */

#define SMP " SMP PREEMPT_DYNAMIC "

TEST(a_release_is_known_where_its_number_says_what_it_is)
{
	static const struct {
		const char *release, *version;
		struct kernel_release want;
	} known[] = {
		{"6.12.95", "#1" SMP "Thu Jul  3 12:00:00 UTC 2025", {6, 12, 95}},
		{"6.1.0-56-cloud-amd64", "#1" SMP "Debian 6.1.192-2 (2026-11-16)", {6, 1, 192}},
		{"5.10.0-46-cloud-amd64", "#1 SMP Debian 5.10.262-1 (2026-07-31)", {5, 10, 262}},
		{"6.12.95+deb12-cloud-amd64",
		 "#1" SMP "Debian 6.12.95-1~bpo12+1 (2026-08-01)",
		 {6, 12, 95}},
		{"6.1.0-18-rt-arm64", "#1 SMP PREEMPT_RT Debian 6.1.76-1 (2024-02-01)", {6, 1, 76}},
		{"6.6.60-flatcar", "#1" SMP "Mon Nov 11 00:00:00 -00 2024", {6, 6, 60}},
		{"6.12.6-talos", "#1" SMP "Fri Dec 20 12:00:00 UTC 2024", {6, 12, 6}},
		{"6.18.0", "", {6, 18, 0}},
	};
	/* Fixes of their own, or a number of their own. */
	static const char *const unknown[][2] = {
		{"5.14.0-427.13.1.el9_4.x86_64", "#1" SMP "Wed Apr 10 10:29:16 EDT 2024"},
		{"4.18.0-553.el8_10.x86_64", "#1 SMP Mon May 13 15:34:15 EDT 2024"},
		{"6.8.0-45-generic", "#45-Ubuntu" SMP "Fri Aug 30 12:02:04 UTC 2024"},
		{"6.5.0-1025-azure", "#26~22.04.1-Ubuntu SMP Thu Jul 11 22:33:04 UTC 2024"},
		{"5.15.0-1072-aws", "#78-Ubuntu SMP Wed Oct 9 18:31:09 UTC 2024"},
		{"6.1.112-122.189.amzn2023.x86_64", "#1" SMP "Tue Oct  8 17:02:21 UTC 2024"},
		{"6.1.112+", "#1" SMP "Sat Nov  9 10:00:00 UTC 2024"},
		{"5.15.167.4-microsoft-standard-WSL2", "#1 SMP Tue Nov 5 00:21:55 UTC 2024"},
		{"6.6.57.1-6.azl3", "#1" SMP "Thu Oct 31 00:00:00 UTC 2024"},
		{"6.4.0-150600.23.25-default", "#1" SMP "Tue Oct  1 10:54:01 UTC 2024"},
		{"6.8.12-4-pve", "#1" SMP "PMX 6.8.12-4 (2024-11-06T15:04Z)"},
		{"6.6.51+rpt-rpi-v8", "#1 SMP PREEMPT Debian 1:6.6.51-1+rpt3 (2024-10-08)"},
		{"6.12.0-rc1", ""},
		{"6.12.95-fc", ""},
		{"6.1.0-9-amd64", "#1 SMP Debian"},
		{"6.1.27", "#1 SMP Debian x"},
		{"6.1.27", "#1 SMP Debian 6.1.27"},
		{"6.12", ""},
		{"6.12.", ""},
		{"6..12", ""},
		{".6.12", ""},
		{"-6.1.12", ""},
		{"6.1.-12", ""},
		{" 6.1.12", ""},
		{"6.1.12 ", ""},
		{"6.1.00012", ""},
		{"99999999999999999999.1.12", ""},
		{"", ""},
		{"Debian", " Debian "},
	};

	for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++) {
		struct kernel_release got = {0};

		printf("# %s\n", known[i].release);
		CHECK(accelerate_release_parse(known[i].release, known[i].version, &got));
		CHECK_EQ(got.version, known[i].want.version);
		CHECK_EQ(got.patchlevel, known[i].want.patchlevel);
		CHECK_EQ(got.sublevel, known[i].want.sublevel);
	}
	for (size_t i = 0; i < sizeof(unknown) / sizeof(*unknown); i++) {
		struct kernel_release got = {0};

		printf("# %s %s\n", unknown[i][0], unknown[i][1]);
		CHECK(!accelerate_release_parse(unknown[i][0], unknown[i][1], &got));
		CHECK_EQ(got.version, 0);
		CHECK(!accelerate_release_bug(unknown[i][0], unknown[i][1]));
	}
	return TEST_OK;
}

TEST(a_bug_is_known_until_the_release_that_fixed_it)
{
	static const struct {
		const char *release, *bug; /* NULL: none */
	} cases[] = {
		{"5.10.264", "fixed in 5.10.265"},
		{"5.10.265", NULL},
		{"5.15.215", "fixed in 5.15.216"},
		{"5.15.216", NULL},
		{"6.1.182", "fixed in 6.1.183"},
		{"6.1.183", NULL},
		{"6.6.151", "fixed in 6.6.152"},
		{"6.6.152", NULL},
		{"6.12.103", "fixed in 6.12.104"},
		{"6.12.104", NULL},
		{"6.18.44", "fixed in 6.18.45"},
		{"6.18.45", NULL},
		{"6.18.1000", NULL},
		{"6.17.13", "never had the fix"},
		{"6.19.14", "never had the fix"},
		{"5.4.300", "never had the fix"},
		{"6.20.0", NULL},
		{"7.0.1", NULL},
		{"7.2.0", NULL},
		{"10.0.0", NULL},
	};

	for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
		const char *bug = accelerate_release_bug(cases[i].release, "#1 SMP");

		printf("# %s\n", cases[i].release);
		if (!cases[i].bug)
			CHECK(!bug);
		else
			CHECK_HAS(bug, cases[i].bug);
	}
	CHECK_HAS(accelerate_release_bug("6.1.0-49-amd64", "#1 SMP Debian 6.1.176-1 (2026-06-01)"),
		  "fixed in 6.1.183");
	CHECK(!accelerate_release_bug("6.1.0-56-amd64", "#1 SMP Debian 6.1.192-2 (2026-11-16)"));
	return TEST_OK;
}
