/* SPDX-License-Identifier: Apache-2.0 */
#include "conntrack_stale.h"

#include "conntrack.h"
#include "error.h"
#include "ip_address.h"
#include "netlink.h"
#include "netlink_talk.h"
#include "netns.h"
#include "scoped.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/inet_diag.h>
#include <linux/netfilter/nf_conntrack_common.h>
#include <linux/netfilter/nf_conntrack_tcp.h>
#include <linux/netfilter/nfnetlink.h>
#include <linux/netfilter/nfnetlink_conntrack.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define LOOSE "/proc/sys/net/netfilter/nf_conntrack_tcp_loose"
#define COUNT "/proc/sys/net/netfilter/nf_conntrack_count"

enum {
	ENTRIES_MAX = 1 << 16, /* of those that are looked into; a pod has some hundreds */
	SOCKETS_MAX = 1 << 20,
	TCP_TIME_WAIT_STATE = 6,
	TCP_CLOSE_STATE = 7,
	TCP_LISTEN_STATE = 10,
};

/* ---- the sysctl ------------------------------------------------------------------------------ */

static int write_loose(void *arg, struct error *err)
{
	const char *value = *(const bool *)arg ? "1" : "0";
	scoped_fd int fd = open(LOOSE, O_WRONLY | O_CLOEXEC);

	if (fd < 0 || write(fd, value, 1) != 1)
		return error_set(err, errno, "write %s of the pod's namespace", LOOSE);
	return 0;
}

int conntrack_set_loose(int netns_fd, bool loose, struct error *err)
{
	return netns_run(netns_fd, write_loose, &loose, err);
}

/* ---- lists ----------------------------------------------------------------------------------- */

struct ends {
	struct ip_address from, to;
	uint16_t from_port, to_port; /* as on the wire */
};

/* The entry as the kernel has said it, to say it back: its tuple, zone and number. */
struct entry {
	struct ends ends;
	uint32_t id; /* as on the wire */
	uint16_t zone;
	uint8_t family;
};

struct search {
	struct entry *entries;
	size_t n_entries, entries_capacity;
	struct ends *sockets; /* sorted */
	size_t n_sockets, sockets_capacity;
	bool no_memory;
	size_t n_forgotten;
};

static bool grow(void *list, size_t size, size_t *capacity, size_t max)
{
	size_t wanted = *capacity ? *capacity * 2 : 64;
	void *grown;

	if (wanted > max)
		return false;
	grown = reallocarray(*(void **)list, wanted, size);
	if (!grown)
		return false;
	*(void **)list = grown;
	*capacity = wanted;
	return true;
}

static int compare_ends(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct ends));
}

static struct ip_address address_of(uint8_t family, const void *raw)
{
	struct ip_address a;
	uint32_t v4;

	if (family == AF_INET) {
		memcpy(&v4, raw, sizeof(v4));
		ip_address_from_v4(v4, &a);
	} else {
		ip_address_from_v6(raw, &a);
	}
	return a;
}

/* ---- conntrack's entries --------------------------------------------------------------------- */

/* The attribute of this type, if it has this much in it. */
static const struct nlattr *find_attr(const struct nlattr *nest, uint16_t type, size_t size)
{
	const struct nlattr *attr;

	mnl_attr_for_each_nested(attr, nest)
	{
		if (mnl_attr_get_type(attr) == type && mnl_attr_get_payload_len(attr) >= size)
			return attr;
	}
	return NULL;
}

static bool parse_ends(const struct nlattr *tuple, uint8_t family, struct ends *ret)
{
	bool v6 = family == AF_INET6;
	size_t size = v6 ? sizeof(struct in6_addr) : sizeof(struct in_addr);
	const struct nlattr *ip = find_attr(tuple, CTA_TUPLE_IP, 0);
	const struct nlattr *proto = find_attr(tuple, CTA_TUPLE_PROTO, 0);
	const struct nlattr *src, *dst, *number, *sport, *dport;

	if (!ip || !proto)
		return false;
	src = find_attr(ip, v6 ? CTA_IP_V6_SRC : CTA_IP_V4_SRC, size);
	dst = find_attr(ip, v6 ? CTA_IP_V6_DST : CTA_IP_V4_DST, size);
	number = find_attr(proto, CTA_PROTO_NUM, sizeof(uint8_t));
	sport = find_attr(proto, CTA_PROTO_SRC_PORT, sizeof(uint16_t));
	dport = find_attr(proto, CTA_PROTO_DST_PORT, sizeof(uint16_t));
	if (!src || !dst || !number || !sport || !dport || mnl_attr_get_u8(number) != IPPROTO_TCP)
		return false;
	*ret = (struct ends){
		.from = address_of(family, mnl_attr_get_payload(src)),
		.to = address_of(family, mnl_attr_get_payload(dst)),
		.from_port = mnl_attr_get_u16(sport),
		.to_port = mnl_attr_get_u16(dport),
	};
	return true;
}

/* Of a connection that conntrack has seen end by itself a first SYN makes a new entry. */
static bool has_ended(const struct nlattr *protoinfo)
{
	const struct nlattr *tcp = protoinfo ? find_attr(protoinfo, CTA_PROTOINFO_TCP, 0) : NULL;
	const struct nlattr *state =
		tcp ? find_attr(tcp, CTA_PROTOINFO_TCP_STATE, sizeof(uint8_t)) : NULL;

	return state && mnl_attr_get_u8(state) == TCP_CONNTRACK_TIME_WAIT;
}

static void add_entry(struct search *s, const struct entry *entry)
{
	if (s->n_entries == s->entries_capacity &&
	    !grow(&s->entries, sizeof(*entry), &s->entries_capacity, ENTRIES_MAX))
		s->no_memory = true;
	else
		s->entries[s->n_entries++] = *entry;
}

static int see_entry(const struct nlmsghdr *nlh, void *arg)
{
	const struct nlattr *of[CTA_MAX + 1] = {0}, *attr;
	const struct nfgenmsg *nfgen = mnl_nlmsg_get_payload(nlh);
	struct entry entry = {0};

	if (nlh->nlmsg_type != ((NFNL_SUBSYS_CTNETLINK << 8) | IPCTNL_MSG_CT_NEW) ||
	    mnl_nlmsg_get_payload_len(nlh) < sizeof(*nfgen))
		return MNL_CB_OK;
	mnl_attr_for_each(attr, nlh, sizeof(*nfgen))
	{
		if (mnl_attr_get_type(attr) <= CTA_MAX)
			of[mnl_attr_get_type(attr)] = attr;
	}
	if (!of[CTA_TUPLE_ORIG] || !of[CTA_STATUS] || !of[CTA_ID] ||
	    mnl_attr_get_payload_len(of[CTA_STATUS]) != sizeof(uint32_t) ||
	    mnl_attr_get_payload_len(of[CTA_ID]) != sizeof(uint32_t))
		return MNL_CB_OK;
	if ((ntohl(mnl_attr_get_u32(of[CTA_STATUS])) & (IPS_SRC_NAT | IPS_DST_NAT)) ||
	    has_ended(of[CTA_PROTOINFO]) ||
	    !parse_ends(of[CTA_TUPLE_ORIG], nfgen->nfgen_family, &entry.ends))
		return MNL_CB_OK;
	entry.family = nfgen->nfgen_family;
	entry.id = mnl_attr_get_u32(of[CTA_ID]);
	if (of[CTA_ZONE] && mnl_attr_get_payload_len(of[CTA_ZONE]) == sizeof(uint16_t))
		entry.zone = mnl_attr_get_u16(of[CTA_ZONE]);
	add_entry(arg, &entry);
	return MNL_CB_OK;
}

static void forget_entries(void *arg)
{
	((struct search *)arg)->n_entries = 0;
}

/*
 * Of this namespace. The kernel would list its entries by a walk over those of the whole node,
 * which takes long where these are many; and a new pod has none.
 */
static bool has_no_entries(void)
{
	scoped_fd int fd = open(COUNT, O_RDONLY | O_CLOEXEC);
	char text[4];

	return fd >= 0 && read(fd, text, sizeof(text)) == 2 && text[0] == '0';
}

/* ---- sockets --------------------------------------------------------------------------------- */

static int see_socket(const struct nlmsghdr *nlh, void *arg)
{
	const struct inet_diag_msg *msg = mnl_nlmsg_get_payload(nlh);
	struct search *s = arg;

	if (nlh->nlmsg_type != SOCK_DIAG_BY_FAMILY || mnl_nlmsg_get_payload_len(nlh) < sizeof(*msg))
		return MNL_CB_OK;
	if (s->n_sockets == s->sockets_capacity &&
	    !grow(&s->sockets, sizeof(*s->sockets), &s->sockets_capacity, SOCKETS_MAX)) {
		s->no_memory = true;
		return MNL_CB_OK;
	}
	s->sockets[s->n_sockets++] = (struct ends){
		.from = address_of(msg->idiag_family, msg->id.idiag_src),
		.to = address_of(msg->idiag_family, msg->id.idiag_dst),
		.from_port = msg->id.idiag_sport,
		.to_port = msg->id.idiag_dport,
	};
	return MNL_CB_OK;
}

/* Both ends of a connection within the pod are in the list; in TIME_WAIT it has ended. */
static int list_sockets(struct search *s, struct error *err)
{
	static const uint8_t families[] = {AF_INET, AF_INET6};

	for (size_t i = 0; i < sizeof(families); i++) {
		struct netlink_request request;
		struct inet_diag_req_v2 *req;
		struct nlmsghdr *nlh = netlink_request_start(&request, SOCK_DIAG_BY_FAMILY,
							     NLM_F_DUMP, sizeof(*req), &req);
		int r;

		req->sdiag_family = families[i];
		req->sdiag_protocol = IPPROTO_TCP;
		req->idiag_states = ~(1u << TCP_TIME_WAIT_STATE | 1u << TCP_CLOSE_STATE |
				      1u << TCP_LISTEN_STATE);
		/* Seen twice, when the kernel starts again, is as good as seen once. */
		r = netlink_dump(NETLINK_SOCK_DIAG, nlh, see_socket, NULL, s);
		if (r && r != -ENOENT)
			return error_set(err, -r, "list the pod's connections");
	}
	if (s->n_sockets)
		qsort(s->sockets, s->n_sockets, sizeof(*s->sockets), compare_ends);
	return 0;
}

/* ---- together -------------------------------------------------------------------------------- */

static bool has_socket(const struct search *s, const struct ends *ends)
{
	struct ends turned = {ends->to, ends->from, ends->to_port, ends->from_port};

	if (!s->n_sockets)
		return false;
	return bsearch(ends, s->sockets, s->n_sockets, sizeof(*ends), compare_ends) ||
	       bsearch(&turned, s->sockets, s->n_sockets, sizeof(*ends), compare_ends);
}

static bool is_own(const struct ip_address *a, const struct ip_address *own, size_t n)
{
	if (ip_address_is_loopback(a))
		return true;
	for (size_t i = 0; i < n; i++)
		if (ip_address_equal(a, &own[i]))
			return true;
	return false;
}

static void put_ends(struct nlmsghdr *nlh, const struct entry *entry)
{
	bool v6 = entry->family == AF_INET6;
	size_t size = v6 ? sizeof(struct in6_addr) : sizeof(struct in_addr);
	const uint8_t *from = entry->ends.from.bytes, *to = entry->ends.to.bytes;
	size_t skip = sizeof(entry->ends.from.bytes) - size;
	struct nlattr *tuple = mnl_attr_nest_start(nlh, CTA_TUPLE_ORIG);
	struct nlattr *nest = mnl_attr_nest_start(nlh, CTA_TUPLE_IP);

	mnl_attr_put(nlh, v6 ? CTA_IP_V6_SRC : CTA_IP_V4_SRC, size, from + skip);
	mnl_attr_put(nlh, v6 ? CTA_IP_V6_DST : CTA_IP_V4_DST, size, to + skip);
	mnl_attr_nest_end(nlh, nest);
	nest = mnl_attr_nest_start(nlh, CTA_TUPLE_PROTO);
	mnl_attr_put_u8(nlh, CTA_PROTO_NUM, IPPROTO_TCP);
	mnl_attr_put_u16(nlh, CTA_PROTO_SRC_PORT, entry->ends.from_port);
	mnl_attr_put_u16(nlh, CTA_PROTO_DST_PORT, entry->ends.to_port);
	mnl_attr_nest_end(nlh, nest);
	mnl_attr_nest_end(nlh, tuple);
}

/* By its number as well: another one of the same connection may have come meanwhile. */
static int forget_entry(const struct entry *entry)
{
	struct netlink_request request;
	struct nfgenmsg *nfgen;
	struct nlmsghdr *nlh =
		netlink_request_start(&request, (NFNL_SUBSYS_CTNETLINK << 8) | IPCTNL_MSG_CT_DELETE,
				      NLM_F_ACK, sizeof(*nfgen), &nfgen);

	nfgen->nfgen_family = entry->family;
	nfgen->version = NFNETLINK_V0;
	put_ends(nlh, entry);
	if (entry->zone)
		mnl_attr_put_u16(nlh, CTA_ZONE, entry->zone);
	mnl_attr_put_u32(nlh, CTA_ID, entry->id);
	return netlink_talk(NETLINK_NETFILTER, nlh, NULL, NULL);
}

static int forget_inside(void *arg, struct error *err)
{
	struct search *s = arg;

	for (size_t i = 0; i < s->n_entries; i++) {
		int r = has_socket(s, &s->entries[i].ends) ? -ENOENT : forget_entry(&s->entries[i]);

		if (!r)
			s->n_forgotten++;
		else if (r != -ENOENT)
			return error_set(err, -r, "forget a tracked connection");
	}
	return 0;
}

/*
 * In this order: an entry that is in the list and whose socket is not has lost it; the other way
 * round a connection could have come in between.
 */
static int list_inside(void *arg, struct error *err)
{
	struct search *s = arg;
	int r = has_no_entries() ? 0 : conntrack_list(see_entry, forget_entries, s, err);

	if (!r && s->n_entries)
		r = list_sockets(s, err);
	/* A socket that there was no room for would seem to be none. */
	return !r && s->no_memory ? error_set(err, ENOMEM, "list the pod's connections") : r;
}

/* What passes through the pod, as a virtual machine's connections do, has no socket in it. */
static int keep_passing(struct search *s, int netns_fd, struct error *err)
{
	scoped_free struct ip_address *own = NULL;
	size_t n = 0, kept = 0;
	int r = s->n_entries ? netlink_list_addresses(netns_fd, &own, &n, err) : 0;

	for (size_t i = 0; !r && i < s->n_entries; i++)
		if (is_own(&s->entries[i].ends.from, own, n) ||
		    is_own(&s->entries[i].ends.to, own, n))
			s->entries[kept++] = s->entries[i];
	s->n_entries = kept;
	return r;
}

int conntrack_forget_ended(int netns_fd, size_t *ret_n, struct error *err)
{
	struct search s = {0};
	int r = netns_run(netns_fd, list_inside, &s, err);

	if (!r)
		r = keep_passing(&s, netns_fd, err);
	if (!r && s.n_entries)
		r = netns_run(netns_fd, forget_inside, &s, err);
	free(s.entries);
	free(s.sockets);
	if (!r)
		*ret_n = s.n_forgotten;
	return r;
}
