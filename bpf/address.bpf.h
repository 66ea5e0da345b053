/* SPDX-License-Identifier: (GPL-2.0 OR BSD-2-Clause) */
#ifndef SOCKMESH_ADDRESS_BPF_H
#define SOCKMESH_ADDRESS_BPF_H

/*
 * Addresses as the data path sees them: both families in 16 bytes, network order. Plain C without
 * helpers, so that host unit tests compile the same text.
 */
#include "sockmesh_abi.h"

#ifndef __always_inline
#define __always_inline inline __attribute__((always_inline))
#endif

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define BE32(x) __builtin_bswap32(x)
#define BE16(x) __builtin_bswap16(x)
#else
#define BE32(x) (x)
#define BE16(x) (x)
#endif

static __always_inline struct addr16 addr16_from_v4(__u32 v4_be)
{
	struct addr16 a = {{0, 0, BE32(0xffff), v4_be}};

	return a;
}

static __always_inline int addr16_is_v4(const struct addr16 *a)
{
	return a->w[0] == 0 && a->w[1] == 0 && a->w[2] == BE32(0xffff);
}

static __always_inline int addr16_equal(const struct addr16 *a, const struct addr16 *b)
{
	return a->w[0] == b->w[0] && a->w[1] == b->w[1] && a->w[2] == b->w[2] && a->w[3] == b->w[3];
}

static __always_inline int addr16_is_zero(const struct addr16 *a)
{
	return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

/* 0.0.0.0 or :: */
static __always_inline int addr16_is_unspecified(const struct addr16 *a)
{
	return addr16_is_zero(a) || (addr16_is_v4(a) && !a->w[3]);
}

/* ::N for a small N */
static __always_inline int addr16_is_low_v6(const struct addr16 *a, __u32 n)
{
	return !(a->w[0] | a->w[1] | a->w[2]) && a->w[3] == BE32(n);
}

/* 127.0.0.0/8 or ::1 */
static __always_inline int addr16_is_loopback(const struct addr16 *a)
{
	if (addr16_is_v4(a))
		return (a->w[3] & BE32(0xff000000)) == BE32(0x7f000000);
	return addr16_is_low_v6(a, 1);
}

/* 127.0.0.6 or ::6: the source that the proxy's inbound passthrough binds */
static __always_inline int addr16_is_passthrough(const struct addr16 *a)
{
	if (addr16_is_v4(a))
		return a->w[3] == BE32(0x7f000006);
	return addr16_is_low_v6(a, 6);
}

/*
 * connect() to the unspecified address means the bound source in IPv4 (ip_route_output_key), and
 * loopback when there is none; in IPv6 always loopback, of the family that the socket is bound in
 * (tcp_v6_connect).
 */
static __always_inline void addr16_resolve_unspecified(struct addr16 *dst,
						       const struct addr16 *source)
{
	if (addr16_is_v4(dst)) {
		if (!dst->w[3])
			dst->w[3] = addr16_is_v4(source) && source->w[3] ? source->w[3]
									 : BE32(0x7f000001);
	} else if (addr16_is_zero(dst)) {
		if (addr16_is_v4(source))
			*dst = addr16_from_v4(BE32(0x7f000001));
		else
			dst->w[3] = BE32(1);
	}
}

/*
 * Which of 127.0.0.2-254 a captured connection goes to when the proxy listens on the wildcard:
 * all connections of a pod to one proxy port would otherwise share one range of source ports.
 * 127.0.0.1 is left to netfilter's REDIRECT: a pod that moves between engines has connections of
 * both kinds, and two with one port on the pod's side would be one to conntrack.
 */
static __always_inline __u32 spread_loopback_be(const struct endpoint *original)
{
	__u32 hash = original->addr.w[0] ^ original->addr.w[1] ^ original->addr.w[2] ^
		     original->addr.w[3] ^ ((__u32)original->port * 0x9e3779b1u);

	hash ^= hash >> 16;
	hash *= 0x85ebca6bu;
	hash ^= hash >> 13;
	return BE32(0x7f000002 + hash % 253);
}

#endif
