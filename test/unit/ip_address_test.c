/* SPDX-License-Identifier: Apache-2.0 */
#include "ip_address.h"

#include "error.h"
#include "test.h"

#include <arpa/inet.h>
#include <errno.h>

#define N_OF(array) (sizeof(array) / sizeof(*(array)))

TEST(addresses_parse_and_print)
{
	static const struct {
		const char *text, *printed;
		bool v4, loopback, link_local, unspecified;
	} rows[] = {
		{"1.2.3.4", "1.2.3.4", true, false, false, false},
		{"::ffff:1.2.3.4", "1.2.3.4", true, false, false, false},
		{"0.0.0.0", "0.0.0.0", true, false, false, true},
		{"127.0.0.6", "127.0.0.6", true, true, false, false},
		{"127.255.255.255", "127.255.255.255", true, true, false, false},
		{"255.0.0.1", "255.0.0.1", true, false, false, false},
		{"169.254.7.127", "169.254.7.127", true, false, true, false},
		{"::", "::", false, false, false, true},
		{"::1", "::1", false, true, false, false},
		{"::6", "::6", false, false, false, false},
		{"fe80::1", "fe80::1", false, false, true, false},
		{"febf::1", "febf::1", false, false, true, false},
		{"fec0::1", "fec0::1", false, false, false, false},
		{"FD00:0:0::0a", "fd00::a", false, false, false, false},
	};

	for (size_t i = 0; i < N_OF(rows); i++) {
		char buf[IP_ADDRESS_TEXT_MAX];
		struct error err = {0};
		struct ip_address a;

		CHECK_EQ(ip_address_parse(rows[i].text, &a, &err), 0);
		CHECK_STR(ip_address_format(&a, buf), rows[i].printed);
		CHECK_EQ(ip_address_is_v4(&a), rows[i].v4);
		CHECK_EQ(ip_address_is_loopback(&a), rows[i].loopback);
		CHECK_EQ(ip_address_is_link_local(&a), rows[i].link_local);
		CHECK_EQ(ip_address_is_unspecified(&a), rows[i].unspecified);
	}
	return TEST_OK;
}

TEST(bad_addresses_are_named)
{
	static const char *const bad[] = {
		"",	     "1.2.3",	  "1.2.3.4.5",	  "1.2.3.256", "01.2.3.4",
		" 1.2.3.4",  "1.2.3.4 ",  "fe80::1%eth0", "::1::",     "12345::",
		"localhost", "1.2.3.4/8", "0x7f.0.0.1",
	};

	for (size_t i = 0; i < N_OF(bad); i++) {
		struct ip_address a = {{7}};
		struct error err = {0};

		CHECK_EQ(ip_address_parse(bad[i], &a, &err), -EINVAL);
		CHECK_HAS(err.text, bad[i]);
		CHECK_EQ(a.bytes[0], 7);
	}
	return TEST_OK;
}

TEST(v4_and_v6_convert)
{
	struct ip_address a, b;
	struct error err = {0};

	ip_address_from_v4(htonl(0x01020304), &a);
	CHECK_EQ(ip_address_parse("1.2.3.4", &b, &err), 0);
	CHECK(ip_address_equal(&a, &b));
	CHECK_EQ(ip_address_v4_be(&a), htonl(0x01020304));
	ip_address_from_v6(b.bytes, &a);
	CHECK(ip_address_equal(&a, &b));
	a.bytes[15]++;
	CHECK(!ip_address_equal(&a, &b));
	return TEST_OK;
}

TEST(prefixes_parse_and_clear_host_bits)
{
	static const struct {
		const char *text, *printed;
		unsigned length;
	} rows[] = {
		{"10.1.2.3/8", "10.0.0.0/8", 104},
		{"10.1.2.3", "10.1.2.3/32", 128},
		{"10.1.2.3/32", "10.1.2.3/32", 128},
		{"10.255.255.255/13", "10.248.0.0/13", 109},
		{"1.2.3.4/0", "0.0.0.0/0", 96},
		{"fd00:1:2:3::4/64", "fd00:1:2:3::/64", 64},
		{"fd00::1", "fd00::1/128", 128},
		{"ffff::/0", "::/0", 0},
		{"::ffff:1.2.3.4/120", "1.2.3.0/24", 120},
		{"::ffff:1.2.3.4/64", "::/64", 64},
		{"ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255/127",
		 "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127", 127},
	};

	for (size_t i = 0; i < N_OF(rows); i++) {
		char buf[IP_PREFIX_TEXT_MAX];
		struct error err = {0};
		struct ip_prefix p;

		CHECK_EQ(ip_prefix_parse(rows[i].text, &p, &err), 0);
		CHECK_EQ(p.length, rows[i].length);
		CHECK_STR(ip_prefix_format(&p, buf), rows[i].printed);
	}
	return TEST_OK;
}

TEST(bad_prefixes_are_named)
{
	static const char *const bad[] = {
		"",
		"/",
		"/8",
		"10.0.0.0/",
		"10.0.0.0/33",
		"10.0.0.0/-1",
		"10.0.0.0/+8",
		"10.0.0.0/08",
		"10.0.0.0/ 8",
		"10.0.0.0/8 ",
		"10.0.0.0/8/8",
		"fd00::/129",
		"10.0.0/8",
		"*",
		"fd00::/1000",
		"10.0.0.0/4294967304",
		"1111111111111111111111111111111111111111111111111111111111111111/8",
	};

	for (size_t i = 0; i < N_OF(bad); i++) {
		struct error err = {0};
		struct ip_prefix p;

		CHECK_EQ(ip_prefix_parse(bad[i], &p, &err), -EINVAL);
		CHECK_HAS(err.text, bad[i]);
	}
	return TEST_OK;
}

TEST(prefixes_contain_and_cover)
{
	static const struct {
		const char *outer, *inner;
		bool covers;
	} rows[] = {
		{"10.0.0.0/8", "10.9.0.0/16", true},
		{"10.0.0.0/8", "10.0.0.0/8", true},
		{"10.0.0.0/9", "10.128.0.1", false},
		{"10.9.0.0/16", "10.0.0.0/8", false},
		{"0.0.0.0/0", "255.255.255.255", true},
		{"0.0.0.0/0", "::1", false},
		{"::/0", "::1", true},
		{"::/0", "1.2.3.4", false},
		{"fd00::/8", "fdff::1", true},
		{"fd00::/8", "fc00::1", false},
		{"::/0", "0.0.0.0/0", false},
		{"1.2.3.4", "::ffff:1.2.3.4", true},
		{"fd00::/127", "fd00::1", true},
		{"fd00::/127", "fd00::2", false},
	};

	for (size_t i = 0; i < N_OF(rows); i++) {
		struct ip_prefix outer, inner;
		struct error err = {0};

		CHECK_EQ(ip_prefix_parse(rows[i].outer, &outer, &err), 0);
		CHECK_EQ(ip_prefix_parse(rows[i].inner, &inner, &err), 0);
		CHECK_EQ(ip_prefix_covers(&outer, &inner), rows[i].covers);
		if (inner.length == 128)
			CHECK_EQ(ip_prefix_contains(&outer, &inner.address), rows[i].covers);
	}
	return TEST_OK;
}

TEST(endpoints_parse_and_print)
{
	static const struct {
		const char *text, *printed;
	} rows[] = {
		{"1.2.3.4:80", "1.2.3.4:80"},
		{"[::1]:65535", "[::1]:65535"},
		{"[::ffff:1.2.3.4]:0", "1.2.3.4:0"},
		{"[1:2222:3333:4444:5555:6666:7777:8888]:1",
		 "[1:2222:3333:4444:5555:6666:7777:8888]:1"},
	};

	for (size_t i = 0; i < N_OF(rows); i++) {
		char buf[IP_ENDPOINT_TEXT_MAX];
		struct error err = {0};
		struct ip_address a;
		uint16_t port;

		CHECK_EQ(ip_endpoint_parse(rows[i].text, &a, &port, &err), 0);
		CHECK_STR(ip_endpoint_format(&a, port, buf), rows[i].printed);
	}
	return TEST_OK;
}

TEST(bad_endpoints_are_named)
{
	static const char *const bad[] = {
		"",
		"1.2.3.4",
		"1.2.3.4:",
		"1.2.3.4:65536",
		"1.2.3.4:-1",
		"1.2.3.4:080",
		"::1:80",
		"[::1]80",
		"[::1]",
		"[::1]:",
		"[::1:80",
		"[1.2.3.4]:80",
		"1.2.3.4:80x",
		"[]:80",
		":80",
		"[",
		"name:80",
		"1.2.3.4:999999",
	};

	for (size_t i = 0; i < N_OF(bad); i++) {
		struct error err = {0};
		struct ip_address a;
		uint16_t port;

		CHECK_EQ(ip_endpoint_parse(bad[i], &a, &port, &err), -EINVAL);
		CHECK_HAS(err.text, bad[i]);
	}
	return TEST_OK;
}
