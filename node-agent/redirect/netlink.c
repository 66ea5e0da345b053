/* SPDX-License-Identifier: Apache-2.0 */
#include "netlink.h"

#include "error.h"
#include "netlink_talk.h"
#include "netns.h"
#include "scoped.h"

#include <arpa/inet.h>
#include <errno.h>
#include <linux/if_addr.h>
#include <linux/inet_diag.h>
#include <linux/net_namespace.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { MONITOR_BUFFER_BYTES = 64 * 1024, LO_IFINDEX = 1 };

/* ---- addresses ------------------------------------------------------------------------------ */

static bool address_of(const struct nlmsghdr *nlh, struct ip_address *ret)
{
	const struct ifaddrmsg *ifa = mnl_nlmsg_get_payload(nlh);
	const struct nlattr *attr, *local = NULL, *address = NULL;

	if (mnl_nlmsg_get_payload_len(nlh) < sizeof(*ifa))
		return false;
	mnl_attr_for_each(attr, nlh, sizeof(*ifa))
	{
		if (mnl_attr_get_type(attr) == IFA_LOCAL)
			local = attr;
		else if (mnl_attr_get_type(attr) == IFA_ADDRESS)
			address = attr;
	}
	/* On a point-to-point link IFA_ADDRESS is the peer; IFA_LOCAL, when given, is ours. */
	attr = local ? local : address;
	if (attr && ifa->ifa_family == AF_INET && mnl_attr_get_payload_len(attr) == 4) {
		ip_address_from_v4(mnl_attr_get_u32(attr), ret);
		return true;
	}
	if (attr && ifa->ifa_family == AF_INET6 && mnl_attr_get_payload_len(attr) == 16) {
		ip_address_from_v6(mnl_attr_get_payload(attr), ret);
		return true;
	}
	return false;
}

struct address_list {
	struct ip_address *addresses;
	size_t n;
};

static int collect_address(const struct nlmsghdr *nlh, void *arg)
{
	struct address_list *list = arg;
	struct ip_address address, *grown;

	if (nlh->nlmsg_type != RTM_NEWADDR || !address_of(nlh, &address))
		return MNL_CB_OK;
	grown = reallocarray(list->addresses, list->n + 1, sizeof(*grown));
	if (!grown) {
		errno = ENOMEM;
		return MNL_CB_ERROR;
	}
	list->addresses = grown;
	list->addresses[list->n++] = address;
	return MNL_CB_OK;
}

static void forget_addresses(void *arg)
{
	struct address_list *list = arg;

	list->n = 0;
}

static int list_inside(void *arg, struct error *err)
{
	struct netlink_request request;
	struct ifaddrmsg *ifa;
	const struct nlmsghdr *nlh =
		netlink_request_start(&request, RTM_GETADDR, NLM_F_DUMP, sizeof(*ifa), &ifa);
	int r;

	ifa->ifa_family = AF_UNSPEC;
	r = netlink_dump(NETLINK_ROUTE, nlh, collect_address, forget_addresses, arg);
	return r ? error_set(err, -r, "list the pod's addresses") : 0;
}

int netlink_list_addresses(int netns_fd, struct ip_address **ret, size_t *ret_n, struct error *err)
{
	struct address_list list = {0};
	int r = netns_run(netns_fd, list_inside, &list, err);

	if (r) {
		free(list.addresses);
		return r;
	}
	*ret = list.addresses;
	*ret_n = list.n;
	return 0;
}

struct passthrough_request {
	bool present, changed;
};

static int set_passthrough_inside(void *arg, struct error *err)
{
	struct passthrough_request *passthrough = arg;
	struct netlink_request request;
	struct in6_addr six = {.s6_addr = {[15] = 6}};
	struct ifaddrmsg *ifa;
	struct nlmsghdr *nlh = netlink_request_start(
		&request, passthrough->present ? RTM_NEWADDR : RTM_DELADDR,
		NLM_F_ACK | (passthrough->present ? NLM_F_CREATE | NLM_F_EXCL : 0), sizeof(*ifa),
		&ifa);
	int r;

	ifa->ifa_family = AF_INET6;
	ifa->ifa_prefixlen = 128;
	ifa->ifa_index = LO_IFINDEX;
	ifa->ifa_flags = IFA_F_PERMANENT | IFA_F_NODAD;
	mnl_attr_put(nlh, IFA_LOCAL, sizeof(six), &six);
	r = netlink_talk(NETLINK_ROUTE, nlh, NULL, NULL);
	passthrough->changed = !r;
	if (r == -EEXIST || r == -EADDRNOTAVAIL || r == -EACCES || r == -EAFNOSUPPORT ||
	    r == -EOPNOTSUPP)
		return 0; /* there, gone, or the namespace has no IPv6 */
	return r ? error_set(err, -r, "%s ::6/128 on lo", passthrough->present ? "add" : "remove")
		 : 0;
}

int netlink_set_passthrough_address(int netns_fd, bool present, bool *ret_changed,
				    struct error *err)
{
	struct passthrough_request request = {.present = present};
	int r = netns_run(netns_fd, set_passthrough_inside, &request, err);

	if (!r && ret_changed)
		*ret_changed = request.changed;
	return r;
}

/* ---- listeners --------------------------------------------------------------------------------
 */

struct listener_request {
	uint16_t port;
	bool found;
};

static int see_listener(const struct nlmsghdr *nlh, void *arg)
{
	const struct inet_diag_msg *msg = mnl_nlmsg_get_payload(nlh);
	struct listener_request *request = arg;

	if (mnl_nlmsg_get_payload_len(nlh) >= sizeof(*msg) &&
	    ntohs(msg->id.idiag_sport) == request->port)
		request->found = true;
	return MNL_CB_OK;
}

static int find_listener_inside(void *arg, struct error *err)
{
	static const __u8 families[] = {AF_INET, AF_INET6};
	struct listener_request *listener = arg;

	for (size_t i = 0; i < sizeof(families) && !listener->found; i++) {
		struct netlink_request request;
		struct inet_diag_req_v2 *diag;
		const struct nlmsghdr *nlh = netlink_request_start(
			&request, SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, sizeof(*diag), &diag);
		int r;

		diag->sdiag_family = families[i];
		diag->sdiag_protocol = IPPROTO_TCP;
		diag->idiag_states = 1 << TCP_LISTEN;
		diag->id.idiag_sport = htons(listener->port);
		r = netlink_dump(NETLINK_SOCK_DIAG, nlh, see_listener, NULL, listener);
		if (r == -ENOENT || r == -EPROTONOSUPPORT)
			listener->found = true; /* no inet_diag in this kernel */
		else if (r)
			return error_set(err, -r, "look for listening sockets");
	}
	return 0;
}

int netlink_has_listener(int netns_fd, uint16_t port, bool *ret, struct error *err)
{
	struct listener_request request = {.port = port};
	int r = netns_run(netns_fd, find_listener_inside, &request, err);

	if (!r)
		*ret = request.found;
	return r;
}

/* ---- the passthrough address, again ---- */

int netlink_find_passthrough_address(int netns_fd, bool *ret_present, bool *ret_any_ipv6,
				     struct error *err)
{
	static const struct ip_address six = {.bytes = {[15] = 6}};
	scoped_free struct ip_address *addresses = NULL;
	bool found = false, any_ipv6 = false;
	size_t n = 0;
	int r = netlink_list_addresses(netns_fd, &addresses, &n, err);

	if (r)
		return r;
	for (size_t i = 0; i < n; i++) {
		found |= ip_address_equal(&addresses[i], &six);
		any_ipv6 |= !ip_address_is_v4(&addresses[i]);
	}
	*ret_present = found;
	*ret_any_ipv6 = any_ipv6;
	return 0;
}

int netlink_verify_passthrough_address(int netns_fd, struct error *err)
{
	bool present = false, any_ipv6 = false;
	int r = netlink_find_passthrough_address(netns_fd, &present, &any_ipv6, err);

	if (!r && !present && any_ipv6)
		r = error_set(err, ENODEV, "the address ::6 on lo is missing");
	return r;
}

/* ---- namespace ids -------------------------------------------------------------------------- */

static int read_namespace_id(const struct nlmsghdr *nlh, void *arg)
{
	const struct nlattr *attr;
	int *id = arg;

	mnl_attr_for_each(attr, nlh,
			  sizeof(struct rtgenmsg)) if (mnl_attr_get_type(attr) == NETNSA_NSID) *id =
		(int)mnl_attr_get_u32(attr);
	return MNL_CB_OK;
}

static int namespace_request(int type, int netns_fd, bool assign, mnl_cb_t fn, void *arg)
{
	struct netlink_request request;
	struct rtgenmsg *gen;
	struct nlmsghdr *nlh =
		netlink_request_start(&request, (uint16_t)type, NLM_F_ACK, sizeof(*gen), &gen);

	gen->rtgen_family = AF_UNSPEC;
	mnl_attr_put_u32(nlh, NETNSA_FD, (uint32_t)netns_fd);
	if (assign)
		mnl_attr_put_u32(nlh, NETNSA_NSID, (uint32_t)NETNSA_NSID_NOT_ASSIGNED);
	return netlink_talk(NETLINK_ROUTE, nlh, fn, arg);
}

int netlink_namespace_id(int netns_fd, int *ret_id, struct error *err)
{
	int id = NETNSA_NSID_NOT_ASSIGNED;
	int r = namespace_request(RTM_NEWNSID, netns_fd, true, NULL, NULL);

	if (r && r != -EEXIST)
		return error_set(err, -r, "give the pod's namespace an id");
	r = namespace_request(RTM_GETNSID, netns_fd, false, read_namespace_id, &id);
	if (r)
		return error_set(err, -r, "read the id of the pod's namespace");
	if (id < 0)
		return error_set(err, ENOENT, "the pod's namespace has no id");
	*ret_id = id;
	return 0;
}

int netlink_namespace_lives(int id, bool *ret, struct error *err)
{
	struct netlink_request request;
	struct rtgenmsg *gen;
	struct nlmsghdr *nlh =
		netlink_request_start(&request, RTM_GETNSID, NLM_F_ACK, sizeof(*gen), &gen);
	int r;

	gen->rtgen_family = AF_UNSPEC;
	mnl_attr_put_u32(nlh, NETNSA_NSID, (uint32_t)id);
	r = netlink_talk(NETLINK_ROUTE, nlh, NULL, NULL);
	if (r && r != -ENOENT)
		return error_set(err, -r, "ask for the namespace with id %d", id);
	*ret = !r;
	return 0;
}

int netlink_ended_open(int *ret_fd, struct error *err)
{
	scoped_fd int fd =
		socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
	struct sockaddr_nl address = {.nl_family = AF_NETLINK};
	int group = RTNLGRP_NSID;

	if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
	    setsockopt(fd, SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, &group, sizeof(group)) < 0)
		return error_set(err, errno, "hear of namespaces that end");
	*ret_fd = take_fd(&fd);
	return 0;
}

void netlink_ended_read(int fd, void (*fn)(int id, void *arg), void *arg)
{
	_Alignas(NLMSG_ALIGNTO) char buf[4096];

	for (;;) {
		const struct nlmsghdr *nlh = (const struct nlmsghdr *)buf;
		int n = (int)recv(fd, buf, sizeof(buf), 0);

		if (n < 0 && (errno == EINTR || errno == ENOBUFS))
			continue;
		if (n <= 0)
			return;
		for (; mnl_nlmsg_ok(nlh, n); nlh = mnl_nlmsg_next(nlh, &n)) {
			int id = NETNSA_NSID_NOT_ASSIGNED;

			if (nlh->nlmsg_type != RTM_DELNSID)
				continue;
			read_namespace_id(nlh, &id);
			if (id >= 0)
				fn(id, arg);
		}
	}
}

/* ---- monitor -------------------------------------------------------------------------------- */

int netlink_monitor_open(int *ret_fd, struct error *err)
{
	scoped_fd int fd =
		socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_ROUTE);
	struct sockaddr_nl address = {
		.nl_family = AF_NETLINK,
		.nl_groups = RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR,
	};
	int on = 1, bytes = 4 * 1024 * 1024;

	if (fd < 0)
		return error_set(err, errno, "open the address monitor");
	if (setsockopt(fd, SOL_NETLINK, NETLINK_LISTEN_ALL_NSID, &on, sizeof(on)) < 0)
		return error_set(err, errno, "follow the addresses of all namespaces");
	/* More than rmem_max needs CAP_NET_ADMIN; less is fine, an overflow is noticed. */
	setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes));
	if (bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return error_set(err, errno, "bind the address monitor");
	*ret_fd = take_fd(&fd);
	return 0;
}

static void report_changes(const struct nlmsghdr *nlh, int bytes, int namespace_id,
			   netlink_change_fn fn, void *arg)
{
	for (; mnl_nlmsg_ok(nlh, bytes); nlh = mnl_nlmsg_next(nlh, &bytes)) {
		struct netlink_change change = {.namespace_id = namespace_id};

		if (nlh->nlmsg_type != RTM_NEWADDR && nlh->nlmsg_type != RTM_DELADDR)
			continue;
		change.added = nlh->nlmsg_type == RTM_NEWADDR;
		if (address_of(nlh, &change.address))
			fn(&change, arg);
	}
}

int netlink_monitor_read(int fd, netlink_change_fn fn, void *arg, struct error *err)
{
	scoped_free char *buf = malloc(MONITOR_BUFFER_BYTES);

	if (!buf)
		return error_set(err, ENOMEM, "read the address monitor");
	for (;;) {
		char control[CMSG_SPACE(sizeof(int))] __attribute__((aligned(8)));
		struct iovec iov = {.iov_base = buf, .iov_len = MONITOR_BUFFER_BYTES};
		struct msghdr msg = {
			.msg_iov = &iov,
			.msg_iovlen = 1,
			.msg_control = control,
			.msg_controllen = sizeof(control),
		};
		struct cmsghdr *cmsg;
		int namespace_id = -1;
		ssize_t n = recvmsg(fd, &msg, 0);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return 0;
		if (n < 0)
			return error_set(err, errno, "read the address monitor");
		cmsg = CMSG_FIRSTHDR(&msg);
		if (cmsg && cmsg->cmsg_level == SOL_NETLINK &&
		    cmsg->cmsg_type == NETLINK_LISTEN_ALL_NSID)
			memcpy(&namespace_id, CMSG_DATA(cmsg), sizeof(namespace_id));
		/* Without an id it is our own namespace. */
		if (namespace_id >= 0)
			report_changes((struct nlmsghdr *)(void *)buf, (int)n, namespace_id, fn,
				       arg);
	}
}
