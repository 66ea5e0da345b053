/* SPDX-License-Identifier: Apache-2.0 */
#include "selftest_network.h"

#include "error.h"
#include "monotonic.h"
#include "netlink_talk.h"
#include "netns.h"
#include "scoped.h"

#include <errno.h>
#include <linux/if_addr.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sys/socket.h>

/* OPER_UP: IF_OPER_UP of linux/if.h, which cannot be included beside net/if.h. */
enum { LO_IFINDEX = 1, OPER_UP = 6, LINK_TIMEOUT_MS = 2000, LINK_POLL_US = 500 };

#define DEVICE "sockmesh0" /* in both namespaces */

static int make_pair(void *arg, struct error *err)
{
	const struct selftest_network *net = arg;
	struct netlink_request request;
	struct nlattr *info, *data, *peer;
	struct ifinfomsg *link;
	struct nlmsghdr *nlh = netlink_request_start(
		&request, RTM_NEWLINK, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sizeof(*link), &link);
	int r;

	mnl_attr_put_strz(nlh, IFLA_IFNAME, DEVICE);
	info = mnl_attr_nest_start(nlh, IFLA_LINKINFO);
	mnl_attr_put_strz(nlh, IFLA_INFO_KIND, "veth");
	data = mnl_attr_nest_start(nlh, IFLA_INFO_DATA);
	peer = mnl_attr_nest_start(nlh, VETH_INFO_PEER);
	mnl_nlmsg_put_extra_header(nlh, sizeof(*link));
	mnl_attr_put_strz(nlh, IFLA_IFNAME, DEVICE);
	mnl_attr_put_u32(nlh, IFLA_NET_NS_FD, (uint32_t)net->peer_fd);
	mnl_attr_nest_end(nlh, peer);
	mnl_attr_nest_end(nlh, data);
	mnl_attr_nest_end(nlh, info);
	r = netlink_talk(NETLINK_ROUTE, nlh, NULL, NULL);
	return r ? error_set(err, -r, "make a veth pair between two scratch namespaces") : 0;
}

static int set_up(unsigned index, struct error *err)
{
	struct netlink_request request;
	struct ifinfomsg *link;
	const struct nlmsghdr *nlh =
		netlink_request_start(&request, RTM_SETLINK, NLM_F_ACK, sizeof(*link), &link);
	int r;

	link->ifi_index = (int)index;
	link->ifi_flags = link->ifi_change = IFF_UP;
	r = netlink_talk(NETLINK_ROUTE, nlh, NULL, NULL);
	return r ? error_set(err, -r, "set a scratch namespace's interface up") : 0;
}

/* Of the kernel's answer, without text. */
static int add_address(unsigned index, int family, const char *text)
{
	struct netlink_request request;
	struct in6_addr address;
	struct ifaddrmsg *ifa;
	struct nlmsghdr *nlh = netlink_request_start(
		&request, RTM_NEWADDR, NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL, sizeof(*ifa), &ifa);

	inet_pton(family, text, &address);
	ifa->ifa_family = (unsigned char)family;
	ifa->ifa_prefixlen = family == AF_INET6 ? 64 : 24;
	ifa->ifa_index = index;
	ifa->ifa_flags = IFA_F_PERMANENT | IFA_F_NODAD;
	mnl_attr_put(nlh, IFA_LOCAL, family == AF_INET6 ? 16 : 4, &address);
	return netlink_talk(NETLINK_ROUTE, nlh, NULL, NULL);
}

struct end {
	const char *v4, *v6;
	unsigned index;
	bool ipv6;
};

static int configure(void *arg, struct error *err)
{
	struct end *end = arg;
	int r = set_up(LO_IFINDEX, err);

	end->index = if_nametoindex(DEVICE);
	if (!r && !end->index)
		return error_set(err, errno, "find a scratch namespace's interface");
	if (!r)
		r = set_up(end->index, err);
	if (r)
		return r;
	r = add_address(end->index, AF_INET, end->v4);
	if (r)
		return error_set(err, -r, "add %s in a scratch namespace", end->v4);
	r = add_address(end->index, AF_INET6, end->v6);
	end->ipv6 = !r;
	/* Not built in, switched off at boot, or by sysctl for new interfaces. */
	if (!r || r == -EAFNOSUPPORT || r == -EOPNOTSUPP || r == -EACCES || r == -EPERM)
		return 0;
	return error_set(err, -r, "add %s in a scratch namespace", end->v6);
}

static int read_state(const struct nlmsghdr *nlh, void *arg)
{
	const struct nlattr *attr;
	uint8_t *state = arg;

	mnl_attr_for_each(attr, nlh, sizeof(struct ifinfomsg))
	{
		if (mnl_attr_get_type(attr) == IFLA_OPERSTATE &&
		    mnl_attr_get_payload_len(attr) == sizeof(*state))
			*state = mnl_attr_get_u8(attr);
	}
	return MNL_CB_OK;
}

/*
 * The end that was set up first learns of its carrier in the background, and drops what it is given
 * until then; a dropped first packet would cost a second.
 */
static int await_carrier(void *arg, struct error *err)
{
	const struct end *end = arg;
	int64_t deadline = monotonic_ms() + LINK_TIMEOUT_MS;

	for (;;) {
		struct netlink_request request;
		struct ifinfomsg *link;
		const struct nlmsghdr *nlh = netlink_request_start(&request, RTM_GETLINK, NLM_F_ACK,
								   sizeof(*link), &link);
		uint8_t state = 0;
		int r;

		link->ifi_index = (int)end->index;
		r = netlink_talk(NETLINK_ROUTE, nlh, read_state, &state);
		if (r)
			return error_set(err, -r, "read a scratch namespace's interface");
		if (state == OPER_UP)
			return 0;
		if (monotonic_ms() > deadline)
			return error_set(err, ETIMEDOUT, "a veth pair does not come up");
		usleep(LINK_POLL_US);
	}
}

int selftest_network_open(struct selftest_network *ret, struct error *err)
{
	struct end pod = {.v4 = SELFTEST_POD_V4, .v6 = SELFTEST_POD_V6};
	struct end peer = {.v4 = SELFTEST_PEER_V4, .v6 = SELFTEST_PEER_V6};
	int r;

	ret->pod_fd = ret->peer_fd = -1;
	r = netns_new(&ret->pod_fd, err);
	if (!r)
		r = netns_new(&ret->peer_fd, err);
	if (!r)
		r = netns_run(ret->pod_fd, make_pair, ret, err);
	if (!r)
		r = netns_run(ret->pod_fd, configure, &pod, err);
	if (!r)
		r = netns_run(ret->peer_fd, configure, &peer, err);
	if (!r)
		r = netns_run(ret->pod_fd, await_carrier, &pod, err);
	ret->ipv6 = pod.ipv6 && peer.ipv6;
	return r;
}

void selftest_network_close(struct selftest_network *net)
{
	scoped_close(&net->pod_fd);
	scoped_close(&net->peer_fd);
}
