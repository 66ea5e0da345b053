/* SPDX-License-Identifier: Apache-2.0 */
#include "netfilter_routes.h"

#include "error.h"
#include "netfilter_rules.h"
#include "netlink_talk.h"
#include "netns.h"
#include "scoped.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fib_rules.h>
#include <linux/rtnetlink.h>
#include <stdint.h>
#include <string.h>
#include <sys/socket.h>

/* REMOVE_MAX: more than one of each is there when others added theirs as well. */
enum { LO_IFINDEX = 1, MAIN_RULE_PRIORITY = 32766, ALL_BITS = 0xffffffff, REMOVE_MAX = 16 };

/* What is looked for, added and removed; preference 0: the kernel chooses the place. */
struct kind {
	uint32_t mark, mask, table, preference;
};

static const struct kind kinds[] = {
	[NETFILTER_ROUTES_TPROXY] = {NF_MARK_TPROXY, ALL_BITS, NF_TABLE_TPROXY, 0},
	[NETFILTER_ROUTES_AMBIENT] = {AMBIENT_MARK_REPLY, AMBIENT_MARK_MASK, AMBIENT_ROUTE_TABLE,
				      AMBIENT_RULE_PREFERENCE},
};

struct task {
	const struct kind *kind;
	bool present, ipv6;
};

/* What one family has of it. */
struct found {
	const struct kind *kind;
	unsigned char family;
	bool rule, route;
	uint32_t rule_priority, route_metric;
};

static const char *family_name(unsigned char family)
{
	return family == AF_INET6 ? "IPv6" : "IPv4";
}

/* ---- rules ---------------------------------------------------------------------------------- */

/* The mark and nothing but the mark selects the table, before table main answers everything. */
static int see_rule(const struct nlmsghdr *nlh, void *arg)
{
	const struct fib_rule_hdr *rule = mnl_nlmsg_get_payload(nlh);
	struct found *found = arg;
	const struct nlattr *attr;
	uint32_t table, mark = 0, mask = ALL_BITS, priority = 0, suppressed = ALL_BITS;

	if (nlh->nlmsg_type != RTM_NEWRULE || mnl_nlmsg_get_payload_len(nlh) < sizeof(*rule))
		return MNL_CB_OK;
	table = rule->table;
	mnl_attr_for_each(attr, nlh, sizeof(*rule))
	{
		uint16_t type = mnl_attr_get_type(attr);
		size_t size = mnl_attr_get_payload_len(attr);

		if (type == FRA_TABLE && size == 4)
			table = mnl_attr_get_u32(attr);
		else if (type == FRA_FWMARK && size == 4)
			mark = mnl_attr_get_u32(attr);
		else if (type == FRA_FWMASK && size == 4)
			mask = mnl_attr_get_u32(attr);
		else if (type == FRA_PRIORITY && size == 4)
			priority = mnl_attr_get_u32(attr);
		else if (type == FRA_SUPPRESS_PREFIXLEN && size == 4)
			suppressed = mnl_attr_get_u32(attr); /* a default route has length 0 */
		else if (type != FRA_PROTOCOL && type != FRA_PAD)
			return MNL_CB_OK; /* selects by something else as well */
	}
	if (rule->family != found->family || rule->action != FR_ACT_TO_TBL ||
	    (rule->flags & FIB_RULE_INVERT) || rule->src_len || rule->dst_len || rule->tos ||
	    table != found->kind->table || mark != found->kind->mark || mask != found->kind->mask ||
	    suppressed != ALL_BITS || priority > MAIN_RULE_PRIORITY)
		return MNL_CB_OK;
	found->rule = true;
	found->rule_priority = priority;
	return MNL_CB_OK;
}

static void forget_rule(void *arg)
{
	struct found *found = arg;

	found->rule = false;
}

static int find_rule(struct found *found, struct error *err)
{
	struct netlink_request request;
	struct fib_rule_hdr *rule;
	const struct nlmsghdr *nlh =
		netlink_request_start(&request, RTM_GETRULE, NLM_F_DUMP, sizeof(*rule), &rule);
	int r;

	rule->family = found->family;
	r = netlink_dump(NETLINK_ROUTE, nlh, see_rule, forget_rule, found);
	return r ? error_set(err, -r, "list the %s routing rules", family_name(found->family)) : 0;
}

/*
 * As `ip rule add fwmark 1337 lookup 133`, where the kernel chooses the place, before all but
 * local, or `ip rule add fwmark 0x111/0xfff pref 32764 lookup 100`.
 */
static int change_rule(const struct found *found, bool add, struct error *err)
{
	const struct kind *kind = found->kind;
	struct netlink_request request;
	struct fib_rule_hdr *rule;
	struct nlmsghdr *nlh = netlink_request_start(
		&request, add ? RTM_NEWRULE : RTM_DELRULE,
		NLM_F_ACK | (add ? NLM_F_CREATE | NLM_F_EXCL : 0), sizeof(*rule), &rule);
	int r;

	rule->family = found->family;
	rule->action = FR_ACT_TO_TBL;
	rule->table = (uint8_t)kind->table;
	mnl_attr_put_u32(nlh, FRA_TABLE, kind->table);
	mnl_attr_put_u32(nlh, FRA_FWMARK, kind->mark);
	if (kind->mask != ALL_BITS)
		mnl_attr_put_u32(nlh, FRA_FWMASK, kind->mask);
	if (!add)
		mnl_attr_put_u32(nlh, FRA_PRIORITY, found->rule_priority);
	else if (kind->preference)
		mnl_attr_put_u32(nlh, FRA_PRIORITY, kind->preference);
	r = netlink_talk(NETLINK_ROUTE, nlh, NULL, NULL);
	if (!r || r == (add ? -EEXIST : -ENOENT))
		return 0;
	return error_set(err, -r, "%s the %s routing rule of mark %u", add ? "add" : "remove",
			 family_name(found->family), kind->mark);
}

/* ---- routes --------------------------------------------------------------------------------- */

static int see_route(const struct nlmsghdr *nlh, void *arg)
{
	const struct rtmsg *route = mnl_nlmsg_get_payload(nlh);
	struct found *found = arg;
	const struct nlattr *attr;
	uint32_t table, device = 0, metric = 0;

	if (nlh->nlmsg_type != RTM_NEWROUTE || mnl_nlmsg_get_payload_len(nlh) < sizeof(*route))
		return MNL_CB_OK;
	table = route->rtm_table;
	mnl_attr_for_each(attr, nlh, sizeof(*route))
	{
		if (mnl_attr_get_payload_len(attr) != 4)
			continue;
		if (mnl_attr_get_type(attr) == RTA_TABLE)
			table = mnl_attr_get_u32(attr);
		else if (mnl_attr_get_type(attr) == RTA_OIF)
			device = mnl_attr_get_u32(attr);
		else if (mnl_attr_get_type(attr) == RTA_PRIORITY)
			metric = mnl_attr_get_u32(attr);
	}
	if (route->rtm_family != found->family || table != found->kind->table ||
	    route->rtm_dst_len || route->rtm_src_len || route->rtm_tos ||
	    route->rtm_type != RTN_LOCAL || device != LO_IFINDEX)
		return MNL_CB_OK;
	found->route = true;
	found->route_metric = metric;
	return MNL_CB_OK;
}

static void forget_route(void *arg)
{
	struct found *found = arg;

	found->route = false;
}

static int find_route(struct found *found, struct error *err)
{
	struct netlink_request request;
	struct rtmsg *route;
	const struct nlmsghdr *nlh =
		netlink_request_start(&request, RTM_GETROUTE, NLM_F_DUMP, sizeof(*route), &route);
	int r;

	route->rtm_family = found->family;
	r = netlink_dump(NETLINK_ROUTE, nlh, see_route, forget_route, found);
	return r ? error_set(err, -r, "list the %s routes", family_name(found->family)) : 0;
}

/* As `ip route add local default dev lo table 133`, or 100. */
static int change_route(const struct found *found, bool add, struct error *err)
{
	struct netlink_request request;
	struct rtmsg *route;
	struct nlmsghdr *nlh = netlink_request_start(
		&request, add ? RTM_NEWROUTE : RTM_DELROUTE,
		NLM_F_ACK | (add ? NLM_F_CREATE | NLM_F_EXCL : 0), sizeof(*route), &route);
	int r;

	route->rtm_family = found->family;
	route->rtm_table = (uint8_t)found->kind->table;
	route->rtm_type = RTN_LOCAL;
	route->rtm_scope = add ? RT_SCOPE_HOST : RT_SCOPE_NOWHERE;
	route->rtm_protocol = add ? RTPROT_BOOT : RTPROT_UNSPEC;
	mnl_attr_put_u32(nlh, RTA_OIF, LO_IFINDEX);
	if (!add && found->route_metric)
		mnl_attr_put_u32(nlh, RTA_PRIORITY, found->route_metric);
	r = netlink_talk(NETLINK_ROUTE, nlh, NULL, NULL);
	if (!r || (!add && r == -ESRCH))
		return 0;
	if (r == -EEXIST)
		return error_set(err, EEXIST,
				 "table %u has an %s default route that is not \"local dev lo\"",
				 found->kind->table, family_name(found->family));
	return error_set(err, -r, "%s the %s route of table %u", add ? "add" : "remove",
			 family_name(found->family), found->kind->table);
}

/* ---- both ----------------------------------------------------------------------------------- */

/* Without IPv6 on lo the kernel takes no route over it (-EACCES), and no packet comes either. */
static bool family_is_off(unsigned char family)
{
	scoped_fd int sock = -1, fd = -1;
	char value = '0';

	if (family != AF_INET6)
		return false;
	sock = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (sock < 0)
		return errno == EAFNOSUPPORT;
	fd = open("/proc/sys/net/ipv6/conf/lo/disable_ipv6", O_RDONLY | O_CLOEXEC);
	return fd >= 0 && read(fd, &value, 1) == 1 && value == '1';
}

/* The route first: a rule that leads to an empty table would let packets go on to table main. */
static int add_missing(const struct kind *kind, unsigned char family, struct error *err)
{
	struct found found = {.kind = kind, .family = family};
	int r = find_route(&found, err);

	if (!r && !found.route)
		r = change_route(&found, true, err);
	if (!r)
		r = find_rule(&found, err);
	if (!r && !found.rule)
		r = change_rule(&found, true, err);
	return r;
}

typedef int (*find_fn)(struct found *found, struct error *err);
typedef int (*change_fn)(const struct found *found, bool add, struct error *err);

static int remove_every(const struct found *of, find_fn find, change_fn change, struct error *err)
{
	struct found found = *of;
	int r = find(&found, err);

	for (int i = 0; !r && (found.rule || found.route) && i < REMOVE_MAX; i++) {
		r = change(&found, false, err);
		found = *of;
		if (!r)
			r = find(&found, err);
	}
	return r;
}

static int remove_all(const struct kind *kind, unsigned char family, struct error *err)
{
	const struct found of = {.kind = kind, .family = family};
	int r = remove_every(&of, find_rule, change_rule, err);

	return r ? r : remove_every(&of, find_route, change_route, err);
}

static int set_inside(void *arg, struct error *err)
{
	const struct task *task = arg;
	const struct kind *kind = task->kind;
	int r = task->present ? add_missing(kind, AF_INET, err) : remove_all(kind, AF_INET, err);

	if (r || !task->ipv6)
		return r;
	if (task->present)
		return family_is_off(AF_INET6) ? 0 : add_missing(kind, AF_INET6, err);
	/* A rule may be there all the same, from before IPv6 was switched off in the namespace. */
	r = remove_all(kind, AF_INET6, err);
	return r == -EAFNOSUPPORT || r == -EOPNOTSUPP ? 0 : r;
}

static int verify_family(const struct kind *kind, unsigned char family, struct error *err)
{
	struct found found = {.kind = kind, .family = family};
	int r;

	if (family_is_off(family))
		return 0;
	r = find_rule(&found, err);
	if (!r)
		r = find_route(&found, err);
	if (r || (found.rule && found.route))
		return r;
	if (!found.rule)
		return error_set(err, ENODEV, "the %s routing rule of mark %u is missing",
				 family_name(family), kind->mark);
	return error_set(err, ENODEV, "the %s route of table %u is missing", family_name(family),
			 kind->table);
}

static int verify_inside(void *arg, struct error *err)
{
	const struct task *task = arg;
	int r = verify_family(task->kind, AF_INET, err);

	return r || !task->ipv6 ? r : verify_family(task->kind, AF_INET6, err);
}

int netfilter_routes_set(int netns_fd, enum netfilter_routes which, bool present, bool ipv6,
			 struct error *err)
{
	struct task task = {.kind = &kinds[which], .present = present, .ipv6 = ipv6};

	if (which == NETFILTER_ROUTES_NONE)
		return 0;
	return netns_run(netns_fd, set_inside, &task, err);
}

int netfilter_routes_verify(int netns_fd, enum netfilter_routes which, bool ipv6, struct error *err)
{
	struct task task = {.kind = &kinds[which], .ipv6 = ipv6};

	if (which == NETFILTER_ROUTES_NONE)
		return 0;
	return netns_run(netns_fd, verify_inside, &task, err);
}
