/* SPDX-License-Identifier: Apache-2.0 */
#ifndef SOCKMESH_IP_ADDRESS_H
#define SOCKMESH_IP_ADDRESS_H

/*
 * Addresses and prefixes of both families in one shape: 16 bytes in network order, IPv4 as
 * ::ffff:a.b.c.d (RFC 4291 2.5.5.2). Pure: no I/O, no allocation, except the list parsers.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct error;

struct ip_address {
	uint8_t bytes[16];
};

struct ip_prefix {
	struct ip_address address; /* host bits are zero */
	uint8_t length;		   /* 0..128; an IPv4 /n is stored as 96 + n */
};

enum {
	IP_V4_PREFIX_BITS = 96,
	IP_ADDRESS_TEXT_MAX = 46,			/* INET6_ADDRSTRLEN */
	IP_PREFIX_TEXT_MAX = IP_ADDRESS_TEXT_MAX + 4,	/* "/128" */
	IP_ENDPOINT_TEXT_MAX = IP_ADDRESS_TEXT_MAX + 9, /* "[" "]:65535" */
};

bool ip_address_equal(const struct ip_address *a, const struct ip_address *b);
bool ip_address_is_v4(const struct ip_address *a);	    /* v4-mapped included */
bool ip_address_is_loopback(const struct ip_address *a);    /* 127.0.0.0/8 or ::1 */
bool ip_address_is_link_local(const struct ip_address *a);  /* 169.254/16 or fe80::/10 */
bool ip_address_is_unspecified(const struct ip_address *a); /* 0.0.0.0 or :: */

/* The numeric forms that inet_pton takes; "::ffff:1.2.3.4" is IPv4. -EINVAL names the text. */
int ip_address_parse(const char *text, struct ip_address *ret, struct error *err);
void ip_address_from_v4(uint32_t v4_be, struct ip_address *ret);
void ip_address_from_v6(const void *v6, struct ip_address *ret);
uint32_t ip_address_v4_be(const struct ip_address *a); /* only when ip_address_is_v4() */

/* "ADDR/LEN", or "ADDR" for a whole address. Host bits are cleared, as Go's ParseCIDR does. */
int ip_prefix_parse(const char *text, struct ip_prefix *ret, struct error *err);

/* Families never mix: ::/0 holds no IPv4 address, as no rule of ip6tables matches one. */
bool ip_prefix_contains(const struct ip_prefix *p, const struct ip_address *a);
bool ip_prefix_covers(const struct ip_prefix *outer, const struct ip_prefix *inner);

/* "1.2.3.4:80" or "[::1]:80"; port 0..65535, required. */
int ip_endpoint_parse(const char *text, struct ip_address *ret_addr, uint16_t *ret_port,
		      struct error *err);

/* IPv4 prints dotted, with its own prefix length. Each returns buf. */
const char *ip_address_format(const struct ip_address *a, char buf[static IP_ADDRESS_TEXT_MAX]);
const char *ip_prefix_format(const struct ip_prefix *p, char buf[static IP_PREFIX_TEXT_MAX]);
const char *ip_endpoint_format(const struct ip_address *a, uint16_t port,
			       char buf[static IP_ENDPOINT_TEXT_MAX]);

#endif
