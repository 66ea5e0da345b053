/* SPDX-License-Identifier: Apache-2.0 */
#include "ip_address.h"

#include "error.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { V4_OFFSET = 12, ADDRESS_BITS = 128, LENGTH_DIGITS_MAX = 3, PORT_DIGITS_MAX = 5 };

static const uint8_t v4_mapped[V4_OFFSET] = {[10] = 0xff, [11] = 0xff};

bool ip_address_equal(const struct ip_address *a, const struct ip_address *b)
{
	return memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}

bool ip_address_is_v4(const struct ip_address *a)
{
	return memcmp(a->bytes, v4_mapped, sizeof(v4_mapped)) == 0;
}

bool ip_address_is_loopback(const struct ip_address *a)
{
	static const struct ip_address loopback6 = {.bytes = {[15] = 1}};

	return ip_address_is_v4(a) ? a->bytes[V4_OFFSET] == 127 : ip_address_equal(a, &loopback6);
}

bool ip_address_is_link_local(const struct ip_address *a)
{
	if (ip_address_is_v4(a))
		return a->bytes[V4_OFFSET] == 169 && a->bytes[V4_OFFSET + 1] == 254;
	return a->bytes[0] == 0xfe && (a->bytes[1] & 0xc0) == 0x80;
}

bool ip_address_is_unspecified(const struct ip_address *a)
{
	static const struct ip_address unspecified6;

	return ip_address_is_v4(a) ? ip_address_v4_be(a) == 0 : ip_address_equal(a, &unspecified6);
}

void ip_address_from_v4(uint32_t v4_be, struct ip_address *ret)
{
	memcpy(ret->bytes, v4_mapped, sizeof(v4_mapped));
	memcpy(ret->bytes + V4_OFFSET, &v4_be, sizeof(v4_be));
}

void ip_address_from_v6(const void *v6, struct ip_address *ret)
{
	memcpy(ret->bytes, v6, sizeof(ret->bytes));
}

uint32_t ip_address_v4_be(const struct ip_address *a)
{
	uint32_t v4_be;

	memcpy(&v4_be, a->bytes + V4_OFFSET, sizeof(v4_be));
	return v4_be;
}

/* True when text is an address; *ret_bits is the width of its notation, 32 or 128. */
static bool parse_address(const char *text, struct ip_address *ret, unsigned *ret_bits)
{
	uint8_t bytes[16];
	uint32_t v4_be;

	if (inet_pton(AF_INET, text, &v4_be) == 1) {
		ip_address_from_v4(v4_be, ret);
		*ret_bits = 32;
		return true;
	}
	if (inet_pton(AF_INET6, text, bytes) == 1) {
		ip_address_from_v6(bytes, ret);
		*ret_bits = ADDRESS_BITS;
		return true;
	}
	return false;
}

/* Digits only, no leading zero, at most max. */
static bool parse_decimal(const char *text, size_t digits_max, unsigned max, unsigned *ret)
{
	size_t n = strlen(text);
	unsigned value = 0;

	if (n == 0 || n > digits_max || (text[0] == '0' && n > 1))
		return false;
	for (size_t i = 0; i < n; i++) {
		if (text[i] < '0' || text[i] > '9')
			return false;
		value = value * 10 + (unsigned)(text[i] - '0');
	}
	if (value > max)
		return false;
	*ret = value;
	return true;
}

/* The n bytes at text as a string; false when they cannot be an address. */
static bool copy_address_text(const char *text, size_t n, char buf[static IP_ADDRESS_TEXT_MAX])
{
	if (n >= IP_ADDRESS_TEXT_MAX)
		return false;
	memcpy(buf, text, n);
	buf[n] = '\0';
	return true;
}

int ip_address_parse(const char *text, struct ip_address *ret, struct error *err)
{
	struct ip_address address;
	unsigned bits;

	if (!parse_address(text, &address, &bits))
		return error_set(err, EINVAL, "\"%s\" is not an IP address", text);
	*ret = address;
	return 0;
}

static void clear_host_bits(struct ip_address *a, unsigned length)
{
	for (unsigned i = 0; i < sizeof(a->bytes); i++) {
		unsigned kept = length > i * 8 ? length - i * 8 : 0;

		if (kept < 8)
			a->bytes[i] &= (uint8_t)(0xff00 >> kept);
	}
}

int ip_prefix_parse(const char *text, struct ip_prefix *ret, struct error *err)
{
	const char *slash = strchrnul(text, '/');
	char address_text[IP_ADDRESS_TEXT_MAX];
	struct ip_prefix prefix;
	unsigned bits, length;

	if (!copy_address_text(text, (size_t)(slash - text), address_text) ||
	    !parse_address(address_text, &prefix.address, &bits))
		return error_set(err, EINVAL, "\"%s\" is not an IP address or prefix", text);
	length = bits;
	if (*slash && !parse_decimal(slash + 1, LENGTH_DIGITS_MAX, bits, &length))
		return error_set(err, EINVAL, "\"%s\": prefix length is not a number from 0 to %u",
				 text, bits);
	prefix.length = (uint8_t)(ADDRESS_BITS - bits + length);
	clear_host_bits(&prefix.address, prefix.length);
	*ret = prefix;
	return 0;
}

static bool prefix_is_v4(const struct ip_prefix *p)
{
	return p->length >= IP_V4_PREFIX_BITS && ip_address_is_v4(&p->address);
}

bool ip_prefix_contains(const struct ip_prefix *p, const struct ip_address *a)
{
	struct ip_address network = *a;

	if (prefix_is_v4(p) != ip_address_is_v4(a))
		return false;
	clear_host_bits(&network, p->length);
	return ip_address_equal(&network, &p->address);
}

bool ip_prefix_covers(const struct ip_prefix *outer, const struct ip_prefix *inner)
{
	struct ip_address network = inner->address;

	if (outer->length > inner->length || prefix_is_v4(outer) != prefix_is_v4(inner))
		return false;
	clear_host_bits(&network, outer->length);
	return ip_address_equal(&network, &outer->address);
}

/* The address part of an endpoint, its port behind *ret_port_text. */
static bool parse_endpoint_address(const char *text, struct ip_address *ret,
				   const char **ret_port_text)
{
	bool bracketed = text[0] == '[';
	const char *start = text + bracketed;
	const char *end = strchr(start, bracketed ? ']' : ':');
	char address_text[IP_ADDRESS_TEXT_MAX];
	unsigned bits;

	if (!end || (bracketed && end[1] != ':') ||
	    !copy_address_text(start, (size_t)(end - start), address_text) ||
	    !parse_address(address_text, ret, &bits))
		return false;
	*ret_port_text = end + bracketed + 1;
	/* Brackets belong to the notation with colons, and only to it. */
	return bracketed == (bits == ADDRESS_BITS);
}

int ip_endpoint_parse(const char *text, struct ip_address *ret_addr, uint16_t *ret_port,
		      struct error *err)
{
	struct ip_address address;
	const char *port_text;
	unsigned port;

	if (!parse_endpoint_address(text, &address, &port_text))
		return error_set(err, EINVAL, "\"%s\" is not ADDRESS:PORT or [ADDRESS]:PORT", text);
	if (!parse_decimal(port_text, PORT_DIGITS_MAX, UINT16_MAX, &port))
		return error_set(err, EINVAL, "\"%s\": port is not a number from 0 to 65535", text);
	*ret_addr = address;
	*ret_port = (uint16_t)port;
	return 0;
}

const char *ip_address_format(const struct ip_address *a, char buf[static IP_ADDRESS_TEXT_MAX])
{
	bool v4 = ip_address_is_v4(a);

	/* Cannot fail: the family is known and the buffer is INET6_ADDRSTRLEN. */
	inet_ntop(v4 ? AF_INET : AF_INET6, v4 ? a->bytes + V4_OFFSET : a->bytes, buf,
		  IP_ADDRESS_TEXT_MAX);
	return buf;
}

const char *ip_prefix_format(const struct ip_prefix *p, char buf[static IP_PREFIX_TEXT_MAX])
{
	char address[IP_ADDRESS_TEXT_MAX];
	unsigned length = prefix_is_v4(p) ? p->length - IP_V4_PREFIX_BITS : p->length;

	snprintf(buf, IP_PREFIX_TEXT_MAX, "%s/%u", ip_address_format(&p->address, address), length);
	return buf;
}

const char *ip_endpoint_format(const struct ip_address *a, uint16_t port,
			       char buf[static IP_ENDPOINT_TEXT_MAX])
{
	char address[IP_ADDRESS_TEXT_MAX];

	snprintf(buf, IP_ENDPOINT_TEXT_MAX, ip_address_is_v4(a) ? "%s:%u" : "[%s]:%u",
		 ip_address_format(a, address), port);
	return buf;
}
